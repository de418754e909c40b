"""Processes killed at random: what was acknowledged is there, the next command works, no fork.

Real command lines in children that were forked (`children.py`), killed by SIGKILL after a
random time. Git processes that they started live on, as they would. By default some
dozens of kills; 500 with ``-m slow``.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from children import MAINTENANCE, start
from llmtrace.store.chain import Store
from llmtrace.store.maintenance import is_due, maintain
from llmtrace.verify.audit import audit_chain

PROMPTS = ("Once on", "a", "the old", "in a", "by the sea", "I", "we two", "so it was")
BATCH = [{"prompt": PROMPTS[n % 8], "max_tokens": 1 + n % 3, "seed": n} for n in range(12)]
ENVIRONMENT = {"PATH": os.environ["PATH"]}
KINDS = ("config", "data")
CACHE = os.environ["XDG_CACHE_HOME"]


class Home:
    """A config folder and a store of its own, beside a remote that homes share."""

    def __init__(self, folder: Path, hub: Path) -> None:
        self.folder = folder
        self.hub = hub
        self.store = folder / "data/llmtrace/store.git"
        self.keys = folder / "config/llmtrace/keys"
        self.count = 0

    def start(self, arguments, now=None):
        """Starts a child that runs a command line, or ``MAINTENANCE``."""
        self.count += 1
        folders = {f"XDG_{kind.upper()}_HOME": str(self.folder / kind) for kind in KINDS}
        environment = {"HOME": str(self.folder), "LLMTRACE_THREADS": "2", **folders}
        out = self.folder / f"out.{self.count}"
        return start(arguments, environment | {"XDG_CACHE_HOME": CACHE}, out, now), out

    def run(self, arguments, after=None, now=None):
        """What a command line prints, and its status; killed after so many seconds if given."""
        child, out = self.start(arguments, now)
        if after is not None:
            time.sleep(after)
            child.kill()
        child.join()
        return out.read_text() if out.exists() else "", child.exitcode

    def chain(self):
        return [entry.id for entry in Store.open(self.store, self.keys).log()][::-1]


def fsck(path):
    """Judges a store once the git that a killed process left at work in it has ended.

    While packs are joined, git's own fsck may miss one that it has just seen.
    """
    while any(str(path).encode() in line for line in command_lines()):
        time.sleep(0.01)
    command = ["git", "--git-dir", path, "fsck", "--strict", "--no-dangling", "--no-progress"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = (done.stdout + done.stderr).splitlines()
    assert (done.returncode, [s for s in said if not s.startswith("notice: ")]) == (0, [])


def command_lines():
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            yield (folder / "cmdline").read_bytes()


def audited(home):
    """Audits the chain of a home and finds no fork; gives its length."""
    store = Store.open(home.store, home.keys)
    found = list(audit_chain(store, f"node/{store.node}"))
    assert [findings for _, findings in found] == [[]] * len(found)
    records = [store.read(commit).record for commit, _ in found]
    assert [record.seq for record in records] == list(range(len(found)))
    return len(found)


@pytest.fixture
def homes(place, tmp_path):
    """A home that writes and one that follows it, with a bare repository between them."""
    hub = tmp_path / "hub.git"
    subprocess.run(["git", "init", "-q", "--bare", hub], check=True)
    for name in ("writer", "follower"):
        (tmp_path / name / "config/llmtrace").mkdir(parents=True)
        shutil.copy(place / "config/llmtrace/models.toml", tmp_path / name / "config/llmtrace")
    writer, follower = Home(tmp_path / "writer", hub), Home(tmp_path / "follower", hub)
    for home in (writer, follower):
        assert home.run(["init"])[1] == 0
        assert home.run(["remote", "add", "hub", str(hub)])[1] == 0
    batch = tmp_path / "batch.jsonl"
    batch.write_text("".join(json.dumps(line) + "\n" for line in BATCH))
    return writer, follower, batch


def batch_of(batch):
    return ["run", "-d", "cpu", "-m", "tiny", "--batch", str(batch), "--format", "id"]


def one(prompt="so"):
    return ["run", "-d", "cpu", "-m", "tiny", "-n", "1", "--format", "id", prompt]


@pytest.mark.parametrize("kills", [40, pytest.param(500, marks=pytest.mark.slow)])
def test_whatever_is_killed_nothing_acknowledged_is_lost(homes, kills):
    writer, follower, batch = homes
    acts = {
        "run": (writer, batch_of(batch)),
        "push": (writer, ["push", "hub", "--publish"]),
        "fetch": (follower, ["fetch", "hub"]),
        MAINTENANCE: (writer, MAINTENANCE),
    }
    draw = random.Random(20261121)
    acknowledged: list[str] = []
    longest = dict.fromkeys(acts, 0.5)  # seconds; learnt
    killed: Counter[str] = Counter()
    while killed.total() < kills or min(killed[name] for name in acts) < kills // 8:
        name = draw.choice([*acts])
        home, arguments = acts[name]
        after = draw.random() * longest[name]
        said, status = home.run(arguments, after)
        assert status in (0, -signal.SIGKILL) or (name == MAINTENANCE and status == 1)
        killed[name] += status == -signal.SIGKILL
        longest[name] *= 1.03 if status == -signal.SIGKILL else 0.9
        if name == "run":
            acknowledged += [line for line in said.splitlines() if len(line) == 40]
        fsck(home.store)
        said, status = writer.run(one())
        assert status == 0
        acknowledged.append(said.strip())
        there = writer.chain()
        assert {*acknowledged} <= {*there}
        assert len({*acknowledged}) == len(acknowledged)
    for home, arguments in acts.values():
        assert home.run(arguments)[1] == 0
    for path in (writer.store, follower.store, writer.hub):
        fsck(path)
    assert audited(writer) == len(writer.chain())
    node = Store.open(writer.store, writer.keys).node
    theirs = Store.open(follower.store, follower.keys)
    assert [entry.id for entry in theirs.log(f"node/{node}")][::-1] == writer.chain()
    left = [path.name for path in writer.store.iterdir() if path.name.startswith(".scratch")]
    assert left == []
    print("killed:", ", ".join(f"{count} of {name}" for name, count in sorted(killed.items())))


def test_eight_processes_write_to_one_store_without_loss_or_fork(homes):
    writer, _, batch = homes
    started = [writer.start(batch_of(batch)) for _ in range(8)]
    acknowledged = []
    for child, out in started:
        child.join()
        assert child.exitcode == 0, Path(f"{out}.err").read_text()
        acknowledged += out.read_text().split()
    assert len(acknowledged) == len({*acknowledged}) == 8 * len(BATCH)
    assert {*acknowledged} == {*writer.chain()[1:]}
    assert audited(writer) == 1 + 8 * len(BATCH)
    fsck(writer.store)


def test_a_clock_that_was_set_back_does_not_stop_the_chain(homes):
    writer, _, _ = homes
    for now in (1_800_000_000, 1_500_000_000, 1):
        assert writer.run(one(), now=now)[1] == 0
    store = Store.open(writer.store, writer.keys)
    assert [e.record.time for e in store.log()][:3] == [1, 1_500_000_000, 1_800_000_000]
    assert audited(writer) == 4


def test_a_restored_backup_is_refused_until_it_is_brought_up_to_date(homes, tmp_path):
    writer, _, _ = homes
    assert writer.run(one("a"))[1] == 0
    shutil.copytree(writer.store, tmp_path / "backup.git")
    newest = writer.run(one("I"))[0].strip()
    assert writer.run(["push", "hub", "--publish"])[1] == 0
    shutil.rmtree(writer.store)
    shutil.copytree(tmp_path / "backup.git", writer.store)
    assert writer.run(one("we"))[1] == 4
    assert writer.run(["fetch", "hub"])[1] == 0
    assert writer.chain()[-1] == newest
    assert writer.run(one("we"))[1] == 0
    assert writer.run(["push", "hub"])[1] == 2  # the backup does not know that this is public
    assert writer.run(["push", "hub", "--publish"])[1] == 0
    assert audited(writer) == 4


def test_a_copied_store_on_a_second_machine_cannot_push_over_the_first(homes, tmp_path):
    writer, _, _ = homes
    assert writer.run(one("a"))[1] == 0
    shutil.copytree(writer.folder, tmp_path / "second")
    second = Home(tmp_path / "second", writer.hub)
    assert writer.run(one("I"))[1] == 0
    assert writer.run(["push", "hub", "--publish"])[1] == 0
    assert second.run(one("we"))[1] == 0  # it cannot know
    before = subprocess.run(["git", "--git-dir", writer.hub, "show-ref"], capture_output=True)
    assert second.run(["push", "hub", "--publish"])[1] == 4
    after = subprocess.run(["git", "--git-dir", writer.hub, "show-ref"], capture_output=True)
    assert before.stdout == after.stdout != b""


def test_maintenance_leaves_few_files_and_every_object(homes):
    """At most a file for 100 records, and nothing thrown away."""
    writer, _, _ = homes
    writer.run(one())
    store = Store.open(writer.store, writer.keys)
    like = store.read("HEAD").record
    three = {name: like.sections[name] for name in ("trace", "probes", "attested")}
    commits = [store.append_run(**three, parts=like.parts, time=n) for n in range(40)]
    for first in range(0, 1200, 100):
        events = [("run", three, {**like.parts, "scores.json": b"%d" % n}, n) for n in range(100)]
        commits += store.append_all([made_event(*event, first) for event in events])
    objects = all_objects(writer.store)
    loose = sum(path.is_file() for path in (writer.store / "objects").rglob("*"))
    assert maintain(writer.store, ENVIRONMENT)
    assert all_objects(writer.store) == objects
    left = [path for path in (writer.store / "objects").rglob("*") if path.is_file()]
    assert loose > 100
    assert len(left) <= len(commits) / 100
    assert not is_due(writer.store)
    again = Store.open(writer.store, writer.keys)
    assert [entry.id for entry in again.log()][::-1][2:] == commits
    assert [entry.id for entry in store.log()][::-1][2:] == commits  # opened before
    fsck(writer.store)


def made_event(kind, sections, parts, number, start):
    from llmtrace.store.chain import Event

    return Event(kind, sections, parts, 1_700_000_000 + start + number)


def all_objects(path):
    command = ["git", "--git-dir", path, "cat-file", "--batch-all-objects", "--batch-check"]
    return subprocess.run(command, capture_output=True, check=True).stdout
