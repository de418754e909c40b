"""The replay that a page is made of: what is measured everywhere, and some positions whole."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from llmtrace.introspect.features import totals
from llmtrace.probes.records import TOKEN_FIELDS, field

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np

    from llmtrace.engine.inside import Inside
    from llmtrace.engine.request import Request
    from llmtrace.engine.trace import Model
    from llmtrace.probes.records import Seen
    from llmtrace.probes.totals import Totals

LOOKED = 12
"""Positions that scores, attribution and invariants look at: the last, and where the least expected
tokens were drawn."""
ROWS = 32
"""Positions of a pattern of attention: the last ones."""


class Watch:
    """Observes the replay: totals of all positions, and some of them whole.

    ``shared`` are totals that another observer, who is told first, adds up.
    """

    def __init__(self, model: Model, request: Request, shared: Totals | None = None) -> None:
        self.totals = shared or totals(model.architecture)
        self._is_shared = shared is not None
        self.last = range(max(0, request.positions - ROWS), request.positions)
        self._first_pick = len(request.prompt) - 1
        self._drawn: list[np.ndarray] = []
        self._looked: list[Inside] = []

    def saw(self, seen: Seen) -> None:
        """Takes what a step measured."""
        if not self._is_shared:
            self.totals.add(seen)
        self._drawn.append(seen.drawn.copy())

    @property
    def drawn(self) -> np.ndarray:
        """(G, 4) u32: the records of the output tokens."""
        import numpy as np

        return np.concatenate(self._drawn)

    @property
    def chosen(self) -> list[int]:
        """The positions that are looked at from all sides."""
        order = field(self.drawn, "logprob", TOKEN_FIELDS).argsort(kind="stable")
        least = (self._first_pick + int(i) for i in order[: LOOKED - 1])
        return sorted({*least, self.last[-1]})

    def wanted(self) -> list[int]:
        """Those, and the last ones, whose patterns are shown."""
        return sorted({*self.chosen, *self.last})

    def looked(self, inside: Inside) -> None:
        """Takes some of them."""
        self._looked.append(inside)

    def parts(self) -> dict[str, bytes]:
        """Nothing of this is recorded."""
        return {}

    def inside(self, positions: Iterable[int]) -> Inside:
        """Some of what was looked at, as one."""
        import numpy as np

        wanted = [*positions]
        every = [one.at(wanted) for one in self._looked]

        def joined(parts: Iterable[np.ndarray]) -> np.ndarray:
            return np.concatenate([*parts])

        return replace(
            every[0],
            positions=joined(one.positions for one in every),
            rows={name: joined(one.rows[name] for one in every) for name in every[0].rows},
            heads=joined(one.heads for one in every),
            drawn=joined(one.drawn for one in every),
            points=joined(one.points for one in every),
            picked=joined(one.picked for one in every),
        )
