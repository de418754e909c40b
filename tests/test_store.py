"""The store: records written, read by us and by real git, refused when they must be."""

import errno
import os
import resource
import shutil
import stat
import subprocess
import traceback
from pathlib import Path

import pytest
from blake3 import blake3

from llmtrace.errors import Trouble
from llmtrace.store.chain import Store
from llmtrace.store.keys import Keys, Last
from llmtrace.store.record import node_id
from llmtrace.verify.audit import audit_chain

T = 1_700_000_000
TRACE = {"model": "ef" * 32, "prompt": [1, 2], "output": [3]}
ATTESTED = {"model": "tiny", "device": "cpu"}
PARTS = {"prompt.txt": b"secret words", "output.txt": b"more", "digests.bin": bytes(range(99))}


def opened(folder):
    return Store.open(folder / "store.git", folder / "keys", create=True, time=T)


def append(store, number=1, parts=PARTS):
    return store.append_run(
        TRACE | {"seed": number}, {"level": "stats"}, ATTESTED, parts, T + number
    )


def git(store, *args, ok=True):
    done = subprocess.run(
        ["git", "--git-dir", store.path, *args], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 or not ok, done.stderr
    return done.stdout + done.stderr


def assert_sound(store, length):
    """Real git has no complaint, audit neither, and the chain has this many records."""
    assert git(store, "fsck", "--strict", "--no-dangling") == ""
    found = list(audit_chain(store, f"node/{store.node}"))
    assert [findings for _, findings in found] == [[]] * length


@pytest.fixture
def store(tmp_path):
    return opened(tmp_path)


def test_first_use_makes_a_key_and_an_identity(store, tmp_path):
    identity = store.read("HEAD")
    assert identity.record.kind == "identity"
    assert identity.record.link == {
        **{"format": 1, "kind": "identity", "node": "", "seq": 0, "prev": "", "time": T}
    }
    assert store.node == node_id(blake3(identity.json).hexdigest()) == identity.record.node
    assert len(store.node) == 52
    assert store.nodes() == [store.node]
    assert git(store, "symbolic-ref", "HEAD") == f"refs/heads/node/{store.node}\n"
    folder = tmp_path / "keys" / store.node
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in [folder, *folder.iterdir()]}
    assert modes == {store.node: 0o700} | dict.fromkeys(["key", "next", "last", "lock"], 0o600)
    assert_sound(store, 1)


def test_a_run_is_read_back_as_it_was_written(store):
    first = append(store)
    second = append(store, 2, {"prompt.txt": b""})
    entry = store.read(first)
    assert entry.record.sections["trace"] == TRACE | {"seed": 1}
    assert dict(entry.record.parts) == PARTS
    assert (entry.record.seq, entry.record.prev) == (1, store.read("HEAD~2").digest)
    assert entry.message == entry.record.message()
    assert [one.id for one in store.log()] == [second, first, store.read("HEAD~2").id]
    assert [one.id for one in store.log(f"{first}..HEAD")] == [second]
    assert_sound(store, 3)


def test_any_revision_syntax_names_a_record(store):
    first, second = append(store), append(store, 2)
    for revision in (second, second[:7], "HEAD", f"node/{store.node}", f"{second}^{{commit}}"):
        assert store.read(revision).id == second
    for revision in ("HEAD~1", "HEAD^", f"{second}~", ":/run: tiny " + first_checksum(store)):
        assert store.read(revision).id == first


def first_checksum(store):
    return store.read("HEAD~1").record.checksum[:8]


@pytest.mark.parametrize(
    "revision", ["3f0c1e9", "", "HEAD~9", "node/x", "a..b", "HEAD^{tree}", "\0"]
)
def test_an_unknown_revision_is_trouble_with_a_hint(store, revision):
    with pytest.raises(Trouble) as caught:
        store.read(revision)
    assert str(caught.value) == f"no record '{revision}'"
    assert caught.value.hints == ("see 'llmtrace log'",)


