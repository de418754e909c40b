"""Files that commands write: whole or not at all."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from llmtrace.errors import Trouble

if TYPE_CHECKING:
    from pathlib import Path


def write_whole(path: Path, data: bytes) -> int:
    """Writes a file whole or not at all, in place of what is there; gives its size.

    Raises Trouble, also for what is there and no regular file.
    """
    try:
        target = path.resolve()  # a link stays, and what it points to is replaced
        if target.exists() and not target.is_file():
            raise Trouble(f"cannot write '{path}': not a regular file")
        part = target.with_name(f".{target.name}.{os.getpid()}.part")
        try:
            with part.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
    except (OSError, ValueError) as error:  # ValueError: a null in the path
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise Trouble(f"cannot write '{path}': {why}") from error
    return len(data)
