"""How long launches take on a device, here and now."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmtrace.device.device import Device, Launch, Step

ROUNDS = 5
"""Measurements; the least counts: what disturbs only ever adds."""
LEAST_US = 300.0
"""Time of one measurement at least, so that calling it does not count."""


def microseconds(
    device: Device,
    ways: Sequence[Sequence[Launch]],
    *,
    work: int,
    rounds: int = ROUNDS,
    least: float = LEAST_US,
    most: float = math.inf,
) -> list[float]:
    """Times lists of launches, in turn, so that what disturbs meets all of them.

    ``work`` as of ``Step.run``. ``least``: microseconds of a measurement; ``most``: of all, after
    which two are enough.
    """
    steps, times = [], []
    for launches in ways:
        once = device.capture(launches)
        _time(once, work)
        times.append(max(1, round(least / max(_time(once, work), 1.0))))
        steps.append(once if times[-1] == 1 else device.capture([*launches] * times[-1]))
    taken: list[list[float]] = []
    while len(taken) < rounds and (len(taken) < 2 or sum(map(sum, taken)) < most):
        taken.append([_time(step, work) for step in steps])
    return [min(each) / count for each, count in zip(zip(*taken, strict=True), times, strict=True)]


def _time(step: Step, work: int) -> float:
    start = time.perf_counter_ns()
    step.run(work)
    return (time.perf_counter_ns() - start) / 1000
