"""The one path from requests to traces: prefill, decode, batches and replay alike.

Every step feeds some tokens of some sequences. Which ones has no influence on any bit, so the
schedule is free: sequences that decode go first, prompts fill what room is left.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmtrace.blocks.arrays import PROBES, TILE, Limits, footprint
from llmtrace.blocks.llama import blocks
from llmtrace.blocks.plan import Plan
from llmtrace.blocks.versions import ACCURACY, Version
from llmtrace.blocks.weights import Weights, first_flaw
from llmtrace.engine.feed import feed, schedule
from llmtrace.engine.look import look
from llmtrace.engine.sequence import Sequence, Trace
from llmtrace.engine.tiles import Tiles
from llmtrace.errors import Misuse, Trouble
from llmtrace.probes.records import HEAD_WORDS, WORDS, Seen, probe_seed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import numpy as np

    from llmtrace.device.device import Device
    from llmtrace.engine.draft import Drafter
    from llmtrace.engine.inside import Observer
    from llmtrace.engine.request import Request
    from llmtrace.model.architecture import Architecture
    from llmtrace.model.checkpoint import Checkpoint

CHUNK = 256
"""Prompt tokens of one sequence in a step, unless asked otherwise."""
CONCURRENT = 16
"""Sequences that run at the same time."""
LOGITS_BYTES = 64 << 20
"""Most memory for the logits of one step."""
RECORD_COPIES = 3
"""Of a stored probe record: as it came, stacked, packed."""
KEPT_COPIES = 4
"""Of a kept tensor in memory at its end: pieces, joined, packed, and cut into parts."""


class NotFinite(Trouble):
    """A value inside the run is NaN or infinite: the run ends there, on every machine."""

    def __init__(self, message: str, *hints: str, position: int, point: str) -> None:
        super().__init__(message, *hints)
        self.position, self.point = position, point


@dataclass(frozen=True)
class Token:
    """One more token of the output of request ``index``."""

    index: int
    token: int
    logprob: float


@dataclass(frozen=True)
class Fed:
    """Request ``index``, which is replayed, has computed so many of its positions."""

    index: int
    positions: int


@dataclass(frozen=True)
class Done:
    """The trace of request ``index``, at its end, and how many steps it took."""

    index: int
    trace: Trace
    steps: int


@dataclass(frozen=True)
class Model:
    """A checkpoint with its weights on a device, for one version of the arithmetic.

    Makes plans of the size that requests need.
    """

    checkpoint: Checkpoint
    architecture: Architecture
    device: Device
    weights: Weights
    id: str
    version: Version = ACCURACY

    @classmethod
    def place(
        cls,
        checkpoint: Checkpoint,
        architecture: Architecture,
        device: Device,
        model_id: str,
        version: Version = ACCURACY,
    ) -> Model:
        """Puts the weights on the device."""
        return cls(checkpoint, architecture, device, Weights(checkpoint, device), model_id, version)

    def plan(
        self,
        requests: Iterable[Request],
        *,
        chunk: int = CHUNK,
        probes: int = PROBES,
        keep: Iterable[str] = (),
        leaves: bool = False,
        digests: bool = True,
    ) -> Plan:
        """Makes a plan with room for the requests, the largest ones at the same time.

        ``probes``: their format, 0 for none.
        """
        return Plan(
            self.checkpoint,
            self.architecture,
            self.device,
            self.weights,
            self._limits(requests, chunk),
            version=self.version,
            probes=probes,
            keep=tuple(keep),
            leaves=leaves,
            digests=digests,
        )

    def memory(
        self, request: Request, *, chunk: int = CHUNK, keep: Iterable[str] = (), whole: bool = False
    ) -> int:
        """Bytes that the trace of one request takes beside the weights, before any is taken.

        ``whole``: the records of all positions are stored. Raises Misuse as ``plan`` does.
        """
        a, keep, positions = self.architecture, tuple(keep), request.positions
        points = [point for block in blocks(a) for point in block.points]
        widths = sum(point.rows.width for point in points if point.name in keep)
        row = 2 * 32 * len(points)  # digests: pieces, then joined
        if whole:
            words = WORDS * len(points) + HEAD_WORDS * a.layer_count * a.head_count
            row += RECORD_COPIES * 4 * words
        row += KEPT_COPIES * 4 * widths
        limits = self._limits([request], chunk)
        threads = self.device.threads
        return footprint(a, limits, keep, threads=threads, version=self.version) + positions * row

    def _limits(self, requests: Iterable[Request], chunk: int) -> Limits:
        sizes = sorted((_tiles(r) for r in requests), reverse=True)
        most = max(self.checked(requests), default=1)
        together = min(len(sizes), CONCURRENT)
        rows = max(min(chunk, most), together)
        picks = max(together, min(rows, LOGITS_BYTES // (4 * self.architecture.vocab_size)))
        return Limits(rows, picks, sum(sizes[:together]), together)

    def checked(self, requests: Iterable[Request]) -> Iterator[int]:
        """Gives the positions of each request; raises Misuse where one does not fit the model."""
        vocabulary, context = self.architecture.vocab_size, self.architecture.context_length
        for request in requests:
            if not request.prompt:
                raise Misuse("the prompt has no tokens", "give at least one token")
            if request.max_tokens < 1:
                raise Misuse(f"max tokens is '{request.max_tokens}'", "ask for at least one token")
            for token in (*request.prompt, *(request.forced or ()), *request.stop):
                if not 0 <= token < vocabulary:
                    raise Misuse(f"no token '{token}' in a vocabulary of {vocabulary}")
            if request.positions > context:
                raise Misuse(
                    f"prompt and output need {request.positions} positions,"
                    f" the model's context has {context}",
                    "shorten the prompt or ask for fewer tokens with -n",
                )
            yield request.positions


def _tiles(request: Request) -> int:
    return -(-request.positions // TILE)


def trace(
    model: Model,
    plan: Plan,
    requests: list[Request],
    *,
    chunk: int = CHUNK,
    observe: Callable[[Request], Observer] | None = None,
    draft: Callable[[Request], Drafter] | None = None,
) -> Iterator[Token | Fed | Done]:
    """Runs the requests, yielding tokens as they come and each trace when its run ends.

    Of what is replayed it tells after each step how far it is, so that a caller may stop.
    ``observe`` gives each request somebody who is told what probes of format 2 measure, ``draft``
    somebody who guesses what it will say: that moves no bit, but may save steps.

    Raises NotFinite where a value is not: the run ends there and nothing is recorded.
    """
    waiting = deque(enumerate(requests))
    free = Tiles(plan.limits.tiles)
    tables = list(range(plan.limits.tables))
    active: list[Sequence] = []
    table_of: dict[int, int] = {}
    while waiting or active:
        while waiting and tables and (tile0 := free.take(_tiles(waiting[0][1]))) is not None:
            index, request = waiting.popleft()
            known = [*request.prompt, *(request.forced or ())]
            observer = observe(request) if observe else None
            seed = probe_seed(model.id, request.prompt)
            drafter = draft(request) if draft and request.forced is None else None
            active.append(Sequence(index, request, tile0, known, seed, observer, drafter))
            table_of[index] = tables.pop()
            a = model.architecture
            plan.set_table(
                table_of[index],
                a.inverse_frequencies(request.run_limit),
                a.rope_attention_factor(request.run_limit),
            )
        for sequence in active:
            sequence.guess(min(plan.limits.rows, plan.limits.picks) // len(active) - 1)
        share = schedule(active, plan.limits, chunk)
        plan.step(feed(share, table_of))
        for sequence, ended, drawn, logprobs in _collect(plan, share):
            if sequence.request.forced is not None:
                yield Fed(sequence.index, sequence.fed)
            else:
                for token, logprob in zip(drawn, logprobs, strict=True):
                    yield Token(sequence.index, token, float(logprob))
            if ended:
                look(plan, sequence, table_of)
                active.remove(sequence)
                free.give(sequence.tile0, _tiles(sequence.request))
                tables.append(table_of.pop(sequence.index))
                yield Done(sequence.index, sequence.trace(plan), sequence.steps)


def _collect(
    plan: Plan, share: list[tuple[Sequence, int]]
) -> Iterator[tuple[Sequence, bool, list[int], np.ndarray]]:
    """Hands the results of a step to the sequences."""
    rows, wanted = sum(count for _, count in share), sum(s.picks(count) for s, count in share)
    inner = plan.inner
    # one sequence's look, when it has ended, would change what the others have still to read
    read = plan.device.peek if len(share) == 1 else plan.device.download
    results = {name: read(array[:rows]) for name, array in plan.results.items()}
    kept = {name: plan.device.download(array[:rows]) for name, array in plan.kept.items()}
    picked = {p.name for p in plan.points[inner:]}
    tokens, logprobs = plan.tokens(wanted)
    row = pick = 0
    for sequence, fed in share:
        asked = sequence.picks(fed)
        drawn = sequence.right(tokens[pick : pick + asked].tolist())
        wrong = asked - len(drawn)  # rows behind a wrong guess: nothing of them is seen
        count, picks = fed - wrong, asked - wrong
        here, there = slice(row, row + count), slice(pick, pick + picks)
        row, pick = row + fed, pick + asked
        flaws, digests = results["flaws"], results["digests"]
        _refuse_flaws(plan, sequence, flaws[here, :inner], flaws[there, inner:], count - picks)
        sequence.digests.append(digests[here, :inner].copy())
        sequence.pick_digests.append(digests[there, inner:].copy())
        if plan.probes == 1:
            sequence.records.append(results["records"][here].copy())
        elif plan.probes and sequence.observer:
            sequence.observer.saw(_seen(sequence, count, results, inner, (here, there)))
        for name, values in kept.items():
            sequence.kept.setdefault(name, []).append(values[there if name in picked else here])
        sequence.logprobs.append(logprobs[there])
        sequence.fed += count
        sequence.steps += 1
        yield sequence, sequence.draw(drawn), drawn, logprobs[there]


def _seen(
    sequence: Sequence,
    count: int,
    results: dict[str, np.ndarray],
    inner: int,
    rows: tuple[slice, slice],
) -> Seen:
    import numpy as np

    (here, there), begin = rows, sequence.fed
    return Seen(
        np.arange(begin, begin + count),
        np.array(sequence.coming(count), np.int64),
        results["records"][here, :inner],
        results["records"][there, inner:],
        results["heads"][here],
        results["drawn"][there],
    )


def _refuse_flaws(
    plan: Plan, sequence: Sequence, fed: np.ndarray, picked: np.ndarray, first_pick: int
) -> None:
    if not (fed.any() or picked.any()):
        return
    import numpy as np

    found = [(int(t), int(p)) for t, p in np.argwhere(fed)]
    found += [(int(t) + first_pick, int(p) + fed.shape[1]) for t, p in np.argwhere(picked)]
    position, point = min(found)
    tensor = first_flaw(plan.checkpoint)
    raise NotFinite(
        f"value at '{plan.points[point].name}', position {sequence.fed + position}, is not finite",
        f"tensor '{tensor}' of '{plan.checkpoint.path}' holds NaN or infinity"
        if tensor
        else "the weights are finite: this prompt makes the model overflow",
        position=sequence.fed + position,
        point=plan.points[point].name,
    )
