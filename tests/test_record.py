"""Canonical bytes, the form of records, and what is found in malformed ones."""

import copy
import hashlib
import json

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from llmtrace.errors import Trouble
from llmtrace.store import canonical
from llmtrace.store.record import Record, checksum, node_id, problems

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=30,
)
NODE = node_id("ab" * 32)
LINK = {"kind": "run", "node": NODE, "seq": 3, "prev": "cd" * 32, "time": 1_700_000_000}
SECTIONS = {
    "trace": {"model": "ef" * 32, "prompt": [1, 2], "output": [3]},
    "probes": {"level": "stats"},
    "attested": {"model": "tiny", "device": "cpu"},
}
PARTS = {"prompt.txt": b"secret words", "output.txt": b"more", "kept.000": b"\0\1"}


@pytest.fixture
def record():
    return Record.of(SECTIONS, PARTS, LINK)


def raw(sections):
    """The bytes of sections that need not be a legal record."""
    return canonical.encode(sections)


# canonical JSON


@pytest.mark.parametrize(
    ("value", "data"),
    [
        ({}, b"{}"),
        ({"b": [1, -2, True, None], "a": "x"}, b'{"a":"x","b":[1,-2,true,null]}'),
        ('\x00\x1f\x7f"\\/\b\f\n\r\té', b'"\\u0000\\u001f\x7f\\"\\\\/\\b\\f\\n\\r\\t\xc3\xa9"'),
        (2**53 - 1, b"9007199254740991"),
    ],
)
def test_golden_bytes(value, data):
    assert canonical.encode(value) == data
    assert canonical.decode(data) == value


def test_keys_are_sorted_by_utf16_code_units_as_in_rfc_8785():
    keys = ["\u20ac", "\r", "\ufb33", "1", "\U0001f600", "\x80", "\xf6"]
    data = canonical.encode({"nested": dict.fromkeys(keys, 0)})
    ordered = list(json.loads(data)["nested"])
    assert ordered == ["\r", "1", "\x80", "\xf6", "\u20ac", "\U0001f600", "\ufb33"]
    assert canonical.decode(data) == {"nested": dict.fromkeys(keys, 0)}


@given(VALUES)
def test_what_was_encoded_decodes_to_the_same(value):
    data = canonical.encode(value)
    assert canonical.decode(data) == value
    assert json.loads(data) == value


