"""What runs compute and what they say of it: the same here and at a worker of a cluster."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from llmtrace.errors import Trouble

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from llmtrace.blocks.versions import Version
    from llmtrace.cli.opening import Models, Outline
    from llmtrace.cli.requests import Job
    from llmtrace.engine.draft import Drafter
    from llmtrace.engine.request import Request
    from llmtrace.engine.sequence import Trace
    from llmtrace.engine.trace import Model, NotFinite
    from llmtrace.model.checkpoint import Checkpoint
    from llmtrace.model.tokenizer import Tokenizer
    from llmtrace.probes.scheme import Scheme
    from llmtrace.store.chain import Event


@dataclass(frozen=True)
class Terms:
    """What holds for all prompts of one command line, whoever runs them."""

    name: str
    """The model's, as records have it."""
    numerics: str
    level: str
    keep: tuple[str, ...]
    leaves: bool
    scheme: Scheme
    draft: str | None
    """``ngram``, or a model by name or folder."""
    digests: bool
    """What nobody will record or print needs none."""


class Done(NamedTuple):
    """A job at its end."""

    job: Job
    trace: Trace
    steps: int
    timings: dict[str, int]


class Answer(NamedTuple):
    """What is told of a run."""

    checksum: str
    """Empty without digests."""
    device: str
    output: tuple[int, ...]
    logprobs: tuple[str, ...]
    """Hexadecimal floats."""
    finish_reason: str
    steps: int
    timings: dict[str, int]


@dataclass(frozen=True)
class Work:
    """Terms, and the model that runs under them."""

    terms: Terms
    model: Model
    tokenizer: Tokenizer | None
    draft: Callable[[Request], Drafter] | None

    @classmethod
    def open(cls, terms: Terms, models: Models, outline: Outline, text: Tokenizer | None) -> Work:
        """Puts the model on the device, and the one that drafts, if one does."""
        from llmtrace.blocks.versions import version

        model = models.place(outline, version(terms.numerics))
        return cls(terms, model, text, _drafting(terms.draft, models, model.version))

    def traces(self, asked: list[Job], heard: Callable[[int], None]) -> Iterator[Done]:
        """Runs all jobs; gives them in the order in which they were asked for.

        ``heard`` is called with every token. Raises Trouble of the first that fails when all
        others are done.
        """
        from llmtrace.blocks.arrays import PROBES
        from llmtrace.engine import trace as engine
        from llmtrace.introspect.observer import observing

        terms, requests = self.terms, [job.request for job in asked]
        probes = 0 if terms.level == "off" else PROBES
        observe = observing(self.model, terms.level, terms.scheme) if probes else None
        plan = self.model.plan(
            requests, probes=probes, keep=terms.keep, leaves=terms.leaves, digests=terms.digests
        )
        ended: dict[int, Done | None] = {}
        first: dict[int, int] = {}
        start, following = time.monotonic_ns(), 0
        events = engine.trace(self.model, plan, requests, observe=observe, draft=self.draft)
        try:
            for event in events:
                now = (time.monotonic_ns() - start) // 1000
                if isinstance(event, engine.Token):
                    first.setdefault(event.index, now)
                    heard(event.token)
                elif isinstance(event, engine.Done):
                    times = {"prefill_us": first.pop(event.index), "total_us": now}
                    ended[event.index] = Done(asked[event.index], event.trace, event.steps, times)
                elif isinstance(event, engine.Failed):
                    ended[event.index] = None
                while following in ended:
                    done = ended.pop(following)
                    following += 1
                    if done:
                        yield done
        except engine.NotFinite as error:
            raise _of_line(error, asked) from None

    def answer(self, done: Done) -> Answer:
        """Tells of a run."""
        from llmtrace.engine import evidence
        from llmtrace.store.record import checksum

        trace, terms = done.trace, self.terms
        section = evidence.trace_section(trace, self.model.id, terms.numerics)
        return Answer(
            checksum=checksum(section) if terms.digests else "",
            device=self.model.device.name,
            output=trace.output,
            logprobs=tuple(float(x).hex() for x in trace.logprobs),
            finish_reason=trace.finish_reason,
            steps=done.steps,
            timings=done.timings,
        )

    def event(self, done: Done) -> Event:
        """Gives what is to be recorded of a run."""
        from llmtrace import __version__
        from llmtrace.device.compile import kernels_folder, sources_digest
        from llmtrace.engine import evidence
        from llmtrace.store.chain import Event

        trace, terms = done.trace, self.terms
        attested = {
            "model": terms.name,
            "device": self.model.device.describe(),
            "kernels": sources_digest(kernels_folder()),
            "llmtrace": __version__,
            "timings": done.timings,
        }
        sections = {
            "trace": evidence.trace_section(trace, self.model.id, terms.numerics),
            "probes": evidence.probes_section(
                terms.level, terms.keep, leaves=terms.leaves, scheme=terms.scheme
            ),
            "attested": attested,
        }
        parts = evidence.parts(
            trace,
            level=terms.level,
            tokenizer=self.tokenizer,
            prompt=done.job.text,
            leaves=terms.leaves,
        )
        return Event("run", sections, parts, int(time.time()))


def tokenizer_of(checkpoint: Checkpoint) -> Tokenizer | None:
    """Opens the tokenizer of a model, if it has one."""
    from llmtrace.model.tokenizer import Tokenizer

    return Tokenizer.open(checkpoint) if Tokenizer.exists(checkpoint) else None


def _of_line(error: NotFinite, asked: list[Job]) -> Trouble:
    """Says which line of a batch failed."""
    if asked[error.index].is_alone:
        return error
    return Trouble(f"line {error.index + 1}: {error}", *error.hints)


def _drafting(
    name: str | None, models: Models, version: Version
) -> Callable[[Request], Drafter] | None:
    from llmtrace.engine.draft import Ngram, Smaller

    if name is None:
        return None
    if name == "ngram":
        return lambda _: Ngram()
    smaller = models.open(name, version)
    return lambda request: Smaller(smaller, request)
