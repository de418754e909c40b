"""Beauty: how much of a point is said by how few. A proxy of interpretability, and called one.

B = max(0, (C - C0) / (1 - C0)), C = 1 - H / ln n: the bits saved when what carries the mass is
named, over those of naming it among equals. H is the entropy of energy shares x_i^2 / sum x^2
(C0 = 0.7296 / ln n, that of independent normal values), of an attention row or of a lens' softmax
(C0 = 0). B* leaves out what would win without meaning: dimensions among the 2 largest at every
position that was looked at, of at least 2; and position 0, on which sinks rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmtrace.probes import exact
from llmtrace.probes.records import HEAD_FIELDS, field

if TYPE_CHECKING:
    import numpy as np

CHANCE = 0.7296
"""Of n independent normal values: ln n less the entropy of their energy shares, in nats."""
ALONE, ALONE_SINGLE = 2.0**-32, 2.0**-10
"""Less mass than this beside what is left out counts as none, of float64 and of float32 shares:
what is left is a difference, and so little would be rounding."""


def beauty(entropy: np.ndarray, count: np.ndarray, chance: float = 0.0) -> np.ndarray:
    """Gives B of distributions over ``count`` things, of which ``chance`` is lost by chance."""
    import numpy as np

    room = exact.log(np.maximum(np.asarray(count, np.float64), 1.0))
    usable = room > chance
    wide = np.where(usable, room, 1.0)
    found = 1.0 - entropy / np.where(usable, wide - chance, 1.0)
    return np.asarray(np.where(usable, np.minimum(np.maximum(found, 0.0), 1.0), 0.0))


def without(
    entropy: np.ndarray, shares: np.ndarray, least: float = ALONE
) -> tuple[np.ndarray, np.ndarray]:
    """Leaves shares (..., k) out of distributions: the entropy of the rest, and its mass.

    H' = (H + sum s ln s) / (1 - sum s) + ln(1 - sum s); both 0 where less than ``least`` is left.
    """
    import numpy as np

    rest = 1.0 - exact.total(shares)
    some = rest > least
    held = np.where(some, rest, 1.0)
    known = exact.dot(shares, exact.log(np.where(shares > 0, shares, 1.0)))
    return np.where(
        some, np.maximum((entropy + known) / held + exact.log(held), 0.0), 0.0
    ), np.where(some, rest, 0.0)


def rows_beauty(heads: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gives B and B* of attention rows, (N, L, H) each, from head records (N, L, H, 8)."""
    import numpy as np

    entropy, sink = (field(heads, name, HEAD_FIELDS).astype("f8") for name in ("entropy", "sink"))
    visible = (positions + 1)[:, None, None]
    plain = np.where(visible > 1, beauty(entropy, visible), 0.0)
    left, mass = without(entropy, np.clip(sink, 0.0, 1.0)[..., None], ALONE_SINGLE)
    star = np.where((mass > 0) & (visible > 2), beauty(left, np.maximum(visible - 1, 1)), 0.0)
    return plain, star


class Energies:
    """Rows of points whose dimensions mean something by themselves, position by position."""

    def __init__(self) -> None:
        self._entropy: list[np.ndarray] = []
        self._share: list[np.ndarray] = []
        self._always: np.ndarray | None = None
        self._index: np.ndarray | None = None
        self._width = 0
        self._count = 0

    def add(self, rows: np.ndarray) -> None:
        """Takes rows (K, N, n) of K points at N more positions."""
        import numpy as np

        self._width = rows.shape[-1]
        shares = energy_shares(rows)
        self._entropy.append(np.where(shares.any(-1), exact.entropy(shares), np.nan))
        largest = _two_largest(shares)  # (K, N, 2)
        if self._index is None:
            self._index = largest[:, 0]
            self._always = np.ones(self._index.shape, bool)
        at = np.broadcast_to(self._index[:, None], (*rows.shape[:2], self._index.shape[-1]))
        self._share.append(np.take_along_axis(shares, at, -1))
        among = (largest[:, :, None, :] == self._index[:, None, :, None]).any(-1).all(1)
        self._always = self._always & among
        self._count += rows.shape[1]

    def scores(self) -> tuple[np.ndarray, np.ndarray]:
        """Gives B and B* of all, (K, positions) each; a zero row has none: 0."""
        import numpy as np

        entropy, share = np.concatenate(self._entropy, 1), np.concatenate(self._share, 1)
        zero = np.isnan(entropy)
        entropy = np.where(zero, 0.0, entropy)
        count = np.asarray(float(self._width))
        plain = np.where(zero, 0.0, beauty(entropy, count, CHANCE))
        assert self._always is not None
        fixed = self._always & (self._count > 1)  # (K, 2)
        left, mass = without(entropy, np.where(fixed[:, None], share, 0.0))
        rest = (count - fixed.sum(-1))[:, None]
        star = np.where(zero | (mass == 0), 0.0, beauty(left, np.maximum(rest, 1.0), CHANCE))
        return plain, star


def energy_shares(rows: np.ndarray) -> np.ndarray:
    """x_i^2 / sum x^2 of rows (..., n), in f64; zeros of a zero row."""
    import numpy as np

    square = rows.astype(np.float64) * rows
    energy = exact.total(square)[..., None]
    return np.asarray(square / np.where(energy > 0, energy, 1.0))


def _two_largest(shares: np.ndarray) -> np.ndarray:
    """Where the largest two stand, (..., 2) or (..., 1) of narrow rows; ties: the lowest first."""
    import numpy as np

    first = shares.argmax(-1)[..., None]
    if shares.shape[-1] < 2:
        return np.asarray(first)
    others = shares.copy()
    np.put_along_axis(others, first, -1.0, -1)
    return np.concatenate([first, others.argmax(-1)[..., None]], -1)
