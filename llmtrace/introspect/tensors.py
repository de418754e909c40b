"""The tensors of another engine: a safetensors file that a stranger may have written.

Hides the file format, the types that values are stored in, and the shapes that other tools give
to rows: a leading 1 for the batch, heads apart.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from llmtrace.errors import Trouble

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np

    from llmtrace.model.checkpoint import Tensor

_HEADER = 16 << 20  # bytes; a tensor takes some 150
_DTYPES = ("BF16", "F16", "F32")


def tensors_of(path: Path) -> dict[str, Tensor]:
    """Reads the header of a safetensors file, and no values; raises Trouble."""
    from safetensors import SafetensorError, safe_open

    try:
        with path.open("rb") as opened:
            size = int.from_bytes(opened.read(8), "little")
            if size > _HEADER:  # it is parsed whole, in ten times the memory
                raise ValueError(f"its header claims {size} bytes")  # noqa: TRY301
            with safe_open(path, framework="numpy"):  # checks offsets, overlaps and sizes
                pass
            header: dict[str, Any] = json.loads(opened.read(size))
    except OSError as error:
        raise Trouble(f"cannot read '{path}': {error.strerror or error}") from error
    except (SafetensorError, ValueError, RecursionError) as error:
        hint = "it is no safetensors file: see samples/export_activations.py"
        raise Trouble(f"cannot read '{path}': {str(error)[:200]}", hint) from error
    header.pop("__metadata__", None)
    return {name: _tensor(name, entry, path, 8 + size) for name, entry in header.items()}


def _tensor(name: str, entry: Mapping[str, Any], path: Path, start: int) -> Tensor:
    from llmtrace.model.checkpoint import Tensor

    begin, end = entry["data_offsets"]
    return Tensor(name, entry["dtype"], tuple(entry["shape"]), path, start + begin, end - begin)


def rows_of(tensor: Tensor, point: str, count: int, width: int, fed: int) -> np.ndarray:
    """Reads a tensor as (count, width) f64.

    Of a tensor with a row for each of the ``fed`` tokens the last ``count`` are taken. Raises
    Trouble for another type or shape, and for a value that is not finite.
    """
    import numpy as np

    from llmtrace.blocks.weights import widen

    where = f"'{tensor.name}' of '{tensor.file}'"
    if tensor.dtype not in _DTYPES:
        hint = "write float32, bfloat16 or float16"
        raise Trouble(f"{where} has dtype '{tensor.dtype}'", hint)
    shape = tensor.shape[1:] if len(tensor.shape) > 2 and tensor.shape[0] == 1 else tensor.shape
    if not shape or shape[0] not in {count, fed} or math.prod(shape[1:]) != width:
        why = f"{where} has shape {tensor.shape}, the record needs ({count}, {width})"
        raise Trouble(why, f"feed the run's prompt and output, and write all rows of '{point}'")
    rows: np.ndarray = widen(tensor).reshape(shape[0], width)[shape[0] - count :]
    flaws = np.argwhere(~np.isfinite(rows))
    if len(flaws):
        row, column = (int(i) for i in flaws[0])
        raise Trouble(f"{where} holds a NaN or an infinity at row {row}, column {column}")
    return rows.astype(np.float64)
