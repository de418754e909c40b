"""Run: generate, record, commit."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmtrace.cli.frame import Session, command, threads
from llmtrace.cli.input import is_terminal, read_text
from llmtrace.errors import Misuse, Trouble

if TYPE_CHECKING:
    from llmtrace.cli.opening import Models, Outline
    from llmtrace.cli.output import Output
    from llmtrace.cli.requests import Job
    from llmtrace.cli.work import Answer, Terms
    from llmtrace.model.architecture import Architecture
    from llmtrace.model.tokenizer import Tokenizer
    from llmtrace.probes.scheme import Scheme
    from llmtrace.store.chain import Store


@command()
@click.argument("prompt", required=False)
@click.option("-m", "--model", metavar="NAME|DIR", help="Model to run (default: the sample model).")
@click.option(
    "--numerics", metavar="VERSION", help="Version of the arithmetic (default: accuracy)."
)
@click.option(
    "-n", "--max-tokens", type=int, metavar="COUNT", help="Most tokens to generate (default: 64)."
)
@click.option(
    "--temperature",
    type=float,
    default=0.0,
    metavar="T",
    help="0, the default, takes the most likely token.",
)
@click.option(
    "--top-k",
    type=int,
    default=0,
    metavar="K",
    help="Draw from the K most likely tokens (default: all).",
)
@click.option(
    "--top-p",
    type=float,
    default=1.0,
    metavar="P",
    help="Draw from the fewest tokens that hold P (default: 1).",
)
@click.option(
    "--seed", type=int, default=0, metavar="N", help="Seed of the draw, below 2^64 (default: 0)."
)
@click.option("-f", "--file", metavar="FILE", help="Read the prompt from FILE.")
@click.option("--prompt-tokens", metavar="IDS", help="The prompt as token ids, such as '1 5 7'.")
@click.option(
    "--batch", metavar="FILE", help="One JSON object with a prompt a line; - reads standard input."
)
@click.option(
    "--cluster",
    metavar="ADDRESS",
    help="Run the batch on the workers of this Dask scheduler, tcp://HOST:8786.",
)
@click.option(
    "-d",
    "--device",
    metavar="auto|cpu|cuda[:N]",
    help="Where to compute; cannot move a bit (default: auto).",
)
@threads
@click.option(
    "--probe",
    type=click.Choice(["off", "stats", "detail"]),
    default="stats",
    help="What to store of the inside.",
)
@click.option(
    "--scheme", metavar="FILE", help="Sample what FILE says, where it says, see llmtrace-scheme(5)."
)
@click.option(
    "--keep",
    multiple=True,
    metavar="GLOB",
    help="Keep whole tensors of these points (can be repeated).",
)
@click.option(
    "--leaves",
    is_flag=True,
    help="Store a digest a position and layer: a fault is in one layer beyond doubt.",
)
@click.option(
    "--draft",
    metavar="ngram|MODEL",
    help="Who guesses tokens, to check several in a step; cannot move a bit.",
)
@click.option("--no-commit", is_flag=True, help="Generate only.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "id", "json"]),
    default="text",
    help="What to print.",
)
def run(session: Session, **options: Any) -> int:
    r"""Generate text and record what happened inside as a commit

    PROMPT absent or '-': standard input. Prints the text as it comes; the
    commit id goes to standard error. With --format id prints the commit id
    alone, with --format json one object.

    \b
    Examples:
        llmtrace run "Once upon a time"
        llmtrace run --temperature 0.8 --seed 7 -n 40 "The old fox said"
        echo "Once there was a king" | llmtrace run --format id
    """
    from llmtrace.cli.opening import Models, open_store
    from llmtrace.cli.requests import jobs
    from llmtrace.cli.work import tokenizer_of
    from llmtrace.model.registry import SAMPLE

    if session.json:
        options["form"] = "json"
    session.out.json = options["form"] == "json"
    _check_cluster(session, options)
    prompt = _prompt(options)
    name = options["model"] or session.settings.model or SAMPLE
    models = Models(session, name, options["device"], options["threads"])
    model = models.outline(name)
    tokenizer = tokenizer_of(model.checkpoint)
    asked = list(jobs(prompt, options, model, tokenizer, session.out))
    terms = _terms(session, options, name, model, models, asked)
    page = _Page(session.out, options["form"], terms, model, tokenizer)
    if options["cluster"] is not None:
        _run_there(session, options, page, name, asked)
    else:
        store = None if options["no_commit"] else open_store(session, create=True)
        _run_here(session, page, models, store, asked)
    return 0


def _prompt(options: dict[str, Any]) -> str | None:
    """Gives the one text prompt; None for token ids and batches."""
    given = [
        name for name in ("prompt", "file", "prompt_tokens", "batch") if options[name] is not None
    ]
    if len(given) > 1:
        first, second = (
            ("PROMPT" if n == "prompt" else "--" + n.replace("_", "-")) for n in given[:2]
        )
        raise Misuse(f"{first} and {second} cannot be used together")
    if options["prompt_tokens"] is not None or options["batch"] is not None:
        return None
    if options["file"] is not None:
        return read_text(options["file"])
    if options["prompt"] not in {None, "-"}:
        return str(options["prompt"])
    if options["prompt"] is None and is_terminal():
        raise Misuse("no prompt", 'llmtrace run "Once upon a time"')
    return read_text("-")


def _check_cluster(session: Session, options: dict[str, Any]) -> None:
    if options["cluster"] is None:
        return
    if options["batch"] is None:
        raise Misuse("--cluster needs --batch", "--batch prompts.jsonl")
    if session.store is not None:
        raise Misuse("--store and --cluster cannot be used together: each worker has its own")


def _terms(
    session: Session,
    options: dict[str, Any],
    name: str,
    model: Outline,
    models: Models,
    asked: list[Job],
) -> Terms:
    """Gives what all prompts share, checked against the model before anything is computed."""
    from llmtrace.blocks.versions import version
    from llmtrace.cli.opening import points
    from llmtrace.cli.work import Terms

    level = options["probe"]
    _check_draft(options["draft"], models, model, asked)
    return Terms(
        name=_model_name(name),
        numerics=version(options["numerics"] or session.settings.numerics).name,
        level=level,
        keep=points(model.architecture, options["keep"]),
        leaves=options["leaves"],
        scheme=_scheme(options["scheme"], level, model.architecture),
        draft=options["draft"],
        digests=level != "off"
        or options["leaves"]
        or not options["no_commit"]
        or options["form"] == "json",
    )


def _check_draft(name: str | None, models: Models, model: Outline, asked: list[Job]) -> None:
    """Raises Misuse if the draft model cannot guess for all requests."""
    from llmtrace.engine.draft import fits
    from llmtrace.engine.request import checked

    if name in {None, "ngram"}:
        return
    assert name is not None
    smaller = models.outline(name)
    fits(model.architecture, smaller.architecture)
    try:
        list(checked((job.request for job in asked), smaller.architecture))
    except Misuse as error:
        raise Misuse(f"draft model: {error}", *error.hints) from None


def _scheme(file: str | None, level: str, architecture: Architecture) -> Scheme:
    """Reads a scheme and checks it against the model before anything is computed."""
    from llmtrace.introspect.features import totals
    from llmtrace.probes.scheme import Scheme, parse

    if file is None:
        return Scheme()
    if level == "off":
        raise Misuse("--scheme samples what --probe off leaves out")
    try:
        scheme = parse(read_text(file))
        shape = totals(architecture).shape
        for rule in scheme.rules:
            rule.columns([*shape.points, *shape.picked], shape.layers)
    except Misuse as error:
        raise Trouble(f"'{file}': {error}", *error.hints) from None
    return scheme


def _abroad(name: str | None) -> str | None:
    """What other machines are to call a model: a folder by its whole path."""
    from llmtrace.model.registry import is_folder

    return str(Path(name).resolve()) if name and is_folder(name) else name


def _model_name(name: str) -> str:
    """A folder is recorded by its last name: paths of this machine are nobody's business."""
    return name.rstrip("/").rsplit("/", 1)[-1] or name


