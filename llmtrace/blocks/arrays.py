"""What a plan allocates, known before anything is: shapes and dtypes by name, and their bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmtrace.blocks import quantized
from llmtrace.blocks.block import Block, Rows
from llmtrace.blocks.llama import blocks, chunks
from llmtrace.blocks.variants import parts, room
from llmtrace.blocks.versions import ACCURACY, Version
from llmtrace.blocks.weights import padded
from llmtrace.probes import records

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from llmtrace.model.architecture import Architecture

TILE = 128
"""Positions in a tile of the KV cache (``kernels/attention.cu``)."""
KEYS = 32
"""Positions of a tile whose keys stand together."""
SCALES = ("key_scale", "value_scale")
"""Of a KV cache in 8 bits: by position and head."""
PROBES = 2
"""The format of the probes that a run records; 1 is made again for old records, 0 is none."""
LOOKED = 4
"""Rows of one sequence that are looked at whole at a time."""


@dataclass(frozen=True)
class Limits:
    """What a plan has room for.

    ``rows`` tokens a step, of which ``picks`` may ask for logits; ``tiles`` of KV cache;
    ``tables`` rotary tables; ``looked`` tokens that are looked at whole at a time.
    """

    rows: int
    picks: int
    tiles: int
    tables: int
    looked: int = LOOKED


Shapes = dict[str, tuple[tuple[int, ...], str]]
"""Arrays of a plan by name: shape and dtype."""


def arrays(
    a: Architecture,
    limits: Limits,
    keep: Collection[str],
    probes: int = PROBES,
    threads: int = 0,
    version: Version = ACCURACY,
) -> dict[str, Shapes]:
    """Says what a plan allocates: the arena, inputs, KV cache, results, kept and looked-at rows.

    ``threads`` as of ``Device``: its variants need room of their own.
    """
    made = blocks(a)
    wide = strides(made)
    read = [block.args[2] for block in made if block.kernel == "linear_"]
    widest = max(wide[x.buffer] for x in read if isinstance(x, Rows))
    points = [point for block in made for point in block.points]
    shape = (a.layer_count, limits.tiles, a.kv_head_count)
    rows, words = limits.rows, records.WORDS
    measured: Shapes = {}
    if probes == 1:
        measured = {"records": ((rows, a.layer_count, words), "<u4")}
    elif probes:
        measured = {
            "records": ((rows, len(points), words), "<u4"),
            "heads": ((rows, a.layer_count, a.head_count, records.HEAD_WORDS), "<u4"),
            "drawn": ((limits.picks, records.TOKEN_WORDS), "<u4"),
        }
    looked = [p for p in points if probes > 1]
    return {
        "arena": {
            name: ((limits.picks if name == "logits" else rows, stride), "<f4")
            for name, stride in wide.items()
        },
        "room": (
            quantized.room(rows, widest) if version.weight_bits else room(rows, widest, threads)
        )
        | parts(a.head_count, chunks(a.head_size), limits.tiles, threads),
        "inputs": _inputs(a, limits, threads),
        "cache": _cache(shape, a.head_size, version.cache_bits),
        "results": {
            "digests": ((rows, len(points), 8), "<u4"),
            "flaws": ((rows, len(points)), "|u1"),
            **measured,
        },
        "kept": {p.name: ((rows, p.rows.width), "<f4") for p in points if p.name in keep},
        "looked": {p.name: ((limits.looked, p.rows.width), "<f4") for p in looked},
    }


def footprint(
    a: Architecture,
    limits: Limits,
    keep: Collection[str] = (),
    probes: int = PROBES,
    threads: int = 0,
    version: Version = ACCURACY,
) -> int:
    """Bytes that a plan allocates beside the weights, known before anything is."""
    return sum(
        math.prod(shape) * int(dtype[-1])
        for shapes in arrays(a, limits, keep, probes, threads, version).values()
        for shape, dtype in shapes.values()
    )


def strides(made: Sequence[Block]) -> dict[str, int]:
    """Floats from row to row of each buffer of the arena."""
    found: dict[str, int] = {}
    for rows in (arg for block in made for arg in block.args if isinstance(arg, Rows)):
        width = rows.column + rows.width
        stride = 1 if width == 1 else padded(width)
        found[rows.buffer] = max(found.get(rows.buffer, 0), stride)
    return found


def _cache(shape: tuple[int, ...], size: int, bits: int) -> Shapes:
    """The KV cache of heads (layers, tiles, G): keys stand transposed, 32 and 32."""
    kind = "<f4" if bits == 32 else "|i1"
    scales = {} if bits == 32 else dict.fromkeys(SCALES, ((*shape, TILE), "<f4"))
    return {
        "keys": ((*shape, TILE // KEYS, size, KEYS), kind),
        "values": ((*shape, TILE, 32 * chunks(size)), kind),
        **scales,
    }


def _inputs(a: Architecture, limits: Limits, threads: int) -> Shapes:
    made: Shapes = dict.fromkeys(("token", "position", "tile0", "table"), ((limits.rows,), "<i4"))
    made["probe_seed"] = (limits.rows,), "<u8"
    kinds = {"pick": "<i4", "temperature": "<f4", "top_k": "<i4", "top_p": "<u8", "seed": "<u8"}
    made |= {name: ((limits.picks,), kind) for name, kind in kinds.items()}
    made["drawn.token"] = (limits.picks,), "<i4"
    made["drawn.logprob"] = (limits.picks,), "<f4"
    made["drawn.weight"] = (threads or limits.picks, a.vocab_size), "<u4"
    made["frequency"] = (limits.tables, a.head_size // 2), "<f4"
    made["factor"] = (limits.tables,), "<f4"
    made["count"] = (2,), "<i4"
    return made
