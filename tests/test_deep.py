"""introspect: scores, features and further passes, as the command prints them."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from checkpoints import reference_logits
from commands import answer, call
from llmtrace.cli.deep import DEEP
from llmtrace.device.cpu import POOL, SMALL
from llmtrace.engine.request import Request
from llmtrace.introspect.ablation import ablate
from llmtrace.introspect.features import FEATURES
from llmtrace.introspect.forward import Forward, likelihood, memory, propagate
from llmtrace.introspect.gradients import gradients, opinion
from llmtrace.introspect.relevance import Attributor, components
from llmtrace.model.tokenizer import Tokenizer
from llmtrace.probes.records import read_probes_bin
from llmtrace.store.chain import Store
from running import load
from scored import looked, prompt_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llmtrace.engine.trace import Model

ROOT = Path(__file__).parents[1]
INTROSPECT = ("introspect", "-d", "cpu")


@pytest.fixture(scope="module")
def long(place: Path) -> str:
    """A run of enough tokens for every score."""
    run = ("run", "-d", "cpu", "-m", "tiny", "-n", "110", "--temperature", "1", "--seed", "2")
    return str(answer(*run, "Once on")["commit"])


@pytest.fixture(scope="module")
def tiny(place: Path) -> Model:
    return load(place / "tiny-model")


def hexed(spread: dict[str, Any]) -> tuple[str, str, str, int]:
    h = spread["hex"]
    for name in ("mean", "low", "high"):
        assert float.fromhex(h[name]) == np.float32(spread[name])
    return h["mean"], h["low"], h["high"], spread["n"]


def test_features_are_those_of_the_record(long: str, store: Store) -> None:
    """Over all positions, however few were looked at."""
    found = answer(*INTROSPECT, "--positions", "2", long)["features"]
    told = json.loads(store.read(long).record.parts["features.json"])
    assert (found["positions"], found["output"]) == (told["positions"], told["output"])
    assert found["run"].keys() == told["run"].keys()
    for name, one in told["run"].items():
        assert hexed(found["run"][name]) == (one["mean"], one["low"], one["high"], one["n"])
    assert found["layers"].keys() == told["layers"].keys()
    for name, one in told["layers"].items():
        columns = zip(one["mean"], one["low"], one["high"], strict=True)
        assert [hexed(each) for each in found["layers"][name]] == [(*c, one["n"]) for c in columns]


def test_scores_are_those_of_the_record(long: str, store: Store) -> None:
    """The record looks at the least certain token and the last one: so do two positions."""
    parts = store.read(long).record.parts
    whole = answer(*INTROSPECT, "--positions", "2", long)
    stored = read_probes_bin(parts["probes.bin"]).positions.tolist()
    assert whole["run"]["looked_at"] == stored
    told = json.loads(parts["scores.json"])
    for name in ("fitness", "beauty", "relevance"):
        one = told["run"][name]
        got = hexed(whole["scores"]["run"][name])
        assert got == (one["mean"], one["low"], one["high"], one["n"])
    assert whole["scores"]["trusted"] == told["run"]["trusted"]


def test_scores_of_features_are_told(long: str, commits: dict[str, str]) -> None:
    whole = answer(*INTROSPECT, long)
    scores, count = whole["scores"], whole["features"]["output"]
    assert count >= 30
    assert [each["name"] for each in scores["features"]] == [feature.name for feature in FEATURES]
    by_name = {each["name"]: each for each in scores["features"]}
    assert by_name["logprob"]["relevance"]["value"] == 1.0
    assert by_name["logprob"]["beauty"] is None
    assert by_name["zeros"]["fitness"]["mean"] == 1.0
    assert {each["relevance"]["spearman"]["n"] for each in scores["features"]} == {count}
    points = [each for each in scores["points"] if each["score"] == "fitness"]
    assert all(each["trusted"] == (each["mean"] >= 0.9) for each in points)
    short = answer(*INTROSPECT, commits["greedy"])["scores"]
    assert {each["relevance"] for each in short["features"]} == {None}


def test_sections_are_printed_in_their_order(long: str) -> None:
    said = call(*INTROSPECT, long)
    heads = [line for line in said.lines if not line.startswith(" ") and line]
    assert heads[:-1] == ["run", "invariants", "scores", "features"]
    assert max(map(len, said.lines[: said.lines.index("invariants")])) <= 80
    scores = said.lines[said.lines.index("scores") : said.lines.index("features")]
    assert re.match(r"  fitness +0\.9\d+ \[0\.\d+, [01]\.?\d*\], n = 6\d$", scores[1])
    (row,) = (line for line in scores if line.startswith("  logprob "))
    assert re.fullmatch(r"  logprob +\d\.\d{3} +- +1\.000 +0\.001(  untrusted)?", row)
    features = said.lines[said.lines.index("features") :]
    assert any(re.fullmatch(r" +L0 +L1", line) for line in features)
    assert any(re.fullmatch(r"  stream_rms +\S+ +\S+", line) for line in features)
    for line in (x for x in said.lines if x.strip().startswith("blocks.") and "untrusted" in x):
        assert float(line.split()[1]) < 0.9, line


def test_many_layers_are_printed_six_at_a_time(place: Path) -> None:
    from checkpoints import make

    folder = make(place / "eight", layers=8, seed=8)
    run = answer("run", "-d", "cpu", "-m", folder, "-n", "2", "Once on")
    said = call(*INTROSPECT, "-m", folder, run["commit"])
    assert said.status == 0, said.err
    heads = [line.split() for line in said.lines if line.split()[:1] in (["L0"], ["L6"])]
    assert heads == [[f"L{n}" for n in range(6)], ["L6", "L7"]]


def test_deep_is_what_the_passes_give(long: str, tiny: Model, store: Store) -> None:
    whole = answer(*INTROSPECT, "--positions", "9", "--deep", long)
    run, record = whole["run"], store.read(long).record
    trace = record.sections["trace"]
    prompt, output = trace["prompt_tokens"], trace["output_tokens"]
    asked = Request(tuple(prompt), 110, forced=tuple(output))
    tokens = np.array([*prompt, *output][:-1])
    picks = np.array([p for p in run["looked_at"] if p >= len(prompt) - 1])
    a = tiny.architecture
    rates = a.inverse_frequencies(asked.run_limit)
    logits = reference_logits(tiny.checkpoint.path, tokens.tolist(), rates)[picks]
    found = whole["propagated"]
    assert found["fitness"]["n"] == found["certified"]["n"] == len(picks)
    assert found["same_top"]["mean"] == 1.0
    assert 9 < found["nines"] <= 16
    assert found["worst_kl"] >= found["kl"]["mean"] > 0
    assert set(found["points"]) > {"unembed.hook_out", "blocks.1.hook_resid_post"}
    ours = Forward(tiny, asked.run_limit)(tokens, picks)
    np.testing.assert_allclose(ours, logits, atol=1e-10 * np.abs(logits).max())
    # ablation, with the seed of the record, and R at the same positions
    from llmtrace.engine.evidence import claim
    from llmtrace.introspect.inside import look

    inside = look(tiny, claim(record.sections), run["looked_at"])
    share = Attributor(tiny)(inside).share
    seed = int(record.checksum[:16], 16)
    done = ablate(tiny, tokens, picks, share, run_limit=asked.run_limit, seed=seed)
    assert [each["name"] for each in whole["ablation"]["components"]] == [*done.names]
    for i, each in enumerate(whole["ablation"]["components"]):
        assert each["kl"] == pytest.approx(done.kl[i].mean())
        assert each["damage"] == pytest.approx(1 - math.exp(-done.kl[i].mean()))
        assert each["relevance"] == pytest.approx(done.share[i])
    assert whole["ablation"]["spearman"]["mean"] == pytest.approx(done.trust.mean)
    # gradients, at the least expected tokens
    told = whole["gradients"]
    logprob = np.array([float.fromhex(x) for x in answer("show", long)["logprobs"]])
    at = picks - (len(prompt) - 1)
    assert told["positions"] == sorted(picks[np.argsort(logprob[at])[:3]].tolist())
    chosen = np.array(told["positions"])
    drawn = np.array(output)[chosen - (len(prompt) - 1)]
    size = np.abs(gradients(tiny, tokens, chosen, drawn, asked.run_limit))
    expected = (size / size.sum(1, keepdims=True)).mean(0)
    np.testing.assert_allclose([c["share"] for c in told["components"]], expected, rtol=1e-9)
    assert [c["name"] for c in told["components"]] == components(a.layer_count)


def test_deep_is_printed(commits: dict[str, str]) -> None:
    said = call(*INTROSPECT, "--deep", commits["greedy"])
    assert said.status == 0, said.err
    heads = [line for line in said.lines if not line.startswith(" ") and line]
    assert heads[2:-1] == ["scores", "features", *DEEP]
    (trust,) = (line for line in said.lines if "Spearman of R and KL" in line)
    assert re.fullmatch(r"  Spearman of R and KL: \S+ \[\S+, \S+\], n = 5", trust)
    assert "  for reading only: not the same on every machine" in said.lines
    plain = answer(*INTROSPECT, commits["greedy"])
    assert {plain[name] for name in (*DEEP, "answer")} == {None}


WITHOUT = """
import importlib.abc, sys
class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition('.')[0] == 'torch':
            raise ImportError('no torch here')
