"""The launches that read points: digests and probe records, in each of their formats.

They stand between the blocks and write what no block reads, so they cannot move a bit of a run.
Without probes no kernel of theirs is launched; without digests one that only looks for NaN.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from llmtrace.device.device import Launch
from llmtrace.probes.records import HEAD_WORDS, WORDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llmtrace.blocks.block import Block, Point
    from llmtrace.blocks.plan import Plan
    from llmtrace.device.device import Array


class Probing:
    """Reads the points of one plan; ``form`` is the format of the probes, 0 for none."""

    def __init__(self, plan: Plan, form: int, *, digests: bool) -> None:
        self._plan: Plan = weakref.proxy(plan)  # no circle: the memory of a plan goes with it
        self.form, self.digests = form, digests
        self._columns = {point: column for column, point in enumerate(plan.points)}
        self._layers = plan.architecture.layer_count

    def points(self, points: list[Point], rows: int) -> Iterator[Launch]:
        """Reads points that wait together: one launch for the digests, one for the records."""
        plan, count, width = self._plan, len(points), len(self._columns)
        table, which = self._table(points), plan.input(points[0].which)
        digests, flaws = plan.results["digests"], plan.results["flaws"]
        if self.digests:
            yield Launch("blake3", (digests, flaws, table, which, count, width), rows * count)
        else:
            yield Launch("finite", (flaws, table, which, count, width), rows * count)
        if self.form > 1:
            row = plan.input("pick") if points[0].which == "picked" else None
            where = (plan.input("probe_seed"), plan.input("position"), row, which)
            args = (plan.results["records"], table, *where, count, width)
            yield Launch("probe", args, rows * count)

    def after(self, block: Block, rows: int) -> Iterator[Launch]:
        """Reads what one block has just made."""
        if self.form == 1:
            for point in block.points:
                if point.name.endswith(".hook_resid_post"):
                    yield self._moments(point, rows)
        elif self.form and block.kernel == "sample":
            plan = self._plan
            token, logprob, _, logits, *_, picked, vocabulary, stride = (
                plan.resolve(arg) for arg in block.args
            )
            args = (plan.results["drawn"], logits, token, logprob, picked, vocabulary, stride)
            yield Launch("token", args, min(rows, plan.limits.picks))

    def attention(self, block: Block, kernel: str, args: Any) -> tuple[str, tuple[Any, ...]]:
        """Gives the entry of the kernel that also makes head records, and its arguments."""
        if self.form < 2:
            return kernel, args
        layer, heads = int(block.name.split(".")[1]), self._plan.architecture.head_count
        record = self._plan.results["heads"].reshape(-1)[layer * heads * HEAD_WORDS :]
        z, *inputs, ldz, ldq, scale = args
        stride = self._layers * heads * HEAD_WORDS
        return f"probed_{kernel}", (z, record, *inputs, ldz, stride, ldq, scale)

    def _table(self, points: list[Point]) -> Array:
        import numpy as np

        plan = self._plan
        rows = [
            (
                plan.device.address(plan.resolve(p.rows)),
                plan.stride(p.rows),
                p.rows.width,
                self._columns[p],
            )
            for p in points
        ]
        return plan.device.upload(np.array(rows, np.uint64))

    def _moments(self, point: Point, rows: int) -> Launch:
        plan, layer = self._plan, int(point.name.split(".")[1])
        record = plan.results["records"].reshape(-1)[layer * WORDS :]
        fed = (plan.input("probe_seed"), plan.input("position"), plan.input("fed"))
        stride, column = plan.stride(point.rows), self._columns[point]
        sizes = (point.rows.width, self._layers * WORDS, stride, column)
        return Launch("moments", (record, plan.resolve(point.rows), *fed, *sizes), rows)
