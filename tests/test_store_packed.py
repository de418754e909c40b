"""Reading packs: git decides what is in a sound one; of an unsound one nothing is followed."""

import struct
import subprocess
import zlib

import numpy as np
import pytest

from llmtrace.errors import Trouble
from llmtrace.store.loose import object_id
from llmtrace.store.objects import Objects
from llmtrace.store.packed import Packs
from packs import BLOB, BY_ID, BY_PLACE, distance, entry, pack, varint

MANY = 1 << 30


def git(path, *words, data=b""):
    done = subprocess.run(
        ["git", "--git-dir", path, *words], input=data, capture_output=True, check=True
    )
    return done.stdout


def blobs(count, seed=1):
    """Texts that grow out of each other, and bytes that do not."""
    random = np.random.default_rng(seed)
    text = random.bytes(3000)
    for number in range(count):
        at = int(random.integers(len(text)))
        text = text[:at] + random.bytes(9) + text[at + number % 7 :]
        yield text
        yield random.bytes(int(random.integers(0, 300)))
    yield b""
    yield bytes(200_000)


def written(path, contents):
    """A repository whose loose objects are these blobs; gives their ids."""
    Objects.create(path)
    with Objects.open(path).writing("test") as new:
        return {new.add("blob", data): data for data in contents}


def packed(path, contents, *settings, depth=9):
    """The same in one pack that git made; gives their ids."""
    told = written(path, contents)
    git(path, "update-ref", "refs/heads/main", commit_of(path, told))
    git(path, *settings, "repack", "-adfq", "--window=20", f"--depth={depth}")
    git(path, "prune-packed", "-q")
    return told


def commit_of(store, ids):
    lines = "".join(f"100644 blob {oid}\t{number}\n" for number, oid in enumerate(ids))
    tree = git(store, "mktree", data=lines.encode()).decode().strip()
    who = ["-c", "user.name=a", "-c", "user.email=a"]
    return git(store, *who, "commit-tree", "-m", "", tree).decode().strip()


def pack_of(path, suffix="pack"):
    (found,) = path.glob(f"objects/pack/*.{suffix}")
    found.chmod(0o644)
    return found


@pytest.mark.parametrize(
    ("settings", "depth"),
    [([], 0), ([], 50), (["-c", "repack.useDeltaBaseOffset=false"], 50), ([], 4095)],
    ids=["whole", "by place", "by id", "deep"],
)
def test_what_git_packed_is_read(tmp_path, settings, depth):
    store = tmp_path / "store.git"
    told = packed(store, blobs(300), *settings, depth=depth)
    said = git(store, "verify-pack", "-v", pack_of(store, "idx")).decode().splitlines()
    deepest = max((int(line.split()[5]) for line in said if len(line.split()) == 7), default=0)
    assert deepest > 20 if depth else deepest == 0
    objects = Objects.open(store)
    for oid, data in told.items():
        assert objects.kind(oid) == "blob"
        assert objects.read(oid, "blob", len(data)) == data
        if data:
            with pytest.raises(Trouble, match=f"has {len(data)} bytes"):
                objects.read(oid, "blob", len(data) - 1)
    with pytest.raises(Trouble, match="is no tree"):
        objects.read(oid, "tree", MANY)
    with pytest.raises(Trouble, match="is missing"):
        objects.read("0" * 40, "blob", MANY)


def test_a_mapped_index_is_read(tmp_path):
    """One of more bytes than are read at once."""
    store = tmp_path / "store.git"
    Objects.create(store)
    with Objects.open(store).writing("test", many=True) as new:
        told = [new.add("blob", str(number).encode()) for number in range(3000)]
    assert pack_of(store, "idx").stat().st_size > 1 << 16
    objects = Objects.open(store)
    for number, oid in enumerate(told):
        assert objects.read(oid, "blob", 9) == str(number).encode()