def _run_here(
    session: Session, page: _Page, models: Models, store: Store | None, asked: list[Job]
) -> None:
    """Runs the jobs on this machine, prints them, and records them if there is a store."""
    from llmtrace.cli.work import Work
    from llmtrace.model.tokenizer import TextStream
    from llmtrace.store.journal import Journal

    out, tokenizer = session.out, page.tokenizer
    streams = page.form == "text" and [job.is_alone for job in asked] == [True]
    stream = TextStream(tokenizer, asked[0].request.prompt) if streams and tokenizer else None
    work = Work.open(page.terms, models, page.model, tokenizer)
    journal: Journal[tuple[Job, Answer]] | None = None
    if store is not None:
        node = store.node
        journal = Journal(
            store, lambda item, commit: page.print(*item, node, commit), session.settings.network
        )

    def heard(token: int) -> None:
        bar.update(1)
        if journal:
            journal.tick()
        if stream:
            out.stream(stream.push(token))

    total = sum(job.request.max_tokens for job in asked)
    bar = out.progress(total, "tokens", "tok", streams=stream is not None)
    try:
        with bar:
            for done in work.traces(asked, heard):
                if stream:
                    out.stream(stream.finish())
                answer = work.answer(done)
                if journal:
                    journal.add((done.job, answer), work.event(done))
                else:
                    page.print(done.job, answer, None, None)
    finally:  # what is done is recorded, whatever became of the rest
        if journal:
            journal.close()


