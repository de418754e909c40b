"""Puts many objects into a git repository at once, as one pack: two files, few waits for the disk.

A loose object costs a file and its share of two waits; a group of 100 records has 700. The
objects stand whole, one after the other (activations have nothing in common that a delta
could save), and the index is the usual one of version 2 (gitformat-pack).
"""

import hashlib
import struct
import zlib
from binascii import crc32
from itertools import accumulate
from pathlib import Path

from llmtrace.store import durable
from llmtrace.store.loose import object_id, refuse_collision, sync

_NUMBERS = {"commit": 1, "tree": 2, "blob": 3}
_LONGEST = 1 << 31  # bytes of a pack whose index has offsets of 4 bytes


class Pack:
    """Objects on their way into a repository; visible and durable after ``publish``.

    They are held in memory until then: the caller ends a group at some megabytes. ``name``
    tells concurrent writers apart (each chain has one writer). An object that the
    repository has already is written again; maintenance keeps one of them.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._stem = folder / "pack" / f"tmp_llmtrace-{name}"
        self._entries: dict[str, bytes] = {}  # id to header and compressed contents

    def add(self, kind: str, data: bytes) -> str:
        """Takes an object; gives its id. Raises Trouble."""
        oid = object_id(kind, data)
        if oid not in self._entries:
            if kind == "blob":
                refuse_collision(data)
            self._entries[oid] = _header(_NUMBERS[kind], len(data)) + zlib.compress(data, 1)
        return oid

    def publish(self) -> None:
        """Writes pack and index, syncs both, names both, syncs the folder. Raises Trouble."""
        if not self._entries:
            return
        pack = _pack(list(self._entries.values()))
        index = _index(self._entries, pack[-20:])
        new = [(self._temporary(end), data) for end, data in (("pack", pack), ("idx", index))]
        place = self._folder / "pack" / f"pack-{pack[-20:].hex()}"
        with durable.troubled("write the store", self._folder.parent):
            for path, data in new:
                path.unlink(missing_ok=True)
                path.write_bytes(data)
                path.chmod(0o444)
            sync(path for path, _ in new)
            for end in ("pack", "idx"):  # the index last: git looks for packs by it
                self._temporary(end).rename(place.with_suffix(f".{end}"))
            durable.sync(place.parent)
        self._entries.clear()

    def discard(self) -> None:
        """Removes what was not published."""
        for end in ("pack", "idx"):
            self._temporary(end).unlink(missing_ok=True)

    def _temporary(self, end: str) -> Path:
        # git takes whatever ends with .idx for an index, packs it again and removes it
        return self._stem.with_name(f"{self._stem.name}-{end}")


def _header(number: int, size: int) -> bytes:
    """Type and size of an object: 4 bits of the size, then 7 a byte, the lowest first."""
    made = bytearray([number << 4 | size & 15])
    size >>= 4
    while size:
        made[-1] |= 0x80
        made.append(size & 0x7F)
        size >>= 7
    return bytes(made)


def _pack(entries: list[bytes]) -> bytes:
    data = b"".join([struct.pack(">4sII", b"PACK", 2, len(entries)), *entries])
    if len(data) >= _LONGEST:
        raise ValueError("a group is larger than a pack may be")
    return data + hashlib.sha1(data, usedforsecurity=False).digest()


def _index(entries: dict[str, bytes], checksum: bytes) -> bytes:
    """The index of a pack of these entries, in this order."""
    starts = accumulate((len(entry) for entry in entries.values()), initial=12)
    offsets = dict(zip(entries, starts, strict=False))
    ids = sorted(entries)
    counts = [0] * 256
    for oid in ids:
        counts[int(oid[:2], 16)] += 1
    data = b"".join(
        (
            b"\xfftOc" + struct.pack(">I", 2),
            struct.pack(">256I", *accumulate(counts)),
            bytes.fromhex("".join(ids)),
            struct.pack(f">{len(ids)}I", *(crc32(entries[oid]) for oid in ids)),
            struct.pack(f">{len(ids)}I", *(offsets[oid] for oid in ids)),
            checksum,
        )
    )
    return data + hashlib.sha1(data, usedforsecurity=False).digest()
