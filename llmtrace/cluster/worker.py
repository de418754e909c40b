"""The worker's side of a batch: computes jobs, and records them when it is told to.

The processes of a cluster import this by name. What a task computes stays with Dask until the
client looks at it; from then on its process holds it for LEASE seconds, in which it may be told
once to record it.
"""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from llmtrace.errors import LlmtraceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import TypeAlias

    from llmtrace.store.chain import Event, Store

    Opener: TypeAlias = Callable[[Any], "Worker"]

LEASE = 60.0
"""Seconds after which a worker that has not begun to record no longer may."""
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # goes on while a machine sleeps


class Worker(Protocol):
    """What a process of the cluster does for a batch.

    An opener makes it of whatever was asked for, or gives the one that there is. Both raise
    LlmtraceError.
    """

    @property
    def store(self) -> Store | None:
        """The store that no other worker has; None if nothing is to be recorded."""

    @property
    def environment(self) -> Mapping[str, str]:
        """Of git, which keeps the store small."""

    def run(self, jobs: list[Any]) -> Iterator[tuple[Any, Event | None]]:
        """Gives in turn what to tell of each job, and what to record of it."""


class Failure(NamedTuple):
    """An LlmtraceError on its way to the client."""

    status: int
    message: str
    hints: tuple[str, ...]

    @classmethod
    def of(cls, error: LlmtraceError) -> Failure:
        """Writes down an error."""
        return cls(error.status, str(error), error.hints)


class Found(NamedTuple):
    """What the jobs of a task came to, up to the first that failed."""

    node: str | None
    """Who would record them."""
    since: str
    """The commit with which this node's chain ended before."""
    answers: tuple[Any, ...]
    failure: Failure | None


class Recorded(NamedTuple):
    """Commits by the names of their jobs, and why others have none."""

    commits: dict[str, str]
    failure: Failure | None


@dataclass(frozen=True)
class Computed:
    """What Dask keeps of a task: what to tell, and what to record."""

    found: Found
    events: tuple[Event, ...]


_computing, _recording = threading.Lock(), threading.Lock()
_held: dict[str, tuple[float, Computed]] = {}  # by the key of the task, with the end of its lease


async def greet(open_: Opener, asked: Any) -> Failure | None:
    """Says why this process is of no use for a batch, if it is of none."""
    try:
        open_(asked)
    except LlmtraceError as error:
        return Failure.of(error)
    return None


def compute(open_: Opener, asked: Any, jobs: Mapping[str, Any]) -> Computed:
    """Runs jobs, each by the name that its record will hold. Records nothing."""
    node, since, failure = None, "", None
    answers: list[Any] = []
    events: list[Event] = []
    with _computing:
        try:
            worker = open_(asked)
            if worker.store is not None:
                node, since = worker.store.node, worker.store.read("HEAD").id
            for name, (answer, event) in zip(jobs, worker.run([*jobs.values()]), strict=False):
                answers.append(answer)
                events += [_named(event, name)] if event else []
        except LlmtraceError as error:
            failure = Failure.of(error)
    return Computed(Found(node, since, tuple(answers), failure), tuple(events))


async def look(key: str, dask_worker: Any) -> Found | None:
    """Tells what a task came to and begins its lease; None if it is not here."""
    computed: Computed | None = dask_worker.data.get(key)
    if computed is None:
        return None
    for old in [name for name, (end, _) in _held.items() if end < _now()]:
        _held.pop(old, None)
    _held[key] = _now() + LEASE, computed
    return computed.found


async def record(open_: Opener, asked: Any, key: str) -> Recorded | None:
    """Records what a task came to; None if its lease is over."""
    return await asyncio.to_thread(_record, open_, asked, key)


def _record(open_: Opener, asked: Any, key: str) -> Recorded | None:
    from llmtrace.store.journal import Journal

    with _recording:
        end, computed = _held.pop(key, (0.0, None))
        if computed is None or end < _now():
            return None
        commits: dict[str, str] = {}
        try:
            worker = open_(asked)
            assert worker.store is not None
            journal = Journal[str](worker.store, commits.__setitem__, worker.environment)
            for event in computed.events:
                journal.add(_name(event.sections), event)
            journal.close()
        except LlmtraceError as error:
            return Recorded(commits, Failure.of(error))
        return Recorded(commits, None)


async def recall(
    open_: Opener, asked: Any, key: str, found: Found, names: list[str]
) -> dict[str, str] | None:
    """Says which of the jobs a node has recorded; None if this is another node.

    Should this be the process that holds the task, its lease ends here.
    """
    return await asyncio.to_thread(_recall, open_, asked, key, found, names)


def _recall(
    open_: Opener, asked: Any, key: str, found: Found, names: list[str]
) -> dict[str, str] | None:
    with _recording:
        _held.pop(key, None)
        store = open_(asked).store
        if store is None or store.node != found.node:
            return None
        store.settle()
        records = ((entry.id, entry.record) for entry in store.log(f"{found.since}..HEAD"))
        commits = {_name(r.sections): commit for commit, r in records if r.kind == "run"}
        return {name: commits[name] for name in names if name in commits}


def _named(event: Event, name: str) -> Event:
    attested = {**event.sections["attested"], "job": name}
    return event._replace(sections={**event.sections, "attested": attested})


def _name(sections: Mapping[str, Any]) -> str:
    """The name of the job in a record; "" in one that nobody asked a cluster for."""
    return str(sections["attested"].get("job", ""))


def _now() -> float:
    return time.clock_gettime(_CLOCK)
