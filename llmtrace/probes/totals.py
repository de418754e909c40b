"""Totals over the positions of a run: how running sums are kept so that no chunking moves a bit.

Every sum is float64 and takes the positions strictly in their order; all else is exact
(counts, extremes) or element-wise. Positions that come one at a time wait until there are
enough to be worth a pass.

A point has 16 words over its positions: 0 mean and 1 standard deviation of rms, 2 mean of
mean, 3 of l1, 4 of absmax; 5 greatest absmax, 10 its position, 11 its index (u32; the first
of equal ones); 6 mean and 7 deviation of kurtosis, 8 and 9 of entropy; shares of all values
that are 12 zero, 14 small, 15 outside; 13 how many are saturated (u32). The rest is float32.

A head has 8 float32 over the positions from 1 on: 0 entropy / ln(visible), masses 1 on
position 0, 2 on itself, 3 on the one before; 4 distance / position; shares of positions whose
argmax is 5 position 0 and 6, of those with an earlier occurrence of their token, the
successor of the latest; 7 largest score.
"""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING

from llmtrace.probes.exact import LARGEST, Spread, half_width
from llmtrace.probes.records import HEAD_TOTAL_WORDS, TOTAL_WORDS, Seen
from llmtrace.probes.stretch import HEAD_WORD, Columns, Feature, Shape, Stretch

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

STRETCH = 64
"""Positions that are worth a pass; at most 255, which a byte can count."""


