"""Looks at the indexes of packs before libgit2 does, which trusts the offsets in them.

An index is made by whoever packs, so in a store that somebody handed over it is a stranger's
(packs that were fetched have indexes of git's own making here). An offset beyond the end of
its pack makes libgit2 read memory that is not its own.
"""

import os
import sys
from array import array
from itertools import pairwise
from pathlib import Path

from llmtrace.errors import Trouble
from llmtrace.store import durable

_HEAD = b"\xfftOc\0\0\0\x02"  # of an index of version 2 (gitformat-pack)
_FANOUT = 8 + 4 * 256  # bytes up to the ids
_TAIL = 40  # bytes: checksums of pack and index
_LARGE = 1 << 31  # an offset with this bit is a place in the table of large ones


_DEPTH = 5  # folders of objects that lead to each other, as libgit2 follows them


def check_indexes(objects: Path, depth: int = 0) -> None:
    """Raises Trouble for a pack whose index leads out of it, and for indexes of another kind.

    Looks at the folders that this one leads to as well (gitrepository-layout: alternates).
    """
    for other in _alternates(objects):
        if depth == _DEPTH:
            raise Trouble(f"'{objects}' leads to too many other folders of objects")
        check_indexes(other, depth + 1)
    folder = objects / "pack"
    if (folder / "multi-pack-index").exists():
        path = folder / "multi-pack-index"
        raise Trouble(f"'{path}' is not read: it repeats what other files say", f"rm '{path}'")
    for path in sorted(folder.glob("*.idx")):
        with durable.troubled("read", path):
            pack = path.with_suffix(".pack")
            try:
                data, size = path.read_bytes(), pack.stat().st_size
            except FileNotFoundError:  # git joined packs meanwhile, or it serves no pack
                continue
        if not _leads_inside(data, size):
            raise Trouble(f"the index '{path}' is damaged", f"git index-pack '{pack}'")


def _alternates(objects: Path) -> list[Path]:
    path = objects / "info/alternates"
    with durable.troubled("read", path):
        text = path.read_bytes() if path.is_file() else b""
    lines = [os.fsdecode(line) for line in text.split(b"\n")]
    return [objects / line for line in lines if line and not line.startswith("#")]


def _leads_inside(data: bytes, size: int) -> bool:
    """Says whether an index is whole, and all its offsets are in a pack of this size."""
    if len(data) < _FANOUT + _TAIL or not data.startswith(_HEAD):
        return False
    counts = _numbers(data[8:_FANOUT])
    count = counts[-1]
    offsets_at = _FANOUT + 24 * count
    large_at = offsets_at + 4 * count
    large = len(data) - _TAIL - large_at
    if large < 0 or large % 8 or any(a > b for a, b in pairwise(counts)):
        return False
    offsets = _numbers(data[offsets_at:large_at])
    end = size - 20
    if not count or max(offsets) < _LARGE:
        return not count or (min(offsets) >= 12 and max(offsets) < end)
    words = _numbers(data[large_at : large_at + large])
    far = [high << 32 | low for high, low in zip(words[::2], words[1::2], strict=True)]
    return all(
        12 <= offset < end
        if offset < _LARGE
        else offset - _LARGE < len(far) and 12 <= far[offset - _LARGE] < end
        for offset in offsets
    )


def _numbers(data: bytes) -> "array[int]":
    """Big-endian integers of 4 bytes."""
    found = array("I", data)
    if sys.byteorder == "little":
        found.byteswap()
    return found
