"""Packs made by hand, for those whom git would not write. Format: gitformat-pack."""

import hashlib
import struct
import zlib
from pathlib import Path

BLOB, BY_PLACE, BY_ID = 3, 6, 7


def pack(store: Path, entries: dict[str, bytes]) -> None:
    """Puts a pack of these entries, by id, and its index into a repository."""
    whole, places = bytearray(b"PACK" + struct.pack(">II", 2, len(entries))), []
    for oid, data in entries.items():
        places.append((bytes.fromhex(oid), zlib.crc32(data), len(whole)))
        whole += data
    whole += hashlib.sha1(whole).digest()
    places.sort()
    fan = [sum(oid[0] <= n for oid, _, _ in places) for n in range(256)]
    index = bytearray(b"\xfftOc" + struct.pack(">I256I", 2, *fan))
    index += b"".join(oid for oid, _, _ in places)
    index += b"".join(struct.pack(">I", crc) for _, crc, _ in places)
    index += b"".join(struct.pack(">I", start) for _, _, start in places)
    index += whole[-20:]
    index += hashlib.sha1(index).digest()
    name = store / "objects/pack" / f"pack-{whole[-20:].hex()}"
    name.with_suffix(".pack").write_bytes(whole)
    name.with_suffix(".idx").write_bytes(index)


def entry(kind: int, size: int, stream: bytes, base: bytes = b"") -> bytes:
    """An object as it lies in a pack: what says its base, and its zlib stream, as given."""
    head, rest = bytearray([kind << 4 | size & 15]), size >> 4
    while rest:
        head[-1] |= 0x80
        head.append(rest & 0x7F)
        rest >>= 7
    return bytes(head) + base + stream


def varint(number: int) -> bytes:
    """One of the two sizes that a delta begins with."""
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


def distance(number: int) -> bytes:
    """How far back the base of a delta is."""
    made = [number & 127]
    while number >> 7:
        number = (number >> 7) - 1
        made.insert(0, number & 127 | 128)
    return bytes(made)
