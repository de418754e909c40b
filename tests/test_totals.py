"""Totals: right against numpy, and the same bits however the positions come."""

import dataclasses
import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import seen as made
from llmtrace.introspect.features import FEATURES
from llmtrace.probes.records import Seen
from llmtrace.probes.totals import STRETCH, Totals

SHAPE = made.shape()
LONG, VALUES = made.run(SHAPE, 3 * STRETCH + 5, 40, seed=1)


def totals(parts: list[Seen]) -> Totals:
    found = Totals(SHAPE, FEATURES)
    for part in parts:
        found.add(part)
    return found


def bits(of: Totals) -> str:
    spreads = [s for f in FEATURES for s in of.spreads(f.name)]
    numbers = np.array([(s.mean, s.low, s.high, s.n) for s in spreads])
    data = of.points().tobytes() + of.heads().tobytes() + numbers.tobytes()
    return hashlib.sha256(data).hexdigest()


WHOLE = bits(totals([LONG]))


@given(st.lists(st.tuples(st.integers(0, len(LONG.positions)), st.booleans()), max_size=12))
@settings(max_examples=40, deadline=None)
def test_no_chunking_moves_a_bit(ends: list[tuple[int, bool]]) -> None:
    """Nor does asking in between, which has what waits be added."""
    found = Totals(SHAPE, FEATURES)
    asked = [asks for _, asks in sorted(ends)] + [False]
    parts = made.cut(LONG, [end for end, _ in sorted(ends)])
    for part, asks in zip(parts, asked, strict=True):
        found.add(part)
        if asks:
            bits(found)
    assert bits(found) == WHOLE


def test_one_at_a_time_moves_no_bit() -> None:
    assert bits(totals(made.cut(LONG, list(range(1, len(LONG.positions)))))) == WHOLE


def test_what_was_given_may_change_afterwards() -> None:
    """A step's arrays are the device's, and the next step overwrites them."""
    parts = made.cut(LONG, [1, 2, 3, 50])
    found = Totals(SHAPE, FEATURES)
    for part in parts:
        copy = Seen(*(getattr(part, name).copy() for name in Seen.__dataclass_fields__))
        found.add(copy)
        for name in Seen.__dataclass_fields__:
            getattr(copy, name)[...] = 1
    assert bits(found) == WHOLE


def test_a_sum_in_another_order_is_seen() -> None:
    """The tests above can fail: the same values backwards have other last bits."""
    back = dataclasses.replace(LONG, points=LONG.points[::-1])
    there, here = totals([LONG]), totals([back])
    names = [f.name for f in FEATURES if f.of == "layer" and not f.since]
    a, b = ([s.mean for n in names for s in t.spreads(n)] for t in (there, here))
    np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)
    assert a != b


def test_bits_are_those_of_every_machine() -> None:
    n, m, columns = 70, 9, len(SHAPE.points)
    mixed = np.arange(n * columns * 6, dtype=np.uint64) * np.uint64(2654435761) % np.uint64(4001)
    points = np.zeros((n, columns, 32), np.uint32)
    points[..., :6] = (mixed + np.uint64(1)).astype("<f4").view("<u4").reshape(n, columns, 6)
    points[..., 12:16] = points[..., :4]
    picked, heads = points[-m:, : len(SHAPE.picked)], points[:, :6, :8].reshape(n, 2, 3, 8)
    seen = Seen(np.arange(n), np.arange(n) * 7 % 9, points, picked, heads, points[-m:, 0, :4])
    assert bits(totals([seen]))[:32] == "24628c9ddf1e4d3dd0fcf53d4652880d"


def test_positions_come_in_order() -> None:
    found = totals(made.cut(LONG, [4])[:1])
    with pytest.raises(ValueError, match="position 4 is next"):
        found.add(LONG)
    assert (found.positions, found.output) == (4, 0)


def words(of: np.ndarray, *at: int) -> np.ndarray:
    return of[..., list(at)].copy().view("<f4").astype(np.float64)


