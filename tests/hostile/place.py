"""Where a case happens: a home with a store, strangers beside it, and a watch over all of it."""

import ast
import contextlib
import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pytest

from checkpoints import make
from commands import call
from hostile.stranger import Stranger
from llmtrace.store.chain import Store
from llmtrace.store.record import Record

ROOT = Path(__file__).parents[2]
WATCH = Path(__file__).with_name("watch.py")
PROGRAM = (sys.executable, "-m", "llmtrace")
LARGE = 64 << 20
MEMORY = 256 << 10  # KiB of all processes of a command line together
CONTROLS = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]"
)
EXECUTED = re.compile(r'execve\("((?:[^"\\]|\\.)*)", \[((?:"(?:[^"\\]|\\.)*"(?:, )?)*)')
GIT = re.compile(r"git(-(remote-)?[a-z]+(-pack)?)?")
SHELL = re.compile(r"git-(upload|receive)-pack '[^']*'")  # how git starts itself for a path


@dataclass(frozen=True)
class Line:
    """One command line and what must come of it.

    ``may`` are paths, from the folder of the case, that it may write; ``programs`` other
    programs that it may start.
    """

    words: tuple[str | Path, ...]
    status: int | tuple[int, ...]
    says: tuple[str, ...] = ()
    may: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    stdin: bytes = b""
    seconds: float = 30.0
    never: tuple[str, ...] = ()  # what it must not say
    home: Path | None = None  # of another machine


class Case(NamedTuple):
    """What a stranger prepared, as the command lines that meet it."""

    lines: list[Line]


class Seen(NamedTuple):
    """What became of a command line."""

    status: int | None
    out: bytes
    err: bytes
    seconds: float
    peak: int  # KiB
    programs: list[list[str]]
    left: list[list[str]]


Make = Callable[["Place"], Case]
CASES: dict[str, Make] = {}  # met as processes under a watch
READ: dict[str, Make] = {}  # that start no program and take no time: met in this process


def case(name: str, *, read: bool = False) -> Callable[[Make], Make]:
    """Registers a case under what it is about."""

    def register(make_case: Make) -> Make:
        assert name not in CASES.keys() | READ.keys(), name
        (READ if read else CASES)[name] = make_case
        return make_case

    return register


def line(
    *words: str | Path,
    status: int | tuple[int, ...],
    says: str | tuple[str, ...] = (),
    **more: object,
) -> Line:
    """A command line that must end so."""
    told = (says,) if isinstance(says, str) else says
    return Line(words, status, told, **more)  # type: ignore[arg-type]


class Template:
    """An honest home: a model with a name, a store with a node and a run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = make(folder / "models" / "tiny", hidden=32, heads=2, kv_heads=1, ff=32)
        (folder / "home").mkdir()
        for words in (
            ("model", "add", "tiny", str(self.model)),
            ("run", "-m", "tiny", "-n", "4", "--keep", "blocks.0.hook_resid_post", "hi there"),
        ):
            env = environment(folder / "home")
            done = subprocess.run([*PROGRAM, *words], env=env, capture_output=True, check=False)
            assert done.returncode == 0, done.stderr
        self.run = self._run()

    def _run(self) -> Record:
        home = self.folder / "home"
        entry = Store.open(home / STORE, home / ".config/llmtrace/keys").read("HEAD")
        return Record(entry.record.sections, dict(entry.record.parts))


STORE = ".local/share/llmtrace/store.git"


def environment(home: Path) -> dict[str, str]:
    return os.environ | {
        "HOME": str(home),
        "TMPDIR": str(home.parent / "tmp"),
        "PYTHONPATH": str(ROOT),
        "LLMTRACE_DEVICE": "cpu",
        "LLMTRACE_THREADS": "1",
    }


@dataclass
class Place:
    """The folder of one case."""

    root: Path
    template: Template
    closing: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __post_init__(self) -> None:
        shutil.copytree(self.template.folder / "home", self.home, symlinks=True)
        (self.root / "tmp").mkdir()
        self.payload.write_text(f"#!/bin/sh\necho run >> '{self.marker}'\nexit 0\n")
        self.payload.chmod(0o755)

    @property
    def home(self) -> Path:
        return self.root / "home"

    @property
    def store(self) -> Path:
        return self.home / STORE

    @property
    def payload(self) -> Path:
        """A program that must never run; it would leave the marker."""
        return self.root / "payload"

    @property
    def marker(self) -> Path:
        return self.root / "ran"

    def traps(self) -> Path:
        """A folder of programs that must never run, under the names that git and others have."""
        folder = self.root / "traps"
        folder.mkdir(exist_ok=True)
        for name in ("git", "ssh", "sh", "bash", "gpg", "ssh-keygen", "curl", "env", "less"):
            if not (folder / name).exists():
                (folder / name).symlink_to(self.payload)
        return folder

    def stranger(self, name: str = "stranger", seed: int = 1) -> Stranger:
        """A chain of somebody else in a repository of its own, so far an identity."""
        return Stranger(self.root / f"{name}.git", self.template.run, seed)

    def node(self) -> str:
        """One's own node."""
        return (self.store / "HEAD").read_text().strip().rpartition("/")[2]

    def call(self, one: Line) -> Seen:
        """Runs a command line under the watch."""
        notes = self.root / "watch"
        notes.mkdir(exist_ok=True)
        report, log = notes / "report", notes / "log"
        options = ["--trace", str(log)] if can_trace() else []
        watch = [sys.executable, "-I", WATCH, report, str(one.seconds)]
        done = subprocess.run(
            [*watch, *options, "--", *PROGRAM, *map(str, one.words)],
            input=one.stdin,
            capture_output=True,
            env=environment(one.home or self.home),
            cwd=one.home or self.home,
            check=True,
        )
        found = json.loads(report.read_text())
        programs = executed(log.read_text()) if options else found["programs"]
        shutil.rmtree(notes)
        return Seen(
            found["status"],
            done.stdout,
            done.stderr,
            found["seconds"],
            found["peak"],
            programs,
            found["left"],
        )

    def snapshot(self) -> dict[str, str]:
        """Every file here: what it is, its mode, a digest of its contents."""
        found = {}
        for path in sorted(self.root.rglob("*")):
            mode = path.lstat().st_mode
            if path.is_symlink():
                text = str(path.readlink())
            elif stat.S_ISREG(mode) and path.stat().st_size > LARGE:
                text = str(path.stat().st_size)  # a sparse file
            elif stat.S_ISREG(mode):
                text = hashlib.sha256(path.read_bytes()).hexdigest()
            else:
                text = ""
            found[str(path.relative_to(self.root))] = f"{mode:o} {text}"
        return found


