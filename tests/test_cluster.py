"""Batches on a cluster: the bits and lines of a local batch, and one record a prompt whoever dies.

The workers are processes of a LocalCluster, each with Dask's nanny, which starts another one in the
place of one that died.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import dask
import pytest

import clusters
from checkpoints import make
from commands import Answer, call
from llmtrace.cluster import batch, worker
from llmtrace.store.chain import Event, Store

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llmtrace.store.record import Record

ROOT = Path(__file__).parents[1]
PROMPTS = [f"Once upon a time there was number {number}" for number in range(12)]
LINE = ("-d", "cpu", "--threads", "1", "-n", "5")


class Cluster(NamedTuple):
    address: str
    place: Path

    @property
    def stores(self) -> list[Path]:
        return sorted(self.place.glob("**/*.git"))

    def run(self, *arguments: str | Path) -> Answer:
        return spread("--cluster", self.address, *arguments)

    def records(self) -> dict[str, Record]:
        """All runs in all stores, by their commits."""
        found = {}
        for path in self.stores:
            store = Store.open(path, self.place / "config" / "llmtrace" / "keys")
            for node in store.nodes():
                found |= {entry.id: entry.record for entry in store.log(f"node/{node}")}
        return {commit: record for commit, record in found.items() if record.kind == "run"}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two workers, whose machine has stores of its own."""
    place = tmp_path_factory.mktemp("cluster")
    with clusters.cluster(place, 2) as address:
        yield Cluster(address, place)


def spread(*arguments: str | Path) -> Answer:
    lines = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS)
    return call("run", "--batch", "-", *LINE, *arguments, stdin=lines)


def told(said: Answer) -> list[dict[str, Any]]:
    assert (said.status, said.err) == (0, "")
    *runs, end = said.objects
    assert end["type"] == "end"
    return runs


def test_a_cluster_gives_what_this_machine_gives(cluster: Cluster, home: Path) -> None:
    """The same lines, but for who recorded them; each worker has a chain that is sound."""
    terms = ("--json", "--draft", "sample", "--leaves", "--keep", "ln_final.*")
    here, there = told(spread(*terms)), told(cluster.run(*terms))
    apart = {"commit", "node", "steps", "timings"}
    assert [{k: v for k, v in run.items() if k not in apart} for run in there] == [
        {k: v for k, v in run.items() if k not in apart} for run in here
    ]
    records = cluster.records()
    assert {run["commit"] for run in there} == set(records)
    for run in there:
        assert {"leaves.bin", "kept.000"} < set(records[run["commit"]].parts)
        assert (records[run["commit"]].node, records[run["commit"]].checksum) == (
            run["node"],
            run["checksum"],
        )
    nodes = Counter(run["node"] for run in there)
    assert len(nodes) == len(cluster.stores) == 2
    for path in cluster.stores:
        checked = call("audit", "--store", path)
        assert (checked.status, len(checked.lines)) == (0, 1), checked.out
        verified = call("verify", "HEAD", "--store", path)
        assert (verified.status, verified.out[:9]) == (0, "verified "), verified.err


def job(record: Record) -> str:
    """The name of the job of a record, by which it is found: the batch, and the line in it."""
    name: str = record.sections["attested"]["job"]
    return name


@pytest.mark.parametrize("moment", ["computing", "told", "recorded"])
def test_a_worker_that_dies_costs_no_record_and_makes_none_twice(
    cluster: Cluster, moment: str
) -> None:
    before = cluster.records()
    (cluster.place / moment).touch()
    there = told(cluster.run("--json"))
    assert not (cluster.place / moment).exists(), "no worker came there"
    assert [run["prompt"] for run in there] == PROMPTS
    made = {c: r for c, r in cluster.records().items() if c not in before}
    assert sorted(made) == sorted(run["commit"] for run in there)
    names = {job(record) for record in made.values()}
    (name,) = {name.partition("/")[0] for name in names}
    assert names == {f"{name}/{line}" for line in range(1, len(PROMPTS) + 1)}


