"""Keys and revocations from the command line: what they append, and who hears of it."""

import base64
import json
import subprocess

import pytest
from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from commands import answer, call, make_runs
from commands import home as home_of
from forger import Forger, T
from llmtrace.errors import Trouble
from llmtrace.store.chain import Event, Store
from llmtrace.verify.audit import audit_chain
from llmtrace.verify.revocation import Revocations, revocation


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    folder = tmp_path / "llmtrace"
    return Store.open(folder / "store.git", folder / "keys", create=True, time=T)


def append(store, number=1):
    parts = {"prompt.txt": b"words %d" % number}
    return store.append_run({"seed": str(number)}, {}, {"model": "tiny"}, parts, T + number)


def raw_key(line):
    """The 32 bytes in a line of ssh-ed25519, read without our own code."""
    blob = base64.b64decode(line.split()[1])
    assert blob[:19] == b"\0\0\0\x0bssh-ed25519\0\0\0\x20"
    Ed25519PublicKey.from_public_bytes(blob[19:])
    return blob[19:]


def test_show_tells_who_signs_and_who_will(store):
    append(store)
    told = answer("key", "show")
    identity = store.read("HEAD~1").record.sections["identity"]
    assert (told["node"], told["seq"], told["until"]) == (store.node, 1, None)
    assert raw_key(told["public_key"]) == base64.b64decode(identity["public_key"])
    assert told["next"] == identity["next"]
    lines = call("key", "show").lines
    assert [line.split()[0] for line in lines] == ["node", "key", "next", "seq"]
    assert lines[0].split()[1] == store.node


def test_rotation_puts_the_promised_key_in_force(store):
    before = answer("key", "show")
    commit = call("key", "rotate").lines[0]
    after = answer("key", "show")
    assert store.read(commit).record.kind == "rotate"
    assert blake3(raw_key(after["public_key"])).hexdigest() == before["next"]
    assert after["next"] != before["next"]
    assert after["seq"] == 1
    append(store)
    assert answer("key", "rotate")["seq"] == 3
    assert [found for _, found in audit_chain(store, f"node/{store.node}")] == [[]] * 4


def test_no_key_here_is_trouble(store, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "other"))
    assert call("key", "show").status == 0
    assert call("key", "list").out == ""
    said = call("key", "rotate")
    assert (said.status, said.out) == (4, "")
    assert "no key of node-" in said.err


def test_an_expiring_key_leaves_room_for_the_rotation_and_nothing_else(store):
    append(store)
    assert call("key", "rotate", "--until", "5").status == 0  # which is record 2
    assert answer("key", "show")["until"] == 5
    append(store, 3)
    with pytest.raises(Trouble, match="may sign up to record 5: the next has to be a rotation"):
        store.append_all([Event("run", *run(n)) for n in (4, 5)])
    append(store, 4)
    for work in (lambda: append(store, 5), lambda: store.append("revoke", revoked(store), {}, T)):
        with pytest.raises(Trouble, match="may sign up to record 5") as caught:
            work()
        assert caught.value.hints == ("llmtrace key rotate",)
    assert call("key", "list").lines == [f"node/{store.node} 4 self"]
    assert call("key", "rotate").status == 0
    assert answer("key", "show")["until"] is None
    append(store, 6)
    assert [found for _, found in audit_chain(store, f"node/{store.node}")] == [[]] * 7


def run(number):
    sections = {"trace": {"seed": str(number)}, "probes": {}, "attested": {"model": "tiny"}}
    return sections, {}, T


def revoked(store):
    return {
        "revoke": {"records": [{"seq": 1, "record": store.read("HEAD~3").digest}], "reason": ""}
    }


def test_the_first_key_can_be_limited_too(tmp_path):
    store = Store.open(tmp_path / "s.git", tmp_path / "k", create=True, time=T, until=2)
    assert store.lineage.after(store.read("HEAD").id).until == 2
    append(store)
    with pytest.raises(Trouble, match="up to record 2"):
        append(store, 2)
    store.rotate(T, 9)
    assert (
        Store.open(tmp_path / "s.git", tmp_path / "k").lineage.after(store.read("HEAD").id)[3] == 9
    )


