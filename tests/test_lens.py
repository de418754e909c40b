"""The lens against the hidden states of transformers in float64, and against the run itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from checkpoints import make, reference_model
from llmtrace.engine.request import Request
from llmtrace.introspect import lens as lenses
from llmtrace.introspect.lens import Lens, lens, streams
from running import device, load
from scored import looked, part, prompt_of

if TYPE_CHECKING:
    from pathlib import Path

    from llmtrace.engine.inside import Inside
    from llmtrace.engine.trace import Model

ASKED = Request(prompt_of(17, 259, seed=2), 8)
SHAPES = {
    "plain": {"layers": 3},
    "f16, tied, odd widths": {"dtype": "float16", "tied": True, "hidden": 72, "head_size": 18},
}


@pytest.fixture(scope="module", params=SHAPES.values(), ids=SHAPES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(make(tmp_path_factory.mktemp("model"), **request.param))


@pytest.fixture(scope="module")
def inside(model: Model) -> Inside:
    return looked(model, ASKED)[0]


@pytest.fixture(scope="module")
def found(model: Model, inside: Inside) -> Lens:
    return lens(model, inside)


def logp(logits: np.ndarray) -> np.ndarray:
    top = logits.max(-1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))


@pytest.fixture(scope="module")
def truth(model: Model, inside: Inside) -> np.ndarray:
    """Log-probabilities (K, N, V): the norm made anew for each hidden state."""
    import torch

    a = model.architecture
    oracle = reference_model(model.checkpoint.path, a.inverse_frequencies(ASKED.run_limit))
    tokens = torch.from_numpy(inside.tokens[None])
    with torch.no_grad():
        states = oracle(tokens, use_cache=False, output_hidden_states=True).hidden_states
        logits = [oracle.lm_head(oracle.model.norm(state))[0].numpy() for state in states[:-1]]
        logits.append(oracle.lm_head(states[-1])[0].numpy())  # transformers normed the last
    return logp(np.stack(logits))


def test_lens_is_that_of_transformers(found: Lens, truth: np.ndarray, inside: Inside) -> None:
    assert found.layers == tuple(streams(len(truth) - 1))
    assert np.array_equal(found.top, truth.argmax(-1))
    final = truth[-1].argmax(-1)
    final[inside.first_pick :] = inside.output
    assert np.array_equal(found.final, final)
    each = np.take_along_axis(truth, found.final[None, :, None], -1)
    near = {"rtol": 0, "atol": 2e-4}
    np.testing.assert_allclose(found.logprob, each[..., 0], **near)
    np.testing.assert_allclose(found.top_logprob, truth.max(-1), **near)
    np.testing.assert_allclose(found.entropy, -(np.exp(truth) * truth).sum(-1), **near)
    divergence = (np.exp(truth[-1]) * (truth[-1] - truth)).sum(-1)
    np.testing.assert_allclose(found.kl, divergence, **near)
    assert (found.rank == (truth > each).sum(-1)).mean() > 0.99
    held = [
        next(k for k in range(len(truth) + 1) if (truth[k:, n].argmax(-1) == final[n]).all())
        for n in range(len(final))
    ]
    assert found.commit_layer.tolist() == held
    assert set(held) > {len(truth) - 1}


@pytest.mark.parametrize("numerics", ["speed", "memory"])
def test_lenses_of_all_versions_compare(model: Model, inside: Inside, numerics: str) -> None:
    """The same streams, the same logits: weights as they are stored."""
    rows = inside.rows["hook_embed"]
    other = load(model.checkpoint.path, numerics=numerics)
    assert lenses._Logits(other)(rows).tobytes() == lenses._Logits(model)(rows).tobytes()


def test_last_layer_is_the_run_itself(model: Model, inside: Inside, found: Lens) -> None:
    """To the bit: the same kernels, on the same stream."""
    last = inside.rows[streams(model.architecture.layer_count)[-1]]
    logits = lenses._Logits(model)(last)
    assert logits[inside.first_pick :].tobytes() == inside.rows["unembed.hook_out"].tobytes()
    assert not found.kl[-1].any()
    assert not found.rank[-1].any()  # greedy
    assert (found.commit_layer < len(found.layers)).all()


def test_scale_of_the_last_norm_would_be_wrong(
    model: Model, inside: Inside, truth: np.ndarray, found: Lens
) -> None:
    """The last scale makes early layers look uniform: what attribution wants, a lens must not."""
    from llmtrace.blocks.weights import widen

    tensors = model.checkpoint.tensors
    table = tensors.get("lm_head.weight", tensors["model.embed_tokens.weight"])
    head = widen(table).astype("f8") * widen(tensors["model.norm.weight"]).astype("f8")
    scale = inside.rows["ln_final.hook_scale"].astype("f8")
    first = inside.first_pick
    wrong = logp(inside.rows["hook_embed"][first:].astype("f8") / scale @ head.T)
    entropy = -(np.exp(wrong) * wrong).sum(-1)
    assert (entropy > found.entropy[0, first:]).all()
    assert entropy.mean() > found.entropy[0, first:].mean() + 0.5
    assert np.abs(wrong - truth[0, first:]).max() > 1
    same = logp(inside.rows[found.layers[-1]][first:].astype("f8") / scale @ head.T)
    np.testing.assert_allclose(same, truth[-1, first:], atol=2e-4)


def test_lens_does_not_know_what_is_looked_at_together(
    model: Model, inside: Inside, found: Lens, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = [0, 3, 16, 17, 23]
    other = lens(model, part(inside, some))
    monkeypatch.setattr(lenses, "LOGITS_BYTES", 1)  # a position at a time
    again = lens(model, inside)
    for name in ("final", "top", "top_logprob", "logprob", "rank", "entropy", "kl"):
        whole = getattr(found, name)
        assert getattr(again, name).tobytes() == whole.tobytes(), name
        assert getattr(other, name).tobytes() == whole[..., some].copy().tobytes(), name


def test_same_bits_on_another_build(tmp_path: Path) -> None:
    folder = make(tmp_path)
    found = []
    for on in (device(), device(cpu="x86-64-v2", threads=1)):
        model = load(folder, on)
        made = lens(model, looked(model, ASKED, [2, 20])[0])
        found.append(b"".join(getattr(made, n).tobytes() for n in ("kl", "entropy", "logprob")))
    assert found[0] == found[1]


def table(top: list[list[int]], final: list[int]) -> Lens:
    shape = np.zeros((len(top), len(final)))
    names = tuple(str(k) for k in range(len(top)))
    tops = np.array(top)
    return Lens(names, np.arange(len(final)), np.array(final), tops, *([shape] * 5))


def test_commit_layer() -> None:
    top = [[5, 1, 5, 0], [5, 5, 2, 0], [5, 5, 5, 0]]
    assert table(top, [5, 5, 5, 5]).commit_layer.tolist() == [0, 1, 2, 3]


def test_beauty_of_a_lens(found: Lens) -> None:
    values = found.beauty(259)
    assert ((values >= 0) & (values <= 1)).all()
    np.testing.assert_allclose(values, np.maximum(1 - found.entropy / np.log(259), 0))
    assert found.json()["top"][0][0] == found.top[0, 0]
