"""The commitment to the inside: from the digests of rows to one root.

``digest[t][p]`` is BLAKE3 over the little-endian float32 row of point p at position t. A
position's root is BLAKE3 over the digests of its points in block order; a point's root is
BLAKE3 over its digests in order of position. Points behind the prompt's inner positions
(final norm, logits) exist only where logits do. The root of the activations is BLAKE3 over
all position roots, then all point roots.

The first differing position root decides the position; the first differing point root is
the candidate for the block (exact for a single fault).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

STORED = 16
"""Bytes of each root that a record stores."""


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
