"""Objects that git keeps but nobody should believe; those that are small until they are read."""

import hashlib
import struct
import zlib
from collections.abc import Iterator

from blake3 import blake3

from hostile.place import Case, Line, Place, case, line
from hostile.stranger import Stranger
from llmtrace.store.loose import object_id
from llmtrace.store.record import Record, describe
from llmtrace.store.schema import media_of
from packs import BLOB, BY_ID, entry, pack, varint


def met(stranger: Stranger, why: str, *, found: int = 1, told: str = "") -> Iterator[Line]:
    """A repository met as a remote, and as a store that somebody handed over.

    ``why`` is what must be said of it; ``found`` the status of verify: 1 where a finding
    names it, 4 where the commit itself cannot be read.
    """
    yield line("fetch", stranger.path, status=4, says=("refused", told or why))
    handed = ("--store", stranger.path)
    yield line(*handed, "audit", stranger.branch, status=1, says=why)
    yield line(*handed, "verify", stranger.tip, status=found, says=why)


@case("a chain under the name of another node")
def _grafted(place: Place) -> Case:
    stranger, other = place.stranger(), place.stranger("other", 2)
    other.add(other.run())
    stranger.tip = other.tip
    for path in other.path.rglob("objects/??/*"):
        target = stranger.path / path.relative_to(other.path)
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(path.read_bytes())
    stranger.publish()
    lines = [*met(stranger, "not the chain of")][:2]  # the record itself is sound
    lines.append(line("--store", stranger.path, "audit", status=1, says="not the chain of"))
    return Case(lines)


@case("a blob replaced under its own id")
def _twin(place: Place) -> Case:
    """What a SHA-1 collision would give: the same name, other bytes, in a store handed over."""
    stranger = place.stranger()
    text = b"said by nobody else"
    stranger.add(stranger.run({**stranger.like.parts, "output.txt": text}))
    stranger.put("blob", b"Said by nobody else", object_id("blob", text))
    return Case([*met(stranger, "output.txt: its BLAKE3", told="transfer: ")])


@case("an object under another id")
def _misnamed(place: Place) -> Case:
    stranger = place.stranger()
    record = stranger.run()
    stranger.add(record)
    tree = zlib.decompress(stranger.place(stranger.tip).read_bytes()).split(b"tree ")[1][:40]
    stranger.put("tree", b"", tree.decode())
    return Case([*met(stranger, "damaged", told="transfer: ")])


# Bombs: small on the wire, large when read


def zeros(size: int) -> bytes:
    """A zlib stream of so many zeros, made without them; the size is in whole MiB."""
    one = zlib.compressobj(9, zlib.DEFLATED, -15)
    chunk = one.compress(bytes(1 << 20)) + one.flush(zlib.Z_FULL_FLUSH)
    adler = (size % 65521) << 16 | 1
    return b"\x78\xda" + chunk * (size >> 20) + b"\x03\x00" + struct.pack(">I", adler)


def bomb(stranger: Stranger, oid: str) -> None:
    record = stranger.run()
    entries = [
        (mode, name, oid if name == "prompt.txt" else one)
        for mode, name, one in stranger.files(record)
    ]
    stranger.add(record, entries=entries)


def zero_id(size: int) -> str:
    """Id of a blob of so many zeros."""
    digest = hashlib.sha1(b"blob %d\0" % size)
    chunk = bytes(1 << 20)
    for _ in range(size >> 20):
        digest.update(chunk)
    return digest.hexdigest()


@case("a blob of 2 GiB in a pack of 2 MB")
def _zip_bomb(place: Place) -> Case:
    stranger = place.stranger()
    size = 1 << 31
    oid = zero_id(size)
    pack(stranger.path, {oid: entry(BLOB, size, zeros(size))})
    bomb(stranger, oid)
    return Case([*met(stranger, "2147483648 bytes")])


@case("a delta bomb of 1 GiB in 20 KB")
def _delta_bomb(place: Place) -> Case:
    """One copy instruction of 16 MiB less one, 64 times and what is missing to 1 GiB."""
    stranger = place.stranger()
    base, size = 16 << 20, 1 << 30
    first = zero_id(base)
    most = (1 << 24) - 1
    copies, rest = divmod(size, most)
    delta = varint(base) + varint(size) + copy(most) * copies + copy(rest)
    oid = zero_id(size)
    made = entry(BY_ID, len(delta), zlib.compress(delta), bytes.fromhex(first))
    pack(stranger.path, {first: entry(BLOB, base, zeros(base)), oid: made})
    bomb(stranger, oid)
    return Case([*met(stranger, "1073741824 bytes", told="transfer: ")])


def copy(size: int) -> bytes:
    """A copy of a delta from the base's start: all three bytes of the size."""
    return bytes([0xF0, size & 255, size >> 8 & 255, size >> 16])


@case("100,000 branches")
def _refs(place: Place) -> Case:
    stranger = place.stranger()
    stranger.add(stranger.run())
    names = (
        f"{stranger.tip} refs/heads/node/{blake3(b'%d' % n).hexdigest()[:52]}\n"
        for n in range(100_000)
    )
    packed = "# pack-refs with: peeled fully-peeled sorted \n"
    packed += "".join(sorted(names, key=lambda text: text[41:]))
    (stranger.path / "packed-refs").write_text(packed)
    return Case(
        [
            line("fetch", stranger.path, status=4, seconds=60),
        ]
    )


