"""fetch: what is sound comes in, what is not leaves no trace, a fork convicts its author."""

import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pygit2
import pytest

import chains
from commands import Answer, call
from llmtrace.errors import Trouble
from llmtrace.store import commit, forks, sshsig
from llmtrace.store.carrier import Carrier
from llmtrace.store.chain import Store
from llmtrace.store.record import Record
from llmtrace.store.remotes import Remotes
from llmtrace.verify import shares
from llmtrace.verify.audit import audit_new
from llmtrace.verify.intake import intake
from servers import KINDS, git, make_bare, refs, serve
from test_store import append
from test_store_audit import Forger

T = 1_700_000_000
ROOT = Path(__file__).parents[1]
SHARING = """
import sys
from llmtrace.cli import main
from llmtrace.verify import shares
shares._SHORT, shares._STRETCH = 1, 20
sys.exit(main())
"""
OTHER = "a" * 52


class Home:
    """Somebody's settings, keys and store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "data/llmtrace/store.git"
        self.environment = {
            "XDG_CONFIG_HOME": str(folder / "config"),
            "XDG_DATA_HOME": str(folder / "data"),
        }

    def open(self) -> Store:
        return Store.open(self.path, self.folder / "config/llmtrace/keys", create=True, time=T)

    def call(self, *arguments: str | Path, **environment: str) -> Answer:
        with pytest.MonkeyPatch.context() as patch:
            for name, text in {**self.environment, **environment}.items():
                patch.setenv(name, text)
            return call(*arguments)

    def fetch(self, *arguments: str | Path, **environment: str) -> list[dict[str, Any]]:
        """The outcomes, without the line that ends them."""
        answer = self.call("fetch", *arguments, "--json", **environment)
        *outcomes, end = answer.objects
        bad = {"refused", "forked"} & {one["result"] for one in outcomes}
        assert (answer.status, end["status"]) == ((4, 4) if bad else (0, 0)), answer.err
        return outcomes


def snapshot(folder: Path) -> dict[str, str]:
    """Every file and folder below a folder, with the digests of the files."""
    return {
        str(path.relative_to(folder)): (
            "" if path.is_dir() else hashlib.sha256(path.read_bytes()).hexdigest()
        )
        for path in sorted(folder.rglob("*"))
    }


def everything(path: Path) -> set[str]:
    """Ids of all objects in a repository, reachable or not."""
    listed = git("--git-dir", path, "cat-file", "--batch-all-objects", "--batch-check")
    return {line.split()[0] for line in listed.splitlines()}


def reachable(path: Path) -> set[str]:
    listed = git("--git-dir", path, "rev-list", "--objects", "--all")
    return {line.split()[0] for line in listed.splitlines()}


def assert_sound(path: Path) -> None:
    assert git("--git-dir", path, "fsck", "--strict", "--no-dangling") == ""
    assert not list(path.glob(".scratch-*"))


@pytest.fixture
def reader(tmp_path: Path) -> Home:
    """Somebody with a store of his own, who fetches."""
    made = Home(tmp_path / "reader")
    made.open()
    return made


@pytest.fixture
def author(tmp_path: Path) -> Home:
    """Somebody else, with a chain of three records."""
    made = Home(tmp_path / "author")
    store = made.open()
    append(store, 1)
    append(store, 2)
    return made


@pytest.fixture
def remote(tmp_path: Path, author: Home) -> Path:
    """Where the author's chain was pushed to."""
    (tmp_path / "served").mkdir()
    path = make_bare(tmp_path / "served/store.git")
    publish(author.path, path)
    return path


def publish(store: Path, remote: Path, *options: str) -> None:
    """Pushes all chains and proofs, as plain git does it."""
    specs = ["refs/heads/*:refs/heads/*", "refs/llmtrace/*:refs/llmtrace/*"]
    git("--git-dir", store, "push", "-q", *options, str(remote), *specs)


