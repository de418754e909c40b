"""Audit: whatever is changed in a record or a chain is found, and named."""

import json
import subprocess

import pygit2
import pytest
from blake3 import blake3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forger import BLOB, TREE, Forger, T
from llmtrace.errors import Trouble
from llmtrace.store import canonical
from llmtrace.store.chain import Store
from llmtrace.store.entry import Entry
from llmtrace.store.record import Record
from llmtrace.verify.audit import audit_chain, audit_commit


@pytest.fixture
def forger(tmp_path):
    return Forger(Store.open(tmp_path / "store.git", tmp_path / "keys", create=True, time=T))


def test_a_sound_chain_has_no_findings(forger):
    ids = [forger.tip, *(forger.add(forger.run(n)) for n in range(3))]
    assert list(audit_chain(forger.store, ids[-1])) == [(one, []) for one in ids]
    assert forger.findings(ids[2]) == set()


def test_every_changed_byte_of_every_file_is_found_and_its_part_named(forger):
    """Under a new tree, in turns with the old signature and without any."""
    record = forger.run()
    original = forger.store.read(forger.add(record))
    files = {"record.json": record.json, **record.parts}
    ids = {name: forger.odb.write(BLOB, data).raw for name, data in files.items()}
    for name, data in files.items():
        for place in range(len(data)):
            changed = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
            blobs = ids | {name: forger.odb.write(BLOB, changed).raw}
            entries = (f"100644 {one}\0".encode() + blobs[one] for one in sorted(blobs))
            tree = str(forger.odb.write(TREE, b"".join(entries)))
            raw = original.payload if place % 2 else original.raw
            forged = forger.raw(raw.replace(original.commit.tree.encode(), tree.encode()))
            assert {name, "signature"} <= forger.named(forged), f"{name}, byte {place}"


def test_every_changed_byte_of_a_commit_is_found(forger):
    raw = forger.store.read(forger.add(forger.run())).raw
    for place in range(len(raw)):
        forged = forger.raw(raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :])
        assert forger.named(forged), f"byte {place}"


@pytest.mark.parametrize(
    ("files", "finding"),
    [
        ({"prompt.txt": b"Secret words"}, ("prompt.txt", "its BLAKE3 is not the declared one")),
        ({"prompt.txt": None}, ("prompt.txt", "missing")),
        ({"kept.000": b""}, ("kept.000", "not declared in record.json")),
        ({"notes.txt": b""}, ("notes.txt", "a record cannot hold this part")),
        ({"a\x1b[31m": b""}, ("a\\x1b[31m", "a record cannot hold this part")),
        ({"record.json": None}, ("record.json", None)),
        ({"record.json": b"{}"}, ("record.json", "no section 'link'")),
        ({"record.json": b"\xff" * 9}, ("record.json", None)),
    ],
)
def test_a_signer_cannot_put_other_files_into_a_record(forger, files, finding):
    record = forger.run()
    given_files = {"record.json": record.json, **record.parts} | files
    kept = {name: data for name, data in given_files.items() if data is not None}
    part, reason = finding
    found = forger.findings(forger.write(record, files=kept))
    assert part in {one for one, _ in found}
    assert reason is None or (part, reason) in found
    assert "signature" not in {one for one, _ in found}


@pytest.mark.parametrize("mode", ["100755", "120000", "40000", "160000", "100664"])
@pytest.mark.parametrize("name", ["prompt.txt", "record.json"])
def test_only_plain_files_are_allowed(forger, mode, name):
    forged = forger.write(forger.run(), modes={name: mode})
    assert (name, f"mode {mode} is not 100644") in forger.findings(forged)


@pytest.mark.parametrize(
    ("link", "reason"),
    [
        ({"seq": 2}, "link.seq is 2, its place in the chain 1"),
        ({"prev": "00" * 32}, "link.prev is not the digest of the record before"),
        ({"node": "a" * 52}, "link.node is not the digest of the chain's first record"),
    ],
)
def test_a_signer_cannot_put_a_record_at_another_place(forger, link, reason):
    assert ("record.json", reason) in forger.findings(forger.write(forger.run(**link)))


def test_a_signer_cannot_change_what_follows_from_the_record(forger):
    record = forger.run()
    message = record.message()
    cases = {
        ("message", "'run: big 1"): {"message": message.replace("run: tiny ", "run: big 1")},
        ("message", "'Llmtrace-Seq: 2'"): {"message": message.replace("Seq: 1", "Seq: 2")},
        ("message", "'(end)'"): {"message": message[: message.index("Llmtrace-Checksum")]},
        ("message", "'more'"): {"message": message + "more\n"},
        ("author", "'me <me@here>"): {"author": "me <me@here>"},
        ("committer", "'me <me@here>"): {"author": "me <me@here>"},
    }
    for (part, start), change in cases.items():
        found = forger.findings(forger.write(record, **change))
        assert any(one == part and why.startswith(start) for one, why in found), found
        assert "signature" not in {one for one, _ in found}


def test_other_headers_and_more_parents_are_found(forger):
    first = forger.tip
    forger.add(forger.run())
    second = forger.run(2)
    two = forger.write(second, parents=(forger.tip, first))
    assert ("commit", "2 parents, at most one is allowed") in forger.findings(two)
    raw = forger.store.read(forger.write(second)).raw
    for header in (b"encoding latin1\n", b"mergetag x\n", b"gpgsig-sha256 x\n", b"HG:x y\n"):
        forged = forger.raw(raw.replace(b"gpgsig ", header + b"gpgsig ", 1))
        assert forger.named(forged) == {"commit"}
    zone = raw.replace(b"+0000", b"+0100", 1)
    assert {"author", "signature"} <= forger.named(forger.raw(zone))


