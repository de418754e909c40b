"""What a record keeps of the probes: totals of all positions, records of some.

Everything is measured, some is stored: which positions, is known when the run is at its end.
A part of a record has at most 64 MiB: of what a rule, or level ``detail``, would store beyond
that, the first positions stay.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmtrace.probes.records import HEAD_WORDS, WORDS, Seen, Stored, field, stored_heads
from llmtrace.probes.records import TOKEN_FIELDS as TOKEN
from llmtrace.probes.scheme import massive

if TYPE_CHECKING:
    import numpy as np

    from llmtrace.probes.scheme import Rule, Scheme
    from llmtrace.probes.totals import Totals


MOST_BYTES = 60 << 20
"""Of the records, and of the samples."""


class Recorder:
    """Told of every step of one sequence and then of the stored positions.

    At level ``stats`` these are the position that drew the least certain token, the first of
    equal ones, and the last; at ``detail`` all; and those of the scheme's rules.
    """

    def __init__(self, level: str, first_pick: int, totals: Totals, scheme: Scheme) -> None:
        self.totals = totals
        self._all = level == "detail"
        self._first_pick = first_pick
        self._rules = scheme.rules
        shape = totals.shape
        self.points = [*shape.points, *shape.picked]
        self.columns = [rule.columns(self.points, shape.layers) for rule in self._rules]
        self._massive: list[list[np.ndarray]] = [[] for _ in self._rules]
        self._drawn: list[np.ndarray] = []
        self._stored: list[tuple[np.ndarray, ...]] = []

    def saw(self, seen: Seen) -> None:
        """Takes what one step measured."""
        import numpy as np

        self.totals.add(seen)
        self._drawn.append(seen.drawn.copy())
        for rule, columns, found in zip(self._rules, self.columns, self._massive, strict=True):
            if rule.massive:
                inner = [column for column in columns if column < seen.points.shape[1]]
                widths = np.array([self.points[column][1] for column in inner], np.float64)
                found.append(massive(seen.points[:, inner], widths))

    def follow(self, other: Recorder) -> None:
        """Takes over what another with the same rules saw."""
        assert self._rules == other._rules
        self.totals = other.totals.fork()
        self._drawn = [*other._drawn]
        self._massive = [[*found] for found in other._massive]

    @property
    def chosen(self) -> list[int]:
        """The least certain position and the last."""
        import numpy as np

        logprobs = field(np.concatenate(self._drawn), "logprob", TOKEN)
        last = self.totals.positions - 1
        return sorted({self._first_pick + int(logprobs.argmin()), last})

    def places(self) -> list[list[int]]:
        """Gives the positions of each rule."""
        import numpy as np

        total, drawn, chosen = self.totals.positions, np.concatenate(self._drawn), self.chosen
        found = []
        for rule, flags in zip(self._rules, self._massive, strict=True):
            held = np.concatenate(flags) if flags else np.ones(total, bool)
            held = rule.holds(drawn, held, self._first_pick)
            places = rule.places(total, self._first_pick, chosen)
            found.append([position for position in places if held[position]])
        room = MOST_BYTES
        for number, rule in enumerate(self._rules):
            each = self._sampled(rule, self.columns[number])
            found[number] = found[number][: room // each]
            room -= each * len(found[number])
        return found

    def _sampled(self, rule: Rule, columns: list[int]) -> int:
        """Bytes that a rule samples at a position, at most; at least 1."""
        widths = [self.points[column][1] for column in columns]
        drawn = [w if rule.values is None else 2 * min(rule.values, w) for w in widths]
        lens = 7 * (self.totals.shape.layers + 1) if rule.lens else 0
        return 4 * (sum(drawn) + len(drawn) + lens) + 1

    def positions(self) -> list[int]:
        """Gives the stored positions, ascending."""
        shape, chosen = self.totals.shape, self.chosen
        asked = set(range(self.totals.positions)) if self._all else set()
        asked.update(p for places in self.places() for p in places)
        each = 4 * (WORDS * len(self.points) + HEAD_WORDS * shape.layers * shape.heads)
        others = sorted(asked.difference(chosen))[: max(MOST_BYTES // each - len(chosen), 0)]
        return sorted({*chosen, *others})

    def store(
        self, positions: np.ndarray, points: np.ndarray, picked: np.ndarray, heads: np.ndarray
    ) -> None:
        """Takes the records of some of them, in order, as an ``Inside`` has them."""
        self._stored.append((positions, points, picked, stored_heads(heads)))

    def stored(self) -> Stored:
        """Gives what ``probes.bin`` holds."""
        import numpy as np

        return Stored(
            self._first_pick,
            np.concatenate(self._drawn),
            self.totals.points(),
            self.totals.heads(),
            *map(np.concatenate, zip(*self._stored, strict=True)),
        )
