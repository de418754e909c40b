"""Introspect: the inside of a run, computed again and looked at: is it sound, what is it worth."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import click

from llmtrace.cli import deep, worth
from llmtrace.cli.caps import replays
from llmtrace.cli.frame import Session, command
from llmtrace.cli.output import plain
from llmtrace.errors import Misuse, Trouble

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from llmtrace.cli.output import Bar
    from llmtrace.engine.trace import Model
    from llmtrace.introspect.inside import Inside
    from llmtrace.introspect.invariants import Case, Invariant
    from llmtrace.introspect.worth import Course
    from llmtrace.verify.caps import Caps
    from llmtrace.verify.reading import Run

NAME = 32  # width of the names of invariants
COPIES = 4  # of the rows that are looked at, as float64


class Positions(click.ParamType["str | int"]):
    """``all``, ``last`` or how many."""

    name = "positions"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> str | int:
        """Gives the word or the number."""
        if value in {"all", "last"}:
            return str(value)
        if not str(value).isdecimal() or not 0 < int(value) < 1 << 31:
            self.fail(f"'{value}' is not all, last or a number above zero", param, ctx)
        return int(value)


class Subject(NamedTuple):
    """A run, its model, what of it is looked at, and what that may cost if it is a stranger's."""

    run: Run
    model: Model
    positions: list[int]
    caps: Caps | None
    deep: bool
    answer: list[int] | None


class Found(NamedTuple):
    """What was looked at, the invariants, and the sections but ``run`` as JSON."""

    case: Case
    invariants: list[Invariant]
    sections: dict[str, Any]


@command()
@click.argument("commit", metavar="COMMIT")
@click.option(
    "--positions",
    type=Positions(),
    metavar="all|last|COUNT",
    help="Look at so many positions, spread over the run (default: 64).",
)
@click.option("--deep", is_flag=True, help="Make further passes: in float64, by ablation.")
@click.option("--answer", metavar="TEXT", help="Say how likely an answer to the prompt is.")
@replays
def introspect(session: Session, commit: str, **options: Any) -> int:
    r"""Check the inside of a run and say what it is worth

    COMMIT is any git revision of the store that holds a run. Replays it and
    checks that what each basic block gave follows from what it was given, in
    another arithmetic: a block, a weight or a row of the KV cache that is
    wrong is found and named, though nothing looks amiss. Prints a line for
    each invariant, then the scores of the run, of its least fit points and of
    its features, then the features themselves.

    --deep compares with a whole pass in float64, replaces components by their
    mean to see what that does, and asks for gradients where torch is.

    Exits 0 if the inside is sound, 4 if it is not, 3 where the model is not
    here.

    \b
    Examples:
        llmtrace introspect HEAD
        llmtrace introspect HEAD --positions all -d cuda
        llmtrace introspect HEAD --deep --answer ' in Paris'
    """
    deep.checked_answer(options["answer"])
    subject = _subject(session, commit, options)
    found = _found(session, subject, options["answer"])
    whole = {"run": _run(subject), **found.sections}
    if session.out.json:
        session.out.object("introspect", **whole)
    else:
        for name in (name for name in SECTIONS if whole[name] is not None or name == "scores"):
            session.out.line(name)
            for line in SECTIONS[name](whole):
                session.out.line(plain(f"  {line}".rstrip()))
        session.out.line(_conclusion(found.invariants))
    _complain(subject, found.case, found.invariants)
    return 0


