"""Two run records side by side, in the order in which data flows, without computing anything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from llmtrace.verify.reading import Run

ASKED = (
    *("model", "numerics", "prompt", "temperature", "top_k", "top_p", "seed", "max_tokens"),
    "stop",
)
"""Stages that the runs were asked for; all later ones follow from these."""
PROBED = ("probes.bin", "samples.safetensors", "scores.json")
"""Parts that tell of what the probes stored."""


@dataclass(frozen=True)
class Difference:
    """One thing that differs: its stage, both values (None: absent), and where it is."""

    stage: str
    a: Any
    b: Any
    index: int | None = None
    """Among the tokens of prompt or output."""
    position: int | None = None
    column: int | None = None
    """Of the point, in the order of the plan; None where it would say nothing."""


class Distance(NamedTuple):
    """A feature in both records; the point, or layer, is "" for what is of the whole run."""

    point: str
    feature: str
    a: float
    b: float

    @property
    def distance(self) -> float:
        """How far apart they are."""
        return abs(self.a - self.b)


def contrast(a: Run, b: Run) -> list[Difference]:
    """What differs, first the first on the path of data; [] where both record one run.

    Of two runs with one checksum, the parts that follow from it are compared too: where
    they differ, one of the records is not true.
    """
    found = [*asked(a, b), *_computed(a, b)]
    return found or list(_parts(a, b))


def distances(a: Run, b: Run) -> list[Distance]:
    """The features that both records have and that are not equal, in the order of layers."""
    if a.features is None or b.features is None:
        return []
    pairs = [("", a.features.run, b.features.run)]
    pairs += [(at, x, b.features.places.get(at, {})) for at, x in a.features.places.items()]
    found = [Distance(at, n, x[n], y[n]) for at, x, y in pairs for n in x if n in y]
    return [each for each in found if each.a.hex() != each.b.hex()]


def asked(a: Run, b: Run) -> Iterator[Difference]:
    """What two runs were asked for and is not the same; nothing where they are one job."""
    x, y = a.claim, b.claim
    pairs = [("model", x.model, y.model), ("numerics", x.numerics, y.numerics)]
    yield from (Difference(*pair) for pair in pairs if pair[1] != pair[2])
    at = _first(x.request.prompt, y.request.prompt)
    if at is not None:
        yield Difference("prompt", *_tokens(x.request.prompt, y.request.prompt, at), at, at)
    left, right = (run.record.sections["trace"] for run in (a, b))
    for section in ("sampling", "", "limits"):
        one, other = (trace[section] if section else trace for trace in (left, right))
        for name in ASKED[3:]:
            if name in one and one[name] != other[name]:
                yield Difference(name, one[name], other[name])


def _computed(a: Run, b: Run) -> list[Difference]:
    """Output, finish reason and activations; what comes at an earlier position comes first."""
    x, y = a.claim, b.claim
    found = []
    at = _first(x.output, y.output)
    drawn = None
    if at is not None:
        drawn = len(x.request.prompt) - 1 + at
        found.append(Difference("output", *_tokens(x.output, y.output, at), at, drawn))
    if x.finish_reason != y.finish_reason:
        found.append(Difference("finish_reason", x.finish_reason, y.finish_reason))
    inside = _activations(a, b)
    if inside is None:
        return found
    is_before = inside.position is None or drawn is None or inside.position <= drawn
    return [inside, *found] if is_before else [*found, inside]


def _activations(a: Run, b: Run) -> Difference | None:
    """The first position whose root differs, and the first point if both fed the same tokens."""
    roots = [run.record.sections["trace"]["activations"] for run in (a, b)]
    if roots[0] == roots[1]:
        return None
    x, y = a.claim.request, b.claim.request
    first_picks = {len(x.prompt) - 1, len(y.prompt) - 1}
    end = None if len(first_picks) == 1 else min(first_picks)  # logits alone would differ there
    position = _first(a.roots.positions[:end], b.roots.positions[:end])
    column = None
    is_fed_the_same = (*x.prompt, *a.claim.output)[:-1] == (*y.prompt, *b.claim.output)[:-1]
    if is_fed_the_same and end is None and len(a.roots.points) == len(b.roots.points):
        column = _first(a.roots.points, b.roots.points)
    if position is not None:
        sides = [run.roots.positions[position : position + 1] for run in (a, b)]
        roots = [side[0].hex() if side else None for side in sides]
    return Difference("activations", roots[0], roots[1], None, position, column)


def _parts(a: Run, b: Run) -> Iterator[Difference]:
    """Parts that follow from equal trace sections and are not equal, by their digests."""
    probes = [run.record.sections["probes"] for run in (a, b)]
    one, other = (
        {part["name"]: part["blake3"] for part in run.record.sections["parts"]} for run in (a, b)
    )
    for name in sorted(one.keys() & other.keys()):
        if name == "prompt.txt":  # two texts may have the same tokens
            continue
        if name in PROBED and probes[0] != probes[1]:
            continue
        if name == "features.json" and probes[0]["format"] != probes[1]["format"]:
            continue
        if name.startswith("kept.") and a.claim.keep != b.claim.keep:
            continue
        if one[name] != other[name]:
            yield Difference(name, one[name], other[name])


def _first(a: Sequence[Any], b: Sequence[Any]) -> int | None:
    """Index of the first element that differs; the end of the shorter is a difference."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return None if len(a) == len(b) else min(len(a), len(b))


def _tokens(a: Sequence[int], b: Sequence[int], at: int) -> tuple[int | None, int | None]:
    return (a[at] if at < len(a) else None, b[at] if at < len(b) else None)
