"""Audit: structure, order, digests and signatures of a chain, without computing anything.

Linear and streaming, one part in memory at a time, and 20 bytes a record beside it. What
a stranger wrote gives findings, never an exception, and each names the part that is wrong.
"""

from collections.abc import Iterator

from llmtrace.errors import Trouble
from llmtrace.store import commit as git
from llmtrace.store import sshsig
from llmtrace.store.chain import Store
from llmtrace.store.entry import Entry
from llmtrace.store.lineage import expired
from llmtrace.store.places import Place
from llmtrace.store.record import JSON_NAME, Record, check_parts, problems
from llmtrace.store.schema import ENTRIES, Finding, media_of, printable

__all__ = ["Finding", "audit_chain", "audit_commit", "audit_new"]


def audit_commit(store: Store, entry: Entry) -> list[Finding]:
    """All that is wrong with one record, by itself and after the record before; [] if nothing.

    The key in force is worked out from the chain's identity: the first call reads all
    commits before, later ones what is new.
    """
    try:
        since = entry.parents[0] if entry.parents else None
    except Trouble as error:
        return [Finding("commit", str(error))]
    return _Pass(store, since).step(entry, _Ids(store, entry.id), 0)


def audit_chain(store: Store, revision: str) -> Iterator[tuple[str, list[Finding]]]:
    """Audits a chain from its identity on: each commit id with its findings.

    ``node/<id>`` must be the chain of that node. A chain whose beginning is missing gives
    its findings at the oldest commit that is here. Raises Trouble for an unknown revision.
    """
    expected = revision.removeprefix("node/") if revision.startswith("node/") else ""
    yield from audit_new(store, None, revision, expected)


def audit_new(
    store: Store, since: str | None, tip: str, node: str = ""
) -> Iterator[tuple[str, list[Finding]]]:
    """Audits what a chain has up to ``tip`` after the commit ``since``, audited before.

    ``since`` is None for the whole chain. It must be the chain of ``node``, if one is
    given. Where ``tip`` does not descend from ``since``, the one answer is a finding at
    the oldest commit that is here. Raises Trouble for an unknown tip.
    """
    ids = _Ids(store, store.read(tip).id)
    try:
        ids.go_back_to(since)
    except Trouble as error:
        yield ids[len(ids) - 1], [Finding("chain", str(error))]
        return
    audit = _Pass(store, since)
    named = node == ""  # the node of the chain is the expected one, or it was said that it is not
    for number in reversed(range(len(ids))):
        try:
            entry = Entry(store.objects, ids[number])
        except Trouble as error:
            yield ids[number], [Finding("commit", str(error))]
            return
        found = audit.step(entry, ids, number)
        if not named and audit.node != node:
            found.append(Finding("chain", f"not the chain of '{printable(node)}'"))
        named = True
        yield entry.id, found


class _Ids:
    """The commit ids of a chain from its newest record back, read as far as they are needed."""

    def __init__(self, store: Store, tip: str) -> None:
        self._objects = store.objects
        self._raw = bytearray()
        self._next: str | None = tip

    def __len__(self) -> int:
        return len(self._raw) // 20

    def __getitem__(self, number: int) -> str:
        """The id so many records back; raises Trouble where the chain ends before."""
        while number >= len(self):
            self._go_back()
        return self._raw[number * 20 : number * 20 + 20].hex()

    def go_back_to(self, since: str | None) -> None:
        """Reads up to a commit, or to the chain's first; raises Trouble if it does not get there.

        Then the last id is that of the commit that is missing or no record.
        """
        while self._next != since:
            self._go_back(since)

    def _go_back(self, since: str | None = None) -> None:
        if self._next is None:
            raise Trouble(f"does not go on after '{since[:8]}'" if since else "ends here")
        at = self._next
        self._raw += bytes.fromhex(at)
        # Compared with its id: a file that says otherwise could send us round in a circle.
        parent = git.parent_of(self._objects.read(at, "commit", git.COMMIT_LIMIT))
        self._next = parent or next(iter(Entry(self._objects, at).parents), None)


