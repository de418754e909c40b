"""One request on its way through the steps, and the trace that is left at its end."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llmtrace.engine.request import Request, finish
from llmtrace.probes.commitment import Commitment, commit, leaves

if TYPE_CHECKING:
    import numpy as np

    from llmtrace.blocks.plan import Plan
    from llmtrace.engine.draft import Drafter
    from llmtrace.engine.inside import Observer
    from llmtrace.engine.prefix import Prefix


REACH = 15
"""Most guesses of a step."""
REST = 32
"""Most steps between one miss and the next guess, and one."""


@dataclass(frozen=True)
class Trace:
    """All that one run computed, as far as a record can hold it.

    T fed positions, G output tokens, P points, L layers. ``records`` (T, L, 32) u32 with probes
    of format 1, else (0,); those of format 2 are told to ``observer``. ``kept`` maps point names
    to (T or G, width) f32. ``digests`` are those of ``commit``, None where no leaves were asked
    for; ``groups`` those of the points. The commitment is empty if the plan digests nothing.
    """

    request: Request
    output: tuple[int, ...]
    finish_reason: str
    logprobs: np.ndarray
    commitment: Commitment
    records: np.ndarray
    kept: dict[str, np.ndarray]
    digests: tuple[np.ndarray, np.ndarray] | None = None
    groups: tuple[int, ...] = ()
    observer: Observer | None = None

    def leaves(self) -> bytes:
        """Gives ``leaves.bin``."""
        assert self.digests is not None
        return leaves(*self.digests, self.groups)


@dataclass
class Pieces:
    """What the steps of one sequence computed, a piece a step."""

    logprobs: list[np.ndarray] = field(default_factory=list)
    digests: list[np.ndarray] = field(default_factory=list)
    pick_digests: list[np.ndarray] = field(default_factory=list)
    records: list[np.ndarray] = field(default_factory=list)
    kept: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def fork(self) -> Pieces:
        """Gives another that goes on from here; the pieces so far are the same."""
        return Pieces(
            [*self.logprobs],
            [*self.digests],
            [*self.pick_digests],
            [*self.records],
            {name: [*found] for name, found in self.kept.items()},
        )


@dataclass(eq=False)
class Sequence:
    """Tokens known so far, how many of them were fed, and the pieces of the trace."""

    index: int
    request: Request
    tile0: int
    known: list[int]
    probe_seed: int
    observer: Observer | None = None
    drafter: Drafter | None = None
    guesses: list[int] = field(default_factory=list)
    reach: int = 4
    """How many guesses are worth a step: more after right ones, fewer after wrong ones."""
    misses: int = 0
    """Steps in a row without a right guess."""
    rest: int = 0
    """Steps to come without any guess: twice as many after each miss."""
    fed: int = 0
    steps: int = 0
    drawn: list[int] = field(default_factory=list)
    pieces: Pieces = field(default_factory=Pieces)
    stops: list[Prefix] = field(default_factory=list)
    """Prefixes that it computes for others, the next first: a step ends where they end."""

    @property
    def pending(self) -> int:
        """How many tokens wait to be fed."""
        last_is_never_fed = 1 if self.request.forced is not None else 0
        return len(self.known) + len(self.guesses) - last_is_never_fed - self.fed

    @property
    def until_stop(self) -> int:
        """How many of them the next step may feed."""
        return self.stops[0].length - self.fed if self.stops else self.pending

    def guess(self, most: int) -> None:
        """Guesses at most so many tokens, if there is a drafter and the last token is next."""
        self.guesses = []
        if self.drafter and self.pending == 1:
            if self.rest:
                self.rest -= 1
                return
            left = self.request.max_tokens - len(self.drawn) - 1
            most = min(most, self.reach, left)
            self.guesses = self.drafter.guess(self.known, most) if most > 0 else []

    def coming(self, count: int) -> list[int]:
        """Gives the next tokens to feed."""
        known = self.known[self.fed : self.fed + count]
        return known + self.guesses[: count - len(known)]

    def right(self, drawn: list[int]) -> list[int]:
        """Gives the tokens that were drawn behind right guesses, up to the end of the run.

        Learns from them how many guesses the next steps are worth.
        """
        if not self.guesses or not drawn:
            return drawn
        held = 0
        while held < len(drawn) - 1 and self.guesses[held] == drawn[held]:
            held += 1
        self.misses = 0 if held else self.misses + 1
        self.rest = min(2**self.misses, REST) - 1
        self.reach = min(2 * self.reach, REACH) if held == len(self.guesses) else max(held + 1, 2)
        before = len(self.drawn)
        return finish([*self.drawn, *drawn[: held + 1]], self.request, before)[0][before:]

    def picks(self, count: int) -> int:
        """How many of the next ``count`` tokens ask for logits: those from the prompt's last on."""
        return max(0, self.fed + count - max(self.fed, len(self.request.prompt) - 1))

    def draw(self, tokens: list[int]) -> bool:
        """Takes what the sampler chose; says whether the run is at its end."""
        known = len(self.drawn)
        self.drawn += tokens
        if self.request.forced is not None:
            return len(self.drawn) == len(self.request.forced)
        self.known += tokens
        return bool(tokens) and finish(self.drawn, self.request, known)[1] != ""

    def trace(self, plan: Plan) -> Trace:
        """Joins the pieces."""
        import numpy as np

        output, reason = finish(self.drawn, self.request)
        pieces = self.pieces
        digests, picked = np.concatenate(pieces.digests), np.concatenate(pieces.pick_digests)
        return Trace(
            request=self.request,
            output=tuple(output),
            finish_reason=reason,
            logprobs=np.concatenate(pieces.logprobs),
            commitment=commit(digests, picked) if plan.digests else Commitment((), (), b""),
            records=np.concatenate(pieces.records) if pieces.records else np.zeros(0, np.uint32),
            kept={name: np.concatenate(found) for name, found in pieces.kept.items()},
            digests=(digests, picked) if plan.leaves else None,
            groups=plan.groups,
            observer=self.observer,
        )
