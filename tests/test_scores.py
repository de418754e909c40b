"""Scores against computations of their own: numpy and transformers in float64, and known cases."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.torch import load_file

from checkpoints import make, reference_model, write_tensors
from llmtrace.blocks.llama import blocks
from llmtrace.blocks.weights import widen
from llmtrace.engine.request import Request
from llmtrace.introspect import fitness as fit
from llmtrace.introspect import relevance, wide
from llmtrace.introspect.beauty import CHANCE, Energies, beauty, rows_beauty, without
from llmtrace.introspect.definitions import DEFINITIONS
from llmtrace.introspect.fitness import LAYER_BLOCKS, Local, fitness
from llmtrace.introspect.relevance import (
    Attributor,
    components,
    concentration,
    feature_relevance,
    orders,
)
from llmtrace.introspect.scores import Scorer
from llmtrace.probes.records import HEAD_FIELDS, field
from running import load
from scored import looked, numpy_layer, part, prompt_of

if TYPE_CHECKING:
    from llmtrace.engine.inside import Inside
    from llmtrace.engine.trace import Model

ASKED = Request(prompt_of(21, 259), 9)
SHAPES = {
    "odd heads, biases": {"head_size": 40, "attention_bias": True, "mlp_bias": True, "hidden": 72},
    "f16, tied": {"dtype": "float16", "tied": True, "layers": 3},
    "f32": {"dtype": "float32", "hidden": 102, "heads": 3, "kv_heads": 1, "head_size": 34},
}


@pytest.fixture(scope="module", params=SHAPES.values(), ids=SHAPES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(make(tmp_path_factory.mktemp("model"), **request.param))


@pytest.fixture(scope="module")
def inside(model: Model) -> Inside:
    return looked(model, ASKED)[0]


def test_fitness_is_the_share_of_bits() -> None:
    y = np.array([3.0, -4.0])
    got = np.array([y, y * (1 + 2.0**-12), y * (1 + 2.0**-30), y * 3, y * 0])
    assert fitness(got, y[None]).tolist() == [1.0, 12 / 24, 1.0, 0.0, 0.0]
    assert fitness(np.zeros((2, 3)), np.array([[0.0] * 3, [1e-140] * 3])).tolist() == [1.0, 0.0]
    assert fitness(np.array([1e-30]), np.zeros(1)).tolist() == 0.0


def test_float32_blocks_are_fit(model: Model, inside: Inside) -> None:
    found = Local(model, ASKED).measure(inside)
    layers = model.architecture.layer_count
    assert [name for name in found if name in LAYER_BLOCKS] == list(LAYER_BLOCKS)
    for name, values in found.items():
        count = 9 if name in {"ln_final", "unembed"} else 29
        assert values.shape == (layers if name in LAYER_BLOCKS else 1, count), name
        assert values.min() > 0.85, name
    for name in ("embed", "resid_add1", "rope_q", "act"):
        assert found[name].min() > 0.96, name
        assert found[name].mean() > 0.99, name


def test_layers_stored_in_other_types_are_fit(tmp_path: Path) -> None:
    """A layer in float32 and one in float16, and a part of one matrix, beside bfloat16."""
    source = make(tmp_path / "model", layers=3)
    tensors = load_file(source / "model.safetensors")
    for name, tensor in tensors.items():
        if "layers.1" in name or name.endswith("layers.2.self_attn.k_proj.weight"):
            tensors[name] = tensor.float()
        if "layers.0.mlp" in name:
            tensors[name] = tensor.half()
    write_tensors(source, tensors)
    model = load(source)
    for block, values in Local(model, ASKED).measure(looked(model, ASKED)[0]).items():
        assert values.min() > 0.9, block


def test_sampled_fitness_is_that_of_all_outputs(model: Model, inside: Inside) -> None:
    """16 outputs estimate the bits of a row; the mean over rows to half a bit."""
    found = Local(model, ASKED).measure(inside)
    for layer in range(model.architecture.layer_count):
        w = numpy_layer(model, layer)
        x = inside.rows[f"blocks.{layer}.mlp.hook_post"].astype("f8")
        y = x @ w["mlp.down_proj.weight"].T + w.get("mlp.down_proj.bias", 0.0)
        got = inside.rows[f"blocks.{layer}.hook_mlp_out"]
        off = np.linalg.norm(got - y, axis=1) / np.linalg.norm(y, axis=1)
        full = np.clip(-np.log2(off), 0, 24).mean()
        assert abs(found["down_proj"][layer].mean() * 24 - full) < 0.5


def test_attention_is_judged_by_what_it_was_given(model: Model, inside: Inside) -> None:
    """Two heads, drawn by the seed: one that is disturbed shows there, and nowhere else."""
    a, measure = model.architecture, Local(model, ASKED)
    before = measure.measure(inside)
    heads = measure.heads[1]
    assert heads[0] < a.head_count // 2 <= heads[1]
    z = inside.rows["blocks.1.attn.hook_z"].copy()
    z[:, heads[0] * a.head_size : (heads[0] + 1) * a.head_size] *= np.float32(1 + 2.0**-10)
    after = measure.measure(
        dataclasses.replace(inside, rows={**inside.rows, "blocks.1.attn.hook_z": z})
    )
    assert after["attn"][1].max() < 13 / 24
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {"attn", "o_proj"}
    assert np.array_equal(before["attn"][0], after["attn"][0])


def test_what_is_sampled_is_fixed_by_the_prompt(model: Model) -> None:
    first, again = Local(model, ASKED), Local(model, dataclasses.replace(ASKED, max_tokens=3))
    other = Local(model, Request(prompt_of(21, 259, seed=1), 9))
    mine, others = first.sampled["down_proj"], other.sampled["down_proj"]
    assert mine.tolist() == again.sampled["down_proj"].tolist()
    assert mine.tolist() != others.tolist()
    assert mine[0].tolist() != mine[1].tolist()
    width = model.architecture.hidden_size
    ends = [width * s // 16 for s in range(1, 17)]
    for row in mine:
        assert np.searchsorted(ends, row, "right").tolist() == list(range(16))


def rounded(folder: Path, source: Path, levels: int) -> Path:
    """The checkpoint with linear layers of layers rounded to so many levels a row."""
    import shutil

    import torch

    shutil.copytree(source, folder, dirs_exist_ok=True)
    tensors = load_file(source / "model.safetensors")
    for name, w in tensors.items():
        if "_proj.weight" in name:
            scale = w.double().abs().amax(1, keepdim=True) / levels
            tensors[name] = (torch.round(w.double() / scale) * scale).to(w.dtype)
    write_tensors(folder, tensors)
    return folder


@pytest.mark.parametrize(("levels", "low", "high"), [(127, 5.8, 7.6), (7, 1.7, 3.5)])
def test_other_weights_are_seen(tmp_path: Path, levels: int, low: float, high: float) -> None:
    """Int8 leaves about 6.9 bits of a linear layer, int4 about 2.7 (0.858 and 0.342 of 8)."""
    source = make(tmp_path / "true", hidden=256, ff=384, dtype="float32")
    inside, _ = looked(load(rounded(tmp_path / "rounded", source, levels)), ASKED)
    model = load(source)
    found = Local(model, ASKED).measure(inside)
    for name in ("qkv", "o_proj", "gate_up", "down_proj"):
        assert low < found[name].mean() * 24 < high, name
    for name in ("ln1", "attn", "act", "resid_add2", "unembed"):
        assert found[name].min() > 0.85, name
    scorer = Scorer(model, ASKED)
    scorer.add(inside)
    run = scorer.scores()["run"]
    assert not run["trusted"]
    assert run["least"]["block"].split(".")[-1] in {"qkv", "o_proj", "gate_up", "down_proj"}
    lines = {line.of: line for line in scorer.table() if line.name == "fitness"}
    assert not lines["blocks.0.hook_mlp_out"].trusted
    assert lines["blocks.0.hook_resid_mid"].trusted


def test_beauty_of_known_rows() -> None:
    n = 64
    rows = np.zeros((1, 4, n), np.float32)
    rows[0, 0] = -2.5  # all the same
    rows[0, 1, 9] = 1e-20  # one
    rows[0, 2, [3, 50]] = 7.0  # two
    energies = Energies()
    energies.add(rows)
    plain, star = energies.scores()
    two = 1 - np.log(2) / (np.log(n) - CHANCE)
    np.testing.assert_allclose(plain[0], [0, 1, two, 0], atol=1e-12)
    assert np.array_equal(plain, star)  # none is among the largest everywhere


def test_beauty_of_normal_values_is_chance() -> None:
    rows = np.random.default_rng(0).standard_normal((1, 40, 4096)).astype("f4")
    energies = Energies()
    energies.add(rows)
    plain, _ = energies.scores()
    assert abs(plain.mean()) < 0.01
    share = rows.astype("f8") ** 2
    share /= share.sum(-1, keepdims=True)
    assert np.log(4096) + (share * np.log(share)).sum(-1).mean() == pytest.approx(CHANCE, abs=5e-3)


def test_massive_dimensions_are_left_out() -> None:
    """Two that are largest everywhere make B high; B* is that of the row without them."""
    rows = np.random.default_rng(1).standard_normal((2, 5, 300)).astype("f4")
    rows[0, :, [7, 200]] = 1000 + rows[0, :, [7, 200]]
    energies = Energies()
    for row in np.split(rows, [1, 3], axis=1):
        energies.add(row)
    plain, star = energies.scores()
    others = Energies()
    others.add(np.delete(rows[:1], [7, 200], axis=2))
    expected, _ = others.scores()
    assert plain[0].min() > 0.8
    np.testing.assert_allclose(star[0], expected[0], atol=1e-6)
    assert np.array_equal(star[1], plain[1])
    alone = Energies()
    alone.add(rows[:, :1])  # of one position nothing is known to be fixed
    assert np.array_equal(*alone.scores())


def test_beauty_of_attention_rows(model: Model, inside: Inside) -> None:
    """From head records alone, against the rows themselves, made by numpy."""
    a = model.architecture
    plain, star = rows_beauty(inside.heads, inside.positions)
    for layer in range(a.layer_count):
        keys, _ = inside.cache(layer)
        q = inside.rows[f"blocks.{layer}.attn.hook_rot_q"].astype("f8")
        q = q.reshape(len(q), a.head_count, a.head_size)
        k = keys.astype("f8").repeat(a.head_count // a.kv_head_count, axis=1)
        score = np.einsum("nhd,jhd->nhj", q, k) * float(a.attention_scale())
        for n, position in enumerate(inside.positions.tolist()):
            row = np.exp(score[n, :, : position + 1] - score[n, :, : position + 1].max(-1)[:, None])
            row /= row.sum(-1, keepdims=True)
            np.testing.assert_allclose(plain[n, layer], concentration_of(row), atol=2e-5)
            rest = row[:, 1:] / np.maximum(row[:, 1:].sum(-1), 1e-300)[:, None]
            expected = concentration_of(rest)
            expected[row[:, 0] > 1 - 2.0**-10] = 0
            np.testing.assert_allclose(star[n, layer], expected, atol=2e-3)
    assert not plain[0].any()  # one key only
    assert not star[:2].any()


def concentration_of(rows: np.ndarray) -> np.ndarray:
    if rows.shape[-1] < 2:
        return np.zeros(len(rows))
    h = -(rows * np.log(np.where(rows > 0, rows, 1))).sum(-1)
    return np.maximum(1 - h / np.log(rows.shape[-1]), 0)


def test_sink_has_beauty_and_no_star() -> None:
    heads = np.zeros((1, 1, 3, 8), np.float32)
    heads[0, 0, 1, [1, 3]] = 0.0, 1.0  # all on position 0
    heads[0, 0, 2, 1] = np.log(11)  # evenly on all but position 0
    words = heads.view(np.uint32)
    assert field(words, "sink", HEAD_FIELDS)[0, 0, 1] == 1
    plain, star = rows_beauty(words, np.array([11]))
    np.testing.assert_allclose(plain[0, 0], [1, 1, 1 - np.log(11) / np.log(12)], atol=1e-6)
    np.testing.assert_allclose(star[0, 0], [1, 0, 0], atol=1e-6)


FINITE = st.floats(-(2.0**90), 2.0**90, width=32)
SHARES = hnp.arrays(np.float64, st.integers(2, 40), elements=st.floats(0, 1)).filter(
    lambda x: x.sum() > 1e-3
)


@given(SHARES, st.integers(0, 2))
def test_what_is_left_out_is_out(values: np.ndarray, count: int) -> None:
    p = values / values.sum()
    entropy = -(p * np.log(np.where(p > 0, p, 1))).sum()
    left, mass = without(np.asarray(entropy), p[:count])
    rest = p[count:]
    if rest.sum() > 1e-6:
        rest = rest / rest.sum()
        assert left == pytest.approx(-(rest * np.log(np.where(rest > 0, rest, 1))).sum(), abs=1e-9)
        assert mass == pytest.approx(p[count:].sum())
    assert left >= 0


@settings(deadline=None)
@given(
    hnp.arrays(np.float32, (2, 7), elements=FINITE),
    hnp.arrays(np.float64, (2, 7), elements=FINITE),
)
def test_scores_stay_in_their_range(got: np.ndarray, truth: np.ndarray) -> None:
    energies = Energies()
    energies.add(got[None])
    for values in (fitness(got, truth), *energies.scores(), beauty(np.abs(truth), got.size)):
        assert ((values >= 0) & (values <= 1)).all()


def test_attribution_adds_up_to_the_logit(model: Model, inside: Inside) -> None:
    found = Attributor(model)(inside)
    assert found.logit.shape == (9, 2 * model.architecture.layer_count + 1)
    assert (np.abs(found.gap) < 2e-5 * np.abs(found.logit).sum(1)).all()
    np.testing.assert_allclose(found.share.sum(1), 1)


def test_attribution_is_that_of_transformers(model: Model, inside: Inside) -> None:
    """Components caught by hooks in float64; the norm's scale is the last one's, for all."""
    import torch

    a = model.architecture
    oracle = reference_model(model.checkpoint.path, a.inverse_frequencies(ASKED.run_limit))
    caught: dict[str, Any] = {}

    def catch(name: str) -> Any:
        def hook(module: Any, args: Any, output: Any) -> None:
            del module, args
            caught[name] = (output[0] if isinstance(output, tuple) else output)[0]

        return hook

    oracle.model.embed_tokens.register_forward_hook(catch("hook_embed"))
    for n, layer in enumerate(oracle.model.layers):
        layer.self_attn.register_forward_hook(catch(f"blocks.{n}.hook_attn_out"))
        layer.mlp.register_forward_hook(catch(f"blocks.{n}.hook_mlp_out"))
    with torch.no_grad():
        logits = oracle(torch.from_numpy(inside.tokens[None]), use_cache=False).logits[0]
        stream = sum(caught.values())
        scale = torch.sqrt((stream * stream).mean(-1, keepdim=True) + float(a.norm_epsilon))
        table = oracle.lm_head.weight
        found = []
        for i, token in enumerate(inside.output):
            t = inside.first_pick + i
            direction = (table[token] - table.mean(0)) * oracle.model.norm.weight / scale[t]
            rows = [caught[name][t] @ direction for name in components(a.layer_count)]
            assert float(sum(rows)) == pytest.approx(float(logits[t, token] - logits[t].mean()))
            found.append([float(x) for x in rows])
    got = Attributor(model)(inside).logit
    np.testing.assert_allclose(got, found, atol=2e-4 * np.abs(found).max())


def test_scale_of_another_layer_would_not_add_up(model: Model, inside: Inside) -> None:
    """What a lens does, the norm of each stream itself, is wrong for attribution."""
    found = Attributor(model)(inside)
    own = [np.linalg.norm(inside.rows[n][-9:], axis=1) for n in components(2)]
    scale = np.linalg.norm(inside.rows["ln_final.hook_normalized"], axis=1)
    wrong = found.logit[:, :5] * (scale[:, None] / np.stack(own, 1))
    assert (np.abs(wrong.sum(1) - found.centred) > 100 * np.abs(found.gap)).all()


def test_mean_of_the_unembedding(model: Model) -> None:
    block = next(block for block in blocks(model.architecture) if block.name == "unembed")
    matrix = wide.matrix_of(block)
    table = widen(model.checkpoint.tensors[matrix.tensors[0]]).astype("f8")
    np.testing.assert_allclose(wide.mean_row(model, matrix), table.mean(0), rtol=0, atol=1e-15)


def test_manual_page_says_what_the_code_does() -> None:
    page = (Path(__file__).parents[1] / "man" / "llmtrace-scores.7").read_text()
    said = page.replace("\\-", "-").replace("\\(aq", "'").replace(".IR ", "").split("\n")
    for each in DEFINITIONS:
        assert each.formula in said, each.formula
        for way in each.fails:
            assert way in said, way
    names = {(each.score, each.of) for each in DEFINITIONS}
    assert len(names) == len(DEFINITIONS)
    for name in ("FITNESS", "BEAUTY", "RELEVANCE", "USEFULNESS"):
        assert f".SH {name}" in said
    assert [each.formula for each in DEFINITIONS if f"/ {fit.SIGNIFICAND}," in each.formula]
    assert f"F below {fit.TRUSTED} is" in page
    assert f"C0 = {CHANCE} / ln n" in page
    assert f"linear layer {fit.OUTPUTS} outputs" in page
    assert f"attention {fit.HEADS} heads" in page
    assert f"the share of the {relevance.LARGEST} largest R" in page
    assert f"least {relevance.FEWEST} tokens, p of {relevance.PERMUTATIONS} perm" in page


def test_concentration_is_the_share_of_five() -> None:
    share = np.array([[0.1] * 10, [0.5, 0, 0, 0, 0, 0, 0.2, 0.1, 0.1, 0.1]])
    np.testing.assert_allclose(concentration(share), [0.5, 1.0])


def test_scores_of_a_run(model: Model, inside: Inside) -> None:
    scorer = Scorer(model, ASKED)
    scorer.add(inside)
    scores = scorer.scores()
    run = {name: float.fromhex(scores["run"][name]["mean"]) for name in ("fitness", "beauty")}
    table = {(line.name, line.of): line.spread for line in scorer.table()}
    for name, mean in run.items():
        assert table[name, "run"].mean == pytest.approx(mean, rel=1e-7)
    assert scores["run"]["trusted"]
    assert (scores["positions"], scores["drawn"]) == (29, 9)
    u = table["usefulness", "run"]
    whole = run["fitness"] * run["beauty"] * table["relevance", "run"].mean
    assert scores["run"]["usefulness"]["q16"] == round(u.mean * 65536)
    assert u.mean == pytest.approx(whole)
    for spread in table.values():
        assert 0 <= spread.low <= spread.mean <= spread.high <= 1
        assert spread.n in {9, 29}
    # B* of the run again, by hand: relevance times the star of each component's own point
    layers = model.architecture.layer_count
    shares = Attributor(model)(inside).share
    last = part(inside, list(range(inside.first_pick, 29)))
    other = Scorer(model, ASKED)
    other.add(last)
    stars = other._beauty_by_point()
    total = shares[:, 0] * stars["hook_embed"][1][0]
    for n in range(layers):
        total = total + shares[:, 1 + 2 * n] * stars["attn.hook_pattern"][1][n]
        total = total + shares[:, 2 + 2 * n] * stars["mlp.hook_post"][1][n]
    again = {(line.name, line.of): line.spread for line in other.table()}
    assert again["beauty", "run"].mean == pytest.approx(total.mean())


def test_scores_do_not_know_how_they_were_told(model: Model, inside: Inside) -> None:
    whole, pieces = Scorer(model, ASKED), Scorer(model, ASKED)
    whole.add(inside)
    for positions in (range(4), range(4, 20), [20], range(21, 29)):
        pieces.add(part(inside, list(positions)))
    assert json.dumps(whole.scores()) == json.dumps(pieces.scores())
    assert whole.table() == pieces.table()


def test_scores_need_a_drawn_token(model: Model, inside: Inside) -> None:
    scorer = Scorer(model, ASKED)
    scorer.add(part(inside, [0, 1]))
    with pytest.raises(ValueError, match="no position that drew"):
        scorer.scores()


def test_scores_are_small(tmp_path: Path) -> None:
    """Of 32 layers and 2 positions."""
    model = load(make(tmp_path, layers=32, hidden=32, ff=32))
    inside, _ = looked(model, ASKED, [20, 28])
    scorer = Scorer(model, ASKED)
    scorer.add(inside)
    assert len(json.dumps(scorer.scores(), indent=1)) < 20_000


def test_relevance_of_a_feature() -> None:
    rng = np.random.default_rng(3)
    logprob, order = -rng.exponential(size=60), orders(60, 1)
    assert feature_relevance(logprob[:29], logprob[:29], orders(29, 1)) is None
    perfect = feature_relevance(-(logprob**3), logprob, order)
    assert perfect is not None
    assert (perfect.relevance, perfect.correlation.mean, perfect.p) == (1.0, 1.0, 0.001)
    flat = feature_relevance(np.ones(60), logprob, order)
    assert flat is not None
    assert (flat.relevance, flat.p) == (0.0, 1.0)
    noise = [feature_relevance(rng.normal(size=60), logprob, order) for _ in range(40)]
    assert 2 < sum(found is not None and found.p < 0.25 for found in noise) < 20
    values = rng.normal(size=60) + logprob
    found = feature_relevance(values, logprob, order)
    assert found is not None
    ranks = [np.argsort(np.argsort(x)) for x in (values, logprob)]
    assert found.relevance == pytest.approx(abs(np.corrcoef(*ranks)[0, 1]))
    assert found.p < 0.05
