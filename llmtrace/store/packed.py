"""Objects in the packs of a git repository, read with nothing in them taken on trust.

Whoever hands a store over made its packs and indexes. libgit2 follows what they say: of the
places in a pack of 10 kB that an index can name, one in 70 made it read memory that is not its
own, some made it go round for ever. Formats: gitformat-pack.
"""

import contextlib
import os
import zlib
from bisect import bisect_left
from collections.abc import Iterable
from mmap import ACCESS_READ, mmap
from pathlib import Path
from struct import unpack_from

from llmtrace.errors import Trouble

_KINDS = {1: "commit", 2: "tree", 3: "blob", 4: "tag"}
_BY_PLACE, _BY_ID = 6, 7  # deltas, by how they name what they are made from
_IDS = 8 + 4 * 256  # place of the first id in an index
_LARGE = 1 << 31  # an offset with this bit is a place in the table of large ones
_SMALL = 1 << 16  # bytes of an index that is read at once: a mapping holds a file open
_CHUNK = 4096  # bytes that are read before the size is known
_HEAD = 64  # bytes that hold the header of any object, or the two sizes of a delta
_DELTAS = 4095  # that lead to each other, the most that git makes
_LONGEST = 512 << 20  # bytes of what takes part in deltas; git makes none of larger files
_MOST = 16 << 30  # bytes of all that a chain of deltas makes, one from the other


class Packs:
    """The packs of these folders of objects, as they are now."""

    def __init__(self, folders: Iterable[Path]) -> None:
        self._indexes: list[_Index] = []
        for folder in folders:
            for path in sorted((folder / "pack").glob("*.idx")):
                with contextlib.suppress(FileNotFoundError):  # git joined packs meanwhile
                    self._indexes.append(_Index(path))

    def find(self, oid: str) -> "Packed | None":
        """The object of this id; raises what ``Packed`` does, but for a pack that is gone."""
        wanted = bytes.fromhex(oid)
        for index in self._indexes:
            place = index.find(wanted)
            if place is not None:
                with contextlib.suppress(FileNotFoundError):
                    return Packed(index, place)
        return None


class Packed:
    """An object in a pack: whole, or a chain of deltas that ends with a whole one.

    Raises FileNotFoundError where git joined packs meanwhile, OSError, zlib.error, and
    ValueError for what is none.
    """

    def __init__(self, index: "_Index", place: int) -> None:
        last = _Entry(index.pack, place)
        self._chain = [last]
        while last.base is not None:
            base = index.find(last.base) if isinstance(last.base, bytes) else last.base
            if base is None or len(self._chain) > _DELTAS:
                raise ValueError("what it is made from is missing")
            last = _Entry(index.pack, base)
            self._chain.append(last)
        if last.number not in _KINDS:
            raise ValueError("it is of no kind")
        self.kind = _KINDS[last.number]
        first = self._chain[0]
        self.size = last.size if first is last else first.sizes()[1]

    def contents(self) -> bytes:
        """As many bytes as the headers say, at each step."""
        *deltas, whole = self._chain
        sizes = [entry.sizes() for entry in deltas]
        made = [size for _, size in sizes]
        longest = max(made + [entry.size for entry in self._chain])
        if deltas and (longest > _LONGEST or sum(made) > _MOST):
            raise ValueError("it is made from too much")
        data = whole.inflated()
        for entry, (before, size) in zip(reversed(deltas), reversed(sizes), strict=True):
            if before != len(data):
                raise ValueError("it is made from something else")
            data = _made(data, entry.inflated(), size)
        return data


class _Index:
    """Where the objects of one pack are; ``check_indexes`` looked at it before."""

    def __init__(self, path: Path) -> None:
        self.pack = path.with_suffix(".pack")
        self._data: bytes | mmap
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size > _SMALL:
                self._data = mmap(file.fileno(), 0, access=ACCESS_READ)
            else:
                self._data = file.read()
        if len(self._data) < _IDS:
            raise Trouble(f"the index '{path}' is damaged")
        self._counts = (0, *unpack_from(">256I", self._data, 8))

    def find(self, wanted: bytes) -> int | None:
        """The place of an object in the pack; raises ValueError."""
        low, high = self._counts[wanted[0]], self._counts[wanted[0] + 1]
        number = bisect_left(range(high), wanted, low, key=self._id)
        if number >= high or self._id(number) != wanted:
            return None
        count = self._counts[-1]
        place = self._number(">I", _IDS + 24 * count + 4 * number)
        if place & _LARGE:
            place = self._number(">Q", _IDS + 28 * count + 8 * (place - _LARGE))
        return place

    def _id(self, number: int) -> bytes:
        return self._data[_IDS + 20 * number : _IDS + 20 * number + 20]

    def _number(self, layout: str, at: int) -> int:
        if at + 8 > len(self._data):
            raise ValueError("its index is damaged")
        return int(unpack_from(layout, self._data, at)[0])


