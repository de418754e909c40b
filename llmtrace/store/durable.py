"""Files that survive a crash: whole or absent, and on the disk when the call returns."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from llmtrace.errors import Trouble


def write_file(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replaces a file at once; readers see the old bytes or the new ones.

    Only one writer at a time: the caller holds a lock. Raises Trouble.
    """
    new = path.with_name(f".{path.name}.new")
    with troubled("write", path):
        handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(handle)
            new.rename(path)
        except BaseException:
            new.unlink(missing_ok=True)
            raise
        sync(path.parent)


def rename(old: Path, new: Path) -> None:
    """Moves a file or folder over another, durably; raises Trouble."""
    with troubled("write", new):
        old.rename(new)
        sync(new.parent)


def sync(path: Path) -> None:
    """Puts a file, or the names in a folder, on the disk; raises OSError."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Holds an exclusive lock on a file, and waits for it; a dead process holds none."""
    with troubled("lock", path):
        handle = os.open(path, os.O_RDONLY | os.O_CREAT, 0o600)
    try:
        with troubled("lock", path):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def claim(path: Path) -> bool:
    """Takes an exclusive lock on a file until this process ends; False if it is another's."""
    with troubled("lock", path):
        handle = os.open(path, os.O_RDONLY | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return False
    return True


@contextlib.contextmanager
def troubled(verb: str, path: Path) -> Iterator[None]:
    """Turns an OSError into a Trouble: cannot <verb> '<path>': <why>."""
    try:
        yield
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise Trouble(f"cannot {verb} '{path}': {why}") from error
