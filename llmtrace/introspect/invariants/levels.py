"""The whole numbers of ``speed`` and ``memory`` once more, in numpy and to the bit.

``kernels/quantize.cu``, ``linear8.cu``, ``linear4.cu`` and ``kv_append8`` say what is meant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from llmtrace.introspect.invariants.arithmetic import fused

if TYPE_CHECKING:
    import numpy as np

GROUP, HALF = 64, 32
"""Inputs that share a scale: of 8 bits; of 4."""
DRAWN_IN = 0.9
"""What a drawn in end of a range is multiplied by."""


class Eight(NamedTuple):
    """Rows in 8 bits: q (N, G, 64) i32 and scale (N, G) f32."""

    q: np.ndarray
    scale: np.ndarray

    def values(self, width: int) -> np.ndarray:
        """What the rows stand for: (N, width) f64."""
        made: np.ndarray = self.q * self.scale[..., None].astype("f8")
        return made.reshape(len(made), -1)[:, :width]


class Four(NamedTuple):
    """Rows in 4 bits: q (N, 2 G, 32), scale and low (N, 2 G), all i32; unit (N, 2) f32."""

    q: np.ndarray
    scale: np.ndarray
    low: np.ndarray
    unit: np.ndarray

    def values(self, width: int) -> np.ndarray:
        """What the rows stand for: (N, width) f64."""
        unit = self.unit.astype("f8")[:, None]
        step, low = self.scale * unit[..., 0], self.low * unit[..., 1]
        made: np.ndarray = self.q * step[..., None] - low[..., None]
        return made.reshape(len(made), -1)[:, :width]


def rows(x: np.ndarray) -> Eight:
    """Quantises activations (N, K) f32."""
    import numpy as np

    groups = _grouped(x, GROUP)
    scale = np.abs(groups).max(axis=2) / np.float32(127)
    return Eight(_levels(groups, scale, -127, 127), scale)


def row(x: np.ndarray) -> np.ndarray:
    """What a head's key or value (..., D) f32 is read as from a cache in 8 bits, in f32."""
    import numpy as np

    scale = np.abs(x).max(axis=-1) / np.float32(127)
    found: np.ndarray = _levels(x, scale, -127, 127).astype("f4") * scale[..., None]
    return found


def weights(w: np.ndarray, bits: int) -> Eight | Four:
    """Quantises rows of weights (N, K) f32."""
    return _eight(w) if bits == 8 else _four(w)


