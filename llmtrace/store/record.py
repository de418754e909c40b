"""The record: the canonical bytes of one event in a chain, and what must hold of them.

``record.json`` of a run has five sections (trace, parts, link, probes, attested); of any
other kind three (link, parts and the one named by its kind). Everything else of a commit
follows from it: names and digests of the parts, message, trailers, author, time. What is
read here was written by strangers: it yields findings, never another exception than Trouble.
"""

import base64
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

from llmtrace.errors import Trouble
from llmtrace.store import canonical
from llmtrace.store.schema import (
    FORMAT,
    Finding,
    check_sections,
    limit_of,
    media_of,
    printable,
)

if TYPE_CHECKING:
    from blake3 import blake3

Sections: TypeAlias = dict[str, Any]

JSON_NAME = "record.json"
_NAME = 64  # characters of a model's name in a subject


@dataclass(frozen=True)
class Record:
    """One event of a chain: the sections of record.json, and the parts by their names."""

    sections: Sections
    parts: Mapping[str, bytes]

    @classmethod
    def of(cls, sections: Sections, parts: Mapping[str, bytes], link: Sections) -> "Record":
        """The record of these sections, parts and link (without its format).

        Raises Trouble when it would be no well-formed record.
        """
        for name in parts:
            if media_of(name) is None:
                raise Trouble(f"a record cannot hold a part '{printable(name)}'")
        whole: Sections = {
            **sections,
            "link": {"format": FORMAT, **link},
            "parts": [describe(name, parts[name]) for name in sorted(parts)],
        }
        record = cls(whole, dict(parts))
        try:
            found = check_sections(canonical.decode(record.json))
        except ValueError as error:
            raise Trouble(f"a section cannot be recorded: {error}") from None
        if found:
            raise Trouble(f"a record cannot be made: {found[0]}")
        return record

    @classmethod
    def parse(cls, json: bytes, parts: Mapping[str, bytes]) -> "Record":
        """The record in these bytes, all parts compared; raises Trouble with the first finding."""
        found = problems(json, parts)
        if found:
            raise Trouble(f"malformed record: '{found[0].part}': {found[0].reason}")
        return cls.outline(json, parts)

    @classmethod
    def outline(cls, json: bytes, parts: Mapping[str, bytes]) -> "Record":
        """The record in these bytes, its parts not looked at; raises Trouble."""
        try:
            sections = canonical.decode(json)
        except ValueError as error:
            raise Trouble(f"malformed record: {error}") from None
        found = check_sections(sections)
        if found or not isinstance(sections, dict):
            raise Trouble(f"malformed record: {found[0]}")
        record = cls(sections, parts)
        record.__dict__["json"] = json  # canonical, so what encoding would give
        return record

    @cached_property
    def json(self) -> bytes:
        """The bytes of record.json."""
        return canonical.encode(self.sections)

    @cached_property
    def digest(self) -> str:
        """BLAKE3 of record.json, in hex."""
        return blake3_hex(self.json)

    @cached_property
    def checksum(self) -> str:
        """BLAKE3 over all that a replay proves, in hex; "" for what is no run."""
        if self.kind != "run":
            return ""
        before, key, trace = self.json.partition(b',"trace":')  # the last section, once each
        if before and key and b'"trace":' not in before and b'"trace":' not in trace:
            return blake3_hex(trace[:-1])
        return checksum(_section(self.sections, "trace"))

    @cached_property
    def link(self) -> Sections:
        """The section that ties the record to its chain: format, kind, node, seq, prev, time."""
        return _section(self.sections, "link")

    @property
    def kind(self) -> str:
        """What happened: run, verdict, offer."""
        return str(self.link["kind"])

    @property
    def seq(self) -> int:
        """Place in the chain; the identity is 0."""
        return int(self.link["seq"])

    @property
    def prev(self) -> str:
        """Digest of the record before; "" for the first."""
        return str(self.link["prev"])

    @property
    def time(self) -> int:
        """UTC seconds at which the record was made, as its author claims."""
        return int(self.link["time"])

    @property
    def node(self) -> str:
        """Id of the node whose chain this is; of an identity it is its own digest."""
        return str(self.link["node"]) or node_id(self.digest)

    @property
    def author(self) -> str:
        """Author and committer of the commit: name and address, as git writes them."""
        return f"{node_name(self.node)} <{address(self.node)}>"

    def message(self) -> str:
        """The commit message: a subject, a blank line, trailers; nothing of the prompt."""
        lines = {
            "Format": str(self.link["format"]),
            "Kind": self.kind,
            "Node": self.node,
            "Seq": str(self.seq),
            "Prev": self.prev,
            "Record": self.digest,
            "Checksum": self.checksum,
            "Network": self._network(),
        }
        trailers = "".join(f"Llmtrace-{key}: {text}\n" for key, text in lines.items() if text)
        return f"{self._subject()}\n\n{trailers}"

    def _subject(self) -> str:
        if self.kind != "run":
            return f"{self.kind}: {self.digest[:8]}"
        name = str(_section(self.sections, "attested")["model"])
        return f"run: {_plain(name)} {self.checksum[:8]}"

    def _network(self) -> str:
        if self.kind == "run":
            return ""
        return str(_section(self.sections, self.kind).get("network", ""))


