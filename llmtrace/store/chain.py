"""The store: a bare git repository of chains, one of which is one's own and grows.

A record is acknowledged (its commit id returned) when it is on the disk. The order that
makes a crash harmless: objects and tree, then the key's memory of (seq, digest, tree),
then the commit, which follows from the tree to the last byte, then the branch. Whoever
writes next completes what the memory names. A group of records goes the same way
together, so that the disk is waited for once a group and not once a record.
"""

import base64
import contextlib
import time as clock
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from llmtrace.errors import Trouble
from llmtrace.store import canonical, commit, durable, keys, sshsig
from llmtrace.store.entry import Entry
from llmtrace.store.keys import Keys, Last
from llmtrace.store.lineage import Lineage, announced
from llmtrace.store.objects import Objects
from llmtrace.store.record import JSON_NAME, Record, address, blake3_hex, node_id, node_name
from llmtrace.store.schema import NODE_ID, check_sections

_TREE_LIMIT = 1 << 20


class Event(NamedTuple):
    """What is to be recorded: the sections of its kind, the parts, UTC seconds."""

    kind: str
    sections: Mapping[str, Any]
    parts: Mapping[str, bytes]
    time: int


class Store:
    """A bare git repository holding chains; made by ``Store.open``."""

    def __init__(self, objects: Objects, keys_dir: Path) -> None:
        self._objects = objects
        self._keys_dir = keys_dir
        self.lineage = Lineage(objects)

    @classmethod
    def open(
        cls,
        path: Path,
        keys_dir: Path,
        *,
        create: bool = False,
        time: int | None = None,
        until: int | None = None,
    ) -> "Store":
        """Opens a store; with create for writing: made if absent, with a key and an identity.

        Opened for writing, a record that a killed process left unfinished is completed.
        ``time`` is that of the identity, now if None; ``until`` the last seq that its key
        may sign, None for any. Raises Trouble.
        """
        if create and not (path / "HEAD").exists():
            Objects.create(path)
        store = cls(Objects.open(path), keys_dir)
        if create:
            if store._own() is None:
                store._found(int(clock.time()) if time is None else time, until)
            store.settle()
        return store

    @property
    def path(self) -> Path:
        """The folder of the repository."""
        return self._objects.path

    @property
    def objects(self) -> Objects:
        """The objects and refs of the repository."""
        return self._objects

    @property
    def node(self) -> str:
        """Id of one's own node; raises Trouble in a store that has none."""
        own = self._own()
        if own is None:
            hint = f"make one with 'llmtrace init --store {self.path}'"
            raise Trouble(f"the store '{self.path}' has no node of its own", hint)
        return own

    def settle(self) -> None:
        """Completes the records that a writer promised and did not finish; raises Trouble."""
        own = Keys(self._keys_dir, self.node)
        with own.lock():
            self._settle(own)

    def holds_key(self, node: str) -> bool:
        """Says whether a node is one's own: HEAD of a store that was copied names another's."""
        return Keys.exists(self._keys_dir, node)

    def nodes(self) -> list[str]:
        """Ids of all nodes whose chains are here, sorted."""
        names = (name.removeprefix("node/") for name in self._objects.branches("node/"))
        return [name for name in names if NODE_ID.fullmatch(name)]

    def append_run(
        self,
        trace: Mapping[str, Any],
        probes: Mapping[str, Any],
        attested: Mapping[str, Any],
        parts: Mapping[str, bytes],
        time: int,
    ) -> str:
        """Records a run in one's own chain; gives the commit id when it is on the disk.

        ``attested["model"]`` is the model's name, ``time`` UTC seconds. Raises Trouble.
        """
        sections = {"trace": dict(trace), "probes": dict(probes), "attested": dict(attested)}
        return self.append("run", sections, parts, time)

    def append(
        self, kind: str, sections: Mapping[str, Any], parts: Mapping[str, bytes], time: int
    ) -> str:
        """Records anything but a rotation; ``sections`` are those of the kind.

        A record of kind ``offer`` has the one section ``offer``. Waits for other writers.
        """
        return self.append_all([Event(kind, sections, parts, time)])[0]

    def append_all(self, events: Sequence[Event]) -> list[str]:
        """Records a group in this order; gives the commit ids when all are on the disk.

        The group is held in memory. Raises Trouble.
        """
        for event in events:
            if event.kind in ("identity", "rotate"):
                raise Trouble(f"a record of kind '{event.kind}' is not appended by hand")
        own = Keys(self._keys_dir, self.node)
        with own.lock():
            return self._append(own, events) if events else []

    def rotate(self, time: int, until: int | None = None) -> str:
        """Puts the promised key in force and promises another; gives the commit id.

        ``until`` is the last seq that the new key may sign; None for any.
        """
        own = Keys(self._keys_dir, self.node)
        with own.lock():
            self._settle(own)
            following, after = own.begin_rotation()
            section = {
                "public_key": base64.b64encode(following).decode(),
                "next": blake3_hex(after),
                **({} if until is None else {"until": until}),
            }
            (commit_id,) = self._append(own, [Event("rotate", {"rotate": section}, {}, time)])
            own.end_rotation(following)
            return commit_id

    def advance(self, node: str, old: str | None, new: str) -> None:
        """Moves a chain forward to a commit that was audited; raises Trouble if it is not at old.

        Waits for the writer of the chain, if its key is here.
        """
        with contextlib.ExitStack() as stack:
            if Keys.exists(self._keys_dir, node):
                stack.enter_context(Keys(self._keys_dir, node).lock())
            self._objects.move(f"node/{node}", old, new)

    def read(self, revision: str) -> Entry:
        """The commit that any git revision syntax names; raises Trouble if there is none."""
        return Entry(self._objects, self._objects.find(revision))

    def log(self, revision: str = "HEAD") -> Iterator[Entry]:
        """The records of a chain, newest first; ``A..B`` stops before A."""
        since, dots, until = revision.partition("..")
        end = self._objects.find(since or "HEAD") if dots else None
        at = self._objects.find((until or "HEAD") if dots else revision)
        while at != end:
            entry = Entry(self._objects, at)
            yield entry
            if not entry.parents:
                return
            at = entry.parents[0]

    def identity_of(self, revision: str) -> bytes:
        """The public key (raw 32 bytes) that must have signed a record."""
        entry = self.read(revision)
        return (self.lineage.before(entry) or self.lineage.step(None, entry)).key

    def allowed_signers(self, node: str) -> str:
        """All keys that a chain ever had, for git's ``gpg.ssh.allowedSignersFile``."""
        keys = (one.key for one in self.lineage.keys(self.read(f"node/{node}").id))
        lines = (sshsig.allowed_line(address(node), key) for key in dict.fromkeys(keys))
        return "".join(f"{line}\n" for line in lines)

    def _own(self) -> str | None:
        """The node that HEAD names; None in a store without one."""
        name = self._objects.head().removeprefix("node/")
        return name if NODE_ID.fullmatch(name) else None

    def _found(self, time: int, until: int | None) -> None:
        """Makes key and identity; the record itself is completed by ``_settle``."""
        if self._objects.branches("") and self._own() is None:  # in this order: HEAD comes first
            hint = "keep records in another folder, with --store DIR"
            raise Trouble(f"'{self.path}' is a git repository, but no store", hint)
        with durable.lock(self.path / "llmtrace.lock"):
            if self._own() is not None:  # another process was first
                return
            pair = (keys.generate(), keys.generate())
            public, following = (key.public_key().public_bytes_raw() for key in pair)
            section = {
                "public_key": base64.b64encode(public).decode(),
                "next": blake3_hex(following),
                "addresses": [],
                **({} if until is None else {"until": until}),
            }
            link = {"kind": "identity", "node": "", "seq": 0, "prev": "", "time": time}
            record = Record.of({"identity": section}, {}, link)
            last = Last(0, record.digest, self._write_trees([record], "new")[0])
            node = node_id(record.digest)
            keys.Keys.create(self._keys_dir, node, pair, last, until)
            self._objects.set_head(f"node/{node}")

    def _append(self, own: Keys, events: Sequence[Event]) -> list[str]:
        tip = self._settle(own)
        before = own.last
        seq, prev = before.seq, before.record
        records = []
        for event in events:
            seq += 1
            place = {"node": own.node, "seq": seq, "prev": prev}
            link = {"kind": event.kind, "time": event.time, **place}
            records.append(Record.of(dict(event.sections), event.parts, link))
            prev = records[-1].digest
        until = own.until
        if until is not None and seq >= until + (records[-1].kind == "rotate"):
            raise Trouble(
                f"the key of {node_name(own.node)} may sign up to record {until}: "
                "the next has to be a rotation",
                "llmtrace key rotate",
            )
        if records[-1].kind == "rotate":
            until = records[-1].sections["rotate"].get("until")
        trees = self._write_trees(records, own.node)
        lasts = [Last(r.seq, r.digest, t) for r, t in zip(records, trees, strict=True)]
        own.promise(lasts, until)
        return self._finish(own, records, tip)

    def _settle(self, own: Keys) -> str:
        """Makes the chain end with the record that the key signed last; gives its commit id.

        Raises Trouble if the store is not the one that the key wrote to.
        """
        last = own.last
        tip = self._objects.tip(f"node/{own.node}")
        entry = Entry(self._objects, tip) if tip else None
        digest = entry.digest if entry else ""
        if tip is None or digest != last.record:
            if entry and self._is_ahead(own, entry):
                own.catch_up(Last(entry.record.seq, digest, entry.commit.tree))
            else:
                tip = self._complete(own, tip, digest)
                entry = Entry(self._objects, tip)
        assert entry is not None  # else it was completed
        if b'"kind":"rotate"' in entry.json and entry.record.kind == "rotate":
            own.end_rotation(announced(entry.record.sections["rotate"]))
        elif sshsig.check(entry.payload, entry.signature, own.public_key()):
            why = f"the chain of {node_name(own.node)} ends with a commit that its key did not sign"
            raise Trouble(why, "see 'llmtrace audit'")
        return entry.id

    def _complete(self, own: Keys, tip: str | None, digest: str) -> str:
        """Adds the promised records that a killed process left without commit or branch."""
        records = [self._unfinished(one) for one in own.promised]
        whole = [record for record in records if record is not None]
        if len(whole) < len(records) or whole[0].prev != digest:
            raise Trouble(
                f"the store '{self.path}' does not end with record {own.last.seq}, which the key "
                f"of {node_name(own.node)} signed last: it is a copy or was restored",
                "open the newest copy of the store, or fetch your chain from where it was pushed",
            )
        return self._finish(own, whole, tip)[-1]

    def _is_ahead(self, own: Keys, entry: Entry) -> bool:
        """Says whether the chain goes on after what the memory holds, signed by the same key.

        So it is when keys were restored from a copy and the chain was fetched.
        """
        try:
            last, seq = own.last, entry.record.seq
            for _ in range(seq - last.seq):
                if sshsig.check(entry.payload, entry.signature, own.public_key()):
                    return False
                entry = Entry(self._objects, entry.parents[0])
        except (Trouble, IndexError):
            return False
        return seq > last.seq and entry.digest == last.record

    def _unfinished(self, last: Last) -> Record | None:
        """The record in the tree that the key's memory names, if it is here."""
        try:
            tree = commit.parse_tree(self._objects.read(last.tree, "tree", _TREE_LIMIT))
            blobs = {blob.name: blob.id for blob in tree}
            data = self._objects.read(blobs[JSON_NAME], "blob", canonical.LIMIT)
        except (Trouble, KeyError, ValueError):
            return None
        sections = canonical.decode(data) if blake3_hex(data) == last.record else None
        if not isinstance(sections, dict) or check_sections(sections):
            return None
        record = Record(sections, {})
        return record if record.seq == last.seq else None

    def _write_trees(self, records: Sequence[Record], name: str) -> list[str]:
        """Writes record.json, the parts and the tree of each, durably; gives the trees' ids."""
        trees = []
        with self._objects.writing(name, many=len(records) > 1) as batch:
            for record in records:
                files = {JSON_NAME: record.json, **record.parts}
                blobs = {name: batch.add("blob", files[name]) for name in files}
                trees.append(batch.add("tree", commit.tree_bytes(blobs)))
        return trees

    def _finish(self, own: Keys, records: Sequence[Record], tip: str | None) -> list[str]:
        """Writes the commits of the promised records and moves the branch to the last."""
        promised = own.promised
        sign = own.signer(promised)
        found: list[str] = []
        at = tip
        with self._objects.writing(own.node, many=len(records) > 1) as batch:
            for record, last in zip(records, promised, strict=True):
                parents = (at,) if at else ()
                message = record.message()
                unsigned = commit.payload(last.tree, parents, record.author, record.time, message)
                at = batch.add("commit", commit.signed(unsigned, sign(unsigned)))
                found.append(at)
        self._objects.move(f"node/{own.node}", tip, found[-1])
        return found