def dots(w: Eight | Four, x: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    """What a linear layer in integers makes of one row x (K,) f32: (N,) f32."""
    return product(w, rows(x.reshape(1, -1)), bias)


def product(w: Eight | Four, fed: Eight, bias: np.ndarray | None) -> np.ndarray:
    """The same of a row that is quantised: ``fed`` is of N = 1."""
    import numpy as np

    q, xs = fed.q[0], fed.scale[0]
    found = np.zeros(len(w.q), np.float32)
    if isinstance(w, Eight):
        totals = np.einsum("ngk,gk->ng", w.q.astype("i8"), q).astype("f4")
        for g in range(len(xs)):
            found = fused(totals[:, g], w.scale[:, g] * xs[g], found)
        found = found + np.float32(0)
    else:
        halves = q.reshape(-1, HALF).astype("i8")
        totals = np.einsum("nhk,hk->nh", w.q.astype("i8"), halves) * w.scale
        lows = w.low * halves.sum(axis=1)
        by_group = [each.reshape(len(totals), -1, 2).sum(axis=2) for each in (totals, lows)]
        a, b = found, found
        for g in range(len(xs)):
            x_g = np.broadcast_to(xs[g], a.shape)
            a = fused(by_group[0][:, g].astype("f4"), x_g, a)
            b = fused(by_group[1][:, g].astype("f4"), x_g, b)
        found = fused(-w.unit[:, 1], b, w.unit[:, 0] * a) + np.float32(0)
    return found if bias is None else found + bias


def _grouped(x: np.ndarray, size: int) -> np.ndarray:
    """Rows cut into groups, the last one filled up with zeros to a whole 64."""
    import numpy as np

    filled = np.zeros((len(x), -(-x.shape[1] // GROUP) * GROUP), np.float32)
    filled[:, : x.shape[1]] = x
    return filled.reshape(len(x), -1, size)


def _levels(x: np.ndarray, scale: np.ndarray, low: int, high: int) -> np.ndarray:
    """rint(x / scale), clamped; 0 where the scale is 0 or not finite."""
    import numpy as np

    told = (scale > 0) & np.isfinite(scale)
    by = np.where(told, scale, np.float32(1))[..., None]
    with np.errstate(over="ignore", invalid="ignore"):
        found = np.rint(np.clip(np.where(told[..., None], x, 0) / by, low, high))
    made: np.ndarray = np.where(told[..., None], found, 0).astype(np.int32)
    return made


def _eight(w: np.ndarray) -> Eight:
    import numpy as np

    groups = _grouped(w, GROUP)
    scale = np.abs(groups).max(axis=2) / np.float32(127)
    bits = np.ascontiguousarray(scale).view(np.uint32)
    scale = ((bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)).view(np.float32)
    return Eight(_levels(groups, scale, -127, 127), scale)


def _four(w: np.ndarray) -> Four:
    import numpy as np

    x = _grouped(w, HALF)
    step, low = _fitted(x)
    unit = np.stack([step.max(axis=1), (-low).max(axis=1)], axis=1) / np.float32(255)
    scale = _levels(step, unit[:, 0], 1, 255) * (step > 0)
    lows = _levels(-low, unit[:, 1], 0, 255)
    by = scale.astype("f4") * unit[:, :1]
    down = lows.astype("f4") * unit[:, 1:]
    return Four(_levels(x + down[..., None], by, 0, 15), scale, lows, unit)


def _fitted(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Step and low end of each group (..., 32), the best of eight."""
    import numpy as np

    f4 = np.float32
    high, low = np.maximum(x.max(axis=-1), f4(0)), np.minimum(x.min(axis=-1), f4(0))
    whole = (high - low) / f4(15)
    best, least = (whole, low), np.full(whole.shape, np.inf, f4)
    for drawn in range(4):
        top = high * f4(DRAWN_IN) if drawn & 1 else high
        bottom = low * f4(DRAWN_IN) if drawn & 2 else low
        step, down = (top - bottom) / f4(15), bottom
        usable = (whole > 0) & np.isfinite(whole)
        for turn in range(2):
            usable = usable & (step > 0) & np.isfinite(step)
            error, better = _error(x, np.where(usable, step, f4(1)), down)
            takes = usable & ((error < least) | (drawn + turn == 0))
            least = np.where(takes, error, least)
            best = np.where(takes, step, best[0]), np.where(takes, down, best[1])
            step, down = better
    return best


def _error(
    x: np.ndarray, step: np.ndarray, low: np.ndarray
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """The sum of squared errors of a range, and the one that suits its levels best."""
    import numpy as np

    f4 = np.float32
    with np.errstate(all="ignore"):
        q = _levels(x - low[..., None], step, 0, 15).astype("f4")
        every = (np.broadcast_to(each[..., None], x.shape) for each in (step, low))
        off = fused(q, *every) - x
        qs, qq, xs, qx = (_sum(each) for each in (q, q * q, x, q * x))
        better = (f4(32) * qx - qs * xs) / (f4(32) * qq - qs * qs)
        down = (xs - better * qs) / f4(32)
        return _sum(off * off), (better, np.where(down < 0, down, f4(0)))


def _sum(x: np.ndarray) -> np.ndarray:
    """The tree over 32 lanes."""
    import numpy as np

    for half in (16, 8, 4, 2, 1):
        x = x[..., :half] + x[..., half : 2 * half]
    found: np.ndarray = x[..., 0] + np.float32(0)
    return found
