"""Audit: structure, order, digests and signatures of a chain, without computing anything.

Linear and streaming, one part in memory at a time. What a stranger wrote gives findings,
never an exception, and each names the part that is wrong.
"""

from collections.abc import Iterator

from llmtrace.errors import Trouble
from llmtrace.store import commit as git
from llmtrace.store import sshsig
from llmtrace.store.chain import Store
from llmtrace.store.entry import Entry
from llmtrace.store.lineage import Place
from llmtrace.store.record import JSON_NAME, Record, check_parts, problems
from llmtrace.store.schema import ENTRIES, Finding, media_of, printable

__all__ = ["Finding", "audit_chain", "audit_commit"]


def audit_commit(store: Store, entry: Entry) -> list[Finding]:
    """All that is wrong with one record, by itself and after the record before; [] if nothing.

    The key in force, and so the whole chain before, is worked out from the chain's
    identity: the first call is linear in the chain, later ones in what is new.
    """
    found: list[Finding] = []
    for part, step in (("commit", _parents), ("tree", _shape), (JSON_NAME, _contents)):
        try:
            found += step(entry)
        except Trouble as error:
            return [*found, Finding(part, str(error))]
    try:
        before = store.lineage.before(entry)
        place = store.lineage.step(before, entry)
    except Trouble as error:
        return [*found, Finding("chain", str(error))]
    try:
        record = entry.record
        found += [*_linked(record, before, place), *_derived(entry, record)]
    except Trouble:
        pass  # _contents() has said why
    return found + _signed(entry, (before or place).key)  # last: whatever else is wrong spoils it


def audit_chain(store: Store, revision: str) -> Iterator[tuple[str, list[Finding]]]:
    """Audits a chain from its identity on: each commit id with its findings.

    ``node/<id>`` must be the chain of that node. A chain whose beginning is missing gives
    its findings at the oldest commit that is here. Raises Trouble for an unknown revision.
    """
    expected = revision.removeprefix("node/") if revision.startswith("node/") else ""
    commit_id = store.read(revision).id
    ids, broken = _ids(store, commit_id)
    if broken:
        yield ids[-1], [Finding("chain", broken)]
        return
    for one in reversed(ids):
        entry = store.read(one)
        found = audit_commit(store, entry)
        if expected and not entry.commit.parents and expected != _node(store, entry):
            found.append(Finding("chain", f"not the chain of '{printable(expected)}'"))
        yield one, found


def _ids(store: Store, commit_id: str) -> tuple[list[str], str]:
    """Commit ids of a chain, newest first, and why it does not go on to its identity."""
    ids = [commit_id]
    try:
        for entry in store.log(commit_id):
            ids += entry.parents[:1]
    except Trouble as error:
        return ids, str(error)
    return ids, ""


def _node(store: Store, entry: Entry) -> str:
    try:
        return store.lineage.after(entry.id).node
    except Trouble:
        return ""


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


def _linked(record: Record, before: Place | None, place: Place) -> Iterator[Finding]:
    """Whether the record stands where its link says."""
    if record.node != place.node:
        yield Finding(JSON_NAME, "link.node is not the digest of the chain's first record")
    if record.seq != place.seq:
        yield Finding(JSON_NAME, f"link.seq is {record.seq}, its place in the chain {place.seq}")
    if record.prev != (before.digest if before else ""):
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
