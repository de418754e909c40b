"""Spot checks: a draw that nobody could foresee and anybody can make again, and what it proves.

The seed comes from the verifier, after the records were fixed: were it made of public data,
an author could try records until the draw passes by the false ones.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from math import comb
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

SEED_BYTES = 16
CONTEXT = "llmtrace verify --spot 1"
"""Of BLAKE3's key derivation: the seed is used for nothing else."""
PERCENT = 5
"""Share of false records for which the chance of passing is told; and 100 less the confidence."""
_DIGITS = 6


class Drawn(NamedTuple):
    """A record that was drawn: its commit and the digest of its record.json."""

    commit: str
    digest: str


@dataclass(frozen=True)
class Draw:
    """What was drawn, in the order of the draw, out of how many."""

    seed: bytes
    records: tuple[Drawn, ...]
    population: int
    digest: str
    """BLAKE3 over the sorted digests of all records: what the draw was made from."""


def draw(seed: bytes, count: int, records: Iterable[Drawn]) -> Draw:
    """Draws the ``count`` records whose digests, hashed with a key from the seed, are smallest.

    A record that comes twice counts once. 16 bytes of ``seed``.
    """
    from blake3 import blake3

    key = blake3(seed, derive_key_context=CONTEXT).digest()
    commits: dict[bytes, str] = {}
    for record in records:
        commits.setdefault(bytes.fromhex(record.digest), record.commit)
    ranked = heapq.nsmallest(count, commits, key=lambda d: blake3(d, key=key).digest())
    drawn = tuple(Drawn(commits[digest], digest.hex()) for digest in ranked)
    return Draw(seed, drawn, len(commits), blake3(b"".join(sorted(commits))).hexdigest())


@dataclass(frozen=True)
class Confidence:
    """What follows for the others where all drawn records were verified, exactly.

    With ``false`` false records, ``PERCENT`` of all rounded up, the draw would have passed
    with ``chance`` (a decimal, rounded up). With a confidence of 100 - PERCENT per cent at
    most ``most`` of the others are false.
    """

    false: int
    chance: str
    most: int


def confidence(population: int, drawn: int) -> Confidence:
    """Computes what a draw without replacement proves when nothing false is in it."""
    whole = comb(population, drawn)
    false = -(-population * PERCENT // 100)
    low, high = 0, population - drawn  # the most false ones of which more than PERCENT % pass
    while low < high:
        middle = (low + high + 1) // 2
        if 100 * comb(population - middle, drawn) > PERCENT * whole:
            low = middle
        else:
            high = middle - 1
    return Confidence(false, _decimal(comb(population - false, drawn), whole), low)


def _decimal(part: int, whole: int) -> str:
    """A fraction from 0 to 1 as a decimal, rounded up: never less than it is."""
    scaled = -(-part * 10**_DIGITS // whole)
    units, rest = divmod(scaled, 10**_DIGITS)
    return f"{units}.{rest:0{_DIGITS}}".rstrip("0").rstrip(".")
