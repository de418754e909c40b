"""Run from the outside: what it prints, what it commits, what it leaves alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from checkpoints import make
from llmtrace.cli import main
from llmtrace.store.chain import Store

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[1]
PROMPT = "Once upon a time there was a little"


@pytest.fixture
def run(home: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs one command line in this process; gives its standard output."""

    def call(*arguments: str, status: int = 0) -> str:
        capsys.readouterr()
        assert main([*arguments]) == status, capsys.readouterr().err
        return capsys.readouterr().out

    return call


def read(run: Callable[..., str], *arguments: str) -> dict:
    return json.loads(run("run", PROMPT, "-d", "cpu", "--json", *arguments).split("\n")[0])


def store_of(home: Path) -> Store:
    path = home / ".local" / "share" / "llmtrace" / "store.git"
    return Store.open(path, home / ".config" / "llmtrace" / "keys")


def test_text_id_and_json_say_the_same(run: Callable[..., str], home: Path) -> None:
    made = read(run, "-n", "12")
    text = run("run", PROMPT, "-d", "cpu", "-n", "12")
    commit = run("run", PROMPT, "-d", "cpu", "-n", "12", "--format", "id").strip()
    assert text == made["output"] + "\n"
    assert len(made["output_tokens"]) == len(made["logprobs"]) == 12
    record = store_of(home).read(commit).record
    assert record.checksum == made["checksum"]
    assert record.parts["output.txt"].decode() == made["output"]
    assert record.parts["prompt.txt"].decode() == PROMPT
    assert record.sections["trace"]["output_tokens"] == made["output_tokens"]


def test_one_checksum_whatever_cannot_move_a_bit(run: Callable[..., str]) -> None:
    how = [[], ["--threads", "1"], ["--probe", "off"], ["--probe", "detail"], ["--no-commit"]]
    how += [["--keep", "ln_final.*"], ["--numerics", "accuracy"]]
    how += [["--draft", "ngram"], ["--draft", "sample"]]
    assert len({read(run, "-n", "9", *options)["checksum"] for options in how}) == 1
    what = [["-n", "10"], ["--seed", "1"], ["--temperature", "0.5"], ["--top-k", "1"]]
    assert len({read(run, "-n", "9", *options)["checksum"] for options in what}) == len(what)


def test_a_draft_saves_steps(run: Callable[..., str]) -> None:
    """Everything else of the line is the same; verify wants to know of no draft."""
    plain = read(run, "-n", "40")
    drafted = read(run, "-n", "40", "--draft", "sample")
    assert (plain["steps"], drafted["steps"]) == (40, 5)  # of 1, 5, 9, 16 and 9 tokens
    apart = {"commit", "steps", "timings"}
    assert {k: v for k, v in drafted.items() if k not in apart} == {
        k: v for k, v in plain.items() if k not in apart
    }
    assert run("verify", drafted["commit"]).startswith("verified ")


def test_token_ids_give_the_activations_of_their_text(run: Callable[..., str], home: Path) -> None:
    made = read(run, "-n", "5")
    ids = " ".join(map(str, made["prompt_tokens"]))
    line = json.loads(
        run("run", "--prompt-tokens", ids, "-d", "cpu", "-n", "5", "--json").split("\n")[0]
    )
    assert line["checksum"] == made["checksum"]
    assert line["prompt"] is None
    assert "prompt.txt" not in store_of(home).read(line["commit"]).record.parts


