"""Diff: two runs side by side, as their records tell them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from llmtrace.cli.frame import Session, command
from llmtrace.cli.output import plain

if TYPE_CHECKING:
    from llmtrace.verify.contrast import Difference, Distance
    from llmtrace.verify.reading import Run

WIDTH = 13  # of the names of stages


@command()
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option("-m", "--model", metavar="NAME|DIR", help="Model that tells the names of blocks.")
def diff(session: Session, a: str, b: str, model: str | None) -> int:
    r"""Compare two records

    A and B are git revisions of the store that hold runs. Computes nothing:
    compares what the records say, in the order in which data flows. Prints
    one line if they are the same, else where they part, and what differs.

    Exits 0 if both record the same run, 1 if they differ.

    \b
    Example:
        llmtrace diff HEAD~ HEAD
    """
    from llmtrace.cli.records import open_run
    from llmtrace.verify.contrast import ASKED, contrast, distances

    runs = (open_run(session, a), open_run(session, b))
    found, far = contrast(*runs), distances(*runs)
    named = [(each, *_point(session, runs, each, model)) for each in found]
    if session.out.json:
        session.out.object("diff", **_whole(runs, named, far))
    else:
        for line in _lines(runs, named, far):
            session.out.line(plain(line))
    if found and found[0].stage not in ASKED:
        ids = " ".join(run.id[:8] for run in runs)
        text = (
            f"both runs were asked for the same: 'llmtrace verify {ids}' says which record is true"
        )
        session.out.note(f"llmtrace: {text}")
    return 1 if found else 0


def _point(
    session: Session, runs: tuple[Run, Run], difference: Difference, model: str | None
) -> tuple[str | None, str | None]:
    """The names of the block and the point of a difference, if it has one and the model is here."""
    if difference.column is None:
        return None, None
    from llmtrace.blocks.llama import blocks
    from llmtrace.cli.records import checkpoint_of
    from llmtrace.errors import LlmtraceError
    from llmtrace.model.architecture import Architecture

    checkpoint = checkpoint_of(session, runs[0], model)
    if checkpoint is None:
        return None, None
    try:
        made = blocks(Architecture.of(checkpoint))
    except LlmtraceError:  # of a family that another llmtrace knows
        return None, None
    names = [(block.name, point.name) for block in made for point in block.points]
    if len(names) != len(runs[0].roots.points):
        return None, None
    return names[difference.column]


def _whole(
    runs: tuple[Run, Run],
    named: list[tuple[Difference, str | None, str | None]],
    far: list[Distance],
) -> dict[str, Any]:
    """The answer as one JSON object."""
    return {
        "commits": [run.id for run in runs],
        "checksums": [run.record.checksum for run in runs],
        "same": not named,
        "differences": [
            {
                "stage": each.stage,
                "a": each.a,
                "b": each.b,
                "index": each.index,
                "position": each.position,
                "column": each.column,
                "block": block,
                "point": point,
            }
            for each, block, point in named
        ],
        "features": [
            {
                "point": each.point or None,
                "feature": each.feature,
                "a": each.a.hex(),
                "b": each.b.hex(),
                "distance": each.distance.hex(),
            }
            for each in far
        ],
    }


def _lines(
    runs: tuple[Run, Run],
    named: list[tuple[Difference, str | None, str | None]],
    far: list[Distance],
) -> list[str]:
    if not named:
        return [f"same {runs[0].record.checksum}"]
    lines = [f"differs at {named[0][0].stage}"]
    lines += [f"{each.stage:{WIDTH}} {_text(each, block, point)}" for each, block, point in named]
    for feature in dict.fromkeys(each.feature for each in far):
        most = max(
            (each for each in far if each.feature == feature), key=lambda each: each.distance
        )
        where = f" at {most.point}" if most.point else ""
        text = f"{most.a:.6g} | {most.b:.6g}, distance {most.distance:.3g}{where}"
        lines.append(f"{feature:{WIDTH}} {text}")
    return lines


def _text(each: Difference, block: str | None, point: str | None) -> str:
    values = " | ".join("(none)" if value is None else _short(value) for value in (each.a, each.b))
    if each.stage == "activations":
        where = [] if each.position is None else [f"position {each.position}"]
        if block:
            where.append(f"{block} ({point})")
        elif each.column is not None:
            where.append(f"point {each.column}")
        return f"from {', '.join(where)} on" if where else values
    if each.index is None:
        return values
    drawn = f", drawn at position {each.position}" if each.stage == "output" else ""
    return f"token {each.index}{drawn}: {values}"


def _short(value: Any) -> str:
    """A value in a line; of digests the beginning."""
    text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 24 else text[:16] + "…"