@given(st.binary(max_size=60) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_decode_gives_a_value_of_these_very_bytes_or_a_value_error(data):
    try:
        value = canonical.decode(data)
    except ValueError:
        return
    assert canonical.encode(value) == data


@pytest.mark.parametrize(
    "value",
    [1.0, 2**53, -(2**53), {1: 2}, {"a": b"x"}, (1,), "\ud800", {"\ud800": 1}, float("nan")],
)
def test_values_without_a_canonical_form_are_refused(value):
    with pytest.raises(ValueError):
        canonical.encode(value)


@pytest.mark.parametrize(
    "data",
    [
        b'{"a":1,"a":1}',
        b'{"b":1,"a":1}',
        b'{"a": 1}',
        b"1.0",
        b"1e3",
        b"-0",
        b"NaN",
        b"\xef\xbb\xbf1",
        b'"\\u0041"',
        b'"\\/"',
        b'"\xff"',
        b'"\\ud800"',
        b"9007199254740992",
        b"9" * 5000,
        b"1\n",
        b"",
        b"[" * 200_000,
        b"[" * 40 + b"]" * 40,
        b"[" + b"[]," * 140_000 + b"[]]",
        b'"' + b"a" * canonical.LIMIT + b'"',
    ],
    ids=lambda data: repr(data[:20]),
)
def test_bytes_that_are_not_canonical_are_refused(data):
    with pytest.raises(ValueError):
        canonical.decode(data)


# records


def test_a_record_follows_from_its_sections(record):
    text = PARTS["output.txt"]
    declared = {entry["name"]: entry for entry in record.sections["parts"]}
    assert list(declared) == ["kept.000", "output.txt", "prompt.txt"]
    assert declared["output.txt"] == {
        "name": "output.txt",
        "size": 4,
        "blake3": blake3(text).hexdigest(),
        "sha256": hashlib.sha256(text).hexdigest(),
        "media": "text/plain; charset=utf-8",
    }
    trace = b'{"model":"' + b"ef" * 32 + b'","output":[3],"prompt":[1,2]}'
    assert record.checksum == checksum(SECTIONS["trace"]) == blake3(trace).hexdigest()
    assert record.digest == blake3(record.json).hexdigest()
    assert Record.parse(record.json, PARTS) == record
    assert problems(record.json, PARTS) == []


def test_the_message_holds_a_subject_and_trailers_and_no_word_of_the_prompt(record):
    assert record.message() == (
        f"run: tiny {record.checksum[:8]}\n\n"
        "Llmtrace-Format: 1\nLlmtrace-Kind: run\n"
        f"Llmtrace-Node: {NODE}\nLlmtrace-Seq: 3\nLlmtrace-Prev: {'cd' * 32}\n"
        f"Llmtrace-Record: {record.digest}\nLlmtrace-Checksum: {record.checksum}\n"
    )
    assert b"secret" not in record.message().encode() + record.json


@pytest.mark.parametrize(
    ("name", "shown"),
    [("a b\nc\x1b[31mé", "a_b_c_[31m_"), ("", "model"), ("x" * 100, "x" * 64)],
)
def test_a_model_name_cannot_break_the_subject(name, shown):
    sections = SECTIONS | {"attested": {"model": name}}
    message = Record.of(sections, {}, LINK).message()
    assert message.splitlines()[0].rsplit(" ", 1)[0] == f"run: {shown}"


def test_the_checksum_depends_on_the_trace_alone(record):
    other = Record.of(
        SECTIONS | {"probes": {}, "attested": {"model": "m"}}, {}, LINK | {"seq": 9, "time": 1}
    )
    assert other.checksum == record.checksum
    assert other.digest != record.digest


def test_a_record_of_another_kind_has_its_own_section_and_its_network():
    link = LINK | {"kind": "offer"}
    offer = Record.of({"offer": {"network": "12" * 32, "base": 5}}, {}, link)
    assert sorted(offer.sections) == ["link", "offer", "parts"]
    assert offer.checksum == ""
    assert offer.message().startswith(f"offer: {offer.digest[:8]}\n\n")
    assert offer.message().endswith(f"Llmtrace-Network: {'12' * 32}\n")
    with pytest.raises(Trouble, match="without a network"):
        Record.of({"offer": {"base": 5}}, {}, link)


@pytest.mark.parametrize(
    "name", ["notes.txt", "record.json", "../x", "kept.1", "kept.0000", "kept.00٣", ""]
)
def test_other_part_names_are_refused(name):
    with pytest.raises(Trouble, match="cannot hold a part"):
        Record.of(SECTIONS, {name: b""}, LINK)


def test_a_chunk_of_a_kept_tensor_has_at_most_one_mebibyte():
    with pytest.raises(Trouble, match="size"):
        Record.of(SECTIONS, {"kept.000": bytes((1 << 20) + 1)}, LINK)


def test_floats_are_refused_on_write():
    with pytest.raises(Trouble, match="float"):
        Record.of(SECTIONS | {"trace": {"temperature": 0.5}}, {}, LINK)


# what is found in malformed records


def changed(record, path, value):
    sections = copy.deepcopy(record.sections)
    at = sections
    for key in path[:-1]:
        at = at[key]
    if value is KeyError:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return raw(sections)


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        (["link", "format"], 2, "link.format cannot be 2"),
        (["link", "format"], True, "link.format cannot be True"),
        (["link", "kind"], "walk", "link.kind cannot be walk"),
        (["link", "kind"], [], "link.kind cannot be []"),
        (["link", "kind"], "offer", "no section 'offer'"),
        (["link", "node"], "", "link.node cannot be  in kind 'run'"),
        (["link", "node"], "A" * 52, f"link.node cannot be {'A' * 52}"),
        (["link", "seq"], -1, "link.seq cannot be -1"),
        (["link", "seq"], 0, "link.seq cannot be 0 in kind 'run'"),
        (["link", "seq"], "3", "link.seq cannot be 3"),
        (["link", "prev"], "CD" * 32, f"link.prev cannot be {'CD' * 32}"),
        (["link", "prev"], "", "link.prev cannot be  in kind 'run'"),
        (["link", "time"], 2**50, f"link.time cannot be {2**50}"),
        (["link", "time"], None, "link.time cannot be None"),
        (["link", "time"], KeyError, "link does not hold exactly"),
        (["link", "extra"], 1, "link does not hold exactly"),
        (["link"], [], "no section 'link'"),
        (["parts"], {}, "no section 'parts'"),
        (["parts"], [1], "a part does not hold exactly"),
        (["parts", 0, "name"], "x.txt", "cannot hold a part 'x.txt'"),
        (["parts", 0, "name"], 7, "cannot hold a part '7'"),
        (["parts", 0, "name"], "prompt.txt", "parts are not sorted by name, each once"),
        (["parts", 0, "media"], "text/html", "media is not"),
        (["parts", 0, "size"], -1, "size cannot be -1"),
        (["parts", 0, "blake3"], "0", "blake3 is no digest"),
        (["trace"], KeyError, "no section 'trace'"),
        (["trace"], 1, "section 'trace' is no object"),
        (["notes\x1b"], {}, "a section 'notes\\x1b' in a record of kind 'run'"),
        (["attested", "model"], 1, "attested.model is no string"),
    ],
)
def test_a_wrong_section_is_named(record, path, value, reason):
    found = problems(changed(record, path, value), PARTS)
    assert found
    assert found[0].part == "record.json"
    assert reason in " ".join(finding.reason for finding in found)
    with pytest.raises(Trouble, match="malformed record"):
        Record.parse(changed(record, path, value), PARTS)


