"""Who speaks at a place of a chain: node, key in force, seq and digest, from the identity on.

The only authority is the chain's first record, whose digest is the node's id. A key
follows another by a ``rotate`` record that the old one signed and that announces the key
whose digest was promised before.
"""

import base64
from typing import NamedTuple

from llmtrace.errors import Trouble
from llmtrace.store import sshsig
from llmtrace.store.entry import Entry
from llmtrace.store.objects import Objects
from llmtrace.store.record import Sections, blake3_hex, node_id

_KEPT = 1 << 18  # places remembered, about 300 bytes each


class Place(NamedTuple):
    """What holds after a commit; seq counts commits, digest is of its record.json."""

    node: str
    key: bytes  # raw 32 bytes: must sign the next record
    promised: str  # BLAKE3 of the key after it
    seq: int
    digest: str


class Lineage:
    """The places of the commits of a repository, each worked out once."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._places: dict[str, Place] = {}

    def after(self, commit_id: str) -> Place:
        """What holds after a commit, from its chain's identity on; linear in new commits.

        Raises Trouble where the chain does not lead back to an identity, or a rotation
        on the way is not one.
        """
        ids: list[str] = []
        place: Place | None = None
        at: str | None = commit_id
        while at is not None and place is None:
            place = self._places.get(at)
            if place is None:
                ids.append(at)
                parents = Entry(self._objects, at).parents
                at = parents[0] if parents else None
        for one in reversed(ids):
            place = self.step(place, Entry(self._objects, one))
        assert place is not None  # ids is not empty, or the place was known
        return place

    def before(self, entry: Entry) -> Place | None:
        """What holds before a commit; None for the first of a chain."""
        return self.after(entry.parents[0]) if entry.parents else None

    def step(self, place: Place | None, entry: Entry) -> Place:
        """The place after one more commit; raises Trouble as ``after`` does."""
        if place is None:
            following = _found(entry)
        elif b'"kind":"rotate"' in entry.json and entry.record.kind == "rotate":
            following = _rotate(place, entry)
        else:
            following = place._replace(seq=place.seq + 1, digest=entry.digest)
        if len(self._places) >= _KEPT:
            self._places.clear()
        self._places[entry.id] = following
        return following


def announced(section: Sections) -> bytes:
    """The public key that a well-formed identity or rotate section announces."""
    return base64.b64decode(section["public_key"])


def _found(entry: Entry) -> Place:
    if entry.record.kind != "identity":
        raise Trouble(f"the chain of '{entry.id[:8]}' does not begin with an identity")
    section = entry.record.sections["identity"]
    return Place(node_id(entry.digest), announced(section), section["next"], 0, entry.digest)


def _rotate(place: Place, entry: Entry) -> Place:
    section = entry.record.sections["rotate"]
    key = announced(section)
    if blake3_hex(key) != place.promised:
        raise Trouble(f"rotation '{entry.id[:8]}' announces another key than was promised")
    why = sshsig.check(entry.payload, entry.signature, place.key)
    if why:
        raise Trouble(f"rotation '{entry.id[:8]}' is not signed by the key in force: {why}")
    return Place(place.node, key, section["next"], place.seq + 1, entry.digest)
