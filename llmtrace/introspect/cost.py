"""What each kind of block costs for one token: time, bytes and operations, beside the floor.

Bytes and operations follow from a block's arguments. Times are measured here and now, with the
blocks of one kind of all layers one after the other, so that weights come from where they come
from in a run; they are attested, for reading only, and no part of what a record proves.
"""

from __future__ import annotations

import re
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

from llmtrace.blocks import quantized
from llmtrace.blocks.block import Block, Cache, Matrix, Rows, Vector
from llmtrace.device.device import Launch
from llmtrace.device.timing import microseconds
from llmtrace.engine.feed import feed
from llmtrace.engine.sequence import Sequence

if TYPE_CHECKING:
    from llmtrace.blocks.plan import Plan
    from llmtrace.engine.request import Request
    from llmtrace.engine.trace import Model

READ_BYTES = (1 << 20, 96 << 20)
"""Least and most bytes that are read to find how fast this device reads."""
WIDTH = 4096
"""Floats of a row that is read for it."""
PER_ELEMENT = {"add": 1, "rms_norm": 4, "rope": 3, "silu_mul": 4, "sample": 3, "angles": 2}
"""Operations of an element written (of one read for ``sample``); an exponential counts as one."""


def costs(model: Model, plan: Plan, request: Request, output: tuple[int, ...]) -> list[Any]:
    """Measures a replayed plan at the last position of its run.

    ``plan`` is that of the replay, its cache full: it is spoilt. Gives the ``blocks`` of a page:
    one entry a kind, ``calls`` of it a token; bytes, operations and µs are those of one call.
    """
    position = request.positions - 1
    known = [*request.prompt, *output]
    sequence = Sequence(0, request, 0, known, 0, fed=position)
    plan.step(feed([(sequence, 1)], {0: 0}))
    bandwidth = read_bandwidth(plan)
    kinds: dict[str, list[Block]] = {}
    for block in plan.blocks:
        kinds.setdefault(re.sub(r"^layers\.\d+\.", "", block.name), []).append(block)
    found = []
    for name, blocks in kinds.items():
        each = [plan.chosen(plan.launches(block, 1), 1) for block in blocks]
        needed = traffic(model, blocks[0], position)
        found.append(
            {
                "block": name,
                "kernel": each[0][-1].kernel,
                "calls": len(blocks),
                "us": round(_measure(plan, [*chain(*each)]) / len(blocks), 3),
                "bytes": needed.nbytes,
                "operations": needed.operations,
                "floor_us": round(needed.nbytes / bandwidth * 1e6, 3),
            }
        )
    return found


class Traffic(NamedTuple):
    """What a block has to do; a product and its addition are two operations."""

    held: int
    """Bytes of weights and of the KV cache, each once."""
    moved: int
    """Bytes of the rows that it reads and writes."""
    operations: int

    @property
    def nbytes(self) -> int:
        """All bytes."""
        return self.held + self.moved


def traffic(model: Model, block: Block, position: int, rows: int = 1) -> Traffic:
    """Says what a block has to do for so many tokens of one sequence that end at a position."""
    a, tensors = model.architecture, model.checkpoint.tensors
    each = {id(arg): arg for arg in block.args if isinstance(arg, Rows)}.values()
    row_bytes = sum(4 * arg.width for arg in each)
    written = sum(arg.width for arg in block.outputs if isinstance(arg, Rows))
    held, done = 0, PER_ELEMENT.get(block.kernel, 0) * written  # bytes of a step, work of a row
    for arg in block.args:
        if isinstance(arg, Matrix):
            stored = sum(tensors[name].nbytes for name in arg.tensors)
            count = sum(tensors[name].shape[0] for name in arg.tensors)
            if block.kernel.startswith("embed"):
                row_bytes += stored // count
            else:
                bits, width = model.version.bits(block), tensors[arg.tensors[0]].shape[1]
                held += quantized.nbytes(count, width, bits) if bits else stored
                done += 2 * sum(_size(tensors[name].shape) for name in arg.tensors)
        elif isinstance(arg, Vector):
            held += sum(4 * _size(tensors[name].shape) for name in arg.tensors)
        elif isinstance(arg, Cache):
            visible = rows if block.kernel == "kv_append" else position + 1
            held += cache_bytes(model) // 2 * visible
    if block.kernel == "sample":
        row_bytes += 4 * a.vocab_size  # the weights that are drawn from
        done += PER_ELEMENT["sample"] * a.vocab_size
    operations = rows * done
    if block.kernel.startswith("attention"):
        seen = rows * (position + 1) - rows * (rows - 1) // 2  # keys, by all tokens together
        operations += seen * a.head_count * (4 * a.head_size + 4)
    return Traffic(held, rows * row_bytes, operations)


def cache_bytes(model: Model) -> int:
    """Bytes of keys and values of a position in a layer, without their scales."""
    a = model.architecture
    return 2 * model.version.cache_bits // 8 * a.kv_head_count * a.head_size


def read_bandwidth(plan: Plan, nbytes: int | None = None) -> float:
    """Bytes a second at which this device reads so many bytes, again and again.

    As many as the weights have, unless said otherwise: so what fits a cache is read from there, as
    in a run. Measured with one row of the linear kernel, which reads each weight once and does
    nothing else that takes time.
    """
    import numpy as np

    device, width = plan.device, WIDTH
    least, most = READ_BYTES
    count = (nbytes or min(max(plan.nbytes, least), most)) // (4 * width)
    weights, x = device.zeros((count, width), "<f4"), device.zeros((1, width), "<f4")
    y, one = device.zeros((1, count), "<f4"), device.upload(np.ones(1, np.int32))
    args = (y, weights, x, None, one, count, width, count, width, width)
    launches = [Launch("linear_f32", args, count)]
    work = 0 if nbytes else plan.nbytes  # a few bytes are read by one thread
    return 4 * width * count / microseconds(device, [launches], work=work)[0] * 1e6


def _measure(plan: Plan, launches: list[Launch]) -> float:
    """Microseconds of all the launches, one after the other."""
    return microseconds(plan.device, [launches], work=plan.nbytes)[0]


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size