@pytest.mark.parametrize(
    ("parts", "finding"),
    [
        ({"prompt.txt": b"Secret words"}, ("prompt.txt", "its BLAKE3 is not the declared one")),
        ({"prompt.txt": b"short"}, ("prompt.txt", "5 bytes, declared 12")),
        ({"scores.json": b"{}"}, ("scores.json", "not declared in record.json")),
        ({"kept.000": None}, ("kept.000", "missing")),
    ],
)
def test_a_wrong_part_is_named(record, parts, finding):
    given_parts = {name: data for name, data in (PARTS | parts).items() if data is not None}
    assert problems(record.json, given_parts)[0] == finding


def test_both_digests_are_compared(record):
    for algorithm in ("blake3", "sha256"):
        data = changed(record, ["parts", 0, algorithm], "00" * 32)
        assert [finding.part for finding in problems(data, PARTS)] == ["kept.000"]


@given(st.dictionaries(st.sampled_from(["link", "parts", "trace", "run", "identity"]), VALUES))
def test_any_value_gives_findings_and_no_exception(value):
    assert problems(raw(value), PARTS)


@given(
    st.sampled_from(["format", "kind", "node", "seq", "prev", "time"]),
    VALUES,
    st.sampled_from(["run", "identity", "rotate", "verdict", "offer"]),
    VALUES,
)
def test_any_link_gives_findings_or_a_record(name, value, kind, section):
    link = {"format": 1, **LINK, "kind": kind, name: value}
    data = raw({"link": link, "parts": [], kind: section})
    if not problems(data, {}):
        parsed = Record.parse(data, {})
        assert parsed.message().isascii()
        assert parsed.node
