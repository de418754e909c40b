"""One commit of a chain, read as far as it is asked for; what a stranger wrote raises Trouble.

Nothing of it has been audited: ``llmtrace.verify.audit`` says what is wrong with it.
"""

from collections.abc import Iterator, Mapping
from functools import cached_property

from llmtrace.errors import Trouble
from llmtrace.store import canonical
from llmtrace.store.commit import COMMIT_LIMIT, MODE, Blob, Commit, parse_commit, parse_tree
from llmtrace.store.objects import Objects
from llmtrace.store.record import JSON_NAME, Record, Sections, blake3_hex, check_part
from llmtrace.store.schema import ENTRIES, limit_of, media_of

TREE_LIMIT = ENTRIES * 64  # bytes; our longest name has 19 characters, an entry 47 bytes


class Entry:
    """A commit: id, and lazily its fields, its tree, record.json and the parts."""

    def __init__(self, objects: Objects, commit_id: str) -> None:
        self.id = commit_id
        self.raw = objects.read(commit_id, "commit", COMMIT_LIMIT)
        self._objects = objects

    @cached_property
    def commit(self) -> Commit:
        """The fields of the commit; raises Trouble for one that no record can have."""
        try:
            return parse_commit(self.raw)
        except ValueError as error:
            raise Trouble(f"'{self.id[:8]}' is no record: {error}") from None

    @property
    def parents(self) -> tuple[str, ...]:
        """Ids of the commits before; a record has one, the first of a chain none."""
        return self.commit.parents

    @property
    def message(self) -> str:
        """The commit message as it stands; bytes that are no UTF-8 are escaped."""
        return self.commit.message

    @property
    def signature(self) -> str:
        """The armored signature; "" without one."""
        return self.commit.signature

    @property
    def payload(self) -> bytes:
        """What the signature signs: the commit without it."""
        return self.commit.payload

    @cached_property
    def tree(self) -> tuple[Blob, ...]:
        """The entries of the tree, whatever they are."""
        data = self._objects.read(self.commit.tree, "tree", TREE_LIMIT)
        try:
            return tuple(parse_tree(data))
        except ValueError as error:
            raise Trouble(f"tree '{self.commit.tree[:8]}' is malformed: {error}") from None

    @cached_property
    def json(self) -> bytes:
        """The bytes of record.json."""
        ids = [blob.id for blob in self.tree if blob.name == JSON_NAME and blob.mode == MODE]
        if len(ids) != 1:
            raise Trouble(f"'{self.id[:8]}' is no record: no file '{JSON_NAME}'")
        return self._objects.read(ids[0], "blob", canonical.LIMIT)

    @cached_property
    def digest(self) -> str:
        """BLAKE3 of record.json, in hex."""
        return blake3_hex(self.json)

    @cached_property
    def files(self) -> Mapping[str, bytes]:
        """The parts as they lie there, each read when it is asked for."""
        ids = {blob.name: blob.id for blob in self.tree if blob.mode == MODE}
        ids.pop(JSON_NAME, None)
        return _Files(self._objects, {name: ids[name] for name in ids if media_of(name)})

    @cached_property
    def record(self) -> Record:
        """The record: sections well-formed, each part compared with its digests when read."""
        parts = _Parts(self.id, self.files)
        try:
            record = Record.outline(self.json, parts)
        except Trouble as error:
            raise Trouble(f"'{self.id[:8]}': {error}") from None
        record.__dict__["digest"] = self.digest
        parts.declared = {entry["name"]: entry for entry in record.sections["parts"]}
        return record


class _Files(Mapping[str, bytes]):
    """Blobs by name, none kept in memory; whoever asks compares them with their digests."""

    def __init__(self, objects: Objects, ids: dict[str, str]) -> None:
        self._objects = objects
        self._ids = ids

    def __getitem__(self, name: str) -> bytes:
        return self._objects.read(self._ids[name], "blob", limit_of(name), proven=True)

    def __contains__(self, name: object) -> bool:  # without reading it
        return name in self._ids

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids)

    def __len__(self) -> int:
        return len(self._ids)


class _Parts(Mapping[str, bytes]):
    """The declared parts; one that is not as declared raises Trouble."""

    def __init__(self, commit_id: str, files: Mapping[str, bytes]) -> None:
        self._id = commit_id
        self._files = files
        self.declared: dict[str, Sections] = {}

    def __getitem__(self, name: str) -> bytes:
        declared = self.declared[name]
        if name not in self._files:
            raise Trouble(f"'{self._id[:8]}': '{name}' is missing")
        data = self._files[name]
        for finding in check_part(name, declared, data):
            raise Trouble(f"'{self._id[:8]}': '{name}': {finding.reason}")
        return data

    def __contains__(self, name: object) -> bool:
        return name in self.declared

    def __iter__(self) -> Iterator[str]:
        return iter(self.declared)

    def __len__(self) -> int:
        return len(self.declared)
