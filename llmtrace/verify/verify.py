"""Verify: audit a commit, replay it through the same plan, compare, say what is so.

Nothing of a record is ever executed; what cannot be replayed here is inconclusive.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from llmtrace.blocks.llama import blocks
from llmtrace.blocks.versions import version
from llmtrace.engine import evidence
from llmtrace.engine.trace import Done, Fed, Model, NotFinite, trace
from llmtrace.errors import Inconclusive, Misuse, Trouble
from llmtrace.introspect.observer import Both, Observing, observing
from llmtrace.model.tokenizer import Tokenizer
from llmtrace.probes.scheme import needs
from llmtrace.verify.audit import audit_commit
from llmtrace.verify.caps import TEXT, Caps, Clock, caps_for
from llmtrace.verify.judge import (
    DIFFERS,
    INCONCLUSIVE,
    INVALID,
    Difference,
    Remade,
    Verdict,
    judge,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmtrace.blocks.plan import Plan
    from llmtrace.blocks.versions import Version
    from llmtrace.engine.inside import Observer
    from llmtrace.engine.request import Request
    from llmtrace.engine.sequence import Trace
    from llmtrace.store.chain import Store
    from llmtrace.store.entry import Entry
    from llmtrace.store.record import Record


class Models(Protocol):
    """Where a replay gets its model from."""

    def find(self, model_id: str, name: str, version: Version) -> Model:
        """Gives the model with this id, on a device; raises Inconclusive if it is not here."""


def verify(store: Store, entry: Entry, models: Models, caps: Caps | None = None) -> Verdict:
    """Audits and replays one record; ``caps`` are for those of other nodes.

    Raises Trouble where the machine, not the record, is at fault.
    """
    return audited(store, entry) or replayed(store, entry, models, caps or Caps())


def audited(store: Store, entry: Entry) -> Verdict | None:
    """Audits one record; None if nothing is wrong with it."""
    findings = audit_commit(store, entry)
    if findings:
        return Verdict(INVALID, f"{findings[0].part}: {findings[0].reason}", (), None, ("replay",))
    return None


def replayed(store: Store, entry: Entry, models: Models, caps: Caps) -> Verdict:
    """Replays one record that was audited."""
    record = entry.record
    if record.kind != "run":
        return Verdict(
            INCONCLUSIVE, f"a record of kind '{record.kind}' holds nothing to replay", ("audit",)
        )
    try:
        claimed = evidence.claim(record.sections)
    except Trouble as error:
        return Verdict(INVALID, str(error), ("audit",))
    limits = caps_for(store, record.node, caps)
    try:
        numerics = version(claimed.numerics)
        if limits:
            limits.admit(claimed.request)
        name = str(record.sections["attested"]["model"])
        model = models.find(claimed.model, name, numerics)
        return replay(record, claimed, model, limits)
    except Inconclusive as error:
        return Verdict(INCONCLUSIVE, "; ".join((str(error), *error.hints)), ("audit",))


def replay(
    record: Record, claimed: evidence.Claim, model: Model, caps: Caps | None = None
) -> Verdict:
    """Computes a claimed run again in one teacher-forced pass and judges the record by it.

    Raises Capped where that is more than the caps allow.
    """
    made = remake(record, claimed, model, caps)
    return made if isinstance(made, Verdict) else judge(record, claimed, made)


def remake(
    record: Record,
    claimed: evidence.Claim,
    model: Model,
    caps: Caps | None,
    *,
    keep: tuple[str, ...] = (),
    leaves: bool = False,
    also: Callable[[Observing], Observer] | None = None,
    heed: Callable[[Fed], None] = lambda _: None,
) -> Remade | Verdict:
    """Computes a claimed run again; a verdict where that already shows that the record is false.

    ``keep`` and ``leaves`` are wanted beside what the record holds. ``also`` gives a second
    observer of the replay, if it measures with probes of format 2; ``heed`` is told how far it is,
    and may raise.
    """
    clock = caps.clock() if caps else None
    texts = sorted({"prompt.txt", "output.txt"} & set(record.parts))
    if texts and not Tokenizer.exists(model.checkpoint):
        return Verdict(DIFFERS, f"{texts[0]}: the model has no tokenizer", ("audit",))
    tokenizer = Tokenizer.open(model.checkpoint) if texts else None
    widths = {p.name: p.rows.width for b in blocks(model.architecture) for p in b.points}
    unknown = set(claimed.keep) - set(widths)
    if unknown:
        reason = f"keeps '{min(unknown)[:80]}', which is no point of the model"
        return Verdict(DIFFERS, reason, ("audit",))
    wanted = tuple(sorted({*claimed.keep, *keep}))
    try:
        needed = _needed(record, claimed, model, wanted, widths)
        if caps:
            caps.afford(needed)
        text = record.parts["prompt.txt"].decode() if "prompt.txt" in texts else None
        plan = model.plan(
            [claimed.request],
            probes=claimed.probes,
            keep=wanted,
            leaves=claimed.leaves or leaves,
        )
    except (Misuse, UnicodeDecodeError) as error:
        return Verdict(INVALID, str(error), ("audit",))
    try:
        done = _trace(model, plan, claimed, clock, also, heed)
        told = {name: done.kept[name] for name in claimed.keep}
        parts = evidence.parts(
            done,
            level=claimed.level,
            tokenizer=tokenizer,
            prompt=text,
            leaves=claimed.leaves,
            keep=told,
        )
    except NotFinite as error:  # nothing else: a fault of this machine is no verdict
        where = Difference(error.position, block=plan.makers[error.point].name, point=error.point)
        return Verdict(DIFFERS, f"the replay ends early: {error}", ("audit",), where)
    except evidence.TooMuchKept as error:
        return Verdict(DIFFERS, str(error), ("audit",))
    encoded = tokenizer.encode(text) if tokenizer and text is not None else None
    section = evidence.trace_section(done, model.id, claimed.numerics)
    return Remade(done, section, parts, plan, encoded, model.device.describe())


def _needed(
    record: Record,
    claimed: evidence.Claim,
    model: Model,
    wanted: tuple[str, ...],
    widths: dict[str, int],
) -> int:
    """The bytes of memory that a replay takes beside the weights.

    Raises Misuse if the scheme speaks of points that are none.
    """
    whole = claimed.level == "detail" or bool(claimed.scheme.rules)
    rows = needs(claimed.scheme, widths, model.architecture.layer_count)
    held = model.memory(claimed.request, keep=(*wanted, *rows), whole=whole)
    return held + TEXT * _size(record, "prompt.txt")


def _trace(
    model: Model,
    plan: Plan,
    claimed: evidence.Claim,
    clock: Clock | None,
    also: Callable[[Observing], Observer] | None,
    heed: Callable[[Fed], None],
) -> Trace:
    def observe(request: Request) -> Observer:
        mine = observing(model, claimed.level, claimed.scheme)(request)
        return Both(mine, also(mine)) if also else mine

    watched = observe if claimed.probes > 1 else None
    for event in trace(model, plan, [claimed.request], observe=watched):
        if isinstance(event, Fed):
            heed(event)
            if clock:
                clock.check(event)
        if isinstance(event, Done):
            return event.trace
    raise AssertionError("a trace ends with its run")


def _size(record: Record, name: str) -> int:
    """The bytes of a part, as the audit found them; 0 if there is none."""
    return sum(p["size"] for p in record.sections["parts"] if p["name"] == name)
