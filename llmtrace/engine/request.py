"""What a run is asked to do, exactly as the record's ``trace`` section holds it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from llmtrace.errors import Misuse

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import numpy as np

    from llmtrace.model.architecture import Architecture

TOP_P_ALL = 1 << 32
"""Top-p is a fraction of 2^32, so that its bits are beyond doubt."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn (``kernels/sample.cu``); the default is the most likely token."""

    temperature: np.float32 | float = 0.0
    """0: the most likely token. Held as the float32 nearest to the number asked for."""
    top_k: int = 0
    """0: all tokens."""
    top_p: int = TOP_P_ALL
    seed: int = 0
    """0 to 2^64 - 1."""


@dataclass(frozen=True)
class Request:
    """A prompt and its limits; with ``forced`` the run is replayed, not generated.

    Ids are in [0, vocabulary). ``stop``: tokens that end the run; the one that did is the last
    of the output. ``forced``: the output to be fed whatever the sampler says.
    """

    prompt: tuple[int, ...]
    max_tokens: int
    sampling: Sampling = Sampling()
    stop: tuple[int, ...] = ()
    forced: tuple[int, ...] | None = None

    @property
    def positions(self) -> int:
        """The most positions that are fed: the last token never is."""
        return len(self.prompt) + (self.max_tokens if self.forced is None else len(self.forced)) - 1

    @property
    def run_limit(self) -> int:
        """Prompt plus max tokens: what length-dependent rope scalings go by."""
        return len(self.prompt) + self.max_tokens

    @cached_property
    def stops(self) -> frozenset[int]:
        """``stop`` to look things up in: a stranger's may be long."""
        return frozenset(self.stop)


def checked(requests: Iterable[Request], architecture: Architecture) -> Iterator[int]:
    """Gives the positions of each request; raises Misuse where one does not fit the model."""
    vocabulary, context = architecture.vocab_size, architecture.context_length
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


def finish(output: list[int], request: Request, known: int = 0) -> tuple[list[int], str]:
    """Cuts the output where the run ends, and says why: ``stop``, ``length`` or "" (no end).

    ``known``: so many tokens at its begin are known not to end it.
    """
    for count, token in enumerate(output[known:], known + 1):
        if token in request.stops:
            return output[:count], "stop"
        if count == request.max_tokens:
            return output[:count], "length"
    return output, ""
