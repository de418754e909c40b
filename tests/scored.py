"""Runs a request and looks at its inside, for tests."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from llmtrace.engine.evidence import Claim
from llmtrace.engine.request import Request
from llmtrace.introspect.inside import look
from running import run

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llmtrace.engine.inside import Inside
    from llmtrace.engine.trace import Model


def prompt_of(length: int, vocab: int, seed: int = 0) -> tuple[int, ...]:
    return tuple(np.random.default_rng(seed).integers(0, vocab, length).tolist())


def looked(
    model: Model, request: Request, positions: Iterable[int] | None = None
) -> tuple[Inside, Claim]:
    (trace,) = run(model, [request])
    forced = dataclasses.replace(request, forced=trace.output)
    claim = Claim("test", "accuracy.1", forced, trace.output, "length", "stats", ())
    return look(model, claim, positions), claim


def part(inside: Inside, wanted: list[int]) -> Inside:
    """The same inside at some of its positions."""
    here = np.isin(inside.positions, wanted)
    later = here[inside.positions >= inside.first_pick]
    behind = {name: name.startswith(("ln_final.", "unembed.")) for name in inside.rows}
    return dataclasses.replace(
        inside,
        positions=inside.positions[here],
        rows={n: rows[later if behind[n] else here] for n, rows in inside.rows.items()},
        heads=inside.heads[here],
        drawn=inside.drawn[later],
    )


def numpy_layer(model: Model, layer: int) -> dict[str, np.ndarray]:
    """The weights of a layer by their short names, f64."""
    from llmtrace.blocks.weights import widen

    at = f"model.layers.{layer}."
    tensors = model.checkpoint.tensors
    return {n.removeprefix(at): widen(t).astype("f8") for n, t in tensors.items() if at in n}
