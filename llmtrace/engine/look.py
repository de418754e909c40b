"""Looking at runs that are at their end: chosen positions are fed again, and every row is read.

The cache still holds all of them, so the same bits come out.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from llmtrace.engine.feed import feed_again
from llmtrace.engine.inside import Inside
from llmtrace.engine.request import finish

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llmtrace.blocks.plan import Plan
    from llmtrace.engine.inside import Cached
    from llmtrace.engine.sequence import Sequence


def look(plan: Plan, sequences: list[Sequence], table_of: dict[int, int]) -> None:
    """Tells the observers of the sequences of the positions that they want to look at."""
    places = [(s, position) for s in sequences if s.observer for position in s.observer.wanted()]
    size = min(plan.limits.looked, plan.limits.rows, plan.limits.picks)
    for begin in range(0, len(places), size):
        for sequence, inside in _insides(plan, places[begin : begin + size], table_of):
            assert sequence.observer
            sequence.observer.looked(inside)


def _insides(
    plan: Plan, places: list[tuple[Sequence, int]], table_of: dict[int, int]
) -> Iterator[tuple[Sequence, Inside]]:
    """Feeds them together; gives what there is of each sequence."""
    import numpy as np

    rows = plan.look(feed_again(places, table_of))
    found = {
        name: plan.device.download(plan.results[name][: len(places)])
        for name in ("records", "heads", "drawn")
    }
    picked = {point.name for point in plan.points[plan.inner :]}
    at = drew = 0
    for sequence, group in groupby(places, key=lambda place: place[0]):
        positions = [position for _, position in group]
        first = len(sequence.request.prompt) - 1
        here = slice(at, at + len(positions))
        there = slice(drew, drew + sum(position >= first for position in positions))
        at, drew = here.stop, there.stop
        yield (
            sequence,
            Inside(
                plan.architecture,
                np.array(sequence.known[: sequence.fed], np.int64),
                tuple(finish(sequence.drawn, sequence.request)[0]),
                first,
                np.array(positions, np.int64),
                {name: each[there if name in picked else here] for name, each in rows.items()},
                found["heads"][here],
                found["drawn"][there],
                found["records"][here, : plan.inner],
                found["records"][there, plan.inner :],
                _cache(plan, sequence),
            ),
        )


def _cache(plan: Plan, sequence: Sequence) -> Cached:
    return lambda layer, groups=None: plan.cached(layer, sequence.tile0, sequence.fed, groups)
