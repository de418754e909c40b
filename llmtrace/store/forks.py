"""Forks: two records of one node for one seq, and the proof that convicts the holder of its key.

A proof is canonical JSON that anybody checks with nothing but its bytes:

    format      1
    identity    the first record.json of the node: its BLAKE3 is the node's id
    rotations   [{record, tree, parent, signature}] up to the key in force: what the signed
                commit of each follows from, since whole commits would not fit in 4 KB
    commits     the two signed commits as they stand, sorted by the digest of their record

The pair is one digest against another, so no record and no word of a prompt is in it. What is
proven: whoever held the key that was in force, as far as the rotations in the proof tell, signed
two records for one place. It is kept as a blob under ``refs/llmtrace/fork/<node>``, where git
alone can push and fetch it; one a node is enough, of the lowest seq that is known.

For ``llmtrace audit``: ``listed(store)`` gives all that are kept, ``check(bytes)`` judges a file.
"""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from llmtrace.errors import Trouble
from llmtrace.store import canonical, commit, durable, sshsig
from llmtrace.store.chain import Store
from llmtrace.store.entry import Entry
from llmtrace.store.lineage import announced
from llmtrace.store.record import Record, address, blake3_hex, node_name
from llmtrace.store.schema import FORMAT, KINDS, NODE_ID

LIMIT = 4 << 20  # bytes of a proof; it has 3 KB, and 1 KB more for each rotation
REFS = "refs/llmtrace/fork/"

_KEYS = {"format", "identity", "rotations", "commits"}
_ROTATION = {"record", "tree", "parent", "signature"}
_OBJECT = re.compile(r"[0-9a-f]{40}")
_MESSAGE = re.compile(
    rf"([ -~]{{1,100}})\n\nLlmtrace-Format: {FORMAT}\nLlmtrace-Kind: ({'|'.join(sorted(KINDS))})\n"
    rf"Llmtrace-Node: ({NODE_ID.pattern})\nLlmtrace-Seq: ([1-9][0-9]{{0,15}})\n"
    r"Llmtrace-Prev: [0-9a-f]{64}\nLlmtrace-Record: ([0-9a-f]{64})\n"
    r"(?:Llmtrace-Checksum: ([0-9a-f]{64})\n)?(?:Llmtrace-Network: [0-9a-f]{64}\n)?"
)
_TIME = re.compile(r"(0|[1-9][0-9]{0,11}) \+0000")


class Proof(NamedTuple):
    """A proof that holds: whose, at which seq, the digests of both records, its bytes."""

    node: str
    seq: int
    records: tuple[str, str]
    data: bytes


class _Signed(NamedTuple):
    """What a signed commit says of its record."""

    node: str
    seq: int
    record: str


def prove(store: Store, one: str, other: str) -> Proof:
    """The proof that two audited commits of the store are a fork; raises Trouble if they are not.

    Linear in the chain before them, of which only the commits are read.
    """
    pair = [store.read(one), store.read(other)]
    chain: list[Entry] = []
    at: tuple[str, ...] = pair[0].parents
    first = pair[0]
    while at:
        first = Entry(store.objects, at[0])
        at = first.parents
        if "\nLlmtrace-Kind: rotate\n" in first.message:
            chain.append(first)
    rotations = [
        {
            "record": canonical.decode(entry.json),
            "tree": entry.commit.tree,
            "parent": entry.parents[0],
            "signature": entry.signature,
        }
        for entry in reversed(chain)
    ]
    commits = sorted((_text(entry) for entry in pair), key=_order)
    whole = {"format": FORMAT, "identity": canonical.decode(first.json), "rotations": rotations}
    try:
        proof = check(canonical.encode({**whole, "commits": commits}))
    except ValueError as error:
        raise Trouble(f"a fork at '{one[:8]}' cannot be proven: {error}") from None
    if isinstance(proof, str):
        raise Trouble(f"'{one[:8]}' and '{other[:8]}' prove no fork: {proof}")
    return proof


def check(data: bytes) -> Proof | str:
    """The proof in these bytes, or the reason why they prove nothing; raises nothing.

    Needs no store and no network. Every byte counts: bytes that are changed prove nothing.
    """
    try:
        return _check(data)
    except (ValueError, Trouble) as error:
        return str(error)


def listed(store: Store) -> Iterator[tuple[str, Proof | str]]:
    """Each node that a kept proof is named for, with the proof, or why it is none."""
    for name in store.objects.references(REFS):
        node = name.removeprefix(REFS)
        yield node, _kept(store, node)


def kept(store: Store, node: str) -> Proof | None:
    """The proof that is kept against a node; None without one that holds."""
    found = _kept(store, node) if store.objects.reference(REFS + node) else None
    return found if isinstance(found, Proof) else None


def keep(store: Store, proof: Proof) -> bool:
    """Keeps a proof, durably; False if one of the same or a lower seq is kept already."""
    objects = store.objects
    with durable.lock(store.path / "llmtrace.lock"):
        before = kept(store, proof.node)
        if before is not None and before.seq <= proof.seq:
            return False
        with objects.writing("fork") as batch:
            blob = batch.add("blob", proof.data)
        objects.move_reference(REFS + proof.node, objects.reference(REFS + proof.node), blob)
    return True


def read(store: Store, oid: str, node: str) -> Proof | str:
    """The proof against a node in a blob of the store, or the reason why it is none."""
    try:
        proof = check(store.objects.read(oid, "blob", LIMIT))
    except Trouble as error:
        return str(error)
    if isinstance(proof, Proof) and proof.node != node:
        return f"a proof against {node_name(proof.node)}"
    return proof


