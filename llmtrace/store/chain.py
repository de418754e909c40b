"""The store: a bare git repository of chains, one of which is one's own and grows.

A record is acknowledged (its commit id returned) when it is on the disk. The order that
makes a crash harmless: objects and tree, then the key's memory of (seq, digest, tree),
then the commit, which follows from the tree to the last byte, then the branch. Whoever
writes next completes what the memory names.
"""

import base64
import time as clock
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llmtrace.errors import Trouble
from llmtrace.store import canonical, commit, durable, keys, sshsig
from llmtrace.store.entry import Entry
from llmtrace.store.keys import Keys, Last
from llmtrace.store.lineage import Lineage, announced
from llmtrace.store.objects import Objects
from llmtrace.store.record import JSON_NAME, Record, address, blake3_hex, node_id, node_name
from llmtrace.store.schema import NODE_ID, check_sections

_TREE_LIMIT = 1 << 20


class Store:
    """A bare git repository holding chains; made by ``Store.open``."""

    def __init__(self, objects: Objects, keys_dir: Path) -> None:
        self._objects = objects
        self._keys_dir = keys_dir
        self.lineage = Lineage(objects)

    @classmethod
    def open(
        cls, path: Path, keys_dir: Path, *, create: bool = False, time: int | None = None
    ) -> "Store":
        """Opens a store; with create for writing: made if absent, with a key and an identity.

        Opened for writing, a record that a killed process left unfinished is completed.
        ``time`` is that of the identity, now if None. Raises Trouble.
        """
        if create and not (path / "HEAD").exists():
            Objects.create(path)
        store = cls(Objects.open(path), keys_dir)
        if create:
            if store._own() is None:
                store._found(int(clock.time()) if time is None else time)
            own = Keys(keys_dir, store.node)
            with own.lock():
                store._settle(own)
        return store

    @property
    def path(self) -> Path:
        """The folder of the repository."""
        return self._objects.path

    @property
    def node(self) -> str:
        """Id of one's own node; raises Trouble in a store that has none."""
        own = self._own()
        if own is None:
            hint = f"make one with 'llmtrace init --store {self.path}'"
            raise Trouble(f"the store '{self.path}' has no node of its own", hint)
        return own

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
        if kind in ("identity", "rotate"):
            raise Trouble(f"a record of kind '{kind}' is not appended by hand")
        own = Keys(self._keys_dir, self.node)
        with own.lock():
            return self._append(own, kind, dict(sections), parts, time)

    def rotate(self, time: int) -> str:
        """Puts the promised key in force and promises another; gives the commit id."""
        own = Keys(self._keys_dir, self.node)
        with own.lock():
            self._settle(own)
            following, after = own.begin_rotation()
            section = {
                "public_key": base64.b64encode(following).decode(),
                "next": blake3_hex(after),
            }
            commit_id = self._append(own, "rotate", {"rotate": section}, {}, time)
            own.end_rotation(following)
            return commit_id

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
        entries = list(self.log(f"node/{node}"))
        entries.reverse()
        found = dict.fromkeys(self.lineage.after(entry.id).key for entry in entries)
        return "".join(sshsig.allowed_line(address(node), key) + "\n" for key in found)

    def _own(self) -> str | None:
        """The node that HEAD names; None in a store without one."""
        name = self._objects.head().removeprefix("node/")
        return name if NODE_ID.fullmatch(name) else None

    def _found(self, time: int) -> None:
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
            }
            link = {"kind": "identity", "node": "", "seq": 0, "prev": "", "time": time}
            record = Record.of({"identity": section}, {}, link)
            last = Last(0, record.digest, self._write_tree(record, "new"))
            node = node_id(record.digest)
            keys.Keys.create(self._keys_dir, node, pair, last)
            self._objects.set_head(f"node/{node}")

    def _append(
        self,
        own: Keys,
        kind: str,
        sections: dict[str, Any],
        parts: Mapping[str, bytes],
        time: int,
    ) -> str:
        tip = self._settle(own)
        before = own.last
        place = {"node": own.node, "seq": before.seq + 1, "prev": before.record}
        record = Record.of(sections, parts, {"kind": kind, "time": time, **place})
        last = Last(record.seq, record.digest, self._write_tree(record, own.node))
        own.promise(last)
        return self._finish(own, last, record, tip)

    def _settle(self, own: Keys) -> str:
        """Makes the chain end with the record that the key signed last; gives its commit id.

        Raises Trouble if the store is not the one that the key wrote to.
        """
        last = own.last
        tip = self._objects.tip(f"node/{own.node}")
        entry = Entry(self._objects, tip) if tip else None
        digest = entry.digest if entry else ""
        if tip is None or digest != last.record:
            record = self._unfinished(last)
            if record is None or record.prev != digest:
                raise Trouble(
                    f"the store '{self.path}' does not end with record {last.seq}, which the key "
                    f"of {node_name(own.node)} signed last: it is a copy or was restored",
                    "open the newest copy of the store",
                )
            tip = self._finish(own, last, record, tip)
            entry = Entry(self._objects, tip)
        if entry and b'"kind":"rotate"' in entry.json and entry.record.kind == "rotate":
            own.end_rotation(announced(entry.record.sections["rotate"]))
        return tip

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

    def _write_tree(self, record: Record, name: str) -> str:
        """Writes record.json, the parts and their tree, durably; gives the tree's id."""
        files = {JSON_NAME: record.json, **record.parts}
        with self._objects.writing(name) as batch:
            blobs = {name: batch.add("blob", files[name]) for name in files}
            return batch.add("tree", commit.tree_bytes(blobs))

    def _finish(self, own: Keys, last: Last, record: Record, tip: str | None) -> str:
        """Writes the commit that follows from a record and moves the branch to it."""
        parents = (tip,) if tip else ()
        unsigned = commit.payload(last.tree, parents, record.author, record.time, record.message())
        signature = own.sign(last, unsigned)
        with self._objects.writing(own.node) as batch:
            commit_id = batch.add("commit", commit.signed(unsigned, signature))
        self._objects.move(f"node/{own.node}", tip, commit_id)
        return commit_id