@case("a commit that is its own parent")
def _circle(place: Place) -> Case:
    """Only under a false id: a loose file in a store that somebody handed over."""
    stranger = place.stranger()
    stranger.add(stranger.run())
    oid = "c" * 40
    stranger.record = stranger.run()
    raw = stranger.write(stranger.record, parents=(oid,))
    data = zlib.decompress(stranger.place(raw).read_bytes()).partition(b"\0")[2]
    stranger.tip = stranger.put("commit", data, oid)
    stranger.add(stranger.run())
    return Case([*met(stranger, "damaged", told="transfer: ")])


@case("one blob of 60 MiB under seven names, in two hundred records")
def _shared(place: Place) -> Case:
    """Half a megabyte to send, 84 GB to hash: the time of the audit is part of the cap."""
    stranger = place.stranger()
    data = bytes(60 << 20)
    blob = stranger.put("blob", data)
    names = "digests.bin features.json output.txt probes.bin prompt.txt samples.safetensors"
    shared = describe("scores.json", data)
    parts = [{**shared, "name": n, "media": media_of(n)} for n in [*names.split(), "scores.json"]]
    parts.sort(key=lambda part: str(part["name"]))
    for _ in range(200):
        record = stranger.run({})
        record = Record({**record.sections, "parts": parts}, {})
        entries: list[tuple[str, str | bytes, str]] = [
            ("100644", str(part["name"]), blob) for part in parts
        ]
        entries.append(("100644", "record.json", stranger.put("blob", record.json)))
        stranger.add(record, entries=sorted(entries, key=lambda entry: entry[1]))
    words = ("fetch", "--timeout", "5", stranger.path)
    return Case([line(*words, status=4, says="the audit takes too long", seconds=20)])


@case("one bad record among sixteen hundred")
def _among_many(place: Place) -> Case:
    """Long enough that several processes share the audit, each beginning in the middle."""
    stranger = place.stranger()
    for number in range(1600):
        bad = number == 777
        stranger.key = stranger.keys[2 if bad else 0]
        stranger.add(stranger.run({}))
        if bad:
            commit = stranger.tip
    says = ("refused", f"{commit} signature: signed by another key")
    handed = ("--store", stranger.path)
    return Case(
        [
            line("fetch", stranger.path, status=4, says=says),
            line(*handed, "audit", stranger.branch, status=1, says="signed by another key"),
        ]
    )


# Proofs of forks that prove nothing


@case("proofs that prove nothing")
def _proofs(place: Place) -> Case:
    """A remote full of accusations: none is kept."""
    stranger = place.stranger()
    stranger.add(stranger.run())
    own = place.node()
    node = stranger.node
    blobs = {
        own: b"",
        node: b'{"commits":[],"format":1,"identity":{},"rotations":[]}',
        "b" * 51 + "a": b"[" * 1_000_000,
        "c" * 51 + "a": b'{"a":"' + b"x" * (64 << 20) + b'"}',
        "d" * 51 + "a": b"\x1b[2J" * 100,
    }
    ids = {name: stranger.put("blob", data) for name, data in blobs.items()}
    ids |= {"e" * 51 + "a": stranger.tip, "f" * 51 + "a": stranger.tree([]), "x\u202e": ids[own]}
    folder = stranger.path / "refs/llmtrace/fork"
    folder.mkdir(parents=True)
    for name, oid in ids.items():
        (folder / name).write_text(f"{oid}\n")
    (stranger.path / "refs/heads" / stranger.branch).unlink()
    handed = ("--store", stranger.path)
    accused = line("fetch", stranger.path, node, own, status=4, says=(f"refused node/{own}",))
    return Case(
        [
            line("fetch", stranger.path, status=4, says=("refused", "proof: ")),
            accused,
            line(*handed, "audit", status=(1, 4)),
        ]
    )


for _kind in ("blob", "commit"):

    @case(f"a loose {_kind} that goes on after its end")
    def _longer(place: Place, kind: str = _kind) -> Case:
        """More than its header says, and no end of the stream: some readers wait for it."""
        stranger = place.stranger()
        text = b"said by nobody else"
        stranger.add(stranger.run({**stranger.like.parts, "output.txt": text}))
        oid = object_id("blob", text) if kind == "blob" else stranger.tip
        path = stranger.place(oid)
        whole = zlib.decompress(path.read_bytes())
        stream = zlib.compressobj()
        path.write_bytes(stream.compress(whole + b"more") + stream.flush(zlib.Z_SYNC_FLUSH))
        handed = ("--store", stranger.path)
        ended = {"status": (1, 4), "seconds": 10}
        return Case(
            [
                line(*handed, "audit", stranger.branch, **ended),
                line(*handed, "verify", stranger.tip, **ended),
                line(*handed, "show", f"{stranger.branch}~0", status=(0, 4), seconds=10),
                line("fetch", "--timeout", "10", stranger.path, status=4, seconds=20),
            ]
        )