class _Entry:
    """An object as it lies in a pack; ``base`` is a place, an id, or None of a whole one."""

    def __init__(self, pack: Path, place: int) -> None:
        if place >= 1 << 62:
            raise ValueError("it is outside its pack")
        self._pack, self._place = pack, place
        self._start = _read(pack, place, _CHUNK)
        head = self._start[:_HEAD]
        try:
            rest, at = _size(head, 1) if head[0] & 0x80 else (0, 1)
            self.number = head[0] >> 4 & 7
            self.size = rest << 4 | head[0] & 15
            self.base: int | bytes | None = None
            if self.number == _BY_PLACE:
                distance, at = _distance(head, at)
                self.base = place - distance
                if not 0 < distance <= place:
                    raise ValueError("what it is made from is outside its pack")
            elif self.number == _BY_ID:
                self.base, at = head[at : at + 20], at + 20
        except IndexError:
            raise ValueError("its header is none") from None
        self._at = at

    def inflated(self) -> bytes:
        """The stream of this entry, of exactly ``size`` bytes."""
        most = self.size + self.size // 1000 + _HEAD  # what zlib needs at most
        packed = self._start[self._at :]
        if len(packed) < most:
            packed = _read(self._pack, self._place + self._at, most)
        stream = zlib.decompressobj()
        data = stream.decompress(packed, self.size + 1)
        if len(data) != self.size or not stream.eof:
            raise ValueError("its size is not that of its header")
        return data

    def sizes(self) -> tuple[int, int]:
        """Of a delta: the bytes of what it is made from, and of what it makes."""
        start = zlib.decompressobj().decompress(self._start[self._at :], _HEAD)
        try:
            before, at = _size(start, 0)
            return before, _size(start, at)[0]
        except IndexError:
            raise ValueError("it is no delta") from None


def _read(pack: Path, place: int, size: int) -> bytes:
    file = os.open(pack, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(file, size, place)
    finally:
        os.close(file)


def _size(data: bytes, at: int) -> tuple[int, int]:
    """A number of 7 bits a byte, the lowest first, and the place behind it."""
    found = shift = 0
    while True:
        found |= (data[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if not data[at - 1] & 0x80:
            return found, at


def _distance(data: bytes, at: int) -> tuple[int, int]:
    """How far back, 7 bits a byte, the highest first, each step of a byte one further."""
    found = data[at] & 0x7F
    while data[at] & 0x80:
        at += 1
        found = found + 1 << 7 | data[at] & 0x7F
    return found, at + 1


def _made(base: bytes, delta: bytes, size: int) -> bytes:
    """What a delta makes: pieces of the base and new bytes, one after the other."""
    made = bytearray()
    try:
        at = _size(delta, _size(delta, 0)[1])[1]
        while at < len(delta):
            what, at = delta[at], at + 1
            if what & 0x80:
                start, at = _piece(delta, at, what & 15)
                count, at = _piece(delta, at, what >> 4 & 7)
                source = base
                count = count or 0x10000
            else:
                source, start, count = delta, at, what
                at += what
            if not what or start + count > len(source) or len(made) + count > size:
                raise ValueError("its delta is damaged")
            made += source[start : start + count]
    except IndexError:
        raise ValueError("its delta is damaged") from None
    if len(made) != size:
        raise ValueError("its delta is damaged")
    return bytes(made)


def _piece(delta: bytes, at: int, present: int) -> tuple[int, int]:
    """A number whose bytes, the lowest first, are there where a bit of ``present`` is set."""
    found = 0
    for number in range(4):
        if present >> number & 1:
            found |= delta[at] << 8 * number
            at += 1
    return found, at
