"""Looks at the indexes of packs before anybody follows them; libgit2 trusts their offsets.

An index is made by whoever packs, so in a store that somebody handed over it is a stranger's
(packs that were fetched have indexes of git's own making here). An offset beyond the end of
its pack makes libgit2 read memory that is not its own.
"""

import os
import sys
from array import array
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

from llmtrace.errors import Trouble
from llmtrace.store import durable

_HEAD = b"\xfftOc\0\0\0\x02"  # of an index of version 2 (gitformat-pack)
_FANOUT = 8 + 4 * 256  # bytes up to the ids
_TAIL = 40  # bytes: checksums of pack and index
_CHUNK = 1 << 20  # bytes of offsets that are looked at together
_LARGE = 1 << 31  # an offset with this bit is a place in the table of large ones
_FOLDERS = 16  # of objects, that lead to each other
_LONGEST = 4096  # characters of a path


def check_indexes(objects: Path) -> list[Path]:
    """Raises Trouble for a pack whose index leads out of it, and for indexes of another kind.

    Looks at the folders that this one leads to as well (gitrepository-layout: alternates),
    and gives all of them.
    """
    waiting, seen = [objects], dict[Path, Path]()
    while waiting:
        folder = waiting.pop()
        with durable.troubled("read", folder):
            place = folder.resolve()
            if place in seen:
                continue
            seen[place] = folder
            if len(seen) > _FOLDERS:
                raise Trouble(f"'{objects}' leads to more than {_FOLDERS} folders of objects")
            _check_packs(folder)
            waiting += _alternates(folder)
    return list(seen.values())


def _check_packs(objects: Path) -> None:
    folder = objects / "pack"
    if (folder / "multi-pack-index").exists():
        path = folder / "multi-pack-index"
        raise Trouble(f"'{path}' is not read: it repeats what other files say", f"rm '{path}'")
    for path in sorted(folder.glob("*.idx")):
        pack = path.with_suffix(".pack")
        with durable.troubled("read", path):
            try:
                with path.open("rb") as file:
                    sound = _leads_inside(file, path.stat().st_size, pack.stat().st_size)
            except FileNotFoundError:  # git joined packs meanwhile, or it serves no pack
                continue
        if not sound:
            raise Trouble(f"the index '{path}' is damaged", f"git index-pack '{pack}'")


def _alternates(objects: Path) -> list[Path]:
    path = objects / "info/alternates"
    with durable.troubled("read", path):
        text = path.read_bytes() if path.is_file() else b""
    lines = [os.fsdecode(line) for line in text.split(b"\n")]
    if any(len(line) > _LONGEST or "\0" in line for line in lines):
        raise Trouble(f"'{path}' names no folder")
    return [objects / line for line in lines if line and not line.startswith("#")]


def _leads_inside(file: BinaryIO, size: int, pack: int) -> bool:
    """Says whether an index is whole, and all its offsets are in a pack of so many bytes."""
    head = file.read(_FANOUT)
    if len(head) < _FANOUT or not head.startswith(_HEAD):
        return False
    counts = _numbers(head[8:])
    offsets_at = _FANOUT + 24 * counts[-1]
    far_at = offsets_at + 4 * counts[-1]
    far_size = size - _TAIL - far_at
    if not 0 <= far_size <= 8 * counts[-1] or far_size % 8:
        return False
    if any(a > b for a, b in pairwise(counts)):
        return False
    file.seek(far_at)
    words = _numbers(file.read(far_size))
    far = [high << 32 | low for high, low in zip(words[::2], words[1::2], strict=True)]
    end = pack - 20
    if any(not 12 <= offset < end for offset in far):
        return False
    file.seek(offsets_at)
    for at in range(offsets_at, far_at, _CHUNK):
        offsets = _numbers(file.read(min(_CHUNK, far_at - at)))
        if min(offsets) < 12 or max(offsets) >= min(end, _LARGE):
            near = (12 <= one < end for one in offsets if one < _LARGE)
            places = (one - _LARGE < len(far) for one in offsets if one >= _LARGE)
            if not (all(near) and all(places)):
                return False
    return True


def _numbers(data: bytes) -> "array[int]":
    """Big-endian integers of 4 bytes."""
    found = array("I", data)
    if sys.byteorder == "little":
        found.byteswap()
    return found
