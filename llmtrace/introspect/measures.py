"""What a probe measures of a row, computed again in float64 from rows that anybody made.

Hides how `kernels/probe.cu` draws signs and sums. Values, not bits: what is made here and what
the kernel made are a few roundings apart. A sketch is linear in its row as long as its
unit is given, so the difference of two sketches is the sketch of the difference.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from llmtrace.probes import exact

if TYPE_CHECKING:
    import numpy as np

BUCKETS = 4
LARGEST = 65504.0
"""Of f16."""
_GOLDEN = 0x9E3779B97F4A7C15


@dataclass(frozen=True)
class Moments:
    """Statistics of N rows of n values, each (N,) f64."""

    rms: np.ndarray
    mean: np.ndarray
    l1: np.ndarray
    """Sum of magnitudes."""
    absmax: np.ndarray
    entropy: np.ndarray
    """Of the shares of energy, in nats; 0 of a row of zeros."""

    def at(self, rows: np.ndarray) -> Moments:
        """The statistics of some of the rows."""
        return Moments(*(getattr(self, each.name)[rows] for each in fields(self)))


def moments(rows: np.ndarray) -> Moments:
    """Measures rows (N, n) f64."""
    import numpy as np

    size, square = np.abs(rows), rows * rows
    energy, mean_square = square.sum(1), square.mean(1)
    some = np.where(energy > 0, energy, 1.0)
    share = square / some[:, None]
    entropy = -(share * np.log(np.where(share > 0, share, 1.0))).sum(1)
    return Moments(
        np.sqrt(mean_square),
        rows.mean(1),
        size.sum(1),
        size.max(1),
        np.maximum(entropy, 0.0),
    )


def largest(rows: np.ndarray) -> np.ndarray:
    """Where the 4 largest magnitudes of rows (N, n) stand: (N, 4) i64, the lowest of equal ones.

    A row of fewer than 4 repeats index 0.
    """
    import numpy as np

    size = np.abs(rows)
    found = np.zeros((len(rows), 4), np.int64)
    for k in range(4):
        found[:, k] = size.argmax(axis=1)
        np.put_along_axis(size, found[:, k : k + 1], -1, axis=1)
    return found


def counts(rows: np.ndarray, l1: np.ndarray) -> np.ndarray:
    """Counts in rows (N, n) f32: zero or subnormal, saturated, small, outside: (N, 4).

    ``l1`` (N,) f32 says what is outside: beyond twice the mean magnitude.
    """
    import numpy as np

    size = np.abs(rows)
    bounds = (
        size < np.float32(2.0**-126),
        size > np.float32(LARGEST),
        size < size.max(axis=1, keepdims=True) * np.float32(2.0**-10),
        size > (np.float32(2) * (l1.astype(np.float32) / np.float32(rows.shape[1])))[:, None],
    )
    return np.stack([found.sum(axis=1) for found in bounds], axis=1)


def pattern(p: np.ndarray, at: np.ndarray) -> dict[str, np.ndarray]:
    """What a head record says of attention rows p (N, T) f64 at positions (N,), (N,) each.

    Rows sum to one and are 0 beyond their position. Of a fixed order, unlike ``moments``.
    """
    import numpy as np

    row = np.arange(len(p))
    return {
        "entropy": exact.entropy(p),
        "sink": p[:, 0],
        "self": p[row, at],
        "previous": np.where(at > 0, p[row, np.maximum(at - 1, 0)], 0.0),
        "distance": exact.dot(p, at[:, None] - np.arange(p.shape[1])),
    }


def signs(seed: int, column: int, width: int) -> np.ndarray:
    """The signs of the linear and the clipped sketch: (2, n) f64 of +1 and -1."""
    import numpy as np

    chunks = np.arange(1, -(-width // 32) + 1, dtype=np.uint64)
    z = np.uint64(seed) + np.uint64(_GOLDEN) * (np.uint64(column << 32) | chunks)  # splitmix64
    z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    bits = np.stack((z & np.uint64(0xFFFFFFFF), z >> np.uint64(32))).astype(np.uint32)
    one = bits[:, :, None] >> np.arange(32, dtype=np.uint32) & np.uint32(1)
    flat: np.ndarray = 1.0 - 2.0 * one.reshape(2, -1)[:, :width]
    return flat


def sketch(rows: np.ndarray, sign: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """Four signed sums of each row: (N, 4) f64 of rows (N, n), signs (n,) and units (N,).

    Sum b is over the columns c with (c mod 32) / 8 = b, divided by unit sqrt(n / 4); 0 where the
    unit is. Its square is an unbiased estimate of the mean square of the row in units, as signs
    are independent (Alon, Matias and Szegedy 1996).
    """
    import numpy as np

    width = rows.shape[1]
    signed = np.zeros((len(rows), -(-width // 32) * 32))
    signed[:, :width] = rows * sign
    sums = signed.reshape(len(rows), -1, BUCKETS, 8).sum((1, 3))
    wide = unit * (width / BUCKETS) ** 0.5
    found: np.ndarray = np.where(wide > 0, 1.0, 0.0)[:, None] * sums
    return found / np.where(wide > 0, wide, 1.0)[:, None]


def clip_bound(l1: np.ndarray, width: int) -> np.ndarray:
    """The bound at which the clipped sketch clips: twice the mean magnitude."""
    return 2.0 * l1 / width
