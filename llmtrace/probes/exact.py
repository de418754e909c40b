"""Float64 that is the same on every machine: how sums are ordered and logarithms made.

numpy adds in an order of its own and takes logarithms from libm: neither may stand in a
record. Here a sum is a fixed tree, and ``log`` and ``exp`` are made of additions,
multiplications, divisions and integers alone, each of which IEEE-754 rounds in one way.
Nothing else of numpy is used on floats than element-wise + - * / sqrt, comparisons,
selections and conversions. Inputs are widened to float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

Q16 = 1 << 16
"""One, in fixed point with 16 bits behind the point."""
LARGEST = float.fromhex("0x1.fffffep+127")
"""The largest float32."""
NORMAL_975 = float.fromhex("0x1.f5c0331eeff82p+0")
"""The 97.5 % point of the normal distribution: 1.95996."""
PIECE = 1 << 13
"""Values of which a logarithm or an exponential is made at a time."""
STUDENT_975 = (
    *(12.706205, 4.302653, 3.182446, 2.776445, 2.570582, 2.446912, 2.364624, 2.306004, 2.262157),
    *(2.228139, 2.200985, 2.178813, 2.160369, 2.144787, 2.131450, 2.119905, 2.109816, 2.100922),
    *(2.093024, 2.085963, 2.079614, 2.073873, 2.068658, 2.063899, 2.059539, 2.055529, 2.051831),
    *(2.048407, 2.045230, 2.042272),
)
"""The 97.5 % point of Student's t with 1 to 30 degrees of freedom."""

_LARGEST_64 = float.fromhex("0x1.fffffffffffffp+1023")
_LN2_HIGH = float.fromhex("0x1.62e42fefp-1")  # 32 bits: its multiples up to 2^11 are exact
_LN2_LOW = float.fromhex("0x1.473de6af278edp-34")
_INVERSE_LN2 = float.fromhex("0x1.71547652b82fep+0")
_INVERSE_LN2_LOW = float.fromhex("0x1.777d0ffda0d24p-56")
_ROOT_HALF = 0x3FE6A09E667F3BCD  # the bits of sqrt(1/2)
_MANTISSA = (1 << 52) - 1
_ATANH = tuple(  # of s^14 ... s^2: minimax for (2 atanh s - 2 s) / s, right to 2^-59 of a logarithm
    float.fromhex(word)
    for word in (
        *("0x1.2f056395f5a67p-3", "0x1.39a1bab2e7e3cp-3", "0x1.74663ee8bc916p-3"),
        *("0x1.c71c52095abb5p-3", "0x1.24924941f1295p-2", "0x1.999999997fdb7p-2"),
        "0x1.5555555555592p-1",
    )
)
_EXP = tuple(1.0 / math.factorial(k) for k in range(13, 1, -1))  # of r^11 ... r^0


def total(x: npt.ArrayLike, axis: int = -1) -> Floats:
    """Sums along an axis: halves are added to each other, zero-padded to a power of two."""
    import numpy as np

    part = np.moveaxis(np.asarray(x, np.float64), axis, 0)
    width = 1 << max(len(part) - 1, 0).bit_length()
    if not len(part):
        return np.zeros(part.shape[1:])
    while width > 1:
        width //= 2
        low, high = part[:width], part[width:]
        part = low + 0.0 if len(high) < width else low + high
        if len(high) < width:  # what has no partner is added to a zero
            part[: len(high)] += high
    return np.asarray(part[0] + 0.0)


def mean(x: npt.ArrayLike, axis: int = -1) -> Floats:
    """``total`` divided by the number of values; 0 of none."""
    import numpy as np

    array = np.asarray(x, np.float64)
    return np.asarray(total(array, axis) / max(array.shape[axis], 1))


def dot(a: npt.ArrayLike, b: npt.ArrayLike, axis: int = -1) -> Floats:
    """Sums the products, each rounded, as ``total`` does; shapes broadcast."""
    import numpy as np

    return total(np.asarray(a, np.float64) * np.asarray(b, np.float64), axis)


def log(x: npt.ArrayLike) -> Floats:
    """Natural logarithm, within 1 ulp: -inf of ±0, NaN of what is negative."""
    return _by_pieces(_log, x)


def _log(value: Floats) -> Floats:
    k, f, minus, usual = _reduced(value)
    minus -= k * _LN2_LOW
    minus -= f
    k *= _LN2_HIGH
    k -= minus
    return _with_edges(k, usual, value)


def log2(x: npt.ArrayLike) -> Floats:
    """Logarithm to base 2, within 2 ulp, exact for powers of two; edges as ``log``."""
    return _by_pieces(_log2, x)


def _log2(value: Floats) -> Floats:
    k, f, minus, usual = _reduced(value)
    f -= minus
    k += f * _INVERSE_LN2 + f * _INVERSE_LN2_LOW
    return _with_edges(k, usual, value)