def test_objects_that_git_moves_meanwhile_are_found(tmp_path):
    store = tmp_path / "store.git"
    told = written(store, blobs(40))
    git(store, "update-ref", "refs/heads/main", commit_of(store, told))
    objects = Objects.open(store)
    later = written(tmp_path / "other.git", blobs(5, seed=2))
    for oid in later:
        (store / "objects" / oid[:2]).mkdir(exist_ok=True)
        whole = (tmp_path / "other.git/objects" / oid[:2] / oid[2:]).read_bytes()
        (store / "objects" / oid[:2] / oid[2:]).write_bytes(whole)
    for words in (["repack", "-adq"], ["prune-packed", "-q"], ["repack", "-adfq", "--depth=9"]):
        for oid, data in {**told, **later}.items():
            assert objects.read(oid, "blob", MANY) == data
        git(store, *words)
    for oid, data in told.items():
        assert objects.read(oid, "blob", MANY) == data


def made_by_hand(path, entries):
    """A store with one pack of these entries; the objects are named 00…, 01…, in order."""
    Objects.create(path)
    ids = [f"{number:02x}" * 20 for number in range(len(entries))]
    pack(path, dict(zip(ids, entries, strict=True)))
    return ids


def of(kind, data, base=b"", size=None):
    """An entry of this data, and of this size if it tells the truth."""
    return entry(kind, len(data) if size is None else size, zlib.compress(data), base)


BASE = of(BLOB, b"hello")
BACK = distance(len(BASE))


def delta(before, after, steps):
    return varint(before) + varint(after) + steps


def by_id(number, steps, size=None):
    return of(BY_ID, steps, bytes([number]) * 20, size)


def by_place(steps, back=BACK):
    return of(BY_PLACE, steps, back)


COPY = bytes([0x90, 5])  # of the five bytes at the start


def test_deltas_made_by_hand_are_read(tmp_path):
    """The oracle of the next test: the same pieces, put together right."""
    ids = made_by_hand(
        tmp_path / "store.git",
        [
            BASE,
            by_place(delta(5, 8, COPY + b"\3abc")),
            by_id(1, delta(8, 11, bytes([0x91, 3, 5]) + COPY + bytes([0x90, 1]))),
            by_id(0, delta(5, 0, b"")),
        ],
    )
    objects = Objects.open(tmp_path / "store.git")
    told = [objects.read(oid, "blob", MANY, proven=True) for oid in ids]
    assert told == [b"hello", b"helloabc", b"loabchelloh", b""]


@pytest.mark.parametrize(
    ("second", "why"),
    [
        (by_id(1, delta(5, 5, COPY)), "what it is made from is missing"),  # from itself
        (by_id(2, delta(5, 5, COPY)), "what it is made from is missing"),  # from nothing
        (by_place(delta(5, 5, COPY), distance(0)), "outside its pack"),
        (by_place(delta(5, 5, COPY), distance(1 << 40)), "outside its pack"),
        (by_place(delta(5, 5, COPY), b"\xff" * 80), "its header is none"),
        (of(BLOB, b"a", size=1 << 70), "at most"),
        (of(BLOB, b"hello", size=6), "its size is not that of its header"),
        (of(BLOB, b"hello", size=4), "its size is not that of its header"),
        (of(5, b"hello"), "it is of no kind"),
        (of(0, b"hello"), "it is of no kind"),
        (of(BLOB, b"hello")[:4], "cannot be read"),
        (by_id(0, delta(6, 5, COPY)), "it is made from something else"),
        (by_id(0, delta(5, 6, COPY)), "its delta is damaged"),  # too little
        (by_id(0, delta(5, 4, COPY)), "its delta is damaged"),  # too much
        (by_id(0, delta(5, 5, bytes([0x91, 1, 5]))), "its delta is damaged"),  # beyond the base
        (by_id(0, delta(5, 5, b"\5abc")), "its delta is damaged"),  # beyond itself
        (by_id(0, delta(5, 5, b"\0" + COPY)), "its delta is damaged"),  # a step of no kind
        (by_id(0, delta(5, 5, b"\x91\0")), "its delta is damaged"),  # half a step
        (by_id(0, b"\x80" * 70), "it is no delta"),
        (by_id(0, b""), "it is no delta"),
        (by_id(0, delta(5, 5, COPY), 1 << 30), "it is made from too much"),
        (by_id(0, delta(5, 5, COPY), 3), "its size is not that of its header"),
        (by_id(0, delta(5, (1 << 29) + 1, COPY)), "it is made from too much"),
        (of(BLOB, b"hello")[:1], "cannot be read"),
    ],
)
def test_what_is_no_object_is_refused(tmp_path, second, why):
    _, oid = made_by_hand(tmp_path / "store.git", [BASE, second])
    objects = Objects.open(tmp_path / "store.git")
    with pytest.raises(Trouble, match=why):
        objects.read(oid, "blob", 1 << 34, proven=True)


