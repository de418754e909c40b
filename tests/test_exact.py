"""Float64 that is the same everywhere: against decimal, closed forms and known numbers."""

import hashlib
import math
import random
import statistics
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtrace.probes import exact

FINITE = st.floats(allow_nan=False, allow_infinity=False)


def ulps(got: float, wanted: Decimal) -> float:
    unit = Decimal(math.ulp(float(wanted)))
    return float(abs(Decimal(got) - wanted) / unit)


def sample(count: int, low: float, high: float, seed: int) -> list[float]:
    draw = random.Random(seed)
    return [draw.uniform(low, high) for _ in range(count)]


def worst(values: list[float], got: np.ndarray, oracle: str) -> float:
    with localcontext() as context:
        context.prec = 40
        ln2 = Decimal(2).ln()
        wanted = {"log": Decimal.ln, "exp": Decimal.exp, "log2": lambda d: d.ln() / ln2}[oracle]
        return max(
            ulps(float(g), wanted(Decimal(v))) for v, g in zip(values, got, strict=True) if v != 1
        )


def test_log_is_within_one_ulp() -> None:
    values = [2.0**e for e in sample(1500, -1074, 1023, 1)] + sample(1500, 0.5, 2.0, 2)
    values += [1 + 2.0**-52, 1 - 2.0**-53, 5e-324, 1e-310, 2.0**-1022, 1.7976931348623157e308]
    values += [float(n) for n in range(2, 2000, 7)]
    assert worst(values, exact.log(values), "log") < 1.0
    assert worst(values, exact.log2(values), "log2") < 2.0


def test_exp_is_within_one_ulp() -> None:
    values = sample(1500, -708, 709.7, 3) + sample(1500, -1.0, 1.0, 4) + [2.0**-60, -(2.0**-60)]
    assert worst(values, exact.exp(values), "exp") < 1.0
    below = sample(300, -745, -708, 5)  # subnormal results
    assert worst(below, exact.exp(below), "exp") < 1.0


def test_edges_have_names() -> None:
    inf, nan = math.inf, math.nan
    assert exact.log([0.0, -0.0, inf, 1.0]).tolist() == [-inf, -inf, inf, 0.0]
    assert np.isnan(exact.log([-1.0, -inf, nan])).all()
    assert exact.exp([0.0, -0.0, inf, -inf, 710.0, -746.0]).tolist() == [1, 1, inf, 0, inf, 0]
    assert np.isnan(exact.exp(nan))
    powers = [2.0**k for k in range(-1074, 1024)]
    assert exact.log2(powers).tolist() == list(range(-1074, 1024))


def test_shapes_are_kept_and_scalars_taken() -> None:
    grid = np.arange(1.0, 25.0).reshape(2, 3, 4)[:, ::-1]
    assert exact.log(grid).shape == exact.exp(grid).shape == (2, 3, 4)
    assert exact.total(grid, 1).tolist() == grid.sum(1).tolist()
    assert float(exact.exp(1)) == pytest.approx(math.e, rel=3e-16)
    assert float(exact.log(np.float32(1))) == 0.0
    assert exact.total(np.zeros((3, 0))).tolist() == [0, 0, 0]
    assert exact.mean([]).item() == 0


@given(st.lists(st.integers(-(2**40), 2**40), max_size=70))
def test_total_of_integers_is_their_sum(values: list[int]) -> None:
    assert float(exact.total(values)) == sum(values)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=70))
def test_total_is_the_tree_that_it_says(values: list[float]) -> None:
    level = [*values, *[0.0] * ((1 << (len(values) - 1).bit_length()) - len(values))]
    while len(level) > 1:
        half = len(level) // 2
        level = [a + b for a, b in zip(level[:half], level[half:], strict=True)]
    assert float(exact.total(values)) == level[0]
    rows = np.array([values, values[::-1]])
    assert exact.total(rows)[0] == level[0]
    assert exact.total(rows.T, 0)[0] == level[0]
    assert float(exact.dot(values, np.ones(len(values)))) == level[0]


def test_bits_are_those_of_every_machine() -> None:
    """Made once and written down: another machine, numpy or compiler gives the same."""
    x = np.arange(1, 4001, dtype=np.float64) / 7.0
    made = [exact.log(x), exact.exp(x / 50 - 6), exact.log2(x), exact.total(x.reshape(40, 100))]
    made += [exact.softmax(x / 9), exact.entropy(exact.softmax(x / 9)), exact.logsumexp(x)]
    digest = hashlib.sha256(b"".join(np.asarray(m, "<f8").tobytes() for m in made)).hexdigest()
    assert digest[:32] == "efcd3fd5319f4991abf9a2efb5709024"


def test_shares_and_their_entropy() -> None:
    assert exact.softmax([[0.0, 0.0, -math.inf]]).tolist() == [[0.5, 0.5, 0.0]]
    assert float(exact.entropy([0.25] * 4 + [0.0])) == pytest.approx(math.log(4), rel=1e-15)
    assert float(exact.entropy([1.0, 0.0])) == 0.0
    assert float(exact.logsumexp([1000.0, 1000.0])) == pytest.approx(1000 + math.log(2), rel=1e-15)


