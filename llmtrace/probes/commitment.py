"""The commitment to the inside: from the digests of rows to one root.

``digest[t][p]`` is BLAKE3 over the little-endian float32 row of point p at position t. A
position's root is BLAKE3 over the digests of its points in block order; a point's root is
BLAKE3 over its digests in order of position. Points behind the prompt's inner positions
(final norm, logits) exist only where logits do. The root of the activations is BLAKE3 over
all position roots, then all point roots.

The first differing position root decides the position; the first differing point root is
the candidate for the block (exact for a single fault). Leaves, which a record may hold as
well, decide the layer: one a position and group of points, where the groups are what stands
before the layers, each layer, and what stands behind them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

STORED = 16
"""Bytes of each root and each leaf that a record stores."""


@dataclass(frozen=True)
class Commitment:
    """Roots of 32 bytes: one a position, one a point; and the root over them."""

    positions: tuple[bytes, ...]
    points: tuple[bytes, ...]
    root: bytes

    def stored(self) -> bytes:
        """Gives ``digests.bin``: the roots of positions, then of points, 16 bytes each."""
        return b"".join(root[:STORED] for root in (*self.positions, *self.points))


def commit(digests: np.ndarray, pick_digests: np.ndarray) -> Commitment:
    """Computes the roots.

    digests       (T, P, 8) u32: points that exist at every fed position
    pick_digests  (G, Q, 8) u32: points that exist at the last G positions only
    """
    from blake3 import blake3

    inner = len(digests) - len(pick_digests)
    positions = []
    for t in range(len(digests)):
        row = digests[t].tobytes()
        if t >= inner:
            row += pick_digests[t - inner].tobytes()
        positions.append(blake3(row).digest())
    points = [
        blake3(part[:, p].tobytes()).digest()
        for part in (digests, pick_digests)
        for p in range(part.shape[1])
    ]
    return Commitment(
        tuple(positions), tuple(points), blake3(b"".join(positions + points)).digest()
    )


def group(point: str, layers: int) -> int:
    """Gives the group of a point: 0 before the layers, l + 1 in layer l, layers + 1 behind them."""
    if point.startswith("blocks."):
        return int(point.split(".")[1]) + 1
    return 0 if point == "hook_embed" else layers + 1


def leaves(digests: np.ndarray, pick_digests: np.ndarray, groups: Sequence[int]) -> bytes:
    """Gives ``leaves.bin``: for each position a leaf of each group, 16 bytes each.

    A leaf is BLAKE3 over the digests of the group's points at that position, in block order;
    ``groups`` are those of the points, ascending, up to the one behind the layers. Arrays as
    in ``commit``.
    """
    from bisect import bisect_left
    from itertools import pairwise

    from blake3 import blake3

    inner = len(digests) - len(pick_digests)
    ends = [32 * bisect_left(groups, g) for g in range(groups[-1] + 2)]
    made = []
    for t in range(len(digests)):
        row = digests[t].tobytes()
        if t >= inner:
            row += pick_digests[t - inner].tobytes()
        made += [blake3(row[begin:end]).digest(STORED) for begin, end in pairwise(ends)]
    return b"".join(made)
