"""The one path from requests to traces: prefill, decode, batches and replay alike.

Every step feeds some tokens of some sequences. Which ones has no influence on any bit, so the
schedule is free: sequences that decode go first, prompts fill what room is left.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING

from llmtrace.blocks.arrays import LOOKED, PROBES, Limits, footprint
from llmtrace.blocks.choices import Choices
from llmtrace.blocks.llama import blocks
from llmtrace.blocks.packed import Packed
from llmtrace.blocks.plan import Plan
from llmtrace.blocks.versions import ACCURACY, Version
from llmtrace.blocks.weights import Weights, first_flaw
from llmtrace.engine.admission import Admission, tiles_of
from llmtrace.engine.feed import feed, schedule
from llmtrace.engine.look import look
from llmtrace.engine.request import checked
from llmtrace.errors import Trouble
from llmtrace.probes.records import HEAD_WORDS, WORDS, Seen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    import numpy as np

    from llmtrace.device.device import Device
    from llmtrace.engine.draft import Drafter
    from llmtrace.engine.inside import Observer
    from llmtrace.engine.request import Request
    from llmtrace.engine.sequence import Sequence, Trace
    from llmtrace.model.architecture import Architecture
    from llmtrace.model.checkpoint import Checkpoint

CHUNK = 256
"""Prompt tokens of one sequence in a step, unless asked otherwise."""
CONCURRENT = 64
"""Most sequences that run at the same time."""
CACHE_SHARE = 4
"""One part in so many of a device's memory is for the KV cache, whoever else could run as well."""
GUESSED = 64
"""Rows of a step at least, for guesses of what comes next."""
LOGITS_BYTES = 64 << 20
"""Most memory for the logits of one step."""
LOOKED_BYTES = 64 << 20
"""Most memory for what is looked at whole at a time, of several sequences."""
RECORD_COPIES = 3
"""Of a stored probe record: as it came, stacked, packed."""
KEPT_COPIES = 4
"""Of a kept tensor in memory at its end: pieces, joined, packed, and cut into parts."""


class NotFinite(Trouble):
    """A value inside a run is NaN or infinite: the run ends there, on every machine."""

    def __init__(self, message: str, *hints: str, index: int, position: int, point: str) -> None:
        super().__init__(message, *hints)
        self.index, self.position, self.point = index, position, point


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
class Failed:
    """Request ``index`` met a value that is not finite; ``NotFinite`` says so at the very end."""

    index: int


