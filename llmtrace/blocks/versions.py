"""Versions: the numerics contracts that this llmtrace can compute, by name and revision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmtrace.errors import Inconclusive

if TYPE_CHECKING:
    from llmtrace.blocks.block import Block


@dataclass(frozen=True)
class Version:
    """One contract: ``kernels/`` says what its kernels compute.

    ``weight_bits`` of the linear layers' weights, 0 for float32 arithmetic with weights as they
    are stored; the unembedding has 8 at least. ``cache_bits`` of a value in the KV cache.
    """

    name: str
    weight_bits: int = 0
    cache_bits: int = 32

    def bits(self, block: Block) -> int:
        """Bits of the weights that a linear block multiplies by; 0 as they are stored."""
        return 8 if self.weight_bits == 4 and block.name == "unembed" else self.weight_bits


ACCURACY = Version("accuracy.1")
VERSIONS = (ACCURACY, Version("speed.1", 8), Version("memory.1", 4, 8))
"""A frozen version stays, bit for bit, for ever; ``tests/golden`` holds its records."""


def version(name: str) -> Version:
    """Gives a version by its name: ``accuracy`` is its newest revision. Raises Inconclusive."""
    for known in reversed(VERSIONS):
        if name in {known.name, known.name.split(".")[0]}:
            return known
    names = ", ".join(known.name for known in VERSIONS)
    raise Inconclusive(f"no numerics '{name}' in this llmtrace", "it knows: " + names)
