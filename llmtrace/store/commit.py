"""The bytes of git's trees and commits, as far as records use them.

Flat trees of mode 100644; commits with at most a ``gpgsig`` beside the usual headers. Both
are made here byte for byte, so that the same record gives the same commit id everywhere.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

MODE = "100644"
COMMIT_LIMIT = 64 << 10  # bytes; ours have about 1,200

_COMMIT = re.compile(
    rb"tree ([0-9a-f]{40})\n((?:parent [0-9a-f]{40}\n)*)author ([^\n]*)\ncommitter ([^\n]*)\n"
    rb"(gpgsig [^\n]*\n(?: [^\n]*\n)*)?\n(.*)",
    re.DOTALL,
)
_ENTRY = re.compile(rb"([^ ]*) ([^\0]*)\0(.{20})", re.DOTALL)
_PARENT = re.compile(rb"tree [0-9a-f]{40}\nparent ([0-9a-f]{40})\nauthor ")


class Blob(NamedTuple):
    """One entry of a tree; the name is as its author wrote it, other bytes than ASCII escaped."""

    mode: str
    name: str
    id: str


class Commit(NamedTuple):
    """The fields of a commit; payload is what the signature signs."""

    tree: str
    parents: tuple[str, ...]
    author: str
    committer: str
    message: str
    signature: str  # armored; "" without one
    payload: bytes


def tree_bytes(blobs: Mapping[str, str]) -> bytes:
    """A tree of files, from their names to their ids."""
    entries = (
        f"{MODE} {name}\0".encode() + bytes.fromhex(blobs[name])
        for name in sorted(blobs, key=str.encode)
    )
    return b"".join(entries)


def parse_tree(data: bytes) -> list[Blob]:
    """The entries of a tree; raises ValueError if it is none."""
    found = []
    place = 0
    while match := _ENTRY.match(data, place):
        mode, name, oid = match.groups()
        found.append(Blob(_ascii(mode), _ascii(name), oid.hex()))
        place = match.end()
    if place != len(data):
        raise ValueError("cut short")
    return found


def payload(tree: str, parents: tuple[str, ...], author: str, time: int, message: str) -> bytes:
    """The bytes of an unsigned commit; author is also the committer, times are UTC seconds."""
    lines = [f"tree {tree}", *(f"parent {parent}" for parent in parents)]
    lines += [f"author {author} {time} +0000", f"committer {author} {time} +0000"]
    return ("\n".join(lines) + "\n\n" + message).encode()


def signed(unsigned: bytes, signature: str) -> bytes:
    """The commit with its signature in ``gpgsig``, where git looks for it."""
    head, message = unsigned.split(b"\n\n", 1)
    lines = signature.rstrip("\n").replace("\n", "\n ")
    return head + f"\ngpgsig {lines}\n\n".encode() + message


def parse_commit(data: bytes) -> Commit:
    """The fields of a commit; raises ValueError if it has others, or is none."""
    match = _COMMIT.fullmatch(data)
    if match is None:
        raise ValueError("other headers than tree, parent, author, committer, gpgsig")
    tree, parents, author, committer, gpgsig, message = match.groups()
    block = gpgsig or b""
    start = match.start(5) if block else 0
    return Commit(
        tree.decode(),
        tuple(parents.decode().split()[1::2]),
        _text(author),
        _text(committer),
        _text(message),
        _text(block[len(b"gpgsig ") :].replace(b"\n ", b"\n")),
        data[:start] + data[start + len(block) :],
    )


def parent_of(data: bytes) -> str | None:
    """The parent of a commit as we write them, found fast; None for any other commit."""
    match = _PARENT.match(data)
    return match[1].decode() if match else None


def _ascii(data: bytes) -> str:
    return data.decode("ascii", "backslashreplace")


def _text(data: bytes) -> str:
    return data.decode("utf-8", "backslashreplace")
