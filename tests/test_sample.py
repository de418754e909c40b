"""The sampler against the contract written out in Python integers, and against frequencies."""

from __future__ import annotations

import numpy as np
import pytest

from llmtrace.device.device import Launch
from running import device
from test_math import philox

ALL = 1 << 32


def draw(
    logits: np.ndarray,
    heat: list[float],
    top_k: list[int],
    top_p: list[int],
    seed: list[int],
    at: list[int],
) -> tuple[np.ndarray, np.ndarray]:
    """Runs the kernel on rows of logits (T, V) f32: tokens (T,) and logprobs (T,)."""
    on, (rows, width) = device(), logits.shape
    token, logprob = on.zeros((rows,), "<i4"), on.zeros((rows,), "<f4")
    weight = on.zeros((max(rows, on.threads), width), "<u4")
    arrays = [
        np.array(values, kind)
        for values, kind in ((heat, "<f4"), (top_k, "<i4"), (top_p, "<u8"), (seed, "<u8"))
    ]
    placed = [on.upload(array) for array in arrays]
    row, position = on.upload(np.arange(rows, dtype="<i4")), on.upload(np.array(at, "<i4"))
    count = on.upload(np.array([rows], "<i4"))
    args = (token, logprob, weight, on.upload(logits), *placed, row, position, count, width, width)
    on.capture([Launch("sample", args, rows)]).run(0)
    return token, logprob


def exponential(x: np.ndarray) -> np.ndarray:
    on = device()
    y = on.zeros(x.shape, "<f4")
    on.capture([Launch("math_exp", (y, on.upload(x), x.size), 1)]).run(0)
    return y


def expected(x: np.ndarray, heat: float, top_k: int, top_p: int, seed: int, at: int) -> int:
    """Contract point 9, in Python integers; only exp is the kernel's."""
    ordered = (x.view("<i4") ^ ((x.view("<i4") >> 31) & 0x7FFFFFFF)).tolist()  # -0 < +0
    ranked = sorted(range(len(x)), key=lambda v: (-ordered[v], v))
    if heat == 0:
        return ranked[0]
    scaled = exponential((x - x[ranked[0]]) / np.float32(heat)).astype(np.float64) * 2.0**31
    u = [int(value) for value in np.rint(scaled)]
    kept = ranked[: top_k or len(x)]
    need = -(-top_p * sum(u[v] for v in kept) // ALL)
    mass, prefix = 0, []
    for v in kept:
        if prefix and mass >= need:
            break
        prefix.append(v)
        mass += u[v]
    words = philox((at, 0, 0, 0), (seed & 0xFFFFFFFF, seed >> 32))
    target = (words[1] << 32 | words[0]) * mass >> 64
    below = 0
    for v in sorted(prefix):
        below += u[v]
        if below > target:
            return v
    raise AssertionError("no token")


@pytest.mark.parametrize("kind", ["normal", "ties", "flat", "peaked", "zeros of both signs"])
def test_draws_follow_the_contract(kind: str) -> None:
    rng = np.random.default_rng(len(kind))
    rows, width = 200, 331
    logits = {
        "normal": rng.standard_normal((rows, width)) * 4,
        "ties": rng.integers(-3, 3, (rows, width)),
        "flat": np.full((rows, width), -7.25),
        "peaked": np.where(rng.random((rows, width)) < 0.01, 80, -80),
        "zeros of both signs": np.where(rng.random((rows, width)) < 0.5, 0.0, -0.0),
    }[kind].astype("<f4")
    heat = rng.choice([0.0, 0.1, 0.7, 1.0, 1.5, 50.0], rows).astype("<f4").tolist()
    top_k = rng.choice([0, 1, 2, 40, width - 1, width, 5000], rows).tolist()
    top_p = rng.choice([ALL, 1, ALL // 2, ALL * 9 // 10, ALL - 1], rows).tolist()
    seed = rng.integers(0, 1 << 64, rows, dtype=np.uint64).tolist()
    at = rng.integers(0, 1 << 20, rows).tolist()
    tokens, logprobs = draw(logits, heat, top_k, top_p, seed, at)
    for t in range(rows):
        assert tokens[t] == expected(logits[t], heat[t], top_k[t], top_p[t], seed[t], at[t])
    wide = logits.astype(np.float64)
    exact = wide - wide.max(axis=1, keepdims=True)
    exact -= np.log(np.exp(exact).sum(axis=1, keepdims=True))
    chosen = exact[np.arange(rows), tokens]
    assert np.abs(logprobs - chosen).max() <= 1e-5 * max(1.0, np.abs(chosen).max())


def test_frequencies_are_the_probabilities() -> None:
    """20,000 seeds, 5 tokens: chi-squared, 4 degrees of freedom, is below 18.5 (0.1 %)."""
    row = np.log(np.array([0.5, 0.25, 0.15, 0.07, 0.03])).astype("<f4")
    n = 20_000
    tokens, _ = draw(np.tile(row, (n, 1)), [1.0] * n, [0] * n, [ALL] * n, list(range(n)), [7] * n)
    counts = np.bincount(tokens, minlength=5)
    wanted = n * np.exp(row.astype(np.float64))
    assert ((counts - wanted) ** 2 / wanted).sum() < 18.5


def test_top_p_is_rounded_up_to_whole_mass() -> None:
    """With a hair more than the likeliest token's share asked for, the next one is in."""
    row = np.array([0.0, -1.0], "<f4")
    first, second = (int(u) for u in np.rint(exponential(row).astype(np.float64) * 2.0**31))
    enough = (first << 32) // (first + second)
    assert (enough + 1) * (first + second) >> 32 == first  # beyond it, by less than one
    n = 200
    settings = [1.0] * n, [0] * n
    for top_p, drawn in ((enough, {0}), (enough + 1, {0, 1})):
        tokens, _ = draw(np.tile(row, (n, 1)), *settings, [top_p] * n, list(range(n)), [3] * n)
        assert set(tokens.tolist()) == drawn