@pytest.mark.parametrize("late", [False, True])
def test_totals_of_points_are_what_numpy_says(late: bool) -> None:
    found = totals([LONG]).points()
    names = SHAPE.picked if late else SHAPE.points
    found = found[len(SHAPE.points) :] if late else found[: len(SHAPE.points)]
    first = len(LONG.positions) - 40 if late else 0
    records = (LONG.picked if late else LONG.points).copy().view("<f4").astype(np.float64)
    for column, (name, width) in enumerate(names):
        of, x = records[:, column], VALUES[name][first:].astype(np.float64)
        expected = [of[:, 0].mean(), of[:, 0].std(ddof=1), of[:, 1].mean(), of[:, 2].mean()]
        expected += [of[:, 3].mean(), of[:, 3].max(), of[:, 4].mean(), of[:, 4].std(ddof=1)]
        expected += [of[:, 5].mean(), of[:, 5].std(ddof=1)]
        got = words(found[column], *range(10))
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=2e-7)
        at = np.unravel_index(np.abs(x).argmax(), x.shape)
        assert found[column, 10:12].tolist() == [first + at[0], at[1]]
        near = np.abs(x) < np.abs(x).max(1, keepdims=True) / 1024
        outside = np.abs(x) > 2 * np.abs(x).mean(1, keepdims=True)
        shares = [(x == 0).mean(), near.mean(), outside.mean()]
        np.testing.assert_allclose(words(found[column], 12, 14, 15), shares, rtol=1e-6)
        assert found[column, 13] == 0
        assert width == x.shape[1]


def test_totals_of_heads_are_what_the_patterns_say() -> None:
    found, patterns = totals([LONG]).heads(), VALUES["patterns"]
    n, tokens = len(LONG.positions), LONG.tokens.tolist()
    at = np.arange(1, n)
    for layer, head in np.ndindex(found.shape[:2]):
        p = patterns[:, layer, head]
        live = np.where(p > 0, p, 1)
        spread = -(p * np.log(live)).sum(1)[1:] / np.log(at + 1)
        back = (p * (np.arange(n)[:, None] - np.arange(n))).sum(1)[1:] / at
        top = p.argmax(1)
        repeats = [
            (t, max(j for j in range(t) if tokens[j] == tokens[t]))
            for t in range(1, n)
            if tokens[t] in tokens[:t]
        ]
        expected = [spread.mean(), p[1:, 0].mean(), p[at, at].mean(), p[at, at - 1].mean()]
        expected += [back.mean(), (top[1:] == 0).mean()]
        expected += [np.mean([top[t] == j + 1 for t, j in repeats])]
        np.testing.assert_allclose(found[layer, head, :7], expected, rtol=1e-5)
    largest = words(LONG.heads[1:], 2).max(axis=0)[..., 0]
    np.testing.assert_array_equal(found[..., 7], largest.astype(np.float32))


def test_first_of_equal_extremes_counts() -> None:
    seen, _ = made.run(SHAPE, STRETCH + 4, 2)
    seen.points[:, 0, 3] = np.float32(5).view("<u4")
    seen.points[:, 0, 6] = np.arange(STRETCH + 4)
    seen.points[:3, 0, 3] = np.float32(4).view("<u4")
    assert totals(made.cut(seen, [1, 5])).points()[0, 10:12].tolist() == [3, 3]


def test_counts_that_overflow_a_word_are_clamped() -> None:
    seen, _ = made.run(SHAPE, 140, 1)
    seen.points[:, 1:3, 29] = [2**25, 2**24]
    assert totals([seen]).points()[1:3, 13].tolist() == [2**32 - 1, 140 * 2**24]


def test_a_run_of_one_position_has_totals() -> None:
    seen, _ = made.run(SHAPE, 1, 1)
    found = totals([seen])
    assert np.isfinite(found.points()[:, :10].view("<f4")).all()
    assert not words(found.points(), 1, 7, 9).any()
    assert not found.heads().any()
    assert found.spreads("attn_sink") == []
    assert [s.n for s in found.spreads("stream_rms")] == [1, 1]


def test_nothing_seen_is_nothing() -> None:
    found = totals([])
    assert not found.points().any()
    assert not found.heads().any()


def test_rows_of_zeros_leave_no_number_without_a_name() -> None:
    seen, _ = made.run(SHAPE, 3, 1)
    seen.points[:, :, :16] = 0
    found = totals([seen])
    spreads = [s for f in FEATURES for s in found.spreads(f.name)]
    assert np.isfinite([(s.mean, s.low, s.high) for s in spreads]).all()
