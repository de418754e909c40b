"""Revocations: which records of a chain their own author has taken back, and why.

Nothing is deleted: a later record of kind ``revoke`` in the same chain names them. Only
commits are read to find it, and its own audit decides whether it counts.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from llmtrace.errors import Trouble
from llmtrace.verify.audit import audit_commit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llmtrace.store.chain import Store
    from llmtrace.store.entry import Entry

_PLACE = re.compile(r"\nLlmtrace-Kind: (\w+)\nLlmtrace-Node: \w+\nLlmtrace-Seq: ([0-9]{1,16})\n")


class Revocation(NamedTuple):
    """Says that a record is revoked: by which commit, at which seq, since when, and why."""

    commit: str
    seq: int
    time: int  # UTC seconds, as its author claims
    reason: str  # not escaped; may be empty


class Revocations:
    """The revocations in the chains of a store; each chain is read once, newest record first."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._chains: dict[str, _Chain] = {}

    def of(self, entry: Entry) -> Revocation | None:
        """The first revocation of a record that its own chain here holds; None without one.

        Raises Trouble for what is no record.
        """
        record = entry.record
        if record.node not in self._chains:
            self._chains[record.node] = _Chain(self._store, record.node)
        return self._chains[record.node].find(record.seq, record.digest)


def revocation(store: Store, entry: Entry) -> Revocation | None:
    """The revocation of one record, as ``Revocations.of`` finds it."""
    return Revocations(store).of(entry)


class _Chain:
    """One chain, read back as far as it was asked for."""

    def __init__(self, store: Store, node: str) -> None:
        self._store = store
        tip = store.objects.tip(f"node/{node}")
        self._left: Iterator[Entry] = store.log(tip) if tip else iter(())
        self._reached: int | None = None  # the lowest seq that was read; None before the first
        self._found: dict[tuple[int, str], Revocation] = {}

    def find(self, seq: int, digest: str) -> Revocation | None:
        while self._reached is None or self._reached > seq:
            try:
                entry = next(self._left, None)
            except Trouble:  # a chain that is broken goes no further back
                entry = None
            place = _PLACE.search(entry.message) if entry else None
            if entry is None or place is None:
                self._reached = 0
                break
            self._reached = int(place[2])
            if place[1] == "revoke":
                self._take(entry)
        return self._found.get((seq, digest))

    def _take(self, entry: Entry) -> None:
        if audit_commit(self._store, entry):
            return
        record = entry.record
        section = record.sections["revoke"]
        made = Revocation(entry.id, record.seq, record.time, section["reason"])
        for one in section["records"]:
            self._found[one["seq"], one["record"]] = made  # the earliest stays