def test_deltas_that_go_round_are_refused(tmp_path):
    entries = [by_id((number + 1) % 3, delta(5, 5, COPY)) for number in range(3)]
    ids = made_by_hand(tmp_path / "store.git", entries)
    with pytest.raises(Trouble, match="what it is made from is missing"):
        Objects.open(tmp_path / "store.git").read(ids[0], "blob", MANY)


def test_many_large_deltas_are_refused(tmp_path):
    """Small on the disk; minutes of copying, were they followed."""
    each = 1 << 29
    entries = [by_id(number, delta(each if number else 5, each, COPY)) for number in range(33)]
    ids = made_by_hand(tmp_path / "store.git", [BASE, *entries])
    objects = Objects.open(tmp_path / "store.git")
    with pytest.raises(Trouble, match="it is made from too much"):
        objects.read(ids[-1], "blob", MANY)
    with pytest.raises(Trouble, match="its delta is damaged"):  # as many as are allowed
        objects.read(ids[-2], "blob", MANY)


def test_an_index_may_name_every_place_of_a_pack(tmp_path):
    """Each read gives another object, or trouble; with libgit2 one in 70 ended the process."""
    store = tmp_path / "store.git"
    told = packed(store, [*blobs(8)][:-1])
    index = pack_of(store, "idx")
    good = index.read_bytes()
    (count,) = struct.unpack_from(">I", good, 8 + 4 * 255)
    ids, at = good[1032 : 1032 + 20 * count], 1032 + 24 * count
    places = struct.unpack_from(f">{count}I", good, at)
    honest = {place: ids[20 * n : 20 * n + 20].hex() for n, place in enumerate(places)}
    oid = next(oid for oid in told if len(told[oid]) > 3000)
    where = at + 4 * [*honest.values()].index(oid)
    read = 0
    for place in range(12, pack_of(store).stat().st_size - 20):
        changed = struct.pack(">I", place)
        index.write_bytes(good[:where] + changed + good[where + 4 :])
        try:
            found = Packs([store / "objects"]).find(oid)
            data = found.contents() if found.size < MANY else b""
        except (ValueError, zlib.error):
            assert place not in honest
            continue
        read += 1
        assert place not in honest or object_id(found.kind, data) == honest[place]
    assert read >= count


def test_every_byte_of_a_pack_may_change(tmp_path):
    store = tmp_path / "store.git"
    told = packed(store, [*blobs(6)][:-1])
    pack = pack_of(store)
    good = pack.read_bytes()
    objects = Objects.open(store)
    refused = 0
    for place in range(12, len(good) - 20):
        pack.write_bytes(good[:place] + bytes([good[place] ^ 1 << place % 8]) + good[place + 1 :])
        for oid, data in told.items():
            try:
                assert objects.read(oid, "blob", MANY) == data
            except Trouble:
                refused += 1
    assert refused > len(good) // 2
