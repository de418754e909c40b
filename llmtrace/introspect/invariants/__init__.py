"""Invariants: is the inside of a run sound, and if not, which block is at fault.

Each is computed again from what stands before it, in numpy's float64 and without the kernels, so
one fault fails where it happened and not in all that follows. For judging, never recorded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmtrace.introspect.invariants import attention, flow, held, linear, measured, sampling
from llmtrace.introspect.invariants.case import (
    FAIL,
    NOT_APPLICABLE,
    PASS,
    Case,
    Invariant,
    Place,
    first_fault,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = [
    "ALL",
    "FAIL",
    "NOT_APPLICABLE",
    "PASS",
    "Case",
    "Invariant",
    "Place",
    "check",
    "first_fault",
]

ALL: tuple[Callable[[Case], Invariant], ...] = (
    held.identity,
    held.weights,
    held.digests,
    flow.embedding,
    flow.residual,
    flow.scales,
    flow.normalised,
    flow.mean_square,
    linear.products,
    linear.outputs,
    flow.rotation,
    flow.cache,
    attention.mixes,
    attention.sums,
    attention.entropies,
    attention.records,
    flow.activation,
    linear.lens,
    linear.attribution,
    sampling.tokens,
    sampling.logprobs,
    sampling.records,
    measured.records,
)
"""Every invariant; each names what it found wrong first."""


def check(case: Case) -> Iterator[Invariant]:
    """Checks all invariants, one after the other."""
    for invariant in ALL:
        yield invariant(case)