def checksum(trace: Sections) -> str:
    """The CHECKSUM of a run: BLAKE3 of the canonical bytes of its trace section, in hex."""
    return blake3_hex(canonical.encode(trace))


def problems(json: bytes, parts: Mapping[str, bytes]) -> list[Finding]:
    """All that is wrong with a record, seen by itself; [] for a well-formed one."""
    try:
        sections = canonical.decode(json)
    except ValueError as error:
        return [Finding(JSON_NAME, str(error))]
    found = [Finding(JSON_NAME, reason) for reason in check_sections(sections)]
    if isinstance(sections, dict) and isinstance(sections.get("parts"), list):
        found += check_parts(sections["parts"], parts)
    return found


def check_parts(listed: list[Any], parts: Mapping[str, bytes]) -> list[Finding]:
    """Compares the parts with their declarations: none missing, none too many, none changed.

    ``parts`` may read its values on access and raise Trouble for one that cannot be
    read: one part is held in memory at a time.
    """
    entries = [entry for entry in listed if isinstance(entry, dict)]
    declared = {entry["name"]: entry for entry in entries if media_of(entry.get("name"))}
    found = [Finding(name, "missing") for name in declared if name not in parts]
    for name in parts:
        if name not in declared:
            found.append(Finding(printable(name), f"not declared in {JSON_NAME}"))
            continue
        try:
            found += check_part(name, declared[name], parts[name])
        except Trouble as error:
            found.append(Finding(name, str(error)))
    return found


def check_part(name: str, declared: Sections, data: bytes) -> list[Finding]:
    """Compares a part with its declaration: size, both digests."""
    if len(data) > limit_of(name):
        return [Finding(name, f"{len(data)} bytes, at most {limit_of(name)} are allowed")]
    if len(data) != declared.get("size"):
        return [Finding(name, f"{len(data)} bytes, declared {declared.get('size')}")]
    found = []
    if blake3_hex(data) != declared.get("blake3"):
        found.append(Finding(name, "its BLAKE3 is not the declared one"))
    if hashlib.sha256(data).hexdigest() != declared.get("sha256"):
        found.append(Finding(name, "its SHA-256 is not the declared one"))
    return found


def describe(name: str, data: bytes) -> Sections:
    """The declaration of a part in record.json."""
    return {
        "name": name,
        "size": len(data),
        "blake3": blake3_hex(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "media": media_of(name),
    }


def blake3_hex(data: bytes) -> str:
    """BLAKE3 of data, in lower-case hex."""
    return _blake3()(data).hexdigest()


@cache
def _blake3() -> type["blake3"]:
    from blake3 import blake3

    return blake3


def node_id(digest: str) -> str:
    """Id of the node whose first record has this digest: the same 32 bytes in base32."""
    return base64.b32encode(bytes.fromhex(digest)).decode().rstrip("=").lower()


def node_name(node: str) -> str:
    """Default name of a node, until its reader gives it another."""
    return f"node-{node[:8]}"


def address(node: str) -> str:
    """Mail address of a node in commits and in allowed_signers; no mail gets there."""
    return f"{node}@llmtrace.invalid"


def _section(sections: Sections, name: str) -> Sections:
    section = sections[name]
    if not isinstance(section, dict):
        raise Trouble(f"malformed record: section '{name}' is no object")
    return section


def _plain(name: str) -> str:
    """A model's name in a subject line: printable ASCII without spaces."""
    return re.sub(r"[^!-~]", "_", name)[:_NAME] or "model"
