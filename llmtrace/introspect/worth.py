"""The worth of features: fitness, beauty and relevance of each, in [0, 1].

F = clip(-log2(|f - f64| / |f64|) / 24, 0, 1), f of the records, f64 of float64 from whole rows; a
count is right or not. B = max(0, 1 - LZ(q) / LZ(q shuffled)), LZ the phrases of Ziv and Lempel 1978
in q, the feature's layers by positions in 8 bits: what can be told shortly is beautiful
(Schmidhuber, arXiv 0812.4360). R = |Spearman(f, -log-probability)| over the tokens. F is of the
positions that were looked at; B and R need records alone and are of all. Failure modes:
``man/llmtrace-scores.7``.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmtrace.introspect.features import FEATURES, totals
from llmtrace.introspect.fitness import fitness
from llmtrace.introspect.relevance import FeatureRelevance, feature_relevance, orders
from llmtrace.introspect.scores import held
from llmtrace.introspect.truth import Truth, seen
from llmtrace.probes import exact
from llmtrace.probes.records import philox, probe_seed
from llmtrace.probes.stretch import Columns, Stretch

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

    from llmtrace.engine.inside import Inside
    from llmtrace.engine.request import Request
    from llmtrace.engine.trace import Model
    from llmtrace.probes.records import Seen
    from llmtrace.probes.stretch import Feature, Floats

COUNTED = frozenset(
    (
        *("massive", "outliers", "outlier_stays", "mlp_sparsity", "zeros", "saturated"),
        *("sink_heads", "greedy", "certified"),
    )
)
"""Features that count: near is not right."""
FEWEST_CELLS, MOST_CELLS = 1 << 10, 1 << 16
"""Cells of a grid below which there is no beauty, and beyond which the last positions count."""
MOST_TOKENS = 1 << 10
"""Tokens that relevance is asked of, evenly chosen: its work grows with their number."""
TOGETHER = 64
"""Positions that are made again in float64 at the same time."""


@dataclass(frozen=True)
class Worth:
    """What a feature is worth; None: too little to tell."""

    name: str
    fitness: exact.Spread | None
    beauty: float | None
    cells: int
    """Layers times positions that beauty is of."""
    relevance: FeatureRelevance | None


class Course:
    """The features of a run at all its positions, told while it goes on."""

    def __init__(self, model: Model, request: Request) -> None:
        self._shape = totals(model.architecture).shape
        self._columns = Columns(self._shape)
        self._seed = probe_seed(model.id, request.prompt)
        self._first_pick = len(request.prompt) - 1
        self._known = {feature.name: _Known() for feature in FEATURES}
        self._logprob: list[Floats] = []

    def add(self, seen: Seen) -> None:
        """Takes the next positions, any number of them."""
        stretch = Stretch(self._shape, self._columns, seen)
        self._logprob.append(stretch.drawn("logprob"))
        for feature in FEATURES:
            values, at = _values(feature, stretch)
            self._known[feature.name].add(values, at >= self._first_pick)

    def worth(self, model: Model, inside: Inside) -> list[Worth]:
        """Gives the worth of every feature, its fitness from what was looked at."""
        fit = dict(self._fitness(model, inside))
        logprob, made = _joined(self._logprob), []
        asked: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for feature in FEATURES:
            known = self._known[feature.name]
            grid, tokens = known.grid(), _joined(known.tokens)
            count = len(tokens)
            if count not in asked:
                chosen = _chosen(count)
                asked[count] = chosen, orders(len(chosen), self._seed)
            chosen, order = asked[count]
            mine, theirs = tokens[chosen], logprob[len(logprob) - count :][chosen]
            made.append(
                Worth(
                    feature.name,
                    fit.get(feature.name),
                    beauty(grid, self._seed),
                    grid.size,
                    feature_relevance(mine, theirs, order),
                )
            )
        return made

    def _fitness(self, model: Model, inside: Inside) -> Iterator[tuple[str, exact.Spread]]:
        """F of each feature that has a value at some position: the mean of its layers."""
        import numpy as np

        found: dict[str, list[np.ndarray]] = {feature.name: [] for feature in FEATURES}
        for begin in range(0, len(inside.positions), TOGETHER):
            part = inside.at(inside.positions[begin : begin + TOGETHER])
            records = Stretch(self._shape, self._columns, seen(part))
            truth = Truth(self._shape, self._columns, model, part)
            for feature in FEATURES:
                (got, _), (wanted, _) = (_values(feature, each) for each in (records, truth))
                if feature.name in COUNTED:
                    right = (got == wanted).astype(np.float64)
                else:
                    right = fitness(got[..., None], wanted[..., None])
                found[feature.name].append(exact.mean(right, axis=1))
        for name, parts in found.items():
            values = np.concatenate(parts)
            if len(values):
                yield name, held(values)


class _Known:
    """What was told of one feature."""

    def __init__(self) -> None:
        self.tokens: list[np.ndarray] = []
        """The mean over the layers at each position that drew a token."""
        self._last: deque[np.ndarray] = deque()
        self._cells = 0

    def add(self, values: Floats, drew: np.ndarray) -> None:
        """Takes (n, L), and which of these positions drew a token."""
        self.tokens.append(exact.mean(values[drew], axis=1))
        self._last.append(values)
        self._cells += values.size
        while self._cells - self._last[0].size >= MOST_CELLS:
            self._cells -= self._last.popleft().size

    def grid(self) -> Floats:
        """Layers by positions, (L, n)."""
        import numpy as np

        whole = np.concatenate(self._last)
        return whole[-(MOST_CELLS // whole.shape[1]) :].T


def _values(feature: Feature, stretch: Stretch) -> tuple[Floats, np.ndarray]:
    """A feature at the positions where it has a value, (n, L) or (n, 1), and these positions."""
    import numpy as np

    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        values = feature.make(stretch)
    at = stretch.positions
    at = at[len(at) - len(values) :]
    values = np.where(np.isfinite(values), values, 0.0)
    values = values[:, None] if values.ndim == 1 else values
    return values[at >= feature.since], at[at >= feature.since]


def beauty(grid: Floats, seed: int) -> float | None:
    """B of a feature's values (L, n), layer after layer; None of fewer than 1,024 cells."""
    import numpy as np

    if grid.size < FEWEST_CELLS:
        return None
    symbols = quantised(grid).reshape(-1)
    if (symbols == symbols[0]).all():
        return 0.0
    index, none = np.arange(symbols.size, dtype=np.uint64), np.uint64(0)
    # the last word keeps these draws apart from all others of the seed
    words = philox((index, none, none, np.uint64(5)), seed)[0]
    shuffled = symbols[np.argsort(words, kind="stable")]
    return max(0.0, 1.0 - phrases(symbols.tobytes()) / phrases(shuffled.tobytes()))


def quantised(values: Floats) -> np.ndarray:
    """The values in 8 bits, 0 the least and 255 the greatest; zeros where all are equal."""
    import numpy as np

    least = values.min()
    wide = values.max() - least
    steps = np.rint((values - least) / (wide if wide > 0 else 1.0) * 255.0)
    return np.asarray(steps.astype(np.uint8))


def phrases(text: bytes) -> int:
    """How many phrases LZ78 cuts a text into: each the longest that is known, and one byte more."""
    known: dict[int, int] = {}
    at = 0
    for byte in text:
        step = at << 8 | byte
        after = known.get(step)
        if after is None:
            known[step] = len(known) + 1
            at = 0
        else:
            at = after
    return len(known) + (at > 0)


def _chosen(count: int) -> np.ndarray:
    """Which tokens relevance is asked of."""
    import numpy as np

    most = min(count, MOST_TOKENS)
    return np.array([i * count // most for i in range(most)], np.int64)


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    import numpy as np

    return np.concatenate(parts)
