"""Long chains for tests and benches: signed records written straight into one pack or loose."""

import base64
import hashlib
import struct
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path

from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from llmtrace.store import commit, sshsig
from llmtrace.store.loose import object_id
from llmtrace.store.objects import Objects
from llmtrace.store.record import Record, node_id

T = 1_700_000_000
KEYS = [Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in range(1, 9)]
_TYPES = {"commit": 1, "tree": 2, "blob": 3}


def announce(number: int, **more: object) -> dict[str, object]:
    """What a section says of key `number` and of the one after it."""
    public, following = (key.public_key().public_bytes_raw() for key in KEYS[number : number + 2])
    return {
        "public_key": base64.b64encode(public).decode(),
        "next": blake3(following).hexdigest(),
        **more,
    }


def parts_of(number: int) -> dict[str, bytes]:
    """Four parts of a few KB together, as a small run has them; none like another record's."""
    rows = b"".join(hashlib.sha512(b"%d %d" % (number, row)).digest() for row in range(48))
    return {
        "digests.bin": rows[:1024],
        "output.txt": b"and then %d times\n" % number * 20,
        "probes.bin": rows,
        "prompt.txt": b"once upon a time, %d\n" % number * 18,
    }


def objects_of(count: int) -> Iterator[tuple[str, bytes]]:
    """Kind and contents of every object of a sound chain of so many records, oldest first."""
    section = {**announce(0), "addresses": []}
    link = {"kind": "identity", "node": "", "seq": 0, "prev": "", "time": T}
    record = Record.of({"identity": section}, {}, link)
    node, tip = node_id(record.digest), ""
    for seq in range(count):
        if seq:
            link = {"kind": "run", "node": node, "seq": seq, "prev": record.digest, "time": T + seq}
            trace = {"seed": str(seq), "prompt_tokens": [*range(64)], "output_tokens": [*range(64)]}
            sections = {"trace": trace, "probes": {}, "attested": {"model": "tiny"}}
            record = Record.of(sections, parts_of(seq), link)
        files = {"record.json": record.json, **record.parts}
        yield from (("blob", data) for data in files.values())
        tree = commit.tree_bytes({name: object_id("blob", files[name]) for name in files})
        yield "tree", tree
        parents = (tip,) if tip else ()
        unsigned = commit.payload(
            object_id("tree", tree), parents, record.author, record.time, record.message()
        )
        data = commit.signed(unsigned, sshsig.sign(unsigned, KEYS[0]))
        tip = object_id("commit", data)
        yield "commit", data


def make(path: Path, count: int, *, loose: bool = False) -> tuple[str, str]:
    """A store with a sound chain of `count` records; gives the node's id and the newest commit."""
    Objects.create(path)
    pack = path / "objects/pack/tmp.pack"
    total, tip, node = 0, "", ""
    with pack.open("w+b") as file:
        file.write(b"PACK" + struct.pack(">II", 2, 0))
        for kind, data in objects_of(count):
            total += 1
            size = len(data)
            head = [_TYPES[kind] << 4 | size & 15]
            size >>= 4
            while size:
                head[-1] |= 128
                head.append(size & 127)
                size >>= 7
            file.write(bytes(head) + zlib.compress(data, 1))
            if kind == "commit":
                tip = object_id(kind, data)
                node = node or data.partition(b"Llmtrace-Node: ")[2][:52].decode()
        file.seek(8)
        file.write(struct.pack(">I", total))
        file.seek(0)
        digest = hashlib.sha1(usedforsecurity=False)
        while block := file.read(1 << 20):
            digest.update(block)
        file.write(digest.digest())
    git = ["git", "--git-dir", str(path)]
    if loose:
        with pack.open("rb") as file:
            subprocess.run([*git, "unpack-objects", "-q"], stdin=file, check=True)
    else:
        subprocess.run([*git, "index-pack", str(pack)], check=True, capture_output=True)
        name = digest.hexdigest()
        for end in ("pack", "idx"):
            pack.with_suffix(f".{end}").rename(pack.with_name(f"pack-{name}.{end}"))
    pack.unlink(missing_ok=True)
    branch = path / "refs/heads/node" / node
    branch.parent.mkdir(parents=True)
    branch.write_text(f"{tip}\n")
    return node, tip
