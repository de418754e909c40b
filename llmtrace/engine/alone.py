"""One block at one position, executed by itself: what a dispute about a value comes down to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmtrace.engine.feed import feed
from llmtrace.engine.request import Request
from llmtrace.engine.sequence import Sequence
from llmtrace.engine.trace import CHUNK, Model

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from llmtrace.blocks.block import Block


@dataclass(frozen=True)
class Executed:
    """What a block gave: the rows of the points that it writes (width,) f32, or what it drew."""

    block: str
    rows: dict[str, np.ndarray]
    token: int | None = None
    logprob: float | None = None

    @property
    def digests(self) -> dict[str, str]:
        """BLAKE3 of each row as little-endian float32, in hex: its digest in a record."""
        from blake3 import blake3

        return {
            name: blake3(row.astype("<f4").tobytes()).hexdigest() for name, row in self.rows.items()
        }


def execute(
    model: Model,
    request: Request,
    position: int,
    block: Block,
    tick: Callable[[], None] = lambda: None,
) -> Executed:
    """Feeds a request (its output forced) up to a position, and there executes one block alone.

    The inputs of the block are made on the way, by the blocks before it. ``tick`` is called
    before each step.
    """
    known = [*request.prompt, *(request.forced or ())][: position + 1]
    # Fed as a prompt of that length, so that logits are wanted where it ends.
    asked = Request(tuple(known), 1, request.sampling, forced=(0,))
    plan = model.plan([asked], probes=False)
    a = model.architecture
    factor = a.rope_attention_factor(request.run_limit)
    plan.set_table(0, a.inverse_frequencies(request.run_limit), factor)
    sequence = Sequence(0, asked, 0, known, 0)
    while sequence.fed < position:
        tick()
        count = min(CHUNK, plan.limits.rows, position - sequence.fed)
        plan.step(feed([(sequence, count)], {0: 0}))
        sequence.fed += count
    made = plan.alone(feed([(sequence, 1)], {0: 0}), block)
    if block.kernel == "sample":
        return Executed(block.name, {}, int(made["token"][0]), float(made["logprob"][0]))
    return Executed(
        block.name,
        {
            point.name: made[point.rows.buffer][point.rows.column :][: point.rows.width]
            for point in plan.points
            if plan.makers[point.name].name == block.name
        },
    )
