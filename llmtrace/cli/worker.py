"""What `run --cluster` does in the processes of a cluster, each with settings of its own."""

from __future__ import annotations

import atexit
import functools
import itertools
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmtrace.errors import Trouble

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from llmtrace.cli.frame import Session
    from llmtrace.cli.opening import Models
    from llmtrace.cli.requests import Job
    from llmtrace.cli.work import Answer, Terms
    from llmtrace.model.tokenizer import Tokenizer
    from llmtrace.store.chain import Event, Store

_opening = threading.Lock()


@dataclass(frozen=True)
class Asked:
    """What a client wants of every worker."""

    terms: Terms
    model: str
    """By name or folder."""
    model_id: str
    device: str | None
    threads: int | None
    records: bool
    build: tuple[str, str]
    """The client's version, and the digest of its kernels."""


def build() -> tuple[str, str]:
    """Gives the version of this llmtrace, and the digest of its kernels."""
    from llmtrace import __version__
    from llmtrace.device.compile import kernels_folder, sources_digest

    return __version__, sources_digest(kernels_folder())


@dataclass(frozen=True)
class _Worker:
    """One client's wishes in this process."""

    asked: Asked
    environment: Mapping[str, str]

    @property
    def store(self) -> Store | None:
        return _store() if self.asked.records else None

    def run(self, jobs: list[Job]) -> Iterator[tuple[Answer, Event | None]]:
        from llmtrace.cli.work import Work

        asked = self.asked
        models = _models(asked.model, asked.terms.draft, asked.device, asked.threads)
        outline = models.outline(asked.model)
        if outline.id != asked.model_id:
            why = f"its model '{asked.model}' is {outline.id[:16]}…, yours {asked.model_id[:16]}…"
            raise Trouble(why, "give all machines the same files")
        work = Work.open(
            asked.terms, models, outline, _tokenizer(outline.checkpoint.path, outline.id)
        )
        for done in work.traces(jobs, lambda _: None):
            yield work.answer(done), work.event(done) if asked.records else None


def open_worker(asked: Asked) -> _Worker:
    """Gives what a client may use of this process; raises Trouble if that is of another build."""
    (ours, our_kernels), (theirs, their_kernels) = build(), asked.build
    if (ours, our_kernels) != (theirs, their_kernels):
        why = f"its llmtrace is {ours}, yours {theirs}" if ours != theirs else "its kernels differ"
        raise Trouble(why, "install the same llmtrace[cluster] on all machines")
    return _Worker(asked, _session().settings.network)


@functools.lru_cache(maxsize=1)  # the weights of another model go
def _models(model: str, draft: str | None, device: str | None, threads: int | None) -> Models:
    from llmtrace.cli.opening import Models

    return Models(_session(), None, device, threads)


atexit.register(_models.cache_clear)  # while there is still an interpreter to do it


@functools.lru_cache(maxsize=1)
def _tokenizer(folder: Path, _model_id: str) -> Tokenizer | None:
    from llmtrace.cli.work import tokenizer_of
    from llmtrace.model.checkpoint import Checkpoint

    return tokenizer_of(Checkpoint.open(folder))


def _store() -> Store:
    with _opening:
        return _claimed()


@functools.cache
def _claimed() -> Store:
    """Opens the store of this machine, or the first of its neighbours that no worker has."""
    from llmtrace.cli.opening import open_store
    from llmtrace.store import durable

    first = _session().settings.store
    for number in itertools.count(1):
        path = first if number == 1 else first.with_stem(f"{first.stem}-{number}")
        store = open_store(_session(path), create=True)
        if durable.claim(path / "llmtrace.worker"):
            return store
    raise AssertionError("numbers do not end")


def _session(store: Path | None = None) -> Session:
    from llmtrace.cli.frame import Session

    session = Session()
    session.quiet, session.store = True, str(store) if store else None
    return session
