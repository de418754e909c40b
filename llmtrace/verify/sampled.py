"""The samples of points, read from a ``probes.bin`` of either format."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from llmtrace.probes import first, records

if TYPE_CHECKING:
    import numpy as np

    from llmtrace.engine.evidence import Claim

_INDICES, _VALUES = slice(16, 24), slice(24, 32)  # of a record of format 1


class Sampled(NamedTuple):
    """What was sampled of a point, at the N stored positions where it exists."""

    positions: list[int]
    indices: np.ndarray  # (N, 8) i64
    values: np.ndarray  # (N, 8) f32


def sampled(claim: Claim, data: bytes, points: list[tuple[str, int]]) -> dict[str, Sampled]:
    """Gives the samples by the names of points, in the order of the plan.

    ``points``: names and widths in that order; format 1 needs none. Raises ValueError.
    """
    return _of_format_1(data) if claim.probes == 1 else _of_format_2(claim, data, points)


def _of_format_1(data: bytes) -> dict[str, Sampled]:
    _, positions, found = first.read_probes_bin(data)
    if not len(positions):
        return {}
    if (found[:, :, _INDICES] >= 1 << 31).any():
        raise ValueError("an index is out of range")
    return {
        f"blocks.{layer}.hook_resid_post": Sampled(
            positions.tolist(),
            found[:, layer, _INDICES].astype("i8"),
            found[:, layer, _VALUES].copy().view("<f4"),
        )
        for layer in range(found.shape[1])
    }


def _of_format_2(claim: Claim, data: bytes, points: list[tuple[str, int]]) -> dict[str, Sampled]:
    stored = records.read_probes_bin(data)
    seed = records.probe_seed(claim.model, claim.request.prompt)
    at, inner = stored.positions.tolist(), stored.points.shape[1]
    later = at[len(at) - len(stored.picked) :]
    made = {}
    for column, (name, width) in enumerate(points):
        of = stored.points[:, column] if column < inner else stored.picked[:, column - inner]
        where = at if column < inner else later
        indices = records.sample_indices(seed, column, where, width)
        made[name] = Sampled(where, indices, records.field(of, "sample"))
    return made
