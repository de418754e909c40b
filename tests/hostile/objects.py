"""Chains and records that no honest writer makes, each signed by its author."""

import json
import zlib
from collections.abc import Callable
from typing import NamedTuple

from hostile.stranger import Stranger, decode
from llmtrace.store import canonical

Change = Callable[[Stranger], object]


class Forged(NamedTuple):
    """What a stranger does to a chain that began honestly, and what must be said of it."""

    change: Callable[[Stranger], object]
    why: str  # of audit and verify
    told: str  # of fetch, where git may refuse it with its own words


FORGED: dict[str, Forged] = {}


def forged(name: str, why: str, *, told: str | None = None) -> Callable[[Change], Change]:
    """Registers a change of a chain."""

    def register(change: Change) -> Change:
        assert name not in FORGED, name
        FORGED[name] = Forged(change, why, why if told is None else told)
        return change

    return register


# The tree

for _mode in ("100755", "120000", "160000", "40000", "100664"):

    def _with_mode(stranger: Stranger, mode: str = _mode) -> None:
        record = stranger.run()
        entries = stranger.files(record)
        empty = stranger.tree([])
        commit = stranger.tip  # what a gitlink names
        other = {"40000": empty, "160000": commit}
        stranger.add(
            record,
            entries=[
                (mode, name, other.get(mode, oid)) if name == "prompt.txt" else (m, name, oid)
                for m, name, oid in entries
            ],
        )

    forged(f"a tree entry of mode {_mode}", "prompt.txt", told="")(_with_mode)


@forged("a symbolic link out of the record", "prompt.txt", told="")
def _link(stranger: Stranger) -> None:
    record = stranger.run()
    target = stranger.put("blob", b"../../../../etc/passwd")
    stranger.add(
        record,
        entries=[
            ("120000", name, target) if name == "prompt.txt" else (mode, name, oid)
            for mode, name, oid in stranger.files(record)
        ],
    )


def _named(*extra: str | bytes, twice: bool = False) -> Change:
    def change(stranger: Stranger) -> None:
        record = stranger.run()
        entries = stranger.files(record)
        blob = stranger.put("blob", b"#!/bin/sh\ntouch ran\n")
        entries += [("100644", name, blob) for name in extra]
        if twice:
            entries += entries[-1:]
        entries.sort(key=lambda e: e[1] if isinstance(e[1], bytes) else e[1].encode())
        stranger.add(record, entries=entries)

    return change


forged("a file '..'", "..", told="")(_named(".."))
forged("a file '.git'", ".git", told="")(_named(".git"))
forged("a file with a slash", "a/b", told="")(_named("a/b"))
forged("a .gitattributes and a .gitmodules", "gitattributes", told="")(
    _named(".gitattributes", ".gitmodules")
)
forged("a name of 5,000 characters", "xxxxxxxx", told="")(_named("x" * 5000))
forged("a name with escapes", "\\x1b", told="")(_named(b"\x1b]0;pwned\x07\x9b31m"))
forged("a file twice", "each once", told="")(_named("scores.json", twice=True))


@forged("a tree bomb", "prompt.txt", told="")
def _tree_bomb(stranger: Stranger) -> None:
    tree = stranger.tree([("100644", f"{n}", stranger.put("blob", b"boom")) for n in range(10)])
    for _ in range(12):
        tree = stranger.tree([("40000", f"{n}", tree) for n in range(10)])
    record = stranger.run()
    entries = [e for e in stranger.files(record) if e[1] != "prompt.txt"]
    entries.append(("40000", "prompt.txt", tree))
    stranger.add(record, entries=sorted(entries, key=lambda e: f"{e[1]}/"))


@forged("a tree of 100,000 entries", "tree")
def _wide(stranger: Stranger) -> None:
    record = stranger.run()
    blob = stranger.put("blob", b"")
    stranger.add(record, entries=[("100644", f"x{n:06}", blob) for n in range(100_000)])


# The commit