def test_a_record_of_another_key_is_found(forger):
    record = forger.run()
    forger.key = forger.keys[3]
    assert forger.findings(forger.write(record)) == {("signature", "signed by another key")}
    unsigned = forger.store.read(forger.write(record)).payload
    assert forger.findings(forger.raw(unsigned)) == {("signature", "missing")}


def test_only_the_promised_key_follows_and_only_if_the_old_one_says_so(forger):
    start = (forger.tip, forger.record)
    forger.add(forger.rotation(1))
    forger.key = forger.keys[1]
    good = forger.add(forger.run())
    assert forger.findings(good) == set()
    assert forger.store.identity_of(good) == forger.keys[1].public_key().public_bytes_raw()

    for key, number, why in ((0, 2, "announces another key"), (1, 1, "is not signed by the key")):
        forger.tip, forger.record = start
        forger.key = forger.keys[key]
        forger.add(forger.rotation(number))
        forger.key = forger.keys[number]
        found = forger.findings(forger.add(forger.run()))
        assert [part for part, _ in found] == ["chain"]
        assert why in next(iter(found))[1]


def test_a_chain_must_begin_with_an_identity(forger):
    headless = forger.write(forger.run(), parents=())
    assert forger.named(headless) == {"chain"}
    missing = forger.write(forger.run(), parents=("0" * 40,))
    assert forger.named(missing) == {"chain"}
    [(where, found)] = audit_chain(forger.store, missing)
    assert (where, found[0].reason) == ("0" * 40, "object '00000000' is missing")


def test_a_branch_must_hold_the_chain_it_is_named_for(forger):
    other = f"node/{'a' * 52}"
    repository = pygit2.Repository(str(forger.store.path))
    repository.references.create(f"refs/heads/{other}", forger.tip)
    [(_, found)] = audit_chain(forger.store, other)
    assert found[0].reason == f"not the chain of '{'a' * 52}'"
    with pytest.raises(Trouble, match="no record 'node/zzz'"):
        list(audit_chain(forger.store, "node/zzz"))


def test_too_large_things_are_found_without_being_read(forger):
    record = forger.run()
    files = {"record.json": record.json, **record.parts, "kept.000": bytes((1 << 20) + 1)}
    found = dict(forger.findings(forger.write(record, files=files | {"scores.json": b"{}"})))
    assert found["kept.000"] == "not declared in record.json"
    many = {f"kept.{n:03}": b"" for n in range(1000)} | {f"x{n:03}": b"" for n in range(200)}
    assert "tree" in forger.named(forger.write(record, files=files | many))
    long = forger.raw(b"tree " + b"0" * 40 + b"\nauthor " + b"x" * 70_000)
    with pytest.raises(Trouble, match="at most 65536 are read"):
        forger.store.read(long)


def test_git_and_audit_agree_on_the_forgers_sound_chain(forger):
    forger.add(forger.run())
    command = ["git", "--git-dir", forger.store.path, "fsck", "--strict", forger.tip]
    assert subprocess.run(command, check=True, capture_output=True).returncode == 0


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=st.binary(max_size=80), raw=st.binary(max_size=200), json=st.binary(max_size=40))
def test_any_bytes_give_findings_and_no_exception(forger, tree, raw, json):
    record = forger.run()
    files = {"record.json": json, **record.parts}
    assert forger.named(forger.write(record, files=files))
    sound = forger.store.read(forger.write(record))
    place = str(forger.odb.write(TREE, tree)).encode()
    forged = forger.raw(sound.raw.replace(sound.commit.tree.encode(), place))
    assert forger.named(forged)
    assert audit_commit(forger.store, Entry(forger.store._objects, forger.raw(raw)))


BIG = 2**53


@pytest.mark.parametrize(
    ("data", "ok"),
    [
        (b"%d" % (BIG - 1), True),
        (b"%d" % BIG, False),
        (b"-%d" % BIG, False),
        (b"[1,%d]" % BIG, False),
        (b'{"a":%d}' % BIG, False),
        (b'{"a":{"b":[-%d]}}' % BIG, False),
        (b'["%d"]' % BIG, True),
        (b'{"%d":1}' % BIG, True),
        (b'{"a":"x,%d"}' % BIG, True),
        (b"[" * 32 + b"]" * 32, True),
        (b"[" * 33 + b"]" * 33, False),
        ('{"\U0001f600":1,"\uffff":2}'.encode(), True),  # in the order of UTF-16
        ('{"\uffff":2,"\U0001f600":1}'.encode(), False),
        (b'{"b":1,"a":2}', False),
        (b'{"a":1,"a":1}', False),
        (b'["\\u0041"]', False),
        (b'["\\ud800"]', False),
        (b"[1.0]", False),
        (b"[-0]", False),
    ],
)
def test_the_fast_way_to_canonical_bytes_refuses_what_the_slow_one_does(data, ok):
    """The slow one is told apart by what only it does: it looks at every value."""
    if not ok:
        with pytest.raises(ValueError, match=r"."):
            canonical.decode(data)
        return
    value = canonical.decode(data)
    assert canonical.encode(value) == data
    assert value == json.loads(data)


def test_the_checksum_is_that_of_the_trace_wherever_a_trace_stands(forger):
    """Also where other sections have keys and texts that look like the section."""
    for more in ({"trace": {"x": 1}}, {"x": ',"trace":{'}, {"trace": []}):
        for trace, attested in (({"seed": 1} | more, {}), ({"seed": 1}, more)):
            sections = {"trace": trace, "probes": {}, "attested": {"model": "tiny"} | attested}
            record = Record.of(sections, {}, forger.link("run"))
            expected = blake3(canonical.encode(trace)).hexdigest()
            assert Record.parse(record.json, {}).checksum == record.checksum == expected