def meet(place: Place, one: Line) -> Seen:
    """Runs a command line and asserts all that must hold of it, whatever the case."""
    before = place.snapshot()
    seen = place.call(one)
    shown = f"{one.words}\n{seen.out.decode(errors='replace')}\n{seen.err.decode(errors='replace')}"
    assert seen.status is not None, f"no end after {one.seconds} seconds: {shown}"
    _assert_said(place, one, seen.status, seen.out.decode() + seen.err.decode())
    foreign = [words for words in seen.programs if not ours(words, one)]
    assert not foreign, f"started {foreign}: {shown}"
    assert not seen.left, f"left running: {seen.left}"
    assert seen.peak <= MEMORY, f"{seen.peak >> 10} MiB: {shown}"
    _assert_unchanged(place, one, before)
    return seen


def read(place: Place, one: Line) -> None:
    """The same in this process, for what must start no program at all: all of them are traps."""
    before = place.snapshot()
    with pytest.MonkeyPatch.context() as patch:
        for name, text in environment(place.home).items():
            patch.setenv(name, text)
        patch.setenv("PATH", f"{place.traps()}{os.pathsep}{os.environ['PATH']}")
        said = call(*one.words, stdin=one.stdin.decode())
    _assert_said(place, one, said.status, said.out + said.err)
    shutil.rmtree(place.traps())
    _assert_unchanged(place, one, before)


def _assert_said(place: Place, one: Line, status: int, said: str) -> None:
    shown = f"{one.words}\n{said}"
    assert not place.marker.exists(), f"a payload ran: {place.marker.read_text()}\n{shown}"
    expected = (one.status,) if isinstance(one.status, int) else one.status
    assert status in expected, f"exit status {status}, not {one.status}: {shown}"
    found = CONTROLS.search(said)
    assert found is None, f"{found!r} in {said!r}"
    for word in ("bug:", "Traceback", *one.never):
        assert word not in said, shown
    for word in one.says:
        assert word in said, f"does not say '{word}': {shown}"


def _assert_unchanged(place: Place, one: Line, before: dict[str, str]) -> None:
    changed = {
        path
        for path in dict(before.items() ^ place.snapshot().items())
        if not path.startswith(one.may or ("\0",))
    }
    assert not changed, f"changed {sorted(changed)[:5]}: {one.words}"


def ours(words: list[str], one: Line) -> bool:
    """Whether it is this command line, or git at the work that it was asked for."""
    name = Path(words[0]).name
    if name == Path(sys.executable).name:
        return words[1:] == [*PROGRAM[1:], *map(str, one.words)]
    if name in one.programs:
        return True
    if name == "true":  # core.alternateRefsCommand, so that git does not open the store
        return True
    if name == "sh":
        return words[1] == "-c" and SHELL.fullmatch(words[2]) is not None
    return GIT.fullmatch(name) is not None and "ext" not in name


def executed(log: str) -> list[list[str]]:
    """The programs that a trace says were started, each as its arguments."""
    found = []
    for text in log.splitlines():
        match = EXECUTED.search(text)
        if match and not re.search(r"\) += -1 ", text):
            words = ast.literal_eval(f"[{match[2]}]")
            told = [word.encode("latin-1").decode(errors="replace") for word in words]
            found.append([match[1], *told[1:]])
    return found


def can_trace() -> bool:
    """Whether every program that is started can be seen; else only what a look every 20 ms sees."""
    if "answer" not in _TRACING:
        program = shutil.which("strace")
        words = [program or "", "-f", "--seccomp-bpf", "-qq", "-o", "/dev/null", "true"]
        _TRACING["answer"] = (
            bool(program) and not subprocess.run(words, capture_output=True, check=False).returncode
        )
    return _TRACING["answer"]


_TRACING: dict[str, bool] = {}


def lines_of(make_case: Make, place: Place) -> Iterator[Line]:
    """The command lines of a case, its servers running meanwhile."""
    with place.closing:
        yield from make_case(place).lines