@pytest.mark.parametrize("kind", KINDS)
def test_a_chain_comes_whole_and_then_what_is_new(
    kind: str, reader: Home, author: Home, remote: Path
) -> None:
    store = author.open()
    node = store.node
    with serve(kind, remote.parent) as server:
        url = server.url()
        (outcome,) = reader.fetch(url, **server.environment)
        assert outcome == {
            **{"v": 1, "type": "fetch", "node": node, "names": [], "own": False},
            **{"result": "fetched", "records": 3, "tip": store.read("HEAD").id},
            **{"commit": None, "part": None, "reason": None, "seq": None},
        }
        newest = [append(store, number) for number in (3, 4)][-1]
        publish(author.path, remote)
        (outcome,) = reader.fetch(url, **server.environment)
        assert (outcome["result"], outcome["records"], outcome["tip"]) == ("fetched", 2, newest)
        (outcome,) = reader.fetch(url, **server.environment)
        assert (outcome["result"], outcome["records"]) == ("up_to_date", 0)
    assert refs(reader.path)[f"refs/heads/node/{node}"] == newest
    assert everything(reader.path) == reachable(reader.path)
    counted = dict(
        line.split(": ")
        for line in git("--git-dir", reader.path, "count-objects", "-v").splitlines()
    )  # what two records share came once
    assert int(counted["count"]) + int(counted["in-pack"]) == len(everything(reader.path))
    assert_sound(reader.path)


def test_lines_for_people_name_who_is_expected(reader: Home, author: Home, remote: Path) -> None:
    node = author.open().node
    assert reader.call("fetch", remote).lines == [f"fetched node/{node} 3 records unknown"]
    assert reader.call("fetch", remote).lines == [f"up to date node/{node} unknown"]
    Remotes.open(reader.path).add("alice", str(remote), [node])
    assert reader.call("fetch").lines == [f"up to date node/{node} alice"]
    publish(reader.path, remote)
    own = reader.open().node
    assert reader.call("fetch", "alice", own).lines == [f"up to date node/{own} self"]
    both = reader.call("fetch", "alice", "--all").lines
    assert both == sorted(
        [f"up to date node/{own} self", f"up to date node/{node} alice"], key=last
    )
    append(reader.open(), 9)
    assert reader.call("fetch", "alice", own).lines == [f"behind node/{own} self"]
    assert reader.call("fetch", "alice", own[:8]).lines == [f"behind node/{own} self"]
    assert reader.call("fetch", own).lines == [f"behind node/{own} self"]
    assert reader.call("fetch", "self").lines == [f"behind node/{own} self"]


def last(line: str) -> str:
    return line.split()[-2]


def test_only_the_nodes_that_were_asked_for_come(
    reader: Home, author: Home, remote: Path, tmp_path: Path
) -> None:
    second = Home(tmp_path / "second")
    publish(second.open().path, remote)
    nodes = sorted(home.open().node for home in (author, second))
    for node in nodes:
        (outcome,) = reader.fetch(remote, node)
        assert (outcome["node"], outcome["result"]) == (node, "fetched")
        assert f"refs/heads/node/{node}" in refs(reader.path)
        if node == nodes[0]:
            assert f"refs/heads/node/{nodes[1]}" not in refs(reader.path)
    (outcome,) = reader.fetch(remote, OTHER)
    assert outcome["result"] == "refused"
    assert outcome["reason"] == "the remote does not have it"


def test_nothing_but_what_was_audited_enters(
    reader: Home, author: Home, remote: Path, home: Path
) -> None:
    """The server sends one blob more, in the same pack; other branches are not asked for."""
    extra = git("--git-dir", remote, "hash-object", "-w", "--stdin")
    (home / "more").write_text(f'#!/bin/sh\n{{ echo {extra}; cat; }} | "$@"\n')
    (home / "more").chmod(0o755)
    git("--git-dir", remote, "branch", "main", f"node/{author.open().node}")
    git("--git-dir", remote, "tag", "v1", "main")
    (home / ".gitconfig").write_text(f"[uploadpack]\n\tpackObjectsHook = {home}/more\n")
    plain = home / "plain"
    git("clone", "-q", "--mirror", "--no-local", remote, plain)
    assert extra in everything(plain)  # so the server does send it
    (outcome,) = reader.fetch(remote)
    assert outcome["result"] == "fetched"
    assert extra not in everything(reader.path)
    assert everything(reader.path) == reachable(reader.path)
    assert len(refs(reader.path)) == 2
    assert_sound(reader.path)


