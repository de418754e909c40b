"""What a basic block is before any memory exists: a kernel, symbolic arguments, its points."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

Which = Literal["fed", "picked"]
"""The rows a block works on: all tokens fed in this step, or those whose logits are wanted."""
OUTPUTS = {"angles": 2, "kv_append": 2, "rms_norm": 3, "sample": 3}
"""How many of a kernel's first arguments it writes, where they are more than one."""


@dataclass(frozen=True)
class Matrix:
    """Weights of a linear layer or a table, stacked by rows: (N, K) as stored, K padded to 32s."""

    tensors: tuple[str, ...]


@dataclass(frozen=True)
class Vector:
    """Gains or biases, joined and widened to float32."""

    tensors: tuple[str, ...]


@dataclass(frozen=True)
class Rows:
    """A place in the arena: ``width`` floats for each row, from ``column`` of the buffer on."""

    buffer: str
    width: int
    column: int = 0


@dataclass(frozen=True)
class Input:
    """What a step is told: tokens, positions, counts; see ``Plan``."""

    name: str


@dataclass(frozen=True)
class Cache:
    """The keys or the values of a layer."""

    kind: Literal["keys", "values"]
    layer: int


@dataclass(frozen=True)
class Stride:
    """The row stride of a buffer or a matrix, in elements."""

    of: Rows | Matrix


@dataclass(frozen=True)
class Point:
    """A place where the inside can be read, by its TransformerLens name."""

    name: str
    rows: Rows
    which: Which = "fed"


@dataclass(frozen=True)
class Block:
    """A fundamental unit of the inference: the unit of timing, variants, digests and disputes.

    ``kernel`` ends in ``_`` where the storage type of its first matrix completes the name.
    ``items`` is the number of work items for each row.
    """

    name: str
    kernel: str
    args: tuple[Matrix | Vector | Rows | Input | Cache | Stride | int | np.float32 | None, ...]
    items: int
    points: tuple[Point, ...] = ()
    which: Which = "fed"

    @property
    def outputs(self) -> tuple[object, ...]:
        """What it writes; everything behind is only read."""
        return self.args[: OUTPUTS.get(self.kernel, 1)]


def makers(blocks: Sequence[Block]) -> dict[str, Block]:
    """Gives by the name of each point the block that writes it, which may stand before its own."""
    writer: dict[str, Block] = {}
    found: dict[str, Block] = {}
    for block in blocks:
        writer |= {rows.buffer: block for rows in block.outputs if isinstance(rows, Rows)}
        found |= {point.name: writer[point.rows.buffer] for point in block.points}
    return found
