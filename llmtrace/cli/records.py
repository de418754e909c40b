"""What log, show, diff and export share: a run of the store, its time, its model if it is here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmtrace.errors import Inconclusive, LlmtraceError

if TYPE_CHECKING:
    from llmtrace.cli.frame import Session
    from llmtrace.model.checkpoint import Checkpoint
    from llmtrace.verify.reading import Run


def open_run(session: Session, revision: str) -> Run:
    """Reads the run that a git revision names; raises Trouble for what is none."""
    from llmtrace.cli.opening import open_store
    from llmtrace.verify.reading import Run

    return Run.of(open_store(session).read(revision))


def utc(seconds: int) -> str:
    """A time as one word."""
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def checkpoint_of(session: Session, run: Run, named: str | None) -> Checkpoint | None:
    """The model of a run, if it is here; nothing of it is read but what tells who it is.

    ``named`` is what the user calls it: raises Inconclusive if that is another model. What
    the record calls it is a name here or nothing, never a folder.
    """
    from llmtrace.cli.opening import candidates
    from llmtrace.model.checkpoint import Checkpoint
    from llmtrace.model.identity import identify
    from llmtrace.model.registry import resolve, sample_folder

    settings = session.settings
    for name in candidates(session, named, run.model_name):
        try:
            checkpoint = Checkpoint.open(resolve(name, settings.models, sample_folder()))
            found = identify(checkpoint, settings.cache / "models")
        except LlmtraceError:
            if named:
                raise
            continue
        if found == run.claim.model:
            return checkpoint
        if named:
            why = f"the record needs model {run.claim.model[:16]}…, '{name}' is {found[:16]}…"
            raise Inconclusive(why, "see 'llmtrace model list'")
    return None
