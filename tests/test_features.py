"""Features: each by its formula on whole rows, their document, their descriptions."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import feature_oracle as oracle
import seen as made
from llmtrace.introspect import features as f
from llmtrace.probes.exact import Spread
from llmtrace.probes.totals import Totals

ROOT = Path(__file__).parents[1]
SHAPE = made.shape(layers=3, heads=4, d=64, ff=96)
T, G = 40, 16
SEEN, VALUES = made.run(SHAPE, T, G, seed=3)


def totals() -> Totals:
    found = Totals(SHAPE, f.FEATURES)
    found.add(SEEN)
    return found


TOTALS = totals()
DOCUMENT = f.features(TOTALS)
READ = f.read(json.loads(json.dumps(DOCUMENT)))


@pytest.mark.parametrize("layer", range(SHAPE.layers))
def test_features_of_layers_are_their_formulas(layer: int) -> None:
    rows = {name: x.astype(np.float64) for name, x in VALUES.items()}
    expected = oracle.of_layer(rows, layer)
    p = VALUES["patterns"][:, layer].transpose(1, 0, 2)  # (H, T, T)
    scores = np.log(np.where(p > 0, p, 1)) + heads("lse")[:, layer].T[..., None]
    expected |= oracle.of_heads(p, scores)
    assert expected.keys() == READ.layers.keys()
    for name, values in expected.items():
        check(name, READ.layers[name][layer], values)


def check(name: str, got: Spread, values: np.ndarray) -> None:
    middle, half = oracle.summary(values)
    tolerance = 5e-5 * max(1e-9, np.abs(values).max())
    assert got.n == len(values), name
    assert got.mean == pytest.approx(middle, abs=tolerance), name
    assert got.high - got.mean == pytest.approx(half, abs=2 * tolerance), name
    assert got.mean - got.low == pytest.approx(half, abs=2 * tolerance), name


def heads(name: str) -> np.ndarray:
    word = {"lse": 0}[name]
    return SEEN.heads[..., word].view("<f4").astype(np.float64)


def test_features_of_tokens_are_their_records() -> None:
    logprob, entropy, margin = SEEN.drawn[:, :3].view("<f4").astype(np.float64).T
    largest = np.abs(VALUES["unembed.hook_out"][-G:]).max(1)
    expected = {"logprob": logprob, "entropy": entropy, "margin": margin}
    expected |= {"greedy": SEEN.drawn[:, 3] == 0, "certified": margin > 1e-4 * largest}
    assert READ.run.keys() == {*expected, "perplexity"}
    for name, values in expected.items():
        check(name, READ.run[name], values)
    one, of = READ.run["perplexity"], READ.run["logprob"]
    got = [one.mean, one.low, one.high, one.n]
    expected_ = [math.exp(-of.mean), math.exp(-of.high), math.exp(-of.low), G]
    assert got == pytest.approx(expected_, rel=1e-6)


def test_massive_activations_outliers_and_overflow_are_counted() -> None:
    values = {name: x.copy() for name, x in made.rows(SHAPE, 5, 4).items()}
    post = values["blocks.1.hook_resid_post"]
    post[:] = np.random.default_rng(0).normal(size=post.shape) / 20
    post[2, [5, 9]], post[3, 7], post[4, 1] = (900, -7000), 1.0, 70000
    seen, _ = made.run(SHAPE, 5, 1)
    column = [name for name, _ in SHAPE.points].index("blocks.1.hook_resid_post")
    for t in range(5):
        seen.points[t, column] = made.record(post[t])
    found = Totals(SHAPE, f.FEATURES)
    found.add(seen)
    x = post.astype(np.float64)
    expected = oracle.of_layer({**values, "blocks.1.hook_resid_post": x}, 1)
    assert expected["massive"].tolist() == [0, 0, 2, 0, 1]
    assert expected["outliers"].tolist() == [0, 0, 1, 1, 1]
    for name in ("massive", "outliers", "saturated"):
        assert found.spreads(name)[1].mean == expected[name].mean(), name


def test_document_is_small_plain_and_exact() -> None:
    text = json.dumps(DOCUMENT, sort_keys=True, separators=(",", ":"), allow_nan=False)
    assert json.dumps(f.features(totals()), sort_keys=True, separators=(",", ":")) == text
    assert DOCUMENT["positions"], DOCUMENT["output"] == (T, G)
    one = TOTALS.spreads("stream_rms")[1]
    assert READ.layers["stream_rms"][1].mean == float(np.float32(one.mean))
    assert re.fullmatch(r"0x1\.[0-9a-f]{1,6}p[+-]\d+", DOCUMENT["layers"]["stream_rms"]["mean"][1])


def test_document_of_32_layers_fits() -> None:
    big = made.shape(layers=32, heads=2, d=16, ff=24)
    found = Totals(big, f.FEATURES)
    found.add(made.run(big, 12, 4)[0])
    text = json.dumps(f.features(found), sort_keys=True, separators=(",", ":"))
    assert 30_000 < len(text) <= 60_000


def test_a_run_of_one_position_has_a_document() -> None:
    found = Totals(SHAPE, f.FEATURES)
    found.add(made.run(SHAPE, 1, 1)[0])
    read = f.read(json.loads(json.dumps(f.features(found))))
    assert "attn_sink" not in read.layers
    assert read.layers["stream_rms"][0].n == 1
    assert (read.positions, read.output) == (1, 1)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("v",), 1),
        (("positions",), -1),
        (("positions",), True),
        (("output",), "3"),
        (("run",), []),
        (("run", "logprob"), 1.0),
        (("run", "logprob", "mean"), 1.0),
        (("run", "logprob", "mean"), "nan"),
        (("run", "logprob", "mean"), "0x1p+99999"),
        (("run", "logprob", "low"), "inf"),
        (("run", "logprob", "high"), "1" * 100),
        (("run", "logprob", "n"), 1.5),
        (("layers", "stream_rms", "mean"), "0x1p+0"),
        (("layers", "stream_rms", "mean"), ["0x1p+0"]),
        (("layers", "stream_rms"), {"n": 1, "mean": [], "low": [], "high": []}),
        (("layers",), None),
    ],
)
def test_malformed_documents_are_refused(path: tuple[str, ...], value: object) -> None:
    document = json.loads(json.dumps(DOCUMENT))
    at = document
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    with pytest.raises(ValueError, match=r"format|count|number|malformed|zip|hexadecimal"):
        f.read(document)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@given(JSON)
def test_anything_else_is_refused(document: object) -> None:
    with pytest.raises(ValueError):
        f.read(document)


def gram_rank(x: np.ndarray) -> float:
    centred = x - x.mean(0)
    values = np.linalg.svd(centred, compute_uv=False) ** 2
    return float(values.sum() ** 2 / (values**2).sum())


def test_effective_rank_is_the_participation_of_singular_values() -> None:
    draw = np.random.default_rng(0)
    for n, d, rank in ((5, 40, 5), (60, 20, 3), (30, 30, 30)):
        x = draw.normal(size=(n, rank)) @ draw.normal(size=(rank, d))
        assert f.effective_rank(x) == pytest.approx(gram_rank(x), rel=1e-9)
    assert f.effective_rank(np.zeros((4, 8))) == 0.0
    assert f.effective_rank(draw.normal(size=(1, 8))) == 0.0
    line = np.outer(np.arange(9), draw.normal(size=7))
    assert f.effective_rank(line) == pytest.approx(1.0)
    many = draw.normal(size=(f.MOST_ROWS * 4, 6))
    assert f.effective_rank(many) == pytest.approx(gram_rank(many[::4]), rel=1e-9)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("induction", (0.5, 0.9, 0.1, 0.6, 0.5, 0.9, 0.7, 1)),
        ("previous", (0.1, 0.4, 0.1, 0.6, 0.05, 0.1, 0.0, 1)),
        ("first", (0.9, 0.4, 0.1, 0.1, 0.9, 0.9, 0.0, 1)),
        ("local", (0.5, 0.1, 0.3, 0.3, 0.05, 0.0, 0.2, 1)),
        ("broad", (0.9, 0.1, 0.1, 0.1, 0.5, 0.1, 0.2, 1)),
        ("mixed", (0.5, 0.2, 0.1, 0.1, 0.5, 0.1, 0.2, 1)),
    ],
)
def test_heads_have_kinds(kind: str, words: tuple[float, ...]) -> None:
    assert f.head_kind(np.array(words, np.float32)) == kind


def test_every_feature_is_described() -> None:
    names = [one.name for one in f.descriptions()]
    assert len(names) == len({*names})
    assert {*READ.layers, *READ.run, "effective_rank"} == {*names}
    for one in f.descriptions():
        assert f.describe(one.name) == one
        assert one.meaning.endswith("."), one
        assert one.formula, one
        assert one.source, one
    with pytest.raises(KeyError):
        f.describe("nonsense")


def test_page_lists_every_feature() -> None:
    """llmtrace-features(7) has name, meaning, formula and source of each, as the code says."""
    page = (ROOT / "man" / "llmtrace-features.7").read_text()
    for escape, text in {"\\-": "-", "\\(aq": "'", "\\&": "", "\\(ha": "^"}.items():
        page = page.replace(escape, text)
    listed = re.findall(
        r"\n\.B (\w+)\n(.*?)\n\.br\n(.*?)\n\.br\n(.*?)(?=\n\.TP|\n\.S)", page, re.DOTALL
    )
    got = [(n, *(" ".join(part.split()) for part in rest)) for n, *rest in listed]
    assert got == [
        (one.name, one.meaning, f"Formula: {one.formula}.", f"Source: {one.source}")
        for one in f.descriptions()
    ]
    for kind in ("induction", "previous", "first", "local", "broad", "mixed"):
        assert f"\n.B {kind}\n" in page
