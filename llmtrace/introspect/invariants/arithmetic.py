"""The contract's arithmetic once more, in numpy and to the bit: fma, sums, exp and log."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

LANES, TILE = 32, 1024
_EXP = (
    *("0x1.6ac74ep-10", "0x1.123dep-7", "0x1.555858p-5", "0x1.55548cp-3", "0x1.fffffcp-2"),
    *("0x1p+0", "0x1p+0"),
)
_LOG = (
    *("-0x1.feb4d4p-4", "0x1.1f6152p-3", "-0x1.f70b24p-4", "0x1.1e8c9ep-3", "-0x1.557dc8p-3"),
    *("0x1.99d4ccp-3", "-0x1.ffff52p-3", "0x1.555508p-2", "-0x1p-1"),
)


def dots(w: np.ndarray, x: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """Dot products (N,) f32 of rows w (N, K) with x (K,) or (N, K), by contract point 4."""
    import numpy as np

    lanes = -(-w.shape[1] // LANES)
    left, right = _padded(w, lanes), _padded(np.broadcast_to(x, w.shape), lanes)
    found = _lanes(left, right)
    return found if bias is None else found + bias


def norm_scale(x: np.ndarray, epsilon: np.float32) -> np.ndarray:
    """The scale of RMS norm (N,) f32, of rows x (N, C): sums by tiles, one division, one root."""
    import numpy as np

    total = np.zeros(len(x), np.float32)
    for begin in range(0, x.shape[1], TILE):
        total = total + dots(x[:, begin : begin + TILE], x[:, begin : begin + TILE])
    found: np.ndarray = np.sqrt(total / np.float32(x.shape[1]) + epsilon)
    return found


def _padded(rows: np.ndarray, lanes: int) -> np.ndarray:
    import numpy as np

    filled = np.zeros((len(rows), lanes * LANES), np.float32)
    filled[:, : rows.shape[1]] = rows
    return filled.reshape(len(rows), lanes, LANES)


def _lanes(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    import numpy as np

    sums = np.zeros((len(left), LANES), np.float32)
    for step in range(left.shape[1]):
        sums = fused(left[:, step], right[:, step], sums)
    for half in (16, 8, 4, 2, 1):
        sums = sums[:, :half] + sums[:, half : 2 * half]
    found: np.ndarray = sums[:, 0] + np.float32(0)
    return found


def fused(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Gives a b + c of float32, rounded once: in float64 to odd, then to float32."""
    import numpy as np

    product, wide = a.astype(np.float64) * b, np.asarray(c, np.float64)
    total = product + wide
    rest = total - product
    error = (product - (total - rest)) + (wide - rest)
    even = (total.view(np.int64) & 1) == 0
    step = np.where((error > 0) == (total > 0), 1, -1)
    bits = total.view(np.int64) + np.where((error != 0) & even, step, 0)
    found: np.ndarray = bits.view(np.float64).astype(np.float32)
    return found


def exponential(x: np.ndarray) -> np.ndarray:
    """Gives exp of x (V,) f32, to the bit as ``kernels/math.cuh`` has it."""
    import numpy as np

    one = np.ones_like(x)
    clamped = np.clip(x, np.float32(-104), np.float32(89))
    shifted = fused(clamped, _f32("0x1.715476p+0") * one, np.float32(1.5 * 2**23) * one)
    k = shifted - np.float32(1.5 * 2**23)
    r = fused(k, _f32("-0x1.62e43p-1") * one, clamped)
    r = fused(k, _f32("0x1.05c61p-29") * one, r)
    p = _f32(_EXP[0]) * one
    for text in _EXP[1:]:
        p = fused(p, r, _f32(text) * one)
    n = k.astype(np.int32)
    half = n >> 1
    found: np.ndarray = p * _power(half) * _power(n - half)
    return found


def logarithm(x: np.ndarray) -> np.ndarray:
    """Gives log of normal x (V,) f32 above 0, to the bit as ``kernels/math.cuh`` has it."""
    import numpy as np

    bits = x.view(np.int32)
    exponent = (bits - 0x3F2AAAAB) & np.int32(-0x800000)
    n = (exponent >> 23).astype(np.float32)
    f = (bits - exponent).view(np.float32) - np.float32(1)
    p = _f32(_LOG[0]) * np.ones_like(f)
    for text in _LOG[1:]:
        p = fused(p, f, _f32(text) * np.ones_like(f))
    p = fused(p, f * f, f)
    return fused(n, _f32("0x1.62e43p-1") * np.ones_like(f), p)


def _power(n: np.ndarray) -> np.ndarray:
    """2^n as float32, n in the normal range."""
    import numpy as np

    return ((n + 127) << 23).astype(np.int32).view(np.float32)


def _f32(text: str) -> np.float32:
    import numpy as np

    return np.float32(float.fromhex(text))