def trailer(entry: Entry, name: str) -> str:
    """The value of a trailer of a commit, such as Record; "" without it. Raises Trouble."""
    found = re.search(rf"\nLlmtrace-{name}: ([^\n]*)\n", entry.message)
    return found[1] if found else ""


def _kept(store: Store, node: str) -> Proof | str:
    if not NODE_ID.fullmatch(node):
        return "its name is no node"
    return read(store, store.objects.reference(REFS + node) or "", node)


def _check(data: bytes) -> Proof | str:
    if len(data) > LIMIT:
        return f"{len(data)} bytes, a proof has at most {LIMIT}"
    value = canonical.decode(data)
    if not isinstance(value, dict) or set(value) != _KEYS:
        return f"a proof holds exactly {', '.join(sorted(_KEYS))}"
    if type(value["format"]) is not int or value["format"] != FORMAT:
        return f"its format is not {FORMAT}"
    commits, rotations = value["commits"], value["rotations"]
    if not isinstance(commits, list) or len(commits) != 2:
        return "not two commits"
    if not isinstance(rotations, list):
        return "'rotations' is no list"
    first = _record(value["identity"], "identity")
    node = first.node
    key, since, until = _in_force(first, rotations)
    one, other = (_signed(text, key) for text in commits)
    if not node == one.node == other.node:
        return "a commit names another node"
    if one.seq != other.seq or not since < one.seq <= until:
        return "not two records of one seq at which the key was in force"
    if one.record >= other.record:
        return "not two different records, sorted by digest"
    return Proof(node, one.seq, (one.record, other.record), data)


def _record(value: object, kind: str) -> Record:
    record = Record.outline(canonical.encode(value), {})
    if record.kind != kind:
        raise ValueError(f"a record of kind '{record.kind}' in the place of '{kind}'")
    return record


def _in_force(first: Record, rotations: list[object]) -> tuple[bytes, int, int]:
    """The key after the identity and these rotations; it signs after one seq, up to another."""
    section = first.sections["identity"]
    seq = 0
    for one in rotations:
        if not isinstance(one, dict) or set(one) != _ROTATION:
            raise ValueError(f"a rotation holds exactly {', '.join(sorted(_ROTATION))}")
        record = _record(one["record"], "rotate")
        if record.node != first.node or not seq < record.seq <= _until(section):
            raise ValueError("a rotation of another node, or not in order")
        _rotation(one, record, announced(section))
        if blake3_hex(announced(record.sections["rotate"])) != section["next"]:
            raise ValueError("a rotation announces another key than was promised")
        section, seq = record.sections["rotate"], record.seq
    return announced(section), seq, _until(section)


def _until(section: dict[str, Any]) -> int:
    """The last seq that a key may sign."""
    return int(section.get("until", canonical.SAFE))


def _rotation(one: dict[str, Any], record: Record, key: bytes) -> None:
    """Refuses a rotation whose commit is not signed by the key before it."""
    for name in ("tree", "parent"):
        if not isinstance(one[name], str) or not _OBJECT.fullmatch(one[name]):
            raise ValueError(f"a rotation's {name} is no id")
    unsigned = commit.payload(
        one["tree"], (one["parent"],), record.author, record.time, record.message()
    )
    _prove(unsigned, one["signature"], key)


def _prove(unsigned: bytes, signature: object, key: bytes) -> None:
    if not isinstance(signature, str):
        raise ValueError("a signature is no text")  # noqa: TRY004 - a finding, not a bug
    why = sshsig.check(unsigned, signature, key)
    if why:
        raise ValueError(why)


def _signed(text: object, key: bytes) -> _Signed:
    """What a commit says of its record; raises ValueError unless it is one of llmtrace's form."""
    if not isinstance(text, str) or not text.isascii():
        raise ValueError("a commit is no ASCII text")
    raw = text.encode()
    fields = commit.parse_commit(raw)
    match = _MESSAGE.fullmatch(fields.message)
    if match is None or len(fields.parents) != 1:
        raise ValueError("a commit is not that of a record")
    subject, kind, node, seq, record, checksum = match.groups()
    who = f"{node_name(node)} <{address(node)}> "
    when = fields.author.removeprefix(who)
    if fields.author != fields.committer or not _TIME.fullmatch(when) or when == fields.author:
        raise ValueError("a commit is not of its node")
    named = (kind, checksum) if kind == "run" else (kind, record)
    if (kind == "run") != (checksum is not None) or not _is_subject(subject, *named):
        raise ValueError("a commit has another subject or checksum than its record")
    if not fields.signature or commit.signed(fields.payload, fields.signature) != raw:
        raise ValueError("a commit is not signed in the usual form")
    _prove(fields.payload, fields.signature, key)
    return _Signed(node, int(seq), record)


def _is_subject(subject: str, kind: str, digest: str) -> bool:
    if kind == "run":
        return re.fullmatch(rf"run: [!-~]{{1,64}} {digest[:8]}", subject) is not None
    return subject == f"{kind}: {digest[:8]}"


def _text(entry: Entry) -> str:
    try:
        return entry.raw.decode("ascii")
    except UnicodeDecodeError:
        raise Trouble(f"'{entry.id[:8]}' is no record: not ASCII") from None


def _order(text: str) -> str:
    """The digest of the record, by which the commits of a proof are sorted."""
    found = re.search(r"\nLlmtrace-Record: ([0-9a-f]{64})\n", text)
    return found[1] if found else ""
