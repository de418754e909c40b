"""Patterns of attention to be looked at: those of a few heads, each the clearest of its kind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmtrace.introspect.watch import ROWS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmtrace.engine.inside import Inside

SHOWN = 4
"""Heads whose pattern is shown: of each kind the clearest."""


def patterns(inside: Inside, heads: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of attention of a few heads at the last positions, made again in float64."""
    import numpy as np

    a = inside.architecture
    share = a.head_count // a.kv_head_count
    last = np.flatnonzero(inside.positions >= inside.positions[-1] + 1 - ROWS)
    found = []
    for head in _clearest(heads):
        layer, number = head["layer"], head["head"]
        rotated = inside.rows[f"blocks.{layer}.attn.hook_rot_q"][last].astype(np.float64)
        query = rotated.reshape(len(last), a.head_count, a.head_size)[:, number]
        keys = inside.cache(layer, [number // share])[0][:, 0].astype(np.float64)  # (T, D)
        scores = query @ keys.T * float(a.attention_scale())
        rows = []
        for row, position in zip(scores, inside.positions[last], strict=True):
            weights = np.exp(row[: position + 1] - row[: position + 1].max())
            rows.append(np.round(weights / weights.sum(), 5).tolist())
        positions = inside.positions[last].tolist()
        found.append({"layer": layer, "head": number, "positions": positions, "rows": rows})
    return found


def _clearest(heads: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One head of each kind, the one that is most so, in the order of the layers."""
    by_kind: dict[str, dict[str, Any]] = {}
    for head in heads:
        best = by_kind.get(head["kind"])
        if best is None or _clarity(head) > _clarity(best):
            by_kind[head["kind"]] = head
    chosen = sorted(by_kind.values(), key=_clarity, reverse=True)[:SHOWN]
    return sorted(chosen, key=lambda head: (head["layer"], head["head"]))


def _clarity(head: Mapping[str, Any]) -> float:
    values = {
        "induction": head["induction"],
        "previous": head["previous"],
        "first": head["sink"],
        "local": 1 - head["distance"],
        "broad": head["entropy"],
    }
    return float(values.get(head["kind"], (1 - head["entropy"]) / 2))
