"""What a basic block is before any memory exists: a kernel, symbolic arguments, its points."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np

Which = Literal["fed", "picked"]
"""The rows a block works on: all tokens fed in this step, or those whose logits are wanted."""


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
