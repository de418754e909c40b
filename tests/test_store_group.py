"""Groups of records: the same commits as one by one, in two packs that git itself would make."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmtrace.errors import Trouble
from llmtrace.store import loose
from llmtrace.store import pack as packs
from llmtrace.store.chain import Event, Store
from llmtrace.store.keys import Keys, Last
from llmtrace.store.maintenance import maintain
from llmtrace.store.pack import Pack
from llmtrace.verify.audit import audit_chain

T = 1_700_000_000


def opened(folder):
    return Store.open(folder / "store.git", folder / "keys", create=True, time=T)


def event(number, size=40):
    parts = {"prompt.txt": b"words %d" % number, "digests.bin": bytes([number % 256]) * size}
    sections = {"trace": {"seed": number}, "probes": {}, "attested": {"model": "tiny"}}
    return Event("run", sections, parts, T + number)


def git(folder, *arguments):
    command = ["git", "--git-dir", folder / "store.git", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def files(folder):
    return sorted(path for path in (folder / "store.git/objects").rglob("*") if path.is_file())


@pytest.fixture
def base(tmp_path):
    folder = tmp_path / "base"
    opened(folder)
    return folder


@pytest.mark.parametrize("groups", [[7], [1, 6], [3, 1, 3], [2, 5]])
def test_a_group_makes_the_commits_that_its_records_make_one_by_one(tmp_path, base, groups):
    shutil.copytree(base, tmp_path / "calm")
    one_by_one = opened(tmp_path / "calm")
    calm = [one_by_one.append(*event(number)) for number in range(7)]
    store = opened(base)
    found, number = [], 0
    for count in groups:
        found += store.append_all([event(number + i) for i in range(count)])
        number += count
    assert found == calm
    assert [entry.id for entry in store.log()][-2::-1] == calm
    assert all(findings == [] for _, findings in audit_chain(store, "HEAD"))


def test_a_group_is_two_packs_that_git_finds_sound(base):
    store = opened(base)
    before = files(base)
    store.append_all([event(number, size=number * 500) for number in range(100)])
    new = [path for path in files(base) if path not in before]
    assert sorted(path.suffix for path in new) == [".idx", ".idx", ".pack", ".pack"]
    assert git(base, "fsck", "--strict", "--full") == ""
    for pack in (path for path in new if path.suffix == ".pack"):
        again = pack.with_suffix(".again")
        git(base, "index-pack", "--strict", "-o", again, pack)
        assert again.read_bytes() == pack.with_suffix(".idx").read_bytes()
        again.chmod(0o644)
        again.unlink()
    listed = git(base, "cat-file", "--batch-all-objects", "--batch-check").splitlines()
    assert len(listed) == 3 + 100 * (1 + 1 + 3)  # commit, tree, three files; the identity's own


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(contents=st.lists(st.binary(max_size=70_000), min_size=1, max_size=20))
def test_git_reads_from_a_pack_what_was_put_in(tmp_path_factory, contents):
    folder = tmp_path_factory.mktemp("pack")
    git_dir = folder / "store.git"
    subprocess.run(["git", "init", "-q", "--bare", git_dir], check=True)
    pack = Pack(git_dir / "objects", "test")
    ids = [pack.add("blob", data) for data in contents]
    pack.publish()
    for oid, data in zip(ids, contents, strict=True):
        command = ["git", "--git-dir", git_dir, "cat-file", "blob", oid]
        assert subprocess.run(command, capture_output=True, check=True).stdout == data
    git(folder, "fsck", "--strict", "--full")


def test_both_files_of_a_pack_and_their_folder_are_synced(base, monkeypatch):
    store, synced, sync = opened(base), [], os.fsync

    def watch(handle):
        synced.append(Path(f"/proc/self/fd/{handle}").readlink())
        sync(handle)

    monkeypatch.setattr(os, "fsync", watch)
    store.append_all([event(number) for number in range(3)])
    files = [path.name.split("-")[-1] for path in synced if path.name.startswith("tmp_llmtrace-")]
    assert sorted(files) == ["idx", "idx", "pack", "pack"]
    assert [path.name for path in synced].count("pack") == 2


@pytest.mark.parametrize("count", [1, 3])
def test_maintenance_in_the_midst_of_writing_takes_nothing_away(base, monkeypatch, count):
    """Git must not take files on their way for packs; folders that it empties may go."""
    store, times = opened(base), []

    def after_maintenance(paths, **options):
        times.append(maintain(store.path, {"PATH": os.environ["PATH"]}))
        sync(paths, **options)

    sync = loose.sync
    monkeypatch.setattr(packs, "sync", after_maintenance)
    monkeypatch.setattr(loose, "sync", after_maintenance)
    commits = store.append_all([event(number) for number in range(count)])
    assert times == [True] * (6 if count == 1 else 2)
    assert [entry.id for entry in opened(base).log()][-2::-1] == commits
    assert git(base, "fsck", "--strict", "--full") == ""


def test_no_group_no_pack(base):
    before = files(base)
    assert opened(base).append_all([]) == []
    assert files(base) == before


def test_a_record_that_cannot_be_made_leaves_nothing_of_its_group(base):
    store, before = opened(base), files(base)
    bad = event(2)._replace(parts={"notes.txt": b""})
    with pytest.raises(Trouble, match=r"cannot hold a part 'notes\.txt'"):
        store.append_all([event(1), bad])
    assert files(base) == before
    assert [entry.record.seq for entry in store.log()] == [0]
    store.append_all([event(1), event(2)])
    assert [entry.record.seq for entry in store.log()] == [2, 1, 0]


def test_a_promised_group_is_completed_from_its_trees(tmp_path, base):
    """As it would be by whoever writes after a crash, and only if all of it is there."""
    shutil.copytree(base, tmp_path / "calm")
    calm = opened(tmp_path / "calm").append_all([event(number) for number in range(3)])
    shutil.copytree(tmp_path / "calm", tmp_path / "cut")
    (tmp_path / "cut/store.git/refs/heads/node" / opened(base).node).write_text(
        git(base, "rev-parse", "HEAD")
    )
    store = opened(tmp_path / "cut")
    assert [entry.id for entry in store.log()][-2::-1] == calm
    shutil.copytree(tmp_path / "calm/keys", base / "keys", dirs_exist_ok=True)
    with pytest.raises(Trouble, match="does not end with record 3, which the key"):
        opened(base)


def test_a_key_restored_from_an_old_copy_catches_up_with_its_own_chain(tmp_path, base):
    store = opened(base)
    shutil.copytree(base / "keys", tmp_path / "old")
    store.append_all([event(number) for number in range(3)])
    for folder in (base / "keys").iterdir():
        shutil.copy(tmp_path / "old" / folder.name / "last", folder / "last")
    store = opened(base)
    keys = Keys(base / "keys", store.node)
    assert keys.last == Last(3, store.read("HEAD").digest, store.read("HEAD").commit.tree)
    store.append(*event(9))
    assert all(findings == [] for _, findings in audit_chain(store, "HEAD"))
    assert Path(base / "keys" / store.node / "last").read_bytes().count(b'"seq":4') == 1


def test_nothing_is_built_on_a_commit_that_the_key_did_not_sign(base):
    store = opened(base)
    raw = store.read(store.append(*event(1))).raw
    forged = raw.replace(b"Llmtrace-Seq: 1", b"Llmtrace-Seq: 2")
    command = ["git", "--git-dir", base / "store.git", "hash-object", "-t", "commit", "-w"]
    done = subprocess.run([*command, "--stdin"], input=forged, capture_output=True, check=True)
    git(base, "update-ref", f"refs/heads/node/{store.node}", done.stdout.decode().strip())
    with pytest.raises(Trouble, match="ends with a commit that its key did not sign"):
        opened(base)
