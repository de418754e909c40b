"""Which sections, kinds and parts a record may have: the one place that knows the format.

``check_sections`` takes any value and says what is wrong with it; it raises nothing.
"""

import base64
import binascii
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

FORMAT = 1
JOBS = frozenset({"offer", "cancel", "claim", "result", "reveal"})
LEDGER = frozenset({"vouch", "unvouch", "pay", "recv", "ack", "heartbeat"})
MARKET = JOBS | LEDGER  # each names its network
KINDS = MARKET | {"identity", "rotate", "run", "verdict", "revoke", "network", "equivocation"}
_PART_LIMIT = 64 << 20  # bytes of a part
_KEPT_LIMIT = 1 << 20  # bytes of a chunk of kept tensors
ENTRIES = 1100  # entries of a record's tree: 1,000 chunks, the named parts, and room
NODE_ID = re.compile(r"[a-z2-7]{51}[aq]")  # 256 bits in base32: the last character holds one
DIGEST = re.compile(r"[0-9a-f]{64}")

_MEDIA = {
    "prompt.txt": "text/plain; charset=utf-8",
    "output.txt": "text/plain; charset=utf-8",
    "digests.bin": "application/octet-stream",
    "probes.bin": "application/octet-stream",
    "features.json": "application/json",
    "leaves.bin": "application/octet-stream",
    "scores.json": "application/json",
    "samples.safetensors": "application/octet-stream",
}
_KEPT = re.compile(r"kept\.[0-9]{3}")
_TIMES = 253402300800  # 10000-01-01: git prints years of four digits
_ADDRESSES = 64
REVOKED = 256  # records that one revocation names
REASON = 1024  # characters
_SAFE = 2**53


class Finding(NamedTuple):
    """One thing that is wrong: the part of the record or commit, and why."""

    part: str
    reason: str


def media_of(name: object) -> str | None:
    """Media type of a part; None for a name that no part may have."""
    if not isinstance(name, str):
        return None
    media = _MEDIA.get(name)
    return "application/octet-stream" if media is None and _KEPT.fullmatch(name) else media


def limit_of(name: str) -> int:
    """How many bytes a part may have."""
    return _KEPT_LIMIT if name.startswith("kept.") else _PART_LIMIT


def printable(text: object) -> str:
    """Others' text, cut and with everything but printable ASCII escaped."""
    return ascii(text)[1:-1][:80] if isinstance(text, str) else ascii(text)[:80]


def check_sections(value: object) -> list[str]:
    """What is wrong with a decoded record.json, seen without its parts."""
    if not isinstance(value, dict):
        return ["not an object"]
    found = list(_link(value.get("link")))
    found += _parts(value.get("parts"))
    if found:
        return found
    kind = value["link"]["kind"]
    named = {"trace", "probes", "attested"} if kind == "run" else {kind}
    found += [f"no section '{name}'" for name in sorted(named - set(value))]
    extra = sorted(set(value) - named - {"link", "parts"})
    found += [f"a section '{printable(name)}' in a record of kind '{kind}'" for name in extra]
    present = sorted(named & set(value))
    found += [f"section '{n}' is no object" for n in present if not isinstance(value[n], dict)]
    return found or list(_kind(kind, value))


def _kind(kind: str, value: dict[str, dict[str, Any]]) -> Iterator[str]:
    """What a kind asks of its own section."""
    if kind == "run":
        if not isinstance(value["attested"].get("model"), str):
            yield "attested.model is no string"
        return
    section, seq = value[kind], value["link"]["seq"]
    if kind in ("identity", "rotate"):
        yield from _keys(kind, section, seq)
    if kind == "revoke":
        yield from _revoked(section, seq)
    if kind == "verdict":
        yield from _verdict(section)
    if kind in MARKET and "network" not in section:
        yield f"a record of kind '{kind}' without a network"
    if "network" in section and not _digest(section["network"]):
        yield f"{kind}.network is no digest"


def _verdict(section: dict[str, Any]) -> Iterator[str]:
    """Checks an in-toto statement with a verification summary, as far as its readers need it."""
    if section.keys() != {"_type", "subject", "predicateType", "predicate"}:
        yield "section 'verdict' does not hold exactly _type, predicate, predicateType, subject"
        return
    if section["_type"] != _STATEMENT or section["predicateType"] != _SUMMARY:
        yield "verdict is no in-toto statement of a verification summary"
    subjects = section["subject"]
    if not isinstance(subjects, list) or not 0 < len(subjects) <= _SUBJECTS:
        yield "verdict.subject is no list of subjects"
    elif not all(isinstance(s, dict) and isinstance(s.get("digest"), dict) for s in subjects):
        yield "verdict.subject has one without digests"
    predicate = section["predicate"]
    if not isinstance(predicate, dict):
        yield "verdict.predicate is no object"
        return
    wrong = [name for name in _PREDICATE if not _PREDICATE[name](predicate.get(name))]
    yield from (f"verdict.predicate.{name} is not as it must be" for name in wrong)


