"""Places a checkpoint's tensors on a device, packed as the kernels want them.

Packing only stacks and pads: every value keeps its storage type, except that vectors
(gains, biases) and stacks of unequal types are widened to float32, which is exact. Versions
that multiply in integers have the weights of linear layers quantised as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmtrace.blocks.quantized import STRIPE, quantize
from llmtrace.model.checkpoint import read_rows

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np

    from llmtrace.blocks.block import Matrix, Vector
    from llmtrace.blocks.packed import Packed
    from llmtrace.device.device import Array, Device
    from llmtrace.model.checkpoint import Checkpoint, Tensor

KERNEL_SUFFIX = {"BF16": "bf16", "F16": "f16", "F32": "f32"}


class Weights:
    """Packed weights, each placed once and shared by all steps."""

    def __init__(self, checkpoint: Checkpoint, device: Device, packed: Packed) -> None:
        self._checkpoint, self._device, self._packed = checkpoint, device, packed
        self._placed: dict[Matrix | Vector, Array] = {}
        self._quantized: dict[tuple[Matrix, int], tuple[Array, ...]] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors as stored."""
        return sum(tensor.nbytes for tensor in self._checkpoint.tensors.values())

    @property
    def held(self) -> int:
        """Bytes that were placed on the device so far."""
        arrays = (*self._placed.values(), *(a for each in self._quantized.values() for a in each))
        return sum(int(array.nbytes) for array in arrays)

    def matrix(self, matrix: Matrix) -> Array:
        """Gives (N, K') as stored: K padded with zeros to a multiple of 32."""
        if matrix not in self._placed:
            self._placed[matrix] = self._place(self._arrays(matrix))
        return self._placed[matrix]

    def rows(self, matrices: Sequence[Matrix], index: np.ndarray) -> list[Array]:
        """Gives rows ``index`` (L, R) of L matrices of one shape: (R, K') of the type ``suffix``.

        They are placed for this call alone. Raises IndexError for a row that they have not.
        """
        import numpy as np

        parts, kind = [self._parts(each.tensors) for each in matrices], self.suffix(*matrices)
        begins = np.cumsum([0, *(part.shape[0] for part in parts[0])])
        if index.max() >= begins[-1]:
            raise IndexError(f"'{matrices[0].tensors[0]}' has {begins[-1]} rows")
        of_part = np.searchsorted(begins, index, "right") - 1
        pairs = zip(parts, of_part.tolist(), strict=True)
        tensors = [of_layer[part] for of_layer, row in pairs for part in row]
        numbers, width = (index - begins[of_part]).reshape(-1), parts[0][0].shape[1]
        chosen = np.empty((index.size, padded(width)), "<f4" if kind == "f32" else "<u2")
        rows, chosen[:, width:] = chosen[:, :width], 0
        dtypes = {tensor.dtype for each in parts for tensor in each}
        if len(dtypes) == 1:
            read_rows(tensors, numbers.tolist(), rows)
        for dtype in dtypes if len(dtypes) > 1 else ():
            here = [n for n, tensor in enumerate(tensors) if tensor.dtype == dtype]
            stored = np.empty((len(here), width), "<f4" if dtype == "F32" else "<u2")
            read_rows([tensors[n] for n in here], numbers[here].tolist(), stored)
            rows[here] = widened(stored, dtype)
        placed = self._device.upload(chosen.reshape(*index.shape, -1))
        return [placed[n] for n in range(len(matrices))]

    def stripes(self, matrix: Matrix, multiple: int) -> Iterator[np.ndarray]:
        """Gives the rows as ``matrix`` does, on the host, some at a time.

        All stripes but the last have a multiple of ``multiple`` rows.
        """
        import numpy as np

        arrays = self._arrays(matrix)
        width, kind = arrays[0].shape[1], arrays[0].dtype
        step = max(multiple, STRIPE // (width * kind.itemsize) // multiple * multiple)
        starts = np.cumsum([0, *(len(array) for array in arrays)])
        for begin in range(0, int(starts[-1]), step):
            end = min(begin + step, int(starts[-1]))
            stripe = np.zeros((end - begin, padded(width)), kind)
            for array, start in zip(arrays, starts, strict=False):
                low, high = max(begin, start), min(end, start + len(array))
                if low < high:
                    stripe[low - begin : high - begin, :width] = array[low - start : high - start]
            yield stripe

    def quantized(self, matrix: Matrix, bits: int) -> tuple[Array, ...]:
        """Gives the arrays of ``kernels/quantize.cu``, as linear layers in integers want them."""
        if (matrix, bits) not in self._quantized:
            made = self._packed.find(matrix, self._shape(matrix), bits)
            if made is None:
                made = self.made_again(matrix, bits)
                self._packed.keep(matrix, bits, made)
            self._quantized[matrix, bits] = made
        return self._quantized[matrix, bits]

    def made_again(self, matrix: Matrix, bits: int) -> tuple[Array, ...]:
        """Gives what ``quantized`` does, made from the checkpoint now."""
        stripes = self.stripes(matrix, self._device.panel)
        return quantize(self._device, stripes, self.suffix(matrix), self._shape(matrix), bits)

    def suffix(self, *matrices: Matrix) -> str:
        """Gives the ending of the names of the kernels that read these, stored as one type."""
        kinds = {part.dtype for each in matrices for part in self._parts(each.tensors)}
        return KERNEL_SUFFIX[kinds.pop()] if len(kinds) == 1 else "f32"

    def vector(self, vector: Vector) -> Array:
        """Gives (C',) f32: joined, padded with zeros to a multiple of 32."""
        import numpy as np

        if vector not in self._placed:
            joined = np.concatenate([widen(part) for part in self._parts(vector.tensors)])
            self._placed[vector] = self._place([joined.reshape(1, -1)]).reshape(-1)
        return self._placed[vector]

    def _shape(self, matrix: Matrix) -> tuple[int, int]:
        parts = self._parts(matrix.tensors)
        return sum(part.shape[0] for part in parts), parts[0].shape[1]

    def _arrays(self, matrix: Matrix) -> list[np.ndarray]:
        """Maps the parts of a matrix, all of one type."""
        parts = self._parts(matrix.tensors)
        one = len({part.dtype for part in parts}) == 1
        return [part.array() if one else widen(part) for part in parts]

    def _parts(self, names: tuple[str, ...]) -> list[Tensor]:
        return [self._checkpoint.tensors[name] for name in names]

    def _place(self, arrays: list[np.ndarray]) -> Array:
        import numpy as np

        rows, width = sum(len(a) for a in arrays), arrays[0].shape[1]
        if width != padded(width):
            stacked = np.zeros((rows, padded(width)), arrays[0].dtype)
            np.concatenate(arrays, out=stacked[:, :width])
            return self._device.upload(stacked, stays=True)
        if len(arrays) == 1:
            return self._device.upload(arrays[0], stays=True)
        placed = self._device.zeros((rows, width), arrays[0].dtype.str, stays=True)
        begin = 0
        for array in arrays:
            self._device.write(placed[begin : begin + len(array)], array)
            begin += len(array)
        return placed


def padded(width: int) -> int:
    """Rounds a row's width up to whole lanes."""
    return -(-width // 32) * 32


def widen(tensor: Tensor) -> np.ndarray:
    """Gives the values as float32, exactly."""
    return widened(tensor.array(), tensor.dtype)


def widened(stored: np.ndarray, dtype: str) -> np.ndarray:
    """Gives stored values of a type of ``Tensor`` as float32, exactly."""
    import numpy as np

    if dtype == "BF16":
        return (stored.astype(np.uint32) << 16).view(np.float32)
    if dtype == "F16":
        return stored.view(np.float16).astype(np.float32)
    return stored.view(np.float32)


def first_flaw(checkpoint: Checkpoint) -> str | None:
    """Names the first tensor that holds a NaN or an infinity."""
    import numpy as np

    for name, tensor in checkpoint.tensors.items():
        rows = tensor.array().reshape(-1)
        mask, kind = {
            "BF16": (0x7F80, np.uint16),
            "F16": (0x7C00, np.uint16),
            "F32": (0x7F800000, np.uint32),
        }[tensor.dtype]
        for begin in range(0, len(rows), 1 << 24):
            bits = rows[begin : begin + (1 << 24)].view(kind)
            if ((bits & mask) == mask).any():
                return name
    return None
