"""Proofs of forks: what convicts the holder of a key, from its bytes alone."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtrace.errors import Trouble
from llmtrace.store import canonical, forks
from llmtrace.store.chain import Store
from llmtrace.store.forks import Proof
from llmtrace.store.record import Record, node_id
from test_store import append, git
from test_store_audit import Forger

T = 1_700_000_000


def twins(folder: Path, rotations: int = 0) -> tuple[Store, Store]:
    """One node twice: a store and its keys, copied after a run and some rotations."""
    for name in ("one", "two"):
        if name == "one":
            store = Store.open(folder / "one/s.git", folder / "one/keys", create=True, time=T)
            append(store)
            for _ in range(rotations):
                store.rotate(T + 9)
        else:
            shutil.copytree(folder / "one", folder / "two")
    return tuple(  # type: ignore[return-value]
        Store.open(folder / name / "s.git", folder / name / "keys", create=True)
        for name in ("one", "two")
    )


def forked(folder: Path, rotations: int = 0) -> tuple[Store, str, str]:
    """A store that has both commits of a fork, and their ids."""
    one, two = twins(folder, rotations)
    ids = append(one, 7), append(two, 8)
    git(one, "fetch", "-q", str(two.path), f"{ids[1]}:refs/heads/other")
    return one, *ids


@pytest.fixture(scope="module", params=[0, 1, 2], ids="{} rotations".format)
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Store, str, str, int]:
    return *forked(tmp_path_factory.mktemp("forks"), request.param), request.param


@pytest.fixture(scope="module")
def proof(case: tuple[Store, str, str, int]) -> Proof:
    return forks.prove(*case[:3])


def test_two_records_for_one_seq_prove_a_fork(
    case: tuple[Store, str, str, int], proof: Proof
) -> None:
    store, one, two, rotations = case
    assert proof.node == store.node
    assert proof.seq == 2 + rotations
    digests = {store.read(commit).digest for commit in (one, two)}
    assert set(proof.records) == digests
    assert forks.check(proof.data) == proof
    assert forks.prove(store, two, one) == proof
    assert len(proof.data) <= (4096 if rotations < 2 else 5120)


def test_it_is_what_the_signatures_say(case: tuple[Store, str, str, int], proof: Proof) -> None:
    """By other eyes: both commits are git's own bytes, and ssh-keygen knows who signed them."""
    store, one, two, _ = case
    said = json.loads(proof.data)
    raw = {git(store, "cat-file", "commit", commit) for commit in (one, two)}
    assert set(said["commits"]) == raw
    (store.path / "signers").write_text(store.allowed_signers(store.node))
    for commit in (one, two):
        verified = git(
            *(store, "-c", f"gpg.ssh.allowedSignersFile={store.path}/signers"),
            *("-c", "gpg.format=ssh", "verify-commit", "-v", commit),
        )
        assert 'Good "git" signature' in verified
        assert f"Llmtrace-Seq: {proof.seq}" in verified


def test_every_changed_byte_makes_it_nothing(proof: Proof) -> None:
    step = 1 if len(proof.data) < 3000 else 3
    for place in range(0, len(proof.data), step):
        for bit in (1, 32):
            changed = bytearray(proof.data)
            changed[place] ^= bit
            assert isinstance(forks.check(bytes(changed)), str), f"byte {place}"


def test_a_byte_more_or_less_makes_it_nothing(proof: Proof) -> None:
    data = proof.data
    for place in range(0, len(data), 7):
        assert isinstance(forks.check(data[:place] + data[place + 1 :]), str)
        assert isinstance(forks.check(data[:place] + b"0" + data[place:]), str)
    assert isinstance(forks.check(data[:-1]), str)
    assert isinstance(forks.check(data + b"\n"), str)


def test_it_is_checked_fast_and_without_any_store(proof: Proof, tmp_path: Path) -> None:
    forks.check(proof.data)
    start = time.process_time()
    for _ in range(10):
        forks.check(proof.data)
    assert (time.process_time() - start) / 10 < 0.1
    (tmp_path / "proof").write_bytes(proof.data)
    code = (
        "import sys; from llmtrace.store import forks; p = forks.check(open('proof','rb').read())"
    )
    code += "; print(p.node, p.seq, 'pygit2' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [proof.node, str(proof.seq), "False"]


def changed(proof: Proof, **other: Any) -> bytes:
    return canonical.encode({**json.loads(proof.data), **other})


