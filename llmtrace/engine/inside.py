"""The inside of a run: whole rows of every point at some of its positions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, Self, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy as np

    from llmtrace.model.architecture import Architecture
    from llmtrace.probes.records import Seen


class Cached(Protocol):
    """Reads the KV cache of a run."""

    def __call__(
        self, layer: int, groups: Sequence[int] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Gives keys, values (T, G, D) f32 of a layer, or of these of its G groups alone."""


@dataclass(frozen=True)
class Inside:
    """T fed positions, N of them looked at, M of these with logits; G output tokens."""

    architecture: Architecture
    tokens: np.ndarray
    """(T,) i64: all that was fed."""
    output: tuple[int, ...]
    """Token i was drawn at position ``first_pick + i``."""
    first_pick: int
    positions: np.ndarray
    """(N,) i64, ascending."""
    rows: Mapping[str, np.ndarray]
    """By the names of points: (N, width) f32; (M, width) of those behind the layers."""
    heads: np.ndarray
    """(N, L, H, 8) u32: head records, as ``kernels/attention.cu`` lays them out."""
    drawn: np.ndarray
    """(M, 4) u32: token records, as ``kernels/token.cu`` lays them out."""
    points: np.ndarray
    """(N, P, 32) u32: probe records, as ``kernels/probe.cu`` lays them out, in the plan's order."""
    picked: np.ndarray
    """(M, Q, 32) u32: those of the points that exist where logits do."""
    cache: Cached

    def at(self, positions: Iterable[int]) -> Inside:
        """The same inside at some of its positions."""
        import numpy as np

        wanted = set(positions)  # isin() would import as much again as numpy itself
        here = np.array([position in wanted for position in self.positions.tolist()], bool)
        later = here[self.positions >= self.first_pick]
        return replace(
            self,
            positions=self.positions[here],
            # as many rows as positions: then all of them drew, and the two are the same
            rows={
                name: rows[here if len(rows) == len(here) else later]
                for name, rows in self.rows.items()
            },
            heads=self.heads[here],
            drawn=self.drawn[later],
            points=self.points[here],
            picked=self.picked[later],
        )


class Observer(Protocol):
    """Somebody who is told what the probes measure while a run goes on."""

    def saw(self, seen: Seen) -> None:
        """Is told of each step, in order of position; what it is told is gone after that."""

    def wanted(self) -> list[int]:
        """Says, when the run is at its end, which positions to look at whole, ascending."""

    def looked(self, inside: Inside) -> None:
        """Is told of those, some at a time, in order of position."""

    def parts(self) -> dict[str, bytes]:
        """Gives the parts of a record that tell of it, by name."""


@runtime_checkable
class Successor(Observer, Protocol):
    """An observer that can begin where another one is: prompts that begin alike share only such."""

    def follow(self, other: Self) -> None:
        """Takes over all that another was told, which is of no position that draws a token."""
