"""Records for the tests of commands: runs of small models in a home of their own, and forgeries."""

import contextlib
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from checkpoints import make
from llmtrace.cli import main
from llmtrace.store.chain import Store

NAMES = ("greedy", "again", "drawn", "kept", "bare", "other")  # of the runs, oldest first
POINT = "blocks.{}.hook_resid_post"


class Answer(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.removesuffix("\n").split("\n") if self.out else []  # text has others

    @property
    def objects(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]


def call(*arguments: str | Path, stdin: str = "") -> Answer:
    """One command line in this process, with streams of its own."""
    before, out, err = sys.stdin, io.StringIO(), io.StringIO()
    sys.stdin = io.TextIOWrapper(io.BytesIO(stdin.encode()))
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main([str(argument) for argument in arguments])
    finally:
        sys.stdin = before
    return Answer(status, out.getvalue(), err.getvalue())


def answer(*arguments: str | Path) -> dict[str, Any]:
    """The object of a command that prints one."""
    said = call(*arguments, "--json")
    assert len(said.objects) == 2, said.err
    only, end = said.objects
    assert end["type"] == "end"
    return only


@contextlib.contextmanager
def home(folder: Path) -> Iterator[Path]:
    """A home with two models, of which one has a name: what `place` is in tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
        patch.setenv("XDG_DATA_HOME", str(folder / "data"))
        patch.setenv("LLMTRACE_DEVICE", "cpu")
        patch.setenv("LLMTRACE_THREADS", "2")
        make(folder / "tiny-model")
        make(folder / "other", seed=4)
        assert call("model", "add", "tiny", folder / "tiny-model").status == 0
        yield folder


def make_runs(place: Path) -> dict[str, dict[str, Any]]:
    """Records some runs; gives what `run --json` said of each."""
    tiny = ("run", "-d", "cpu", "-n", "6", "-m", "tiny")
    keep = ("--keep", "blocks.*.hook_resid_post", "--keep", "unembed.hook_out")
    other = ("run", "-d", "cpu", "-n", "6", "-m", place / "other", "Once on")
    lines = {
        "greedy": (*tiny, "Once on"),
        "again": (*tiny, "--threads", "1", "--probe", "detail", "Once on"),
        "drawn": (*tiny, "--temperature", "1", "--top-k", "9", "--seed", "3", "Once on"),
        "kept": (*tiny, *keep, "Once on"),
        "bare": (*tiny, "--probe", "off", "--prompt-tokens", "84 104 101 32"),
        "other": other,
    }
    said = {name: answer(*lines[name]) for name in NAMES}
    assert all(len(run["output_tokens"]) == 6 for run in said.values()), "another seed may do"
    return said


def open_store(place: Path) -> Store:
    """The store of a home, opened for writing."""
    keys = place / "config" / "llmtrace" / "keys"
    return Store.open(place / "data" / "llmtrace" / "store.git", keys, create=True)


def tell(
    store: Store, like: str, parts: dict[str, bytes | None] | None = None, **sections: Any
) -> str:
    """Signs a record like another, but for some parts and sections: what a stranger may do."""
    record = store.read(like).record
    told = {**record.parts} | (parts or {})
    kept = {name: data for name, data in told.items() if data is not None}
    three = [{**record.sections[n], **sections.get(n, {})} for n in ("trace", "probes", "attested")]
    if "trace" in sections and not sections["trace"]:
        three[0] = {}
    return store.append_run(*three, kept, 1_700_000_000)


def forged(store: Store, like: str, position: int, column: int) -> str:
    """A record whose roots differ at one position and one point."""
    digests = bytearray(store.read(like).record.parts["digests.bin"])
    for row in (position, 13 + column):
        digests[16 * row] ^= 1
    return tell(store, like, {"digests.bin": bytes(digests)}, trace={"activations": "0" * 64})
