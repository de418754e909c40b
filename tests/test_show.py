"""show: pages and JSON of good records, and of those that strangers wrote."""

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from commands import answer, call, tell
from llmtrace.store.chain import Store


def test_show_prints_a_page(runs: dict[str, Any], commits: dict[str, str], store: Store) -> None:
    shown = call("show", commits["drawn"])
    assert (shown.status, shown.err) == (0, "")
    facts = dict(
        line.split(maxsplit=1) for line in shown.lines if line and line[0] != " " and " " in line
    )
    run = runs["drawn"]
    assert facts["commit"] == run["commit"]
    assert facts["checksum"] == run["checksum"]
    assert facts["node"] == store.node
    assert facts["seq"] == "3"
    assert facts["numerics"] == run["numerics"]
    assert facts["sampling"] == "temperature 1.0, top-k 9, top-p 1, seed 3"
    assert facts["tokens"] == "8 prompt + 6 output"
    assert f"model id     {run['model']['id']}" in shown.out
    assert "\nprompt\n    Once on\n" in shown.out
    assert "\n    stream_rms " in shown.out
    assert "    digests.bin" in shown.out
    assert "device.device" in shown.out
    greedy = call("show", commits["greedy"])
    assert "the most likely token" in greedy.out
    assert "token ids\n    84 104 101 32\n" in call("show", commits["bare"]).out


def test_show_prints_features_as_decimals(commits: dict[str, str]) -> None:
    features = answer("show", commits["greedy"])["features"]
    lines = call("show", commits["greedy"]).lines
    for name, told in features["layers"].items():
        (row,) = (line for line in lines if line.split()[:1] == [name])
        values = [*map(float.fromhex, told["mean"])]
        assert [float(word) for word in row.split()[1:]] == pytest.approx(values, rel=1e-5)
    (entropy,) = (line for line in lines if line.startswith("    entropy "))
    mean = float.fromhex(features["run"]["entropy"]["mean"])
    assert float(entropy.split()[1]) == pytest.approx(mean, rel=1e-5)


def test_show_tokens(runs: dict[str, Any], commits: dict[str, str]) -> None:
    def rows(*arguments: str) -> list[list[str]]:
        lines = call("show", "--tokens", *arguments).lines
        start = next(i for i, line in enumerate(lines) if line.split()[:1] == ["token"])
        return [line.split(maxsplit=4) for line in lines[start + 1 : start + 7]]

    run, table = runs["greedy"], rows(commits["greedy"])
    assert [int(row[0]) for row in table] == [*range(6)]
    assert [int(row[1]) for row in table] == [*range(7, 13)]
    assert [int(row[2]) for row in table] == run["output_tokens"]
    logprobs = [float.fromhex(text) for text in run["logprobs"]]
    assert [float(row[3]) for row in table] == pytest.approx(logprobs, rel=1e-5)
    assert "".join(json.loads(row[4]) for row in table) == run["output"]
    assert [row[3] for row in rows(commits["bare"])] == ["-"] * 6


def test_show_knows_a_model_by_its_id_alone(place: Path, commits: dict[str, str]) -> None:
    nameless = call("show", "--tokens", commits["other"])
    assert nameless.status == 0
    assert "name it with -m" in nameless.err
    assert "  text" not in nameless.out
    named = call("show", "--tokens", "-m", place / "other", commits["other"])
    assert (named.status, named.err) == (0, "")
    assert "  text" in named.out
    wrong = call("show", "--tokens", "-m", "tiny", commits["other"])
    assert (wrong.status, wrong.out) == (3, "")
    assert wrong.err.startswith("llmtrace: error: the record needs model ")
    assert call("show", "--tokens", "-m", "nobody", commits["other"]).status == 4


def test_show_json_has_everything(
    runs: dict[str, Any], commits: dict[str, str], store: Store
) -> None:
    for name in ("greedy", "again", "drawn", "kept"):
        shown, run = answer("show", commits[name]), runs[name]
        for key in ("commit", "checksum", "node", "prompt", "output", "logprobs"):
            assert shown[key] == run[key], key
        assert shown["record"] == store.read(commits[name]).record.sections
        mean = sum(map(float.fromhex, run["logprobs"])) / 6
        told = shown["features"]["run"]["logprob"]
        assert float.fromhex(told["mean"]) == pytest.approx(mean, rel=1e-6)
        assert told["n"] == 6
        assert shown["features"]["positions"] == 13
    bare = answer("show", commits["bare"])
    assert (bare["prompt"], bare["logprobs"], bare["features"]) == (None, None, None)


def test_show_identity(store: Store, commits: dict[str, str]) -> None:
    first = f"{commits['greedy']}~"
    shown = call("show", first)
    assert shown.status == 0
    assert "kind    identity" in shown.out
    assert "    public_key  " in shown.out
    told = answer("show", first)
    assert told["checksum"] is None
    assert told["node"] == store.node
    assert told["record"]["identity"]["addresses"] == []


def test_text_of_strangers_is_escaped(store: Store, commits: dict[str, str]) -> None:
    evil = "\x1b[31mred\nof two\u202e \x9b"
    bad = tell(
        store,
        commits["greedy"],
        {"prompt.txt": evil.encode(), "output.txt": b"\r\x07over"},
        attested={"model": evil, "device": {evil: evil}, "timings": [evil]},
    )
    for command in ("log", "show", "diff"):
        extra = (commits["greedy"],) if command == "diff" else ()
        said = call(command, bad, *extra)
        assert said.status in {0, 1}
        assert not {*"\x1b\x9b\x07\r\u202e"} & {*said.out}, command
    (line,) = call("log", "-n", "1", bad).lines
    assert len(line.split()) == 7
    assert answer("show", bad)["prompt"] == evil