@forged("a merge commit", "2 parents, at most one is allowed")
def _merge(stranger: Stranger) -> None:
    before = stranger.tip
    stranger.add(stranger.run())
    stranger.add(stranger.run(), parents=(stranger.tip, before))


@forged("a chain without an identity", "does not begin with an identity")
def _headless(stranger: Stranger) -> None:
    stranger.add(stranger.run(), parents=())


@forged("a second root under the chain", "does not begin with an identity")
def _second_root(stranger: Stranger) -> None:
    other = stranger.write(stranger.run(), parents=())
    stranger.add(stranger.run(), parents=(other,))


@forged("no trailers", "message")
def _mute(stranger: Stranger) -> None:
    stranger.add(stranger.run(), message="hello\n")


@forged("trailers twice", "message")
def _twice(stranger: Stranger) -> None:
    record = stranger.run()
    stranger.add(record, message=record.message() + "Llmtrace-Seq: 9\n")


@forged("a trailer of another node", "message")
def _of_another(stranger: Stranger) -> None:
    record = stranger.run()
    stranger.add(record, message=record.message().replace(record.node, "a" * 52))


@forged("a message with escapes", "\\x1b", told="message")
def _painted(stranger: Stranger) -> None:
    record = stranger.run()
    stranger.add(record, message=record.message().replace("run: ", "run: \x1b[2J\x9b31m\u202e"))


for _header in ("mergetag object 0", "encoding ISO-8859-1", "gpgsig-sha256 x", "HG:extra y"):

    def _with_header(stranger: Stranger, header: str = _header) -> None:
        stranger.add(stranger.run(), headers=f"{header}\n".encode())

    forged(f"a header '{_header.split()[0]}'", "other headers than", told="")(_with_header)


@forged("a second gpgsig", "other headers than", told="")
def _two_signatures(stranger: Stranger) -> None:
    record = stranger.run()
    oid = stranger.write(record)
    raw = zlib.decompress(stranger.place(oid).read_bytes()).partition(b"\0")[2]
    start = raw.index(b"gpgsig ")
    block = raw[start : raw.index(b"-----END SSH SIGNATURE-----\n", start) + 28]
    stranger.tip = stranger.put("commit", raw.replace(block, block + block, 1))
    stranger.publish()


@forged("no signature", "signature: missing", told="missing")
def _unsigned(stranger: Stranger) -> None:
    stranger.add(stranger.run(), sign=False)


@forged("a foreign key", "signed by another key")
def _foreign(stranger: Stranger) -> None:
    record = stranger.run()
    stranger.key = stranger.keys[3]
    stranger.add(record)


@forged("a time in the year 9999 and an author of somebody else", "author")
def _of_the_future(stranger: Stranger) -> None:
    record = stranger.run(link={"time": 253402300799})
    stranger.add(record, author="Linus <torvalds@example.org>")


# Order


@forged("a gap in seq", "link.seq is 3, its place in the chain 2")
def _gap(stranger: Stranger) -> None:
    stranger.add(stranger.run(link={"seq": 3}))


@forged("a seq repeated", "link.seq is 1, its place in the chain 2")
def _repeated(stranger: Stranger) -> None:
    stranger.add(stranger.run(link={"seq": 1}))


@forged("a seq of 2^53 - 1", "its place in the chain 2")
def _far(stranger: Stranger) -> None:
    stranger.add(stranger.run(link={"seq": 2**53 - 1}))


@forged("another prev", "link.prev is not the digest of the record before")
def _unlinked(stranger: Stranger) -> None:
    stranger.add(stranger.run(link={"prev": "0" * 64}))


@forged("an old record again as the newest", "link.seq is 1, its place in the chain 2")
def _replayed(stranger: Stranger) -> None:
    stranger.tip = stranger.write(stranger.record, parents=(stranger.tip,))
    stranger.publish()


@forged("a rotation to a key that was not promised", "announces another key than was promised")
def _hijacked(stranger: Stranger) -> None:
    stranger.add(stranger.other("rotate", stranger.announce(2)))
    stranger.key = stranger.keys[2]
    stranger.add(stranger.run())