class Stranger:
    """A remote with one chain written by hand, of which all can be wrong."""

    def __init__(self, path: Path) -> None:
        store = Store.open(path, path.parent / "nowhere", create=True, time=T)
        shutil.rmtree(path / "refs/heads/node")
        (path / "HEAD").write_text("ref: refs/heads/main\n")
        self.forger = Forger(store)
        self.path = path
        self.node = self.forger.node
        for number in (1, 2):
            self.forger.add(self.forger.run(number))
        self.sound = self.forger.tip

    def offer(self, commit: str, name: str | None = None) -> None:
        place = self.path / "refs/heads/node" / (name or self.node)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(f"{commit}\n")


@pytest.fixture
def stranger(tmp_path: Path) -> Stranger:
    return Stranger(tmp_path / "stranger.git")


def bad_signature(forger: Forger) -> str:
    forger.key = forger.keys[3]
    return forger.write(forger.run())


def bad_part(forger: Forger) -> str:
    record = forger.run()
    files = {"record.json": record.json, **record.parts, "prompt.txt": b"other"}
    return forger.write(record, files=files)


def merge(forger: Forger) -> str:
    return forger.write(
        forger.run(), parents=(forger.tip, forger.store.read(forger.tip).parents[0])
    )


def gap(forger: Forger) -> str:
    return forger.write(forger.run(seq=9))


def executable(forger: Forger) -> str:
    return forger.write(forger.run(), modes={"prompt.txt": "100755"})


def link(forger: Forger) -> str:
    return forger.write(forger.run(), modes={"prompt.txt": "120000"})


def strange_name(forger: Forger) -> str:
    record = forger.run()
    return forger.write(
        record, files={"record.json": record.json, **record.parts, "x\x1b[31m": b""}
    )


def no_record(forger: Forger) -> str:
    return forger.write(forger.run(), files={"README": b"hello"})


def dot_git(forger: Forger) -> str:
    record = forger.run()
    return forger.write(record, files={"record.json": record.json, ".git": b""})


def bad_mode(forger: Forger) -> str:
    return forger.write(forger.run(), modes={"prompt.txt": "100777"})


def headless(forger: Forger) -> str:
    return forger.write(forger.run(), parents=())


def large(forger: Forger) -> str:
    return forger.raw(b"tree " + b"0" * 40 + b"\nauthor " + b"x" * 70_000 + b"\n\n")


def blob(forger: Forger) -> str:
    return str(forger.odb.write(3, b"no commit"))


BAD = {
    "bad_signature": (bad_signature, "signature", "signed by another key"),
    "bad_part": (bad_part, "prompt.txt", "bytes, declared"),
    "merge": (merge, "commit", "2 parents"),
    "gap": (gap, "record.json", "link.seq is 9"),
    "executable": (executable, "prompt.txt", "mode 100755 is not 100644"),
    "link": (link, "prompt.txt", "mode 120000 is not 100644"),
    "strange_name": (strange_name, "x\\x1b[31m", "cannot hold this part"),
    "no_record": (no_record, "README", "cannot hold this part"),
    "dot_git": (dot_git, "transfer", "git: "),
    "bad_mode": (bad_mode, "transfer", "git: "),
    "headless": (headless, "chain", "does not begin with an identity"),
    "large": (large, "transfer", "git: "),
    "blob": (blob, "commit", "is no commit"),
}


@pytest.mark.parametrize(
    ("case", "known"),
    [*((case, True) for case in BAD), *((case, False) for case in [*BAD][:3]), ("headless", False)],
)
def test_what_is_not_sound_is_refused_and_leaves_no_trace(
    case: str, known: bool, reader: Home, stranger: Stranger
) -> None:
    make, part, why = BAD[case]
    if known:
        stranger.offer(stranger.sound)
        assert reader.fetch(stranger.path)[0]["result"] == "fetched"
    stranger.offer(make(stranger.forger))
    before = snapshot(reader.path)
    (outcome,) = reader.fetch(stranger.path)
    assert (outcome["result"], outcome["node"]) == ("refused", stranger.node)
    if not (known and case == "headless"):
        assert outcome["part"] == part
        assert why in outcome["reason"]
    assert outcome["tip"] == (stranger.sound if known else None)
    assert snapshot(reader.path) == before
    said = reader.call("fetch", stranger.path)
    assert said.status == 4
    assert said.out.startswith(f"refused node/{stranger.node} ")
    assert "\x1b" not in said.out
    assert snapshot(reader.path) == before


