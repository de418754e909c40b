"""Drafts: guesses at what a run will say next, so that one step can check several tokens.

A step feeds the guesses behind the last known token and draws at each of them. What is drawn
follows from the tokens before alone, so a guess that was drawn as well is right, and whatever
stands behind a wrong one is thrown away: drafts move no bit, they save steps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from llmtrace.engine.feed import feed, schedule
from llmtrace.engine.sequence import Sequence
from llmtrace.errors import Misuse

if TYPE_CHECKING:
    from collections.abc import Sequence as Tokens

    from llmtrace.engine.request import Request
    from llmtrace.engine.trace import Model
    from llmtrace.model.architecture import Architecture

LONGEST, SHORTEST = 8, 2
"""Tokens that have to have occurred before, for what followed them to be a guess."""


class Drafter(Protocol):
    """Guesses for one sequence."""

    def guess(self, known: Tokens[int], most: int) -> list[int]:
        """Gives what may follow the known tokens, at most so many; ``known`` only ever grows."""


class Ngram:
    """Guesses that text repeats itself: what followed the latest occurrence of the last tokens."""

    def __init__(self) -> None:
        self._after: dict[tuple[int, ...], int] = {}  # of a gram, where its latest continues
        self._indexed = 0

    def guess(self, known: Tokens[int], most: int) -> list[int]:
        """Gives what followed the longest of the grams that end here."""
        end = len(known)
        for here in range(self._indexed, end):  # a gram that ends here is no occurrence before
            for size in range(SHORTEST, min(LONGEST, here) + 1):
                self._after[tuple(known[here - size : here])] = here
        self._indexed = end
        for size in range(min(LONGEST, end), SHORTEST - 1, -1):
            begin = self._after.get(tuple(known[end - size :]))
            if begin is not None:
                return list(known[begin : begin + most])
        return []


class Smaller:
    """Guesses what another, smaller model draws, with the same settings and seed."""

    def __init__(self, model: Model, request: Request) -> None:
        """Raises Misuse where the request does not fit that model."""
        self._plan = model.plan([request], probes=0, digests=False)
        self._sequence = Sequence(0, request, 0, list(request.prompt), 0)
        a, limit = model.architecture, request.run_limit
        self._plan.set_table(0, a.inverse_frequencies(limit), a.rope_attention_factor(limit))
        self._agreed = 0

    def guess(self, known: Tokens[int], most: int) -> list[int]:
        """Feeds what is new to it, then what it draws itself."""
        own = self._sequence
        right = self._agreed  # of what it was fed
        while right < min(own.fed, len(known)) and own.known[right] == known[right]:
            right += 1
        # the last known token is fed again if need be: a guess needs its logits
        own.fed, own.known, self._agreed = min(right, len(known) - 1), list(known), len(known)
        guesses: list[int] = []
        while len(guesses) < most:
            token = self._next()
            own.known.append(token)
            guesses.append(token)
        return guesses

    def _next(self) -> int:
        own, plan = self._sequence, self._plan
        while True:
            ((_, count),) = share = schedule([own], plan.limits, plan.limits.rows)
            plan.step(feed(share, {0: 0}))
            tokens, _ = plan.tokens(own.picks(count))
            own.fed += count
            if own.fed == len(own.known):
                return int(tokens[-1])


def fits(model: Architecture, draft: Architecture) -> None:
    """Raises Misuse if one model's tokens are not the other's."""
    ours, theirs = model.vocab_size, draft.vocab_size
    if ours != theirs:
        raise Misuse(
            f"the draft model has {theirs} tokens, the model {ours}",
            "draft with a model of the same vocabulary, or with 'ngram'",
        )
