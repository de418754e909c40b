"""Verify: audit and replay commits."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING

import click

from llmtrace.cli.frame import Session, command
from llmtrace.cli.input import read_lines
from llmtrace.cli.output import plain
from llmtrace.errors import Trouble

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llmtrace.verify.judge import Verdict

STATUS = {"verified": 0, "differs": 1, "invalid": 1, "inconclusive": 3}


@command()
@click.argument("commits", nargs=-1, required=True, metavar="COMMIT...")
@click.option(
    "-m",
    "--model",
    metavar="NAME|DIR",
    help="Model to replay with (default: the one the record names).",
)
@click.option(
    "-d",
    "--device",
    metavar="auto|cpu|cuda[:N]",
    help="Where to replay; cannot move a bit (default: auto).",
)
@click.option(
    "--threads",
    type=click.IntRange(1, 1024),
    metavar="COUNT",
    help="CPU threads (default: all cores).",
)
def verify(
    session: Session,
    commits: tuple[str, ...],
    model: str | None,
    device: str | None,
    threads: int | None,
) -> int:
    r"""Replay recorded runs and compare them with their records

    COMMIT is any git revision of the store; '-' reads commit ids, the first
    word of each line of standard input. Prints one line a commit: verified,
    differs, invalid or inconclusive, the commit id and the reason.

    \b
    Examples:
        llmtrace verify HEAD
        llmtrace log | llmtrace verify -
    """
    from llmtrace.cli.opening import Models, open_store
    from llmtrace.verify.verify import verify as verify_

    store = open_store(session)
    models = Models(session, model, device, threads)
    worst = 0
    for revision in _revisions(commits):
        entry = store.read(revision)
        start = time.monotonic_ns()
        verdict = verify_(store, entry, models)
        _print(session, entry.id, verdict, (time.monotonic_ns() - start) // 1000)
        worst = max(worst, STATUS[verdict.verdict], key=(0, 3, 1).index)
        session.out.totals[verdict.verdict] = session.out.totals.get(verdict.verdict, 0) + 1
    return worst


def _revisions(commits: tuple[str, ...]) -> Iterator[str]:
    for commit in commits:
        if commit == "-":
            lines = list(read_lines("-"))
            if not lines:  # nothing checked must not read as all verified
                raise Trouble("no commit on standard input", "llmtrace log | llmtrace verify -")
            yield from (line.split()[0] for line in lines)
        else:
            yield commit


def _print(session: Session, commit: str, verdict: Verdict, elapsed: int) -> None:
    if session.out.json:
        difference = verdict.difference
        session.out.object(
            "verify",
            commit=commit,
            verdict=verdict.verdict,
            reason=verdict.reason,
            checked=list(verdict.checked),
            unchecked=list(verdict.unchecked),
            first_difference=dataclasses.asdict(difference) if difference else None,
            timings={"total_us": elapsed},
        )
    else:
        session.out.line(
            plain(f"{verdict.verdict} {commit}" + (f" {verdict.reason}" if verdict.reason else ""))
        )