def _run_there(
    session: Session, options: dict[str, Any], page: _Page, name: str, asked: list[Job]
) -> None:
    """Runs the jobs on the workers of a cluster, which record them, and prints them."""
    from llmtrace.cli.worker import Asked, build, open_worker
    from llmtrace.cluster import batch
    from llmtrace.engine.trace import CONCURRENT

    out, model, records = session.out, page.model, Counter[str]()

    def ended(one: batch.Ended) -> None:
        page.print(asked[one.job], one.answer, one.node, one.commit)
        records.update([one.node] if one.node else [])

    wanted = Asked(
        terms=replace(page.terms, draft=_abroad(page.terms.draft)),
        model=_abroad(name) or name,
        model_id=model.id,
        device=options["device"],
        threads=options["threads"],
        records=not options["no_commit"],
        build=build(),
    )
    bar = out.progress(sum(job.request.max_tokens for job in asked), "tokens", "tok")
    ears = batch.Ears(ended, lambda answer: bar.update(len(answer.output)), out.warn)
    try:
        with bar:
            batch.run(options["cluster"], open_worker, wanted, asked, CONCURRENT, ears)
    finally:
        for node, count in sorted(records.items()) if page.form != "json" else ():
            out.note(f"{count} records of node {node}")


@dataclass(frozen=True)
class _Page:
    """How answers are printed."""

    out: Output
    form: str
    terms: Terms
    model: Outline
    tokenizer: Tokenizer | None

    def print(self, job: Job, answer: Answer, node: str | None, commit: str | None) -> None:
        """Prints what a run said, and the record of it, if there is one."""
        prompt = job.request.prompt
        text = (
            self.tokenizer.continuation(prompt, answer.output)
            if self.tokenizer
            else " ".join(map(str, answer.output))
        )
        if self.form == "json":
            self.out.object(
                "run",
                commit=commit,
                checksum=answer.checksum,
                node=node,
                model={"name": self.terms.name, "id": self.model.id},
                numerics=self.terms.numerics,
                device=answer.device,
                prompt=job.text,
                prompt_tokens=list(prompt),
                output=text,
                output_tokens=list(answer.output),
                logprobs=list(answer.logprobs),
                finish_reason=answer.finish_reason,
                steps=answer.steps,
                timings=answer.timings,
            )
        elif self.form == "id":
            self.out.line(commit or "")
        else:
            streamed = job.is_alone and self.tokenizer is not None
            self.out.line("" if streamed else text)
            if commit:
                self.out.note(f"commit {commit}")