class _Running:
    """Sums of values and of their squares, position by position."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        import numpy as np

        self.n = 0
        self._sums, self._squares = np.zeros(shape), np.zeros(shape)

    def add(self, values: Floats) -> None:
        """Takes (n, …) in order of position: the order of additions is part of the bits."""
        for one, square in zip(values, values * values, strict=True):
            self._sums += one
            self._squares += square
        self.n += len(values)

    @property
    def mean(self) -> Floats:
        import numpy as np

        return np.asarray(self._sums / max(self.n, 1))

    @property
    def squares(self) -> Floats:
        """The sums of squared deviations from the mean."""
        import numpy as np

        apart = self._squares - self._sums * (self._sums / max(self.n, 1))
        return np.asarray(np.maximum(apart, 0.0))

    @property
    def deviation(self) -> Floats:
        """The standard deviation, of n - 1; 0 of one value."""
        import numpy as np

        return np.asarray(np.sqrt(self.squares / max(self.n - 1, 1)))


class _Points:
    """Totals of points that exist at the same positions."""

    def __init__(self, widths: Sequence[int]) -> None:
        import numpy as np

        self._widths = np.array(widths, np.float64)
        self._moments = _Running((len(widths), 8))  # words 0 to 7, of which 6 are read
        self._counts = np.zeros((len(widths), 4), np.uint64)
        self._most = np.full(len(widths), -1.0)
        self._where = np.zeros((len(widths), 2), np.int64)  # position, index

    def add(
        self,
        positions: np.ndarray,
        records: npt.NDArray[np.uint32],
        moments: Floats,
        counts: npt.NDArray[np.uint32],
    ) -> None:
        """Takes records (n, P, 32), their words 0 to 7 as floats and 28 to 31."""
        import numpy as np

        if not len(positions):
            return
        self._moments.add(moments)
        # a count is at most a width, 2^20, so that those of a stretch fit into a word
        self._counts += np.add.reduce(counts, axis=0, dtype=np.uint32)
        first = moments[..., 3].argmax(axis=0)  # of equal ones the first
        point = np.arange(len(self._most))
        most = moments[first, point, 3]
        more = most > self._most
        self._most = np.where(more, most, self._most)
        found = np.stack([positions[first], records[first, point, 6].astype(np.int64)], axis=1)
        self._where = np.where(more[:, None], found, self._where)

    def words(self) -> npt.NDArray[np.uint32]:
        """Gives (P, 16), as this file says; all zero before the first position."""
        import numpy as np

        n = max(self._moments.n, 1)
        floats = np.zeros((len(self._widths), TOTAL_WORDS))
        floats[:, [0, 2, 3, 4, 6, 8]] = self._moments.mean[:, :6]
        floats[:, [1, 7, 9]] = self._moments.deviation[:, [0, 4, 5]]
        floats[:, 5] = np.maximum(self._most, 0.0)
        floats[:, [12, 14, 15]] = self._counts[:, [0, 2, 3]] / (n * self._widths)[:, None]
        found = _float32(floats).view(np.uint32)
        found[:, 10:12] = self._where
        found[:, 13] = np.minimum(self._counts[:, 1], np.uint64(2**32 - 1))
        return found


class _Heads:
    """Totals of the heads."""

    def __init__(self, layers: int, heads: int) -> None:
        import numpy as np

        self._n = self._repeated = 0
        self._sums = np.zeros((heads, layers, 8))
        self._first = np.zeros((layers, heads), np.int64)
        self._induced = np.zeros((layers, heads), np.int64)
        self._most = np.zeros((layers, heads))
        self._last_seen: dict[int, int] = {}

    def add(self, seen: Seen, heads: Floats) -> None:
        import numpy as np

        after = []  # by position: the successor of the latest occurrence of its token, or none
        for position, token in zip(seen.positions.tolist(), seen.tokens.tolist(), strict=True):
            after.append(self._last_seen.get(token, -2) + 1)
            self._last_seen[token] = position
        skip = int(seen.positions[0] == 0)
        if len(after) == skip:
            return
        for t in range(skip, len(after)):
            self._sums += heads[:, t]
        argmax = seen.heads[skip:, :, :, 6]
        target = np.array(after[skip:])
        self._first += _how_many(argmax == 0)
        target[target < 0] = 2**32 - 1  # no key
        self._induced += _how_many(argmax == target.astype(np.uint32)[:, None, None])
        most = heads[:, skip:, :, HEAD_WORD["max"]].max(axis=1).T
        self._most = most if not self._n else np.maximum(self._most, most)
        self._n += len(target)
        self._repeated += int((target < 2**32 - 1).sum())

    def words(self) -> npt.NDArray[np.float32]:
        """Gives (L, H, 8), as this file says."""
        import numpy as np

        means = self._sums.transpose(1, 0, 2) / max(self._n, 1)  # (L, H, 8)
        found = np.empty((*self._first.shape, HEAD_TOTAL_WORDS))
        order = ("entropy", "sink", "self", "previous", "distance")
        found[..., :5] = means[..., [HEAD_WORD[name] for name in order]]
        found[..., 5] = self._first / max(self._n, 1)
        found[..., 6] = self._induced / max(self._repeated, 1)
        found[..., 7] = self._most
        return _float32(found)


def _how_many(true: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """Counts along the first axis."""
    import numpy as np

    return np.asarray(np.add.reduce(true.view(np.uint8), axis=0, dtype=np.uint8))


def _float32(values: Floats) -> npt.NDArray[np.float32]:
    import numpy as np

    return np.clip(values, -LARGEST, LARGEST).astype(np.float32)


class Totals:
    """Takes what was seen, position by position; gives totals and the spreads of features."""

    def __init__(self, shape: Shape, features: Sequence[Feature] = ()) -> None:
        self.shape = shape
        self._features = tuple(features)
        self._columns = Columns(shape)
        self._inner = _Points([width for _, width in shape.points])
        self._outer = _Points([width for _, width in shape.picked])
        self._heads = _Heads(shape.layers, shape.heads)
        self._groups = [
            _Group([f for f in features if (f.of, f.since) == key], shape.layers)
            for key in dict.fromkeys((f.of, f.since) for f in features)
        ]
        self._waiting = _Waiting(shape)
        self._seen = self._drawn = 0

    @property
    def positions(self) -> int:
        """How many positions were seen."""
        return self._seen

    @property
    def output(self) -> int:
        """How many of them drew a token."""
        return self._drawn

    def add(self, seen: Seen) -> None:
        """Takes the next positions, any number; raises ValueError if they are others."""
        n = len(seen.positions)
        if seen.positions.tolist() != list(range(self._seen, self._seen + n)):
            raise ValueError(f"position {self._seen} is next")
        self._seen += n
        self._drawn += len(seen.drawn)
        begin = 0
        while begin < n:
            end = min(n, begin + STRETCH - len(self._waiting))
            part = _part(seen, begin, end) if end - begin < n else seen
            whole = part if end - begin == STRETCH else self._waiting.add(part)
            if whole is not None:
                self._pass(whole)
            begin = end

    def fork(self) -> Totals:
        """Gives others that go on from here."""
        self._flush()
        made = Totals(self.shape, self._features)
        made._seen, made._drawn = self._seen, self._drawn
        made._inner, made._outer = deepcopy((self._inner, self._outer))
        made._heads, made._groups = deepcopy((self._heads, self._groups))
        return made

    def points(self) -> npt.NDArray[np.uint32]:
        """Gives the totals of all points: (P + Q, 16)."""
        import numpy as np

        self._flush()
        return np.concatenate([self._inner.words(), self._outer.words()])

    def heads(self) -> npt.NDArray[np.float32]:
        """Gives the totals of all heads: (L, H, 8)."""
        self._flush()
        return self._heads.words()

    def spreads(self, name: str) -> list[Spread]:
        """Gives the mean and 95 % interval of a feature over positions: L of them, or one.

        None if no position counted.
        """
        self._flush()
        for group in self._groups:
            if name in group.names:
                return group.spreads(name)
        raise KeyError(name)

    def _flush(self) -> None:
        if len(self._waiting):
            self._pass(self._waiting.take())

    def _pass(self, seen: Seen) -> None:
        import numpy as np

        stretch = Stretch(self.shape, self._columns, seen)
        drawing = seen.positions[len(seen.positions) - len(seen.picked) :]
        self._inner.add(seen.positions, seen.points, stretch.moments, stretch.counts)
        self._outer.add(drawing, seen.picked, stretch.picked_moments, stretch.picked_counts)
        self._heads.add(seen, stretch.heads)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            for group in self._groups:
                group.add(stretch)


class _Group:
    """Running sums of features that have a value at the same positions."""

    def __init__(self, features: Sequence[Feature], layers: int) -> None:
        self.names = [feature.name for feature in features]
        self._features, self._of, self._since = features, features[0].of, features[0].since
        self._columns = layers if self._of == "layer" else 1
        self._running = _Running((len(features), self._columns))

    def add(self, stretch: Stretch) -> None:
        import numpy as np

        skip = int((stretch.positions < self._since).sum()) if self._of == "layer" else 0
        count = len(stretch.positions) if self._of == "layer" else len(stretch.picked_moments)
        values = np.empty((count, len(self._features), self._columns))
        for i, feature in enumerate(self._features):
            values[:, i] = feature.make(stretch).reshape(count, self._columns)
        np.copyto(values, 0.0, where=~np.isfinite(values))
        self._running.add(values[skip:])

    def spreads(self, name: str) -> list[Spread]:
        """As those of ``Totals``."""
        n, i = self._running.n, self.names.index(name)
        means, squares = self._running.mean[i].tolist(), self._running.squares[i].tolist()
        halves = [half_width(square, n) for square in squares] if n else []
        return [Spread(m, m - h, m + h, n) for m, h in zip(means, halves, strict=bool(n))]


class _Waiting:
    """Positions that came one at a time."""

    def __init__(self, shape: Shape) -> None:
        import numpy as np

        n = STRETCH
        points, picked = len(shape.points), len(shape.picked)
        self._room = Seen(
            np.zeros(n, np.int64),
            np.zeros(n, np.int64),
            np.zeros((n, points, 32), np.uint32),
            np.zeros((n, picked, 32), np.uint32),
            np.zeros((n, shape.layers, shape.heads, 8), np.uint32),
            np.zeros((n, 4), np.uint32),
        )
        self._count = self._drew = 0

    def __len__(self) -> int:
        return self._count

    def add(self, part: Seen) -> Seen | None:
        """Takes what fits; gives all that waited once there is no more room."""
        n, m, room = len(part.positions), len(part.drawn), self._room
        here, there = slice(self._count, self._count + n), slice(self._drew, self._drew + m)
        room.positions[here], room.tokens[here] = part.positions, part.tokens
        room.points[here], room.heads[here] = part.points, part.heads
        room.picked[there], room.drawn[there] = part.picked, part.drawn
        self._count, self._drew = self._count + n, self._drew + m
        return self.take() if self._count == STRETCH else None

    def take(self) -> Seen:
        """Gives all that waited, to be read before the next is added."""
        n, m, room = self._count, self._drew, self._room
        self._count = self._drew = 0
        return Seen(
            room.positions[:n],
            room.tokens[:n],
            room.points[:n],
            room.picked[:m],
            room.heads[:n],
            room.drawn[:m],
        )


def _part(seen: Seen, begin: int, end: int) -> Seen:
    """Some positions of those seen."""
    inner = len(seen.positions) - len(seen.drawn)
    here, there = slice(begin, end), slice(max(begin - inner, 0), max(end - inner, 0))
    return Seen(
        seen.positions[here],
        seen.tokens[here],
        seen.points[here],
        seen.picked[there],
        seen.heads[here],
        seen.drawn[there],
    )
