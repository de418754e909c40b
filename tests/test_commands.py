"""log, and the schemas of what every command prints with --json."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from commands import NAMES, call, forged, tell
from llmtrace.store.chain import Store
from servers import make_bare

SCHEMAS = Path(__file__).parents[1] / "llmtrace" / "cli" / "schemas"


def test_log_lists_runs_newest_first(
    store: Store, runs: dict[str, Any], commits: dict[str, str]
) -> None:
    listed = call("log", commits["other"])
    assert (listed.status, listed.err) == (0, "")
    words = [line.split() for line in listed.lines]
    assert [line[0] for line in words] == [commits[name] for name in reversed(NAMES)]
    assert [line[1] for line in words] == ["6", "5", "4", "3", "2", "1"]
    for name, line in zip(reversed(NAMES), words, strict=True):
        assert line[2] == "run"
        assert line[3] == ("other" if name == "other" else "tiny")
        assert line[4] == runs[name]["checksum"][:12]
        assert line[5].endswith("Z")
        assert len(line[5]) == len("2026-11-20T20:00:00Z")
        assert line[6:] == ["4+6" if name == "bare" else "8+6"]
    assert "Once on" not in listed.out


def test_log_takes_ranges_and_counts(store: Store, commits: dict[str, str]) -> None:
    def ids(*arguments: str) -> list[str]:
        return [line.split()[0] for line in call("log", *arguments).lines]

    assert ids(f"{commits['again']}..{commits['bare']}") == [
        commits[n] for n in ("bare", "kept", "drawn")
    ]
    assert ids("-n", "2", commits["other"]) == [commits["other"], commits["bare"]]
    assert ids(f"{commits['other']}..{commits['other']}") == []
    assert ids(f"node/{store.node}", "-n", "1") == ids("-n", "1")


def test_log_of_other_kinds(store: Store, commits: dict[str, str]) -> None:
    (identity,) = call("log", "--kind", "identity", commits["other"]).lines
    first, seq, kind, model, checksum, _, tokens = identity.split()
    assert (first, seq, kind) == (store.read(f"{commits['greedy']}~").id, "0", "identity")
    assert (model, checksum, tokens) == ("-", "-", "-")
    assert len(call("log", "--all", commits["other"]).lines) == len(NAMES) + 1
    assert len(call("log", "--kind", "run", "--kind", "identity", commits["other"]).lines) == 7
    assert call("log", "--kind", "verdict", commits["other"]).out == ""


def test_log_feeds_verify(commits: dict[str, str], store: Store) -> None:
    listed = call("log", "-n", "2", commits["kept"])
    verified = call("verify", "-d", "cpu", "-", stdin=listed.out)
    assert verified.lines == [f"verified {commits[name]}" for name in ("kept", "drawn")]


def test_verifying_nothing_is_not_success() -> None:
    answer = call("verify", "-d", "cpu", "-", stdin="")
    assert (answer.status, answer.out) == (4, "")
    assert "no commit on standard input" in answer.err


def test_log_goes_on_after_a_record_that_cannot_be_read(
    store: Store, commits: dict[str, str]
) -> None:
    bad = tell(store, commits["greedy"], trace={})
    listed = call("log", "-n", "2", bad)
    assert listed.status == 0
    assert listed.lines[0].startswith(f"{bad} ")
    assert listed.lines[0].split()[2] == "malformed"
    assert len(listed.lines) == 2
    told = call("log", "--json", "-n", "1", bad).objects[0]
    assert told["model"] is None
    assert "trace" not in told
    assert "malformed claim" in told["problem"]
    verdict = call("verify", "-d", "cpu", "-", stdin=listed.lines[0])
    assert (verdict.status, verdict.out.split()[:2]) == (1, ["invalid", bad])


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--kind", "nonsense"], 2, "no kind 'nonsense'"),
        (["--kind", "run", "--all"], 2, "--all and --kind cannot be used together"),
        (["-n", "0"], 2, "invalid value for '-n'"),
        (["nowhere"], 4, "no record 'nowhere'"),
        (["nowhere..HEAD"], 4, "no record 'nowhere'"),
        (["--store", "no/such/place"], 4, "no store at 'no/such/place'"),
    ],
)
def test_log_refuses(commits: dict[str, str], arguments: list[str], status: int, said: str) -> None:
    refused = call("log", *arguments)
    assert (refused.status, refused.out) == (status, "")
    assert refused.err.startswith(f"llmtrace: error: {said}")
    assert "Traceback" not in refused.err


def test_every_json_line_is_as_its_schema_says(
    place: Path,
    commits: dict[str, str],
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_bare(tmp_path / "hub.git")
    monkeypatch.setenv("GIT_DIR", str(store.path))  # as git sets it for a hook
    pushed = f"{'0' * 40} {commits['bare']} refs/heads/main"
    schemas = {path.stem: json.loads(path.read_text()) for path in SCHEMAS.glob("*.json")}
    for schema in schemas.values():
        jsonschema.Draft202012Validator.check_schema(schema)
    run = ("run", "-d", "cpu", "-m", "tiny", "-n", "2")
    bad = tell(store, commits["greedy"], trace={})
    first = f"{commits['greedy']}~"
    seen = set()
    for arguments in (
        [*run, "--no-commit", "The"],
        [*run, "--prompt-tokens", "1 2"],
        [
            "verify",
            "-d",
            "cpu",
            commits["bare"],
            bad,
            first,
            forged(store, commits["greedy"], 5, 9),
        ],
        ["verify", "-d", "cpu", "--node", "self", "--spot", "2", "--spot-seed", "0" * 32],
        ["bisect", commits["greedy"], commits["again"]],
        ["bisect", commits["kept"], forged(store, commits["kept"], 5, 9)],
        ["bisect", commits["kept"], f"{commits['greedy']}~"],
        ["introspect", "-d", "cpu", commits["drawn"]],
        ["introspect", "-d", "cpu", "--positions", "last", commits["bare"]],
        ["log", "--all"],
        ["show", commits["greedy"]],
        ["show", commits["bare"]],
        ["show", first],
        ["diff", commits["greedy"], commits["again"]],
        ["diff", commits["greedy"], commits["drawn"]],
        ["diff", commits["bare"], commits["other"]],
        ["export", commits["kept"], "-o", tmp_path / "file"],
        ["compare", commits["again"], tmp_path / "file"],
        ["compare", commits["drawn"], tmp_path / "file"],
        ["report", "-d", "cpu", commits["drawn"]],
        ["report", "--no-times", commits["bare"], forged(store, commits["kept"], 5, 9)],
        ["bench", "-d", "cpu", "-m", "tiny", "-n", "3", "--batch", "2"],
        ["bench", "-d", "cpu", "-m", "tiny", "--numerics", "memory", "--no-accuracy"],
        ["model", "list"],
        ["model", "info", "tiny"],
        ["model", "add", "second", place / "other"],
        ["revoke", commits["other"]],
        ["show", commits["other"]],
        ["log"],
        ["audit"],
        ["key", "show"],
        ["key", "list"],
        ["key", "export"],
        ["remote", "add", "hub", tmp_path / "hub.git"],
        ["push", "hub", "--publish"],
        ["push", "hub"],
        ["fetch", store.path],
        ["hook", "pre-receive"],
        ["init"],
        ["completion", "bash"],
        ["log", "nowhere"],
    ):
        for line in call(*arguments, "--json", stdin=f"{pushed}\n").objects:
            schema = schemas[line["type"]]
            jsonschema.Draft202012Validator(schema).validate(line)
            assert not line.keys() - schema["properties"].keys(), "a key that no schema has"
            seen.add(line["type"])
        assert line["type"] == "end"
    assert seen == schemas.keys()
