"""Loose files of a git repository: objects put there, each durable before it can be seen.

libgit2 syncs file after file, folder after folder: 22 waits for the disk for a run of 11
objects. Here all files are synced at once from threads (the kernel merges them into few
writes), then named, then all folders: 88 ms became 12 (2 cores, ext4, both busy).
An object that a power cut could leave empty under its name would never be written again,
since git looks only at names: hence the order.
"""

import contextlib
import hashlib
import os
import re
import threading
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

from llmtrace.errors import Trouble
from llmtrace.store import durable

_THREADS = 16
_HEAD = 128  # bytes of a file that hold its header, however it is packed
_HEADER = re.compile(rb"(commit|tree|blob|tag) (0|[1-9][0-9]{0,14})\0")


class Batch:
    """Objects on their way into a repository; visible and durable after ``publish``.

    ``known`` says whether the repository has an object, ``name`` tells concurrent
    writers apart (each chain has one writer).
    """

    def __init__(self, folder: Path, known: Callable[[str], bool], name: str) -> None:
        self._folder = folder
        self._known = known
        self._name = name
        self._new: dict[str, Path] = {}  # id to temporary file
        self._old: set[Path] = set()

    def add(self, kind: str, data: bytes) -> str:
        """Writes an object under a temporary name; gives its id. Raises Trouble."""
        oid = object_id(kind, data)
        if kind == "blob":
            refuse_collision(data)
        if oid in self._new:
            return oid
        if self._known(oid):
            if self._place(oid).is_file():  # perhaps by a process that died before it synced
                self._old.add(self._place(oid))
            return oid
        path = self._folder / f"tmp_obj_llmtrace-{self._name}-{len(self._new)}"
        with durable.troubled("write the store", self._folder.parent):
            path.unlink(missing_ok=True)
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o444)
            self._new[oid] = path
            with os.fdopen(handle, "wb") as file:
                file.write(zlib.compress(f"{kind} {len(data)}\0".encode() + data, 1))
        return oid

    def publish(self) -> None:
        """Syncs all files, names them, syncs the folders. Raises Trouble."""
        with durable.troubled("write the store", self._folder.parent):
            sync(self._new.values())
            sync(self._old, packed=True)
            places = {self._place(oid): path for oid, path in self._new.items()}
            for place, path in places.items():
                _name(path, place)
            self._new.clear()
            folders = {place.parent for place in [*places, *self._old]}
            sync({self._folder} | folders, packed=True)

    def discard(self) -> None:
        """Removes what was not published."""
        for path in self._new.values():
            path.unlink(missing_ok=True)

    def _place(self, oid: str) -> Path:
        return self._folder / oid[:2] / oid[2:]


def _name(path: Path, place: Path) -> None:
    """Moves a file into its folder, which git removes when all in it is packed."""
    for _ in range(2):
        place.parent.mkdir(exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            path.rename(place)
            return
    path.rename(place)


class Loose:
    """An object in a file of its own; in a damaged one libgit2 may go round for ever.

    A zlib stream of "kind size", a zero byte and the contents. Raises FileNotFoundError,
    OSError, zlib.error, and ValueError for what is none.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with path.open("rb") as file:
            start = zlib.decompressobj().decompress(file.read(_HEAD), _HEAD)
        match = _HEADER.match(start)
        if match is None:
            raise ValueError("its header is none")
        self.kind, self.size = match[1].decode(), int(match[2])
        self._whole = match.end() + self.size  # bytes of the stream

    def contents(self) -> bytes:
        """As many bytes as the header says; the stream and the file end with them."""
        stream = zlib.decompressobj()
        with self._path.open("rb") as file:
            packed = file.read(self._whole + self._whole // 1000 + _HEAD)  # what zlib needs at most
        data = stream.decompress(packed, self._whole + 1)
        if len(data) != self._whole or not stream.eof or stream.unused_data:
            raise ValueError("its size is not that of its header")
        return data[self._whole - self.size :]


def object_id(kind: str, data: bytes) -> str:
    """Git's id of an object."""
    header = f"{kind} {len(data)}\0".encode()
    return hashlib.sha1(header + data, usedforsecurity=False).hexdigest()


def refuse_collision(data: bytes) -> None:
    """Refuses a part that a stranger made to collide: git, which knows how, would not read it."""
    import pygit2

    try:
        pygit2.hash(data)
    except pygit2.GitError as error:
        raise Trouble("a part is a SHA-1 collision, which git does not store") from error


def sync(paths: Iterable[Path], *, packed: bool = False) -> None:
    """Syncs files and folders, all at once; raises the first OSError.

    ``packed``: git may have packed what is there, and removed it.
    """
    gone = (FileNotFoundError,) if packed else ()
    listed = list(paths)
    errors: list[OSError] = []

    def work(share: list[Path]) -> None:
        try:
            for path in share:
                with contextlib.suppress(*gone):
                    durable.sync(path)
        except OSError as error:
            errors.append(error)

    shares = [listed[i::_THREADS] for i in range(min(_THREADS, len(listed)))]
    threads = [threading.Thread(target=work, args=(share,)) for share in shares]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