def within_t(t: float, freedom: int) -> float:
    """P(|T| < t), the closed form of Abramowitz and Stegun 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    term = cosine if freedom % 2 else 1.0
    found = 0.0
    for k in range(freedom % 2, freedom - 1, 2):
        found += term
        term *= cosine * cosine * (k + 1) / (k + 2)
    return 2 / math.pi * (angle + sine * found) if freedom % 2 else sine * found


@pytest.mark.parametrize("freedom", [*range(1, 60), 100, 999, 20000])
def test_quantiles_of_students_t(freedom: int) -> None:
    assert within_t(exact.student_975(freedom), freedom) == pytest.approx(0.95, abs=2e-7)


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=40))
@settings(max_examples=60)
def test_spread_is_mean_and_interval(values: list[float]) -> None:
    found = exact.spread(values)
    half = exact.student_975(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    assert found.n == len(values)
    assert found.mean == pytest.approx(statistics.fmean(values), rel=1e-12, abs=1e-9)
    assert found.high - found.mean == pytest.approx(half, rel=1e-6, abs=1e-6)
    assert found.mean - found.low == pytest.approx(half, rel=1e-6, abs=1e-6)


def test_spread_of_one_and_of_none() -> None:
    assert exact.spread([3.0]) == exact.Spread(3.0, 3.0, 3.0, 1)
    with pytest.raises(ValueError, match="no values"):
        exact.spread([])


def test_interval_holds_the_mean_as_often_as_it_says() -> None:
    draw = np.random.default_rng(5)
    held = sum(
        abs(s.mean) <= s.high - s.mean for s in map(exact.spread, draw.normal(size=(2000, 8)))
    )
    assert 0.93 < held / 2000 < 0.97


def test_spearman_is_the_correlation_of_ranks() -> None:
    draw = np.random.default_rng(1)
    for n in (4, 9, 30, 200):
        x, y = draw.integers(0, 9, n), draw.normal(size=n)
        a = [sum(v < w for v in x) + (1 + sum(v == w for v in x)) / 2 for w in x]
        assert exact.ranks(x).tolist() == a
        found = exact.spearman(x, y)
        assert found.mean == pytest.approx(np.corrcoef(a, y.argsort().argsort())[0, 1], abs=1e-12)
        assert -1 <= found.low <= found.mean <= found.high <= 1
    assert exact.spearman([1, 2, 3, 4, 5], [2, 4, 6, 8, 9]).mean == 1.0
    assert exact.spearman([1, 2, 3, 4, 5], [5, 4, 3, 2, 1]).mean == -1.0
    assert exact.spearman([1, 2, 3], [7, 7, 7]) == exact.Spread(0.0, -1.0, 1.0, 3)
    known = exact.spearman([1, 2, 3, 4, 5], [1, 3, 2, 5, 4])
    assert known.mean == pytest.approx(0.8, abs=1e-15)
    half = 1.959964 * math.sqrt((1 + 0.32) / 2)
    assert known.low == pytest.approx(math.tanh(math.atanh(0.8) - half), abs=1e-6)
    assert known.high == pytest.approx(math.tanh(math.atanh(0.8) + half), abs=1e-6)
    with pytest.raises(ValueError, match="no pairs"):
        exact.spearman([1, 2], [1])


def test_interval_of_a_correlation_holds_it() -> None:
    draw, held = np.random.default_rng(2), 0
    for _ in range(600):
        x, noise = draw.normal(size=(2, 40))
        found = exact.spearman(x, 0.6 * x + 0.8 * noise)
        held += found.low <= 6 / math.pi * math.asin(0.3) <= found.high  # of normal pairs
    assert 0.92 < held / 600 < 0.98


@given(st.floats(0, 1))
def test_q16_rounds_halves_upward(x: float) -> None:
    assert exact.q16(x) == math.floor(Fraction(x) * 65536 + Fraction(1, 2))


def test_q16_stays_in_its_range() -> None:
    assert [exact.q16(x) for x in (-1.0, 0.0, 0.5, 1.0, 7.0)] == [0, 0, 32768, 65536, 65536]


@given(FINITE)
def test_hex32_is_the_nearest_float32(x: float) -> None:
    clamped = min(max(x, -exact.LARGEST), exact.LARGEST)
    text = exact.hex32(x)
    assert float.fromhex(text) == float(np.float32(clamped))
    assert len(text) <= 16
    assert exact.hex32(float.fromhex(text)) == text


def test_hex32_names_every_number() -> None:
    names = {0.0: "0x0p+0", 1.5: "0x1.8p+0", -math.inf: "-0x1.fffffep+127", 2.0: "0x1p+1"}
    assert {x: exact.hex32(x) for x in names} == names
    assert exact.hex32(math.nan) == "nan"
