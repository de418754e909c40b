"""Hard inputs for every kernel, to run on two devices and compare all that was written, to the bit.

A case is a few launches over named arrays. Outputs start as a pattern, and whole arrays are
compared: what lies beside a result must not be touched. ``size`` says how many values to take.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from llmtrace.device.device import Device, Launch

Rng = np.random.Generator
Addresses = Callable[[str], int]


@dataclass
class Case:
    """Arrays by name, those to compare, and launches: a kernel, its arguments, its items."""

    name: str
    arrays: dict[str, Any]  # a function makes the array from the addresses of the others
    outputs: tuple[str, ...]
    launches: list[tuple[str, tuple[Any, ...], int]]
    kernels: set[str] = field(init=False)

    def __post_init__(self) -> None:
        self.kernels = {kernel for kernel, _, _ in self.launches}

    def run(self, device: Device) -> dict[str, np.ndarray]:
        placed: dict[str, Any] = {}
        for name, array in self.arrays.items():
            made = array(lambda of: device.address(placed[of])) if callable(array) else array
            placed[name] = device.upload(made)
        launches = [
            Launch(kernel, tuple(placed.get(a, a) if isinstance(a, str) else a for a in args), n)
            for kernel, args, n in self.launches
        ]
        device.capture(launches).run(1 << 40)
        return {name: device.download(placed[name]) for name in self.outputs}


def differences(got: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> list[str]:
    """Where two runs of a case differ; a NaN is like any other, as the run would end there."""
    found = []
    for name, array in expected.items():
        a, b = got[name].ravel(), array.ravel()
        words = f"u{a.dtype.itemsize}"
        same = a == b if a.dtype.kind != "f" else a.view(words) == b.view(words)
        if a.dtype.kind == "f":
            same |= np.isnan(a) & np.isnan(b)
        wrong = np.flatnonzero(~same)[:3]
        found += [f"{name}[{at}]: {a[at]!r} is not {b[at]!r}" for at in wrong]
    return found


def bits(rng: Rng, *shape: int) -> np.ndarray:
    """Floats of any bits at all."""
    return rng.integers(0, 1 << 32, shape, np.uint32).view(np.float32)


def wild(rng: Rng, *shape: int, top: int = 127) -> np.ndarray:
    """Finite floats of every size below 2^top: ordinary, subnormal, ±0, ties, neighbours of 1."""
    x = bits(rng, *shape)
    exponent = rng.integers(0, 127 + top, shape, np.uint32) << 23
    x = ((x.view(np.uint32) & 0x807FFFFF) | exponent).view(np.float32)
    kind = rng.integers(0, 12, shape)
    x = np.where(kind < 4, rng.standard_normal(shape, np.float32), x)
    x = np.where(kind == 4, (bits(rng, *shape).view(np.uint32) & 0x807FFFFF).view(np.float32), x)
    x = np.where(kind == 5, np.float32(0.0) * np.sign(rng.standard_normal(shape, np.float32)), x)
    x = np.where(kind == 6, np.float32(1.5) * np.sign(x), x)
    return np.where(kind == 7, np.nextafter(np.float32(1.0), x), x).astype(np.float32)


def stored(x: np.ndarray, kind: str) -> np.ndarray:
    """Weights as they are stored: bf16 by cutting, f16, f32; all finite."""
    if kind == "bf16":
        return (x.view(np.uint32) >> 16).astype(np.uint16)
    if kind == "f16":
        return np.clip(x, -60000, 60000).astype(np.float16).view(np.uint16)
    return x


def padded(x: np.ndarray, width: int) -> np.ndarray:
    return np.pad(x, ((0, 0), (0, width - x.shape[1])))


def pattern(*shape: int) -> np.ndarray:
    return np.full(shape, -7.75, np.float32)


def up(n: int, step: int) -> int:
    return -(-n // step) * step


def one(n: int) -> np.ndarray:
    return np.array([n], np.int32)


def cases(family: str, size: int, seed: int = 0) -> Iterator[Case]:
    """The cases of one of ``FAMILIES``, with about ``size`` values in each."""
    return FAMILIES[family](np.random.default_rng(seed), size)


def _math(rng: Rng, size: int) -> Iterator[Case]:
    edges = [0, 1, 88.7, -87.3, -103.97, 104, 1e-38, 2.0**24, 0.55, 0.7, 0.9, 4]
    near = np.array(edges, np.float32)
    steps = np.arange(-4, 5, dtype=np.int32)[:, None]
    special = (near.view(np.int32) + steps).view(np.float32).ravel()
    x = np.concatenate([special, -special, bits(rng, size), wild(rng, size, top=8)])
    n = len(x)
    for name in ("exp", "log", "tanh", "erf"):
        kernel = f"math_{name}"
        arrays = {"y": pattern(n), "x": x}
        yield Case(kernel, arrays, ("y",), [(kernel, ("y", "x", n), up(n, 1024) // 1024)])
    arrays = {"s": pattern(n), "c": pattern(n), "x": x}
    launch = ("math_sin_cos", ("s", "c", "x", n), up(n, 1024) // 1024)
    yield Case("math_sin_cos", arrays, ("s", "c"), [launch])
    counter = rng.integers(0, 1 << 32, (size, 4), np.uint32)
    key = rng.integers(0, 1 << 64, size, np.uint64)
    arrays = {"out": np.zeros_like(counter), "counter": counter, "key": key}
    launch = ("math_philox", ("out", "counter", "key", size), up(size, 1024) // 1024)
    yield Case("math_philox", arrays, ("out",), [launch])


def _embed(rng: Rng, size: int) -> Iterator[Case]:
    for kind in ("bf16", "f16", "f32"):
        C, V = 200, 50
        T = size // C + 2
        table = stored(padded(wild(rng, V, C), 256), kind)
        arrays = {
            "x": pattern(T, 256),
            "table": table,
            "T": one(T - 1),
            "token": rng.integers(0, V, T, np.int32),
        }
        launch = (f"embed_{kind}", ("x", "table", "token", "T", C, 256, 256), T)
        yield Case(f"embed_{kind}", arrays, ("x",), [launch])


def _linear(rng: Rng, size: int) -> Iterator[Case]:
    for kind in ("bf16", "f16", "f32"):
        for T, K, has_bias, top in ((1, 1000, True, 20), (3, 96, False, 127), (9, 333, True, 20)):
            yield linear(rng, kind, (T, size // K + 5, K), top, has_bias=has_bias)


def linear(rng: Rng, kind: str, shape: tuple[int, int, int], top: int, *, has_bias: bool) -> Case:
    """A linear layer of T tokens, N outputs, K inputs: values of every size, zeros, tails."""
    T, N, K = shape
    wide = up(K, 32)
    w, x = wild(rng, N, K, top=top), wild(rng, T, K, top=top)
    w[0], x[0] = -1e-7, 1e-40  # every product is -0: only the last addition makes it +0
    arrays = {
        "w": stored(padded(w, wide), kind),
        "x": padded(x, wide),
        "T": one(T),
        "y": pattern(T + 1, N + 3),
        "bias": wild(rng, N),
    }
    args = ("y", "w", "x", "bias" if has_bias else None, "T", N, K, N + 3, wide, wide)
    launch = (f"linear_{kind}", args, N * T)
    return Case(f"linear_{kind}: {T} tokens, K {K}", arrays, ("y",), [launch])


def _quantize(rng: Rng, size: int) -> Iterator[Case]:
    for K, top in ((1, 20), (32, 127), (333, 20), (1000, 127)):
        T, wide, g = size // K // 8 + 5, up(K, 32), up(K, 64) // 64
        x = wild(rng, T, K, top=top)
        x[0], x[1], x[2, -1], x[3, 0], x[4] = 0.0, 1e-44, np.inf, np.nan, np.linspace(-1, 1, K)
        arrays = {"x": padded(x, wide), "T": one(T), **quantized_rows(T + 1, g)}
        launch = ("quantize", ("q", "xs", "sums", "x", "T", K, wide), T * g)
        yield Case(f"quantize: K {K}", arrays, ("q", "xs", "sums"), [launch])
        for kind in ("bf16", "f16", "f32"):
            N, w = T, x.copy()
            w[2], w[3, :] = rng.standard_normal(K), -0.25  # one value
            arrays = {
                "w": stored(padded(w.astype(np.float32), wide), kind),
                "q": np.full((N + 1, 64 * g), 77, np.int8),
                "scale": np.full((N + 1, g), 7, np.uint16),
                "q4": np.full((N + 1, 32 * g), 77, np.uint8),
                "scale4": np.full((N + 1, 2 * g), 7, np.uint8),
                "low": np.full((N + 1, 2 * g), 7, np.uint8),
                "unit": pattern(N + 1, 2),
                "found": pattern(N + 1, 4 * g),
            }
            shape = ("w", N, K, wide)
            launch = (f"quantize8_{kind}", ("q", "scale", *shape), N * g)
            yield Case(f"quantize8_{kind}: K {K}", arrays, ("q", "scale"), [launch])
            parts = ("q4", "scale4", "low", "unit", "found")
            launches = [
                (f"fit4_{kind}", ("found", *shape), 2 * N * g),
                (f"quantize4_{kind}", (*parts, *shape), N),
            ]
            yield Case(f"quantize4_{kind}: K {K}", arrays, parts, launches)


def quantized_rows(rows: int, g: int) -> dict[str, np.ndarray]:
    """Room for rows of activations of g groups, full of a pattern."""
    return {
        "q": np.full((rows, 64 * g), 77, np.int8),
        "xs": pattern(rows, g),
        "sums": np.full((rows, 2 * g), 777, np.int16),
    }


def _integers(rng: Rng, size: int) -> Iterator[Case]:
    for T, K, has_bias in ((1, 1000, True), (3, 64, False), (9, 1090, True)):
        for bits in (8, 4):
            yield integers(rng, bits, (T, size // K + 5, K), has_bias=has_bias)


def integers(rng: Rng, bits: int, shape: tuple[int, int, int], *, has_bias: bool) -> Case:
    """A linear layer in integers, with whole numbers up to the ends of their ranges."""
    T, N, K = shape
    g = up(K, 64) // 64
    q = rng.integers(-127, 128, (T, 64 * g), np.int8)
    q[0] = 127 - 254 * (np.arange(64 * g) // 64 % 2)  # the largest sums of both signs
    arrays = {
        "q": q,
        "sums": q.reshape(T, -1, 32).sum(axis=2, dtype=np.int16),
        "xs": np.abs(wild(rng, T, g, top=30)),
        "T": one(T),
        "y": pattern(T + 1, N + 3),
        "bias": wild(rng, N),
    }
    if bits == 8:
        w = rng.integers(-127, 128, (N, 64 * g), np.int8)
        w[1], w[2] = 127, -127
        scale = np.abs(wild(rng, N, g, top=30))
        arrays |= {"w": w, "ws": stored(scale, "bf16")}
        weights: tuple[str, ...] = ("w", "ws")
    else:
        w, scale = (rng.integers(0, 256, (N, n * g), np.uint8) for n in (32, 2))
        w[1], scale[1] = 255, 255
        low, unit = rng.integers(0, 256, (N, 2 * g), np.uint8), np.abs(wild(rng, N, 2, top=30))
        arrays |= {"w": w, "ws": scale, "low": low, "unit": unit}
        weights = ("w", "ws", "low", "unit")
    bias = "bias" if has_bias else None
    args = ("y", *weights, "q", "xs", "sums", bias, "T", N, K, N + 3)
    return Case(f"linear{bits}: {T} tokens, K {K}", arrays, ("y",), [(f"linear{bits}", args, N)])


def _ceiling(rng: Rng, size: int) -> Iterator[Case]:
    count, steps = max(1, size // 1000), 37
    x = wild(rng, 12, 32, top=2)
    arrays = {"y": pattern(count + 1), "x": x, "T": one(count)}
    yield Case("ceiling_float", arrays, ("y",), [("ceiling_float", ("y", "x", "T", steps), count)])
    integers: dict[str, np.ndarray] = {
        "y": np.full(count + 1, 77, np.int32),
        "w": rng.integers(0, 128, (64, 4)).astype(np.int8),
        "q": rng.integers(-127, 128, (12, 4)).astype(np.int8),
        "T": one(count),
    }
    args = ("y", "w", "q", "T", steps)
    yield Case("ceiling_integer", integers, ("y",), [("ceiling_integer", args, count)])


def _elementwise(rng: Rng, size: int) -> Iterator[Case]:
    C = 1300
    T = size // C + 1
    items = T * up(C, 512) // 512
    arrays = {
        "y": pattern(T, C + 4),
        "a": wild(rng, T, C + 8),
        "b": wild(rng, T, C + 8),
        "T": one(T),
    }
    launch = ("silu_mul", ("y", "a", "b", "T", C, C + 4, C + 8), items)
    yield Case("silu_mul", arrays, ("y",), [launch])
    arrays = arrays | {"y": pattern(T, C + 8)}
    yield Case("add", arrays, ("y",), [("add", ("y", "a", "b", "T", C, C + 8), items)])
    launch = ("copy", ("y", "a", "T", C, C + 8, C + 8), items)
    yield Case("copy", arrays, ("y",), [launch])


def _norm(rng: Rng, size: int) -> Iterator[Case]:
    for C, picks in ((33, False), (1000, True), (2500, False)):
        T, wide = size // C + 4, up(C, 32)
        x = wild(rng, T, C, top=50)
        x[0], x[1], x[2] = 0.0, -0.0, 1e-40
        arrays = {
            "y": pattern(T, wide),
            "normalized": pattern(T, wide),
            "scale": pattern(T),
            "x": padded(x, wide),
            "gain": padded(wild(rng, 1, C, top=50), wide),
            "row": rng.integers(0, T, T, np.int32),
            "T": one(T),
        }
        row = "row" if picks else None
        sizes = (C, wide, np.float32(1e-5))
        launch = ("rms_norm", ("y", "normalized", "scale", "x", "gain", row, "T", *sizes), T)
        yield Case(f"rms_norm: C {C}", arrays, ("y", "normalized", "scale"), [launch])


def _rope(rng: Rng, size: int) -> Iterator[Case]:
    heads, half = 3, 40
    T = size // (heads * 2 * half) + 3
    wide = heads * 2 * half + 8
    frequency = (10000.0 ** (-np.arange(half) / half)).astype(np.float32)
    arrays = {
        "cosine": pattern(T, 64),
        "sine": pattern(T, 64),
        "r": pattern(T, wide),
        "position": rng.integers(0, 1 << 20, T, np.int32),
        "table": rng.integers(0, 2, T, np.int32),
        "frequency": np.stack([frequency, frequency / np.float32(8)]),
        "factor": np.array([1.0, 1.1902], np.float32),
        "T": one(T),
        "x": wild(rng, T, wide, top=100),
    }
    angles = ("cosine", "sine", "position", "table", "frequency", "factor", "T", half, 64)
    rope = ("r", "x", "cosine", "sine", "T", heads, half, 64, wide, wide)
    launches = [("angles", angles, T), ("rope", rope, T * heads)]
    yield Case("rope", arrays, ("cosine", "sine", "r"), launches)


def _attention(rng: Rng, size: int) -> Iterator[Case]:
    hard = [0, 1, 2, 3, 31, 32, 126, 127, 128, 129, 255, 256, 300]
    for chunks, D in ((1, 8), (1, 32), (2, 48), (2, 64), (3, 80), (4, 128), (8, 256)):
        H, G, wide = 4, 2, 32 * chunks
        T = max(3, size // (D * H * 100))
        position = np.concatenate([rng.choice(hard, 3, replace=False), rng.integers(0, 512, T)])
        position = position.astype(np.int32)
        T = len(position)
        tiles = 4 * T
        values = padded(wild(rng, tiles * G * 128, D, top=60), wide)
        arrays = {
            "z": pattern(T, H * D),
            "q": wild(rng, T, H * D, top=2),
            "T": one(T),
            "keys": wild(rng, tiles, G, 4, D, 32, top=3),
            "values": values.reshape(tiles, G, 128, wide),
            "k": wild(rng, T, G * D, top=3),
            "v": wild(rng, T, G * D, top=60),
            "position": position,
            "tile0": np.arange(0, tiles, 4, dtype=np.int32),
        }
        where = ("position", "tile0", "T")
        append = ("keys", "values", "k", "v", *where, G, D, wide, G * D, G * D)
        scale = np.float32(D**-0.5)
        attend = ("z", "q", "keys", "values", *where, H, G, D, H * D, H * D, scale)
        launches = [("kv_append", append, T * G), (f"attention_{chunks}", attend, T * H)]
        yield Case(f"attention_{chunks}: D {D}", arrays, ("z", "keys", "values"), launches)
        kernel, ldh = f"probed_attention_{chunks}", 8 * H + 3
        arrays = arrays | {"heads": pattern(T, ldh), "plain": pattern(T, H * D)}
        probed = ("z", "heads", *attend[1:-3], H * D, ldh, H * D, scale)
        both = [(kernel, probed, T * H), (f"attention_{chunks}", ("plain", *attend[1:]), T * H)]
        yield Case(f"{kernel}: D {D}", arrays, ("z", "heads", "plain"), both)
        stored_values = np.zeros((tiles, G, 128, wide), np.int8)
        stored_values[..., :D] = rng.integers(-127, 128, (tiles, G, 128, D), np.int8)
        arrays = arrays | {
            "keys": rng.integers(-127, 128, (tiles, G, 4, D, 32), np.int8),
            "values": stored_values,
            "key_scale": np.abs(wild(rng, tiles, G, 128, top=3)),
            "value_scale": np.abs(wild(rng, tiles, G, 128, top=60)),
        }
        held = ("keys", "values", "key_scale", "value_scale")
        append, attend = (*held, *append[2:]), ("z", "q", *held, *attend[4:])
        launches = [("kv_append8", append, T * G), (f"attention8_{chunks}", attend, T * H)]
        yield Case(f"attention8_{chunks}: D {D}", arrays, ("z", *held), launches)
        kernel = f"probed_attention8_{chunks}"
        probed = ("z", "heads", *attend[1:-3], H * D, ldh, H * D, scale)
        both = [(kernel, probed, T * H), (f"attention8_{chunks}", ("plain", *attend[1:]), T * H)]
        yield Case(f"{kernel}: D {D}", arrays, ("z", "heads", "plain"), both)


def _moments(rng: Rng, size: int) -> Iterator[Case]:
    for C in (1, 3, 40, 1024, 1500):
        T, wide = size // max(C, 64) + 4, up(C, 32)
        x = wild(rng, T, C, top=28)
        x[0], x[1], x[2], x[3] = 0.0, -0.0, 1e-42, np.where(np.arange(C) % 2, 2.5, -2.5)
        arrays = {
            "record": np.full((T, 40), 9, np.uint32),
            "x": padded(x, wide),
            "T": one(T),
            "seed": rng.integers(0, 1 << 64, T, np.uint64),
            "position": rng.integers(0, 1 << 30, T, np.int32),
        }
        launch = ("moments", ("record", "x", "seed", "position", "T", C, 40, wide, 77), T)
        yield Case(f"moments: C {C}", arrays, ("record",), [launch])


def _probe(rng: Rng, size: int) -> Iterator[Case]:
    widths = [1, 3, 31, 32, 33, 300, 1024, 1500, 2048]
    P, T = len(widths), max(6, size // sum(widths))
    strides = [width if width == 1 else up(width, 32) + 5 for width in widths]
    rows = {}
    for i, (width, stride) in enumerate(zip(widths, strides, strict=True)):
        x = wild(rng, T, stride, top=28)
        x[0], x[1], x[2] = 0.0, -0.0, 1e-42
        x[3] = np.where(np.arange(stride) % 2, 2.5, -2.5)
        x[4] = wild(rng, stride)
        x[5, width // 2] = 3e4
        rows[f"p{i}"] = x
    arrays = rows | {
        "table": partial(_points, widths, strides),
        "T": one(T),
        "record": np.full((T, P + 1, 32), 9, np.uint32),
        "seed": rng.integers(0, 1 << 64, 2 * T, np.uint64),
        "position": rng.integers(0, 1 << 30, 2 * T, np.int32),
        "row": rng.permutation(2 * T)[:T].astype(np.int32),
    }
    for row in (None, "row"):
        args = ("record", "table", "seed", "position", row, "T", P, P + 1)
        yield Case(f"probe: {row or 'all'}", arrays, ("record",), [("probe", args, T * P)])
    flawed = {name: x.copy() for name, x in rows.items()}
    flawed["p0"][1, 0], flawed["p6"][2, 1000], flawed["p3"][0, -5:] = np.inf, np.nan, np.nan
    arrays = arrays | flawed | {"flaw": np.full((T, P + 1), 3, np.uint8)}
    yield Case("finite", arrays, ("flaw",), [("finite", ("flaw", "table", "T", P, P + 1), T * P)])


def _token(rng: Rng, size: int) -> Iterator[Case]:
    for V in (1, 37, 1024, 1500):
        T = size // max(V, 64) + 8
        logits = (rng.standard_normal((T, V)) * 4).astype(np.float32)
        logits[::4] = np.round(logits[::4])  # ties
        logits[1] = np.where(rng.integers(0, 2, V), 0.0, -0.0)
        logits[2] = wild(rng, V)
        arrays = {
            "record": np.full((T + 1, 4), 9, np.uint32),
            "T": one(T),
            "logprob": wild(rng, T),
            "logits": np.pad(logits, ((0, 0), (0, 5)), constant_values=99),
            "token": rng.integers(0, V, T, np.int32),
        }
        arrays["token"][::3] = logits[::3].argmax(axis=1)
        launch = ("token", ("record", "logits", "token", "logprob", "T", V, V + 5), T)
        yield Case(f"token: V {V}", arrays, ("record",), [launch])


def _wide(rng: Rng, size: int) -> Iterator[Case]:
    for kind in ("bf16", "f16", "f32"):
        for T, K, has_bias in ((1, 1000, False), (6, 333, True)):
            N, ld = size // K + 5, up(K, 32)
            w, x = wild(rng, N, K, top=20), wild(rng, T, K, top=60).astype(np.float64)
            w[0], x[0] = -1e-7, 1e-320  # every product is -0: only the last addition makes it +0
            arrays = {
                "w": stored(padded(w, ld), kind),
                "x": padded(x, ld),
                "T": one(T),
                "y": np.full((T + 1, N + 3), -7.75),
                "bias": wild(rng, N, top=20),
            }
            parts = ("bias" if has_bias else None, "T")
            launch = (f"wide_{kind}", ("y", "w", "x", *parts, N, K, N + 3, ld, ld), T * N)
            yield Case(f"wide_{kind}: {T} tokens, K {K}", arrays, ("y",), [launch])
        K, N = 96, 256 + size // 96
        table = stored(wild(rng, N, K, top=50), kind)
        arrays = {"partial": np.full((3 + N // 256, K + 5), -7.75), "w": table}
        launch = (f"wide_sum_{kind}", ("partial", "w", N, K, K + 5, K), 1 + N // 256)
        yield Case(f"wide_sum_{kind}", arrays, ("partial",), [launch])
    for D, H, G in ((7, 4, 2), (64, 2, 1)):
        S, T = 96, 2 + size // (H * D * 48)
        visible = np.concatenate([[1, 32, 33], rng.integers(1, S + 1, T)]).astype(np.int32)
        T = len(visible)
        arrays = {
            "z": np.full((T, H * D), -7.75),
            "weight": np.full((T, H, S), -7.75),
            "T": one(T),
            "q": rng.standard_normal((T, H * D)) * 2,
            "visible": visible,
            "keys": wild(rng, G, D, S, top=3).astype(np.float64),
            "values": wild(rng, S, G * D, top=60).astype(np.float64),
        }
        args = ("z", "weight", "q", "keys", "values", "visible", "T", H, G, D, S)
        launch = ("wide_attention", args, T * H)
        yield Case(f"wide_attention: D {D}", arrays, ("z",), [launch])


def _sample(rng: Rng, size: int) -> Iterator[Case]:
    for V in (1, 37, 515):
        T = size // max(V, 64) + 8
        logits = (rng.standard_normal((T, V)) * 4).astype(np.float32)
        logits[::4] = np.round(logits[::4])  # ties
        logits[1] = np.where(rng.integers(0, 2, V), 0.0, -0.0)
        logits[2] = wild(rng, V)
        top_p = rng.integers(0, (1 << 32) + 1, T).astype(np.uint64)
        top_p[::3], top_p[1::7] = 1 << 32, 0
        arrays = {
            "token": np.full(T, -1, np.int32),
            "logprob": pattern(T),
            "T": one(T),
            "weight": np.zeros((T, V), np.uint32),
            "logits": padded(logits, V + 5),
            "temperature": rng.choice([0.0, 0.7, 1.0, 1e-3, 50.0], T).astype(np.float32),
            "top_k": rng.choice([0, 1, 2, 5, 40, 600], T).astype(np.int32),
            "top_p": top_p,
            "seed": rng.integers(0, 1 << 64, T, np.uint64),
            "row": rng.integers(0, T, T, np.int32),
            "position": rng.integers(0, 9999, T, np.int32),
        }
        settings = ("temperature", "top_k", "top_p", "seed", "row", "position")
        args = ("token", "logprob", "weight", "logits", *settings, "T", V, V + 5)
        yield Case(f"sample: V {V}", arrays, ("token", "logprob"), [("sample", args, T)])


def _blake3(rng: Rng, size: int) -> Iterator[Case]:
    edges = [1, 15, 16, 17, 255, 256, 257, 512, 700, 2048, 5000]
    for widths in (edges, [256 * 64, 256 * 64 + 1, 256 * 193 + 7, 256 * 256]):
        P, T = len(widths), max(2, size // sum(widths))
        strides = [width + extra for width, extra in zip(widths, range(P), strict=True)]
        rows = {f"p{i}": wild(rng, T, stride) for i, stride in enumerate(strides)}
        rows["p0"][1, 0] = np.inf
        rows["p2"][0, -3] = np.nan

        arrays = rows | {
            "table": partial(_points, widths, strides),
            "T": one(T),
            "digest": np.full((T, P + 1, 8), 5, np.uint32),
            "flaw": np.full((T, P + 1), 3, np.uint8),
        }
        launch = ("blake3", ("digest", "flaw", "table", "T", P, P + 1), T * P)
        yield Case(f"blake3: to {widths[-1]}", arrays, ("digest", "flaw"), [launch])


def _points(widths: list[int], strides: list[int], address: Addresses) -> np.ndarray:
    found = [(address(f"p{i}"), strides[i], width, i) for i, width in enumerate(widths)]
    return np.array(found, np.uint64)


FAMILIES = {
    "ceiling": _ceiling,
    "math": _math,
    "embed": _embed,
    "linear": _linear,
    "quantize": _quantize,
    "integers": _integers,
    "elementwise": _elementwise,
    "rms_norm": _norm,
    "rope": _rope,
    "attention": _attention,
    "moments": _moments,
    "probe": _probe,
    "token": _token,
    "sample": _sample,
    "blake3": _blake3,
    "wide": _wide,
}
