"""The identity of a model: one BLAKE3 over its configuration, tokenizer and tensors.

Over tensors and not files, so that sharding a checkpoint anew keeps it. The
digest of gigabytes is remembered for as long as no file has changed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from llmtrace.errors import Trouble

if TYPE_CHECKING:
    from llmtrace.model.checkpoint import Checkpoint, Tensor

# A file changed again within one tick of its clock looks unchanged (as git's index knows).
CLOCK_TICK_NS = 20_000_000

FileState = tuple[str, int, int, int]
"""Resolved path, size, mtime and ctime in nanoseconds."""


def identify(checkpoint: Checkpoint, cache_dir: Path | None) -> str:
    """The model id: 64 hex digits, the same wherever the same model lies.

    With ``cache_dir``, an answer is kept there and used again until a file of the
    checkpoint changes its path, size or times. Raises Trouble where a file of the
    checkpoint cannot be read; a cache that cannot be used is done without.
    """
    if cache_dir is None:
        return _model_id(checkpoint)
    before = _state(checkpoint)
    cache = cache_dir / f"{_digest(json.dumps(before).encode())}.json"
    known = _cached(cache, before)
    if known:
        return known
    started = time.time_ns()
    model_id = _model_id(checkpoint)
    newest = max(max(mtime, ctime) for _, _, mtime, ctime in before)
    if newest < started - CLOCK_TICK_NS and _state(checkpoint) == before:
        with contextlib.suppress(OSError):
            _write_whole(cache, json.dumps({"files": before, "id": model_id}) + "\n")
    return model_id


def canonical_json(value: object) -> bytes:
    """RFC 8785 for what an identity holds: objects, lists, strings and whole numbers."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8")


def _model_id(checkpoint: Checkpoint) -> str:
    config, generation_config, tokenizer = (_file_digest(file) for file in _texts(checkpoint))
    content = {
        "config": config,
        "generation_config": generation_config,
        "tokenizer": tokenizer,
        "tensors": [
            [name, tensor.dtype, list(tensor.shape), _tensor_digest(tensor)]
            for name, tensor in sorted(checkpoint.tensors.items())
        ],
    }
    return _digest(canonical_json(content))


def _texts(checkpoint: Checkpoint) -> list[Path]:
    names = ("config.json", "generation_config.json", "tokenizer.json")
    return [checkpoint.path / name for name in names]


def _tensor_digest(tensor: Tensor) -> str:
    import numpy as np

    return _digest(tensor.array().reshape(-1).view(np.uint8).data)


def _file_digest(file: Path) -> str:
    try:
        return _digest(file.read_bytes()) if file.is_file() else ""
    except OSError as error:
        raise Trouble(f"cannot read '{file}': {error.strerror or error}") from error


def _digest(data: bytes | memoryview) -> str:
    import blake3

    return blake3.blake3(data, max_threads=blake3.blake3.AUTO).hexdigest()


def _state(checkpoint: Checkpoint) -> list[FileState]:
    # ctime as well: a copy that keeps the old mtime is another file
    files = [file for file in _texts(checkpoint) if file.is_file()] + checkpoint.files()
    state: list[FileState] = []
    for file in files:
        try:
            resolved = file.resolve(strict=True)
            stat = resolved.stat()
        except OSError as error:
            raise Trouble(f"cannot read '{file}': {error.strerror or error}") from error
        state.append((str(resolved), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))
    return state


def _cached(cache: Path, state: list[FileState]) -> str | None:
    try:
        entry = json.loads(cache.read_text("utf-8"))
        is_same = [tuple(each) for each in entry["files"]] == state
        is_sound = is_same and re.fullmatch("[0-9a-f]{64}", entry["id"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return str(entry["id"]) if is_sound else None


def _write_whole(file: Path, text: str) -> None:
    # a reader sees all of it or nothing
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=file.name, suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as opened:
            opened.write(text)
        Path(name).replace(file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
