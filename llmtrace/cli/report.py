"""Report: the inside of a run on the terminal or in one HTML file; two runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmtrace.cli.caps import replays
from llmtrace.cli.files import write_whole
from llmtrace.cli.frame import Session, command
from llmtrace.cli.output import plain
from llmtrace.errors import Inconclusive, Trouble

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmtrace.cli.opening import Models
    from llmtrace.engine.trace import Fed, Model
    from llmtrace.introspect.observer import Observing
    from llmtrace.introspect.page import Replay, Subject
    from llmtrace.store.chain import Store
    from llmtrace.verify.caps import Caps
    from llmtrace.verify.judge import Verdict
    from llmtrace.verify.reading import Run

COLUMNS = 80  # where the answer does not go to a terminal


@command()
@click.argument("commit", metavar="COMMIT")
@click.argument("other", required=False, metavar="[OTHER]")
@click.option(
    "-o", "--output", metavar="FILE", help="Write an HTML file, in place of what is there."
)
@click.option("--no-times", is_flag=True, help="Do not measure how long blocks take.")
@click.option(
    "--ablate", is_flag=True, help="Check attribution by ablation, however long it takes."
)
@replays
def report(
    session: Session,
    commit: str,
    other: str | None,
    output: str | None,
    **options: Any,
) -> int:
    r"""Show the inside of a run as a page or an HTML file

    COMMIT is any git revision of the store. Audits and replays it, looks at
    what happened inside, and prints a page of 80 columns. FILE is one HTML
    file that needs no network; its path is printed. Of two commits the page
    shows where they part and what differs.

    \b
    Examples:
        llmtrace report HEAD
        llmtrace report HEAD -o report.html
        llmtrace report HEAD~ HEAD -o both.html
    """
    from llmtrace.cli.opening import Models, open_store
    from llmtrace.verify.caps import Caps

    models = Models(session, options["model"], options["device"], options["threads"])
    store = open_store(session)
    caps = Caps(options["max_tokens"], options["max_memory"], options["max_seconds"])
    settings = {"measures": not options["no_times"], "ablates": options["ablate"] or None}
    pages = [
        _page(session, store, models, caps, revision, settings)
        for revision in ([commit, other] if other else [commit])
    ]
    if session.out.json:
        for page in pages:
            session.out.object("report", **page)
    if output:
        size = write_whole(Path(output), _html(pages).encode())
        if not session.out.json:
            session.out.line(plain(output))
        session.out.detail(f"llmtrace: {size} bytes")
    elif not session.out.json:
        _print(session, pages)
    return 0


def _html(pages: list[dict[str, Any]]) -> str:
    from llmtrace.introspect import beside, html

    return beside.render(*pages) if len(pages) == 2 else html.render(pages[0])


def _print(session: Session, pages: list[dict[str, Any]]) -> None:
    from llmtrace.cli.settings import wants_colour
    from llmtrace.introspect import beside, terminal

    columns = session.out.columns
    settings: dict[str, Any] = {
        "columns": min(columns or COLUMNS, 120),
        "colour": columns is not None and wants_colour(),
    }
    made = (
        beside.lines(*pages, **settings)
        if len(pages) == 2
        else terminal.lines(pages[0], **settings)
    )
    for line in made:
        session.out.line(line)


def _page(
    session: Session,
    store: Store,
    models: Models,
    caps: Caps,
    revision: str,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Audits, replays and looks at one run."""
    from llmtrace.blocks.versions import version
    from llmtrace.introspect.page import page
    from llmtrace.verify.caps import caps_for
    from llmtrace.verify.reading import Run
    from llmtrace.verify.verify import audited

    entry = store.read(revision)
    run = Run.of(entry)
    verdict = audited(store, entry)
    if verdict:
        hint = f"'llmtrace audit {run.record.node}' says more"
        raise Trouble(f"'{run.id[:8]}' is invalid: {verdict.reason}", hint)
    try:
        numerics = version(run.claim.numerics)
        limits = caps_for(store, run.record.node, caps)
        if limits:
            limits.admit(run.claim.request)
        model = models.find(run.claim.model, run.model_name, numerics)
        positions = run.claim.request.positions
        with session.out.progress(positions, "look", "position") as bar:
            clock = limits.clock() if limits else None

            def heed(fed: Fed) -> None:
                bar.update(fed.positions - bar.n)
                if clock:
                    clock.check(fed)

            verdict, replayed = _replayed(run, model, limits, heed)
            subject = _subject(run, model, verdict, heed)
            return page(model, subject, replayed=replayed, **settings)
    except Inconclusive as error:
        raise Inconclusive(f"'{run.id[:8]}': {error}", *error.hints) from None


def _replayed(
    run: Run, model: Model, limits: Caps | None, heed: Callable[[Fed], None]
) -> tuple[Verdict, Replay | None]:
    """The verdict, and the replay that gave it; None where nobody could watch that."""
    from llmtrace.introspect.page import Replay, streamed
    from llmtrace.introspect.watch import Watch
    from llmtrace.verify.judge import Verdict, judge
    from llmtrace.verify.verify import remake

    watches: list[Watch] = []

    def watch(first: Observing) -> Watch:
        watches.append(Watch(model, run.claim.request, first.totals))
        return watches[0]

    keep = streamed(model, run.claim.request)
    made = remake(run.record, run.claim, model, limits, keep=keep, also=watch, heed=heed)
    if isinstance(made, Verdict):
        return made, None
    replay = Replay(watches[0], made.plan, made.trace.kept) if watches else None
    return judge(run.record, run.claim, made), replay


def _subject(run: Run, model: Model, verdict: Verdict, heed: Callable[[Fed], None]) -> Subject:
    from llmtrace.introspect.page import Subject

    return Subject(
        commit=run.id,
        checksum=run.record.checksum,
        model_name=run.model_name,
        claim=run.claim,
        prompt=run.prompt,
        output=run.output,
        verdict=verdict.verdict,
        reason=verdict.reason,
        digests=run.record.parts.get("digests.bin"),
        text=_texts(model),
        heed=heed,
    )


def _texts(model: Model) -> Callable[[int], str]:
    """Gives the text of a token as it stands inside other text; its number without a tokenizer."""
    from functools import cache

    from llmtrace.model.tokenizer import Tokenizer

    if not Tokenizer.exists(model.checkpoint):
        return str
    tokenizer = Tokenizer.open(model.checkpoint)
    ahead = next(
        (t for t in range(model.architecture.vocab_size) if tokenizer.decode([t]).isalnum()), None
    )
    before = tokenizer.decode([ahead]) if ahead is not None else ""

    @cache
    def text(token: int) -> str:
        if not tokenizer.leaves_text(token):
            return tokenizer.library.id_to_token(token) or f"[{token}]"
        whole = tokenizer.decode([token] if ahead is None else [ahead, token])
        return whole.removeprefix(before)

    return text