NESTED = b"[" * 100_000
HUGE = np.array([6, 1, 2**31, 2**31], "<u4").tobytes()
PROBES = np.array([6, 0, 1, 32], "<u4").tobytes() + bytes(24)


@pytest.mark.parametrize(
    ("form", "name", "data"),
    [
        (1, "features.json", b"{"),
        (1, "features.json", b"[]"),
        (1, "features.json", b"\xff"),
        (1, "features.json", NESTED),
        (1, "features.json", b'{"v":1,"positions":13,"logprob":NaN,"points":{}}'),
        (1, "features.json", b'{"v":1,"positions":13,"logprob":1e999,"points":{}}'),
        (1, "features.json", b'{"v":1,"positions":13,"logprob":"0x1p99999","points":{}}'),
        (1, "features.json", b'{"v":1,"positions":13,"logprob":"1","points":{}}'),
        (1, "features.json", b'{"v":1,"positions":13,"logprob":7,"points":{}}'),
        (1, "features.json", b'{"v":1,"positions":13,"logprob":"0x0.0p+0","points":{"a":3}}'),
        (1, "features.json", b'{"v":1,"positions":-1,"logprob":"0x0.0p+0","points":{}}'),
        (1, "features.json", b'{"v":2,"positions":13,"logprob":"0x0.0p+0","points":{}}'),
        (1, "probes.bin", b""),
        (1, "probes.bin", b"12345"),
        (1, "probes.bin", HUGE),
        (1, "probes.bin", np.array([5, 0, 1, 32], "<u4").tobytes() + bytes(20)),
        (1, "prompt.txt", b"\xff"),
        (1, "output.txt", b"ab\xc3"),
        (2, "features.json", b"{"),
        (2, "features.json", NESTED),
        (2, "features.json", b"[]"),
        (2, "features.json", b'{"v":1,"positions":13,"output":6,"run":{},"layers":{}}'),
        (2, "features.json", b'{"v":2,"positions":1e9,"output":6,"run":{},"layers":{}}'),
        (2, "features.json", b'{"v":2,"positions":-1,"output":6,"run":{},"layers":{}}'),
        (2, "features.json", b'{"v":2,"positions":13,"output":6,"run":{"a":3},"layers":{}}'),
        (2, "features.json", b'{"v":2,"positions":13,"output":6,"run":{},"layers":{"a":[]}}'),
        (2, "probes.bin", b""),
        (2, "probes.bin", b"12345"),
        (2, "probes.bin", bytes(40)),
        (2, "probes.bin", b"LTP2" + b"\xff" * 28),
        (2, "probes.bin", b"LTP2" + bytes(28)),
        (2, "probes.bin", b"LTP2" + np.array([5, 0, 0, 0, 0, 0, 7], "<u4").tobytes() + bytes(80)),
    ],
)
def test_malformed_parts_are_trouble(
    store: Store, commits: dict[str, str], form: int, name: str, data: bytes
) -> None:
    features = b'{"v":1,"positions":13,"logprob":"0x0.0p+0","points":{}}'
    others = {"probes.bin": PROBES, "features.json": features} if form == 1 else {}
    bad = tell(store, commits["greedy"], others | {name: data}, probes={"format": form})
    shown = call("show", "--json", bad)
    assert shown.status == 4
    assert [line["type"] for line in shown.objects] == ["end"]
    assert shown.err.startswith(f"llmtrace: error: '{bad[:8]}': '{name}' is malformed: ")
    assert len(shown.err.splitlines()) == 1
    assert call("log", "-n", "1", bad).status == 0


def test_probes_without_positions_are_legal(store: Store, commits: dict[str, str]) -> None:
    features = b'{"v":1,"positions":13,"logprob":"0x0.0p+0","points":{}}'
    parts = {"probes.bin": PROBES, "features.json": features}
    empty = tell(store, commits["greedy"], parts, probes={"format": 1})
    assert answer("show", empty)["logprobs"] == ["0x0.0p+0"] * 6
    assert call("export", empty, "-o", "never").status == 4


def test_commits_that_are_no_records(store: Store, commits: dict[str, str]) -> None:
    git = ["git", "-C", str(store.path), "-c", "user.name=a", "-c", "user.email=b"]
    tree = subprocess.run([*git, "mktree"], input="", text=True, capture_output=True, check=True)
    words = ["commit-tree", tree.stdout.strip(), "-m", "none", "-p", commits["greedy"]]
    done = subprocess.run([*git, *words], text=True, capture_output=True, check=True)
    stray = done.stdout.strip()
    for arguments in (["show", stray], ["diff", stray, stray], ["export", stray, "-o", "never"]):
        refused = call(*arguments)
        assert (refused.status, refused.out) == (4, "")
        assert f"'{stray[:8]}' is no record: no file 'record.json'" in refused.err
        assert len(refused.err.splitlines()) == 1
    first, second = call("log", stray).lines
    assert first.split()[:3] == [stray, "-", "malformed"]
    assert second.startswith(commits["greedy"])


@pytest.mark.parametrize("command", [["show"], ["diff", "HEAD"], ["export", "-o", "never"]])
def test_revisions_that_name_nothing(commits: dict[str, str], command: list[str]) -> None:
    refused = call(*command, "nowhere")
    assert (refused.status, refused.out) == (4, "")
    assert refused.err.startswith("llmtrace: error: no record 'nowhere'\nllmtrace: hint: ")
    assert not Path("never").exists()
