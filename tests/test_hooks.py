"""The inside of real runs against transformers hooks in float64 on the same weights."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import checkpoints
import feature_oracle as oracle
import seen as made
from hooks import Hooked
from llmtrace.engine.evidence import Claim
from llmtrace.engine.inside import Inside
from llmtrace.engine.request import Request, Sampling
from llmtrace.engine.sequence import Trace
from llmtrace.engine.trace import Done, Model, trace
from llmtrace.introspect import features as f
from llmtrace.introspect.inside import look
from llmtrace.probes.records import HEAD_FIELDS, TOKEN_FIELDS, Seen, field
from llmtrace.probes.totals import Totals
from running import load

TOLERANCE = 5e-5  # of the largest
PROMPT, OUTPUT = 27, 14
MODELS: dict[str, dict[str, Any]] = {
    "grouped": {"seed": 11, "layers": 3},
    "tied, one group": {"seed": 12, "heads": 4, "kv_heads": 1, "tied": True},
    "odd sizes, biases": {
        **{"seed": 13, "hidden": 72, "heads": 3, "kv_heads": 3, "head_size": 40, "ff": 101},
        **{"attention_bias": True, "mlp_bias": True, "vocab": 301},
    },
    "scaled rope, float32": {
        **{"seed": 14, "dtype": "float32", "layers": 4},
        "rope": {
            **{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0},
            **{"high_freq_factor": 4.0, "original_max_position_embeddings": 64},
        },
    },
}


class Run(NamedTuple):
    inside: Inside
    seen: list[Seen]
    totals: Totals
    hooked: Hooked
    output: tuple[int, ...]
    model: Model
    asked: Request


class Watching:
    """An observer that keeps what it is told."""

    def __init__(self, totals: Totals) -> None:
        self.totals, self.seen = totals, list[Seen]()

    def saw(self, seen: Seen) -> None:
        self.totals.add(seen)
        names = Seen.__dataclass_fields__
        self.seen.append(Seen(*(getattr(seen, name).copy() for name in names)))

    def wanted(self) -> list[int]:
        return []

    def looked(self, inside: Inside) -> None:
        raise AssertionError(inside)

    def parts(self) -> dict[str, bytes]:
        return {}


def watched(model: Model, asked: Request, watching: Watching, chunk: int = 256) -> Trace:
    plan = model.plan([asked], chunk=chunk)
    told = trace(model, plan, [asked], chunk=chunk, observe=lambda _: watching)
    return next(event.trace for event in told if isinstance(event, Done))


@pytest.fixture(scope="module", params=MODELS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = checkpoints.make(tmp_path_factory.mktemp("model"), **MODELS[request.param])
    model = load(folder)
    draw = np.random.default_rng(MODELS[request.param]["seed"])
    prompt = tuple(int(t) for t in draw.integers(0, 250, PROMPT))
    asked = Request(prompt, OUTPUT, sampling=Sampling(np.float32(0.9), seed=5))
    watching = Watching(f.totals(model.architecture))
    done = watched(model, asked, watching)
    forced = Request(prompt, OUTPUT, sampling=asked.sampling, forced=done.output)
    claim = Claim("test", "accuracy.1", forced, done.output, done.finish_reason, "detail", ())
    tokens = [*prompt, *done.output][:-1]
    hooked = Hooked(Path(folder), model.architecture, tokens, asked.run_limit)
    return Run(
        look(model, claim), watching.seen, watching.totals, hooked, done.output, model, asked
    )


def test_every_name_is_there_with_its_values(run: Run) -> None:
    assert run.inside.rows.keys() == run.hooked.rows.keys()
    for name, expected in run.hooked.rows.items():
        got = run.inside.rows[name].astype(np.float64)
        expected = expected[-len(got) :]
        assert got.shape == expected.shape, name
        off = np.abs(got - expected).max(-1) / np.abs(expected).max(-1)
        assert off.max() < TOLERANCE, name


def test_records_are_those_of_the_hooks(run: Run) -> None:
    """Moments against transformers; counts and indices, which jump, against our own rows."""
    points = np.concatenate([seen.points for seen in run.seen])
    picked = np.concatenate([seen.picked for seen in run.seen])
    shape = run.totals.shape
    for names, records in ((shape.points, points), (shape.picked, picked)):
        for column, (name, _) in enumerate(names):
            rows, theirs = run.inside.rows[name], run.hooked.rows[name][-len(records) :]
            own = np.stack([made.record(row) for row in rows])
            expected = np.stack([made.record(row) for row in theirs])
            for word in ("rms", "mean", "l1", "absmax", "kurtosis", "entropy"):
                got, want = (field(r, word).astype("f8") for r in (records[:, column], expected))
                scale = np.abs(theirs).max() if word == "mean" else np.abs(want).max()
                scale = max(scale, 0.1) if word == "entropy" else scale  # of one value it is 0
                assert np.abs(got - want).max() < TOLERANCE * scale, (name, word)
            for word in ("argmax", "top_index", "top_value", "zeros", "saturated", "small"):
                got, want = field(records[:, column], word), field(own, word)
                np.testing.assert_array_equal(got, want, f"{name} {word}")


def test_head_records_are_those_of_the_hooks(run: Run) -> None:
    heads = np.concatenate([seen.heads for seen in run.seen])
    np.testing.assert_array_equal(heads, run.inside.heads)
    for layer, (patterns, scores) in enumerate(
        zip(run.hooked.patterns, run.hooked.scores, strict=True)
    ):
        for head, t in np.ndindex(len(patterns), len(heads)):
            want = made.head_record(patterns[head, t, : t + 1], scores[head, t, : t + 1])
            for word in HEAD_FIELDS:
                a, b = (field(r, word, HEAD_FIELDS) for r in (heads[t, layer, head], want))
                if word == "argmax":
                    assert a == b
                else:
                    assert abs(float(a) - float(b)) < TOLERANCE * max(1.0, abs(float(b))), word


def test_token_records_are_those_of_the_hooks(run: Run) -> None:
    drawn = np.concatenate([seen.drawn for seen in run.seen])
    logits = run.hooked.rows["unembed.hook_out"][-len(drawn) :]
    expected = oracle.of_tokens(logits, list(run.output))
    scale = np.abs(logits).max()
    for word in ("logprob", "entropy", "margin"):
        got = field(drawn, word, TOKEN_FIELDS)
        assert np.abs(got - expected[word]).max() < TOLERANCE * scale, word
    ranks = [int((row > row[t]).sum()) for row, t in zip(logits, run.output, strict=True)]
    assert field(drawn, "rank", TOKEN_FIELDS).tolist() == ranks


def test_features_are_those_of_the_hooks(run: Run) -> None:
    read, rows = f.read(f.features(run.totals)), run.hooked.rows
    layers = []
    for layer, (patterns, scores) in enumerate(
        zip(run.hooked.patterns, run.hooked.scores, strict=True)
    ):
        layers.append(oracle.of_layer(rows, layer) | oracle.of_heads(patterns, scores))
    assert read.layers.keys() == layers[0].keys()
    for name in layers[0]:
        largest = max(np.abs(layer[name]).max() for layer in layers)
        for layer, values in enumerate(layers):
            agrees(f"{name} {layer}", read.layers[name][layer], values[name], largest)
    logits = rows["unembed.hook_out"][-len(run.output) :]
    for name, values in oracle.of_tokens(logits, list(run.output)).items():
        agrees(name, read.run[name], values, np.abs(values).max())


def agrees(name: str, got: Any, values: np.ndarray, largest: float) -> None:
    middle, half = oracle.summary(values)
    assert got.n == len(values), name
    assert abs(got.mean - middle) <= TOLERANCE * largest, name
    assert abs((got.high - got.low) / 2 - half) <= 2 * TOLERANCE * largest, name


@pytest.mark.parametrize("chunk", [1, 7])
def test_chunks_of_the_prompt_move_no_bit(run: Run, chunk: int) -> None:
    watching = Watching(f.totals(run.model.architecture))
    watched(run.model, run.asked, watching, chunk)
    assert f.features(watching.totals) == f.features(run.totals)
    assert watching.totals.points().tobytes() == run.totals.points().tobytes()
    assert watching.totals.heads().tobytes() == run.totals.heads().tobytes()
