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
from llmtrace.probes.commitment import STORED
from llmtrace.probes.records import read_probes_bin

if TYPE_CHECKING:
    import numpy as np

    from llmtrace.store.entry import Entry
    from llmtrace.store.record import Record

_WORDS = 32  # of a probe record, as kernels/moments.cu lays it out
_INDICES, _VALUES = slice(16, 24), slice(24, 32)  # of its samples
_POINTS = 1 << 17  # of a model; one of 1,000 layers has 17,000
_FEATURES = 4 << 20  # bytes of features.json; a layer takes some 400
_POINT = "blocks.{}.hook_resid_post"  # what probes measure, layer by layer


class Probes(NamedTuple):
    """``probes.bin``: G output tokens, N stored positions, L layers."""

    logprobs: np.ndarray  # (G,) f32
    positions: np.ndarray  # (N,) u32, ascending
    records: np.ndarray  # (N, L, 32) u32


class Features(NamedTuple):
    """``features.json``: means over positions."""

    logprob: float
    points: dict[str, dict[str, float]]  # moments by name, points in the order of layers
    json: dict[str, Any]  # all of it as it stands, floats as hexadecimal strings


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
    def probes(self) -> Probes | None:
        """What was measured; None at level off."""
        data = self._part("probes.bin")
        if data is None:
            return None
        try:
            found = Probes(*read_probes_bin(data))
        except ValueError as error:
            raise self._malformed("probes.bin", str(error)) from None
        count, _, width = found.records.shape
        positions = [*map(int, found.positions)]
        if len(found.logprobs) != len(self.claim.output) or (count and width != _WORDS):
            raise self._malformed("probes.bin", "sizes do not fit the run")
        if positions != sorted({*positions}) or max(positions, default=0) >= self._positions:
            raise self._malformed("probes.bin", "positions are not those of the run")
        return found

    @cached_property
    def features(self) -> Features | None:
        """Means over all positions; None at level off."""
        data = self._part("features.json")
        if data is None:
            return None
        if len(data) > _FEATURES:  # JSON takes some thirty times its bytes
            raise self._malformed("features.json", f"{len(data)} bytes, at most {_FEATURES}")
        try:
            return _features(data)
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
        probes = self.probes
        if probes is None or not len(probes.positions):
            return {}
        if (probes.records[:, :, _INDICES] >= 1 << 31).any():
            raise self._malformed("probes.bin", "an index is out of range")
        found = {}
        for layer in range(probes.records.shape[1]):
            of_layer, point = probes.records[:, layer], _POINT.format(layer)
            found[f"{point}.samples"] = of_layer[:, _VALUES].copy().view("<f4")
            found[f"{point}.sample_index"] = of_layer[:, _INDICES].astype("<i4")
            found[f"{point}.positions"] = probes.positions.astype("<i4")
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


def _features(data: bytes) -> Features:
    whole = json.loads(data, parse_float=_no_float, parse_constant=_no_float)
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
    return Features(_exact(whole["logprob"]), points, whole)


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
