"""Invariants of what probes measured: each record of a point is that of its row."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmtrace.blocks.block import makers
from llmtrace.introspect.invariants.bounds import LANES, U
from llmtrace.introspect.invariants.sampling import philox
from llmtrace.introspect.measures import LARGEST, counts, largest
from llmtrace.probes.records import probe_seed

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

    from llmtrace.introspect.invariants.case import Case, Invariant

RMS, MEAN, L1, ABSMAX, KURTOSIS, ENTROPY, ARGMAX = range(7)
TOP, TOP_VALUES, SAMPLES, SKETCHES = slice(8, 12), slice(12, 16), slice(16, 24), slice(24, 28)
COUNTS = slice(28, 32)
PLAIN = (2.0**-30, 2.0**30)
"""Absolute maxima of rows whose fourth powers neither vanish nor overflow."""


def records(case: Case) -> Invariant:
    """Counts, extremes and samples to the bit; moments, entropy and sketches in float64."""
    formula = "equal bits; sums: their roundings at worst; sketches: a step of f16 as well"
    tally = case.tally("probe records", formula, compares=True)
    writer = makers(case.blocks)
    names = [point.name for block in case.blocks for point in block.points]
    inner = case.inside.points.shape[1]
    seed = probe_seed(case.model.id, case.claim.request.prompt)
    for column, name in enumerate(names):
        is_inner = column < inner
        found = case.inside.points[:, column] if is_inner else case.inside.picked[:, column - inner]
        rows, at, block = case.rows(name), case.at(name), writer[name].name
        for part, got, wanted in _exact(rows, found):
            tally.within(block, f"{name} {part}", at, got, wanted, 0.5)
        for part, got, wanted, bound in _sums(rows, found):
            tally.within(block, f"{name} {part}", at, got, wanted, bound)
        got, wanted, bound = _sketches(rows, found, seed, column)
        tally.within(block, f"{name} sketches", at, got, wanted, bound)
        places = _places(rows.shape[1], seed, column, at)
        right = _bits(rows)[_each(rows), places]
        tally.within(block, f"{name} samples", at, found[:, SAMPLES], right, 0.5)
    return tally.result()


def _exact(rows: np.ndarray, found: np.ndarray) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    import numpy as np

    top = largest(rows)
    yield "absmax", found[:, [ABSMAX]], _bits(np.abs(rows)[_each(rows), top[:, :1]])
    yield "argmax", found[:, [ARGMAX]], top[:, :1]
    yield "largest", found[:, TOP], top
    yield "largest values", found[:, TOP_VALUES], _bits(rows[_each(rows), top])
    yield "counts", found[:, COUNTS], counts(rows, _float(found[:, L1]))


def _sums(
    rows: np.ndarray, found: np.ndarray
) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    import numpy as np

    x, width = rows.astype(np.float64), rows.shape[1]
    steps = _steps(width)
    l1 = np.abs(x).sum(axis=1)
    yield "l1", _float(found[:, L1]), l1, steps * U * l1
    yield "mean", _float(found[:, MEAN]), x.sum(axis=1) / width, steps * U * l1 / width
    most = np.abs(x).max(axis=1)
    plain = (most > PLAIN[0]) & (most < PLAIN[1])
    x, found = x[plain], found[plain]

    def whole(values: np.ndarray) -> np.ndarray:
        """Of rows that are not plain nothing is got and nothing wanted."""
        filled = np.zeros(len(plain))
        filled[plain] = values
        return filled

    squares = x**2
    total = squares.sum(axis=1)
    rms = np.sqrt(total / width)
    kurtosis = (squares**2).sum(axis=1) / width / rms**4
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.where(squares > 0, squares * np.log(squares), 0.0)
    mixed = logs.sum(axis=1) / total
    entropy = np.log(total) - mixed
    size = np.abs(np.log(total)) + np.abs(logs).sum(axis=1) / total + 1
    for name, word, right, bound in (
        ("rms", RMS, rms, steps * U * rms),
        ("kurtosis", KURTOSIS, kurtosis, 4 * steps * U * kurtosis),
        ("entropy", ENTROPY, np.maximum(entropy, 0), 2.0**-17 + 4 * steps * U * size),
    ):
        yield name, whole(_float(found[:, word])), whole(right), whole(bound)


def _sketches(
    rows: np.ndarray, found: np.ndarray, seed: int, column: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Eight entries (N, 8): linear ones, then clipped ones."""
    import numpy as np

    x, width = rows.astype(np.float64), rows.shape[1]
    limit = 2 * _float(found[:, [L1]]).astype(np.float64) / width
    rms = _float(found[:, [RMS]]).astype(np.float64)
    words = _signs(seed, column, -(-width // 32))
    wanted, size = [], []
    for half, (values, unit) in enumerate(((x, rms), (np.clip(x, -limit, limit), limit))):
        bits = words[:, None] >> np.arange(32 * half, 32 * half + 32, dtype=np.uint64) & np.uint64(
            1
        )
        signs = 1 - 2.0 * bits.reshape(-1)[:width].astype(np.float64)
        scale = unit * np.sqrt(width / 4)
        safe = np.where(scale > 0, scale, 1.0)
        wanted.append(np.where(scale > 0, _quarters(values * signs) / safe, 0.0))
        size.append(_quarters(np.abs(values)) / safe)
    whole = np.clip(np.concatenate(wanted, axis=1), -LARGEST, LARGEST)
    bound = (_steps(width) + 4) * U * np.concatenate(size, axis=1)
    bound += 2.0**-10 * np.abs(whole) + 2.0**-24
    packed = np.ascontiguousarray(found[:, SKETCHES]).view(np.float16)
    return packed.astype(np.float64), whole, bound


def _quarters(rows: np.ndarray) -> np.ndarray:
    """Sums (N, 4) of each quarter of every 32 columns."""
    import numpy as np

    chunks = -(-rows.shape[1] // 32)
    filled = np.zeros((len(rows), chunks * 32))
    filled[:, : rows.shape[1]] = rows
    sums: np.ndarray = filled.reshape(len(rows), chunks, 4, 8).sum(axis=(1, 3))
    return sums


def _signs(seed: int, column: int, chunks: int) -> np.ndarray:
    """Sign bits (chunks,) u64: splitmix64 of the seed, the point's column and 32 columns each."""
    import numpy as np

    count = np.arange(1, chunks + 1, dtype=np.uint64) | np.uint64(column << 32)
    z = np.uint64(seed) + np.uint64(0x9E3779B97F4A7C15) * count
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = (z ^ z >> np.uint64(shift)) * np.uint64(factor)
    found: np.ndarray = z ^ z >> np.uint64(31)
    return found


def _places(width: int, seed: int, column: int, positions: np.ndarray) -> np.ndarray:
    """Where the 8 samples of each row stand: (N, 8)."""
    import numpy as np

    edges = np.array([width * i // 8 for i in range(9)])
    at = positions.astype(np.uint64)
    words = [
        np.broadcast_to(np.asarray(word, np.uint64), at.shape)
        for block in range(2)
        for word in philox(seed, (at, column, block, 1))
    ]
    lengths = np.diff(edges).astype(np.uint64)
    found: np.ndarray = edges[:-1] + (np.stack(words, axis=1) * lengths >> np.uint64(32)).astype(
        int
    )
    return found


def _steps(width: int) -> float:
    """Roundings of a row's sum, one after the other, and of what is done with it."""
    return min(LANES, -(-width // LANES)) + 5 + -(-width // 1024) + 4.01


def _each(rows: np.ndarray) -> np.ndarray:
    import numpy as np

    return np.arange(len(rows))[:, None]


def _bits(rows: np.ndarray) -> np.ndarray:
    import numpy as np

    return np.ascontiguousarray(rows).view(np.uint32)


def _float(words: np.ndarray) -> np.ndarray:
    import numpy as np

    return np.ascontiguousarray(words).view(np.float32)
