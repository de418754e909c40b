"""A machine with faults: what a block writes at one position is changed, all else follows."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from llmtrace.blocks.block import Rows
from llmtrace.blocks.plan import Plan

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from llmtrace.blocks.block import Block
    from llmtrace.blocks.variants import Ways
    from llmtrace.device.device import Launch


class Faulty(Plan):
    wanted: tuple[tuple[str, int], ...]
    column: int
    bit: int

    def __init__(self, *args: Any, **options: Any) -> None:
        self.launched: dict[str, Launch] = {}
        super().__init__(*args, **options)

    def ways(self, launches: Sequence[Launch], rows: int) -> Ways:
        """No variants: each block is one launch."""
        return {"only": [*launches]}

    def _launch(self, which: Block, *args: Any) -> Launch:
        self.launched[which.name] = launch = super()._launch(which, *args)
        return launch

    def step(self, feed: dict[str, np.ndarray]) -> None:
        self._write(feed)
        launches = self._launches(self.limits.rows)
        spoilt = {id(self.launched[name]): (name, at) for name, at in self.wanted}
        begin = 0
        for end, launch in enumerate(launches, 1):
            if id(launch) in spoilt:
                self.device.capture(launches[begin:end]).run(1 << 40)
                self.spoil(*spoilt[id(launch)], feed)
                begin = end
        self.device.capture(launches[begin:]).run(1 << 40)

    def spoil(self, name: str, at: int, feed: dict[str, np.ndarray]) -> None:
        made = next(b for b in self.blocks if b.name == name)
        rows = np.flatnonzero(feed["position"] == at).tolist()
        if made.which == "picked":
            rows = [feed["pick"].tolist().index(row) for row in rows]
        for row in rows:
            if made.name == "sample":
                self._inputs["drawn.token"][row] ^= 1
            for out in made.outputs:
                if isinstance(out, Rows) and out.width > 1:
                    bits = self._buffers[out.buffer][row].view(np.uint32)
                    bits[out.column + self.column] ^= 1 << self.bit


@contextlib.contextmanager
def fault(
    block: str,
    position: int,
    column: int = 3,
    *,
    bit: int = 18,
    also: tuple[str, int] | None = None,
) -> Iterator[None]:
    """Runs made meanwhile have it; ``also`` is another block and position."""
    wanted = ((block, position), *([also] if also else []))
    with pytest.MonkeyPatch.context() as patch:
        plan = type("Plan", (Faulty,), {"wanted": wanted, "column": column, "bit": bit})
        patch.setattr("llmtrace.engine.trace.Plan", plan)
        yield