_STATEMENT = "https://in-toto.io/Statement/v1"
_SUMMARY = "https://slsa.dev/verification_summary/v1"
_SUBJECTS = 64  # of one verdict
_PREDICATE: dict[str, Callable[[Any], bool]] = {
    "verifier": lambda v: isinstance(v, dict) and isinstance(v.get("id"), str),
    "timeVerified": lambda v: isinstance(v, str),
    "resourceUri": lambda v: isinstance(v, str),
    "policy": lambda v: isinstance(v, dict) and isinstance(v.get("uri"), str),
    "verificationResult": lambda v: v in ("PASSED", "FAILED"),
    "verifiedLevels": lambda v: isinstance(v, list) and all(isinstance(s, str) for s in v),
}


def _keys(kind: str, section: dict[str, Any], seq: int) -> Iterator[str]:
    """Checks the sections that announce a key, and the digest of the one after it."""
    names = {"public_key", "next"} | ({"addresses"} if kind == "identity" else set())
    if section.keys() - {"until"} != names:
        yield f"section '{kind}' does not hold exactly {', '.join(sorted(names))}"
        return
    if public_key(section) is None:
        yield f"{kind}.public_key is not 32 bytes in base64"
    if not _digest(section["next"]):
        yield f"{kind}.next is no digest"
    if "until" in section and not (_whole(section["until"]) and section["until"] > seq):
        yield f"{kind}.until is no seq after this one"
    listed = section.get("addresses", [])
    if not isinstance(listed, list) or not all(isinstance(text, str) for text in listed):
        yield f"{kind}.addresses is no list of strings"
    elif len(listed) > _ADDRESSES or any(len(text) > 1024 for text in listed):
        yield f"{kind}.addresses is too long"


def _revoked(section: dict[str, object], seq: int) -> Iterator[str]:
    """Checks a revocation: which earlier records of the chain, and why."""
    if set(section) != {"records", "reason"}:
        yield "section 'revoke' does not hold exactly reason, records"
        return
    if not isinstance(section["reason"], str) or len(section["reason"]) > REASON:
        yield f"revoke.reason is no text of at most {REASON} characters"
    listed = section["records"]
    if not isinstance(listed, list) or not 0 < len(listed) <= REVOKED:
        yield f"revoke.records is no list of 1 to {REVOKED} records"
        return
    for one in listed:
        if not isinstance(one, dict) or set(one) != {"seq", "record"}:
            yield "a record in revoke.records does not hold exactly record, seq"
        elif not _digest(one["record"]) or not _whole(one["seq"], seq) or one["seq"] == 0:
            yield "revoke.records names no earlier record"
        else:
            continue
        return
    seqs = [one["seq"] for one in listed]
    if seqs != sorted(set(seqs)):
        yield "revoke.records is not sorted by seq, each once"


def public_key(section: dict[str, object]) -> bytes | None:
    """The raw 32 bytes of the key that an identity or a rotate section announces."""
    text = section.get("public_key")
    if not isinstance(text, str) or len(text) != 44:
        return None
    try:
        key = base64.b64decode(text.encode(), validate=True)
    except (binascii.Error, ValueError):
        return None
    return key if len(key) == 32 and base64.b64encode(key).decode() == text else None


def _link(link: object) -> Iterator[str]:
    if not isinstance(link, dict):
        yield "no section 'link'"
        return
    if set(link) != set(_LINK):
        yield f"link does not hold exactly {', '.join(_LINK)}"
        return
    wrong = [name for name in _LINK if not _LINK[name](link[name])]
    yield from (f"link.{name} cannot be {printable(link[name])}" for name in wrong)
    if wrong:
        return
    first = link["kind"] == "identity"
    for name, absent in (("node", ""), ("seq", 0), ("prev", "")):
        if (link[name] == absent) != first:
            yield f"link.{name} cannot be {printable(link[name])} in kind '{link['kind']}'"


def _digest(value: object) -> bool:
    return isinstance(value, str) and DIGEST.fullmatch(value) is not None


def _whole(value: object, end: int = _SAFE) -> bool:
    return type(value) is int and 0 <= value < end


_LINK: dict[str, Callable[[object], bool]] = {
    "format": lambda value: _whole(value) and value == FORMAT,
    "kind": lambda value: isinstance(value, str) and value in KINDS,
    "node": lambda v: isinstance(v, str) and (v == "" or NODE_ID.fullmatch(v) is not None),
    "seq": _whole,
    "prev": lambda value: value == "" or _digest(value),
    "time": lambda value: _whole(value, _TIMES),
}


def _parts(parts: object) -> Iterator[str]:
    if not isinstance(parts, list):
        yield "no section 'parts'"
        return
    for entry in parts:
        yield from _part(entry)
    names = [str(entry.get("name")) for entry in parts if isinstance(entry, dict)]
    if names != sorted(set(names)):
        yield "parts are not sorted by name, each once"


_PART = {"name", "size", "blake3", "sha256", "media"}


def _part(entry: object) -> Iterator[str]:
    if not isinstance(entry, dict) or entry.keys() != _PART:
        yield "a part does not hold exactly name, size, blake3, sha256, media"
        return
    name = entry["name"]
    media = media_of(name)
    if media is None:
        yield f"a record cannot hold a part '{printable(name)}'"
        return
    if not _whole(entry["size"], limit_of(name) + 1):
        yield f"{name}: size cannot be {printable(entry['size'])}"
    if entry["media"] != media:
        yield f"{name}: media is not '{media}'"
    for algorithm in ("blake3", "sha256"):
        if not _digest(entry[algorithm]):
            yield f"{name}: {algorithm} is no digest"
