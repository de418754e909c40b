"""Places of chains on the disk, so that nobody walks a long chain twice.

A place follows from its commit, whichever store holds it. So a file may be deleted, cut
short or brought from another machine at any time: what is not whole counts as absent, and
what cannot be written is not kept. The checksum of a line finds accidents, no forgery: the
folder is trusted as the compiled kernels beside it are, and a whole audit does without it.
One file a node, with its newest places only.
"""

import contextlib
import os
import re
from pathlib import Path
from typing import NamedTuple

from llmtrace.store import canonical
from llmtrace.store.record import blake3_hex
from llmtrace.store.schema import DIGEST, NODE_ID

LINES = 32  # places a file
FILES = 1024  # each of at most 12 KB
_LIMIT = LINES * 512  # bytes of a file
_CONTEXT = b"llmtrace place 1\n"  # of the checksum in each line: another format is another one
_COMMIT = re.compile(r"[0-9a-f]{40}")
_NODE = re.compile(rf"\nLlmtrace-Node: ({NODE_ID.pattern})\n".encode())


class Place(NamedTuple):
    """What holds after a commit; seq counts commits."""

    node: str
    key: bytes  # raw 32 bytes: must sign the next record
    promised: str  # BLAKE3 of the key after it
    until: int | None  # last seq that the key may sign; None for any
    seq: int


def node_in(raw: bytes) -> str | None:
    """The node that the message of a commit names: a claim, and no more than a file's name."""
    named = _NODE.search(raw)
    return named[1].decode() if named else None


def load(folder: Path, node: str) -> dict[str, Place]:
    """The places that are kept of a node, by their commit ids; {} if there are none."""
    try:
        with (folder / node).open("rb") as file:
            lines = file.read(_LIMIT).splitlines()
    except OSError:
        return {}
    return dict(found for line in lines if (found := _parse(line)) is not None)


def save(folder: Path, commit_id: str, place: Place) -> None:
    """Keeps a place, beside the newest that are kept; does nothing where that cannot be."""
    path = folder / place.node
    new = folder / f".{place.node}.{os.getpid()}.new"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        old = load(folder, place.node)
        kept = sorted(({commit_id: place} | old).items(), key=lambda item: item[1].seq)
        new.write_bytes(b"".join(_line(*item) for item in kept[-LINES:]))
        new.rename(path)
        files = [one for one in folder.iterdir() if not one.name.startswith(".")]
        if len(files) > FILES:
            min(files, key=lambda one: one.stat().st_mtime).unlink()
    except OSError:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)


def _line(commit_id: str, place: Place) -> bytes:
    fields = [place.node, place.key.hex(), place.promised, place.until, place.seq]
    text = canonical.encode([commit_id, *fields])
    return text + b" " + blake3_hex(_CONTEXT + text).encode() + b"\n"


def _parse(line: bytes) -> tuple[str, Place] | None:
    """A line of a file; None for one that is not as it was written."""
    text, _, checksum = line.rpartition(b" ")
    if blake3_hex(_CONTEXT + text).encode() != checksum:
        return None
    try:
        value = canonical.decode(text)
    except ValueError:
        return None
    if not isinstance(value, list) or len(value) != 6:
        return None
    commit_id, node, key, promised, until, seq = value
    strings = ((commit_id, _COMMIT), (node, NODE_ID), (key, DIGEST), (promised, DIGEST))
    if not all(isinstance(word, str) and form.fullmatch(word) for word, form in strings):
        return None
    if type(seq) is not int or not (until is None or type(until) is int):
        return None
    return commit_id, Place(node, bytes.fromhex(key), promised, until, seq)
