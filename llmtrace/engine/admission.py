"""Who runs next to whom, and where: tiles of the KV cache, rotary tables, shared prefixes.

A request waits while another computes a prefix of its prompt; those behind it need not. Who has
ended but is the last to hold a prefix that somebody waits for rests: its tiles are given back when
another holds it, or when they are needed.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from llmtrace.blocks.arrays import TILE
from llmtrace.engine.inside import Successor
from llmtrace.engine.prefix import Made, Prefix, prefixes
from llmtrace.engine.sequence import Sequence
from llmtrace.engine.tiles import Tiles
from llmtrace.probes.records import probe_seed

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from llmtrace.blocks.plan import Plan
    from llmtrace.engine.draft import Drafter
    from llmtrace.engine.inside import Observer
    from llmtrace.engine.request import Request
    from llmtrace.engine.trace import Model

AHEAD = 256
"""Requests that are looked at for one that can begin: traces end out of order by no more."""


def tiles_of(request: Request) -> int:
    """Gives the tiles of KV cache that a request needs."""
    return -(-request.positions // TILE)


class Admission:
    """Lets the requests of one schedule in and out."""

    def __init__(
        self,
        model: Model,
        plan: Plan,
        requests: list[Request],
        observe: Callable[[Request], Observer] | None,
        draft: Callable[[Request], Drafter] | None,
    ) -> None:
        self._model, self._plan, self._observe, self._draft = model, plan, observe, draft
        self._waiting = dict(enumerate(requests))
        self._prefixes = prefixes(requests, [self._kind(request) for request in requests])
        self._free = Tiles(plan.limits.tiles)
        self._tables = list(range(plan.limits.tables))
        self._resting: list[Sequence] = []
        self.active: list[Sequence] = []
        self.table_of: dict[int, int] = {}
        """The rotary table of an active sequence, by its index."""

    def admit(self) -> bool:
        """Lets in as many as there is room for; says whether any runs."""
        while self._tables and (index := self._next()) is not None:
            if not self._begin(index):
                break
        self._tidy()
        assert self.active or not self._waiting, "who waits, waits for somebody"
        return bool(self.active)

    def passed(self, sequence: Sequence) -> None:
        """Is told when a sequence has stopped at the end of a prefix, which others wait for."""
        if sequence.stops and sequence.stops[0].length == sequence.fed:
            prefix = sequence.stops.pop(0)
            observer = None
            if sequence.observer and self._observe:
                observer = self._observe(sequence.request)
                _follow(observer, sequence.observer)
            prefix.maker, prefix.made = None, Made(sequence.pieces.fork(), observer)

    def leave(self, sequence: Sequence) -> None:
        """Is told when a sequence has ended, or failed."""
        self.active.remove(sequence)
        self._tables.append(self.table_of.pop(sequence.index))
        for prefix in sequence.stops:  # it failed before
            prefix.maker = None
        self._resting.append(sequence)
        self._tidy()

    def _kind(self, request: Request) -> bytes:
        """What the results of a position depend on beside the tokens up to it."""
        frequencies, factor = self._rotary(request)
        # records of format 1 have their samples where the whole prompt says
        seed = self._seed(request) if self._plan.probes == 1 else 0
        return frequencies.tobytes() + factor.tobytes() + seed.to_bytes(8, "little")

    def _rotary(self, request: Request) -> tuple[np.ndarray, np.float32]:
        a, limit = self._model.architecture, request.run_limit
        return a.inverse_frequencies(limit), a.rope_attention_factor(limit)

    def _seed(self, request: Request) -> int:
        return probe_seed(self._model.id, request.prompt)

    def _next(self) -> int | None:
        """The first that waits for nobody."""
        for index in islice(self._waiting, AHEAD):
            if not any(prefix.maker for prefix in self._prefixes[index]):
                return index
        return None

    def _begin(self, index: int) -> bool:
        """Lets a request in, if there is room."""
        request, path = self._waiting[index], self._prefixes[index]
        made = [(prefix, prefix.made) for prefix in path if prefix.made]  # the longest last
        holder = self._holder(made[-1][0]) if made else None
        tile0 = self._take(tiles_of(request), holder)
        if tile0 is None:
            return False
        del self._waiting[index]
        sequence = Sequence(
            index,
            request,
            tile0,
            [*request.prompt, *(request.forced or ())],
            self._seed(request),
            self._observe(request) if self._observe else None,
            self._draft(request) if self._draft and request.forced is None else None,
        )
        for prefix in path:
            prefix.waiting -= 1
        if holder:
            self._inherit(sequence, holder, made)
        self._promise(sequence)
        self.table_of[index] = self._tables.pop()
        self._plan.set_table(self.table_of[index], *self._rotary(request))
        self.active.append(sequence)
        return True

    def _inherit(
        self, sequence: Sequence, holder: Sequence, made: list[tuple[Prefix, Made]]
    ) -> None:
        """Gives a sequence the longest prefix that was made; it holds the shorter ones too."""
        prefix, found = made[-1]
        # a holder that gave its tiles back for this one's sake left in them what was there
        self._plan.copy_cache(holder.tile0, sequence.tile0, prefix.length)
        sequence.pieces, sequence.fed = found.pieces.fork(), prefix.length
        if sequence.observer and found.observer:
            _follow(sequence.observer, found.observer)
        for each, before in made:
            each.made = before if each.waiting else None

    def _promise(self, sequence: Sequence) -> None:
        """Lets a sequence make what others wait for behind what it has."""
        if sequence.observer and not isinstance(sequence.observer, Successor):
            return
        path = self._prefixes[sequence.index]
        sequence.stops = [p for p in path if p.waiting and p.length > sequence.fed]
        for prefix in sequence.stops:
            prefix.maker = sequence

    def _take(self, count: int, holder: Sequence | None) -> int | None:
        """Takes tiles, if need be of those who rest: first of the holder of what is wanted.

        They begin where the holder's did, before, or elsewhere.
        """
        tile0 = self._free.take(count)
        for sequence in sorted(self._resting, key=lambda s: s is not holder):
            if tile0 is not None:
                break
            self._give_back(sequence)
            tile0 = self._free.take(count)
        return tile0

    def _holder(self, prefix: Prefix, apart_from: Sequence | None = None) -> Sequence | None:
        """Gives somebody in whose tiles a prefix stands."""
        for sequence in (*self.active, *self._resting):
            holds = prefix in self._prefixes[sequence.index] and sequence.fed >= prefix.length
            if holds and sequence is not apart_from:
                return sequence
        return None

    def _tidy(self) -> None:
        for sequence in [*self._resting]:
            path = self._prefixes[sequence.index]
            if not any(p.made and not self._holder(p, apart_from=sequence) for p in path):
                self._give_back(sequence)

    def _give_back(self, sequence: Sequence) -> None:
        self._resting.remove(sequence)
        self._free.give(sequence.tile0, tiles_of(sequence.request))
        for prefix in self._prefixes[sequence.index]:
            if prefix.made and not self._holder(prefix):
                prefix.made = None


def _follow(observer: Observer, other: Observer) -> None:
    assert isinstance(observer, Successor)
    assert isinstance(other, Successor)
    observer.follow(other)