def test_a_chain_under_the_name_of_another_node_is_refused(
    reader: Home, stranger: Stranger
) -> None:
    stranger.offer(stranger.sound, OTHER)
    before = snapshot(reader.path)
    (outcome,) = reader.fetch(stranger.path)
    assert (outcome["result"], outcome["part"]) == ("refused", "chain")
    assert outcome["reason"] == f"not the chain of '{OTHER}'"
    assert snapshot(reader.path) == before


def test_one_bad_chain_does_not_stop_the_others(
    reader: Home, stranger: Stranger, author: Home
) -> None:
    """In the same pack; of the bad ones nothing enters."""
    publish(author.path, stranger.path)
    stranger.offer(gap(stranger.forger))
    outcomes = {one["node"]: one["result"] for one in reader.fetch(stranger.path)}
    assert outcomes == {stranger.node: "refused", author.open().node: "fetched"}
    assert everything(reader.path) == reachable(reader.path)
    stranger.offer(dot_git(stranger.forger))  # which spoils the transfer itself
    append(author.open(), 5)
    publish(author.path, stranger.path)
    outcomes = {one["node"]: one["result"] for one in reader.fetch(stranger.path)}
    assert outcomes == {stranger.node: "refused", author.open().node: "fetched"}
    assert everything(reader.path) == reachable(reader.path)
    assert_sound(reader.path)


def test_a_shallow_remote_fools_nobody(
    reader: Home, author: Home, remote: Path, tmp_path: Path
) -> None:
    node = author.open().node
    shallow = tmp_path / "shallow.git"
    url = f"file://{remote}"
    git("clone", "-q", "--bare", "--depth=1", "-b", f"node/{node}", url, shallow)
    before = snapshot(reader.path)
    (outcome,) = reader.fetch(shallow)
    assert (outcome["result"], outcome["part"]) == ("refused", "transfer")
    assert snapshot(reader.path) == before
    reader.fetch(remote)
    append(author.open(), 3)
    publish(author.path, remote)
    shutil.rmtree(shallow)
    git("clone", "-q", "--bare", "--depth=1", "-b", f"node/{node}", url, shallow)
    reader.fetch(shallow)  # whatever comes of it
    assert not list(reader.path.rglob("shallow"))
    assert_sound(reader.path)


def test_an_audit_has_a_time_cap(reader: Home, stranger: Stranger) -> None:
    """A few KB of a pack are much to hash: one blob of zeros is a part of every record."""
    zeros = {"probes.bin": bytes(64 << 20)}
    for _ in range(20):
        run = stranger.forger.run()
        three = {name: run.sections[name] for name in ("trace", "probes", "attested")}
        link = {name: value for name, value in run.link.items() if name != "format"}
        stranger.forger.add(Record.of(three, zeros, link))
    stranger.offer(stranger.forger.tip)
    before = snapshot(reader.path)
    start = time.monotonic()
    answer = reader.call("fetch", stranger.path, "--timeout", "2")
    assert (answer.status, time.monotonic() - start < 20) == (4, True)
    assert "the audit takes too long" in answer.err
    assert snapshot(reader.path) == before


def test_replaced_commits_are_not_looked_at(reader: Home, stranger: Stranger) -> None:
    """The remote replaces a bad commit by a good one, for whoever honours that."""
    bad = bad_signature(stranger.forger)
    stranger.offer(bad)
    place = stranger.path / "refs/replace"
    place.mkdir()
    (place / bad).write_text(f"{stranger.sound}\n")
    (outcome,) = reader.fetch(stranger.path)
    assert (outcome["result"], outcome["part"]) == ("refused", "signature")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--max-bytes", "20k"), "more than 20480 bytes"),
        (("--timeout", "0.001"), "the transfer took more than 0.001 seconds"),
    ],
)
def test_caps_hold_and_leave_no_trace(
    options: tuple[str, ...], why: str, reader: Home, tmp_path: Path
) -> None:
    chains.make(tmp_path / "long.git", 50)
    before = snapshot(reader.path)
    said = reader.call("fetch", tmp_path / "long.git", *options)
    assert said.status == 4
    assert why in said.out + said.err
    assert snapshot(reader.path) == before


