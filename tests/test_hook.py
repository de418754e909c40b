"""hook pre-receive: a server that keeps sound chains and nothing else, pushed to by plain git."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import pygit2
import pytest

from commands import call
from llmtrace.store import forks
from llmtrace.store.chain import Store
from servers import git, make_bare, refs, serve
from test_fetch import BAD, OTHER, Home, Stranger, gap, snapshot, twins
from test_store import append

ROOT = Path(__file__).parents[1]
NONE = "0" * 40

__all__ = ["twins"]


def guarded(path: Path, *options: str) -> Path:
    """A bare repository with the hook, as the page says to install it."""
    make_bare(path)
    hook = path / "hooks/pre-receive"
    hook.parent.mkdir(exist_ok=True)
    line = " ".join([sys.executable, "-m", "llmtrace", "hook", "pre-receive", *options])
    hook.write_text(f"#!/bin/sh\nPYTHONPATH={ROOT} exec {line}\n")
    hook.chmod(0o755)
    return path


def push(store: Path, url: str | Path, *specs: str) -> tuple[bool, str]:
    """Whether plain git may push these, and what the server says."""
    done = subprocess.run(
        ["git", "--git-dir", store, "push", "--porcelain", str(url), *specs],
        capture_output=True,
        text=True,
        check=False,
    )
    said = [line[len("remote: ") :] for line in done.stderr.splitlines() if "remote: " in line]
    return done.returncode == 0, "\n".join(line.rstrip() for line in said)


@pytest.fixture
def server(tmp_path: Path) -> Path:
    (tmp_path / "served").mkdir()
    return guarded(tmp_path / "served/store.git")


@pytest.fixture
def author(tmp_path: Path) -> Home:
    made = Home(tmp_path / "author")
    append(made.open(), 1)
    return made


@pytest.fixture
def stranger(tmp_path: Path) -> Stranger:
    return Stranger(tmp_path / "stranger.git")


@pytest.mark.parametrize("kind", ["path", "git", "http"])
def test_chains_that_go_on_are_taken(kind: str, author: Home, server: Path) -> None:
    store = author.open()
    branch = f"refs/heads/node/{store.node}"
    with serve(kind, server.parent) as served:
        assert push(author.path, served.url(), branch) == (True, "")
        newest = [append(store, number) for number in (2, 3)][-1]
        assert push(author.path, served.url(), branch) == (True, "")
        assert refs(server) == {branch: newest}
        before = snapshot(server)
        gone, said = push(author.path, served.url(), f":{branch}")
        assert (gone, "refused " + branch + ": deletes it: chains only grow" in said) == (
            *(False, True),
        )
        assert snapshot(server) == before


@pytest.mark.parametrize(
    ("case", "known"), [*((case, True) for case in BAD), ("bad_signature", False), ("blob", False)]
)
def test_what_is_not_sound_is_refused_and_nothing_is_kept(
    case: str, known: bool, stranger: Stranger, server: Path
) -> None:
    make, part, why = BAD[case]
    branch = f"refs/heads/node/{stranger.node}"
    if known:
        assert push(stranger.path, server, f"{stranger.sound}:{branch}") == (True, "")
    before = snapshot(server)
    bad = make(stranger.forger)
    taken, said = push(stranger.path, server, f"+{bad}:{branch}")
    assert not taken
    assert snapshot(server) == before
    if part == "transfer":  # plain git takes the objects, or the pusher's git does not send them
        assert said == "" or said.startswith("llmtrace: error: refused") or "fatal" in said
    elif not (known and case == "headless") and case != "blob":
        assert f"llmtrace: error: refused {branch}: {bad} {part}: " in said
        assert why in said


def test_one_bad_chain_refuses_the_whole_push(
    author: Home, stranger: Stranger, server: Path
) -> None:
    stranger.offer(gap(stranger.forger))
    git("--git-dir", author.path, "fetch", "-q", stranger.path, "refs/heads/*:refs/heads/*")
    before = snapshot(server)
    taken, said = push(author.path, server, "refs/heads/*:refs/heads/*")
    assert (taken, said.count("refused")) == (False, 1)
    assert f"node/{stranger.node}: " in said
    assert snapshot(server) == before
    assert push(author.path, server, f"refs/heads/node/{author.open().node}")[0]


def test_other_refs_and_names_are_refused(author: Home, server: Path) -> None:
    node = author.open().node
    tip = f"refs/heads/node/{node}"
    for name in ("refs/heads/main", "refs/tags/v1", "refs/heads/node/x", "refs/notes/commits"):
        taken, said = push(author.path, server, f"{tip}:{name}")
        assert (taken, f"refused {name}: neither a chain" in said) == (False, True)
    taken, said = push(author.path, server, f"{tip}:refs/heads/node/{OTHER}")
    assert not taken
    assert f"chain: not the chain of '{OTHER}'" in said
    assert refs(server) == {}


def test_llmtrace_pushes_what_the_hook_takes(author: Home, server: Path, tmp_path: Path) -> None:
    store = author.open()
    assert author.call("remote", "add", "hub", server).status == 0
    pushed = author.call("push", "hub", "--publish")
    assert pushed.status == 0, pushed.err
    assert refs(server) == {f"refs/heads/node/{store.node}": store.read("HEAD").id}
    only = guarded(tmp_path / "only.git", "--only", OTHER)
    author.call("remote", "add", "only", only)
    refused = author.call("push", "only", "--publish")
    assert refused.status == 4
    assert "not a node that may write here" in refused.err + refused.out
    assert refs(only) == {}


def test_rewrites_are_refused(twins: tuple[Home, Home], server: Path) -> None:
    one, two = twins
    branch = f"refs/heads/node/{one.open().node}"
    assert push(one.path, server, branch)[0]
    before = snapshot(server)
    taken, said = push(two.path, server, f"+{branch}")
    assert (taken, "rewrites the chain: another record 2 is here" in said) == (False, True)
    taken, said = push(one.path, server, f"+{branch}~1:{branch}")
    assert (taken, "rewrites the chain: it has fewer records than are here" in said) == (
        *(False, True),
    )
    assert snapshot(server) == before


def test_proofs_that_hold_are_taken_once(twins: tuple[Home, Home], server: Path) -> None:
    one, two = twins
    store = one.open()
    git("--git-dir", one.path, "fetch", "-q", two.path, f"refs/heads/node/{store.node}:refs/x/y")
    early = forks.prove(store, store.read("HEAD").id, store.read("refs/x/y~1").id)
    forks.keep(store, early)
    ref = f"refs/llmtrace/fork/{store.node}"
    wrong = str(pygit2.Repository(str(one.path)).create_blob(early.data + b" "))
    for name, why in (
        (f"{wrong}:{ref}", "not canonical JSON"),
        (f"{ref}:refs/llmtrace/fork/{OTHER}", f"a proof against node-{store.node[:8]}"),
        (f"HEAD:{ref}", "is no blob"),
    ):
        taken, said = push(one.path, server, name)
        assert (taken, why in said) == (False, True), said
    assert push(one.path, server, ref) == (True, "")
    assert dict(forks.listed(Store.open(server, server))) == {store.node: early}
    for spec in (f"+{wrong}:{ref}", f":{ref}"):
        taken, said = push(one.path, server, spec)
        assert not taken
        assert "here already" in said or "deletes it" in said


def test_only_some_nodes_and_so_many_records(
    author: Home, tmp_path: Path, stranger: Stranger
) -> None:
    node = author.open().node
    server = guarded(tmp_path / "only.git", "--only", node, "--max-records", "2")
    taken, said = push(stranger.path, server, f"{stranger.sound}:refs/heads/node/{stranger.node}")
    assert (taken, "not a node that may write here" in said) == (False, True)
    assert push(author.path, server, f"refs/heads/node/{node}") == (True, "")
    for number in (2, 3, 4):
        append(author.open(), number)
    taken, said = push(author.path, server, f"refs/heads/node/{node}")
    assert (taken, "more than 2 records in one push" in said) == (False, True)
    assert push(author.path, server, f"HEAD~1:refs/heads/node/{node}") == (True, "")


def test_pushed_objects_are_read_where_they_wait(
    author: Home, server: Path, tmp_path: Path
) -> None:
    """And by no other way: what the hook refused once is not found later."""
    store = author.open()
    branch = f"refs/heads/node/{store.node}"
    (server / "hooks/pre-receive").rename(server / "hooks/kept")
    (server / "hooks/pre-receive").write_text(
        f"#!/bin/sh\nls $GIT_OBJECT_DIRECTORY > {tmp_path}/seen\nexit 1\n"
    )
    (server / "hooks/pre-receive").chmod(0o755)
    assert not push(author.path, server, branch)[0]
    assert (tmp_path / "seen").read_text() != ""
    tip = store.read("HEAD").id
    line = f"{NONE} {tip} {branch}\n"
    said = call_hook(server, line)
    assert (said.returncode, "commit: is no commit" in said.stderr) == (4, True)


def call_hook(
    server: Path, lines: str, *options: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "llmtrace", "hook", "pre-receive", *options],
        input=lines,
        env={**os.environ, "PYTHONPATH": str(ROOT), "GIT_DIR": ".", **environment},
        cwd=server,
        capture_output=True,
        text=True,
        check=False,
    )


def test_what_git_would_not_say_is_refused(server: Path) -> None:
    for lines in ("x\n", f"{NONE} {NONE}\n", f"{NONE} {NONE} " + "r" * 2000 + "\n", "\x1b[31m\n"):
        said = call_hook(server, lines)
        assert (said.returncode, "not a line as git gives them" in said.stderr) == (4, True)
        assert "\x1b" not in said.stderr
    many = "".join(f"{NONE} {NONE} refs/heads/{number}\n" for number in range(10_001))
    said = call_hook(server, many)
    assert (said.returncode, "more than 10000 refs in one push" in said.stderr) == (4, True)
    assert call_hook(server, "").returncode == 0
    assert call_hook(server, "", "--only", "nobody").returncode == 4
    alone = call("hook", "pre-receive")
    assert (alone.status, "this is for git to run" in alone.err) == (4, True)


def test_schema(server: Path, author: Home) -> None:
    schema = json.loads((ROOT / "llmtrace/cli/schemas/hook.json").read_text())
    node = author.open().node
    tip = author.open().read("HEAD").id
    git("--git-dir", server, "fetch", "-q", author.path, tip)
    lines = f"{NONE} {tip} refs/heads/node/{node}\n{NONE} {tip} refs/heads/main\n"
    said = call_hook(server, lines, "--json")
    good, bad, end = map(json.loads, said.stdout.splitlines())
    for one in (good, bad):
        jsonschema.Draft202012Validator(schema).validate(one)
        assert not one.keys() - schema["properties"].keys()
    assert (good["accepted"], bad["accepted"], end["status"]) == (True, False, 4)
