"""What a run record says, its parts read with care: strangers wrote it, so it is Trouble at worst.

Reading believes nothing and proves nothing: ``llmtrace.verify.verify`` says what is true.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from llmtrace.engine import evidence
from llmtrace.errors import Trouble
from llmtrace.introspect import features
from llmtrace.probes import first, records
from llmtrace.probes.commitment import STORED
from llmtrace.verify.sampled import Sampled, sampled

if TYPE_CHECKING:
    import numpy as np

    from llmtrace.store.entry import Entry
    from llmtrace.store.record import Record

_WORDS = 32  # of a probe record of format 1, as kernels/moments.cu lays it out
_POINTS = 1 << 17  # of a model; one of 1,000 layers has 17,000
_FEATURES = 4 << 20  # bytes of features.json; a layer takes some 400


class Features(NamedTuple):
    """``features.json`` of either format: means over positions, and all that stands there."""

    run: dict[str, float]
    places: dict[str, dict[str, float]]  # by point (format 1) or by layer, in their order
    json: dict[str, Any]  # as it stands, floats as hexadecimal strings


class Roots(NamedTuple):
    """``digests.bin``: the first 16 bytes of each root."""

    positions: list[bytes]
    points: list[bytes]


@dataclass(frozen=True)
class Run:
    """A run as its record tells it; parts are read when they are asked for."""

    id: str
    record: Record
    claim: evidence.Claim

    @classmethod
    def of(cls, entry: Entry) -> Run:
        """Reads the record of a run; raises Trouble for another kind or a malformed record."""
        record = entry.record
        if record.kind != "run":
            why = f"'{entry.id[:8]}' is a record of kind '{record.kind}', not of a run"
            raise Trouble(why, "list runs with 'llmtrace log'")
        try:
            return cls(entry.id, record, evidence.claim(record.sections))
        except Trouble as error:
            raise Trouble(f"'{entry.id[:8]}': {error}") from None

    @property
    def model_name(self) -> str:
        """What its author calls the model."""
        return str(self.record.sections["attested"]["model"])

    @cached_property
    def prompt(self) -> str | None:
        """The prompt, where it was text."""
        return self._text("prompt.txt")

    @cached_property
    def output(self) -> str | None:
        """The output as text, where the model has a tokenizer."""
        return self._text("output.txt")

    @cached_property
    def roots(self) -> Roots:
        """The commitment to the inside."""
        data = self._part("digests.bin")
        if data is None:
            raise self._malformed("digests.bin", "missing")
        positions = self.claim.request.positions
        points = len(data) // STORED - positions
        if len(data) % STORED or not 0 < points <= _POINTS:
            raise self._malformed("digests.bin", f"{len(data)} bytes for {positions} positions")
        rows = [data[at : at + STORED] for at in range(0, len(data), STORED)]
        return Roots(rows[:positions], rows[positions:])

    @cached_property
    def leaves(self) -> bytes:
        """``leaves.bin``, of as many leaves at each position; b"" where there is none."""
        data = self._part("leaves.bin")
        if (data is not None) != self.claim.leaves:
            raise self._malformed("leaves.bin", "not as the record says")
        if data is not None and (not data or len(data) % (STORED * self._positions)):
            why = f"{len(data)} bytes for {self._positions} positions"
            raise self._malformed("leaves.bin", why)
        return data or b""

    @cached_property
    def stored(self) -> records.Stored | None:
        """What probes of format 2 measured; None where there are none."""
        data = self._part("probes.bin")
        if data is None or self.claim.probes < 2:
            return None
        try:
            found = records.read_probes_bin(data)
        except ValueError as error:
            raise self._malformed("probes.bin", str(error)) from None
        if len(found.drawn) != len(self.claim.output):
            raise self._malformed("probes.bin", "sizes do not fit the run")
        if found.first_pick != len(self.claim.request.prompt) - 1:
            raise self._malformed("probes.bin", "the first token is drawn elsewhere")
        self._check_positions(found.positions.tolist())
        return found

    @cached_property
    def _first(self) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """What probes of format 1 measured: logprobs (G,), positions (N,), records (N, L, 32)."""
        data = self._part("probes.bin")
        if data is None or self.claim.probes != 1:
            return None
        try:
            logprobs, positions, found = first.read_probes_bin(data)
        except ValueError as error:
            raise self._malformed("probes.bin", str(error)) from None
        if len(logprobs) != len(self.claim.output) or (len(found) and found.shape[2] != _WORDS):
            raise self._malformed("probes.bin", "sizes do not fit the run")
        self._check_positions(positions.tolist())
        return logprobs, positions, found

    def _check_positions(self, positions: list[int]) -> None:
        if positions != sorted({*positions}) or max(positions, default=0) >= self._positions:
            raise self._malformed("probes.bin", "positions are not those of the run")

    @property
    def logprobs(self) -> np.ndarray | None:
        """Of the output tokens: (G,) f32; None at level off."""
        if self.stored:
            return records.field(self.stored.drawn, "logprob", records.TOKEN_FIELDS)
        return self._first[0] if self._first else None

    @cached_property
    def points(self) -> list[tuple[str, int]]:
        """Names and widths of the points that probes of format 2 measured, in their order."""
        stored, features = self.stored, self.features
        if stored is None or features is None:
            return []
        try:
            found = records.points_of(features.json["points"], stored.heads.shape[1])
        except (KeyError, TypeError, ValueError) as error:
            raise self._malformed("features.json", f"points: {error}") from None
        if len(found) != len(stored.totals) or not all(0 < w < 1 << 31 for _, w in found):
            raise self._malformed("features.json", "its points are not those of probes.bin")
        return found

    @cached_property
    def sampled(self) -> dict[str, Sampled]:
        """The samples of each point, in the order of the plan."""
        if self.stored is None and self._first is None:
            return {}
        try:
            return sampled(self.claim, self._part("probes.bin") or b"", self.points)
        except ValueError as error:
            raise self._malformed("probes.bin", str(error)) from None

    @cached_property
    def features(self) -> Features | None:
        """Means over all positions; None at level off."""
        data = self._part("features.json")
        if data is None:
            return None
        if len(data) > _FEATURES:  # JSON takes some thirty times its bytes
            raise self._malformed("features.json", f"{len(data)} bytes, at most {_FEATURES}")
        try:
            return _features(data, self.claim.probes)
        except (ValueError, TypeError, KeyError, RecursionError, OverflowError) as error:
            raise self._malformed("features.json", str(error)) from None

    @cached_property
    def kept(self) -> dict[str, np.ndarray]:
        """The whole tensors that were kept, by the names of their points: (T, width) f32."""
        data = evidence.kept_tensors(self.record.parts)
        if not data and not self.claim.keep:
            return {}
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            found: dict[str, np.ndarray] = load(data)
        except (SafetensorError, KeyError, ValueError) as error:
            raise self._malformed("kept.000", str(error)) from None
        if {*found} != {*self.claim.keep} or any(t.dtype.str != "<f4" for t in found.values()):
            raise self._malformed("kept.000", "not the float32 tensors that the record names")
        return found

    def samples(self) -> dict[str, np.ndarray]:
        """What was sampled of each point, of the N stored positions.

        ``….samples`` (N, 8) f32, ``….sample_index`` (N, 8) i32 and ``….positions`` (N,) i32.
        """
        import numpy as np

        found: dict[str, np.ndarray] = {}
        for point, (positions, indices, values) in self.sampled.items():
            if positions:
                found[f"{point}.samples"] = values
                found[f"{point}.sample_index"] = indices.astype("<i4")
                found[f"{point}.positions"] = np.array(positions, "<i4")
        return found

    @property
    def _positions(self) -> int:
        return self.claim.request.positions

    def _part(self, name: str) -> bytes | None:
        return self.record.parts.get(name)

    def _text(self, name: str) -> str | None:
        data = self._part(name)
        try:
            return None if data is None else data.decode()
        except UnicodeDecodeError as error:
            raise self._malformed(name, f"not UTF-8 text at byte {error.start}") from None

    def _malformed(self, name: str, why: str) -> Trouble:
        return Trouble(f"'{self.id[:8]}': '{name}' is malformed: {why[:200]}")


def _features(data: bytes, form: int) -> Features:
    whole = json.loads(data, parse_float=_no_float, parse_constant=_no_float)
    if form > 1:
        found = features.read(whole)
        run = {name: one.mean for name, one in found.run.items()}
        count = len(next(iter(found.layers.values()), ()))
        by_layer = {
            f"layers.{layer}": {name: row[layer].mean for name, row in found.layers.items()}
            for layer in range(count)
        }
        return Features(run, by_layer, whole)
    if not isinstance(whole, dict) or whole["v"] != 1 or not isinstance(whole["points"], dict):
        raise TypeError("no object of version 1 with points")
    if type(whole["positions"]) is not int or whole["positions"] < 0:
        raise ValueError("positions is no number")
    points = {}
    for name in sorted(whole["points"], key=_by_layer):
        moments = whole["points"][name]
        if not isinstance(moments, dict):
            raise TypeError("a point is no object")
        points[name] = {moment: _exact(text) for moment, text in moments.items()}
    return Features({"logprob": _exact(whole["logprob"])}, points, whole)


def _exact(text: Any) -> float:
    value = float.fromhex(text)
    if value.hex() != text:
        raise ValueError(f"a float that is not in its hexadecimal form: {text[:20]}")
    return value


def _by_layer(point: str) -> list[tuple[int, str]]:
    """Sorts ``blocks.2…`` before ``blocks.10…``."""
    return [(len(piece) if piece.isdigit() else 0, piece) for piece in re.split(r"(\d+)", point)]


def _no_float(text: str) -> float:
    raise ValueError(f"a float that is no hexadecimal string: {text[:20]}")
