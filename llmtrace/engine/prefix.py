"""Prompts that begin alike: what they have in common is computed once.

What a position computes follows from the tokens up to it and from the rotary table, so another
sequence may take it over. The last position of a prompt is each one's own: it draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence as Items

    from llmtrace.engine.inside import Observer
    from llmtrace.engine.request import Request
    from llmtrace.engine.sequence import Pieces, Sequence

LEAST = 32
"""Positions that are worth a stop: whoever computes a prefix ends a step where it ends."""


@dataclass(frozen=True)
class Made:
    """What is left of a prefix that was computed, beside the KV cache of those who hold it."""

    pieces: Pieces
    observer: Observer | None


@dataclass(eq=False)
class Prefix:
    """The first ``length`` tokens of several prompts."""

    length: int
    waiting: int
    """Requests that have still to begin."""
    maker: Sequence | None = None
    """Who is about to compute it."""
    made: Made | None = None


def prefixes(requests: Items[Request], kinds: Items[bytes]) -> list[tuple[Prefix, ...]]:
    """Finds of each request the prefixes that it shares with others, the shortest first.

    ``kinds``: what their positions depend on beside the tokens; only equal ones share. Each prefix
    is longer by at least LEAST than the one before.
    """
    import numpy as np

    prompts = [np.array(request.prompt[:-1], np.uint32) for request in requests]
    starts = [(kind, tokens.tobytes()) for kind, tokens in zip(kinds, prompts, strict=True)]

    def common(i: int, j: int) -> int:
        count = min(len(prompts[i]), len(prompts[j])) if kinds[i] == kinds[j] else 0
        apart = np.flatnonzero(prompts[i][:count] != prompts[j][:count])
        return int(apart[0]) if len(apart) else count

    order = sorted(range(len(starts)), key=lambda i: starts[i])
    # tokens that each has in common with the one before
    shared = [0, *(common(i, j) for i, j in pairwise(order))]
    found: list[tuple[Prefix, ...]] = [() for _ in requests]
    ranges = [(0, len(order), 0)]  # of neighbours that share so many tokens
    while ranges:
        begin, end, least = ranges.pop()
        cuts = [i for i in range(begin + 1, end) if shared[i] < least + LEAST]
        for first, last in pairwise([begin, *cuts, end]):
            if last - first > 1:
                prefix = Prefix(min(shared[first + 1 : last]), last - first)
                for i in order[first:last]:
                    found[i] += (prefix,)
                ranges.append((first, last, prefix.length))
    return found
