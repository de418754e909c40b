"""The numbers at a difference: what both sides say, what the law says, how far apart they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

    from llmtrace.engine.alone import Executed
    from llmtrace.verify.locate import Inside, Place

MOST = 8
"""Numbers of one point."""
POINTS = 3
"""Points of which numbers are given: those behind the first follow from it."""


@dataclass(frozen=True)
class Value:
    """One number: a token id or a float; None where a side does not tell it."""

    what: str
    """``kept``, ``sample``, ``logprob`` or ``token``."""
    point: str | None
    index: int
    """In the row of the point, or of the token in the output."""
    a: float | int | None
    b: float | int | None
    law: float | int | None

    def ulps(self, side: str) -> int | None:
        """How many float32 numbers a side (``a`` or ``b``) is away from the law."""
        told = self.a if side == "a" else self.b
        if self.what == "token" or told is None or self.law is None:
            return None
        return abs(_ordered(told) - _ordered(self.law))


def compared(
    place: Place,
    first_pick: int,
    told: tuple[Inside, ...],
    law: Inside | None = None,
    executed: Executed | None = None,
) -> tuple[Value, ...]:
    """The numbers at a place of which not all that tell them say the same."""
    sides = (*told, *([law] if law else []))
    found = list(_rows(place, first_pick, sides, executed))
    found += _samples(place, sides)
    index = place.position - first_pick
    if index >= 0:
        found += _drawn(index, sides)
    return tuple(found)


def _rows(
    place: Place, first_pick: int, sides: tuple[Inside, ...], executed: Executed | None
) -> Iterator[Value]:
    import numpy as np

    names = sorted({name for side in sides[:2] for name in side.kept}, key=_by_layer)
    if place.point in names:  # the first one that differs comes first
        names = [place.point, *(name for name in names if name != place.point)]
    points = 0
    for name in names:
        rows = [_row(side, name, place.position, first_pick, sides) for side in sides]
        alone = executed.rows.get(name) if executed else None
        if len(sides) == 3 and rows[2] is None:
            rows[2] = alone
        here = [row for row in rows if row is not None]
        if len(here) < 2 or len({row.shape for row in here}) > 1:
            continue
        bits = np.stack([row.view(np.uint32) for row in here])
        differ = np.flatnonzero((bits != bits[0]).any(axis=0))
        for index in differ[:MOST].tolist():
            yield Value("kept", name, index, *_three([_number(row, index) for row in rows]))
        points += bool(len(differ))
        if points == POINTS:
            return


def _row(
    side: Inside, name: str, position: int, first_pick: int, sides: tuple[Inside, ...]
) -> np.ndarray | None:
    tensor = side.kept.get(name)
    if tensor is None:
        return None
    fed = max(len(one.positions) for one in sides)
    row = position if len(tensor) == fed else position - first_pick
    found: np.ndarray | None = tensor[row] if 0 <= row < len(tensor) else None
    return found


def _samples(place: Place, sides: tuple[Inside, ...]) -> list[Value]:
    """Of the first point whose samples differ, those that do; a law may tell none."""
    for point in sides[0].samples:
        rows = [_sampled(side, point, place.position) for side in sides]
        here = [row for row in rows if row is not None]
        if len(here) < 2:
            continue
        found = [
            Value("sample", point, index, *_three([(row or {}).get(index) for row in rows]))
            for index in here[0]
            if len({row[index].hex() for row in here if index in row}) > 1
        ]
        if found:
            return found
    return []


def _sampled(side: Inside, point: str, position: int) -> dict[int, float] | None:
    sampled = side.samples.get(point)
    if sampled is None or position not in sampled.positions:
        return None
    row = sampled.positions.index(position)
    return dict(zip(sampled.indices[row].tolist(), sampled.values[row].tolist(), strict=True))


def _drawn(index: int, sides: tuple[Inside, ...]) -> Iterator[Value]:
    tokens = [side.output[index] if index < len(side.output) else None for side in sides]
    if len({token for side, token in zip(sides, tokens, strict=True) if side.output}) > 1:
        yield Value("token", None, index, *_three(tokens))
    logprobs = [_number(side.logprobs, index) for side in sides]
    if len({number.hex() for number in logprobs if number is not None}) > 1:
        yield Value("logprob", None, index, *_three(logprobs))


def _three(
    values: list[float | None] | list[int | None],
) -> tuple[float | int | None, float | int | None, float | int | None]:
    a, b, law = [*values, None, None][:3]
    return a, b, law


def _number(row: np.ndarray | None, index: int) -> float | None:
    return None if row is None or index >= len(row) else float(row[index])


def _ordered(number: float) -> int:
    """A float32 as an integer: neighbours are one apart, and both zeros are 0."""
    import struct

    bits: int = struct.unpack("<i", struct.pack("<f", number))[0]
    return bits if bits >= 0 else -(bits & 0x7FFFFFFF)


def _by_layer(name: str) -> tuple[int, str]:
    number = name.split(".")[1] if name.startswith("blocks.") else ""
    return (int(number) if number.isdigit() else -1, name)