def test_init_limits_the_first_key_of_a_new_node_only(store, tmp_path):
    path = tmp_path / "limited.git"
    assert call("init", "--key-until", "3", "--store", path).status == 0
    assert answer("key", "show", "--store", path)["until"] == 3
    for _ in range(2):  # the second changes nothing either
        said = call("init", "--key-until", "9", "--store", path)
        assert (said.status, said.out) == (4, "")
        assert "has a node already" in said.err
    assert answer("key", "show", "--store", path)["until"] == 3


@pytest.mark.parametrize("until", ["0", "1", "2", "x"])
def test_a_limit_that_no_record_could_keep_is_refused(store, until):
    append(store)
    said = call("key", "rotate", "--until", until)
    assert (said.status, said.out) == (2, "")
    assert answer("key", "show")["seq"] == 1


def test_export_gives_every_key_with_the_records_that_it_signed(store, tmp_path):
    append(store)
    call("key", "rotate")
    forger = Forger(store)
    forger.add(forger.run())
    own = call("key", "export", "self")
    assert len(own.lines) == 2
    assert own.out == store.allowed_signers(store.node)
    told = call("key", "export", "self", "--json").objects[:-1]
    assert [(one["first"], one["last"]) for one in told] == [(0, 2), (3, None)]
    assert raw_key(told[1]["public_key"]) == store.lineage.after(store.read("HEAD").id).key
    branch = store.path / "refs/heads/node" / forger.node
    branch.write_text(f"{forger.tip}\n")
    assert len(call("key", "export").lines) == 3
    (line,) = call("key", "export", forger.node[:9]).lines
    assert line.startswith(f'{forger.node}@llmtrace.invalid namespaces="git" ssh-ed25519 ')
    subprocess.run(["git", "init", "-q", "--bare", tmp_path / "e.git"], check=True)
    assert call("key", "export", "--store", tmp_path / "e.git").status == 4


def test_keys_are_listed_whether_their_store_is_open_or_not(store, tmp_path):
    path = tmp_path / "second.git"
    node = call("init", "--store", path).lines[0]
    lines = {f"node/{store.node} 0 self", f"node/{node} 0"}
    assert set(call("key", "list").lines) == lines
    assert set(call("key", "list", "--store", path).lines) == {
        f"node/{store.node} 0",
        f"node/{node} 0 self",
    }


# Revocations


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    with home_of(tmp_path_factory.mktemp("revoke")) as folder:
        yield folder


@pytest.fixture(scope="module")
def made(place):
    """Runs of a real model, of which two are revoked at once, by the names of the runs."""
    runs = {name: one["commit"] for name, one in make_runs(place).items()}
    said = call("revoke", runs["greedy"], runs["drawn"], "--reason", "wrong \x1b[31m model")
    assert (said.status, said.err) == (0, "")
    return runs | {"revoke": said.lines[0]}


def opened(place):
    return Store.open(
        place / "data/llmtrace/store.git", place / "config/llmtrace/keys", create=True
    )


def test_a_revocation_is_a_record_that_names_others(place, made):
    store = opened(place)
    record = store.read(made["revoke"]).record
    named = record.sections["revoke"]["records"]
    assert record.kind == "revoke"
    assert [one["seq"] for one in named] == [1, 3]
    assert [one["record"] for one in named] == [
        store.read(made[n]).digest for n in ("greedy", "drawn")
    ]
    assert call("audit").lines == [f"sound node/{store.node} 8 records self"]


def test_log_and_show_tell_of_it_and_columns_stay(made):
    words = {line.split()[0]: line.split()[1:] for line in call("log").lines}
    assert words[made["greedy"]][-1] == words[made["drawn"]][-1] == "revoked"
    assert [len(words[made[name]]) for name in ("greedy", "again", "drawn")] == [7, 6, 7]
    told = {one["commit"]: one["revoked"] for one in call("log", "--json").objects[:-1]}
    assert told[made["again"]] is None
    assert told[made["greedy"]]["commit"] == made["revoke"]
    assert told[made["greedy"]]["seq"] == 7
    (line,) = (x for x in call("show", made["greedy"]).lines if x.startswith("revoked"))
    assert line.split(maxsplit=1)[1] == f"by {made['revoke'][:8]}, seq 7: wrong \\x1b[31m model"
    assert not any(x.startswith("revoked") for x in call("show", made["again"]).lines)
    assert answer("show", made["greedy"])["revoked"]["reason"] == "wrong \x1b[31m model"
    assert answer("show", made["again"])["revoked"] is None


