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
    from llmtrace.store.record import Record

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
    layer: int | None = None
    """Where the record has leaves, which put it beyond doubt."""


@dataclass(frozen=True)
class Verdict:
    """What is known of a commit after audit and replay."""

    verdict: str
    reason: str = ""
    checked: tuple[str, ...] = ()
    difference: Difference | None = None
    unchecked: tuple[str, ...] = field(default=("attested",))
    device: Mapping[str, str] | None = None
    """Where it was replayed; None where it was not."""


@dataclass(frozen=True)
class Remade:
    """What a replay made: the trace, and the section and parts that a true record would have."""

    trace: Trace
    section: Mapping[str, Any]
    parts: Mapping[str, bytes]
    plan: Plan
    encoded: list[int] | None
    """prompt.txt as tokens, None where the record has no prompt.txt."""
    device: Mapping[str, str]


def judge(record: Record, claimed: Claim, made: Remade) -> Verdict:
    """Compares a record with its replay, one part in memory at a time."""
    checked: list[str] = []

    def differs(reason: str, difference: Difference | None = None) -> Verdict:
        return Verdict(DIFFERS, reason, tuple(checked), difference, device=made.device)

    if made.encoded is not None:
        if made.encoded != list(claimed.request.prompt):
            return differs("prompt.txt does not encode to the prompt tokens")
        checked.append("prompt.txt")
    section, parts = record.sections["trace"], record.parts
    found = _output(claimed, made.trace) or _activations(claimed, section, parts, made)
    if found:
        return differs(*found)
    if dict(section) != dict(made.section):
        names = [name for name in made.section if section.get(name) != made.section[name]]
        return differs(f"trace section: {', '.join(names)}")
    checked.append("trace")
    for name in sorted({*parts, *made.parts}):
        if name not in made.parts:
            return differs(f"{name}: a replay makes no such part")
        if name not in parts:
            return differs(f"{name}: missing")
        told = parts[name]
        if told != made.parts[name]:
            return differs(*_part(name, told, made))
        checked.append(name)
    return Verdict(VERIFIED, "", tuple(dict.fromkeys(checked)), device=made.device)


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
    claimed: Claim, section: Mapping[str, Any], parts: Mapping[str, bytes], made: Remade
) -> tuple[str, Difference] | None:
    """Finds the first position and point whose root differs, and the layer if there are leaves."""
    told, got = parts.get("digests.bin", b""), made.parts["digests.bin"]
    if section["activations"] == made.section["activations"] and told == got:
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
        difference = Difference(expected=section["activations"], got=made.section["activations"])
        return "root of the activations does not follow from digests.bin", difference
    position = next((i for i in rows if i < positions), None)
    columns = [i - positions for i in rows if i >= positions]
    layer = None
    if position is not None and claimed.leaves:
        group = first_leaf(parts.get("leaves.bin", b""), made.parts["leaves.bin"], made, position)
        if group is not None:
            layer = layer_of(group, made.plan)
            columns = [c for c in columns if made.plan.groups[c] == group]
    block = point = None
    if columns:
        point = made.plan.points[columns[0]].name
        block = made.plan.makers[point].name
    at = STORED * (position if position is not None else rows[0])
    difference = Difference(
        position, None, block, point, told[at:][:STORED].hex(), got[at:][:STORED].hex(), layer
    )
    where = " ".join(
        text
        for text in (
            f"position {position}" if position is not None else "",
            f"in layer {layer}" if layer is not None else "",
            f"at {block} ({point})" if block else "",
        )
        if text
    )
    prefix = (
        "activations differ"
        if section["activations"] != made.section["activations"]
        else "digests.bin differs"
    )
    return f"{prefix}: {where}", difference


def first_leaf(told: bytes, got: bytes, made: Remade, position: int) -> int | None:
    """The first group whose leaf differs at a position; None if none does, or sizes differ."""
    if len(told) != len(got):
        return None
    groups = made.plan.groups[-1] + 1
    for group in range(groups):
        at = STORED * (position * groups + group)
        if told[at:][:STORED] != got[at:][:STORED]:
            return group
    return None


def layer_of(group: int, plan: Plan) -> int | None:
    """The layer of a group of points; None before the first and behind the last."""
    return group - 1 if 0 < group < plan.groups[-1] else None


def _part(name: str, told: bytes, made: Remade) -> tuple[str, Difference]:
    got = made.parts[name]
    at = next(
        (i for i, (a, b) in enumerate(zip(told, got, strict=False)) if a != b),
        min(len(told), len(got)),
    )
    expected, found = told[at:][:16].hex(), got[at:][:16].hex()
    if name == "leaves.bin" and len(told) == len(got):
        position, group = divmod(at // STORED, made.plan.groups[-1] + 1)
        layer = layer_of(group, made.plan)
        where = f"layer {layer}" if layer is not None else "embed" if not group else "the head"
        difference = Difference(position, expected=expected, got=found, layer=layer)
        return f"leaves.bin differs: position {position}, {where}", difference
    reason = f"{name}: differs from the replay at byte {at}"
    return reason, Difference(expected=expected, got=found)
