"""A forger: chains written by hand, where everything can be wrong and properly signed."""

import base64

import pygit2
from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from llmtrace.store import commit, sshsig
from llmtrace.store.record import Record, node_id
from llmtrace.verify.audit import audit_commit

T = 1_700_000_000
PARTS = {"prompt.txt": b"secret words", "digests.bin": bytes(range(40)), "scores.json": b"{}"}
COMMIT, TREE, BLOB = 1, 2, 3


class Forger:
    """A chain written by hand: everything can be wrong, and properly signed all the same."""

    def __init__(self, store, seed=0, **more):
        self.store = store
        self.odb = pygit2.Repository(str(store.path)).odb
        self.keys = [Ed25519PrivateKey.from_private_bytes(bytes([seed + n]) * 32) for n in range(5)]
        self.key = self.keys[0]
        section = {**self.announce(0), "addresses": [], **more}
        link = {"kind": "identity", "node": "", "seq": 0, "prev": "", "time": T}
        self.record = Record.of({"identity": section}, {}, link)
        self.node = node_id(self.record.digest)
        self.tip = self.write(self.record)

    def announce(self, number):
        following = self.keys[number + 1].public_key().public_bytes_raw()
        public = self.keys[number].public_key().public_bytes_raw()
        return {
            "public_key": base64.b64encode(public).decode(),
            "next": blake3(following).hexdigest(),
        }

    def run(self, number=1, **link):
        """The next record, with another link if wanted."""
        sections = {"trace": {"seed": number}, "probes": {}, "attested": {"model": "tiny"}}
        return Record.of(sections, PARTS, self.link("run", **link))

    def rotation(self, number, **more):
        """The next record, which announces key `number`."""
        return self.other("rotate", self.announce(number) | more)

    def other(self, kind, section, **link):
        """The next record, of any kind but a run."""
        return Record.of({kind: section}, {}, self.link(kind, **link))

    def link(self, kind, **other):
        seq, prev = self.record.seq + 1, self.record.digest
        link = {"kind": kind, "node": self.node, "seq": seq, "prev": prev, "time": T + seq}
        return link | other

    def write(self, record, *, files=None, message=None, author=None, parents=None, modes=None):
        """Writes a commit of a record; whatever is given replaces what would follow from it."""
        files = {"record.json": record.json, **record.parts} if files is None else files
        if parents is None:
            parents = () if record.seq == 0 else (self.tip,)
        entries = b"".join(
            f"{(modes or {}).get(name, '100644')} {name}\0".encode()
            + self.odb.write(BLOB, files[name]).raw
            for name in sorted(files)
        )
        tree = str(self.odb.write(TREE, entries))
        text = record.message() if message is None else message
        unsigned = commit.payload(tree, parents, author or record.author, record.time, text)
        return self.signed(unsigned)

    def signed(self, unsigned):
        return self.raw(commit.signed(unsigned, sshsig.sign(unsigned, self.key)))

    def raw(self, data):
        return str(self.odb.write(COMMIT, data))

    def add(self, record, **other):
        self.tip = self.write(record, **other)
        self.record = record
        return self.tip

    def findings(self, commit_id):
        found = audit_commit(self.store, self.store.read(commit_id))
        return {(finding.part, finding.reason) for finding in found}

    def named(self, commit_id):
        return {part for part, _ in self.findings(commit_id)}
