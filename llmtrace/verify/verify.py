"""Verify: audit a commit, replay it through the same plan, compare, say what is so.

Nothing of a record is ever executed; what cannot be replayed here is inconclusive.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from llmtrace.blocks.versions import version
from llmtrace.engine import evidence
from llmtrace.engine.trace import Done, Model, NotFinite, trace
from llmtrace.errors import Inconclusive, Misuse, Trouble
from llmtrace.model.tokenizer import Tokenizer
from llmtrace.verify.audit import audit_commit
from llmtrace.verify.judge import DIFFERS, INCONCLUSIVE, INVALID, Verdict, judge

if TYPE_CHECKING:
    from llmtrace.store.chain import Store
    from llmtrace.store.entry import Entry


class Models(Protocol):
    """Where a replay gets its model from."""

    def find(self, model_id: str, name: str) -> Model:
        """Gives the model with this id, on a device; raises Inconclusive if it is not here."""


def verify(store: Store, entry: Entry, models: Models) -> Verdict:
    """Audits and replays one record.

    Raises Trouble where the machine, not the record, is at fault.
    """
    findings = audit_commit(store, entry)
    if findings:
        return Verdict(INVALID, f"{findings[0].part}: {findings[0].reason}", (), None, ("replay",))
    record = entry.record
    if record.kind != "run":
        return Verdict(
            INCONCLUSIVE, f"a record of kind '{record.kind}' holds nothing to replay", ("audit",)
        )
    try:
        claimed = evidence.claim(record.sections)
    except Trouble as error:
        return Verdict(INVALID, str(error), ("audit",))
    try:
        version(claimed.numerics)
        model = models.find(claimed.model, str(record.sections["attested"]["model"]))
    except Inconclusive as error:
        return Verdict(INCONCLUSIVE, "; ".join((str(error), *error.hints)), ("audit",))
    return replay(entry, claimed, model)


def replay(entry: Entry, claimed: evidence.Claim, model: Model) -> Verdict:
    """Computes a claimed run again in one teacher-forced pass and judges the record by it."""
    record = entry.record
    parts = {name: record.parts[name] for name in record.parts}
    texts = sorted({"prompt.txt", "output.txt"} & set(parts))
    if texts and not Tokenizer.exists(model.checkpoint):
        return Verdict(DIFFERS, f"{texts[0]}: the model has no tokenizer", ("audit",))
    tokenizer = Tokenizer.open(model.checkpoint) if texts else None
    try:
        text = parts["prompt.txt"].decode() if "prompt.txt" in parts else None
        plan = model.plan([claimed.request], probes=claimed.level != "off", keep=claimed.keep)
    except (Misuse, UnicodeDecodeError) as error:
        return Verdict(INVALID, str(error), ("audit",))
    unknown = set(claimed.keep) - {point.name for point in plan.points}
    if unknown:
        return Verdict(
            DIFFERS, f"keeps '{min(unknown)}', which is no point of the model", ("audit",)
        )
    try:
        (done,) = [e for e in trace(model, plan, [claimed.request]) if isinstance(e, Done)]
    except NotFinite as error:  # nothing else: a fault of this machine is no verdict
        return Verdict(DIFFERS, f"the replay ends early: {error}", ("audit",))
    made = done.trace
    section = evidence.trace_section(made, model.id, claimed.numerics)
    made_parts = evidence.parts(made, level=claimed.level, tokenizer=tokenizer, prompt=text)
    encoded = tokenizer.encode(text) if tokenizer and text is not None else None
    return judge(claimed, record.sections["trace"], parts, made, section, made_parts, plan, encoded)