@dataclass(frozen=True)
class Model:
    """A checkpoint with its weights on a device, for one version of the arithmetic.

    Makes plans of the size that requests need.
    """

    checkpoint: Checkpoint
    architecture: Architecture
    device: Device
    weights: Weights
    choices: Choices
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
        packed: Path | None = None,
    ) -> Model:
        """Puts the weights on the device. ``packed``: where their quantised form is kept."""
        held = Weights(checkpoint, device, Packed(packed, model_id, device)), Choices(device)
        return cls(checkpoint, architecture, device, *held, model_id, version)

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
            self.choices,
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
        requests = list(requests)
        positions = sum(checked(requests, self.architecture))
        sizes = sorted(map(tiles_of, requests), reverse=True)[:CONCURRENT]
        none = Limits(1, 1, 0, 1, 0)
        tile, row = self._bytes(none, tiles=1), self._bytes(none, looked=1)
        room = self.device.memory // CACHE_SHARE
        together = sum(n == 0 or tile * tiles <= room for n, tiles in enumerate(accumulate(sizes)))
        fed = sum(len(request.prompt) + len(request.forced or ()) for request in requests)
        even = -(-fed // -(-fed // chunk))  # passes over prompts are of one size
        rows = max(even, min(chunk, positions, GUESSED), together)
        picks = max(together, min(rows, LOGITS_BYTES // (4 * self.architecture.vocab_size)))
        looked = max(LOOKED, min(LOOKED * together, LOOKED_BYTES // row))
        return Limits(rows, picks, sum(sizes[:together]), together, looked)

    def _bytes(self, limits: Limits, **more: int) -> int:
        """What a plan with more of something takes in addition."""
        a, version, larger = self.architecture, self.version, replace(limits, **more)
        less, whole = (footprint(a, of, version=version) for of in (limits, larger))
        return whole - less


def trace(
    model: Model,
    plan: Plan,
    requests: list[Request],
    *,
    chunk: int = CHUNK,
    observe: Callable[[Request], Observer] | None = None,
    draft: Callable[[Request], Drafter] | None = None,
) -> Iterator[Token | Fed | Done | Failed]:
    """Runs the requests, yielding tokens as they come and each trace when its run ends.

    Of what is replayed it tells after each step how far it is, so that a caller may stop.
    ``observe`` gives each request somebody who is told what probes of format 2 measure, ``draft``
    somebody who guesses what it will say: that moves no bit, but may save steps.

    Prompts that begin alike share the computing of what they have in common, if the observers of
    all are Successors, of one kind.

    Raises NotFinite where a value is not: that run ends there, and leaves no trace; the others go
    on, and it is raised at their end, of the first such request.
    """
    admission = Admission(model, plan, requests, observe, draft)
    failed: list[tuple[int, int, int]] = []  # index, position, point
    while admission.admit():
        active, table_of = admission.active, admission.table_of
        for sequence in active:
            sequence.guess(min(plan.limits.rows, plan.limits.picks) // len(active) - 1)
        share = schedule(active, plan.limits, chunk)
        assert share, "somebody has something to feed"
        plan.step(feed(share, table_of))
        ended: list[Sequence] = []
        for sequence, drawn, logprobs, flaw in _collect(plan, share):
            if flaw:
                failed.append((sequence.index, sequence.fed + flaw[0], flaw[1]))
                admission.leave(sequence)
                yield Failed(sequence.index)
                continue
            if sequence.request.forced is not None:
                yield Fed(sequence.index, sequence.fed)
            else:
                for token, logprob in zip(drawn, logprobs, strict=True):
                    yield Token(sequence.index, token, float(logprob))
            if sequence.draw(drawn):
                ended.append(sequence)
            else:
                admission.passed(sequence)
        look(plan, ended, table_of)
        for sequence in ended:
            admission.leave(sequence)
            yield Done(sequence.index, sequence.trace(plan), sequence.steps)
    if failed:
        raise _not_finite(plan, *min(failed))


def _collect(
    plan: Plan, share: list[tuple[Sequence, int]]
) -> Iterator[tuple[Sequence, list[int], np.ndarray, tuple[int, int] | None]]:
    """Hands the results of a step to the sequences: tokens, logprobs; or where a flaw is."""
    rows, wanted = sum(count for _, count in share), sum(s.picks(count) for s, count in share)
    inner = plan.inner
    # no step runs before each sequence has taken its own
    results = {name: plan.device.peek(array[:rows]) for name, array in plan.results.items()}
    kept = {name: plan.device.download(array[:rows]) for name, array in plan.kept.items()}
    is_sound = not results["flaws"].any()
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
        flaws, digests, pieces = results["flaws"], results["digests"], sequence.pieces
        flaw = None
        if not is_sound:
            flaw = _first(flaws[here, :inner], flaws[there, inner:], count - picks)
        if flaw:
            yield sequence, [], logprobs[:0], flaw
            continue
        pieces.digests.append(digests[here, :inner].copy())
        pieces.pick_digests.append(digests[there, inner:].copy())
        if plan.probes == 1:
            pieces.records.append(results["records"][here].copy())
        elif plan.probes and sequence.observer:
            sequence.observer.saw(_seen(sequence, count, results, inner, (here, there)))
        for name, values in kept.items():
            pieces.kept.setdefault(name, []).append(values[there if name in picked else here])
        pieces.logprobs.append(logprobs[there])
        sequence.fed += count
        sequence.steps += 1
        yield sequence, drawn, logprobs[there], None


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


def _first(fed: np.ndarray, picked: np.ndarray, first_pick: int) -> tuple[int, int] | None:
    """Gives row and point of the first value that is not finite."""
    import numpy as np

    found = [(int(t), int(p)) for t, p in np.argwhere(fed)]
    found += [(int(t) + first_pick, int(p) + fed.shape[1]) for t, p in np.argwhere(picked)]
    return min(found, default=None)


def _not_finite(plan: Plan, index: int, position: int, point: int) -> NotFinite:
    tensor, name = first_flaw(plan.checkpoint), plan.points[point].name
    return NotFinite(
        f"value at '{name}', position {position}, is not finite",
        f"tensor '{tensor}' of '{plan.checkpoint.path}' holds NaN or infinity"
        if tensor
        else "the weights are finite: this prompt makes the model overflow",
        index=index,
        position=position,
        point=name,
    )
