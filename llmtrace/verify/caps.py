"""Caps: what the replay of a record of another node may cost, looked at before anything is.

A stranger chooses how long a run is and what is kept of it. Beyond a cap there is no verdict:
the record may be true, it is only more than one computes for others.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmtrace.errors import Inconclusive, Trouble

if TYPE_CHECKING:
    from llmtrace.engine.request import Request
    from llmtrace.engine.trace import Fed
    from llmtrace.store.chain import Store

TOKENS = 32768
"""Tokens of prompt and output together."""
MEMORY = 4 << 30
"""Bytes beside the weights of the model."""
SECONDS = 600
TEXT = 256
"""Bytes of memory that the tokenizer takes for a byte of text, at most."""


class Capped(Inconclusive):
    """A replay is more than the caps allow."""


@dataclass(frozen=True)
class Caps:
    """What one replay may cost; the defaults are those of the command line."""

    tokens: int = TOKENS
    memory: int = MEMORY
    seconds: int = SECONDS

    def admit(self, request: Request) -> None:
        """Raises Capped for a run of too many tokens."""
        found = request.positions + 1
        if found > self.tokens:
            raise Capped(
                f"the run has {found} tokens, more than the {self.tokens} that are replayed"
                " for others",
                f"--max-tokens {found} replays it",
            )

    def afford(self, nbytes: int) -> None:
        """Raises Capped for a replay that needs so many bytes."""
        if nbytes > self.memory:
            found = -(-nbytes >> 20)
            raise Capped(
                f"the replay needs {found} MiB beside the weights, more than"
                f" the {self.memory >> 20} MiB that are spent for others",
                f"--max-memory {found}M replays it",
            )

    def clock(self) -> Clock:
        """Starts the time of a replay."""
        return Clock(self.seconds, time.monotonic())


@dataclass(frozen=True)
class Clock:
    """The time of one replay; between its steps somebody looks at it."""

    seconds: int
    start: float

    def check(self, fed: Fed | None = None) -> None:
        """Raises Capped when the time is over."""
        if time.monotonic() - self.start > self.seconds:
            done = f", with {fed.positions} positions done" if fed else ""
            raise Capped(
                f"the replay took more than the {self.seconds} seconds that are spent for"
                f" others{done}",
                "--max-seconds allows more",
            )


def is_own(store: Store, node: str) -> bool:
    """Whether a node is that of this store, and its key is here: else it is a stranger's copy."""
    try:
        return node == store.node and store.holds_key(node)
    except Trouble:
        return False


def caps_for(store: Store, node: str, caps: Caps) -> Caps | None:
    """Gives the caps for a record of this node; None for one's own."""
    return None if is_own(store, node) else caps