def test_many_refs_cost_little(reader: Home, author: Home, remote: Path) -> None:
    node = author.open().node
    tip = refs(remote)[f"refs/heads/node/{node}"]
    lines = [f"{tip} refs/heads/b{number:06}\n" for number in range(100_000)]
    (remote / "packed-refs").write_text("# pack-refs with: peeled fully-peeled sorted \n")
    with (remote / "packed-refs").open("a") as file:
        file.writelines(lines)
    start = time.monotonic()
    (outcome,) = reader.fetch(remote, "--all")
    assert outcome["result"] == "fetched"
    assert time.monotonic() - start < 20
    letters = "abcdefghijklmnopqrstuvwxyz234567"
    names = [
        "".join(letters[number >> 5 * place & 31] for place in range(4)) + "a" * 48
        for number in range(5001)
    ]
    with (remote / "packed-refs").open("w") as file:
        file.write("# pack-refs with: peeled fully-peeled \n")
        file.writelines(f"{tip} refs/heads/node/{name}\n" for name in names)
    before = snapshot(reader.path)
    said = reader.call("fetch", remote, "--all")
    assert (said.status, said.out) == (4, "")
    assert "has more than 5000 chains" in said.err
    assert "name the nodes that you want" in said.err
    (outcome,) = reader.fetch(remote, node)
    assert outcome["result"] == "up_to_date"
    assert snapshot(reader.path) == before


def test_a_restored_store_gets_its_own_records_back(
    reader: Home, tmp_path: Path, remote: Path
) -> None:
    store = reader.open()
    append(store, 1)
    shutil.copytree(reader.path, tmp_path / "backup")
    newest = append(store, 2)
    publish(reader.path, remote)
    shutil.rmtree(reader.path)
    (tmp_path / "backup").rename(reader.path)
    (outcome,) = reader.fetch(remote, store.node)
    assert (outcome["result"], outcome["records"], outcome["own"]) == ("fetched", 1, True)
    restored = reader.open()
    assert restored.read("HEAD").id == newest
    assert restored.read(append(restored, 3)).record.seq == 3
    assert_sound(reader.path)


@pytest.fixture
def twins(tmp_path: Path) -> tuple[Home, Home]:
    """One node in two homes, each of which has written a second record."""
    one, two = Home(tmp_path / "one"), Home(tmp_path / "two")
    append(one.open(), 1)
    shutil.copytree(one.folder, two.folder)
    append(one.open(), 7)
    append(two.open(), 8)
    append(two.open(), 9)
    return one, two


def test_a_fork_is_found_proven_and_passed_on(
    reader: Home, twins: tuple[Home, Home], tmp_path: Path
) -> None:
    one, two = twins
    first, second = make_bare(tmp_path / "first.git"), make_bare(tmp_path / "second.git")
    publish(one.path, first)
    publish(two.path, second)
    node = one.open().node
    assert reader.fetch(first)[0]["result"] == "fetched"
    before = refs(reader.path)
    objects = everything(reader.path)
    said = reader.call("fetch", second)
    assert (said.status, said.lines) == (4, [f"forked node/{node} seq 2 unknown"])
    assert "has signed two records for seq 2" in said.err
    after = refs(reader.path)
    blob = after.pop(f"refs/llmtrace/fork/{node}")
    assert after == before  # the chain stays as it was
    assert everything(reader.path) == objects | {blob}
    assert_sound(reader.path)
    data = git("--git-dir", reader.path, "cat-file", "blob", blob).encode()
    proof = forks.check(data)
    assert isinstance(proof, forks.Proof)
    assert (proof.node, proof.seq) == (node, 2)
    assert len(data) <= 4096
    told = {home.open().read(name).digest for home, name in ((one, "HEAD"), (two, "HEAD~1"))}
    assert set(proof.records) == told

    hub, third = make_bare(tmp_path / "hub.git"), Home(tmp_path / "third")
    assert reader.call("remote", "add", "hub", hub).status == 0
    pushed = reader.call("push", "hub", "--all", "--publish")
    assert pushed.status == 0, pushed.err
    assert refs(hub)[f"refs/llmtrace/fork/{node}"] == blob
    third.open()
    results = [(one["node"] == node, one["result"], one["seq"]) for one in third.fetch(hub)]
    assert sorted(results, key=str) == sorted(
        [(True, "forked", 2), (True, "fetched", None), (False, "fetched", None)], key=str
    )
    assert dict(forks.listed(third.open())) == {node: proof}
    assert {one["result"] for one in third.fetch(hub)} == {"up_to_date"}


