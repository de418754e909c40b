"""From a record and its replay to a verdict: what agrees, and where the first difference is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llmtrace.probes.commitment import STORED

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmtrace.blocks.plan import Plan
    from llmtrace.engine.evidence import Claim
    from llmtrace.engine.sequence import Trace

VERIFIED, DIFFERS, INVALID, INCONCLUSIVE = "verified", "differs", "invalid", "inconclusive"


@dataclass(frozen=True)
class Difference:
    """The first difference: where it is, what the record says and what the replay gave."""

    position: int | None = None
    token: int | None = None
    """Index in the output, where the difference is a drawn token."""
    block: str | None = None
    point: str | None = None
    expected: str = ""
    got: str = ""


@dataclass(frozen=True)
class Verdict:
    """What is known of a commit after audit and replay."""

    verdict: str
    reason: str = ""
    checked: tuple[str, ...] = ()
    difference: Difference | None = None
    unchecked: tuple[str, ...] = field(default=("attested",))


def judge(
    claimed: Claim,
    section: Mapping[str, Any],
    parts: Mapping[str, bytes],
    trace: Trace,
    made_section: Mapping[str, Any],
    made_parts: Mapping[str, bytes],
    plan: Plan,
    encoded: list[int] | None,
) -> Verdict:
    """Compares a record with its replay.

    ``section`` and ``parts`` are the record's, the ``made_`` ones the replay's; ``encoded``
    is prompt.txt as tokens, None where the record has no prompt.txt.
    """
    checked: list[str] = []
    if encoded is not None:
        if encoded != list(claimed.request.prompt):
            return Verdict(DIFFERS, "prompt.txt does not encode to the prompt tokens")
        checked.append("prompt.txt")
    found = _output(claimed, trace) or _activations(
        claimed, section, parts, made_section, made_parts, plan
    )
    if found:
        return Verdict(DIFFERS, found[0], tuple(checked), found[1])
    if dict(section) != dict(made_section):
        names = [name for name in made_section if section.get(name) != made_section[name]]
        return Verdict(DIFFERS, f"trace section: {', '.join(names)}", tuple(checked))
    checked.append("trace")
    for name in sorted({*parts, *made_parts}):
        if name not in made_parts:
            return Verdict(DIFFERS, f"{name}: a replay makes no such part", tuple(checked))
        if name not in parts:
            return Verdict(DIFFERS, f"{name}: missing", tuple(checked))
        if parts[name] != made_parts[name]:
            return Verdict(DIFFERS, *_part(name, parts[name], made_parts[name], checked))
        checked.append(name)
    return Verdict(VERIFIED, "", tuple(dict.fromkeys(checked)))


def _output(claimed: Claim, trace: Trace) -> tuple[str, Difference] | None:
    """Compares what was drawn; the prompt's last position draws the first token."""
    first = len(claimed.request.prompt) - 1
    for i, token in enumerate(claimed.output):
        got = trace.output[i] if i < len(trace.output) else None
        if token != got:
            position = first + i
            drawn = "the end" if got is None else str(got)
            text = f"token {i} at position {position} is {token}, the sampler draws {drawn}"
            return text, Difference(position, i, "sample", None, str(token), drawn)
    if claimed.finish_reason != trace.finish_reason:
        return (
            f"finish reason is '{claimed.finish_reason}', replay gives '{trace.finish_reason}'",
            Difference(block="sample", expected=claimed.finish_reason, got=trace.finish_reason),
        )
    return None


def _activations(
    claimed: Claim,
    section: Mapping[str, Any],
    parts: Mapping[str, bytes],
    made_section: Mapping[str, Any],
    made_parts: Mapping[str, bytes],
    plan: Plan,
) -> tuple[str, Difference] | None:
    """Finds the first position and point whose root differs."""
    told, got = parts.get("digests.bin", b""), made_parts["digests.bin"]
    if section["activations"] == made_section["activations"] and told == got:
        return None
    if len(told) != len(got):
        return f"digests.bin has {len(told)} bytes, replay gives {len(got)}", Difference()
    positions = claimed.request.positions
    rows = [
        i
        for i in range(len(got) // STORED)
        if told[STORED * i :][:STORED] != got[STORED * i :][:STORED]
    ]
    if not rows:
        difference = Difference(expected=section["activations"], got=made_section["activations"])
        return "root of the activations does not follow from digests.bin", difference
    position = next((i for i in rows if i < positions), None)
    column = next((i - positions for i in rows if i >= positions), None)
    block = point = None
    if column is not None:
        point = plan.points[column].name
        block = next(b.name for b in plan.blocks if any(p.name == point for p in b.points))
    at = STORED * (position if position is not None else rows[0])
    difference = Difference(
        position, None, block, point, told[at:][:STORED].hex(), got[at:][:STORED].hex()
    )
    where = " ".join(
        text
        for text in (
            f"position {position}" if position is not None else "",
            f"at {block} ({point})" if block else "",
        )
        if text
    )
    prefix = (
        "activations differ"
        if section["activations"] != made_section["activations"]
        else "digests.bin differs"
    )
    return f"{prefix}: {where}", difference


def _part(
    name: str, told: bytes, got: bytes, checked: list[str]
) -> tuple[str, tuple[str, ...], Difference]:
    at = next(
        (i for i, (a, b) in enumerate(zip(told, got, strict=False)) if a != b),
        min(len(told), len(got)),
    )
    difference = Difference(expected=told[at:][:16].hex(), got=got[at:][:16].hex())
    return f"{name}: differs from the replay at byte {at}", tuple(checked), difference