sys.meta_path.insert(0, Finder())
"""


def test_deep_without_torch_says_how_to_get_it(
    place: Path, commits: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(WITHOUT)
    path = os.pathsep.join([str(tmp_path), str(ROOT)])

    def said(*options: str) -> str:
        command = [sys.executable, "-m", "llmtrace", *INTROSPECT, "--deep", *options]
        done = subprocess.run(
            [*command, commits["greedy"]],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    lines = said().splitlines()
    at = lines.index("gradients")
    wanted = "  none: no torch to make gradients: pip install 'llmtrace[reference]' gives it"
    assert lines[at + 1] == wanted
    assert lines[-1].startswith("sound: ")
    told = json.loads(said("--json").splitlines()[0])
    assert told["gradients"]["components"] == []
    assert told["gradients"]["why"].startswith("no torch")
    assert told["propagated"]["nines"] > 9


@pytest.mark.parametrize("name", ["greedy", "bare"])
def test_likelihood_of_an_answer(
    name: str, place: Path, commits: dict[str, str], tiny: Model, store: Store
) -> None:
    whole = answer(*INTROSPECT, "--positions", "last", "--answer", " a time", commits[name])
    found = whole["answer"]
    prompt = store.read(commits[name]).record.sections["trace"]["prompt_tokens"]
    tokenizer = Tokenizer.open(tiny.checkpoint)
    assert tokenizer.decode(found["tokens"]) == " a time"
    if name == "greedy":
        assert [*prompt, *found["tokens"]] == tokenizer.encode("Once on a time")
    a, count = tiny.architecture, len(found["tokens"])
    fed = [*prompt, *found["tokens"]]
    logits = reference_logits(tiny.checkpoint.path, fed, a.inverse_frequencies(len(fed)))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    right = [math.log(p[len(prompt) - 1 + i, token]) for i, token in enumerate(found["tokens"])]
    assert found["sum"] == pytest.approx(sum(right))
    assert found["logprob"]["mean"] == pytest.approx(np.mean(right))
    assert found["logprob"]["n"] == count
    assert whole["propagated"] is None
    said = call(*INTROSPECT, "--positions", "last", "--answer", " a time", commits[name])
    assert said.lines[said.lines.index("answer") + 1].endswith("a time")
    assert f"{sum(right):.6g}" in said.lines[said.lines.index("answer") + 3]


def test_likelihood_does_not_know_how_much_is_in_memory(
    tiny: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = list(prompt_of(40, 259, seed=3))
    whole = likelihood(tiny, [1, 2, 3], given)
    monkeypatch.setattr("llmtrace.introspect.forward.ANSWERED", 7)
    assert likelihood(tiny, [1, 2, 3], given) == whole


def test_answers_that_are_none(place: Path, commits: dict[str, str], tiny: Model) -> None:
    for text, said in (
        ("", "the answer is empty"),
        ("\udcff", "the answer is not UTF-8 text at character 0"),
        ("word " * 200, "prompt and answer have "),
    ):
        refused = call(*INTROSPECT, "--answer", text, commits["greedy"])
        assert (refused.status, refused.out) == (2, ""), refused.err
        assert refused.err.startswith(f"llmtrace: error: {said}")
    folder = shutil.copytree(place / "tiny-model", place / "mute")
    (folder / "tokenizer.json").unlink()
    run = answer("run", "-d", "cpu", "-m", folder, "-n", "2", "--prompt-tokens", "1 2 3")
    mute = (*INTROSPECT, "-m", str(folder), str(run["commit"]))
    refused = call(*mute, "--answer", "yes")
    assert (refused.status, "has no tokenizer.json" in refused.err) == (2, True)
    assert call(*mute, "--deep").status == 0


@pytest.fixture
def theirs(store: Store, long: str, tmp_path: Path) -> Iterator[str]:
    """The same run in the chain of another node."""
    other = Store.open(tmp_path / "s.git", tmp_path / "keys", create=True)
    record = store.read(long).record
    sections = [record.sections[name] for name in ("trace", "probes", "attested")]
    other.append_run(*sections, {**record.parts}, 1)
    ref = f"refs/heads/node/{other.node}"
    subprocess.run(["git", "-C", store.path, "fetch", "-q", other.path, f"{ref}:{ref}"], check=True)
    yield f"node/{other.node}"
    subprocess.run(["git", "-C", store.path, "update-ref", "-d", ref], check=True)


def test_passes_for_others_are_paid_for_before_they_start(theirs: str, long: str) -> None:
    def needed(*options: str) -> int:
        said = call(*INTROSPECT, theirs, *options, "--max-memory", "64K")
        assert (said.status, said.out) == (3, "")
        found = re.search(r"--max-memory (\d+)M replays it", said.err)
        assert found
        return int(found[1])

    plain, deep = needed("--positions", "4"), needed("--positions", "4", "--deep")
    assert deep > plain + 1
    limit = ("--positions", "4", "--max-memory", f"{plain}M")
    assert call(*INTROSPECT, theirs, *limit).status == 0
    refused = call(*INTROSPECT, theirs, *limit, "--deep")
    assert (refused.status, refused.out) == (3, "")
    assert call(*INTROSPECT, long, *limit, "--deep").status == 0
    assert needed("--positions", "4", "--answer", "word " * 20) > plain


def test_memory_is_at_least_what_is_taken(tiny: Model) -> None:
    """Of numpy's and the device's arrays, as the allocator counts them."""
    import tracemalloc

    asked = Request(prompt_of(60, 259), 40)
    inside, _ = looked(tiny, asked)
    told = memory(tiny.architecture, len(inside.tokens), len(inside.positions), len(inside.drawn))
    propagate(tiny, inside, asked.run_limit)
    share = Attributor(tiny)(inside).share
    picks = inside.positions[inside.first_pick :]
    while len(tiny.device._left) < POOL - SMALL:  # what small arrays share shall not end just then
        tiny.device.zeros((SMALL,), "|u1", stays=True)
    tracemalloc.start()
    propagate(tiny, inside, asked.run_limit)
    ablate(tiny, inside.tokens, picks, share, run_limit=asked.run_limit, seed=1)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert told / 20 < most < told


def test_every_pass_heeds_who_may_stop_it(tiny: Model) -> None:
    asked = Request(prompt_of(9, 259), 5)
    inside, _ = looked(tiny, asked)
    share, limit = Attributor(tiny)(inside).share, asked.run_limit
    picks = inside.positions[inside.first_pick :]

    class Over(Exception):
        pass

    def passes(heed: Any) -> Iterator[Any]:
        yield lambda: propagate(tiny, inside, limit, heed)
        yield lambda: likelihood(tiny, [1, 2], [3, 4], heed)
        yield lambda: opinion(tiny, inside, limit, heed)
        yield lambda: ablate(tiny, inside.tokens, picks, share, run_limit=limit, seed=1, heed=heed)

    counts: list[int] = []

    def counted() -> None:
        counts[-1] += 1

    for make in passes(counted):
        counts.append(0)
        make()
    layers = tiny.architecture.layer_count
    assert counts[0] == counts[1] == 5 * layers + 1
    assert counts[2] == 3
    assert counts[3] > 3 * counts[0]

    def over() -> None:
        raise Over

    for make in passes(over):
        with pytest.raises(Over):
            make()
