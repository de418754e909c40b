"""Another engine's activations against a record: how far apart, and whether noise explains it.

A record holds of each point, beside digests that no other arithmetic can meet, numbers that are
near where rows are near: samples, sketches, the largest values, moments, at a few positions;
totals over all; and whole tensors where they were kept. They are computed again from the other
engine's tensors, in float64, and judged point by point. No model is needed and nothing is run.

Each number is blind somewhere. The largest values do not see small ones; samples miss a single
entry; a sketch of clipped values does not see the clipped; means over positions do not see
what cancels. A point differs if any is beyond its threshold (``llmtrace.introspect.noise``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from llmtrace.errors import LlmtraceError, Trouble
from llmtrace.introspect.measures import Moments, clip_bound, moments, signs, sketch
from llmtrace.introspect.noise import (
    ENTRY,
    FEW_POINTS,
    LEAST,
    MOST,
    SKETCH_ROUNDING,
    TOTAL_BIAS,
    UNITS,
    WITNESSES,
    growth,
    is_exact,
)
from llmtrace.introspect.tensors import rows_of
from llmtrace.probes.points import Names
from llmtrace.probes.records import TOKEN_FIELDS, field, probe_seed, sample_indices

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy as np

    from llmtrace.engine.evidence import Claim
    from llmtrace.model.checkpoint import Tensor
    from llmtrace.probes.records import Stored

AGREES, DIFFERS, UNTOLD = "agrees", "differs", "untold"
NARROW = 32
"""Rows of fewer values have no sketches."""
_MADE_BY_EXPORT = (".samples", ".sample_index", ".positions")


@dataclass(frozen=True)
class Told:
    """The tolerant part of a record. ``points``: names and widths in the order of the plan."""

    claim: Claim
    points: Sequence[tuple[str, int]]
    stored: Stored | None
    kept: Mapping[str, np.ndarray]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The points, in the order in which they are made."""
        return tuple(name for name, _ in self.points) or tuple(self.kept)

    @cached_property
    def layers(self) -> int:
        """How deep the model is, as far as the points tell."""
        return sum(name.endswith(".hook_resid_post") for name in self.names)

    def drawn(self, column: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """What a point's probe drew: samples (N, 8) i64 where it is stored, signs (2, width)."""
        if column not in self._drawn:
            assert self.stored is not None
            positions = self.stored.positions[-len(_stored_rows(self.stored, column)[0]) :].tolist()
            seed = probe_seed(self.claim.model, self.claim.request.prompt)
            index = sample_indices(seed, column, positions, width)
            self._drawn[column] = index, signs(seed, column, width)
        return self._drawn[column]

    @cached_property
    def _drawn(self) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        return {}


@dataclass(frozen=True)
class Finding:
    """What one witness says: a distance, and the largest that noise explains."""

    witness: str
    value: float
    threshold: float

    @property
    def ratio(self) -> float:
        """Above 1 it is no noise."""
        return self.value / self.threshold if self.threshold > 0 else float(self.value > 0) * 2


@dataclass(frozen=True)
class Compared:
    """A tensor of the file and what the witnesses say of it; ``point`` is what it is a value of."""

    name: str
    point: str
    noise: float
    distance: float
    """Relative to the row, in root mean square over the positions at hand."""
    findings: tuple[Finding, ...]

    @property
    def worst(self) -> Finding | None:
        """The finding nearest to its threshold, or farthest beyond it."""
        return max(self.findings, key=lambda f: f.ratio, default=None)

    @property
    def judgement(self) -> str:
        """``agrees``, ``differs`` or, where the record has no number to compare, ``untold``."""
        if self.worst is None:
            return UNTOLD
        return DIFFERS if self.worst.ratio > 1 else AGREES


@dataclass(frozen=True)
class Comparison:
    """All tensors of a file, in the order in which their points are made."""

    noise: str
    level: float
    tensors: tuple[Compared, ...]
    ignored: tuple[str, ...]
    """Tensors of the file that are no points of the run."""

    @property
    def judgement(self) -> str:
        """Of the whole: one tensor that differs is enough."""
        found = {each.judgement for each in self.tensors}
        return DIFFERS if DIFFERS in found else AGREES if AGREES in found else UNTOLD

    @property
    def first(self) -> Compared | None:
        """The first tensor that differs, in the order in which points are made."""
        return next((each for each in self.tensors if each.judgement == DIFFERS), None)


def compare(told: Told, tensors: Mapping[str, Tensor], noise: str = "bfloat16") -> Comparison:
    """Judges the tensors of a file; ``noise`` is the type to which the engine may have rounded.

    Raises Trouble for a tensor of the wrong type or shape, or with a value that is not finite.
    """
    names = Names(told.names)
    found, ignored = [], []
    for name, tensor in tensors.items():
        try:
            point = names.resolve(name)
        except LlmtraceError:
            if not name.endswith(_MADE_BY_EXPORT):
                ignored.append(name)
            continue
        found.append((told.names.index(point), name, point, tensor))
    measured = []
    for column, name, point, tensor in sorted(found, key=lambda each: each[:2]):
        rows = rows_of(tensor, point, *_shape(told, column), told.claim.request.positions)
        measured.append((name, point, _Measured(told, column, rows)))
    unit = UNITS[noise]
    level = _level(told, unit, [(point, m) for _, point, m in measured])
    embed = max((m.distance for _, point, m in measured if point == "hook_embed"), default=0.0)
    rounding = math.hypot(unit, min(embed, unit))  # where the embedding is rounded all weights are
    entry = _entry([m for _, point, m in measured if point in ENTRY], rounding)
    compared = []
    for name, point, m in measured:
        scale = unit * growth(point, told.layers) * (1.0 if is_exact(point) else level)
        findings = list(m.findings(scale, unit))
        if m.dead and noise != "float16":  # in which what is small becomes zero
            findings.append(Finding("dead", 1.0, 0.0))
        if entry and point in ENTRY:
            findings.append(entry)
        compared.append(Compared(name, point, scale, m.distance, tuple(findings)))
    return Comparison(noise, level, tuple(compared), tuple(sorted(ignored)))


def _level(told: Told, unit: float, measured: list[tuple[str, _Measured]]) -> float:
    """How loud this file is, as a multiple of the profile of growth."""
    ratios = sorted(
        (m.distance if unit > SKETCH_ROUNDING / 2 else m.values.get("samples", 0.0))
        / (unit * growth(point, told.layers))
        for point, m in measured
        if m.width >= NARROW and not is_exact(point) and m.has_distance
    )
    if len(ratios) < FEW_POINTS:
        return 1.0
    return min(max(ratios[len(ratios) // 2], LEAST), MOST)


def _entry(measured: list[_Measured], unit: float) -> Finding | None:
    squares = [m.entry for m in measured if m.count]
    if not squares:
        return None
    numbers = sum(16 * m.count for m in measured)
    value = (sum(squares) / len(squares)) ** 0.5
    return Finding("entry", value, WITNESSES["entry"].threshold(unit, numbers))


class _Measured:
    """What the witnesses see in one tensor (R, width) f64, before anything is judged."""

    def __init__(self, told: Told, column: int, rows: np.ndarray) -> None:

        self.point, self.width, self.rows = told.names[column], rows.shape[1], len(rows)
        self.count, self.entry = 0, 0.0
        self.values: dict[str, float] = {}
        self.means: dict[str, float] = {}
        self.dead = False
        usual = 0.0
        if told.stored is not None and column < len(told.points):
            at, records = _stored_rows(told.stored, column)
            mine = moments(rows)
            usual = self._totals(told.stored.totals[column], mine)
            self._dead(told.stored.totals[column], rows)
            if len(at):
                drawn = told.drawn(column, self.width)
                self._records(drawn, records, rows[at], mine.at(at), usual)
        if self.point in told.kept:
            self._kept(told.kept[self.point], rows)
        if self.point == "unembed.hook_out" and told.stored is not None:
            self.values["logprob"] = _logprob(told, rows)

    @property
    def has_distance(self) -> bool:
        """Whether there is anything to take a distance from."""
        return bool({"linear", "samples", "kept"} & self.values.keys())

    @property
    def distance(self) -> float:
        """Root mean square of the difference, relative to the rows."""
        if "kept" in self.values:
            return self.values["kept"]
        if "linear" in self.values:
            samples, linear = self.values["samples"], self.values["linear"]
            return math.sqrt((8 * samples * samples + 4 * linear * linear) / 12)
        return self.values.get("samples", 0.0)

    def findings(self, noise: float, unit: float) -> Iterator[Finding]:
        """Judges all values by the noise of the point."""
        for name, value in self.values.items():
            count = self.rows if name in {"kept", "logprob"} else self.count
            yield Finding(name, value, WITNESSES[name].threshold(noise, count))
        for name, value in self.means.items():
            of_mean = TOTAL_BIAS * unit + noise / self.rows**0.5
            yield Finding(name, value, WITNESSES[name].threshold(of_mean, self.rows))

    def _records(
        self,
        drawn: tuple[np.ndarray, np.ndarray],
        records: np.ndarray,
        y: np.ndarray,
        mine: Moments,
        usual: float,
    ) -> None:
        import numpy as np

        (index, (linear, clipped)), width = drawn, self.width
        each = np.arange(len(y))[:, None]
        sample, top = _floats(records, "sample"), field(records, "top_index").astype(np.int64)
        rms, l1, most = (_floats(records, n) for n in ("rms", "l1", "top_value"))
        if (top >= width).any():
            raise Trouble(f"the record's numbers of '{self.point}' are not those of {width} values")
        unit = np.maximum(rms, usual)
        unit = np.where(unit > 0, unit, 1.0)
        self.count = len(y)
        apart = (y[each, index] - sample) / unit[:, None]
        self.values["samples"] = _rms(apart)
        if width >= NARROW:
            bound = clip_bound(l1, width)
            cut = np.clip(y, -bound[:, None], bound[:, None])
            share = (rms / unit)[:, None]  # a row smaller than usual has the noise of usual ones
            one = (sketch(y, linear, rms) - _floats(records, "linear_sketch")) * share
            two = (sketch(cut, clipped, bound) - _floats(records, "clipped_sketch")) * share
            self.values["linear"], self.values["clipped"] = _rms(one), _rms(two)
            self.values["worst"] = float(np.sqrt((two * two).mean(1)).max())
            two = two * (bound / np.where(rms > 0, rms, 1.0))[:, None]
            self.entry = float(
                (8 * _rms(apart) ** 2 + 4 * _rms(one) ** 2 + 4 * _rms(two) ** 2) / 16
            )
        count = min(top.shape[1], width)
        largest = -np.sort(-np.abs(y), axis=1)[:, :count]
        sizes = np.maximum(np.abs(most), unit[:, None])
        there = np.abs(y[each, top] - most) / sizes
        ranked = np.abs(largest - np.abs(most[:, :count])) / sizes[:, :count]
        self.values["largest"] = float(max(there.max(), ranked.max()))
        self.values["rms"] = float((np.abs(mine.rms - rms) / unit).max())
        if width >= NARROW:
            self.values["l1"] = float((np.abs(mine.l1 - l1) / width / unit).max())
            self.values["mean"] = float((np.abs(mine.mean - _floats(records, "mean")) / unit).max())
            change = np.abs(mine.entropy - _floats(records, "entropy")) * rms / unit
            self.values["entropy"] = float(change.max())

    def _kept(self, kept: np.ndarray, rows: np.ndarray) -> None:
        import numpy as np

        if kept.shape != rows.shape or not np.isfinite(kept).all():
            raise Trouble(f"the record's tensor of '{self.point}' is not {rows.shape} numbers")
        true = kept.astype(np.float64)
        energy = (true * true).mean(1)
        unit = np.maximum(energy, energy.mean())
        share = ((rows - true) ** 2).mean(1) / np.where(unit > 0, unit, 1.0)
        self.values["kept"] = math.sqrt(float(share.mean()))
        self.dead |= bool(((rows == 0).all(0) & (kept != 0).any(0)).any())

    def _dead(self, totals: np.ndarray, rows: np.ndarray) -> None:
        columns = int((rows == 0).all(0).sum())
        in_record = float(totals.view("<f4")[12]) * self.width  # zeros a row, at all positions
        self.dead = self.rows > 1 and in_record < columns - 0.5

    def _totals(self, totals: np.ndarray, mine: Moments) -> float:
        """Compares the means over all positions; gives the record's mean rms."""
        import numpy as np

        told = totals.view("<f4").astype(np.float64)
        if not np.isfinite(told[[0, 3, 4, 8, 12]]).all():
            raise Trouble(f"the record's totals of '{self.point}' are not finite")
        pairs = {
            "rms": (told[0], mine.rms),
            "l1": (told[3], mine.l1),
            "absmax": (told[4], mine.absmax),
        }
        for name, (true, found) in pairs.items():
            if true > 0 and (self.width >= NARROW or name == "rms"):
                self.means[f"total_{name}"] = float(abs(found.mean() - true) / true)
        if self.width >= NARROW:
            self.means["total_entropy"] = float(abs(mine.entropy.mean() - told[8]))
        return float(told[0])


def _stored_rows(stored: Stored, column: int) -> tuple[np.ndarray, np.ndarray]:
    """Of a point: the rows of its tensor that are stored, and their records."""
    inner = stored.points.shape[1]
    if column < inner:
        return stored.positions, stored.points[:, column]
    later = stored.positions[len(stored.positions) - len(stored.picked) :]
    return later - stored.first_pick, stored.picked[:, column - inner]


def _floats(records: np.ndarray, name: str) -> np.ndarray:
    import numpy as np

    found: np.ndarray = field(records, name).astype(np.float64)
    if not np.isfinite(found).all():
        raise Trouble(f"the record's '{name}' is not finite")
    return found


def _rms(values: np.ndarray) -> float:
    return math.sqrt(float((values * values).mean()))


def _logprob(told: Told, logits: np.ndarray) -> float:
    """Root mean square distance of the output's log-probabilities, relative to the logits."""
    import numpy as np

    assert told.stored is not None
    true = field(told.stored.drawn, "logprob", TOKEN_FIELDS).astype(np.float64)
    shifted = logits - logits.max(1, keepdims=True)
    output = np.array(told.claim.output)
    if len(output) != len(logits) or output.max() >= logits.shape[1] or output.min() < 0:
        raise Trouble("the record's output is not of its logits")
    found = shifted[np.arange(len(output)), output] - np.log(np.exp(shifted).sum(1))
    apart = (found - true) / np.maximum(np.sqrt((logits * logits).mean(1)), 1.0)
    return _rms(apart)


def _shape(told: Told, column: int) -> tuple[int, int]:
    """How many rows a point has in the run, and of how many values."""
    if column < len(told.points):
        assert told.stored is not None
        is_picked = column >= told.stored.points.shape[1]
        count = len(told.claim.output) if is_picked else told.claim.request.positions
        return count, told.points[column][1]
    shape = told.kept[told.names[column]].shape
    if len(shape) != 2:
        raise Trouble(f"the record's tensor of '{told.names[column]}' has shape {shape}")
    return int(shape[0]), int(shape[1])
