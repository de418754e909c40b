"""Schemes: what a file asks for is what a record holds, and what a replay makes again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load

from checkpoints import make
from llmtrace.engine.request import Request, Sampling
from llmtrace.errors import Misuse
from llmtrace.introspect.observer import observing
from llmtrace.probes import records
from llmtrace.probes.scheme import BOUNDS, NAMED, Rule, Scheme, parse, read
from running import load as place
from running import run

ROOT = Path(__file__).parents[1]
FILE = """
[[sample]]
points = ["blocks.*.mlp.hook_post", "unembed.hook_out"]
layers = [-1]
positions = "output"
when = {entropy_above = 2.5, rank_below = 1}
values = 16
[[sample]]
positions = [0, -1, 900]
values = "all"
[[sample]]
points = ["hook_embed"]
positions = {every = 4}
values = 0
lens = true
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return place(make(tmp_path_factory.mktemp("m"), layers=3, heads=4, kv_heads=2))


REQUEST = Request(tuple(range(10, 21)), 9, Sampling(np.float32(1.0), seed=3))


def made(model: Any, scheme: Scheme, level: str = "stats", chunk: int = 256) -> dict[str, bytes]:
    plan = model.plan([REQUEST], chunk=chunk)
    from llmtrace.engine.trace import Done, trace

    watch = observing(model, level, scheme)
    (found,) = (
        event.trace
        for event in trace(model, plan, [REQUEST], chunk=chunk, observe=watch)
        if isinstance(event, Done)
    )
    parts: dict[str, bytes] = found.observer.parts()
    return parts


