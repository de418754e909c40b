"""A checkpoint on disk: config.json, generation_config.json and memory-mapped safetensors.

Hides the file format and whether the tensors are in one file or in shards. The
safetensors library checks each header (offsets, overlaps, truncation); we then
read the header ourselves, because its own arrays cannot hold BF16.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmtrace.errors import Trouble

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

ITEM_SIZE = {"BF16": 2, "F16": 2, "F32": 4}
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
HEADER_LIMIT = 16 << 20
"""Bytes of the header of a safetensors file; a tensor takes some 150."""


@dataclass(frozen=True)
class Tensor:
    """One stored tensor; its bytes stay in the file until they are read."""

    name: str
    dtype: str
    """``BF16``, ``F16`` or ``F32``."""
    shape: tuple[int, ...]
    file: Path
    offset: int
    """Bytes from the start of the file."""
    nbytes: int

    def array(self) -> npt.NDArray[np.uint16] | npt.NDArray[np.float32]:
        """Maps the tensor, read-only: bits in uint16 for BF16 and F16, float32 for F32.

        A copy only where the file does not align the tensor to its element size.
        Raises Trouble when the file has gone or shrunk since it was opened.
        """
        import numpy as np

        kind = np.dtype("<f4" if self.dtype == "F32" else "<u2")
        if self.nbytes == 0:
            empty = np.empty(self.shape, kind)
            empty.flags.writeable = False
            return empty
        try:
            mapped = np.memmap(self.file, kind, "r", self.offset, self.shape)
        except (OSError, ValueError) as error:
            raise Trouble(f"cannot read tensor '{self.name}' of '{self.file}': {error}") from error
        view = mapped.view(np.ndarray)
        if not view.flags.aligned:
            view = view.copy()
            view.flags.writeable = False
        return view

    def rows(
        self, index: npt.NDArray[np.integer]
    ) -> npt.NDArray[np.uint16] | npt.NDArray[np.float32]:
        """Reads chosen rows (R, K) of a matrix, as ``array`` gives them: few need no mapping.

        Raises IndexError for a row that it has not, and Trouble as ``array`` does.
        """
        import numpy as np

        rows = np.empty((len(index), self.shape[1]), "<f4" if self.dtype == "F32" else "<u2")
        read_rows([self] * len(index), index.tolist(), rows)
        return rows


def read_rows(tensors: Sequence[Tensor], index: Sequence[int], rows: np.ndarray) -> None:
    """Reads row ``index[i]`` of ``tensors[i]`` into ``rows[i]``; widths and types are the same.

    Raises IndexError for a row that a tensor has not, and Trouble as ``array`` does.
    """
    with contextlib.ExitStack() as stack:
        files: dict[Path, int] = {}
        for tensor, number, row in zip(tensors, index, rows, strict=True):
            if not 0 <= number < tensor.shape[0]:
                raise IndexError(f"'{tensor.name}' has {tensor.shape[0]} rows")
            try:
                if tensor.file not in files:
                    file = stack.enter_context(tensor.file.open("rb", buffering=0))
                    files[tensor.file] = file.fileno()
                place = tensor.offset + number * row.nbytes
                is_whole = os.preadv(files[tensor.file], [row], place) == row.nbytes
                why = "" if is_whole else "it is shorter now"
            except OSError as error:
                why = str(error)
            if why:
                raise Trouble(f"cannot read tensor '{tensor.name}' of '{tensor.file}': {why}")


@dataclass(frozen=True)
class Checkpoint:
    """A model folder in the Hugging Face layout, opened but not read."""

    path: Path
    config: dict[str, Any]
    generation_config: dict[str, Any]
    """Empty where the folder has no generation_config.json."""
    tensors: dict[str, Tensor]
    """By name, in the order of the names."""

    @classmethod
    def open(cls, path: Path) -> Checkpoint:
        """Reads the configuration and the tensor headers, and no weights.

        Raises Trouble, with the file's name, for anything missing, malformed or
        stored in a dtype that llmtrace does not read.
        """
        if not path.is_dir():
            what = "is not a folder" if path.exists() else "does not exist"
            raise Trouble(f"model folder '{path}' {what}", "llmtrace model list")
        config_file = path / "config.json"
        if not config_file.is_file():
            raise Trouble(
                f"no 'config.json' in '{path}'",
                "a model is a Hugging Face folder: config.json, model.safetensors, tokenizer.json",
            )
        generation_file = path / "generation_config.json"
        return cls(
            path=path,
            config=read_json_object(config_file),
            generation_config=(
                read_json_object(generation_file) if generation_file.is_file() else {}
            ),
            tensors=_tensors(path),
        )

    def files(self) -> list[Path]:
        """The files that hold the tensors, in the order of their names."""
        return sorted({tensor.file for tensor in self.tensors.values()})


def read_json_object(file: Path) -> dict[str, Any]:
    """Parses a JSON file that must hold one object, no key of it twice."""
    try:
        return _json_object(file.read_bytes())
    except OSError as error:
        raise Trouble(f"cannot read '{file}': {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise Trouble(f"cannot read '{file}': {error}", "fetch the model again") from error


def _json_object(data: bytes) -> dict[str, Any]:
    value = json.loads(data.decode("utf-8"), object_pairs_hook=_distinct)
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")  # noqa: TRY004 - one kind for all malformed JSON
    return value


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"'{key}' is there twice")
        found[key] = value
    return found


def _tensors(folder: Path) -> dict[str, Tensor]:
    # A single file wins over an index beside it, as in transformers.
    if (folder / SINGLE).is_file():
        found = {tensor.name: tensor for tensor in _file_tensors(folder / SINGLE)}
    elif (folder / INDEX).is_file():
        found = _sharded_tensors(folder / INDEX)
    else:
        hint = "fetch the model again"
        if any(folder.glob("*.bin")):
            hint = "convert its .bin files to safetensors"
        raise Trouble(f"no 'model.safetensors' or '{INDEX}' in '{folder}'", hint)
    return dict(sorted(found.items()))


def _sharded_tensors(index: Path) -> dict[str, Tensor]:
    listed = read_json_object(index).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(file, str) for file in listed.values()):
        raise Trouble(f"no 'weight_map' of names to files in '{index}'", "fetch the model again")
    found: dict[str, Tensor] = {}
    for shard in sorted(set(listed.values())):
        if shard != Path(shard).name or "\\" in shard:
            raise Trouble(f"'{index}' names shard '{shard}', which is not in its folder")
        for tensor in _file_tensors(index.parent / shard):
            if tensor.name in found:
                other = found[tensor.name].file.name
                raise Trouble(f"tensor '{tensor.name}' is both in '{other}' and in '{shard}'")
            if listed.get(tensor.name) != shard:
                raise Trouble(f"'{index}' does not list tensor '{tensor.name}' of '{shard}'")
            found[tensor.name] = tensor
    for name, shard in listed.items():
        if name not in found:
            raise Trouble(
                f"no tensor '{name}' in '{index.parent / shard}'", "fetch the model again"
            )
    return found


def _file_tensors(file: Path) -> list[Tensor]:
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        raise Trouble(f"shard '{file}' does not exist", "fetch the model again")
    try:
        with file.open("rb") as opened:
            header_size = int.from_bytes(opened.read(8), "little")
            if header_size > HEADER_LIMIT:  # it is parsed whole, in ten times the memory
                raise ValueError(f"its header claims {header_size} bytes")  # noqa: TRY301
            with safe_open(file, framework="numpy"):  # only for its checks of the header
                pass
            header = _json_object(opened.read(header_size))
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise Trouble(f"cannot read '{file}': {error}", "fetch the model again") from error
    header.pop("__metadata__", None)
    return [_tensor(name, entry, file, 8 + header_size) for name, entry in header.items()]


def _tensor(name: str, entry: dict[str, Any], file: Path, data_start: int) -> Tensor:
    dtype = entry["dtype"]
    if dtype not in ITEM_SIZE:
        raise Trouble(
            f"tensor '{name}' of '{file}' has dtype '{dtype}'",
            "convert it: llmtrace reads BF16, F16 and F32",
        )
    start, end = entry["data_offsets"]
    return Tensor(name, dtype, tuple(entry["shape"]), file, data_start + start, end - start)
