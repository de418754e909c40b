"""The client's side of a batch: hands out jobs, and alone decides who records what.

Dask spreads tasks over the workers and runs those of a lost one elsewhere. That is harmless
because a task only computes. When one is done, the client looks at it, which begins a lease,
and tells that one process to record it; so a process that Dask has given up, but that lives
on, records nothing by itself.

    the process is lost before it was told       nothing was recorded: the jobs run again
    after it was told, and its answer is lost    its node is asked which jobs its chain holds,
                                                 as soon as a process has opened its store
                                                 again (Dask's nanny starts one); the others
                                                 run again

A record holds the name of its job, by which it is found. So each prompt has one record, in
one chain. What nobody can know is what a node did that never comes back: if one was told to
record, is lost at that moment and for longer than PATIENCE, its jobs run again elsewhere and a
warning says so. Should its chain turn up later with records of these jobs, they are the second
ones: two records with one name.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import re
import secrets
import time
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from llmtrace.cluster import worker
from llmtrace.cluster.worker import LEASE, Failure
from llmtrace.errors import Inconclusive, LlmtraceError, Misuse, Trouble

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from llmtrace.cluster.worker import Found, Opener, Recorded

PATIENCE = LEASE
"""Seconds to wait for a worker: for any, or for the one that knows what it recorded."""
_TURNS = 4  # groups of jobs for each worker, so that all are busy to the end
_ENDING = 5.0  # seconds for what is being recorded, when the rest is given up
_PAUSE = 0.5  # seconds between two looks at who is there

_SAME = "install the same llmtrace[cluster] on all machines, that of the scheduler too"

_T = TypeVar("_T")


class Ended(NamedTuple):
    """What came of a job, by its number in the batch: what is told of it, and its record."""

    job: int
    answer: Any
    node: str | None
    commit: str | None


class Ears(NamedTuple):
    """Who is told what."""

    ended: Callable[[Ended], None]
    """Of each job, in the order of the batch."""
    came: Callable[[Any], None]
    """Of each answer, as it comes."""
    warn: Callable[[str], None]


def run(
    address: str, open_: Opener, asked: Any, jobs: Sequence[Any], together: int, ears: Ears
) -> None:
    """Runs jobs on the cluster of a scheduler, at most so many together in one process.

    Workers import the function ``open_`` and call it with ``asked``. However the batch ends,
    every job that was recorded was told of. Raises LlmtraceError, and KeyboardInterrupt.
    """
    if not re.fullmatch(r"(tcp|tls)://\S+:[0-9]+", address):
        raise Misuse(f"'{address}' is no address of a scheduler", "--cluster tcp://HOST:8786")
    try:
        asyncio.run(_run(address, open_, asked, jobs, together, ears))
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None


async def _run(
    address: str, open_: Opener, asked: Any, jobs: Sequence[Any], together: int, ears: Ears
) -> None:
    try:
        import distributed
    except ImportError:
        hint = "pip install 'llmtrace[cluster]'"
        raise Trouble("clusters need dask.distributed, which is not here", hint) from None
    for name in [name for name in logging.root.manager.loggerDict if "distributed" in name]:
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what matters is told from here
    client = distributed.Client(address, asynchronous=True)
    try:
        try:
            await client
        except OSError as error:
            hint = "dask scheduler --host " + address
            raise Trouble(f"no scheduler answers at '{address}'", hint) from error
        await _Batch(client, address, open_, asked, jobs, ears).run(together)
    finally:
        await client.close()


class _Batch:
    """One batch on its way."""

    def __init__(
        self,
        client: Any,
        address: str,
        open_: Opener,
        asked: Any,
        jobs: Sequence[Any],
        ears: Ears,
    ) -> None:
        self._client, self._address = client, address
        self._how = (open_, asked)
        self._jobs, self._ears = jobs, ears
        self._id = secrets.token_hex(16)
        self._unfinished: set[asyncio.Task[Any]] = set()
        self._done: set[int] = set()
        self._untold: dict[int, Ended] = {}  # those behind one that is not done
        self._following = 0

    async def run(self, together: int) -> None:
        """Brings all jobs to their end."""
        count = len(self._jobs)
        try:
            async with asyncio.TaskGroup() as tasks:
                watch = tasks.create_task(self._watch())
                if not (workers := await self._workers()):
                    self._ears.warn(f"no workers at '{self._address}' yet")
                while not workers:
                    await asyncio.sleep(_PAUSE)
                    workers = await self._workers()
                await self._greet(workers)
                size = max(1, min(together, -(-count // (_TURNS * len(workers)))))
                groups = [range(count)[at : at + size] for at in range(0, count, size)]
                await asyncio.gather(*(tasks.create_task(self._finish(g)) for g in groups))
                watch.cancel()
        finally:
            end = time.monotonic() + _ENDING
            while self._unfinished and time.monotonic() < end:
                await asyncio.wait(self._unfinished, timeout=_PAUSE)
            for index in sorted(self._untold):
                self._ears.ended(self._untold.pop(index))

    async def _greet(self, workers: Sequence[str]) -> None:
        """Raises what a worker has against the batch; Dask ends one that cannot read a task."""
        greeting = self._client.run(worker.greet, *self._how, workers=workers, on_error="return")
        for place, answer in (await self._uncut(greeting)).items():
            if isinstance(answer, Exception) and not isinstance(answer, OSError):
                raise Trouble(f"worker '{place}' cannot read tasks: {answer}", _SAME)
            if isinstance(answer, Failure):
                raise _error(answer, place)

    async def _watch(self) -> None:
        """Raises Trouble when there has been no worker for a while."""
        last = time.monotonic()
        while time.monotonic() - last < PATIENCE:
            await asyncio.sleep(_PAUSE)
            if await self._workers():
                last = time.monotonic()
        raise Trouble(f"no workers at '{self._address}'", f"dask worker {self._address}")

    async def _finish(self, group: Sequence[int]) -> None:
        """Brings some jobs to their end, whatever becomes of the workers that have them."""
        while group:
            names = {f"{self._id}/{index + 1}": index for index in group}
            jobs = {name: self._jobs[index] for name, index in names.items()}
            key = f"llmtrace-{secrets.token_hex(16)}"
            future = self._client.submit(worker.compute, *self._how, jobs, key=key, pure=False)
            place = await self._place(future)
            found: Found | None = await self._uncut(self._ask(place, worker.look, key))
            if found is not None:
                failure = await self._uncut(self._settle(place, key, found, names))
                if failure:
                    raise _error(failure, place)
            future.release()
            group = [index for index in group if index not in self._done]

    async def _place(self, future: Any) -> str:
        """Waits for a task and gives the worker that holds what it computed; "" if none does."""
        import distributed

        try:
            await distributed.wait(future)
        except concurrent.futures.CancelledError:
            raise Trouble(f"lost the scheduler at '{self._address}'") from None
        if future.status == "error":
            error = await future.exception()
            if isinstance(error, distributed.scheduler.KilledWorker):
                many = error.allowed_failures + 1
                raise Trouble(f"{many} workers died with the same prompts", "see their logs")
            if isinstance(error, RuntimeError) and "deserialization" in str(error):
                raise Trouble(f"the scheduler at '{self._address}' cannot read tasks", _SAME)
            raise error
        holders = await self._uncut(self._client.who_has([future]))
        return next(iter(holders.get(future.key, ())), "")

    async def _settle(
        self, place: str, key: str, found: Found, names: Mapping[str, int]
    ) -> Failure | None:
        """Has a worker record what it found; says why, where the first of the rest has none."""
        commits: Mapping[str, str | None] = dict.fromkeys(names)
        failure = found.failure
        if found.node is not None and found.answers:
            recorded: Recorded | None = await self._ask(place, worker.record, *self._how, key)
            if recorded is not None:
                commits = recorded.commits
                failure = recorded.failure or failure
            else:
                commits = await self._recall(key, found, [*names])
        for (name, index), answer in zip(names.items(), found.answers, strict=False):
            if name in commits:
                self._end(Ended(index, answer, found.node, commits[name]))
        return failure

    async def _recall(self, key: str, found: Found, names: list[str]) -> Mapping[str, str]:
        """Asks whoever has the store of a lost worker which jobs were recorded."""
        asking: dict[str, asyncio.Task[dict[str, str] | None]] = {}
        end = time.monotonic() + PATIENCE
        try:
            while time.monotonic() < end:
                for place in set(await self._workers()) - set(asking):
                    question = self._ask(place, worker.recall, *self._how, key, found, names)
                    asking[place] = asyncio.create_task(question)
                await asyncio.sleep(_PAUSE)
                for place in [place for place in asking if asking[place].done()]:
                    if (commits := asking.pop(place).result()) is not None:
                        return commits
        finally:
            for each in asking.values():
                each.cancel()
        jobs = ", ".join(names)
        self._ears.warn(f"a worker was lost while it recorded; node {found.node} may hold {jobs}")
        return {}

    def _end(self, ended: Ended) -> None:
        self._done.add(ended.job)
        self._untold[ended.job] = ended
        self._ears.came(ended.answer)
        while self._following in self._untold:
            self._ears.ended(self._untold.pop(self._following))
            self._following += 1

    async def _ask(self, place: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """What a worker answers, outside of Dask's schedule; None if it is lost."""
        if not place:
            return None
        call = asyncio.ensure_future(self._client.run(function, *arguments, workers=[place]))
        try:
            while not (await asyncio.wait({call}, timeout=_PAUSE))[0]:
                if place not in await self._workers():
                    return None
            return call.result()[place]
        except OSError:
            return None
        finally:
            call.cancel()

    async def _uncut(self, work: Awaitable[_T]) -> _T:
        """Lets something come to its end, even where the batch is given up meanwhile."""
        task = asyncio.ensure_future(work)
        self._unfinished.add(task)
        task.add_done_callback(self._unfinished.discard)
        return await asyncio.shield(task)

    async def _workers(self) -> Sequence[str]:
        try:
            return [*await self._uncut(self._client.nthreads())]
        except OSError as error:
            raise Trouble(f"lost the scheduler at '{self._address}'") from error


def _error(failure: Failure, place: str) -> LlmtraceError:
    kinds = {kind.status: kind for kind in (Misuse, Inconclusive, Trouble)}
    return kinds[failure.status](f"worker '{place}': {failure.message}", *failure.hints)
