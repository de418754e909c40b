"""Which positions of a run are looked at, where that is not all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

MOST = 64
"""Positions that are looked at unless asked otherwise."""


def spread(total: int, first_pick: int, logprobs: np.ndarray | None, most: int = MOST) -> list[int]:
    """Gives at most so many positions, ascending: all if they are few enough.

    Else the last, the one that drew the least certain token (if ``logprobs`` (G,) are known) and
    the first, as far as there is room, and the rest evenly between them.
    """
    if total <= most:
        return list(range(total))
    wanted = [total - 1]
    if logprobs is not None and len(logprobs):
        wanted.append(first_pick + int(logprobs.argmin()))
    wanted.append(0)
    chosen = set(wanted[:most])
    free = most - len(chosen)
    chosen |= {(i + 1) * (total - 1) // (free + 1) for i in range(free)}
    return sorted(chosen)