def _subject(session: Session, commit: str, options: dict[str, Any]) -> Subject:
    """Audits the run and opens its model; raises Trouble for what is no sound record."""
    from llmtrace.blocks.versions import version
    from llmtrace.cli.opening import Models, open_store
    from llmtrace.introspect.positions import MOST, spread
    from llmtrace.verify.caps import Caps, caps_for
    from llmtrace.verify.reading import Run
    from llmtrace.verify.verify import audited

    models = Models(session, options["model"], options["device"], options["threads"])
    store = open_store(session)
    entry = store.read(commit)
    verdict = audited(store, entry)
    if verdict:
        why = f"'{entry.id[:8]}' is invalid: {verdict.reason}"
        raise Trouble(why, f"see 'llmtrace verify {entry.id[:8]}'")
    run = Run.of(entry)
    claim, request = run.claim, run.claim.request
    numerics = version(claim.numerics)
    caps = Caps(options["max_tokens"], options["max_memory"], options["max_seconds"])
    limits = caps_for(store, entry.record.node, caps)
    if limits:
        limits.admit(request)
    model = models.find(claim.model, run.model_name, numerics)
    wanted, total, first = options["positions"], request.positions, len(request.prompt) - 1
    most = {"all": total, "last": 1, None: MOST}.get(wanted) or int(wanted)
    answer = options["answer"]
    tokens = None if answer is None else deep.answer_tokens(model, run, answer)
    chosen = spread(total, first, run.logprobs, most)
    subject = Subject(run, model, chosen, limits, options["deep"], tokens)
    _afford(subject)
    return subject


def _afford(subject: Subject) -> None:
    """Raises Inconclusive for a stranger's run that needs more memory than is spent for others."""
    from llmtrace.blocks.llama import blocks

    run, model, looked = subject.run, subject.model, len(subject.positions)
    widths = {p.name: p.rows.width for b in blocks(model.architecture) for p in b.points}
    try:
        needed = model.memory(run.claim.request, keep=widths)
    except Misuse as error:
        raise Trouble(f"'{run.id[:8]}' cannot be replayed: {error}") from None
    if subject.caps:
        most = deep.memory(model, run, looked, subject.answer, subject.deep)
        subject.caps.afford(needed + 8 * COPIES * sum(widths.values()) * looked + most)


def _found(session: Session, subject: Subject, answer: str | None) -> Found:
    """Replays the run and looks at it from all sides."""
    from llmtrace.introspect.features import totals
    from llmtrace.introspect.inside import look
    from llmtrace.introspect.invariants import ALL
    from llmtrace.introspect.worth import Course

    run, model = subject.run, subject.model
    clock = subject.caps.clock() if subject.caps else None

    def heed(*_: object) -> None:
        if clock:
            clock.check()

    count = 1 + len(ALL) + 1 + len(deep.DEEP) * subject.deep + (answer is not None)
    with session.out.progress(count, "introspect", "step") as bar:
        every, course = totals(model.architecture), Course(model, run.claim.request)
        told = (every, course)
        inside = look(model, run.claim, subject.positions, tell=told, heed=heed)
        bar.update()
        case, invariants = _checked(subject, inside, bar, heed)
        sections = dict.fromkeys(("invariants", "scores", "features", *deep.DEEP, "answer"))
        made: dict[str, Any] = sections
        made["invariants"] = [_invariant(each) for each in invariants]
        made["scores"] = _scores(subject, inside, course)
        made["features"] = worth.features(every)
        bar.update()
        heed()
        if subject.deep:
            for name, found in deep.passes(model, run, inside, subject.caps, heed):
                made[name] = found
                bar.update()
        if answer is not None and subject.answer:
            made["answer"] = deep.answered(model, run, answer, subject.answer, heed)
            bar.update()
    return Found(case, invariants, made)


def _checked(
    subject: Subject, inside: Inside, bar: Bar, heed: Callable[[], None]
) -> tuple[Case, list[Invariant]]:
    """Checks every invariant."""
    from llmtrace.introspect.invariants import Case, check

    record = subject.run.record
    digests, seed = record.parts.get("digests.bin"), record.checksum.encode()
    case, found = Case(inside, subject.model, subject.run.claim, digests, seed), []
    for invariant in check(case):
        found.append(invariant)
        bar.update()
        heed()
    return case, found


