"""Quantised weights, activations and layers are to the bit what numpy makes of the contract."""

from __future__ import annotations

import numpy as np
import pytest

from kernel_cases import cases
from llmtrace.blocks.quantized import GROUP, nbytes
from llmtrace.device.device import Launch
from llmtrace.introspect.invariants import levels
from running import device


def widened(stored: np.ndarray, kind: str) -> np.ndarray:
    if kind == "bf16":
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.view(np.float16).astype(np.float32) if kind == "f16" else stored


def test_activations_are_what_the_contract_says() -> None:
    seen = 0
    for case in cases("quantize", 20_000):
        ((kernel, args, _), *_) = case.launches
        if kernel != "quantize":
            continue
        k, x = args[5], case.arrays["x"]
        with np.errstate(invalid="ignore"):
            told = levels.rows(x[:, :k])
        got = case.run(device())
        count = len(x)
        assert (got["q"][:count].reshape(told.q.shape) == told.q).all()
        assert np.array_equal(got["xs"][:count], told.scale, equal_nan=True)
        assert (got["sums"][:count] == told.q.reshape(count, -1, 32).sum(axis=2)).all()
        assert (got["q"][count:] == 77).all()
        seen += 1
    assert seen == 4


@pytest.mark.parametrize("power", [-130, -100, -30, 0, 60, 99, 118])
def test_a_value_between_two_levels_goes_where_its_quotient_does(power: int) -> None:
    rng, on, rows = np.random.default_rng(power + 200), device(), 2_000
    most = np.ldexp(rng.uniform(1, 2, (rows, 1)), power).astype(np.float32)
    scale = most / np.float32(127)
    middle = ((rng.integers(-127, 127, (rows, 63)) + 0.5) * scale).astype(np.float32)
    x = np.concatenate(
        [most, (middle.view(np.int32) + rng.integers(-2, 3, middle.shape, "i4")).view("f4")], 1
    )
    x = np.where(np.abs(x) <= most, x, most)
    told = levels.rows(x)
    q, xs, sums = (
        on.zeros(shape, kind)
        for shape, kind in (((rows, 64), "|i1"), ((rows, 1), "<f4"), ((rows, 2), "<i2"))
    )
    args = (q, xs, sums, on.upload(x), on.upload(np.array([rows], np.int32)), 64, 64)
    on.capture([Launch("quantize", args, rows)]).run(0)
    assert (q == told.q.reshape(rows, 64)).all()
    assert (sums == told.q.reshape(rows, 2, 32).sum(axis=2)).all()
    if abs(power) < 100:  # by the reciprocal of the scale some would end elsewhere
        assert (np.rint(x * (np.float32(1) / scale)) != told.q.reshape(rows, 64)).sum() > 100


@pytest.mark.parametrize("bits", [8, 4])
def test_weights_are_what_the_contract_says(bits: int) -> None:
    seen = 0
    for case in cases("quantize", 20_000):
        kernel, args, _ = case.launches[-1]
        if not kernel.startswith(f"quantize{bits}_"):
            continue
        k, kind = args[-2], kernel.split("_")[1]
        w, got = widened(case.arrays["w"], kind)[:, :k], case.run(device())
        sound = np.flatnonzero((np.abs(w) < 1e37).all(axis=1))  # the range of a group is finite
        told = levels.weights(w[sound], bits)
        if isinstance(told, levels.Eight):
            assert (got["q"][sound].reshape(told.q.shape) == told.q).all()
            scale = (got["scale"][sound].astype(np.uint32) << 16).view(np.float32)
            assert (scale == told.scale).all()
        else:
            packed = got["q4"][sound].reshape(*told.q.shape[:2], 16)
            assert (np.concatenate([packed & 15, packed >> 4], axis=2) == told.q).all()
            assert (got["scale4"][sound] == told.scale).all()
            assert (got["low"][sound] == told.low).all()
            assert (got["unit"][sound] == told.unit).all()
        seen += len(sound)
    assert seen > 200


@pytest.mark.parametrize("bits", [8, 4])
def test_layers_are_what_the_contract_says(bits: int) -> None:
    for case in cases("integers", 20_000):
        ((kernel, _, _),) = case.launches
        if kernel != f"linear{bits}":
            continue
        a, y = case.arrays, case.run(device())["y"]
        g = a["xs"].shape[1]
        n = len(a["w"])
        if bits == 8:
            w: levels.Eight | levels.Four = levels.Eight(
                a["w"].reshape(n, g, 64).astype("i4"), widened(a["ws"], "bf16")
            )
        else:
            halves = a["w"].reshape(n, 2 * g, 16)
            q = np.concatenate([halves & 15, halves >> 4], axis=2).astype("i4")
            w = levels.Four(q, a["ws"].astype("i4"), a["low"].astype("i4"), a["unit"])
        bias = a["bias"] if case.launches[0][1][-5] else None
        for t in range(len(a["q"])):
            fed = levels.Eight(a["q"][t : t + 1].reshape(1, g, 64).astype("i4"), a["xs"][t : t + 1])
            assert levels.product(w, fed, bias).tobytes() == y[t, :n].tobytes()


def test_what_is_left_of_the_weights() -> None:
    """8.25 bits a weight, and 4.5, plus two floats a row."""
    assert nbytes(1000, 1024, 8) * 8 == 1000 * 1024 * 8.25
    assert nbytes(1000, 1024, 4) * 8 == 1000 * 1024 * 4.5 + 1000 * 64
    assert GROUP == levels.GROUP


@pytest.mark.parametrize(("bits", "most"), [(8, 0.006), (4, 0.08)])
def test_error_of_ordinary_weights(bits: int, most: float) -> None:
    w = np.random.default_rng(0).standard_normal((200, 1024)).astype(np.float32)
    off = levels.weights(w, bits).values(1024) - w
    assert 0.5 * most < np.sqrt((off**2).mean()) < most


def test_least_squares_beat_the_whole_range() -> None:
    """Each group's error is at most that of the range from its smallest to its largest value."""
    w = np.random.default_rng(1).standard_t(3, (300, 32)).astype(np.float32)
    low, high = np.minimum(w.min(axis=1), 0), np.maximum(w.max(axis=1), 0)
    step = (high - low)[:, None] / 15
    plain = np.rint((w - low[:, None]) / step) * step + low[:, None]
    made = levels.weights(np.pad(w, ((0, 0), (0, 32))), 4).values(32)
    before, after = ((plain - w) ** 2).sum(), ((made - w) ** 2).sum()
    assert after < 0.9 * before
