"""How far float32 rounding can go: hides the error analysis of the kernels' sums.

A rounding is off by at most U of its result, and by U / sqrt(3) of it in the mean square. Where
few roundings follow one another their errors are added up at worst. Where there are many, they
are taken as independent, so their squares add up (the variance-based bound of V-ABFT), and a
bound is C deviations, beyond which a normal error is once in 10^15. Partial sums are bounded by
sums of absolute values, and these by the inequality of Cauchy and Schwarz. Nothing here was
fitted to measurements.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

U = 2.0**-24
C = 8.0
LANES = 32
TREE = 1 / 16 + 1 / 8 + 1 / 4 + 1 / 2 + 1
"""Roundings of the tree over 32 lanes: h sums of a level share 32 lanes, so each counts 1 / h."""
EXP = 1.79 * U
"""Relative error of our exp: 0.8913 ulp (``kernels/math.cuh``)."""


def variance(relative: float = 1.0) -> float:
    """Mean square of one rounding, relative to its result."""
    return (U * relative) ** 2 / 3


def dot(k: int) -> float:
    """Variance of a dot product of k terms by contract point 4, over the sum of their squares.

    Lanes have m = ceil(k / 32) terms: m roundings of a sum whose square is at most m times that of
    its terms; in the tree a sum of n terms is at most n times.
    """
    m = -(-k // LANES)
    return variance() * (m * m + TREE * k)


def worst_dot(k: int) -> float:
    """The most that a dot product of k terms errs, over the sum of their absolute values."""
    return (-(-k // LANES) + 6.01) * U


def norm_scale(x: np.ndarray, epsilon: float) -> tuple[np.ndarray, float]:
    """The scale of RMS norm in float64, of rows (N, C), and the most a kernel's may err of it.

    32 roundings in a lane, five in the tree, one a tile, a division and an addition: halved by the
    root, which is rounded as well.
    """
    import numpy as np

    width = x.shape[1]
    steps = min(LANES, -(-width // LANES)) + 5 + -(-width // 1024) + 2
    scale: np.ndarray = np.sqrt((np.asarray(x, np.float64) ** 2).mean(axis=1) + epsilon)
    return scale, (steps / 2 + 1.01) * U