def test_a_fork_of_ones_own_is_said_loudly(twins: tuple[Home, Home], tmp_path: Path) -> None:
    one, two = twins
    hub = make_bare(tmp_path / "hub.git")
    publish(one.path, hub)
    with pytest.raises(AssertionError, match="rejected"):
        publish(two.path, hub)
    own = two.open()
    said = two.call("fetch", hub)
    assert (said.status, said.lines) == (4, [f"forked node/{own.node} seq 2 self"])
    assert "your own key has signed two records for seq 2" in said.err
    assert own.read("HEAD").record.seq == 3
    two.call("remote", "add", "hub", hub)
    refused = two.call("push", "hub", "--publish")
    assert (refused.status, refused.out) == (4, "")
    assert "holds records of your own chain that this store does not" in refused.err
    kept = forks.kept(own, own.node)
    assert kept is not None
    assert kept.seq == 2


def another_signature(message: bytes, seed: bytes) -> bytes:
    """A valid Ed25519 signature (RFC 8032) that is not the one that everybody makes."""
    p, order = 2**255 - 19, 2**252 + 27742317777372353535851937790883648493
    d = -121665 * pow(121666, -1, p) % p
    x = 15112221349535400772501151409588531511454012693041857206046113283949847762202
    base = x, 4 * pow(5, -1, p) % p

    def add(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
        k = d * a[0] * b[0] * a[1] * b[1] % p
        return (
            (a[0] * b[1] + b[0] * a[1]) * pow(1 + k, -1, p) % p,
            (a[1] * b[1] + a[0] * b[0]) * pow(1 - k, -1, p) % p,
        )

    def times(scalar: int) -> bytes:
        point = 0, 1
        for bit in f"{scalar:b}":
            point = add(point, point)
            point = add(point, base) if bit == "1" else point
        return (point[1] | (point[0] & 1) << 255).to_bytes(32, "little")

    head = hashlib.sha512(seed).digest()
    secret = int.from_bytes(head[:32], "little") & (2**254 - 8) | 2**254
    nonce = int.from_bytes(hashlib.sha512(b"not the usual nonce").digest(), "little") % order
    commitment = times(nonce)
    digest = hashlib.sha512(commitment + times(secret) + message).digest()
    answer = (nonce + int.from_bytes(digest, "little") * secret) % order
    return commitment + answer.to_bytes(32, "little")


def test_one_record_signed_in_two_ways_is_no_fork(reader: Home, stranger: Stranger) -> None:
    """Another commit of the same record: its author's own doing, but it convicts nobody."""
    stranger.offer(stranger.sound)
    reader.fetch(stranger.path)
    forger = stranger.forger
    unsigned = forger.store.read(stranger.sound).payload
    signature = another_signature(sshsig._signed(unsigned, "git"), bytes([0]) * 32)
    public = forger.key.public_key().public_bytes_raw()
    armored = sshsig._armor(public, "git", signature)
    assert sshsig.check(unsigned, armored, public) is None
    other = forger.raw(commit.signed(unsigned, armored))
    assert other != stranger.sound
    first = other
    for _ in range(2):
        stranger.offer(other)
        before = snapshot(reader.path)
        (outcome,) = reader.fetch(stranger.path)
        assert (outcome["result"], outcome["commit"]) == ("refused", first)
        assert outcome["reason"] == "other commits than here, of the same records"
        assert snapshot(reader.path) == before
        forger.tip = other
        other = forger.write(forger.run(3))  # and one more on top of it


@pytest.mark.parametrize("data", [b"", b"{}", b"x" * 10_000], ids=["empty", "none", "long"])
def test_a_proof_that_proves_nothing_is_not_kept(data: bytes, reader: Home, remote: Path) -> None:
    repository = pygit2.Repository(str(remote))
    oid = repository.create_blob(data)
    repository.references.create(f"refs/llmtrace/fork/{OTHER}", oid)
    reader.fetch(remote)
    before = snapshot(reader.path)
    outcomes = {one["node"]: one for one in reader.fetch(remote)}
    refused = outcomes.pop(OTHER)
    assert (refused["result"], refused["part"], refused["commit"]) == ("refused", "proof", str(oid))
    assert [one["result"] for one in outcomes.values()] == ["up_to_date"]
    assert snapshot(reader.path) == before


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ([], 2, "no remote 'origin'"),
        (["nowhere"], 4, "no remote 'nowhere'"),
        (["./nothing.git"], 4, "git: "),
        (["ext::sh -c true"], 4, "cannot be a remote"),
        (["./x", "--all", OTHER], 2, "--all and NODE cannot be used together"),
        (["./x", "short"], 4, "no node 'short'"),
        (["./x", "--max-bytes", "many"], 2, "invalid value for '--max-bytes'"),
        (["./x", "--timeout", "0"], 2, "invalid value for '--timeout'"),
        (["./x", "--store", "no/such"], 4, "no store at"),
    ],
)
def test_what_cannot_begin(
    arguments: list[str], status: int, said: str, reader: Home, tmp_path: Path
) -> None:
    before = snapshot(reader.path)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        refused = reader.call("fetch", *arguments)
    assert (refused.status, refused.out) == (status, "")
    assert said in refused.err
    assert "Traceback" not in refused.err
    assert snapshot(reader.path) == before


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str, str]]:
    path = tmp_path_factory.mktemp("long") / "long.git"
    yield path, *chains.make(path, 300)


