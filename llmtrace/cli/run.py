"""Run: generate, record, commit."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from llmtrace.cli.frame import Session, command
from llmtrace.cli.input import is_terminal, read_text
from llmtrace.errors import Misuse, Trouble

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from llmtrace.cli.opening import Models
    from llmtrace.cli.requests import Job
    from llmtrace.engine.draft import Drafter
    from llmtrace.engine.request import Request
    from llmtrace.engine.sequence import Trace
    from llmtrace.engine.trace import Model, NotFinite
    from llmtrace.model.architecture import Architecture
    from llmtrace.model.tokenizer import Tokenizer
    from llmtrace.probes.scheme import Scheme
    from llmtrace.store.chain import Event, Store


@dataclass(frozen=True)
class _Line:
    """What holds for all prompts of one command line."""

    session: Session
    model: Model
    tokenizer: Tokenizer | None
    store: Store | None
    name: str
    numerics: str
    level: str
    keep: tuple[str, ...]
    leaves: bool
    form: str
    scheme: Scheme
    draft: Callable[[Request], Drafter] | None


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
    "-d",
    "--device",
    metavar="auto|cpu|cuda[:N]",
    help="Where to compute; cannot move a bit (default: auto).",
)
@click.option(
    "--threads",
    type=click.IntRange(1, 1024),
    metavar="COUNT",
    help="CPU threads (default: all cores).",
)
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
    from llmtrace.blocks.versions import version
    from llmtrace.cli.opening import Models, open_store, points
    from llmtrace.cli.requests import jobs
    from llmtrace.model.registry import SAMPLE
    from llmtrace.model.tokenizer import Tokenizer
    from llmtrace.store.journal import Journal

    if session.json:
        options["form"] = "json"
    session.out.json = options["form"] == "json"
    prompt = _prompt(options)
    numerics = version(options["numerics"] or session.settings.numerics)
    name = options["model"] or session.settings.model or SAMPLE
    models = Models(session, name, options["device"], options["threads"])
    model = models.open(name, numerics)
    tokenizer = Tokenizer.open(model.checkpoint) if Tokenizer.exists(model.checkpoint) else None
    asked = list(jobs(prompt, options, model, tokenizer, session.out))
    store = None if options["no_commit"] else open_store(session, create=True)
    kept = points(model.architecture, options["keep"])
    scheme = _scheme(options["scheme"], options["probe"], model.architecture)
    draft = _drafting(options["draft"], models, model, asked)
    how = (options["probe"], kept, options["leaves"], options["form"], scheme, draft)
    line = _Line(session, model, tokenizer, store, _model_name(name), numerics.name, *how)
    if store is None:
        for done in _traces(line, asked):
            _print(line, done, None)
        return 0
    environment = session.settings.network
    journal = Journal[_Done](store, lambda done, commit: _print(line, done, commit), environment)
    try:
        for done in _traces(line, asked, journal.tick):
            journal.add(done, _event(line, done))
    finally:  # what is done is recorded, whatever became of the rest
        journal.close()
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


def _drafting(
    name: str | None, models: Models, model: Model, asked: list[Job]
) -> Callable[[Request], Drafter] | None:
    """Gives who guesses for a request; raises Misuse if the draft model cannot for all of them."""
    from llmtrace.engine.draft import Ngram, Smaller, fits

    if name is None:
        return None
    if name == "ngram":
        return lambda _: Ngram()
    smaller = models.open(name, model.version)
    fits(model, smaller)
    try:
        list(smaller.checked(job.request for job in asked))
    except Misuse as error:
        raise Misuse(f"draft model: {error}", *error.hints) from None
    return lambda request: Smaller(smaller, request)


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


def _model_name(name: str) -> str:
    """A folder is recorded by its last name: paths of this machine are nobody's business."""
    return name.rstrip("/").rsplit("/", 1)[-1] or name


class _Done(NamedTuple):
    """A job at its end."""

    job: Job
    trace: Trace
    steps: int
    timings: dict[str, int]


