"""Files of a cache: a reader finds all of one or none."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def put(path: Path, *parts: bytes | memoryview) -> None:
    """Writes the parts of a file, one after the other. Raises OSError; nothing stays behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            for part in parts:
                file.write(part)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
