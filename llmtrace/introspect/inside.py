"""The inside of a run at chosen positions, as a replay computes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from llmtrace.engine.inside import Inside
from llmtrace.engine.trace import Done, Fed, trace
from llmtrace.probes.records import HEAD_WORDS, TOKEN_WORDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import numpy as np

    from llmtrace.engine.evidence import Claim
    from llmtrace.engine.trace import Model
    from llmtrace.probes.records import Seen

__all__ = ["Inside", "look"]


class Adding(Protocol):
    """Somebody who takes what is measured of every position, such as ``Totals``."""

    def add(self, seen: Seen) -> None:
        """Takes the next positions."""


def look(
    model: Model,
    claim: Claim,
    positions: Iterable[int] | None = None,
    *,
    tell: Iterable[Adding] = (),
    heed: Callable[[Fed], None] = lambda _: None,
) -> Inside:
    """Replays a run and gives its inside at the positions, all of them for None.

    What is read is what the run computed, not what it would compute if it were asked again.
    ``tell``: who is told of every position. ``heed`` is told how far the replay is; may raise.
    """
    import numpy as np

    request, a = claim.request, model.architecture
    total, first = request.positions, len(request.prompt) - 1
    chosen = np.array(sorted(set(range(total) if positions is None else positions)), np.int64)
    names = [point.name for point in model.plan([request], chunk=1).points]
    plan = model.plan([request], keep=names)
    keeper, done = _Keeper(chosen, tell), None
    for event in trace(model, plan, [request], observe=lambda _: keeper):
        if isinstance(event, Fed):
            heed(event)
        if isinstance(event, Done):
            done = event.trace
    assert done
    picked = {p.name for p in plan.points if p.which == "picked"}
    later = chosen[chosen >= first] - first
    none = np.zeros((0, a.layer_count, a.head_count, HEAD_WORDS), np.uint32)
    return Inside(
        a,
        np.array([*request.prompt, *claim.output][:total], np.int64),
        claim.output,
        first,
        chosen,
        {n: kept[later if n in picked else chosen] for n, kept in done.kept.items()},
        np.concatenate([none, *keeper.heads]),
        np.concatenate([np.zeros((0, TOKEN_WORDS), np.uint32), *keeper.drawn]),
        np.concatenate(keeper.points),
        np.concatenate(keeper.picked),
        lambda layer, groups=None: plan.cached(layer, 0, total, groups),
    )


class _Keeper:
    """Observes a replay and keeps what was measured at some positions."""

    def __init__(self, positions: np.ndarray, tell: Iterable[Adding]) -> None:
        self._wanted, self._tell = frozenset(positions.tolist()), tuple(tell)
        self.heads: list[np.ndarray] = []
        self.drawn: list[np.ndarray] = []
        self.points: list[np.ndarray] = []
        self.picked: list[np.ndarray] = []

    def saw(self, seen: Seen) -> None:
        import numpy as np

        for each in self._tell:
            each.add(seen)
        here = np.array([position in self._wanted for position in seen.positions.tolist()], bool)
        self.heads.append(seen.heads[here])
        self.points.append(seen.points[here])
        there = here[len(here) - len(seen.drawn) :]
        self.drawn.append(seen.drawn[there])
        self.picked.append(seen.picked[there])

    def wanted(self) -> list[int]:
        return []

    def looked(self, inside: Inside) -> None: ...

    def parts(self) -> dict[str, bytes]:
        return {}
