"""What each kind of block costs for one token: time, bytes and operations, beside the floor.

Bytes and operations follow from a block's arguments. Times are measured here and now, with the
blocks of one kind of all layers one after the other, so that weights come from where they come
from in a run; they are attested, for reading only, and no part of what a record proves.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any

from llmtrace.blocks import quantized
from llmtrace.blocks.block import Block, Cache, Matrix, Rows, Vector
from llmtrace.device.device import Launch
from llmtrace.engine.feed import feed
from llmtrace.engine.sequence import Sequence

if TYPE_CHECKING:
    from llmtrace.blocks.plan import Plan
    from llmtrace.engine.request import Request
    from llmtrace.engine.trace import Model

REPEATS = 5
"""Measurements of each kind; the least counts: what disturbs only ever adds."""
LEAST_US = 300.0
"""Time of one measurement at least, so that calling it does not count."""
READ_BYTES = (1 << 20, 96 << 20)
"""Least and most bytes that are read to find how fast this device reads."""
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
        launches = [launch for block in blocks for launch in plan.launches(block, plan._small)]
        nbytes, operations = traffic(model, blocks[0], position)
        found.append(
            {
                "block": name,
                "kernel": plan.launches(blocks[0], plan._small)[-1].kernel,
                "calls": len(blocks),
                "us": round(_measure(plan, launches) / len(blocks), 3),
                "bytes": nbytes,
                "operations": operations,
                "floor_us": round(nbytes / bandwidth * 1e6, 3),
            }
        )
    return found


def traffic(model: Model, block: Block, position: int) -> tuple[int, int]:
    """Bytes that a block must move and operations that it does for the token at a position.

    Each weight is read once; a product and its addition are two operations.
    """
    a, tensors = model.architecture, model.checkpoint.tensors
    rows = {id(arg): arg for arg in block.args if isinstance(arg, Rows)}.values()
    nbytes = sum(4 * arg.width for arg in rows)
    written = sum(arg.width for arg in block.outputs if isinstance(arg, Rows))
    operations = PER_ELEMENT.get(block.kernel, 0) * written
    for arg in block.args:
        if isinstance(arg, Matrix):
            stored = sum(tensors[name].nbytes for name in arg.tensors)
            count = sum(tensors[name].shape[0] for name in arg.tensors)
            if block.kernel.startswith("embed"):
                nbytes += stored // count
            else:
                bits, width = model.version.bits(block), tensors[arg.tensors[0]].shape[1]
                nbytes += quantized.nbytes(count, width, bits) if bits else stored
                operations += 2 * sum(_size(tensors[name].shape) for name in arg.tensors)
        elif isinstance(arg, Vector):
            nbytes += sum(4 * _size(tensors[name].shape) for name in arg.tensors)
        elif isinstance(arg, Cache):
            visible = 1 if block.kernel == "kv_append" else position + 1
            nbytes += model.version.cache_bits // 8 * visible * a.kv_head_count * a.head_size
    if block.kernel.startswith("attention"):
        operations += (position + 1) * a.head_count * (4 * a.head_size + 4)
    if block.kernel == "sample":
        nbytes += 4 * a.vocab_size  # the weights that are drawn from
        operations += PER_ELEMENT["sample"] * a.vocab_size
    return nbytes, operations


def read_bandwidth(plan: Plan) -> float:
    """Bytes a second at which this device reads as many bytes as the weights have, again and again.

    So what fits a cache is read from there, as in a run. Measured with one row of the linear
    kernel, which reads each weight once and does nothing else that takes time.
    """
    import numpy as np

    device, width = plan.device, 4096
    least, most = READ_BYTES
    count = min(max(plan._weights.nbytes, least), most) // (4 * width)
    weights, x = device.zeros((count, width), "<f4"), device.zeros((1, width), "<f4")
    y, one = device.zeros((1, count), "<f4"), device.upload(np.ones(1, np.int32))
    args = (y, weights, x, None, one, count, width, count, width, width)
    nbytes = 4 * width * count
    took = _measure(plan, [Launch("linear_f32", args, count)])
    return nbytes / took * 1e6


def _measure(plan: Plan, launches: list[Launch]) -> float:
    """Microseconds of all the launches, one after the other."""
    work = plan._weights.nbytes
    once = plan.device.capture(launches)
    once.run(work)
    first = _time(lambda: once.run(work)) * 1e6
    times = max(1, round(LEAST_US / max(first, 1.0)))
    step = plan.device.capture(launches * times)
    return min(_time(lambda: step.run(work)) for _ in range(REPEATS)) * 1e6 / times


def _time(call: Any) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size