def test_a_store_that_never_comes_back_is_told_of(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its records are known by their names as second ones, should they turn up."""
    monkeypatch.setattr(batch, "PATIENCE", 3.0)
    before = cluster.records()
    (cluster.place / "gone").touch()
    said = cluster.run("--format", "id")
    (cluster.place / "elsewhere").unlink()
    assert (said.status, len(set(said.lines))) == (0, len(PROMPTS)), said.err
    warning, *_ = said.err.split("\n")
    assert warning.startswith("llmtrace: warning: a worker was lost while it recorded")
    made = {c: r for c, r in cluster.records().items() if c not in before}
    assert set(said.lines) < set(made)
    twice = Counter(map(job, made.values()))
    lost = [commit for commit in made if commit not in said.lines]
    assert sorted(n for n in twice if twice[n] == 2) == sorted(job(made[c]) for c in lost)
    assert all(made[commit].node in warning for commit in lost)


def test_without_records_no_chain_grows(cluster: Cluster) -> None:
    before = cluster.records()
    there = told(cluster.run("--json", "--no-commit"))
    assert [(run["commit"], run["node"]) for run in there] == [(None, None)] * len(PROMPTS)
    assert cluster.records() == before


def test_one_who_has_enough_is_told_what_was_recorded(cluster: Cluster) -> None:
    """Behind a first prompt that takes long, too: its turn does not come."""
    before = set(cluster.records())
    prompts = [{"prompt": "0", "max_tokens": 300}, *({"prompt": f"{n}"} for n in range(200))]
    line = ["run", "--batch", "-", "--cluster", cluster.address, "--format", "id", *LINE]
    with subprocess.Popen(
        [sys.executable, "-m", "llmtrace", *line],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as client:
        assert client.stdin and client.stdout and client.stderr
        client.stdin.write("".join(json.dumps(prompt) + "\n" for prompt in prompts))
        client.stdin.close()
        while not set(cluster.records()) - before and client.poll() is None:
            time.sleep(0.05)
        client.send_signal(signal.SIGINT)
        printed, said = client.stdout.read().split(), client.stderr.read()
    assert client.returncode == 130, said
    assert 0 < len(printed) <= 200 - 15
    assert sorted(printed) == sorted(set(cluster.records()) - before)
    assert {line.split(" of node ")[0].split()[1] for line in said.splitlines()} == {"records"}


def test_a_worker_with_another_model_is_refused(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as there:
        there.setenv("XDG_CONFIG_HOME", str(cluster.place / "config"))
        assert call("model", "add", "tale", make(tmp_path / "theirs", seed=4)).status == 0
    assert call("model", "add", "tale", make(tmp_path / "ours")).status == 0
    before = cluster.records()
    said = cluster.run("-m", "tale")
    assert (said.status, said.out) == (4, "")
    assert re.search(r"error: worker 'tcp://\S+': its model 'tale' is \w{16}…, yours ", said.err)
    assert cluster.records() == before
    assert cluster.run("-m", tmp_path / "ours", "--no-commit").status == 0  # by its folder


def test_a_worker_with_another_llmtrace_is_refused(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmtrace.__version__", "9.9.9")
    said = cluster.run()
    assert (said.status, said.out) == (4, "")
    assert (
        "yours 9.9.9\nllmtrace: hint: install the same llmtrace[cluster] on all machines"
        in said.err
    )


@pytest.mark.parametrize(
    ("arguments", "status", "why"),
    [
        (["--cluster", "tcp://127.0.0.1:9"], 4, "no scheduler answers at 'tcp://127.0.0.1:9'"),
        (["--cluster", "here"], 2, "'here' is no address of a scheduler"),
        (["--cluster", "tcp://h:1", "--store", "s"], 2, "--store and --cluster cannot be used"),
    ],
)
def test_what_is_no_cluster_is_explained(arguments: list[str], status: int, why: str) -> None:
    with dask.config.set({"distributed.comm.timeouts.connect": "1s"}):
        said = spread(*arguments)
    assert (said.status, said.out) == (status, "")
    assert said.err.startswith(f"llmtrace: error: {why}")


def test_a_cluster_is_for_batches() -> None:
    said = call("run", "--cluster", "tcp://127.0.0.1:9", "Once")
    assert (said.status, said.err.split("\n")[0]) == (2, "llmtrace: error: --cluster needs --batch")


def test_a_cluster_without_workers_is_not_waited_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "PATIENCE", 1.0)
    with clusters.cluster(tmp_path, 0) as address:
        said = spread("--cluster", address)
    assert (said.status, said.out) == (4, "")
    assert f"error: no workers at '{address}'" in said.err


class Scribe:
    """A worker that computes nothing and records what it is given."""

    def __init__(self, store: Store | None) -> None:
        self.store = store
        self.environment: dict[str, str] = {}

    def run(self, jobs: list[str]) -> Iterator[tuple[str, Event]]:
        for job in jobs:
            sections = {"trace": {}, "probes": {}, "attested": {"model": job}}
            yield job.upper(), Event("run", sections, {}, 1_700_000_000)


class Task(NamedTuple):
    """A task that is done, in the hands of the process that computed it."""

    scribe: Scribe
    found: worker.Found

    @classmethod
    def done(cls, place: Path) -> Task:
        scribe = Scribe(Store.open(place / "store.git", place / "keys", create=True))
        computed = worker.compute(lambda _: scribe, None, {"batch/1": "a", "batch/2": "b"})
        found = asyncio.run(worker.look("key", SimpleNamespace(data={"key": computed})))
        assert found is not None
        return cls(scribe, found)

    def record(self) -> worker.Recorded | None:
        return asyncio.run(worker.record(lambda _: self.scribe, None, "key"))

    def recall(self, found: worker.Found | None = None) -> dict[str, str] | None:
        names = ["batch/1", "batch/2"]
        return asyncio.run(
            worker.recall(lambda _: self.scribe, None, "key", found or self.found, names)
        )

    def commits(self) -> dict[str, str]:
        assert self.scribe.store
        entries = [*self.scribe.store.log()][:-1]
        return {job(entry.record): entry.id for entry in entries}


def test_a_worker_records_once(tmp_path: Path) -> None:
    task = Task.done(tmp_path)
    assert (task.found.answers, task.commits()) == (("A", "B"), {})
    recorded = task.record()
    assert recorded == worker.Recorded(task.commits(), None)
    assert set(recorded.commits) == {"batch/1", "batch/2"}
    assert (task.record(), len(task.commits())) == (None, 2)
    assert task.recall() == recorded.commits


def test_a_worker_that_was_given_up_records_nothing(tmp_path: Path) -> None:
    """What it was told may still be on its way when it is asked, and another one gets the jobs."""
    task = Task.done(tmp_path)
    assert task.recall() == {}
    assert (task.record(), task.commits()) == (None, {})
    assert task.recall(task.found._replace(node="another")) is None


def test_a_lease_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "LEASE", -1.0)
    task = Task.done(tmp_path)
    assert (task.record(), task.commits()) == (None, {})


def test_a_task_that_is_not_here_has_no_lease(tmp_path: Path) -> None:
    assert asyncio.run(worker.look("other", SimpleNamespace(data={}))) is None