def test_no_store_is_trouble(tmp_path):
    with pytest.raises(Trouble, match="no store at"):
        Store.open(tmp_path / "none", tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    with pytest.raises(Trouble, match="cannot make the store"):
        Store.open(tmp_path / "full", tmp_path, create=True)
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_git_reads_the_chain_as_any_other(store, tmp_path):
    append(store)
    node = store.node
    assert git(store, "log", "--format=%an <%ae> %cn %at %ct %s") == (
        f"node-{node[:8]} <{node}@llmtrace.invalid> node-{node[:8]} {T + 1} {T + 1} "
        f"run: tiny {store.read('HEAD').record.checksum[:8]}\n"
        f"node-{node[:8]} <{node}@llmtrace.invalid> node-{node[:8]} {T} {T} "
        f"identity: {store.read('HEAD~').digest[:8]}\n"
    )
    assert git(store, "log", "-1", "--format=%(trailers:key=Llmtrace-Seq,valueonly)").split() == [
        "1"
    ]
    assert "secret" not in git(store, "log")
    assert git(store, "cat-file", "blob", "HEAD:prompt.txt") == "secret words"
    copy = tmp_path / "copy"
    git(store, "clone", "-q", "-b", f"node/{node}", f"file://{store.path}", str(copy))
    assert (copy / "output.txt").read_bytes() == b"more"


@pytest.mark.skipif(not shutil.which("ssh-keygen"), reason="no ssh-keygen on this machine")
def test_git_verifies_every_signature_also_after_a_rotation(store, tmp_path):
    append(store)
    store.rotate(T + 2)
    append(store, 3)
    allowed = tmp_path / "allowed"
    allowed.write_text(store.allowed_signers(store.node))
    assert len(allowed.read_text().splitlines()) == 2
    settings = ["-c", "gpg.format=ssh", "-c", f"gpg.ssh.allowedSignersFile={allowed}"]
    good = f'Good "git" signature for {store.node}@llmtrace.invalid with ED25519'
    for entry in store.log():
        assert git(store, *settings, "verify-commit", entry.id).startswith(good)
    assert git(store, *settings, "log", "--show-signature").count(good) == 4
    allowed.write_text(allowed.read_text().splitlines()[1] + "\n")
    assert good not in git(store, *settings, "verify-commit", "HEAD~3", ok=False)


def test_keys_rotate_to_the_promised_one(store):
    append(store)
    old = store.identity_of("HEAD")
    first = store.rotate(T + 2)
    append(store, 3)
    second = store.rotate(T + 4)
    append(store, 5)
    keys = [store.identity_of(entry.id) for entry in store.log()][::-1]
    assert keys[:3] == [old] * 3
    assert keys[3] == keys[4] != old
    assert keys[5] not in (old, keys[3])
    promised = store.read("HEAD~5").record.sections["identity"]["next"]
    assert blake3(keys[3]).hexdigest() == promised
    assert (store.read(first).record.kind, store.read(second).record.seq) == ("rotate", 4)
    assert_sound(store, 6)


def test_the_same_record_gives_the_same_commit(store, tmp_path):
    for name in ("store.git", "keys"):
        shutil.copytree(tmp_path / name, tmp_path / "twin" / name)
    assert append(opened(tmp_path / "twin")) == append(store)


def test_a_copied_store_cannot_make_its_owner_fork(store, tmp_path):
    append(store)
    shutil.copytree(store.path, tmp_path / "copy.git")
    append(store, 2)
    copy = Store.open(tmp_path / "copy.git", tmp_path / "keys")
    with pytest.raises(Trouble, match="does not end with record 2, which the key of node-"):
        append(copy, 3)
    with pytest.raises(Trouble, match="it is a copy or was restored"):
        Store.open(tmp_path / "copy.git", tmp_path / "keys", create=True)
    assert [entry.record.seq for entry in copy.log()] == [1, 0]
    append(store, 4)
    assert_sound(store, 4)


def test_a_key_signs_one_digest_a_seq(store, tmp_path):
    append(store)
    keys = Keys(tmp_path / "keys", store.node)
    last = keys.last
    assert (last.seq, last.record) == (1, store.read("HEAD").digest)
    with pytest.raises(Trouble, match="another record 1 was signed already"):
        keys.signer([last._replace(record="00" * 32)])
    with pytest.raises(Trouble, match="has signed record 1 already"):
        keys.catch_up(last)
    for seq in (0, 1, 3):
        with pytest.raises(Trouble, match=f"record {seq} cannot be signed after record 1"):
            keys.promise([Last(seq, "00" * 32, "00" * 20)])
    following = [Last(2, "00" * 32, "00" * 20), Last(4, "00" * 32, "00" * 20)]
    with pytest.raises(Trouble, match="record 4 cannot be signed after record 2"):
        keys.promise(following)
    assert keys.promised == [last]
    (tmp_path / "keys" / store.node / "last").write_bytes(b"{}")
    with pytest.raises(Trouble, match="does not say what was signed last"):
        append(store, 2)


def test_a_store_without_its_key_can_be_read_and_not_written(store, tmp_path):
    append(store)
    other = Store.open(store.path, tmp_path / "none")
    assert other.read("HEAD").record.kind == "run"
    with pytest.raises(Trouble, match="no key of node-"):
        append(other)


def test_a_key_that_others_can_read_is_refused(store, tmp_path):
    (tmp_path / "keys" / store.node / "key").chmod(0o644)
    with pytest.raises(Trouble, match="others can read the key") as caught:
        append(store)
    assert caught.value.hints[0].startswith("chmod 600 ")


def test_a_part_with_another_name_is_refused_before_anything_is_signed(store):
    with pytest.raises(Trouble, match="cannot hold a part 'x'"):
        append(store, 1, {"x": b""})
    append(store)
    assert_sound(store, 2)


def test_two_processes_write_one_line(store, tmp_path):
    children = [
        fork(lambda n=n: [append(opened(tmp_path), n + i) for i in range(20)]) for n in (0, 50)
    ]
    assert [wait(child) for child in children] == [0, 0]
    assert [entry.record.seq for entry in store.log()] == list(range(40, -1, -1))
    assert {entry.record.sections["trace"]["seed"] for entry in list(store.log())[:-1]} == {
        *range(20),
        *range(50, 70),
    }
    assert_sound(store, 41)


def test_two_processes_found_one_store(tmp_path):
    children = [fork(lambda n=n: append(opened(tmp_path), n)) for n in range(4)]
    assert [wait(child) for child in children] == [0] * 4
    store = opened(tmp_path)
    assert len(store.nodes()) == 1
    assert_sound(store, 5)


def test_a_full_disk_is_trouble_and_leaves_nothing(store):
    append(store)
    before = snapshot(store.path)

    def write():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        with pytest.raises(Trouble, match=os.strerror(errno.EFBIG).lower()):
            append(store, 2, {"probes.bin": os.urandom(5000)})

    assert wait(fork(write)) == 0
    assert snapshot(store.path) == before
    append(store, 3)
    assert_sound(store, 3)


@pytest.mark.parametrize("closed", ["store.git", "keys"])
def test_a_read_only_folder_is_trouble_and_leaves_nothing(store, tmp_path, closed):
    append(store)
    for path in [tmp_path / closed, *(tmp_path / closed).rglob("*")]:
        path.chmod(0o500 if path.is_dir() else 0o400)
    if os.getuid() == 0:
        own_by_nobody(tmp_path)
        if not all(parent.stat().st_mode & 0o001 for parent in tmp_path.parents):
            pytest.skip("we are root, and nobody else can reach the folder of the tests")

    def write():
        if os.getuid() == 0:
            os.setuid(65534)
        with pytest.raises(Trouble) as caught:
            append(Store.open(store.path, tmp_path / "keys"), 2)
        assert str(caught.value).endswith("': permission denied")
        assert "\n" not in str(caught.value)

    assert wait(fork(write)) == 0
    assert not list(store.path.rglob("tmp*"))
    assert_sound(store, 2)


def own_by_nobody(folder):
    for path in [folder, *folder.rglob("*")]:
        os.chown(path, 65534, 65534)
    for parent in [Path.home(), *Path.home().parents, folder, *folder.parents]:
        parent.chmod(parent.stat().st_mode | 0o755) if "pytest" in str(parent) else None


def test_a_lock_file_left_on_the_branch_is_cleared(store):
    append(store)
    lock = store.path / f"refs/heads/node/{store.node}.lock"
    lock.touch()
    append(store, 2)
    assert not lock.exists()
    assert_sound(store, 3)


def test_an_object_under_the_id_of_another_is_not_believed(store):
    first, second = append(store), append(store, 2)
    place = store.path / "objects" / first[:2] / first[2:]
    place.chmod(0o644)
    place.write_bytes((store.path / "objects" / second[:2] / second[2:]).read_bytes())
    with pytest.raises(Trouble, match="is damaged: its contents have another id"):
        Store.open(store.path, store.path).read(first)  # the other one remembers it


def test_packed_and_collected_stores_go_on(store):
    append(store)
    git(store, "pack-refs", "--all")
    git(store, "repack", "-adq")
    append(store, 2)
    assert_sound(store, 3)


def snapshot(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def fork(work):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return child


def wait(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
