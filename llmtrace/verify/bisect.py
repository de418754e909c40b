"""Bisect: two records of one job that disagree: where they part, and who is right.

The records alone give the position and a candidate for the block. With the model the law is
computed, which is what the CPU computes; the block is then executed alone and its output
compared. Both sides may be wrong.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from llmtrace.blocks.versions import version
from llmtrace.engine.alone import Executed, execute
from llmtrace.errors import Inconclusive, Misuse, Trouble
from llmtrace.verify.caps import Caps, caps_for
from llmtrace.verify.claimed import File
from llmtrace.verify.contrast import asked, contrast
from llmtrace.verify.judge import VERIFIED, Remade, Verdict, judge
from llmtrace.verify.locate import Inside, Place, first_difference, layer_at, locate
from llmtrace.verify.reading import Run
from llmtrace.verify.sampled import sampled
from llmtrace.verify.values import Value, compared
from llmtrace.verify.verify import Models, audited, remake

if TYPE_CHECKING:
    from llmtrace.engine.request import Request
    from llmtrace.engine.trace import Model
    from llmtrace.store.chain import Store
    from llmtrace.store.entry import Entry

SAME, WRONG, INVALID, OPEN = "same", "wrong", "invalid", "inconclusive"
_COPIES = 3  # of a part in memory, at most: its pieces, joined, and as tensors


@dataclass(frozen=True)
class Judgement:
    """What is known of two sides; ``wrong`` names sides, A before B."""

    judgement: str
    reason: str = ""
    wrong: tuple[str, ...] = ()
    place: Place | None = None
    token: int | None = None
    """Index in the output of the token that is drawn at the place."""
    executed: Executed | None = None
    values: tuple[Value, ...] = ()


@dataclass(frozen=True)
class _Side:
    """One of the two: a record or a file, and after the replay what the law says of it."""

    label: str
    told: Inside
    run: Run
    """A file has the run of the record that it is compared with."""
    is_file: bool = False
    verdict: Verdict | None = None
    made: Remade | None = None
    law: Inside = field(default_factory=Inside)


def bisect(
    store: Store, a: Entry, b: Entry | File, models: Models, caps: Caps | None = None
) -> Judgement:
    """Compares two records of one job, or a record with a file, and judges them by the law.

    ``models`` give models on the CPU. Raises Misuse for two different jobs, Trouble for
    records that cannot be read.
    """
    entries = [a] if isinstance(b, File) else [a, b]
    found = [audited(store, entry) for entry in entries]
    invalid = tuple(label for label, verdict in zip("AB", found, strict=False) if verdict)
    if invalid:
        reason = next(verdict.reason for verdict in found if verdict)
        return Judgement(INVALID, reason, invalid)
    runs = [Run.of(entry) for entry in entries]
    caps = caps or Caps()
    try:
        for run in runs:
            _admit(store, run, caps)
        if isinstance(b, File):
            caps.afford(_COPIES * b.size)
    except Inconclusive as error:
        return Judgement(OPEN, "; ".join((str(error), *error.hints)))
    if len(runs) == 2:
        _one_job(*runs)
        if not contrast(*runs):
            return Judgement(SAME)
        sides = [_Side(x, Inside.of_run(run), run) for x, run in zip("AB", runs, strict=True)]
        told = _by_records(*sides)
    else:
        sides = [_Side("A", Inside.of_run(runs[0]), runs[0])]
        told = Judgement(OPEN)
    try:
        model = _model(runs[0], models)
        if isinstance(b, File):
            sides.append(_Side("B", b.inside(runs[0], model.architecture), runs[0], is_file=True))
            roots = sides[0].told.columns
            if all(roots.get(c) == root for c, root in sides[1].told.columns.items()):
                return Judgement(SAME)
        return _by_law(store, sides, model, caps)
    except Inconclusive as error:
        return replace(told, reason="; ".join((str(error), *error.hints)))


def _admit(store: Store, run: Run, caps: Caps) -> None:
    """Refuses a run whose parts are more than one reads of others; raises Capped."""
    limits = caps_for(store, run.record.node, caps)
    if limits:
        limits.admit(run.claim.request)
        limits.afford(_COPIES * sum(part["size"] for part in run.record.sections["parts"]))


def _one_job(a: Run, b: Run) -> None:
    found = list(asked(a, b))
    if found:
        what = found[0].stage
        values = " | ".join(str(value)[:24] for value in (found[0].a, found[0].b))
        raise Misuse(f"not two records of one job: '{what}' is {values}", "see 'llmtrace diff'")


def _by_records(a: _Side, b: _Side) -> Judgement:
    """What the records tell without a model: a position, a layer, the number of a point."""
    place = first_difference(a.told, b.told, _first_pick(a))
    if place is None:
        return Judgement(OPEN)
    leaf = None if place.is_drawn else layer_at(a.told, b.told, place.position)
    if leaf:
        group, count = leaf
        layer = group - 1 if 0 < group < count - 1 else None
        place = replace(place, layer=layer)
    fed = [side.run.claim.output[:-1] for side in (a, b)]
    if place.is_drawn:
        place = replace(place, block="sample", is_exact=True)
    elif fed[0] == fed[1]:  # else every point differs, from the first token on that does
        columns = sorted(a.told.columns.keys() & b.told.columns.keys())
        differ = (c for c in columns if a.told.columns[c] != b.told.columns[c])
        place = replace(place, column=next(differ, None))
    values = compared(place, _first_pick(a), (a.told, b.told))
    return Judgement(OPEN, "", (), place, _token(a, place), None, values)


def _model(run: Run, models: Models) -> Model:
    return models.find(run.claim.model, run.model_name, version(run.claim.numerics))


def _by_law(store: Store, sides: list[_Side], model: Model, caps: Caps) -> Judgement:
    keep = tuple(sorted({name for side in sides for name in side.told.kept}))
    sides = [_replayed(store, side, model, caps, keep) for side in sides]
    wrong = [side for side in sides if side.verdict and side.verdict.verdict != VERIFIED]
    if not wrong:
        return Judgement(SAME)
    places = {side.label: _place(side) for side in wrong}
    # Both may be wrong: what is judged is the first place where any of them is.
    first = min(wrong, key=lambda side: _order(places[side.label]))
    place, labels = places[first.label], tuple(side.label for side in wrong)
    assert first.verdict is not None
    if place is None:  # no computation differs: a part does not follow from it
        return Judgement(WRONG, first.verdict.reason, labels)
    executed = None
    if place.block and first.made:
        executed = _execute(store, first, place, model, caps)
    told = tuple(side.told for side in sides)
    values = compared(place, _first_pick(first), told, first.law, executed)
    token = _token(first, place)
    return Judgement(WRONG, first.verdict.reason, labels, place, token, executed, values)


def _order(place: Place | None) -> tuple[bool, int, bool]:
    return (True, 0, False) if place is None else (False, place.position, place.is_drawn)


def _replayed(store: Store, side: _Side, model: Model, caps: Caps, keep: tuple[str, ...]) -> _Side:
    record, claimed = side.run.record, side.run.claim
    limits = caps_for(store, record.node, caps)
    points = set(_names(model))
    keep = tuple(name for name in keep if name in points)  # a record may name others
    made = remake(record, claimed, model, limits, keep=keep, leaves=True)
    if isinstance(made, Verdict):
        return replace(side, verdict=made)
    widths = [(point.name, point.rows.width) for point in made.plan.points]
    probes = made.parts.get("probes.bin")
    law = Inside.of_trace(made.trace, sampled(claimed, probes, widths) if probes else {})
    if side.is_file:
        differs = first_difference(side.told, law, _first_pick(side))
        reason = "its activations are not those of the run"
        verdict = Verdict("differs", reason) if differs else Verdict(VERIFIED)
    else:
        verdict = judge(record, claimed, made)
    return replace(side, verdict=verdict, made=made, law=law)


def _place(side: _Side) -> Place | None:
    """Where a side leaves the law."""
    assert side.verdict is not None
    if side.made is None:  # the replay did not come to its end
        found = side.verdict.difference
        if found is None or found.position is None:
            return None
        return Place(found.position, point=found.point, block=found.block, is_exact=True)
    place = first_difference(side.told, side.law, _first_pick(side))
    if place is None:
        return None
    if place.is_drawn:
        return replace(place, block="sample", is_exact=True)
    return locate(side.told, side.law, place.position, _first_pick(side), side.made.plan)


def _execute(store: Store, side: _Side, place: Place, model: Model, caps: Caps) -> Executed:
    """Executes the block alone; it must give what the replay gave, or this machine is unsound."""
    assert side.made is not None
    limits = caps_for(store, side.run.record.node, caps)
    clock = limits.clock() if limits else None
    plan, request = side.made.plan, side.run.claim.request
    block = next(block for block in plan.blocks if block.name == place.block)
    tick = clock.check if clock else lambda: None
    executed = execute(model, request, place.position, block, tick)
    digests = _digests(side.made, place.position, _first_pick(side))
    index = place.position - _first_pick(side)
    drawn = side.made.trace.output[index : index + 1]
    agrees = all(digests[name] == digest for name, digest in executed.digests.items())
    if not agrees or (executed.token is not None and drawn and executed.token != drawn[0]):
        raise Trouble(
            f"block '{block.name}' alone gives another value than in the replay, on this machine",
            "its memory or processor may be at fault",
        )
    return executed


def _digests(made: Remade, position: int, first_pick: int) -> dict[str, str]:
    """The digests of all rows of a position, in hex, by the names of their points."""
    assert made.trace.digests is not None
    fed, picked = made.trace.digests
    names = [(p.name, p.which) for p in made.plan.points]
    inner = [name for name, which in names if which == "fed"]
    outer = [name for name, which in names if which == "picked"]
    rows = dict(zip(inner, fed[position], strict=True))
    if position >= first_pick:
        rows |= dict(zip(outer, picked[position - first_pick], strict=True))
    return {name: row.tobytes().hex() for name, row in rows.items()}


def _names(model: Model) -> list[str]:
    from llmtrace.blocks.llama import blocks

    return [point.name for block in blocks(model.architecture) for point in block.points]


def _request(side: _Side) -> Request:
    return side.run.claim.request


def _first_pick(side: _Side) -> int:
    """The position that draws the first token."""
    return len(_request(side).prompt) - 1


def _token(side: _Side, place: Place) -> int | None:
    index = place.position - _first_pick(side)
    return index if index >= 0 else None