def test_verify_replays_a_revoked_record_and_says_that_it_is(made):
    lines = call("verify", "-d", "cpu", made["greedy"], made["again"])
    assert lines.status == 0
    assert lines.lines == [
        f"verified {made['greedy']} revoked: wrong \\x1b[31m model",
        f"verified {made['again']}",
    ]
    revoked, other, _ = call("verify", "-d", "cpu", made["greedy"], made["again"], "--json").objects
    assert revoked["revoked"]["commit"] == made["revoke"]
    assert (revoked["reason"], other["revoked"]) == ("", None)


def test_a_range_that_ends_before_the_revocation_tells_of_it(made):
    lines = call("log", f"{made['again']}..{made['drawn']}").lines
    assert [line.split()[-1] for line in lines] == ["revoked"]


def test_the_bits_stay_verified(made):
    said = call("verify", "-d", "cpu", made["greedy"])
    assert said.status == 0
    assert said.out.startswith(f"verified {made['greedy']}")


@pytest.mark.parametrize(
    ("commit", "said"),
    [
        ("greedy", "is revoked already, by"),
        ("revoke", "is of kind 'revoke', which cannot be revoked"),
        ("identity", "is of kind 'identity', which cannot be revoked"),
        ("nowhere", "no record 'nowhere'"),
    ],
)
def test_what_cannot_be_revoked(place, made, commit, said):
    store = opened(place)
    before = store.read("HEAD").id
    made = made | {"identity": store.read(f"{made['greedy']}~").id}
    refused = call("revoke", made.get(commit, commit))
    assert (refused.status, refused.out) == (4, "")
    assert said in refused.err
    assert store.read("HEAD").id == before


def test_only_its_own_node_revokes_a_record(place, made):
    store = opened(place)
    forger = Forger(store)
    theirs = forger.add(forger.run())
    refused = call("revoke", theirs)
    assert "is of another chain: only its own node can revoke it" in refused.err
    ours = store.read(made["again"])
    named = [{"seq": 1, "record": ours.digest}]
    bad = forger.add(forger.other("revoke", {"records": named, "reason": ""}))
    (store.path / "refs/heads/node" / forger.node).write_text(f"{bad}\n")
    assert revocation(store, ours) is None
    assert revocation(store, store.read(theirs)) is None
    assert call("audit", forger.node).status == 1
    long = call("revoke", made["again"], "--reason", "x" * 1025)
    assert (long.status, long.out) == (2, "")


def test_only_a_sound_revocation_counts_and_the_first_is_told(store):
    forger = Forger(store)
    target = forger.add(forger.run())
    digest = store.read(target).digest
    record = forger.other("revoke", {"records": [{"seq": 1, "record": digest}], "reason": "why"})
    branch = store.path / "refs/heads/node" / forger.node
    branch.parent.mkdir(exist_ok=True)
    good_key, forger.key = forger.key, forger.keys[3]
    branch.write_text(f"{forger.write(record)}\n")
    assert revocation(store, store.read(target)) is None
    forger.key = good_key
    first = forger.add(record)
    forger.add(forger.other("revoke", {"records": [{"seq": 1, "record": digest}], "reason": "2"}))
    for number in range(3):
        forger.add(forger.run(number))
    branch.write_text(f"{forger.tip}\n")
    revocations = Revocations(store)
    assert revocations.of(store.read(forger.tip)) is None
    found = revocations.of(store.read(target))
    assert (found.commit, found.seq, found.reason) == (first, 2, "why")
    assert Revocations(store).of(store.read(target)) == found


def test_only_commits_are_read_to_find_one(store, monkeypatch):
    target = append(store)
    for number in range(30):
        append(store, number + 2)
    entry = store.read(target)
    assert entry.record.seq == 1
    read, kinds = store.objects.read, []
    monkeypatch.setattr(store.objects, "read", lambda *a, **k: kinds.append(a[1]) or read(*a, **k))
    assert revocation(store, entry) is None
    assert set(kinds) == {"commit"}


def test_json_of_a_revocation(store):
    commit = append(store)
    told = answer("revoke", commit)
    digest = store.read(commit).digest
    assert told["records"] == [{"seq": 1, "record": digest}]
    assert (told["node"], told["reason"]) == (store.node, "")
    assert store.read("HEAD").id == told["commit"]
    assert json.loads(store.read("HEAD").json)["revoke"] == {
        "reason": "",
        "records": told["records"],
    }
