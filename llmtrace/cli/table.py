"""Tables for people: facts one below the other, numbers in columns, values with intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from llmtrace.probes.exact import Spread

WIDEST = 24  # characters of a key that others chose
MOST_COLUMNS = 6


def facts(told: Mapping[str, str], before: str = "") -> list[str]:
    """A line for each fact, the names in one column."""
    width = min(max(map(len, told), default=0), WIDEST)
    return [f"{before}{key:{width}}  {text}" for key, text in told.items()]


def columns(
    names: Sequence[str],
    rows: Sequence[tuple[str, Sequence[float | None]]],
    *,
    before: str = "",
    cell: int = 12,
    digits: int = 6,
) -> Iterator[str]:
    """Named rows of numbers under the names of their columns, six at a time; None is ``-``."""
    width = max((len(name) for name, _ in rows), default=0)
    for begin in range(0, len(names), MOST_COLUMNS):
        here = slice(begin, begin + MOST_COLUMNS)
        yield ""
        yield f"{before}{'':{width}}" + "".join(f" {name:>{cell}}" for name in names[here])
        for name, values in rows:
            cells = (
                f"{'-':>{cell}}" if value is None else f"{value:>{cell}.{digits}g}"
                for value in values[here]
            )
            yield f"{before}{name:{width}} " + " ".join(cells)


def interval(spread: Spread) -> str:
    """A mean, its interval and the number of values, as ``0.991 [0.989, 0.993], n = 42``."""
    mean, low, high = (f"{x:.4g}" for x in (spread.mean, spread.low, spread.high))
    return f"{mean} [{low}, {high}], n = {spread.n}"
