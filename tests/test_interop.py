"""Plain git and ssh-keygen read our chains: cloned, logged, verified, checked for faults."""

import os
import re
import shutil
import subprocess

import pytest

from commands import call
from forger import T
from llmtrace.store.chain import Store
from llmtrace.verify.audit import audit_chain

pytestmark = pytest.mark.skipif(
    not shutil.which("git") or not shutil.which("ssh-keygen"), reason="no git or no ssh-keygen"
)
PARTS = {"prompt.txt": "words, wörds\n".encode(), "digests.bin": bytes(range(256)) * 9}
NETWORK = "ab" * 32
LENGTH = 13  # records of the first chain


def git(*arguments, cwd=None, ok=True, stdin=None):
    """git as it comes: no configuration of ours, no pager, no colours."""
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        ["git", *map(str, arguments)],
        **{"cwd": cwd, "input": stdin, "env": environment},
        **{"capture_output": True, "text": True, "check": False},
    )
    assert not ok or done.returncode == 0, done.stderr
    return done if not ok else done.stdout


def fill(store, number):
    """Runs, kinds of the market, two rotations, a revocation."""
    for n in range(3):
        store.append_run({"seed": str(n + number)}, {}, {"model": "tiny"}, PARTS, T + n)
    store.rotate(T + 4, 100)
    first = store.read("HEAD~3")
    named = [{"seq": 1, "record": first.digest}]
    store.append("revoke", {"revoke": {"records": named, "reason": "wrörng"}}, {}, T + 5)
    for n, kind in enumerate(("offer", "claim", "pay", "heartbeat")):
        store.append(kind, {kind: {"network": NETWORK, "n": n}}, {}, T + 6 + n)
    store.append("network", {"network": {"name": "one"}}, {}, T + 11)
    store.rotate(T + 12)
    store.append_run({"seed": "last"}, {}, {"model": "a model/with words"}, PARTS, T + 13)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """A store with two chains, its own node and the other one."""
    folder = tmp_path_factory.mktemp("interop")
    pair = [
        Store.open(folder / f"{name}.git", folder / "keys", create=True, time=T + n)
        for n, name in enumerate(("own", "other"))
    ]
    for number, store in enumerate(pair):
        fill(store, number * 10)
    own, other = pair
    name = f"refs/heads/node/{other.node}"
    git("--git-dir", own.path, "fetch", "-q", other.path, f"{name}:{name}")
    return own, other.node


@pytest.fixture(scope="module")
def signers(stores, tmp_path_factory):
    """What `key export` prints of each chain, in a file each."""
    own, other = stores
    folder = tmp_path_factory.mktemp("signers")
    for node in (own.node, other):
        said = call("key", "export", node, "--store", own.path)
        assert len(said.lines) == 3
        (folder / node).write_text(said.out)
    (folder / "all").write_text(call("key", "export", "--store", own.path).out)
    return folder


def trusting(signers, name):
    return ["-c", "gpg.format=ssh", "-c", f"gpg.ssh.allowedSignersFile={signers / name}"]


@pytest.mark.parametrize("start", ["", "file://"])
def test_a_plain_clone_shows_good_signatures_only(stores, signers, tmp_path, start):
    own, other = stores
    git("clone", "-q", f"{start}{own.path}", tmp_path / "clone")
    clone = tmp_path / "clone"
    assert (clone / "prompt.txt").read_bytes() == PARTS["prompt.txt"]
    assert git("rev-parse", "--abbrev-ref", "HEAD", cwd=clone).strip() == f"node/{own.node}"
    for branch, node in (("HEAD", own.node), (f"origin/node/{other}", other)):
        log = git(*trusting(signers, "all"), "log", "--format=%G? %GS", branch, cwd=clone)
        assert log.splitlines() == [f"G {node}@llmtrace.invalid"] * LENGTH
        shown = git(*trusting(signers, node), "log", "--show-signature", branch, cwd=clone)
        good = f'Good "git" signature for {node}@llmtrace.invalid with ED25519 key'
        assert shown.count(good) == LENGTH


def test_every_commit_verifies_with_its_own_signers_and_not_with_others(stores, signers):
    own, other = stores
    for node, wrong in ((own.node, other), (other, own.node)):
        for commit in git("--git-dir", own.path, "rev-list", f"node/{node}").split():
            where = ["--git-dir", own.path]
            said = git(*where, *trusting(signers, node), "verify-commit", commit, ok=False)
            assert said.returncode == 0
            assert "Good" in said.stderr
            said = git(*where, *trusting(signers, wrong), "verify-commit", commit, ok=False)
            assert said.returncode != 0
            assert "No principal matched" in said.stderr
    log = git("--git-dir", own.path, *trusting(signers, other), "log", "--format=%G?")
    assert set(log.split()) == {"U"}  # a good signature of somebody unknown