def test_other_proofs_than_of_a_fork_are_refused(
    case: tuple[Store, str, str, int], proof: Proof
) -> None:
    store, one, two, rotations = case
    said = json.loads(proof.data)
    commits, identity = said["commits"], said["identity"]
    before = git(store, "cat-file", "commit", f"{one}~1")
    refused: dict[bytes, str] = {
        b"": "",
        b"{}": "a proof holds exactly",
        b"[" * 99: "",
        bytes(forks.LIMIT + 1): "a proof has at most",
        changed(proof, format=2): "its format is not 1",
        changed(proof, format=True): "its format is not 1",
        changed(proof, more=1): "a proof holds exactly",
        changed(proof, commits=commits[::-1]): "sorted by digest",
        changed(proof, commits=commits[:1] * 2): "not two different records",
        changed(proof, commits=commits * 2): "not two commits",
        changed(proof, commits=[1, 2]): "a commit is no ASCII text",
        changed(proof, commits=[commits[0], before]): "",
        changed(proof, rotations=[{}]): "a rotation holds exactly",
        changed(proof, rotations={}): "'rotations' is no list",
        changed(proof, identity={}): "malformed record",
        changed(proof, identity={**identity, "addresses": []}): "malformed record",
    }
    if rotations:
        refused[changed(proof, rotations=said["rotations"][1:])] = "" if rotations > 1 else "signed"
        refused[changed(proof, rotations=said["rotations"] * 2)] = "not in order"
    for data, why in refused.items():
        found = forks.check(data)
        assert isinstance(found, str), data[:200]
        assert why in found
        assert "\n" not in found
    with pytest.raises(Trouble, match="prove no fork: not two different records"):
        forks.prove(store, one, one)
    with pytest.raises(Trouble, match=r"prove no fork: (not two records of one seq|signed)"):
        forks.prove(store, one, store.read(f"{two}~1").id)


def test_a_key_that_is_not_in_force_convicts_nobody(tmp_path: Path) -> None:
    """Whoever got hold of the old key after a rotation can sign, but not for the node."""
    store, two = twins(tmp_path)
    append(two, 3)
    store.rotate(T + 9)
    mine = append(store, 7)
    late = append(two, 8)
    git(store, "fetch", "-q", str(two.path), f"{late}:refs/heads/other")
    assert store.read(mine).record.seq == store.read(late).record.seq == 3
    with pytest.raises(Trouble, match="prove no fork: signed by another key"):
        forks.prove(store, mine, late)
    rotation, other = store.read(f"{mine}~1").id, store.read(f"{late}~1").id
    assert forks.prove(store, rotation, other).seq == 2  # which the old key did sign twice


def forger_with(folder: Path, **more: Any) -> Forger:
    """A chain written by hand; its identity may say more."""
    forger = Forger(Store.open(folder / "s.git", folder / "keys", create=True, time=T))
    link = {**forger.record.link, "format": 1}
    forger.record = Record.of(
        {"identity": {**forger.record.sections["identity"], **more}}, {}, link
    )
    forger.node = node_id(forger.record.digest)
    forger.tip = forger.write(forger.record)
    return forger


def test_a_key_convicts_only_for_the_seqs_at_which_it_was_in_force(tmp_path: Path) -> None:
    forger = forger_with(tmp_path / "later")
    forger.add(forger.run(1))
    forger.add(Record.of({"rotate": forger.announce(1)}, {}, forger.link("rotate")))
    forger.key = forger.keys[1]
    for seq, said in ((3, None), (2, "in force"), (1, "in force")):
        pair = [forger.write(forger.run(number, seq=seq)) for number in (1, 2)]
        if said is None:
            assert forks.prove(forger.store, *pair).seq == seq
        else:
            with pytest.raises(Trouble, match=said):
                forks.prove(forger.store, *pair)

    forger = forger_with(tmp_path / "until", until=1)
    for seq, said in ((1, None), (2, "in force")):
        pair = [forger.write(forger.run(number, seq=seq)) for number in (1, 2)]
        if said is None:
            assert forks.prove(forger.store, *pair).seq == seq
            forger.add(forger.run(3))
        else:
            with pytest.raises(Trouble, match=said):
                forks.prove(forger.store, *pair)
    forger.add(Record.of({"rotate": forger.announce(1)}, {}, forger.link("rotate")))
    forger.key = forger.keys[1]
    pair = [forger.write(forger.run(number)) for number in (1, 2)]
    with pytest.raises(Trouble, match="not in order"):  # the old key might not sign record 2
        forks.prove(forger.store, *pair)