def test_a_scheme_stores_what_it_asks_for(model: Any) -> None:
    names = [p.name for p in model.plan([REQUEST]).points]
    (kept,) = run(model, [REQUEST], keep=names)
    parts = made(model, parse(FILE))
    stored, samples = (
        records.read_probes_bin(parts["probes.bin"]),
        load(parts["samples.safetensors"]),
    )
    drawn = stored.drawn
    entropy = records.field(drawn, "entropy", records.TOKEN_FIELDS)
    rank = records.field(drawn, "rank", records.TOKEN_FIELDS)
    first = np.flatnonzero((entropy > np.float32(2.5)) & (rank < 1)) + 10
    assert 0 < len(first) < 9
    logprobs = records.field(drawn, "logprob", records.TOKEN_FIELDS)
    chosen = {10 + int(logprobs.argmin()), 18}
    assert stored.positions.tolist() == sorted({*first.tolist(), 0, 4, 8, 12, 16, *chosen})
    # of the first rule: one layer and the logits, each sample from its sixteenth of the row
    post = "0/blocks.2.mlp.hook_post"
    ones = {name.rsplit(".", 1)[0] for name in samples if name.startswith("0/")}
    assert ones == {post}  # the logits are in no layer
    assert samples[f"{post}.positions"].tolist() == first.tolist()
    index = samples[f"{post}.sample_index"]
    assert all((96 * s // 16 <= index[:, s]).all() for s in range(16))
    assert all((index[:, s] < 96 * (s + 1) // 16).all() for s in range(16))
    rows = kept.kept["blocks.2.mlp.hook_post"][first]
    assert np.array_equal(samples[f"{post}.samples"], np.take_along_axis(rows, index, axis=1))
    # of the second: whole rows of every point, of the head where it has any
    for name in names:
        rows, at = kept.kept[name], [0, 18]
        if len(rows) == 9:
            rows, at = np.pad(rows, ((10, 0), (0, 0))), [18]
        assert samples[f"1/{name}.positions"].tolist() == at
        assert np.array_equal(samples[f"1/{name}.samples"], rows[at])
    # of the third: a lens alone, whose last row is what the model said
    lens = {name.split(".", 1)[1]: value for name, value in samples.items() if name[0] == "2"}
    assert set(lens) == {"positions", "top", "rank", "top_logprob", "logprob", "entropy", "kl"}
    assert lens["positions"].tolist() == [0, 4, 8, 12, 16]
    assert lens["top"].shape == (5, 4)
    assert lens["top"][3:, -1].tolist() == kept.kept["unembed.hook_out"][[2, 6]].argmax(1).tolist()
    assert np.allclose(lens["logprob"][3:, -1], logprobs[[2, 6]], atol=1e-6)


@pytest.mark.parametrize("level", ["stats", "detail"])
def test_chunks_do_not_move_a_sample(model: Any, level: str) -> None:
    whole = made(model, parse(FILE), level)
    assert all(made(model, parse(FILE), level, chunk) == whole for chunk in (1, 3))


def test_detail_is_a_scheme_of_its_own(model: Any) -> None:
    parts = made(model, Scheme(), "detail")
    stored, samples = (
        records.read_probes_bin(parts["probes.bin"]),
        load(parts["samples.safetensors"]),
    )
    assert stored.positions.tolist() == list(range(19))
    assert len(samples["0/blocks.1.attn.hook_q.samples"]) in {1, 2}
    assert samples["1/blocks.0.hook_resid_post.samples"].shape == (19, 64)
    assert samples["2/lens.positions"].tolist() == list(range(10, 19))
    assert "samples.safetensors" not in made(model, Scheme())


def test_what_is_beyond_the_room_is_left_out(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    scheme = Scheme((Rule(("hook_embed",), values=None), Rule(("hook_embed",), values=None)))
    monkeypatch.setattr("llmtrace.probes.recorder.MOST_BYTES", 30 * 265)  # of 261 bytes a position
    parts = made(model, scheme)
    samples = load(parts["samples.safetensors"])
    assert samples["0/hook_embed.positions"].tolist() != list(range(19))
    stored = records.read_probes_bin(parts["probes.bin"]).positions.tolist()
    assert samples["0/hook_embed.positions"].tolist() == stored  # records take more room
    assert stored[-1] == 18


def test_massive_activations_are_seen(model: Any) -> None:
    from llmtrace.probes.scheme import massive

    points = np.zeros((3, 2, 32), np.uint32)
    points[:, :, 2] = np.float32(64.0).view(np.uint32)  # l1, so a mean of 1
    points[1, 1, 3] = np.float32(1001.0).view(np.uint32)
    points[2, 0, 3] = np.float32(999.0).view(np.uint32)
    assert massive(points, np.array([64.0, 64.0])).tolist() == [False, True, False]
    assert "samples.safetensors" not in made(model, Scheme((Rule(massive=True),)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x", "not TOML"),
        ("a = 1", r"no table \[\[sample\]\]"),
        ("sample = 3", r"no table \[\[sample\]\]"),
        ("[[sample]]\npoint = 3", "unknown key 'point' in rule 1"),
        ('[[sample]]\n[[sample]]\npoints = "a"', "'points' of rule 2 is no list"),
        ("[[sample]]\npoints = []", "'points' of rule 1 is no list"),
        ("[[sample]]\nlayers = [true]", "'layers' of rule 1 is no list"),
        ('[[sample]]\nvalues = "some"', "'values' of rule 1 is neither"),
        ("[[sample]]\nvalues = -1", "'values' of rule 1 is neither"),
        ('[[sample]]\npositions = "first"', "'positions' of rule 1 means nothing"),
        ("[[sample]]\npositions = {every = 0}", "'positions' of rule 1 means nothing"),
        ("[[sample]]\nwhen = {entropy = 3}", "unknown condition 'entropy' of rule 1"),
        ("[[sample]]\nwhen = {massive = false}", "unknown condition 'massive' of rule 1"),
        ('[[sample]]\nwhen = {rank_above = "3"}', "'rank_above' of rule 1 is no number"),
        ("[[sample]]\nwhen = {rank_above = inf}", "'rank_above' of rule 1 is no number"),
        ("[[sample]]\nlens = 1", "'lens' of rule 1 is neither true nor false"),
        ("[[sample]]\n" * 65, "65 rules, at most 64"),
    ],
)
def test_a_file_that_means_nothing_is_refused(text: str, message: str) -> None:
    with pytest.raises(Misuse, match=message):
        parse(text)


bounds = st.dictionaries(
    st.sampled_from(BOUNDS), st.floats(width=32, max_value=2.0**100, min_value=-(2.0**100))
)
rules = st.builds(
    Rule,
    st.lists(st.text(max_size=9), min_size=1, max_size=3).map(tuple),
    st.none() | st.lists(st.integers(-9, 9), max_size=3).map(tuple),
    st.sampled_from(NAMED) | st.integers(1, 99) | st.lists(st.integers(-9, 99)).map(tuple),
    bounds.map(lambda found: tuple(sorted(found.items()))),
    st.booleans(),
    st.none() | st.integers(0, 1 << 20),
    st.booleans(),
)


@given(st.lists(rules, max_size=4).map(lambda found: Scheme(tuple(found))))
def test_a_scheme_is_read_as_it_was_written(scheme: Scheme) -> None:
    assert read(json.loads(json.dumps(scheme.json()))) == scheme


@given(rules, st.integers(1, 50), st.integers(0, 49))
def test_places_are_positions_of_the_run(rule: Rule, total: int, first: int) -> None:
    first = min(first, total - 1)
    found = rule.places(total, first, [first, total - 1])
    assert found == sorted(set(found))
    assert all(0 <= place < total for place in found)
    if rule.positions == "output":
        assert found == list(range(first, total))


@pytest.mark.parametrize(
    "change",
    [
        lambda rule: rule.pop("lens"),
        lambda rule: rule.update(other=1),
        lambda rule: rule.update(values=None),
        lambda rule: rule.update(when={"entropy_above": 3.0}),
        lambda rule: rule.update(when={"entropy_above": "3.0"}),
        lambda rule: rule.update(when=[]),
        lambda rule: rule.update(positions={"every": True}),
    ],
)
def test_a_scheme_in_another_form_is_refused(change: Any) -> None:
    document = Scheme((Rule(),)).json()
    change(document["rules"][0])
    with pytest.raises(ValueError, match=r"rule|scheme|bound"):
        read(document)


def test_the_sample_is_a_scheme() -> None:
    assert len(parse((ROOT / "samples" / "scheme.toml").read_text()).rules) == 2
