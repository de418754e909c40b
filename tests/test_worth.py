"""The worth of features: float64 made again by numpy, naive counts of phrases, known cases."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import feature_oracle as oracle
from checkpoints import make
from llmtrace.engine.request import Request
from llmtrace.introspect import worth as w
from llmtrace.introspect.features import FEATURES, totals
from llmtrace.introspect.inside import look
from llmtrace.introspect.truth import Truth
from llmtrace.probes.records import POINT_FIELDS, TOKEN_FIELDS, field
from llmtrace.probes.stretch import Columns
from running import device, load
from scored import looked, prompt_of
from seen import cut

if TYPE_CHECKING:
    from pathlib import Path

    from llmtrace.engine.evidence import Claim
    from llmtrace.engine.inside import Inside
    from llmtrace.engine.trace import Model
    from llmtrace.probes.records import Seen

ASKED = Request(prompt_of(23, 259), 40)
SHAPES = {
    "odd heads, biases": {"head_size": 40, "attention_bias": True, "mlp_bias": True, "hidden": 72},
    "f16, one group": {"dtype": "float16", "tied": True, "layers": 3, "kv_heads": 1},
}


class Keeper:
    """Keeps what is told, whole."""

    def __init__(self) -> None:
        self.parts: list[Seen] = []

    def add(self, seen: Seen) -> None:
        copies = {f.name: getattr(seen, f.name).copy() for f in dataclasses.fields(seen)}
        self.parts.append(dataclasses.replace(seen, **copies))

    def whole(self) -> Seen:
        first = self.parts[0]
        names = [f.name for f in dataclasses.fields(first)]
        return dataclasses.replace(
            first, **{n: np.concatenate([getattr(p, n) for p in self.parts]) for n in names}
        )


@dataclasses.dataclass(frozen=True)
class Case:
    model: Model
    claim: Claim
    inside: Inside
    seen: Seen

    def worth(self, inside: Inside | None = None, ends: tuple[int, ...] = ()) -> dict[str, w.Worth]:
        course = w.Course(self.model, ASKED)
        for part in cut(self.seen, [*ends]):
            course.add(part)
        return {one.name: one for one in course.worth(self.model, inside or self.inside)}


def case_of(model: Model) -> Case:
    _, claim = looked(model, ASKED, [0])
    keeper = Keeper()
    inside = look(model, claim, tell=[keeper])
    return Case(model, claim, inside, keeper.whole())


@pytest.fixture(scope="module", params=SHAPES.values(), ids=SHAPES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return case_of(load(make(tmp_path_factory.mktemp("model"), **request.param)))


def cosines(rows: dict[str, np.ndarray], layer: int) -> dict[str, np.ndarray]:
    """By the law of cosines: sums are rounded to float32, so a product of rows is not the same."""
    at = f"blocks.{layer}."
    pre = rows[f"blocks.{layer - 1}.hook_resid_post" if layer else "hook_embed"]
    mid, post = rows[at + "hook_resid_mid"], rows[at + "hook_resid_post"]
    found = {}
    for name, before, added, after in (
        ("attn_cosine", pre, rows[at + "hook_attn_out"], mid),
        ("mlp_cosine", mid, rows[at + "hook_mlp_out"], post),
    ):
        a, b, c = (np.linalg.norm(x, axis=1) for x in (before, added, after))
        found[name] = (c * c - a * a - b * b) / (2 * a * b)
    return found


def truths(case: Case) -> dict[str, np.ndarray]:
    """Every feature by numpy from whole rows: (L, n), or (1, n) of tokens."""
    inside, a = case.inside, case.model.architecture
    rows = {name: x.astype(np.float64) for name, x in inside.rows.items()}
    every: list[dict[str, np.ndarray]] = []
    for layer in range(a.layer_count):
        keys, _ = inside.cache(layer)
        q = rows[f"blocks.{layer}.attn.hook_rot_q"].reshape(-1, a.head_count, a.head_size)
        k = keys.astype(np.float64).repeat(a.head_count // a.kv_head_count, axis=1)
        scores = np.einsum("thd,jhd->htj", q, k) * float(a.attention_scale())
        visible = np.tri(len(q), dtype=bool)
        p = np.where(visible, np.exp(scores - scores.max(-1, keepdims=True)), 0)
        p /= p.sum(-1, keepdims=True)
        every.append(
            oracle.of_layer(rows, layer) | oracle.of_heads(p, scores) | cosines(rows, layer)
        )
    found = {name: np.stack([each[name] for each in every]) for name in every[0]}
    tokens = oracle.of_tokens(rows["unembed.hook_out"].copy(), [*inside.output])
    return found | {name: values[None] for name, values in tokens.items()}


def records(case: Case) -> dict[str, np.ndarray]:
    """Some features as the records say, word by word."""
    inside, layers = case.inside, range(case.model.architecture.layer_count)
    names = [name for name, _ in totals(case.model.architecture).shape.points]

    def word(point: str, name: str) -> np.ndarray:
        columns = [names.index(f"blocks.{layer}.{point}") for layer in layers]
        return field(inside.points[:, columns], name, POINT_FIELDS).astype(np.float64).T

    return {
        "stream_rms": word("hook_resid_post", "rms"),
        "stream_kurtosis": word("hook_resid_post", "kurtosis"),
        "mlp_participation": 1 / word("mlp.hook_post", "kurtosis"),
        "logprob": field(inside.drawn, "logprob", TOKEN_FIELDS).astype(np.float64)[None],
        "entropy": field(inside.drawn, "entropy", TOKEN_FIELDS).astype(np.float64)[None],
    }


def test_truth_is_what_numpy_makes_of_the_rows(case: Case) -> None:
    shape = totals(case.model.architecture).shape
    truth = Truth(shape, Columns(shape), case.model, case.inside)
    expected = truths(case)
    assert {feature.name for feature in FEATURES} == expected.keys()
    for feature in FEATURES:
        values, _ = w._values(feature, truth)
        wanted = expected[feature.name].astype(np.float64).T
        most = max(np.abs(wanted).max(), 1)
        np.testing.assert_allclose(values, wanted, 1e-11, 1e-12 * most, err_msg=feature.name)


def test_fitness_is_the_share_of_right_bits(case: Case) -> None:
    found, expected = case.worth(), truths(case)
    for name, got in records(case).items():
        wanted = expected[name]
        with np.errstate(divide="ignore"):
            bits = -np.log2(np.abs(got - wanted) / np.abs(wanted))
        right = np.clip(bits / 24, 0, 1).mean(0)
        middle = found[name].fitness
        assert middle is not None
        assert middle.mean == pytest.approx(right.mean(), abs=1e-5), name
        assert middle.n == len(right)
        half = oracle.T_975.get(len(right) - 1, 1.9990) * right.std(ddof=1) / len(right) ** 0.5
        assert middle.low == pytest.approx(middle.mean - half, rel=1e-3), name
    for name in w.COUNTED - {"massive", "certified", "sink_heads"}:
        assert found[name].fitness == w.exact.Spread(1.0, 1.0, 1.0, found[name].fitness.n), name  # type: ignore[union-attr]
    heads = {f.name: f.since for f in FEATURES}
    for name, one in found.items():
        assert one.fitness is not None
        count = (
            len(case.inside.drawn) if expected[name].shape[0] == 1 else len(case.inside.positions)
        )
        assert one.fitness.n == count - heads[name]
        assert one.fitness.mean > 0.7, name


def forged(inside: Inside, column: int, word: int, change: int) -> Inside:
    """One word of a record of position 5, another."""
    points = inside.points.copy()
    points[5, column, word] += change
    return dataclasses.replace(inside, points=points)


def test_a_forged_word_of_a_record_is_unfit(case: Case) -> None:
    names = [name for name, _ in totals(case.model.architecture).shape.points]
    layers, count = case.model.architecture.layer_count, len(case.inside.positions)
    before = case.worth()
    for point, word, change, unfit in (
        ("hook_resid_post", 4, 1 << 12, {"stream_kurtosis", "stream_participation"}),
        ("mlp.hook_post", 5, 1 << 12, {"mlp_entropy"}),
        ("mlp.hook_post", 30, 1, {"mlp_sparsity"}),
        ("attn.hook_q", 29, 1, {"saturated"}),
    ):
        wrong = forged(case.inside, names.index(f"blocks.1.{point}"), word, change)
        after = case.worth(wrong)
        fell = {n for n in before if after[n].fitness != before[n].fitness}
        assert fell == unfit
        for name in fell:
            lost = before[name].fitness.mean - after[name].fitness.mean  # type: ignore[union-attr]
            most = 1 / (layers * count)
            # 12 bits of 24 are wrong; a count is wrong whole
            assert (0.3 if word < 6 else 0.999) * most < lost <= most * 1.000001, name
        assert {n: (one.beauty, one.relevance) for n, one in after.items()} == {
            n: (one.beauty, one.relevance) for n, one in before.items()
        }


def test_a_forged_head_record_is_unfit(case: Case) -> None:
    heads = case.inside.heads.copy()
    heads[9, 1, 0, 3] = np.float32(0.75).view(np.uint32)
    after = case.worth(dataclasses.replace(case.inside, heads=heads))
    before = case.worth()
    fell = {n for n in before if after[n].fitness != before[n].fitness}
    assert "attn_sink" in fell
    assert fell <= {"attn_sink", "sink_heads"}


def test_relevance_is_that_of_all_tokens(case: Case) -> None:
    """Also of those that were not looked at; a feature of layers is their mean."""
    one = case.worth(case.inside.at(case.inside.positions[30:33]))
    expected = truths(case)
    logprob = expected["logprob"][0]
    late = len(case.inside.positions) - len(logprob)
    for name in ("stream_rms", "mlp_hoyer", "attn_score", "attn_distance", "entropy"):
        values = expected[name].mean(0)[-len(logprob) :]
        ranks = [np.argsort(np.argsort(x)) for x in (values, -logprob)]
        found = one[name].relevance
        assert found is not None
        assert found.correlation.n == len(logprob) == 40
        assert found.correlation.mean == pytest.approx(np.corrcoef(*ranks)[0, 1]), name
        assert found.relevance == abs(found.correlation.mean)
        assert 0 < found.p <= 1
    assert late == len(ASKED.prompt) - 1
    assert one["logprob"].relevance is not None
    assert (one["logprob"].relevance.relevance, one["logprob"].relevance.p) == (1.0, 0.001)


def test_there_is_no_score_of_too_little(tmp_path: Path) -> None:
    model = load(make(tmp_path))
    asked = Request(ASKED.prompt, 29)
    _, claim = looked(model, asked, [0])
    course = w.Course(model, asked)
    inside = look(model, claim, [0], tell=[course])
    for one in course.worth(model, inside):
        assert (one.relevance, one.beauty) == (None, None)
        of = next(f for f in FEATURES if f.name == one.name)
        assert (one.fitness is None) == (of.of == "token" or of.since > 0), one.name
        if one.fitness:
            assert one.fitness.n == 1


def test_worth_does_not_know_how_it_was_told(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = case.worth()
    assert case.worth(ends=(1, 2, 9, 30, 31)) == whole
    monkeypatch.setattr(w, "TOGETHER", 7)
    assert case.worth(ends=(40,)) == whole
    monkeypatch.setattr(w, "MOST_CELLS", 40)
    monkeypatch.setattr(w, "FEWEST_CELLS", 30)
    last = case.worth()
    assert last["stream_rms"].cells <= 40
    assert last["stream_rms"].beauty is not None
    assert case.worth(ends=(1, 2, 9, 30, 31, 50, 60)) == last


def test_same_worth_on_other_builds(tmp_path: Path) -> None:
    folder = make(tmp_path, head_size=40, hidden=72)
    found = []
    for on in (device(), device(threads=1), device(cpu="x86-64-v2")):
        one = case_of(load(folder, on))
        found.append(one.worth())
    assert found[0] == found[1] == found[2]


def naive_phrases(text: bytes) -> int:
    """Ziv and Lempel 1978: cut where what was read is no phrase yet."""
    known: set[bytes] = set()
    count, read = 0, b""
    for i in range(len(text)):
        read += text[i : i + 1]
        if read not in known:
            known.add(read)
            count, read = count + 1, b""
    return count + bool(read)


@given(st.binary(max_size=300) | st.text("ab", max_size=300).map(str.encode))
def test_phrases_are_those_of_lz78(text: bytes) -> None:
    assert w.phrases(text) == naive_phrases(text)


def test_phrases_of_the_textbook() -> None:
    assert w.phrases(b"") == 0
    assert w.phrases(b"aaaaaaaaaa") == 4  # a, aa, aaa, aaaa
    assert w.phrases(b"abababababa") == 6  # a, b, ab, aba, ba, ba again


def test_beauty_is_what_can_be_told_shortly() -> None:
    rng = np.random.default_rng(0)
    at = np.arange(600)
    wave = np.round(np.sin(at * 2 * np.pi / 12), 3) + np.arange(8)[:, None]
    assert w.beauty(wave, 1) > 0.4  # type: ignore[operator]
    steps = np.repeat(rng.normal(size=(8, 6)), 100, axis=1)
    assert w.beauty(steps, 1) > 0.6  # type: ignore[operator]
    noise = [w.beauty(rng.normal(size=(8, 600)), seed) for seed in range(20)]
    assert max(noise) < 0.02  # type: ignore[type-var]
    assert w.beauty(np.full((8, 600), 3.25), 1) == 0.0
    assert w.beauty(wave[:1, :600], 1) is None
    assert w.beauty(wave.reshape(1, -1)[:, :1024], 1) is not None
    shuffled = rng.permutation(wave.reshape(-1)).reshape(wave.shape)
    assert w.beauty(shuffled, 1) < 0.03  # type: ignore[operator]
    assert w.beauty(wave * 1e30 - 7e30, 1) == w.beauty(wave, 1)


def test_values_have_8_bits() -> None:
    values = np.array([[0.0, 1.0], [0.5, 0.25]])
    assert w.quantised(values).tolist() == [[0, 255], [128, 64]]
    assert w.quantised(np.full((1, 3), 7.0)).tolist() == [[0, 0, 0]]


def test_counted_features_exist() -> None:
    assert {feature.name for feature in FEATURES} >= w.COUNTED