@pytest.mark.parametrize("signal_", [signal.SIGKILL, signal.SIGINT], ids=["kill", "interrupt"])
def test_interrupted_anywhere_the_store_is_sound(
    signal_: signal.Signals, reader: Home, long: tuple[Path, str, str]
) -> None:
    """And the next fetch gets all; what a killed process left goes with it."""
    path, node, tip = long
    command = [sys.executable, "-c", SHARING, "fetch", str(path)]
    environment = {**os.environ, **reader.environment, "PYTHONPATH": str(ROOT)}
    drawn = random.Random(7)
    start = time.monotonic()
    subprocess.run([*command[:-1], str(path.parent / "none.git")], env=environment, check=False)
    least = time.monotonic() - start
    for _ in range(4):
        started = subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        time.sleep(least * drawn.uniform(0.3, 2.5))
        started.send_signal(signal_)
        out, _ = started.communicate()
        here = refs(reader.path).get(f"refs/heads/node/{node}")
        assert here in {None, tip}
        if b"fetched" in out:
            assert here == tip
        if signal_ == signal.SIGINT and here is None:
            assert started.returncode == 130
            assert not list(reader.path.glob(".scratch-*"))
        git("--git-dir", reader.path, "fsck", "--strict", "--no-dangling")
        if here:
            git("--git-dir", reader.path, "update-ref", "-d", f"refs/heads/node/{node}")
    time.sleep(0.5)  # for processes that lost their parent to notice it
    (outcome,) = reader.fetch(path)
    assert (outcome["result"], outcome["tip"]) == ("fetched", tip)
    assert_sound(reader.path)


def test_a_branch_that_moves_meanwhile_is_not_moved_back(
    reader: Home, author: Home, remote: Path, tmp_path: Path
) -> None:
    """Another process fetches a record more while the one that we saw is audited."""
    store = author.open()
    node = store.node
    branch = f"refs/heads/node/{node}"
    reader.fetch(remote)
    append(store, 3)
    publish(author.path, remote)
    older = tmp_path / "older.git"
    shutil.copytree(remote, older)
    newest = append(store, 4)
    publish(author.path, remote)

    class Busy:
        def transfer(self, line: str) -> None:
            pass

        def audited(self) -> None:
            assert reader.fetch(remote)[0]["tip"] == newest

    carrier = Carrier({"PATH": os.environ["PATH"], **reader.environment})
    (outcome,) = intake(reader.open(), carrier, str(older), meter=Busy())
    assert (outcome.result, outcome.tip) == ("refused", newest)
    assert outcome.reason == f"'{branch}' was moved by another program"
    assert refs(reader.path)[branch] == newest
    assert_sound(reader.path)


