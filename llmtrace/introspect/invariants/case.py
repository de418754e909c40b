"""What invariants look at and how they count: hides weights on disk, draws, places and margins."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from llmtrace.blocks.llama import blocks

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np

    from llmtrace.blocks.block import Block
    from llmtrace.engine.evidence import Claim
    from llmtrace.engine.trace import Model
    from llmtrace.introspect.inside import Inside
    from llmtrace.model.architecture import Architecture

BITS = "equal bits"
"""The formula of what may not differ at all."""
PASS, FAIL, NOT_APPLICABLE = "pass", "fail", "not applicable"
MOST = 1e300
"""A margin beyond it is said to be it: JSON has no infinity."""


@dataclass(frozen=True)
class Place:
    """Where something is wrong; position None: everywhere, block None: any."""

    position: int | None
    block: str | None
    point: str | None = None


@dataclass(frozen=True)
class Invariant:
    """What was found of one invariant.

    It passes where ``margin`` is at most ``bound``: the largest error over what ``formula``
    allows, at most 1; where bits must be equal, the largest difference in float32 steps, 0.
    """

    name: str
    verdict: str
    margin: float
    bound: float
    formula: str
    """What an error may be and where that comes from."""
    n: int
    """Values that were compared."""
    where: Place | None = None
    """The first failure, by position and then in the order of the blocks."""
    why: str = ""
    compares: bool = False
    """Whether it is about the record and not about the inside alone."""


@dataclass(frozen=True)
class Case:
    """A run looked at: its inside, the model, and what was claimed.

    ``digests`` is the record's ``digests.bin``, None without a record; ``seed`` that of all draws.
    """

    inside: Inside
    model: Model
    claim: Claim
    digests: bytes | None
    seed: bytes
    _known: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def architecture(self) -> Architecture:
        """Sizes and constants."""
        return self.model.architecture

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """All basic blocks, in the order in which they run."""
        return blocks(self.architecture)

    @cached_property
    def order(self) -> dict[str, int]:
        """The places of blocks in that order."""
        return {block.name: i for i, block in enumerate(self.blocks)}

    @property
    def layers(self) -> range:
        """The layers' numbers."""
        return range(self.architecture.layer_count)

    @cached_property
    def picked(self) -> np.ndarray:
        """(M,) i64: the positions that were looked at and have logits."""
        positions = self.inside.positions
        return positions[positions >= self.inside.first_pick]

    def at(self, point: str) -> np.ndarray:
        """The positions of a point's rows."""
        return self.picked if point.startswith(("ln_final", "unembed")) else self.inside.positions

    def rows(self, point: str) -> np.ndarray:
        """The rows of a point: (N, width) f32, or (M, width) behind the layers."""
        return self.inside.rows[point]

    def stream(self, layer: int) -> str:
        """The point of the residual stream before a layer."""
        return f"blocks.{layer - 1}.hook_resid_post" if layer else "hook_embed"

    def size(self, tensor: str) -> int:
        """How many rows a tensor of the checkpoint has."""
        return self.model.checkpoint.tensors[tensor].shape[0]

    def weight(self, tensor: str, which: slice | np.ndarray = slice(None)) -> np.ndarray:
        """Rows of a tensor of the checkpoint, as float32, exactly."""
        stored = self.model.checkpoint.tensors[tensor]
        return widened(stored.array()[which], stored.dtype)

    def bits(self, block: str) -> int:
        """Bits of the weights that a linear block multiplies by; 0 as they are stored."""
        return self.model.version.bits(self.blocks[self.order[block]])

    def once(self, name: str, make: Callable[[Case], Any]) -> Any:
        """Makes something that several invariants need when the first of them asks."""
        if name not in self._known:
            self._known[name] = make(self)
        return self._known[name]

    def draw(self, label: str, count: int) -> np.ndarray:
        """Random words (count,) u32 that nobody could choose: from the seed and a label."""
        import numpy as np
        from blake3 import blake3

        drawn = blake3(self.seed + b"\0" + label.encode()).digest(length=4 * count)
        return np.frombuffer(drawn, "<u4")

    def tally(self, name: str, formula: str, *, compares: bool = False) -> Tally:
        """Starts to count an invariant; the formula ``BITS`` allows nothing."""
        return Tally(name, formula, self.order, compares=compares)


def widened(stored: np.ndarray, dtype: str) -> np.ndarray:
    """Gives stored values as float32, exactly."""
    import numpy as np

    if dtype == "BF16":
        return (stored.astype(np.uint32) << 16).view(np.float32)
    if dtype == "F16":
        return stored.view(np.float16).astype(np.float32)
    return stored.view(np.float32)


