"""Which sections, kinds and parts a record may have: the one place that knows the format.

``check_sections`` takes any value and says what is wrong with it; it raises nothing.
"""

import base64
import binascii
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

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
    "scores.json": "application/json",
    "samples.safetensors": "application/octet-stream",
}
_KEPT = re.compile(r"kept\.[0-9]{3}")
_TIMES = 253402300800  # 10000-01-01: git prints years of four digits
_ADDRESSES = 64
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


def _kind(kind: str, value: dict[str, dict[str, object]]) -> Iterator[str]:
    """What a kind asks of its own section."""
    if kind == "run":
        if not isinstance(value["attested"].get("model"), str):
            yield "attested.model is no string"
        return
    section = value[kind]
    if kind in ("identity", "rotate"):
        yield from _keys(kind, section)
    if kind in MARKET and "network" not in section:
        yield f"a record of kind '{kind}' without a network"
    if "network" in section and not _digest(section["network"]):
        yield f"{kind}.network is no digest"


def _keys(kind: str, section: dict[str, object]) -> Iterator[str]:
    """Checks the sections that announce a key, and the digest of the one after it."""
    names = {"public_key", "next"} | ({"addresses"} if kind == "identity" else set())
    if set(section) != names:
        yield f"section '{kind}' does not hold exactly {', '.join(sorted(names))}"
        return
    if public_key(section) is None:
        yield f"{kind}.public_key is not 32 bytes in base64"
    if not _digest(section["next"]):
        yield f"{kind}.next is no digest"
    listed = section.get("addresses", [])
    if not isinstance(listed, list) or not all(isinstance(text, str) for text in listed):
        yield f"{kind}.addresses is no list of strings"
    elif len(listed) > _ADDRESSES or any(len(text) > 1024 for text in listed):
        yield f"{kind}.addresses is too long"


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
    wrong = [name for name, test in _LINK.items() if not test(link[name])]
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


def _part(entry: object) -> Iterator[str]:
    if not isinstance(entry, dict) or set(entry) != {"name", "size", "blake3", "sha256", "media"}:
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
