"""Looking at a run when it is at its end: chosen positions are fed again, and every row is read.

The cache still holds all of the run, so the same bits come out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmtrace.blocks.arrays import LOOKED
from llmtrace.engine.feed import feed_again
from llmtrace.engine.inside import Inside
from llmtrace.engine.request import finish

if TYPE_CHECKING:
    from llmtrace.blocks.plan import Plan
    from llmtrace.engine.sequence import Sequence


def look(plan: Plan, sequence: Sequence, table_of: dict[int, int]) -> None:
    """Tells the sequence's observer, if it has one, of the positions that it wants to look at."""
    import numpy as np

    observer = sequence.observer
    if observer is None:
        return
    wanted, size = observer.wanted(), min(LOOKED, plan.limits.rows)
    size = min(size, plan.limits.picks)
    for begin in range(0, len(wanted), size):
        positions = wanted[begin : begin + size]
        again = feed_again(sequence, positions, table_of)
        looked = plan.look(again)
        results = {
            name: plan.device.download(plan.results[name][: len(positions)])
            for name in ("records", "heads", "drawn")
        }
        picks = slice(len(again["pick"]))
        observer.looked(
            Inside(
                plan.architecture,
                np.array(sequence.known[: sequence.fed], np.int64),
                tuple(finish(sequence.drawn, sequence.request)[0]),
                len(sequence.request.prompt) - 1,
                np.array(positions, np.int64),
                looked,
                results["heads"],
                results["drawn"][picks],
                results["records"][:, : plan.inner],
                results["records"][picks, plan.inner :],
                lambda layer: plan.cached(layer, sequence.tile0, sequence.fed),
            )
        )