def test_each_key_is_good_for_the_records_it_signed(stores, signers, tmp_path):
    """One line of three: git is satisfied with exactly the commits between two rotations."""
    own, _ = stores
    told = call("key", "export", "self", "--store", own.path, "--json").objects[:-1]
    lines = (signers / own.node).read_text().splitlines()
    for line, one in zip(lines, told, strict=True):
        (tmp_path / "one").write_text(line + "\n")
        log = git("--git-dir", own.path, *trusting(tmp_path, "one"), "log", "--format=%G?")
        good = [seq for seq, word in enumerate(reversed(log.split())) if word == "G"]
        last = LENGTH - 1 if one["last"] is None else one["last"]
        assert good == [*range(one["first"], last + 1)]


def test_fsck_has_not_one_word_to_say(stores, tmp_path):
    own, _ = stores
    for path in (own.path, tmp_path / "clone.git"):
        if path != own.path:
            git("clone", "-q", "--bare", f"file://{own.path}", path)
        said = git("--git-dir", path, "fsck", "--strict", "--full", ok=False)
        assert (said.returncode, said.stdout + said.stderr) == (0, "")


def test_trailers_are_trailers(stores):
    own, _ = stores
    for entry in own.log():
        said = git("interpret-trailers", "--parse", stdin=entry.message)
        trailers = dict(line.split(": ", 1) for line in said.splitlines())
        assert len(trailers) == len(said.splitlines()) == entry.message.count("Llmtrace-")
        record = entry.record
        expected = {"Kind": record.kind, "Seq": str(record.seq), "Record": record.digest}
        expected |= {"Node": own.node, "Format": "1"}
        assert {name: trailers[f"Llmtrace-{name}"] for name in expected} == expected
        assert trailers.get("Llmtrace-Prev", "") == record.prev
        is_market = record.kind in ("offer", "claim", "pay", "heartbeat")
        assert trailers.get("Llmtrace-Network") == (NETWORK if is_market else None)
    kinds = git(
        *("--git-dir", own.path, "log", "--reverse"),
        "--format=%(trailers:key=Llmtrace-Kind,valueonly,separator=%x2C)",
    ).split()
    assert kinds[0] == "identity"
    assert kinds.count("rotate") == 2


def test_a_clone_is_a_store_and_sound(stores, tmp_path):
    own, other = stores
    path = tmp_path / "clone.git"
    git("clone", "-q", "--bare", own.path, path)
    said = call("audit", "--store", path)
    names = {f"sound node/{own.node} {LENGTH} records unknown"}  # its key is not here
    assert said.status == 0
    assert set(said.lines) == names | {f"sound node/{other} {LENGTH} records unknown"}
    assert [e.id for e in Store.open(path, tmp_path).log()] == [e.id for e in own.log()]
    assert call("show", "HEAD~11", "--store", path).status in (0, 4)  # a run of no real model


def test_a_clone_that_git_packed_and_pruned_is_still_sound(stores, tmp_path):
    own, _ = stores
    path = tmp_path / "clone.git"
    git("clone", "-q", "--mirror", own.path, path)
    git("--git-dir", path, "gc", "-q", "--aggressive", "--prune=now")
    assert not [p for p in (path / "objects").iterdir() if re.fullmatch("[0-9a-f]{2}", p.name)]
    store = Store.open(path, tmp_path)
    for node in store.nodes():
        assert [found for _, found in audit_chain(store, f"node/{node}")] == [[]] * LENGTH


def test_a_commit_by_git_itself_is_found(stores, signers, tmp_path):
    """A good signature by the right key is not enough: git writes other commits than we do."""
    own, _ = stores
    path = tmp_path / "clone.git"
    git("clone", "-q", "--bare", own.path, path)
    tree = git("--git-dir", path, "rev-parse", "HEAD^{tree}").strip()
    key = own.path.parent / "keys" / own.node / "key"
    address = f"{own.node}@llmtrace.invalid"
    me = ["-c", f"user.name=node-{own.node[:8]}", "-c", f"user.email={address}"]
    sign = ["-c", "gpg.format=ssh", "-c", f"user.signingKey={key}"]
    tip = git("--git-dir", path, "rev-parse", "HEAD").strip()
    commit = git(
        "--git-dir", path, *me, *sign, "commit-tree", "-S", "-m", "run: mine", "-p", tip, tree
    ).strip()
    git("--git-dir", path, "update-ref", "HEAD", commit)
    shown = git("--git-dir", path, *trusting(signers, own.node), "log", "-1", "--format=%G?")
    assert shown.strip() == "G"
    said = call("audit", "self", "--store", path)
    assert said.status == 1
    assert said.out.startswith(f"invalid node/{own.node} {commit} record.json: link.seq is 12")
