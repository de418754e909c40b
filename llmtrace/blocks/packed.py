"""Keeps the quantised matrices of a model in files: a later run reads what another one made.

Quantising is exact and the same everywhere, so a file says nothing that the checkpoint does not.
Its bytes are those of the arrays, one after the other, and 32 of their BLAKE3; a file that is not
so is as good as none.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from typing import TYPE_CHECKING

from llmtrace.blocks.quantized import held
from llmtrace.device.cache import put

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np

    from llmtrace.blocks.block import Matrix
    from llmtrace.device.device import Array, Device

REVISION = 1
"""Of the bytes of a file."""
DIGEST = 32


class Packed:
    """The files of one model for one layout of a device. ``folder`` is None to keep none."""

    def __init__(self, folder: Path | None, model_id: str, device: Device) -> None:
        name = f"{model_id}-{REVISION}-{device.layout}"
        self._device, self._folder = device, folder and folder / name

    def find(self, matrix: Matrix, shape: tuple[int, int], bits: int) -> tuple[Array, ...] | None:
        """Gives the arrays of a matrix (N, K), placed; None where there is no sound file."""
        import numpy as np

        if self._folder is None:
            return None
        shapes = held(self._device, shape, bits)
        sizes = [math.prod(each) * int(dtype[-1]) for each, dtype in shapes]
        try:
            content = np.fromfile(self._folder / _name(matrix, bits), np.uint8)
        except OSError:
            return None
        if len(content) != sum(sizes) + DIGEST:
            return None
        if _digest([content[:-DIGEST]]) != content[-DIGEST:].tobytes():
            return None
        placed, begin = [], 0
        for (each, dtype), size in zip(shapes, sizes, strict=True):
            part = content[begin : begin + size]
            placed.append(self._device.upload(part.view(dtype).reshape(each), stays=True))
            begin += size
        return tuple(placed)

    def keep(self, matrix: Matrix, bits: int, placed: Sequence[Array]) -> None:
        """Writes the arrays of a matrix, where that can be done."""
        import numpy as np

        if self._folder is None:
            return
        arrays = [self._device.peek(array) for array in placed]
        with contextlib.suppress(OSError):
            parts = [array.reshape(-1).view(np.uint8).data for array in arrays]
            put(self._folder / _name(matrix, bits), *parts, _digest(arrays))


def _name(matrix: Matrix, bits: int) -> str:
    tensors = hashlib.sha256("\n".join(matrix.tensors).encode()).hexdigest()
    return f"{tensors[:32]}.{bits}"


def _digest(arrays: Sequence[np.ndarray]) -> bytes:
    import blake3
    import numpy as np

    hasher = blake3.blake3(max_threads=blake3.blake3.AUTO)
    for array in arrays:
        hasher.update(array.reshape(-1).view(np.uint8).data)
    return hasher.digest()