def _scores(subject: Subject, inside: Inside, course: Course) -> dict[str, Any] | None:
    """The scores; None where no position that drew a token was looked at."""
    from llmtrace.introspect.scores import Scorer

    if not len(inside.drawn):
        return None
    scorer = Scorer(subject.model, subject.run.claim.request)
    scorer.add(inside)
    return worth.scores(scorer, course.worth(subject.model, inside))


def _run(subject: Subject) -> dict[str, Any]:
    run, record = subject.run, subject.run.record
    return {
        "commit": run.id,
        "checksum": record.checksum,
        "model": run.model_name,
        "model_id": run.claim.model,
        "numerics": run.claim.numerics,
        "device": subject.model.device.describe()["device"],
        "prompt": run.prompt,
        "output": run.output,
        "level": run.claim.level,
        "positions": run.claim.request.positions,
        "looked_at": subject.positions,
    }


def _invariant(found: Invariant) -> dict[str, Any]:
    where = found.where
    return {
        "name": found.name,
        "verdict": found.verdict,
        "margin": found.margin,
        "bound": found.bound,
        "formula": found.formula,
        "n": found.n,
        "where": {"position": where.position, "block": where.block, "point": where.point}
        if where
        else None,
        "why": found.why,
    }


def _run_lines(whole: dict[str, Any]) -> Iterator[str]:
    run = whole["run"]
    for name in ("commit", "checksum", "numerics", "device"):
        yield f"{name:9}  {run[name]}"
    yield f"{'model':9}  {run['model']} {run['model_id'][:16]}…"
    yield f"{'positions':9}  {len(run['looked_at'])} of {run['positions']} looked at"


def _invariant_lines(whole: dict[str, Any]) -> Iterator[str]:
    for each in whole["invariants"]:
        name = f"{each['name']:{NAME}}"
        if each["verdict"] == "not applicable":
            yield f"{'-':4}  {name} not applicable: {each['why']}"
            continue
        yield f"{each['verdict']:4}  {name} {each['n']:>10} values  {_margin(each)}"
        if each["why"]:
            where = each["where"]["block"]
            yield f"{'':6}{where + ': ' if where else ''}{each['why']}"


def _margin(each: dict[str, Any]) -> str:
    margin, verdict = each["margin"], each["verdict"]
    if each["bound"]:
        return f"{100 * margin:.3g} % of the bound"
    return "equal bits" if verdict == "pass" else f"{margin:.3g} float32 steps off"


SECTIONS: dict[str, Callable[[dict[str, Any]], Iterator[str]]] = {
    "run": _run_lines,
    "invariants": _invariant_lines,
    "scores": worth.score_lines,
    "features": worth.feature_lines,
    "propagated": deep.propagated_lines,
    "ablation": deep.ablation_lines,
    "gradients": deep.gradient_lines,
    "answer": deep.answer_lines,
}
"""What is printed under each heading, from what is printed as JSON."""


def _conclusion(found: list[Invariant]) -> str:
    counts = {name: sum(each.verdict == name for each in found) for name in ("pass", "fail")}
    rest = len(found) - sum(counts.values())
    told = f"{counts['pass']} invariants pass, {counts['fail']} fail, {rest} not applicable"
    return f"{'unsound' if counts['fail'] else 'sound'}: {told}"


def _complain(subject: Subject, case: Case, found: list[Invariant]) -> None:
    """Raises Trouble that names the first invariant that fails, and where it does."""
    from llmtrace.introspect.invariants import first_fault

    fault = first_fault(found, case)
    if fault is None:
        return
    where = []
    if fault.where and fault.where.block:
        where.append(f"at '{fault.where.block}'")
    if fault.where and fault.where.position is not None:
        where.append(f"position {fault.where.position}")
    short = subject.run.id[:8]
    text = " ".join((f"the inside of '{short}' is not sound: {fault.name}", ", ".join(where)))
    hint = f"'llmtrace verify {short} -d cpu' says whether the record is true"
    raise Trouble(text.rstrip(), hint)