def _traces(
    line: _Line, asked: list[Job], tick: Callable[[], None] = lambda: None
) -> Iterator[_Done]:
    """Runs all jobs; gives their traces in the order in which they were asked for.

    ``tick`` is called with every token. Raises Trouble of the first that fails when all others
    are done.
    """
    from llmtrace.blocks.arrays import PROBES
    from llmtrace.engine.trace import Done, Failed, NotFinite, Token, trace
    from llmtrace.introspect.observer import observing
    from llmtrace.model.tokenizer import TextStream

    out, tokenizer = line.session.out, line.tokenizer
    requests = [job.request for job in asked]
    probes = 0 if line.level == "off" else PROBES
    observe = observing(line.model, line.level, line.scheme) if probes else None
    # What nobody will record or print needs no digests.
    digests = bool(probes or line.store or line.leaves or line.form == "json")
    plan = line.model.plan(
        requests, probes=probes, keep=line.keep, leaves=line.leaves, digests=digests
    )
    streams = line.form == "text" and [job.is_alone for job in asked] == [True]
    stream = TextStream(tokenizer, requests[0].prompt) if streams and tokenizer else None
    total = sum(r.max_tokens for r in requests)
    bar = out.progress(total, "tokens", "tok", streams=stream is not None)
    ended: dict[int, _Done | None] = {}
    first: dict[int, int] = {}
    start, following = time.monotonic_ns(), 0
    with bar:
        try:
            for event in trace(line.model, plan, requests, observe=observe, draft=line.draft):
                now = (time.monotonic_ns() - start) // 1000
                if isinstance(event, Token):
                    first.setdefault(event.index, now)
                    bar.update(1)
                    tick()
                    if stream:
                        out.stream(stream.push(event.token))
                elif isinstance(event, Done):
                    timings = {"prefill_us": first.pop(event.index), "total_us": now}
                    job = asked[event.index]
                    ended[event.index] = _Done(job, event.trace, event.steps, timings)
                elif isinstance(event, Failed):
                    ended[event.index] = None
                while following in ended:
                    done = ended.pop(following)
                    following += 1
                    if done and stream:
                        out.stream(stream.finish())
                    if done:
                        yield done
        except NotFinite as error:
            raise _of_line(error, asked) from None


def _of_line(error: NotFinite, asked: list[Job]) -> Trouble:
    """Says which line of a batch failed."""
    if asked[error.index].is_alone:
        return error
    return Trouble(f"line {error.index + 1}: {error}", *error.hints)


def _event(line: _Line, done: _Done) -> Event:
    from llmtrace import __version__
    from llmtrace.device.compile import kernels_folder, sources_digest
    from llmtrace.engine import evidence
    from llmtrace.store.chain import Event

    trace = done.trace
    attested = {
        "model": line.name,
        "device": line.model.device.describe(),
        "kernels": sources_digest(kernels_folder()),
        "llmtrace": __version__,
        "timings": done.timings,
    }
    sections = {
        "trace": evidence.trace_section(trace, line.model.id, line.numerics),
        "probes": evidence.probes_section(
            line.level, line.keep, leaves=line.leaves, scheme=line.scheme
        ),
        "attested": attested,
    }
    text = done.job.text
    parts = evidence.parts(
        trace, level=line.level, tokenizer=line.tokenizer, prompt=text, leaves=line.leaves
    )
    return Event("run", sections, parts, int(time.time()))


def _print(line: _Line, done: _Done, commit: str | None) -> None:
    from llmtrace.engine import evidence
    from llmtrace.store.record import checksum

    out, model, tokenizer = line.session.out, line.model, line.tokenizer
    job, trace, steps, timings = done
    prompt = trace.request.prompt
    text = (
        tokenizer.continuation(prompt, trace.output)
        if tokenizer
        else " ".join(map(str, trace.output))
    )
    if line.form == "json":
        section = evidence.trace_section(trace, model.id, line.numerics)
        out.object(
            "run",
            commit=commit,
            checksum=checksum(section),
            node=line.store.node if line.store else None,
            model={"name": line.name, "id": model.id},
            numerics=line.numerics,
            device=model.device.name,
            prompt=job.text,
            prompt_tokens=list(prompt),
            output=text,
            output_tokens=list(trace.output),
            logprobs=[float(x).hex() for x in trace.logprobs],
            finish_reason=trace.finish_reason,
            steps=steps,
            timings=timings,
        )
    elif line.form == "id":
        out.line(commit or "")
    else:
        streamed = job.is_alone and tokenizer is not None
        out.line("" if streamed else text)
        if commit:
            out.note(f"commit {commit}")