def test_a_batch_gives_each_prompt_what_it_gets_alone(
    run: Callable[..., str], tmp_path: Path
) -> None:
    batch = tmp_path / "batch.jsonl"
    asked = [{"prompt": PROMPT}, {"prompt": "The fox", "temperature": 0.9, "seed": 3}]
    batch.write_text("".join(json.dumps(line) + "\n" for line in asked))
    lines = run("run", "--batch", str(batch), "-d", "cpu", "-n", "8", "--json").split("\n")
    alone = [
        run("run", PROMPT, "-d", "cpu", "-n", "8", "--json"),
        run(
            "run",
            "The fox",
            "-d",
            "cpu",
            "-n",
            "8",
            "--temperature",
            "0.9",
            "--seed",
            "3",
            "--json",
        ),
    ]
    for line, single in zip(lines, alone, strict=False):
        assert json.loads(line)["checksum"] == json.loads(single.split("\n")[0])["checksum"]


def test_a_default_record_is_small_and_says_nothing_of_the_prompt_in_git_log(
    run: Callable[..., str], home: Path
) -> None:
    commit = run("run", PROMPT, "-d", "cpu", "--format", "id").strip()
    entry = store_of(home).read(commit)
    assert len(entry.record.sections["trace"]["output_tokens"]) == 64
    assert len(entry.json) + sum(map(len, entry.record.parts.values())) <= 64 << 10
    words = {word.lower() for word in PROMPT.split() if len(word) > 3}
    assert not words & set(entry.message.lower().split())
    assert entry.message.startswith(f"run: sample {entry.record.checksum[:8]}\n\nLlmtrace-")


def test_retry_of_the_same_run_is_another_record_with_the_same_checksum(
    run: Callable[..., str],
) -> None:
    first, second = read(run, "-n", "4"), read(run, "-n", "4")
    assert first["checksum"] == second["checksum"]
    assert first["commit"] != second["commit"]


HOOK = """
import sys
def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.bind", "socket.sendto"):
        raise SystemExit(f"network: {event} {arguments}")
sys.addaudithook(refuse)
from llmtrace.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("command", [["run", "hello", "-n", "3"], ["verify", "HEAD"], ["log"]])
def test_nothing_touches_the_network(
    run: Callable[..., str], home: Path, command: list[str]
) -> None:
    run("run", "hello", "-n", "3", "-d", "cpu")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LLMTRACE_DEVICE": "cpu"}
    arguments = [sys.executable, "-c", HOOK, *command]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, cwd=home)
    assert (done.returncode, "network:" in done.stderr) == (0, False), done.stderr


def test_a_context_that_is_full_ends_the_run(run: Callable[..., str], tmp_path: Path) -> None:
    model = make(tmp_path / "m", context=40)
    line = run("run", "x" * 30, "-m", str(model), "-d", "cpu", "--json").split("\n")[0]
    made = json.loads(line)
    assert len(made["prompt_tokens"]) + len(made["output_tokens"]) <= 41
    if made["finish_reason"] == "length":
        assert len(made["prompt_tokens"]) + len(made["output_tokens"]) == 41


def sizes(run: Callable[..., str], *arguments: str) -> dict[str, int]:
    """Bytes of each part of a record, and of record.json."""
    commit = run("run", "-d", "cpu", *arguments, "--format", "id").strip()
    record = json.loads(run("show", commit, "--json").split("\n")[0])["record"]
    return {part["name"]: part["size"] for part in record["parts"]} | {
        "record.json": len(json.dumps(record, separators=(",", ":")))
    }


def test_records_are_small(run: Callable[..., str], tmp_path: Path) -> None:
    """64 tokens of the sample model, and 1,000 of a model of 32 layers of 32 heads."""
    found = sizes(run, "Once upon a time there was", "-n", "55")
    assert set(found) >= {"digests.bin", "probes.bin", "features.json", "scores.json"}
    assert sum(found.values()) <= 64 * 1024
    shape = {"layers": 32, "heads": 32, "kv_heads": 8, "head_size": 4, "hidden": 128, "ff": 64}
    folder = make(tmp_path / "deep", context=1024, **shape)
    tokens = " ".join(str(i % 250) for i in range(872))
    found = sizes(run, "-m", str(folder), "--prompt-tokens", tokens, "-n", "128")
    assert sum(found.values()) <= 400 * 1024
