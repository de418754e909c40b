"""Processes that die at every step of writing: the chain stays whole, what was promised is kept.

The child ends itself, without any cleaning up, at the n-th time that it opens a file for
writing, renames, removes or makes one: n = 1, 2, … until it gets through.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llmtrace.store import objects
from llmtrace.store.chain import Store
from llmtrace.verify.audit import audit_chain

T = 1_700_000_000
STEPS = 200  # more than any case needs: a case that does not end is a failure


def opened(folder):
    return Store.open(folder / "store.git", folder / "keys", create=True, time=T)


def append(store, number):
    parts = {"prompt.txt": b"words %d" % number}
    return store.append_run({"seed": number}, {}, {"model": "tiny"}, parts, T + number)


def dying(step, work):
    """Runs work in a child that dies at this step; gives what it acknowledged, or None."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        left = [step]

        def count(event, args):
            changes = event in {"os.rename", "os.remove", "os.mkdir", "os.link"}
            if changes or (event == "open" and args[2] & (os.O_WRONLY | os.O_CREAT)):
                left[0] -= 1
                if not left[0]:
                    os._exit(9)

        sys.addaudithook(count)
        try:
            os.write(writing, work().encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 9)
    assert bool(said) == (status == 0)
    return said or None


def fsck(folder):
    if not (folder / "store.git").exists():
        return
    command = ["git", "--git-dir", folder / "store.git", "fsck", "--strict", "--no-dangling"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = (done.stdout + done.stderr).splitlines()
    assert done.returncode == 0
    assert [line for line in said if not line.startswith("notice: ")] == []


def chain(store):
    """Ids of the chain's commits, oldest first, all of them audited."""
    found = list(audit_chain(store, f"node/{store.node}"))
    assert [findings for _, findings in found] == [[]] * len(found)
    return [commit_id for commit_id, _ in found]


def cases(tmp_path, base, work):
    """A copy of base for every step at which work can die, after it died there."""
    for step in range(1, STEPS):
        folder = tmp_path / f"at{step}"
        shutil.copytree(base, folder)
        said = dying(step, lambda folder=folder: work(opened(folder)))
        fsck(folder)
        yield folder, said
        shutil.rmtree(folder)
        if said:
            return
    pytest.fail(f"not done after {STEPS} steps")


@pytest.fixture
def unsynced(monkeypatch):
    """Leaves the disk out, since a killed process loses nothing that it has written.

    And nobody waits for the one that left a branch locked.
    """
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    monkeypatch.setattr(objects, "_STALE", 0.0)


@pytest.fixture
def base(tmp_path):
    folder = tmp_path / "base"
    append(opened(folder), 1)
    return folder


@pytest.mark.usefixtures("unsynced")
@pytest.mark.parametrize("write", [False, True], ids=["append", "open"])
def test_a_run_is_whole_or_absent_and_completed_as_it_was(tmp_path, base, write):
    """By whoever opens the store for writing next, or appends to it."""
    shutil.copytree(base, tmp_path / "calm")
    calm = append(opened(tmp_path / "calm"), 2)
    before = chain(opened(base))
    seen = set()
    for folder, said in cases(tmp_path, base, lambda store: append(store, 2)):
        store = Store.open(folder / "store.git", folder / "keys")
        there = [entry.id for entry in store.log()][::-1]
        assert there in (before, [*before, calm])
        assert said in (None, there[-1])
        if write:
            store = opened(folder)
            assert chain(store) in (before, [*before, calm])
        newest = append(store, 3)
        after = chain(store)
        assert after in ([*before, newest], [*before, calm, newest])
        seen.add((len(there), len(after)))
    assert seen == {(2, 3), (2, 4), (3, 4)}  # absent, to be completed, whole


@pytest.mark.usefixtures("unsynced")
def test_a_rotation_is_whole_or_absent(tmp_path, base):
    lengths = set()
    for folder, said in cases(tmp_path, base, lambda store: store.rotate(T + 2)):
        store = opened(folder)
        lengths.add(len(chain(store)))
        assert said is None or store.read(said).record.kind == "rotate"
        append(store, 3)
        store.rotate(T + 4)
        append(store, 5)
        chain(store)
    assert lengths == {2, 3}


@pytest.mark.usefixtures("unsynced")
def test_a_store_is_founded_or_not(tmp_path):
    (tmp_path / "base").mkdir()
    for folder, _ in cases(tmp_path, tmp_path / "base", lambda store: store.node):
        store = opened(folder)
        append(store, 1)
        assert len(chain(store)) == 2


def test_what_is_named_was_synced_and_what_is_acknowledged_was_named(base, monkeypatch):
    """Power may fail, too: contents before names, names before the next promise."""

    def work():
        done = []

        def sync(handle):
            done.append(["sync", str(Path(f"/proc/self/fd/{handle}").readlink())])

        def watch(event, args):
            if event == "os.rename":
                done.append(["name", *map(str, args[:2])])

        monkeypatch.setattr(os, "fsync", sync)
        sys.addaudithook(watch)
        append(store, 2)
        return json.dumps(done)

    store = opened(base)
    done = json.loads(dying(0, work))
    names = [(place, *what[1:]) for place, what in enumerate(done) if what[0] == "name"]
    order = [
        Path(new).name for _, _, new in names if not re.fullmatch("[0-9a-f]{38}", Path(new).name)
    ]
    assert order == ["last", store.node]
    assert len(names) == 4 + 2  # record.json, prompt.txt, tree, commit; memory and branch
    for place, old, new in names:
        assert ["sync", old] in done[:place]
        assert ["sync", str(Path(new).parent)] in done[place:]
    memory, branch = (place for place, _, new in names if Path(new).name in order)
    objects = [(place, new) for place, _, new in names if "/objects/" in new]
    assert [place < memory for place, _ in objects] == [True, True, True, False]
    for place, new in objects:
        promise = memory if place < memory else branch
        assert ["sync", str(Path(new).parent)] in done[place:promise]
    assert ["sync", str(base / "keys" / store.node)] in done[memory : objects[-1][0]]
