"""Where two tellings of the inside of one run part: position, layer, block, from what is there.

A telling is a record, a file of activations or a replay. Of each point at a position it is
known that both agree, that they do not, or neither; from that follows what can be named and
whether it is beyond doubt.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llmtrace.probes.commitment import STORED

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy as np

    from llmtrace.blocks.plan import Plan
    from llmtrace.engine.sequence import Trace
    from llmtrace.verify.reading import Run
    from llmtrace.verify.sampled import Sampled

_SAME, _DIFFERENT = "same", "different"
_SOMEWHERE = "somewhere"  # at this position or a later one
_UNTOLD = "untold"


@dataclass(frozen=True)
class Inside:
    """What one side tells; empty where it tells nothing."""

    positions: Sequence[bytes] = ()
    """Roots, as stored."""
    columns: Mapping[int, bytes] = field(default_factory=dict)
    """Roots of points, as stored, by their place in the order of the plan."""
    leaves: bytes = b""
    kept: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Whole tensors by the names of their points: (T or G, width) f32."""
    output: tuple[int, ...] = ()
    logprobs: np.ndarray | None = None
    """Of the output tokens: (G,) f32."""
    samples: Mapping[str, Sampled] = field(default_factory=dict)
    """By the names of points, in the order of the plan."""

    @classmethod
    def of_run(cls, run: Run) -> Inside:
        """What a record tells; raises Trouble for malformed parts."""
        roots = run.roots
        return cls(
            roots.positions,
            dict(enumerate(roots.points)),
            run.leaves,
            run.kept,
            run.claim.output,
            run.logprobs,
            run.sampled,
        )

    @classmethod
    def of_trace(cls, trace: Trace, samples: Mapping[str, Sampled]) -> Inside:
        """What a replay with leaves gives; ``samples`` are those of the parts that it made."""
        roots = trace.commitment
        return cls(
            [root[:STORED] for root in roots.positions],
            {column: root[:STORED] for column, root in enumerate(roots.points)},
            trace.leaves(),
            trace.kept,
            trace.output,
            trace.logprobs,
            samples,
        )


@dataclass(frozen=True)
class Place:
    """Where a difference begins; None is not known."""

    position: int
    is_drawn: bool = False
    """Whether what is computed there agrees, and what is drawn from it does not."""
    layer: int | None = None
    column: int | None = None
    point: str | None = None
    block: str | None = None
    is_exact: bool = False
    """Whether the block is beyond doubt; else it is so if there was a single fault."""


def first_difference(x: Inside, y: Inside, first_pick: int) -> Place | None:
    """The first position at which two sides part; ``first_pick`` draws the first token."""
    found = [
        Place(position)
        for position in (_first(x.positions, y.positions), _first_row(x, y, first_pick))
        if position is not None
    ]
    drawn = [_first(x.output, y.output)] if x.output and y.output else []
    if x.logprobs is not None and y.logprobs is not None:
        drawn.append(_first(x.logprobs.tobytes(), y.logprobs.tobytes(), 4))
    found += [Place(first_pick + i, is_drawn=True) for i in drawn if i is not None]
    return min(found, key=lambda place: (place.position, place.is_drawn), default=None)


def layer_at(x: Inside, y: Inside, position: int) -> tuple[int, int] | None:
    """The first group whose leaves differ at a position, and the number of groups."""
    count = len(x.leaves) // STORED // max(len(x.positions), 1)
    if not count or len(x.leaves) != len(y.leaves) or len(x.positions) != len(y.positions):
        return None
    begin = STORED * count * position
    group = _first(x.leaves[begin:][: STORED * count], y.leaves[begin:][: STORED * count], STORED)
    return None if group is None else (group, count)


def locate(x: Inside, y: Inside, position: int, first_pick: int, plan: Plan) -> Place:
    """Names the layer, the point and the block at which two sides part at a position.

    Both were fed the same tokens.
    """
    known = [_known(x, y, position, first_pick, plan, c) for c in range(len(plan.points))]
    leaf = layer_at(x, y, position)
    columns = [c for c, is_ in enumerate(known) if is_ != _SAME]
    layer = None
    if leaf:
        group, count = leaf
        layer = group - 1 if 0 < group < count - 1 else None
        columns = [c for c in columns if plan.groups[c] == group]
    if not columns:
        return Place(position, layer=layer)
    # Up to here the first difference may stand: at a point that surely differs it must.
    sure = next((i for i, c in enumerate(columns) if known[c] == _DIFFERENT), len(columns) - 1)
    possible = [plan.points[c].name for c in columns[: sure + 1]]
    blocks = {plan.makers[name].name for name in possible}
    column = next((c for c in columns if known[c] != _UNTOLD), columns[0])
    first = plan.points[column].name
    return Place(
        position,
        layer=layer,
        column=column,
        point=first,
        block=plan.makers[first].name,
        is_exact=len(blocks) == 1,
    )


def _known(x: Inside, y: Inside, position: int, first_pick: int, plan: Plan, column: int) -> str:
    """Whether both have the same row of a point at a position."""
    point = plan.points[column]
    if point.which == "picked" and position < first_pick:
        return _SAME  # it does not exist there
    begin = first_pick if point.which == "picked" else 0
    one, other = x.kept.get(point.name), y.kept.get(point.name)
    if one is not None and other is not None and one.shape == other.shape:
        row = position - begin
        return _SAME if one[row].tobytes() == other[row].tobytes() else _DIFFERENT
    if _leaf(x, y, position, plan, plan.groups[column]):
        return _SAME
    if column in x.columns and column in y.columns:
        if x.columns[column] == y.columns[column]:
            return _SAME
        is_last = position == len(y.positions) - 1  # all rows before are the same
        return _DIFFERENT if is_last else _SOMEWHERE
    return _UNTOLD


def _leaf(x: Inside, y: Inside, position: int, plan: Plan, group: int) -> bool:
    """Whether both have the leaf of a group, and the same."""
    count = plan.groups[-1] + 1
    if len(x.leaves) != len(y.leaves) or len(y.leaves) != STORED * count * len(y.positions):
        return False
    at = STORED * (count * position + group)
    return x.leaves[at:][:STORED] == y.leaves[at:][:STORED]


def _first_row(x: Inside, y: Inside, first_pick: int) -> int | None:
    """The first position at which a kept tensor of both differs."""
    found = []
    most = max([len(y.positions), *map(len, y.kept.values())], default=0)
    for name in x.kept.keys() & y.kept.keys():
        a, b = x.kept[name], y.kept[name]
        if a.shape != b.shape:
            continue
        width = 4 * a.shape[1]
        row = _first(a.tobytes(), b.tobytes(), width)
        if row is not None:
            found.append(row + (0 if len(a) == most else first_pick))
    return min(found, default=None)


def _first(a: Sequence[object], b: Sequence[object], step: int = 1) -> int | None:
    """Index of the first piece of ``step`` elements that differs, in both; else where one ends."""
    if a == b or not a or not b:
        return None
    return next(
        (i for i, (one, other) in enumerate(_pieces(a, b, step)) if one != other),
        min(len(a), len(b)) // step,
    )


def _pieces(
    a: Sequence[object], b: Sequence[object], step: int
) -> Iterator[tuple[Sequence[object], Sequence[object]]]:
    for at in range(0, min(len(a), len(b)) // step * step, step):
        yield a[at : at + step], b[at : at + step]
