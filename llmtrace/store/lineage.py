"""Who speaks at a place of a chain: node, key in force and seq, from the identity on.

The only authority is the chain's first record, whose digest is the node's id. A key
follows another by a ``rotate`` record that the old one signed, while it might, and that
announces the key whose digest was promised before. Here a commit is a rotation if its
message says so: whether message and record agree is for the audit of that commit.
"""

import base64
from pathlib import Path
from typing import NamedTuple

from llmtrace.errors import Trouble
from llmtrace.store import places, sshsig
from llmtrace.store.commit import COMMIT_LIMIT, parent_of
from llmtrace.store.entry import Entry
from llmtrace.store.objects import Objects
from llmtrace.store.places import Place
from llmtrace.store.record import Sections, blake3_hex, node_id

_EVERY = 64  # commits between two places remembered
_PLACES = 1 << 14  # remembered, about 300 bytes each
_LONG = 512  # commits, from which on a walk is worth a file
_ROTATES = b"\nLlmtrace-Kind: rotate\n"


class Tenure(NamedTuple):
    """The records that a key signed in a chain: from one seq to another, both of them too."""

    key: bytes  # raw 32 bytes
    first: int
    last: int | None  # None for the key in force


class Lineage:
    """The places of the commits of a repository, some of them remembered."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._places: dict[str, Place] = {}
        self._folder: Path | None = None
        self._loaded: set[str] = set()  # nodes whose file was read

    def keep_in(self, folder: Path) -> None:
        """Keeps places of long chains in this folder too, and takes those that are there."""
        self._folder = folder

    def keep_as(self, other: "Lineage") -> None:
        """Keeps places where another lineage does."""
        self._folder = other._folder

    def after(self, commit_id: str) -> Place:
        """What holds after a commit, from its chain's identity on.

        Reads the commits back to a place that is remembered, and nothing else but
        rotations. Raises Trouble where the chain does not lead back to an identity, or a
        rotation on the way is not one.
        """
        self._load(commit_id)
        turns: list[tuple[int, str]] = []  # how far back, and what to stop at on the way here
        back, at = 0, commit_id
        while (place := self._places.get(at)) is None:
            raw = self._objects.read(at, "commit", COMMIT_LIMIT)
            before = parent_of(raw) or next(iter(Entry(self._objects, at).parents), None)
            if before is None:
                place = self.step(None, Entry(self._objects, at))
                break
            if back % _EVERY == 0 or _ROTATES in raw:
                turns.append((back, at))
            back, at = back + 1, before
        length = back
        for distance, one in reversed(turns):
            place = place._replace(seq=place.seq + back - distance - 1)
            place = self.step(place, Entry(self._objects, one))
            self._remember(one, place)
            back = distance
        if length >= _LONG and self._folder is not None:
            places.save(self._folder, commit_id, place)
        return place

    def keys(self, commit_id: str) -> list[Tenure]:
        """All keys that signed a chain up to a commit, the first one first; raises Trouble."""
        entries = [Entry(self._objects, commit_id)]
        while entries[-1].parents:
            before = Entry(self._objects, entries[-1].parents[0])
            if _ROTATES not in entries[-1].raw:
                entries.pop()
            entries.append(before)
        place = self.after(entries.pop().id)
        found = [Tenure(place.key, 0, None)]
        for entry in reversed(entries):
            place = self.after(entry.id)
            found[-1] = found[-1]._replace(last=place.seq)
            found.append(Tenure(place.key, place.seq + 1, None))
        return found

    def before(self, entry: Entry) -> Place | None:
        """What holds before a commit; None for the first of a chain."""
        return self.after(entry.parents[0]) if entry.parents else None

    def step(self, place: Place | None, entry: Entry) -> Place:
        """The place after one more commit; raises Trouble as ``after`` does."""
        if place is None:
            return _found(entry)
        if _ROTATES in entry.raw:
            return _rotate(place, entry)
        return place._replace(seq=place.seq + 1)

    def _load(self, commit_id: str) -> None:
        """Takes what the folder has of the node that a commit names, once a node."""
        if self._folder is None or commit_id in self._places:
            return
        node = places.node_in(self._objects.read(commit_id, "commit", COMMIT_LIMIT))
        if node is not None and node not in self._loaded:
            self._loaded.add(node)
            self._places |= places.load(self._folder, node)

    def _remember(self, commit_id: str, place: Place) -> None:
        if len(self._places) >= _PLACES:
            self._places.clear()
        self._places[commit_id] = place


def announced(section: Sections) -> bytes:
    """The public key that a well-formed identity or rotate section announces."""
    return base64.b64decode(section["public_key"])


def expired(place: Place) -> str | None:
    """Why the key in force may not sign the next record; None if it may."""
    if place.until is None or place.seq < place.until:
        return None
    return f"key expired: it may sign up to record {place.until}, this is record {place.seq + 1}"


def _found(entry: Entry) -> Place:
    if entry.record.kind != "identity":
        raise Trouble(f"the chain of '{entry.id[:8]}' does not begin with an identity")
    section = entry.record.sections["identity"]
    return Place(
        node_id(entry.digest), announced(section), section["next"], section.get("until"), 0
    )


def _rotate(place: Place, entry: Entry) -> Place:
    what = f"rotation '{entry.id[:8]}'"
    if entry.record.kind != "rotate":
        raise Trouble(f"{what} is a record of kind '{entry.record.kind}'")
    section = entry.record.sections["rotate"]
    key = announced(section)
    if blake3_hex(key) != place.promised:
        raise Trouble(f"{what} announces another key than was promised")
    why = expired(place) or sshsig.check(entry.payload, entry.signature, place.key)
    if why:
        raise Trouble(f"{what} is not signed by the key in force: {why}")
    return Place(place.node, key, section["next"], section.get("until"), place.seq + 1)
