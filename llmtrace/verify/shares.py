"""Audits a long chain on all cores: each takes every so many stretches of it.

A stretch is audited after the record before it, which is audited as the last of the stretch
before; so all together say what one pass would. Workers are forks of this process: they
start no program and open the store for themselves.
"""

import contextlib
import math
import multiprocessing
import os
import signal
import time
import warnings
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

from llmtrace.errors import Trouble
from llmtrace.store.chain import Store
from llmtrace.store.entry import Entry
from llmtrace.store.objects import Objects
from llmtrace.store.schema import Finding
from llmtrace.verify.audit import audit_new

_STRETCH = 250  # records
_SHORT = 1500  # records that one core audits while others would be started
_MOST = 8  # workers

_Audited = list[tuple[str, list[Finding]]]


def audit_shared(
    store: Store, since: str | None, tip: str, node: str, end: float = math.inf
) -> Iterator[tuple[str, list[Finding]]]:
    """Audits as ``audit_new`` does, up to the first record with findings.

    Raises Trouble when it is not done by ``end`` (``time.monotonic``).
    """
    places = _places(store, since, tip)
    workers = min(_MOST, len(os.sched_getaffinity(0)))
    if workers < 2 or len(places) * _STRETCH < _SHORT:
        yield from _timely(audit_new(store, since, tip, node), end)
        return
    stretches = list(zip([since, *places], places, strict=False))
    for audited in _from_all(store, stretches, node, workers, end):
        for one, found in audited:
            yield one, found
            if found:
                return


def _places(store: Store, since: str | None, tip: str) -> list[str]:
    """The ends of the stretches between two commits, oldest first; [] if there is no way."""
    found: list[str] = []
    at: str | None = tip
    count = 0
    try:
        while at != since:
            if at is None:
                return []
            if count % _STRETCH == 0:
                found.append(at)
            count += 1
            parents = Entry(store.objects, at).parents
            at = parents[0] if parents else None
    except Trouble:
        return []
    return found[::-1]


def _from_all(
    store: Store,
    stretches: list[tuple[str | None, str]],
    node: str,
    workers: int,
    end: float,
) -> Iterator[_Audited]:
    """What all workers say, in the order of the stretches; none of them stays behind."""
    context = multiprocessing.get_context("fork")
    extra = store.objects.extra
    heard: list[Connection] = []
    with contextlib.ExitStack() as stack:
        for number in range(workers):
            share = stretches[number::workers]
            here, out = context.Pipe(duplex=False)  # now: no other worker may hold its end open
            heard.append(here)
            stack.callback(here.close)
            process = context.Process(
                target=_work, args=(out, store.path, extra, share, node, end), daemon=True
            )
            with warnings.catch_warnings():  # Python 3.12 warns of threads: workers use none
                warnings.simplefilter("ignore", DeprecationWarning)
                process.start()
            stack.callback(process.join)
            stack.callback(process.terminate)
            out.close()
        for number in range(len(stretches)):
            try:
                answer: _Audited | str = heard[number % workers].recv()
            except EOFError:
                raise Trouble("the audit was cut short: one of its processes was killed") from None
            if isinstance(answer, str):
                raise Trouble(answer)
            yield answer


def _work(
    out: Connection,
    path: Path,
    extra: tuple[Path, ...],
    share: list[tuple[str | None, str]],
    node: str,
    end: float,
) -> None:
    """Audits a share and sends what it finds; whoever started it ends it, not Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()
    with contextlib.suppress(BrokenPipeError):
        try:
            store = Store(Objects.open(path, extra), path)
            for since, tip in share:
                if os.getppid() != parent:  # it was killed: nobody listens
                    return
                out.send(list(_timely(audit_new(store, since, tip, node), end)))
        except Trouble as error:
            out.send(str(error))


def _timely(
    audited: Iterator[tuple[str, list[Finding]]], end: float
) -> Iterator[tuple[str, list[Finding]]]:
    """Stops an audit that takes too long."""
    for one in audited:
        if time.monotonic() > end:
            raise Trouble("the audit takes too long", "allow more with --timeout SECONDS")
        yield one
