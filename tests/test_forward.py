"""The float64 pass, what is made of it, ablation and gradients, against transformers in float64."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from checkpoints import make, reference_logits, reference_model
from llmtrace.engine.request import Request
from llmtrace.introspect import wide
from llmtrace.introspect.ablation import ablate, sampled
from llmtrace.introspect.forward import Forward, kl, likelihood, propagate, share
from llmtrace.introspect.gradients import gradients
from llmtrace.introspect.relevance import Attributor, components
from running import device, load
from scored import looked, prompt_of

if TYPE_CHECKING:
    from pathlib import Path

    from llmtrace.engine.inside import Inside
    from llmtrace.engine.trace import Model

ASKED = Request(prompt_of(30, 259, seed=5), 12)
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
SHAPES: dict[str, dict[str, Any]] = {
    "odd heads, biases": {"head_size": 40, "attention_bias": True, "mlp_bias": True, "hidden": 72},
    "f16, tied, yarn": {"dtype": "float16", "tied": True, "layers": 3, "rope": YARN},
    "f32, llama3": {"dtype": "float32", "hidden": 104, "kv_heads": 1, "rope": LLAMA3},
}


@pytest.fixture(scope="module", params=SHAPES.values(), ids=SHAPES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    options = {"head_size": 32, **request.param}
    return load(make(tmp_path_factory.mktemp("model"), **options))


@pytest.fixture(scope="module")
def inside(model: Model) -> Inside:
    return looked(model, ASKED)[0]


def oracle(model: Model, tokens: list[int], limit: int) -> np.ndarray:
    a = model.architecture
    factor = float(a.rope_attention_factor(limit))
    return reference_logits(model.checkpoint.path, tokens, a.inverse_frequencies(limit), factor)


def reference(model: Model) -> Any:
    a = model.architecture
    factor = float(a.rope_attention_factor(ASKED.run_limit))
    return reference_model(model.checkpoint.path, a.inverse_frequencies(ASKED.run_limit), factor)


def test_cosine_and_sine() -> None:
    rng = np.random.default_rng(0)
    angle = np.concatenate([rng.uniform(0, 8, 4000), rng.uniform(0, 2**24, 4000), [0, 2**24]])
    angle = angle.astype(np.float32).astype(np.float64)
    cosine, sine = wide.cosine_sine(angle)
    np.testing.assert_allclose(cosine, np.cos(angle), rtol=0, atol=3e-16)
    np.testing.assert_allclose(sine, np.sin(angle), rtol=0, atol=3e-16)
    assert (cosine[-2], sine[-2]) == (1.0, 0.0)


def test_logits_are_those_of_transformers(model: Model) -> None:
    """Of more tokens than attention takes together."""
    tokens = np.array(prompt_of(150, 259))
    got = Forward(model, ASKED.run_limit)(tokens, np.arange(len(tokens)))
    expected = oracle(model, tokens.tolist(), ASKED.run_limit)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-11 * np.abs(expected).max())


def test_propagated_fitness(model: Model, inside: Inside) -> None:
    found = propagate(model, inside, ASKED.run_limit)
    expected = oracle(model, inside.tokens.tolist(), ASKED.run_limit)[inside.first_pick :]
    logits = inside.rows["unembed.hook_out"].astype("f8")
    error = np.linalg.norm(logits - expected, axis=1) / np.linalg.norm(expected, axis=1)
    bits = -np.log2(error) / 24
    assert found.points["unembed.hook_out"].mean == pytest.approx(bits.mean(), rel=1e-6)
    assert set(found.points) == set(inside.rows)
    assert min(spread.mean for spread in found.points.values()) > 0.7
    assert found.points["hook_embed"].mean == 1
    assert 1 - 1e-9 < found.fitness.low <= found.fitness.mean <= 1  # reference, 7.7.6
    assert 9 < found.nines < 16
    assert (found.same_top.mean, found.certified.mean) == (1, 1)
    assert found.same_top.low == pytest.approx(12 / (12 + 1.959964**2))


def test_loss_of_another_distribution() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 5, 40)) * 3
    p, q = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (a, b))
    np.testing.assert_allclose(kl(a, b), (p * np.log(p / q)).sum(1))
    assert not kl(a, a).any()
    assert not kl(a, a + 7.25).max() > 1e-14


def test_propagated_fitness_of_disturbed_logits(model: Model, inside: Inside) -> None:
    """exp(-mean KL), the share of equal tops and what is no longer certain."""
    logits = inside.rows["unembed.hook_out"].copy()
    logits[0, logits[0].argmin()] = logits[0].max() + 1
    rows = {**inside.rows, "unembed.hook_out": logits}
    found = propagate(model, dataclasses.replace(inside, rows=rows), ASKED.run_limit)
    expected = oracle(model, inside.tokens.tolist(), ASKED.run_limit)[inside.first_pick :]
    divergence = kl(expected, logits.astype("f8"))
    assert found.kl.mean == pytest.approx(divergence.mean(), rel=1e-6)
    assert found.fitness.mean == pytest.approx(math.exp(-divergence.mean()))
    assert found.worst_kl == pytest.approx(divergence.max(), rel=1e-6)
    assert found.same_top.mean == pytest.approx(11 / 12)
    assert found.certified.mean == pytest.approx(11 / 12)
    assert found.nines == pytest.approx(-math.log10(divergence.mean()), rel=1e-6)


def test_share_has_wilsons_interval() -> None:
    found = share(np.array([True] * 8 + [False] * 2))
    assert (found.mean, found.n) == (0.8, 10)
    assert (round(found.low, 4), round(found.high, 4)) == (0.4902, 0.9433)


def test_likelihood_of_an_answer(model: Model) -> None:
    prompt, answer = list(prompt_of(9, 259)), [7, 200, 3]
    logits = oracle(model, [*prompt, *answer], 12)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = [math.log(p[8 + i, token]) for i, token in enumerate(answer)]
    found = likelihood(model, prompt, answer)
    assert found.mean == pytest.approx(np.mean(expected))
    assert found.n == 3
    with pytest.raises(ValueError, match="no prompt"):
        likelihood(model, prompt, [])


def test_same_bits_on_other_builds(tmp_path: Path) -> None:
    """The kernels' float64 does not know which instructions there are, nor how many threads."""
    folder = make(tmp_path, head_size=40, hidden=72)
    tokens, picks = np.array(prompt_of(150, 259)), np.array([5, 149])
    found = set()
    for on in (device(), device(threads=1), device(cpu="x86-64-v2")):
        made = Forward(load(folder, on), 150)(tokens, picks)
        found.add(made.tobytes())
    assert len(found) == 1