class Tally:
    """Counts comparisons of one invariant and remembers the first failure and the least margin."""

    def __init__(self, name: str, formula: str, order: dict[str, int], *, compares: bool) -> None:
        self._name, self._formula, self._order = name, formula, order
        self._compares = compares
        self._bound = 0.0 if formula == BITS else 1.0
        self._n = self._failed = 0
        self._margin = 0.0
        self._first: tuple[tuple[int, int], Place, str] | None = None

    def within(
        self,
        block: str,
        point: str | None,
        positions: np.ndarray,
        got: np.ndarray,
        wanted: np.ndarray,
        bound: np.ndarray | float,
    ) -> None:
        """Compares rows (N, …) of positions (N,) with what they should be, give or take a bound."""
        import numpy as np

        got, wanted = np.asarray(got, np.float64), np.asarray(wanted, np.float64)
        with np.errstate(all="ignore"):
            ratio = np.abs(got - wanted) / np.maximum(bound, 2.0**-148)
        ratio = np.where(got == wanted, 0.0, np.where(np.isnan(ratio), MOST, ratio))
        assert self._bound == 1
        self._take(block, point, positions, ratio, lambda i: _two(got[i], wanted[i]))

    def equal(
        self,
        block: str,
        point: str | None,
        positions: np.ndarray,
        got: np.ndarray,
        wanted: np.ndarray,
    ) -> None:
        """Compares rows (N, …) f32 bit for bit with what they should be."""
        import numpy as np

        steps = np.abs(_ordered(got) - _ordered(wanted)).astype(np.float64)
        if self._bound:  # beside values that have a bound: any difference is beyond it
            steps *= 2
        self._take(block, point, positions, steps, lambda i: _two(got[i], wanted[i]))

    def same(self, place: Place, is_same: bool, why: str) -> None:
        """Counts one thing that is as it should be or is not."""
        self._n += 1
        if not is_same:
            self._margin = max(self._margin, 2 * self._bound, 1.0)
            self._fail(place, why, 1)

    def result(self, nothing: str = "there is nothing of the kind") -> Invariant:
        """What was found; ``nothing``: why it may be that nothing was."""
        if not self._n:
            return self._make(NOT_APPLICABLE, why=nothing)
        if self._first is None:
            return self._make(PASS)
        _, place, text = self._first
        return self._make(FAIL, place, f"{self._failed} of {self._n} fail; first {text}")

    def _make(self, verdict: str, where: Place | None = None, why: str = "") -> Invariant:
        margin = min(self._margin, MOST)
        told = self._name, verdict, margin, self._bound, self._formula, self._n
        return Invariant(*told, where, why, self._compares)

    def _take(
        self,
        block: str,
        point: str | None,
        positions: np.ndarray,
        errors: np.ndarray,
        tell: Callable[[tuple[int, ...]], str],
    ) -> None:
        import numpy as np

        self._n += errors.size
        if not errors.size:
            return
        most = float(errors.max())
        self._margin = max(self._margin, most)
        if most <= self._bound:
            return
        beyond = np.argwhere(errors > self._bound)
        if len(beyond):
            at: tuple[int, ...] = tuple(beyond[0].tolist())
            place = Place(int(positions[at[0]]), block, point)
            index = f"[{', '.join(map(str, at[1:]))}]" if at[1:] else ""
            where = f"{point or block}{index} at position {place.position}"
            self._fail(place, f"{where}: {tell(at)}", len(beyond))

    def _fail(self, place: Place, why: str, count: int) -> None:
        self._failed += count
        key = rank(place, self._order)
        if self._first is None or key < self._first[0]:
            self._first = key, place, why


def rank(place: Place, order: dict[str, int]) -> tuple[int, int]:
    """Sorts places: what is wrong everywhere, then by position, then as blocks run."""
    position = -1 if place.position is None else place.position
    return position, len(order) if place.block is None else order[place.block]


def first_fault(found: Sequence[Invariant], case: Case) -> Invariant | None:
    """The failed invariant that stands first: what it names is where to look.

    One that compares with the record comes after those that look at the inside alone: it says that
    two machines differ, not which of them is wrong.
    """

    def key(each: Invariant) -> tuple[bool, tuple[int, int]]:
        return each.compares, rank(each.where or Place(None, None), case.order)

    return min((each for each in found if each.verdict == FAIL), key=key, default=None)


def _two(got: object, wanted: object) -> str:
    return f"is {got:.9g}, should be {wanted:.9g}"


def _ordered(values: np.ndarray) -> np.ndarray:
    """Whole numbers i64 in the order of the floats, -0 below +0."""
    import numpy as np

    bits = np.ascontiguousarray(values, np.float32).view(np.int32).astype(np.int64)
    return np.where(bits < 0, -(bits & 0x7FFFFFFF) - 1, bits)