class _Pass:
    """An audit on its way forward from a commit, or from the beginning of a chain."""

    def __init__(self, store: Store, since: str | None) -> None:
        self._lineage = store.lineage
        self._objects = store.objects
        self._place: Place | None = None  # after the record before
        self._digest = ""  # of the record before
        self._lost = ""  # why nobody can tell who speaks
        self._last = since
        if since is not None:
            try:
                self._place = self._lineage.after(since)
                self._digest = Entry(self._objects, since).digest
            except Trouble as error:
                self._lost = str(error)

    @property
    def node(self) -> str:
        """The id of the chain's node; "" if nobody can tell."""
        return self._place.node if self._place else ""

    def step(self, entry: Entry, ids: _Ids, number: int) -> list[Finding]:
        """What is wrong with the next record, which is the one so many back in ``ids``."""
        found: list[Finding] = []
        before, digest = self._place, self._digest
        why = self._advance(entry)
        for part, check in (("commit", _parents), ("tree", _shape), (JSON_NAME, _contents)):
            try:
                found += check(entry)
            except Trouble as error:
                return [*found, Finding(part, str(error))]
        place = self._place
        if why or place is None:
            return [*found, Finding("chain", why)]
        try:
            record = entry.record
            found += [*_linked(record, place, digest), *_derived(entry, record)]
            if record.kind == "revoke":
                found += self._revoked(record, place, ids, number)
        except Trouble:
            pass  # _contents() has said why
        if before and (late := expired(before)):
            found.append(Finding("signature", late))
        return found + _signed(entry, (before or place).key)  # last: whatever is wrong spoils it

    def _advance(self, entry: Entry) -> str:
        """Goes on to the place after a commit; says why not."""
        try:
            if not self._lost and entry.parents[:1] != ((self._last,) if self._last else ()):
                self._lost = "the store changed while it was read"
            self._last = entry.id
            if not self._lost:
                self._place = self._lineage.step(self._place, entry)
        except Trouble as error:
            self._lost = str(error)
        try:
            self._digest = entry.digest
        except Trouble:
            self._digest = "unknown"  # and no record says so of the one before
        return self._lost

    def _revoked(self, record: Record, place: Place, ids: _Ids, number: int) -> Iterator[Finding]:
        """Whether the records that a revocation names stand where it says, before it."""
        for one in record.sections["revoke"]["records"]:
            try:
                raw = Entry(self._objects, ids[number + place.seq - one["seq"]]).raw
            except Trouble:
                raw = b""
            if f"\nLlmtrace-Record: {one['record']}\n".encode() not in raw:
                yield Finding(JSON_NAME, f"revokes another record {one['seq']} than the chain has")


def _parents(entry: Entry) -> list[Finding]:
    if len(entry.parents) > 1:
        return [Finding("commit", f"{len(entry.parents)} parents, at most one is allowed")]
    return []


def _shape(entry: Entry) -> list[Finding]:
    """The names and modes in the tree."""
    if len(entry.tree) > ENTRIES:
        return [Finding("tree", f"{len(entry.tree)} entries, at most {ENTRIES} are allowed")]
    found = []
    for blob in entry.tree:
        if blob.mode != git.MODE:
            found.append(Finding(printable(blob.name), f"mode {blob.mode} is not {git.MODE}"))
        elif blob.name != JSON_NAME and media_of(blob.name) is None:
            found.append(Finding(printable(blob.name), "a record cannot hold this part"))
    names = [blob.name for blob in entry.tree]
    if names != sorted(set(names)):
        found.append(Finding("tree", "entries are not sorted by name, each once"))
    return found


def _contents(entry: Entry) -> list[Finding]:
    """record.json and the parts it declares."""
    json = entry.json
    try:
        record = entry.record
    except Trouble:
        return problems(json, entry.files)
    return check_parts(record.sections["parts"], entry.files)


def _signed(entry: Entry, key: bytes) -> list[Finding]:
    if not entry.signature:
        return [Finding("signature", "missing")]
    why = sshsig.check(entry.payload, entry.signature, key)
    return [Finding("signature", why)] if why else []


def _linked(record: Record, place: Place, digest: str) -> Iterator[Finding]:
    """Whether the record stands where its link says."""
    if record.node != place.node:
        yield Finding(JSON_NAME, "link.node is not the digest of the chain's first record")
    if record.seq != place.seq:
        yield Finding(JSON_NAME, f"link.seq is {record.seq}, its place in the chain {place.seq}")
    if record.prev != digest:
        yield Finding(JSON_NAME, "link.prev is not the digest of the record before")


def _derived(entry: Entry, record: Record) -> Iterator[Finding]:
    """Whether message, author and times of the commit follow from the record."""
    fields = entry.commit
    unsigned = git.payload(
        fields.tree, fields.parents, record.author, record.time, record.message()
    )
    made = git.signed(unsigned, fields.signature) if fields.signature else unsigned
    if entry.raw == made:
        return
    if f"\nLlmtrace-Record: {record.digest}\n" not in fields.message:
        yield Finding(JSON_NAME, "its BLAKE3 is not the Llmtrace-Record of the message")
    who = f"{record.author} {record.time} +0000"
    if fields.author != who:
        yield Finding("author", f"'{printable(fields.author)}' is not '{who}'")
    if fields.committer != who:
        yield Finding("committer", f"'{printable(fields.committer)}' is not '{who}'")
    expected = record.message().splitlines()
    lines = fields.message.splitlines()
    if fields.message != record.message():
        pairs = zip([*expected, "(end)"], [*lines, "(end)"], strict=False)
        want, got = next(((a, b) for a, b in pairs if a != b), ("one newline", "other ends"))
        yield Finding("message", f"'{printable(got)}' does not follow from the record: '{want}'")
    elif fields.author == fields.committer == who:
        yield Finding("commit", "its bytes do not follow from the record")