def test_ablation_is_that_of_transformers(model: Model, inside: Inside) -> None:
    """A hook puts the mean over positions in the place of what a module gave."""
    import torch

    shares = Attributor(model)(inside).share
    picks = inside.positions[inside.positions >= inside.first_pick]
    found = ablate(model, inside.tokens, picks, shares, run_limit=ASKED.run_limit, seed=1)
    names = components(model.architecture.layer_count)
    assert found.names == tuple(names)
    truth = reference(model)
    modules = {"hook_embed": truth.model.embed_tokens}
    for n, layer in enumerate(truth.model.layers):
        modules[f"blocks.{n}.hook_attn_out"] = layer.self_attn
        modules[f"blocks.{n}.hook_mlp_out"] = layer.mlp

    def flat(module: Any, args: Any, output: Any) -> Any:
        del module, args
        rows = output[0] if isinstance(output, tuple) else output
        rows = rows.mean(1, keepdim=True).expand_as(rows)
        return (rows, *output[1:]) if isinstance(output, tuple) else rows

    tokens = torch.from_numpy(inside.tokens[None])
    with torch.no_grad():
        base = truth(tokens, use_cache=False).logits[0].numpy()[picks]
        for i, name in enumerate(found.names):
            hook = modules[name].register_forward_hook(flat)
            logits = truth(tokens, use_cache=False).logits[0].numpy()[picks]
            hook.remove()
            np.testing.assert_allclose(found.kl[i], kl(base, logits), rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(found.damage, 1 - np.exp(-found.kl.mean(1)))
    ranks = [np.argsort(np.argsort(x)) for x in (found.share, found.kl.mean(1))]
    assert found.trust.mean == pytest.approx(np.corrcoef(*ranks)[0, 1])


def test_ablated_components_are_drawn_from_all_depths() -> None:
    assert sampled(13, 1) == list(range(13))
    drawn = sampled(65, 1)
    assert len(drawn) == 16
    ends = [65 * s // 16 for s in range(1, 17)]
    assert np.searchsorted(ends, drawn, "right").tolist() == list(range(16))
    assert drawn != sampled(65, 2)


def test_gradients_are_those_of_transformers(model: Model, inside: Inside) -> None:
    import torch

    picks = inside.positions[inside.positions >= inside.first_pick][:2]
    drawn = np.array(inside.output[:2])
    found = gradients(model, inside.tokens, picks, drawn, ASKED.run_limit)
    truth = reference(model)
    caught: list[Any] = []

    def catch(module: Any, args: Any, output: Any) -> None:
        del module, args
        rows = output[0] if isinstance(output, tuple) else output
        rows.retain_grad()
        caught.append(rows)

    truth.model.embed_tokens.register_forward_hook(catch)
    for layer in truth.model.layers:
        layer.self_attn.register_forward_hook(catch)
        layer.mlp.register_forward_hook(catch)
    for i, (position, token) in enumerate(zip(picks, drawn, strict=True)):
        caught.clear()
        tokens = torch.from_numpy(inside.tokens[None, : position + 1])
        logits = truth(tokens, use_cache=False).logits[0, -1]
        (logits[token] - logits.mean()).backward()
        expected = [float((rows.grad * rows.detach()).sum()) for rows in caught]
        np.testing.assert_allclose(found[i], expected, rtol=1e-8, atol=1e-9)