def test_signed_words_that_are_no_record_prove_nothing(tmp_path: Path) -> None:
    """The key signs a message that looks like a record's but is not what llmtrace writes."""
    forger = forger_with(tmp_path)
    good = forger.write(forger.run(1))
    assert forks.prove(forger.store, good, forger.write(forger.run(2))).seq == 1
    record = forger.run(3)
    for message in (
        record.message() + "More: 1\n",
        record.message().replace("run: ", "ran: "),
        record.message().replace("run: tiny", "run: ti ny"),
        record.message().replace("Seq: 1", "Seq: 01"),
        record.message().replace("Kind: run", "Kind: rune"),
        record.message().replace("Format: 1", "Format: 2"),
        record.message().replace("Kind: run", "Kind: pay"),
    ):
        with pytest.raises(Trouble, match="prove no fork: a commit"):
            forks.prove(forger.store, good, forger.write(record, message=message))
    for author in ("x <y>", f"{record.author} 1", record.author.upper()):
        with pytest.raises(Trouble, match="prove no fork: a commit is not of its node"):
            forks.prove(forger.store, good, forger.write(record, author=author))


@settings(max_examples=200)
@given(
    st.binary(max_size=300)
    | st.recursive(
        st.none() | st.integers(-9, 9) | st.text(max_size=9),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["format", "identity", "rotations", "commits", "link", "parts"]),
                inner,
                max_size=6,
            )
        ),
    ).map(canonical.encode)
)
def test_any_bytes_give_a_reason_and_no_exception(data: bytes) -> None:
    assert isinstance(forks.check(data), str)


@settings(max_examples=100)
@given(data=st.data())
def test_any_value_in_any_place_gives_a_reason(proof: Proof, data: st.DataObject) -> None:
    """A proof of which one value, somewhere, is another."""
    value = json.loads(proof.data)
    holder: Any = value
    while True:
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(holder[key], dict | list) or not holder[key]:
            break
        holder = holder[key]
    other = st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=5)
    holder[key] = data.draw(
        (other | other.map(lambda one: [one])).filter(lambda o: o != holder[key])
    )
    assert isinstance(forks.check(canonical.encode(value)), str)


def test_the_proof_of_the_lowest_seq_is_kept_and_git_is_content(tmp_path: Path) -> None:
    one, two = twins(tmp_path)
    first = [append(store, 7 + n) for n, store in enumerate((one, two))]
    second = [append(store, 9 + n) for n, store in enumerate((one, two))]
    git(one, "fetch", "-q", str(two.path), f"{second[1]}:refs/heads/other")
    late, early = forks.prove(one, *second), forks.prove(one, *first)
    assert (late.seq, early.seq) == (3, 2)
    assert list(forks.listed(one)) == []
    assert forks.kept(one, one.node) is None
    assert [forks.keep(one, proof) for proof in (late, late, early, late)] == [
        *(True, False, True, False)
    ]
    assert list(forks.listed(one)) == [(one.node, early)]
    assert forks.kept(one, one.node) == early
    ref = f"refs/llmtrace/fork/{one.node}"
    assert git(one, "cat-file", "blob", ref).encode() == early.data
    assert git(one, "fsck", "--strict", "--no-dangling") == ""
    subprocess.run(["git", "init", "-q", "--bare", tmp_path / "bare"], check=True)
    git(one, "push", "-q", str(tmp_path / "bare"), ref)
    assert list(forks.listed(Store.open(tmp_path / "bare", tmp_path))) == [(one.node, early)]


def test_what_is_kept_under_a_wrong_name_is_listed_with_the_reason(tmp_path: Path) -> None:
    store, one, two = forked(tmp_path)
    proof = forks.prove(store, one, two)
    forks.keep(store, proof)
    blob = git(store, "rev-parse", f"refs/llmtrace/fork/{store.node}").strip()
    other = "a" * 52
    git(store, "update-ref", f"refs/llmtrace/fork/{other}", blob)
    git(store, "update-ref", "refs/llmtrace/fork/x", blob)
    git(store, "update-ref", "refs/llmtrace/fork/" + "b" * 51 + "a", one)
    listed = dict(forks.listed(store))
    assert listed.pop(store.node) == proof
    assert listed == {
        other: f"a proof against node-{store.node[:8]}",
        "x": "its name is no node",
        "b" * 51 + "a": f"object '{one[:8]}' is no blob",
    }
    assert forks.keep(store, proof._replace(node=other))  # what holds takes the place


def test_an_identity_may_be_large_and_still_convicts(tmp_path: Path) -> None:
    forger = forger_with(tmp_path, addresses=["ü" * 1000] * 64)
    pair = [forger.write(forger.run(n)) for n in (1, 2)]
    proof = forks.prove(forger.store, *pair)
    assert 128_000 < len(proof.data) < forks.LIMIT
    assert proof.node == forger.node