def test_many_fetches_leave_few_packs(
    reader: Home, author: Home, remote: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmtrace.store.maintenance._PACKS", 2)
    store = author.open()
    for number in range(3, 9):
        append(store, number)
        publish(author.path, remote)
        assert reader.fetch(remote)[0]["result"] == "fetched"
    assert len(list((reader.path / "objects/pack").glob("*.pack"))) <= 2
    assert everything(reader.path) == reachable(reader.path)
    assert_sound(reader.path)


def test_several_cores_say_what_one_says(
    stranger: Stranger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a chain that is sound, and of others with something wrong at each place."""
    forger = stranger.forger
    for number in range(3, 11):
        forger.add(forger.run(number))
    sound = [forger.tip]
    while parents := forger.store.read(sound[-1]).parents:
        sound += parents
    sound.reverse()
    monkeypatch.setattr(shares, "_STRETCH", 2)
    monkeypatch.setattr(shares, "_SHORT", 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1, 2})
    store = forger.store
    assert [*shares.audit_shared(store, None, sound[-1], forger.node)] == [
        (commit_, []) for commit_ in sound
    ]
    assert [*shares.audit_shared(store, sound[3], sound[-1], forger.node)] == [
        (commit_, []) for commit_ in sound[4:]
    ]
    for place in range(1, 11):
        entry = store.read(sound[place])
        raw = entry.raw.replace(b"tiny", b"tony", 1)
        tip = forger.raw(raw)
        ids = [*sound[:place], tip]
        for later in sound[place + 1 :]:
            tip = forger.raw(
                store.read(later).raw.replace(store.read(later).parents[0].encode(), tip.encode())
            )
            ids.append(tip)
        found = [*shares.audit_shared(store, None, tip, forger.node)]
        assert [one for one, _ in found] == ids[: place + 1]
        one_pass = next(two for two in audit_new(store, None, tip, forger.node) if two[1])
        assert found[-1] == one_pass
    missing = forger.write(forger.run(11), parents=("0" * 40,))
    for since in (None, sound[2]):
        found = [*shares.audit_shared(store, since, missing, forger.node)]
        assert found == [*audit_new(store, since, missing, forger.node)]
    assert not multiprocessing.active_children()


def test_a_worker_that_is_killed_is_no_verdict(
    stranger: Stranger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shares, "_STRETCH", 1)
    monkeypatch.setattr(shares, "_SHORT", 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1})
    monkeypatch.setattr(shares, "audit_new", lambda *_given: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(Trouble, match="one of its processes was killed"):
        list(shares.audit_shared(stranger.forger.store, None, stranger.sound, stranger.node))
    assert not multiprocessing.active_children()


def test_one_new_record_does_not_audit_the_old_ones_again(
    reader: Home, long: tuple[Path, str, str], tmp_path: Path
) -> None:
    """The parts of an old record are damaged here, which nobody notices who does not read them."""
    path, node, tip = long
    older = tmp_path / "older.git"
    shutil.copytree(path, older)
    (older / "refs/heads/node" / node).write_text(git("--git-dir", path, "rev-parse", f"{tip}~1"))
    assert reader.fetch(older)[0]["records"] == 299
    victim = git("--git-dir", path, "rev-parse", f"{tip}~40:prompt.txt")
    (pack,) = (reader.path / "objects/pack").glob("*.pack")
    loose = tmp_path / "loose"
    shutil.move(pack, loose)
    for rest in (reader.path / "objects/pack").iterdir():
        rest.unlink()
    with loose.open("rb") as file:
        subprocess.run(
            ["git", "--git-dir", reader.path, "unpack-objects", "-q"], stdin=file, check=True
        )
    place = reader.path / "objects" / victim[:2] / victim[2:]
    place.chmod(0o644)
    place.write_bytes(b"damaged")
    assert reader.fetch(path)[0]["records"] == 1


def test_schema(reader: Home, remote: Path) -> None:
    import jsonschema

    schema = json.loads((ROOT / "llmtrace/cli/schemas/fetch.json").read_text())
    for outcome in reader.fetch(remote):
        jsonschema.Draft202012Validator(schema).validate(outcome)
        assert not outcome.keys() - schema["properties"].keys()