def _by_pieces(f: Callable[[Floats], Floats], x: npt.ArrayLike) -> Floats:
    """What ``f`` gives element by element, so many at a time that what it makes stays near."""
    import numpy as np

    value = np.asarray(x, np.float64)
    flat, found = value.reshape(-1), np.empty(value.size)
    for begin in range(0, value.size, PIECE):
        found[begin : begin + PIECE] = f(flat[begin : begin + PIECE])
    return found.reshape(value.shape)


def _reduced(value: Floats) -> tuple[Floats, Floats, Floats, npt.NDArray[np.bool_] | None]:
    """Splits x = 2^k m, m from sqrt(1/2) to sqrt(2): k, f = m - 1, and f - ln m.

    With s = f / (2 + f): ln m = 2 atanh s = f - (f^2/2 - s (f^2/2 + R)), where R is near
    2 s^2/3 + 2 s^4/5: f is exact, so only what is small is rounded. And which values have a
    logarithm, None if all have and are normal.
    """
    import numpy as np

    usual, scaled, extra = None, value, None
    if not (value.min() >= 2.0**-1022 and value.max() <= _LARGEST_64):
        # what is subnormal is made normal, what has no logarithm is 1
        normal = (value >= 2.0**-1022) & (value <= _LARGEST_64)
        tiny = (value > 0) & (value < 2.0**-1022)
        scaled = np.where(normal, value, np.where(tiny, value.clip(0, 1) * 2.0**54, 1.0))
        usual, extra = normal | tiny, np.where(tiny, 54.0, 0.0)
    bits = scaled.view(np.int64) - _ROOT_HALF
    k = (bits >> 52).astype(np.float64)
    if extra is not None:
        k -= extra
    bits &= _MANTISSA
    bits += _ROOT_HALF
    f = bits.view(np.float64)
    f -= 1.0
    s = 2.0 + f
    np.divide(f, s, out=s)
    z = s * s
    r = z * _ATANH[0]
    for coefficient in _ATANH[1:]:
        r += coefficient
        r *= z
    half = 0.5 * f
    half *= f
    r += half
    r *= s
    half -= r
    return k, f, half, usual


def _with_edges(found: Floats, usual: npt.NDArray[np.bool_] | None, value: Floats) -> Floats:
    import numpy as np

    found += 0.0
    if usual is None:
        return found
    edge = np.where(value == 0, -np.inf, np.where(value > 0, np.inf, np.nan))
    return np.asarray(np.where(usual, found, edge))


def exp(x: npt.ArrayLike) -> Floats:
    """Exponential, within 1 ulp: 0 and inf where the result has no other name; NaN of NaN."""
    return _by_pieces(_exp, x)


def _exp(value: Floats) -> Floats:
    import numpy as np

    usual, v = None, value
    if not (value.min() > -708.0 and value.max() < 709.0):  # else some are subnormal, or inf
        usual = (value > -746.0) & (value < 710.0)
        v = np.where(usual, value, 0.0)
    k = v * _INVERSE_LN2
    np.rint(k, out=k)
    lost = v - k * _LN2_HIGH
    low = k * _LN2_LOW
    r = lost - low
    lost -= r
    lost -= low
    q = r * _EXP[0]
    for coefficient in _EXP[1:-1]:
        q += coefficient
        q *= r
    q += _EXP[-1]
    y = r * r
    y *= q
    y += lost
    y += r
    y += 1.0
    whole = k.astype(np.int64)
    if usual is None:  # a normal result is y times a power of two, exactly
        y *= _power(whole)
        return y
    first = whole >> 1  # two factors: one alone may be beyond what has a name
    with np.errstate(over="ignore", under="ignore"):
        y = (y * _power(first)) * _power(whole - first)
    edge = np.where(value > 0, np.inf, np.where(value < 0, 0.0, np.nan))
    return np.asarray(np.where(usual, y, edge))


def _power(k: npt.NDArray[np.int64]) -> Floats:
    """2^k for -1023 < k < 1024."""
    import numpy as np

    return ((k + 1023) << 52).view(np.float64)


def entropy(shares: npt.ArrayLike, axis: int = -1) -> Floats:
    """-sum p ln p in nats, where 0 ln 0 is 0."""
    import numpy as np

    p = np.asarray(shares, np.float64)
    return 0.0 - dot(p, log(np.where(p > 0, p, 1.0)), axis)


def logsumexp(x: npt.ArrayLike, axis: int = -1) -> Floats:
    """The logarithm of a sum of exp, from the largest down."""
    import numpy as np

    value = np.asarray(x, np.float64)
    top = value.max(axis=axis, keepdims=True)
    return np.asarray(np.squeeze(top, axis) + log(total(exp(value - top), axis)))


