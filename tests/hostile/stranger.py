"""A node of somebody else: a chain written by hand, which can be wrong and signed all the same."""

import base64
import hashlib
import zlib
from pathlib import Path
from typing import Any

from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from llmtrace.store import canonical, commit, sshsig
from llmtrace.store.record import Record, describe, node_id

T = 1_700_000_000
CONFIG = "[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n\tbare = true\n"


class Repository:
    """A bare repository whose files are written here, whatever git would say of them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for folder in ("objects/info", "objects/pack", "refs/heads", "refs/tags", "hooks", "info"):
            (path / folder).mkdir(parents=True, exist_ok=True)
        (path / "config").write_text(CONFIG)
        (path / "HEAD").write_text("ref: refs/heads/main\n")

    def put(self, kind: str, data: bytes, oid: str | None = None, level: int = 1) -> str:
        """A loose object, under its own id or another."""
        whole = f"{kind} {len(data)}\0".encode() + data
        oid = oid or hashlib.sha1(whole).hexdigest()
        place = self.place(oid)
        place.parent.mkdir(exist_ok=True)
        place.unlink(missing_ok=True)
        place.write_bytes(zlib.compress(whole, level))
        return oid

    def place(self, oid: str) -> Path:
        return self.path / "objects" / oid[:2] / oid[2:]

    def tree(self, entries: list[tuple[str, str | bytes, str]]) -> str:
        """A tree of these modes, names and ids, in this order."""
        named = ((m, n.encode() if isinstance(n, str) else n, oid) for m, n, oid in entries)
        return self.put(
            "tree", b"".join(f"{m} ".encode() + n + b"\0" + bytes.fromhex(o) for m, n, o in named)
        )

    def point(self, branch: str, oid: str) -> None:
        place = self.path / "refs/heads" / branch
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(f"{oid}\n")


class Stranger(Repository):
    """A repository with one chain: an identity, then what is added."""

    def __init__(self, path: Path, like: Record, seed: int = 1) -> None:
        super().__init__(path)
        self.like = like
        self.keys = [Ed25519PrivateKey.from_private_bytes(bytes([seed, n] * 16)) for n in range(4)]
        self.key = self.keys[0]
        identity = {**self.announce(0), "addresses": []}
        link = {"kind": "identity", "node": "", "seq": 0, "prev": "", "time": T}
        self.record = Record.of({"identity": identity}, {}, link)
        self.node = node_id(self.record.digest)
        self.tip = self.write(self.record)
        self.publish()

    @property
    def branch(self) -> str:
        return f"node/{self.node}"

    def publish(self, oid: str | None = None, branch: str | None = None) -> None:
        self.point(branch or self.branch, oid or self.tip)

    def announce(self, number: int) -> dict[str, str]:
        public, following = (
            key.public_key().public_bytes_raw() for key in self.keys[number : number + 2]
        )
        return {
            "public_key": base64.b64encode(public).decode(),
            "next": blake3(following).hexdigest(),
        }

    def link(self, kind: str, **other: Any) -> dict[str, Any]:
        seq, prev = self.record.seq + 1, self.record.digest
        link = {"kind": kind, "node": self.node, "seq": seq, "prev": prev, "time": T + seq}
        return {"format": 1, **link, **other}

    def run(
        self, parts: dict[str, bytes] | None = None, link: Any = None, **changed: Any
    ) -> Record:
        """A run as the honest one, but for some parts and sections; what nobody checked yet."""
        told = dict(self.like.parts) if parts is None else parts
        sections = {
            name: {**self.like.sections[name], **changed.get(name, {})}
            for name in ("trace", "probes", "attested")
        }
        return Record(
            {
                **sections,
                "link": self.link("run", **(link or {})),
                "parts": [describe(name, told[name]) for name in sorted(told)],
            },
            told,
        )

    def other(self, kind: str, section: Any, **link: Any) -> Record:
        """A record of another kind."""
        return Record({kind: section, "link": self.link(kind, **link), "parts": []}, {})

    def write(
        self,
        record: Record,
        *,
        json: bytes | None = None,
        files: dict[str, bytes] | None = None,
        entries: list[tuple[str, str | bytes, str]] | None = None,
        modes: dict[str, str] | None = None,
        message: str | None = None,
        author: str | None = None,
        parents: tuple[str, ...] | None = None,
        headers: bytes = b"",
        sign: bool = True,
    ) -> str:
        """The commit of a record, with the trailers of ``json`` if that is given; signed."""
        text = record.message() if message is None else message
        if json is not None:
            text = text.replace(record.digest, blake3(json).hexdigest())
        first = record.json if json is None else json
        held = {"record.json": first, **record.parts} if files is None else files
        if parents is None:
            parents = (self.tip,) if record.seq and hasattr(self, "tip") else ()
        if entries is None:
            entries = [
                ((modes or {}).get(name, "100644"), name, self.put("blob", held[name]))
                for name in sorted(held)
            ]
        unsigned = commit.payload(
            self.tree(entries), parents, author or record.author, record.time, text
        )
        unsigned = unsigned.replace(b"\n\n", b"\n" + headers + b"\n", 1)
        return self.put("commit", self.signed(unsigned) if sign else unsigned)

    def signed(self, unsigned: bytes) -> bytes:
        return commit.signed(unsigned, sshsig.sign(unsigned, self.key))

    def add(self, record: Record, **other: Any) -> str:
        """The record as the newest of the chain, on its branch."""
        self.tip = self.write(record, **other)
        self.record = record
        self.publish()
        return self.tip

    def files(self, record: Record) -> list[tuple[str, str | bytes, str]]:
        """The entries of the tree of a record."""
        held = {"record.json": record.json, **record.parts}
        return [("100644", name, self.put("blob", held[name])) for name in sorted(held)]


def decode(record: Record) -> dict[str, Any]:
    """The sections of a record, free to be changed."""
    value = canonical.decode(record.json)
    assert isinstance(value, dict)
    return value
