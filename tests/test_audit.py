"""Whole chains: what was replayed, grafted or downgraded, in little memory, and the command."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pygit2
import pytest

import chains
from commands import call
from forger import Forger, T
from llmtrace.store import canonical, forks, places
from llmtrace.store.chain import Store
from llmtrace.store.record import Record
from llmtrace.store.remotes import Remotes
from llmtrace.verify.audit import audit_chain, audit_commit, audit_new

ROOT = Path(__file__).parents[1]
STOLEN = "signed by another key"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A home with an empty store in it."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def store(place):
    folder = place / "llmtrace"
    return Store.open(folder / "store.git", folder / "keys", create=True, time=T)


@pytest.fixture
def forger(store):
    return Forger(store)


def publish(forger, node=None, tip=None):
    """Makes the chain a branch, as a fetch that did not audit would."""
    repository = pygit2.Repository(str(forger.store.path))
    name = f"refs/heads/node/{node or forger.node}"
    repository.references.create(name, tip or forger.tip, force=True)
    return forger.node


def first(forger, tip=None):
    """The first finding of a chain: at which commit from the tip on, part and reason."""
    tip = tip or forger.tip
    ids = [entry.id for entry in forger.store.log(tip)]
    for one, found in audit_chain(forger.store, tip):
        if found:
            return ids.index(one), found[0].part, found[0].reason
    return None


# Replayed, grafted, downgraded: what other chains of commits fell for


def test_an_old_tip_made_the_newest_again(forger):
    old = forger.add(forger.run(1))
    forger.add(forger.run(2))
    record = forger.store.read(old).record
    again = forger.write(record, parents=(forger.tip,))
    assert first(forger, again) == (0, "record.json", "link.seq is 1, its place in the chain 3")
    raw = forger.store.read(old).raw
    moved = forger.raw(raw.replace(forger.store.read(old).parents[0].encode(), forger.tip.encode()))
    assert forger.named(moved) == {"record.json", "signature"}


def test_a_chain_behind_another_identity(forger):
    """The records of one node after the identity of a second, signed by the second."""
    other = Forger(forger.store, seed=50)
    record = forger.run()
    grafted = other.write(record, parents=(other.tip,))
    reasons = {reason for _, reason in other.findings(grafted)}
    assert "link.node is not the digest of the chain's first record" in reasons
    assert "link.prev is not the digest of the record before" in reasons
    theirs = forger.write(record, parents=(other.tip,))  # and signed by the first
    assert ("signature", STOLEN) in forger.findings(theirs)


def test_a_record_moved_to_another_place_or_node(forger):
    one = forger.run(1)
    forger.add(forger.run(7))
    late = forger.write(one, parents=(forger.tip,))
    assert ("record.json", "link.seq is 1, its place in the chain 2") in forger.findings(late)
    other = Forger(forger.store, seed=50)
    record = other.run(1, node=forger.node)
    assert {"record.json"} == other.named(other.write(record))


@pytest.mark.parametrize("number", [0, 2, -1, True, "1", 1 << 60])
def test_a_format_that_is_not_ours(forger, number):
    sections = json.loads(forger.run().json)
    sections["link"]["format"] = number
    record = Record(sections, forger.run().parts)
    data = json.dumps(sections, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    record.__dict__["json"] = data
    files = {"record.json": data, **record.parts}
    found = dict(forger.findings(forger.write(record, files=files, message="run: x\n")))
    assert re.match(r"link.format cannot be|not canonical|an integer of", found["record.json"])
    assert "signature" not in found


def test_a_format_below_in_the_message_alone(forger):
    record = forger.run()
    message = record.message().replace("Format: 1", "Format: 0")
    assert forger.named(forger.write(record, message=message)) == {"message"}


def test_a_rotation_back_to_an_old_key(forger):
    forger.add(forger.rotation(1))
    forger.key = forger.keys[1]
    forger.add(forger.other("rotate", forger.announce(0)))
    assert first(forger)[1:] == (
        "chain",
        f"rotation '{forger.tip[:8]}' announces another key than was promised",
    )


def test_a_rotation_that_was_not_promised(forger):
    forger.add(forger.rotation(2))
    back, part, reason = first(forger)
    assert (back, part) == (0, "chain")
    assert "announces another key than was promised" in reason


def test_a_key_used_after_its_rotation(forger):
    forger.add(forger.rotation(1))
    forger.add(forger.run())
    assert first(forger) == (0, "signature", STOLEN)


def test_a_rotation_hidden_from_those_who_read_messages(forger):
    record = forger.rotation(1)
    forger.add(record, message=record.message().replace("Kind: rotate", "Kind: run"))
    assert first(forger)[:2] == (0, "message")
    forger.key = forger.keys[1]
    forger.add(forger.run())
    assert first(forger)[:2] == (1, "message")


def test_a_run_that_calls_itself_a_rotation(forger):
    record = forger.run()
    forger.add(record, message=record.message().replace("Kind: run", "Kind: rotate"))
    assert first(forger)[1:] == ("chain", f"rotation '{forger.tip[:8]}' is a record of kind 'run'")


def test_two_identities_in_one_chain(forger):
    section = {**forger.announce(2), "addresses": []}
    link = {"kind": "identity", "node": "", "seq": 0, "prev": "", "time": T}
    record = Record.of({"identity": section}, {}, link)
    reasons = {reason for _, reason in forger.findings(forger.write(record, parents=(forger.tip,)))}
    assert "link.seq is 0, its place in the chain 1" in reasons
    assert "link.node is not the digest of the chain's first record" in reasons


def test_a_broken_rotation_costs_no_second_walk(forger, monkeypatch):
    """All after it is not trusted, and what comes before it is not read again for each."""
    forger.add(forger.rotation(2))
    for number in range(40):
        forger.add(forger.run(number))
    reads = []
    read = forger.store.objects.read
    monkeypatch.setattr(
        forger.store.objects, "read", lambda *a, **k: reads.append(a) or read(*a, **k)
    )
    found = list(audit_chain(forger.store, forger.tip))
    assert [bool(findings) for _, findings in found] == [False] + [True] * 41
    assert len(reads) < 42 * 12


# Expiry


def test_a_key_signs_up_to_its_last_seq_and_not_further(store):
    forger = Forger(store, until=2)
    forger.add(forger.run(1))
    forger.add(forger.run(2))
    assert first(forger) is None
    forger.add(forger.run(3))
    late = "key expired: it may sign up to record 2, this is record 3"
    assert first(forger) == (0, "signature", late)
    assert forger.findings(forger.tip) == {("signature", late)}


def test_the_rotation_may_be_the_last_record_of_a_key_and_not_a_later_one(store):
    forger = Forger(store, until=1)
    forger.add(forger.rotation(1, until=3))
    forger.key = forger.keys[1]
    for number in range(2):
        forger.add(forger.run(number))
    assert first(forger) is None
    late = forger.write(forger.run(9))
    assert "key expired" in dict(forger.findings(late))["signature"]

    forger = Forger(store, until=1)
    forger.add(forger.run())
    forger.add(forger.rotation(1))
    forger.key = forger.keys[1]
    forger.add(forger.run())
    back, part, reason = first(forger)
    assert (back, part) == (1, "chain")
    assert "key expired: it may sign up to record 1, this is record 2" in reason


@pytest.mark.parametrize("until", [0, -1, "3", None, True, 1 << 53])
def test_until_is_a_later_seq(forger, until):
    link = {"kind": "identity", "node": "", "seq": 0, "prev": "", "time": T}
    sections = {"identity": {**forger.announce(0), "addresses": [], "until": until}}
    whole = {**sections, "link": {"format": 1, **link}, "parts": []}
    from llmtrace.store.schema import check_sections

    assert check_sections(whole) == ["identity.until is no seq after this one"]


# Revocations


def revocation(forger, *seqs, **other):
    digests = {entry.record.seq: entry.digest for entry in forger.store.log(forger.tip)}
    records = [{"seq": seq, "record": digests.get(seq, "ab" * 32)} for seq in seqs]
    return forger.other("revoke", {"records": records, "reason": "", **other})


def test_a_revocation_names_records_that_stand_before_it(forger):
    for number in range(6):
        forger.add(forger.run(number))
    forger.add(revocation(forger, 2, 5))
    assert first(forger) is None
    assert forger.findings(forger.tip) == set()


def test_a_revocation_of_what_the_chain_does_not_have(forger):
    for number in range(4):
        forger.add(forger.run(number))
    digest = forger.store.read(forger.tip).digest
    for seq in (1, 3):
        named = {"seq": seq, "record": digest}  # which stands at 4
        record = forger.other("revoke", {"records": [named], "reason": "x"})
        found = forger.findings(forger.write(record))
        assert found == {("record.json", f"revokes another record {seq} than the chain has")}
    forger.add(record)
    forger.add(forger.run(9))
    assert first(forger)[:2] == (1, "record.json")
    assert [bool(found) for _, found in audit_new(forger.store, None, forger.tip)][-2:] == [
        True,
        False,
    ]


@pytest.mark.parametrize(
    ("section", "reason"),
    [
        ({"records": []}, "revoke.records is no list of 1 to 256 records"),
        ({"records": [{"seq": 0, "record": "ab" * 32}]}, "revoke.records names no earlier record"),
        ({"records": [{"seq": 1, "record": "ab" * 32}]}, "revoke.records names no earlier record"),
        ({"records": [{"seq": 1}]}, "a record in revoke.records does not hold exactly record, seq"),
        ({"records": 3}, "revoke.records is no list of 1 to 256 records"),
        ({"reason": 3}, "revoke.reason is no text of at most 1024 characters"),
        ({"reason": "x" * 1025}, "revoke.reason is no text of at most 1024 characters"),
        ({"more": 1}, "section 'revoke' does not hold exactly reason, records"),
    ],
)
def test_a_revocation_has_one_form(forger, section, reason):
    from llmtrace.store.schema import check_sections

    whole = {
        "revoke": {"records": [{"seq": 1, "record": "ab" * 32}], "reason": ""} | section,
        "link": {"format": 1, **forger.link("revoke")},
        "parts": [],
    }
    assert reason in check_sections(whole)


# Streaming


def test_only_what_is_new_is_audited(forger):
    ids = [forger.tip, *(forger.add(forger.run(n)) for n in range(3))]
    forger.add(forger.rotation(1))
    forger.key = forger.keys[1]
    new = [forger.tip, forger.add(forger.run(5))]
    assert list(audit_new(forger.store, ids[-1], forger.tip)) == [(one, []) for one in new]
    assert list(audit_new(forger.store, forger.tip, forger.tip)) == []
    assert list(audit_new(forger.store, None, forger.tip, forger.node))[-1] == (new[-1], [])
    [(where, found)] = audit_new(forger.store, new[1], ids[1])
    assert where == ids[0]
    assert found[0] == ("chain", f"does not go on after '{new[1][:8]}'")
    answers = list(audit_new(forger.store, ids[-1], forger.tip, "a" * 52))
    assert [len(found) for _, found in answers] == [1, 0]
    assert "not the chain of" in answers[0][1][0].reason


def test_a_damaged_commit_is_a_finding_and_not_an_end(forger):
    ids = [forger.add(forger.run(n)) for n in range(4)]
    path = forger.store.path / "objects" / ids[1][:2] / ids[1][2:]
    other = forger.store.path / "objects" / ids[2][:2] / ids[2][2:]
    path.chmod(0o644)
    path.write_bytes(other.read_bytes())
    found = [(one, why[0]) for one, why in audit_chain(forger.store, ids[3]) if why]
    assert found
    assert any("damaged" in finding.reason for _, finding in found)


def test_memory_is_flat_in_the_length_of_a_chain(tmp_path):
    node, _ = chains.make(tmp_path / "long.git", 4000)
    command = [sys.executable, ROOT / "tests/bench_audit.py", "--one", tmp_path / "long.git", node]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, check=True, env=environment)
    said = json.loads(done.stdout)
    assert said["count"] == 4000
    assert said["bytes"] < 2 << 20  # caches of libgit2 alone would hold 7 MB by now


def test_one_record_far_in_a_chain_is_audited_by_reading_commits_only(tmp_path, monkeypatch):
    _, tip = chains.make(tmp_path / "long.git", 1000)
    store = Store.open(tmp_path / "long.git", tmp_path)
    read, kinds = store.objects.read, []
    monkeypatch.setattr(store.objects, "read", lambda *a, **k: kinds.append(a[1]) or read(*a, **k))
    assert audit_commit(store, store.read(tip)) == []
    assert kinds.count("commit") < 1100
    assert kinds.count("tree") < 10
    before = store.read(f"{tip}~200")
    kinds.clear()
    assert audit_commit(store, before) == []
    assert len(kinds) < 100


# Places kept on the disk


def counted(store, monkeypatch):
    read, kinds = store.objects.read, []
    monkeypatch.setattr(store.objects, "read", lambda *a, **k: kinds.append(a[1]) or read(*a, **k))
    return kinds


@pytest.fixture(scope="module")
def long_chain(tmp_path_factory):
    path = tmp_path_factory.mktemp("long") / "long.git"
    return path, *chains.make(path, 1200)


def opened_with(path, folder):
    store = Store.open(path, path)
    store.lineage.keep_in(folder)
    return store


def test_a_long_chain_is_walked_once_and_then_its_place_is_known(long_chain, tmp_path, monkeypatch):
    path, node, tip = long_chain
    folder = tmp_path / "cache" / "places"
    first = opened_with(path, folder)
    assert audit_commit(first, first.read(tip)) == []
    assert [one.name for one in folder.iterdir()] == [node]
    second = opened_with(path, folder)
    kinds = counted(second, monkeypatch)
    assert audit_commit(second, second.read(tip)) == []
    assert len(kinds) < 20
    assert second.lineage.after(f"{tip}") == Store.open(path, path).lineage.after(tip)


@pytest.mark.parametrize("harm", ["cut", "flipped", "empty", "foreign", "folder", "garbage"])
def test_a_harmed_file_of_places_is_as_none(long_chain, tmp_path, harm):
    path, node, tip = long_chain
    folder = tmp_path / "places"
    true = opened_with(path, folder).lineage.after(tip)
    file = folder / node
    data = file.read_bytes()
    liar = data.replace(b",1199]", b",1198]")
    assert liar != data
    harms = {
        "cut": data[:-30],
        "flipped": liar,
        "empty": b"",
        "foreign": b"x" * 100_000,
        "garbage": b'["a","b",3,4,5,6] ' + b"0" * 64,
    }
    file.unlink()
    if harm == "folder":
        file.mkdir()
    else:
        file.write_bytes(harms[harm])
    assert opened_with(path, folder).lineage.after(tip) == true


def test_places_are_few_and_a_folder_that_cannot_be_written_is_no_trouble(tmp_path):
    place = places.Place("a" * 52, bytes(32), "ab" * 32, None, 0)
    for number in range(3 * places.LINES):
        places.save(tmp_path, f"{number:040x}", place._replace(seq=number))
    kept = places.load(tmp_path, place.node)
    assert {one.seq for one in kept.values()} == {*range(2 * places.LINES, 3 * places.LINES)}
    assert (tmp_path / place.node).stat().st_size < 12_000
    (tmp_path / "file").write_text("")
    places.save(tmp_path / "file" / "below", "00" * 20, place)
    assert places.load(tmp_path / "file" / "below", place.node) == {}


def test_a_whole_audit_begins_at_the_identity_whatever_is_kept(long_chain, tmp_path):
    path, node, tip = long_chain
    folder = tmp_path / "places"
    lie = places.Place("b" * 52, bytes(32), "ab" * 32, None, 7)
    store = Store.open(path, path)
    middle = store.read(f"{tip}~600").id
    places.save(folder, middle, lie._replace(node=node))
    assert len(list(audit_chain(opened_with(path, folder), f"node/{node}"))) == 1200
    assert not any(found for _, found in audit_chain(opened_with(path, folder), f"node/{node}"))


# The command


def test_a_store_without_a_chain_is_trouble(place, tmp_path):
    subprocess.run(["git", "init", "-q", "--bare", tmp_path / "empty.git"], check=True)
    for arguments in ([], ["--json"]):
        said = call("audit", "--store", tmp_path / "empty.git", *arguments)
        assert said.status == 4
        assert "holds no chain" in said.err
    said = call("audit", "--store", tmp_path / "none.git")
    assert (said.status, said.out) == (4, "")


def test_one_line_a_chain(forger, store):
    forger.add(forger.run())
    node = publish(forger)
    said = call("audit")
    own, theirs = f"node/{store.node} 1 records self", f"node/{node} 2 records unknown"
    assert (said.status, said.err) == (0, "")
    assert sorted(said.lines) == sorted([f"sound {own}", f"sound {theirs}"])
    Remotes.open(store.path).add("friend", "https://example.org/store.git", [node])
    for word in (node, node[:8], f"node/{node}", "friend"):
        assert call("audit", word).lines == [f"sound node/{node} 2 records friend"]
    assert call("audit", "self").lines == [f"sound {own}"]
    assert call("audit", "nobody").status == 4
    (told, end) = call("audit", "friend", "--json").objects
    assert told["findings"] == told["forks"] == []
    assert (told["verdict"], told["records"], told["tip"]) == ("sound", 2, forger.tip)
    assert (told["names"], told["own"]) == (["friend"], False)
    assert end == {"v": 1, "type": "end", "status": 0, "sound": 1}


def test_the_first_finding_is_told_and_the_others_on_request(forger):
    record = forger.run()
    files = {"record.json": record.json, **record.parts, "prompt.txt": b"other words!"}
    bad = forger.add(record, files=files)
    for number in range(120):
        forger.key = forger.keys[3]
        forger.add(forger.run(number))
    node = publish(forger)
    said = call("audit", node)
    why = "prompt.txt: its BLAKE3 is not the declared one"
    assert (said.status, said.err) == (1, "")
    assert said.lines == [f"invalid node/{node} {bad} {why}"]
    assert len(call("audit", "-v", node).err.splitlines()) == 100
    told, end = call("audit", "--json", node).objects
    assert told["findings"][0] == {
        "commit": bad,
        **dict(zip(("part", "reason"), why.split(": "), strict=True)),
    }
    assert (len(told["findings"]), told["more"], told["records"]) == (100, 22, 122)
    assert (end["status"], end["invalid"]) == (1, 1)


def test_words_of_others_are_escaped(forger):
    forger.add(forger.run(), author="\x1b[31m <x@y>")
    said = call("audit", publish(forger))
    assert said.status == 1
    assert "\x1b" not in said.out
    assert "author: '\\x1b[31m <x@y> 1700000001 +0000' is not" in said.out


def test_a_chain_whose_beginning_is_missing_is_invalid(forger):
    one = forger.write(forger.run(), parents=("1" * 40,))
    said = call("audit", publish(forger, tip=one))
    assert said.lines == [
        f"invalid node/{forger.node} {'1' * 40} chain: object '11111111' is missing"
    ]
    assert said.status == 1


def test_a_head_that_names_nothing_is_trouble(forger, store):
    publish(forger)
    own = store.node
    (store.path / "refs/heads/node" / own).unlink()
    said = call("audit")
    assert said.status == 4
    assert said.lines == [f"sound node/{forger.node} 1 records unknown"]
    assert f"HEAD names 'node/{own}', which is not in the store" in said.err
    assert call("audit", forger.node).status == 0


def test_branches_that_are_no_chains_are_named(forger, store):
    repository = pygit2.Repository(str(store.path))
    me = pygit2.Signature("me", "me@here")
    tree = repository.TreeBuilder().write()
    repository.create_commit("refs/heads/main", me, me, "foreign", tree, [])
    repository.references.create("refs/heads/theirs", forger.tip)
    said = call("audit")
    assert said.status == 0
    assert said.lines == [f"sound node/{store.node} 1 records self"]
    assert "the branch 'main' is no chain, so it was not audited" in said.err
    assert f"'theirs' holds a chain, but not under its name 'node/{forger.node}'" in said.err


def fork(forger):
    """Two signed records with one seq; gives both commits."""
    forger.add(forger.run(1))
    before = (forger.tip, forger.record)
    one = forger.add(forger.run(2))
    forger.tip, forger.record = before
    return one, forger.add(forger.run(3))


def test_a_fork_in_another_branch_is_found(forger, store):
    one, two = fork(forger)
    node = publish(forger, tip=one)
    assert call("audit", node).status == 0
    repository = pygit2.Repository(str(store.path))
    repository.references.create("refs/heads/copy", two)
    said = call("audit", node)
    assert (said.status, said.lines) == (1, [f"forked node/{node} seq 2"])


def test_a_kept_proof_is_told_and_a_file_is_checked_without_a_store(forger, store, tmp_path):
    proof = forks.prove(store, *fork(forger))
    assert forks.keep(store, proof)
    line = f"forked node/{forger.node} seq 2"
    said = call("audit")
    assert (said.status, said.lines[-1 * (forger.node > store.node)]) == (1, line)
    publish(forger)
    said = call("audit", forger.node, "--json")
    assert (said.objects[0]["verdict"], said.objects[0]["forks"]) == ("forked", [2])
    assert said.objects[0]["records"] == 3

    file = tmp_path / "fork.json"
    file.write_bytes(proof.data)
    shutil.rmtree(store.path)
    said = call("audit", "--proof", file)
    assert (said.status, said.lines) == (1, [line])
    file.write_bytes(proof.data.replace(b'"format":1', b'"format":2'))
    said = call("audit", "--proof", file)
    assert (said.status, said.out) == (4, "")
    assert "proves no fork: its format is not 1" in said.err
    assert call("audit", "--proof", tmp_path / "none").status == 4
    assert call("audit", "--proof", file, "self").status == 2


def test_a_kept_proof_that_proves_nothing_convicts_nobody(forger, store):
    publish(forger)
    repository = pygit2.Repository(str(store.path))
    blob = repository.create_blob(canonical.encode({"format": 1}))
    repository.references.create(f"{forks.REFS}{forger.node}", blob)
    said = call("audit", forger.node)
    assert (said.status, said.lines) == (0, [f"sound node/{forger.node} 1 records unknown"])
    assert "proves nothing" in said.err