def softmax(x: npt.ArrayLike, axis: int = -1) -> Floats:
    """Shares that sum to one: exp over the sum of exp."""
    import numpy as np

    value = np.asarray(x, np.float64)
    e = exp(value - value.max(axis=axis, keepdims=True))
    return np.asarray(e / np.expand_dims(total(e, axis), axis))


@dataclass(frozen=True)
class Spread:
    """A mean of n values and its 95 % interval."""

    mean: float
    low: float
    high: float
    n: int


def spread(values: npt.ArrayLike) -> Spread:
    """Gives the mean and its 95 % interval; raises ValueError of no values.

    The interval is mean ± t sqrt(v / n), v = sum (x - mean)^2 / (n - 1), t the 97.5 % point of
    Student's t with n - 1 degrees of freedom. One value tells nothing of its spread: low and
    high are the mean then, and n is 1.
    """
    import numpy as np

    x = np.asarray(values, np.float64).reshape(-1)
    if not len(x):
        raise ValueError("no values")
    middle = float(total(x)) / len(x)
    off = x - middle
    half = half_width(float(dot(off, off)), len(x))
    return Spread(middle, middle - half, middle + half, len(x))


def half_width(squares: float, n: int) -> float:
    """Half of the 95 % interval of a mean, of the sum of squared deviations from it."""
    return student_975(n - 1) * math.sqrt(max(squares, 0.0) / (n - 1) / n) if n > 1 else 0.0


def student_975(freedom: int) -> float:
    """The 97.5 % point of Student's t.

    Tabled up to 30 degrees of freedom v, beyond by z + (z^3 + z) / 4v
    + (5 z^5 + 16 z^3 + 3 z) / 96v^2 + (3 z^7 + 19 z^5 + 17 z^3 - 15 z) / 384v^3
    (Fisher and Cornish 1960; Abramowitz and Stegun 26.7.5), right to six digits.
    """
    if freedom <= len(STUDENT_975):
        return STUDENT_975[freedom - 1]
    z, v = NORMAL_975, float(freedom)
    z2 = z * z
    first = z * (z2 + 1.0) / 4.0
    second = z * ((5.0 * z2 + 16.0) * z2 + 3.0) / 96.0
    third = z * (((3.0 * z2 + 19.0) * z2 + 17.0) * z2 - 15.0) / 384.0
    return z + first / v + second / (v * v) + third / (v * v * v)


def ranks(x: npt.ArrayLike) -> Floats:
    """Ranks from 1 up; equal values share the mean of theirs."""
    import numpy as np

    value = np.asarray(x, np.float64).reshape(-1)
    ordered = np.sort(value)
    below = np.searchsorted(ordered, value, "left")
    upto = np.searchsorted(ordered, value, "right")
    return np.asarray((below + upto + 1) / 2.0)


def spearman(x: npt.ArrayLike, y: npt.ArrayLike) -> Spread:
    """Spearman's rank correlation and its 95 % interval; raises ValueError of fewer than 2 pairs.

    The correlation r of the ranks (Spearman 1904); 0 where one side is constant. The interval
    is tanh(atanh r ± 1.96 sqrt((1 + r^2 / 2) / (n - 3))) (Bonett and Wright 2000), with |r|
    taken as at most 1 - 1 / n^2, and all from -1 to 1 of fewer than 4 pairs.
    """
    a, b = ranks(x), ranks(y)
    n = len(a)
    if n < 2 or n != len(b):
        raise ValueError(f"{n} and {len(b)} values are no pairs")
    middle = (n + 1) / 2
    a, b = a - middle, b - middle
    scale = math.sqrt(float(dot(a, a)) * float(dot(b, b)))
    r = min(max(float(dot(a, b)) / scale, -1.0), 1.0) if scale else 0.0
    if n < 4:
        return Spread(r, -1.0, 1.0, n)
    near = min(max(r, 1.0 / n**2 - 1.0), 1.0 - 1.0 / n**2)
    z = 0.5 * float(log((1.0 + near) / (1.0 - near)))
    half = NORMAL_975 * math.sqrt((1.0 + near * near / 2.0) / (n - 3))
    low, high = (1.0 - 2.0 / (float(exp(2.0 * end)) + 1.0) for end in (z - half, z + half))
    return Spread(r, min(low, r), max(high, r), n)


def q16(x: float) -> int:
    """A share as an integer of 2^-16, halves upward; what is outside 0 to 1 is moved there."""
    return math.floor(min(max(x, 0.0), 1.0) * Q16 + 0.5)


def hex32(x: float) -> str:
    """The float32 nearest to x as a hexadecimal float without zeros at its end: 0x1.8p+1.

    What is beyond the largest float32 is that, so that every number has a name; NaN is ``nan``.
    """
    import numpy as np

    value = float(x)
    if math.isnan(value):
        return "nan"
    nearest = float(np.float32(min(max(value, -LARGEST), LARGEST)))
    text, _, exponent = nearest.hex().partition("p")
    return f"{text.rstrip('0').removesuffix('.')}p{exponent}"
