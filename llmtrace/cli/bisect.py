"""Bisect: two records of one job that disagree, and who is right."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmtrace.cli.caps import capped
from llmtrace.cli.frame import Session, command, threads
from llmtrace.cli.output import plain

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llmtrace.verify.bisect import Judgement
    from llmtrace.verify.locate import Place
    from llmtrace.verify.values import Value

STATUS = {"same": 0, "wrong": 1, "invalid": 1, "inconclusive": 3}
WIDTH = 9  # of the names of lines


@command()
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@capped
@click.option(
    "-m",
    "--model",
    metavar="NAME|DIR",
    help="Model to compute the law with (default: the one A names).",
)
@threads
def bisect(session: Session, a: str, b: str, **options: Any) -> int:
    r"""Find where two records of one job part, and say who is right

    A and B are git revisions of the store that hold runs of one job; B may be
    a file FILE.safetensors of claimed activations, by the names of points.
    Computes on the CPU what the law is, and executes the block at which they
    part alone.

    Exits 0 if both are the same, 1 if one is wrong, 3 where the model is not
    here.

    \b
    Example:
        llmtrace bisect HEAD~ HEAD
    """
    from llmtrace.cli.opening import Models, open_store
    from llmtrace.verify.bisect import bisect as bisect_
    from llmtrace.verify.caps import Caps
    from llmtrace.verify.claimed import SUFFIX, File

    models = Models(session, options["model"], "cpu", options["threads"])
    store = open_store(session)
    first = store.read(a)
    is_file = b.endswith(SUFFIX)
    second = File(Path(b)) if is_file else store.read(b)
    caps = Caps(options["max_tokens"], options["max_memory"], options["max_seconds"])
    found = bisect_(store, first, second, models, caps)
    names = {"A": first.id, "B": b if isinstance(second, File) else second.id}
    if session.out.json:
        session.out.object("bisect", **_whole(found, names))
    else:
        for line in _lines(found, names):
            session.out.line(plain(line))
    return STATUS[found.judgement]


def _whole(found: Judgement, names: dict[str, str]) -> dict[str, Any]:
    """The answer as one JSON object."""
    place, executed = found.place, found.executed
    return {
        "a": names["A"],
        "b": names["B"],
        "judgement": found.judgement,
        "reason": found.reason,
        "wrong": list(found.wrong),
        "position": place.position if place else None,
        "token": found.token,
        "layer": place.layer if place else None,
        "block": place.block if place else None,
        "point": place.point if place else None,
        "column": place.column if place else None,
        "certainty": _certainty(place),
        "executed": {
            "block": executed.block,
            "digests": executed.digests,
            "token": executed.token,
            "logprob": None if executed.logprob is None else executed.logprob.hex(),
        }
        if executed
        else None,
        "values": [
            {
                "what": value.what,
                "point": value.point,
                "index": value.index,
                "a": _exact(value.a),
                "b": _exact(value.b),
                "law": _exact(value.law),
                "ulps_a": value.ulps("a"),
                "ulps_b": value.ulps("b"),
            }
            for value in found.values
        ],
    }


def _certainty(place: Place | None) -> str | None:
    if place is None or (place.block is None and place.column is None):
        return None
    return "exact" if place.is_exact else "candidate"


def _exact(number: float | int | None) -> str | int | None:
    return number.hex() if isinstance(number, float) else number


def _lines(found: Judgement, names: dict[str, str]) -> Iterator[str]:
    if found.judgement == "same":
        yield f"same {names['A']} {names['B']}"
        return
    if found.judgement == "inconclusive":
        yield f"inconclusive {names['A']} {names['B']}"
    for side in found.wrong:
        yield f"{found.judgement} {side} {names[side]}"
    if found.reason:
        yield f"{'reason':{WIDTH}} {found.reason}"
    if found.place:
        yield f"{'position':{WIDTH}} {found.place.position}{_drawn(found)}"
        yield from _block(found.place)
    if found.executed:
        yield from _executed(found)
    for value in found.values:
        yield f"{value.what:{WIDTH}} {_value(value)}"


def _drawn(found: Judgement) -> str:
    return "" if found.token is None else f", which draws token {found.token} of the output"


def _block(place: Place) -> Iterator[str]:
    if place.layer is not None:
        yield f"{'layer':{WIDTH}} {place.layer}, exact"
    if place.block:
        point = f" ({place.point})" if place.point else ""
        yield f"{'block':{WIDTH}} {place.block}{point}, {_certainty(place)}"
    elif place.column is not None:
        yield f"{'point':{WIDTH}} {place.column}, {_certainty(place)}"


def _executed(found: Judgement) -> Iterator[str]:
    assert found.executed is not None
    executed = found.executed
    gave = [f"{name} {digest[:16]}…" for name, digest in executed.digests.items()]
    if executed.token is not None:
        gave = [f"token {executed.token}"]
    right = " and ".join(side for side in "AB" if side not in found.wrong)
    agree = f", as in {right}" if right else ", which neither has"
    yield f"{'executed':{WIDTH}} {executed.block} alone gives {', '.join(gave)}{agree}"


def _value(value: Value) -> str:
    where = f"[{value.index}]" if value.point is None else f"{value.point}[{value.index}]"
    told = [("A", value.a, value.ulps("a")), ("B", value.b, value.ulps("b"))]
    text = ", ".join(
        f"{side} {_short(number)}" + (f" ({ulps} ulp away)" if ulps else "")
        for side, number, ulps in told
        if number is not None
    )
    return f"{where} {text}" + ("" if value.law is None else f", the law {_short(value.law)}")


def _short(number: float | int) -> str:
    return f"{number:.9g}" if isinstance(number, float) else str(number)