@forged("a rotation that the old key did not sign", "is not signed by the key in force")
def _stolen(stranger: Stranger) -> None:
    stranger.key = stranger.keys[1]
    stranger.add(stranger.other("rotate", stranger.announce(1)))
    stranger.add(stranger.run())


# record.json


def _spelled(spell: Callable[[bytes], bytes]) -> Change:
    def change(stranger: Stranger) -> None:
        record = stranger.run()
        stranger.add(record, json=spell(record.json))

    return change


_SPELLINGS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "white space in record.json": (lambda data: data.replace(b",", b", ", 1), "not canonical JSON"),
    "a key twice": (lambda data: b'{"v":1,' + data[1:], "record.json"),
    "keys in another order": (
        lambda data: json.dumps(dict(reversed(json.loads(data).items()))).encode(),
        "not canonical JSON",
    ),
    "an integer of 5,000 digits": (
        lambda data: data.replace(b'"seq":2', b'"seq":' + b"9" * 5000),
        "record.json",
    ),
    "an integer of 2^53": (
        lambda data: data.replace(b'"seq":2', b'"seq":9007199254740992'),
        "an integer of 2^53 or more",
    ),
    "a float": (lambda data: data.replace(b'"seq":2', b'"seq":2.0'), "a float"),
    "NaN": (lambda data: data.replace(b'"seq":2', b'"seq":NaN'), "a float"),
    "a lone surrogate": (
        lambda data: data.replace(b'"model":"tiny"', b'"model":"\\ud800"'),
        "record.json",
    ),
    "no UTF-8": (lambda data: data.replace(b'"tiny"', b'"\xff\xfe"'), "record.json"),
    "a NUL": (lambda data: data.replace(b'"model":"tiny"', b'"model":"\x00"'), "record.json"),
    "10,000 brackets deep": (lambda data: b"[" * 10_000 + b"]" * 10_000, "nested too deeply"),
    "8 million brackets": (lambda data: b"[" + b"[]," * 2_700_000 + b"[]]", "too many brackets"),
    "a format of tomorrow": (
        lambda data: data.replace(b'"format":1,"kind"', b'"format":2,"kind"'),
        "link.format cannot be 2",
    ),
    "a format of yesterday": (
        lambda data: data.replace(b'"format":1,"kind"', b'"format":0,"kind"'),
        "link.format cannot be 0",
    ),
    "an unknown kind": (
        lambda data: data.replace(b'"kind":"run"', b'"kind":"sudo"'),
        "link.kind cannot be",
    ),
    "a section too many": (lambda data: b'{"a\\u001b[2J":{},' + data[1:], "record.json"),
    "an empty record.json": (lambda data: b"", "record.json"),
}
for _name, (_spell, _why) in _SPELLINGS.items():
    forged(_name, _why, told="")(_spelled(_spell))


@forged("a record.json of 64 MiB", "at most 16777216 are read", told="")
def _huge_json(stranger: Stranger) -> None:
    stranger.add(stranger.run(), json=b'{"a":"' + b"x" * (64 << 20) + b'"}')


# Parts


@forged("a part that is not declared", "not declared in record.json")
def _undeclared(stranger: Stranger) -> None:
    record = stranger.run()
    files = {"record.json": record.json, **record.parts, "samples.safetensors": b"{}"}
    stranger.add(record, files=files)


@forged("a part that is missing", "missing")
def _missing(stranger: Stranger) -> None:
    record = stranger.run()
    kept = {name: data for name, data in record.parts.items() if name != "probes.bin"}
    stranger.add(record, files={"record.json": record.json, **kept})


@forged("a part of a foreign name", "a record cannot hold a part")
def _foreign_part(stranger: Stranger) -> None:
    record = stranger.run()
    value = decode(record)
    value["parts"].insert(0, {**value["parts"][0], "name": "../../.bashrc"})
    stranger.add(record, json=canonical.encode(value))
