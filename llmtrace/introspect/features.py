"""The features of a run: how ``features.json`` of format 2 is written and read.

    v           2
    positions   how many were fed; output: how many drew a token
    run         by the name of a feature of tokens or of the run: mean, low, high, n
    layers      by the name of a feature of layers: lists of mean, low and high; and n

The numbers are float32 as hexadecimal floats; low and high are the 95 % interval of the mean
over positions. Positions follow each other and are no independent sample: the interval is too
narrow where neighbours are alike. What each feature is: ``llmtrace.introspect.layers`` and
``choices``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmtrace.blocks.llama import blocks
from llmtrace.introspect import choices, layers
from llmtrace.introspect.choices import SINK
from llmtrace.introspect.described import Description, Table
from llmtrace.probes.exact import Spread, dot, exp, hex32, total
from llmtrace.probes.stretch import Shape
from llmtrace.probes.totals import Totals

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

    from llmtrace.model.architecture import Architecture

TABLE = Table()
"""Of the features that are made of others, or of whole rows."""
FEATURES = (*layers.TABLE.features, *choices.TABLE.features)
VERSION = 2
HALF, NEAR, BROAD = 0.5, 0.1, 0.8
"""Thresholds of the kinds of heads."""
MOST_ROWS = 64
"""Positions that the effective rank is taken of: its work grows with their square."""
_DIGITS = 32  # of a number, at most


@dataclass(frozen=True)
class Features:
    """What ``features.json`` says, by the names of features."""

    positions: int
    output: int
    run: Mapping[str, Spread]
    layers: Mapping[str, tuple[Spread, ...]]
    """One for each layer."""


def totals(a: Architecture) -> Totals:
    """Gives what adds up the features of a run while it goes on."""
    made = [point for block in blocks(a) for point in block.points]
    inner, outer = (
        tuple((p.name, p.rows.width) for p in made if p.which == which)
        for which in ("fed", "picked")
    )
    return Totals(Shape(inner, outer, a.layer_count, a.head_count), FEATURES)


def features(of: Totals) -> dict[str, Any]:
    """Gives ``features.json`` as plain JSON types: equal totals, equal text."""
    found = {feature.name: of.spreads(feature.name) for feature in FEATURES}
    run = {f.name: found[f.name][0] for f in FEATURES if f.of == "token" and found[f.name]}
    if "logprob" in run:
        run["perplexity"] = perplexity(run["logprob"])
    of_layers = {f.name: found[f.name] for f in FEATURES if f.of == "layer" and found[f.name]}
    return {
        "v": VERSION,
        "positions": of.positions,
        "output": of.output,
        "run": {name: _numbers(one) | {"n": one.n} for name, one in run.items()},
        "layers": {name: _columns(spreads) for name, spreads in of_layers.items()},
    }


def _columns(spreads: Sequence[Spread]) -> dict[str, Any]:
    rows = [_numbers(one) for one in spreads]
    return {key: [row[key] for row in rows] for key in ("mean", "low", "high")} | {
        "n": spreads[0].n
    }


def _numbers(one: Spread) -> dict[str, Any]:
    return {"mean": hex32(one.mean), "low": hex32(one.low), "high": hex32(one.high)}


def read(document: Any) -> Features:
    """Reads ``features.json`` as parsed, whoever wrote it; raises ValueError."""
    try:
        if document["v"] != VERSION:
            raise ValueError("not of format 2")
        run = {
            name: _spread(one["mean"], one["low"], one["high"], one["n"])
            for name, one in _object(document["run"])
        }
        of_layers = {
            name: tuple(
                _spread(*numbers, one["n"])
                for numbers in zip(one["mean"], one["low"], one["high"], strict=True)
            )
            for name, one in _object(document["layers"])
        }
        if len({len(spreads) for spreads in of_layers.values()}) > 1:
            raise ValueError("features of different numbers of layers")
        return Features(_count(document["positions"]), _count(document["output"]), run, of_layers)
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"malformed: {error!r}"[:200]) from None


def _spread(middle: Any, low: Any, high: Any, n: Any) -> Spread:
    return Spread(_number(middle), _number(low), _number(high), _count(n))


def _object(value: Any) -> list[tuple[str, Any]]:
    return [(str(name), one) for name, one in value.items()]


def _number(value: Any) -> float:
    if not isinstance(value, str) or len(value) > _DIGITS:
        raise ValueError("a number is no hexadecimal float")
    found = float.fromhex(value)
    if not abs(found) < float("inf"):
        raise ValueError("a number is not finite")
    return found


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 53:
        raise ValueError("a count is no count")
    return value


def describe(name: str) -> Description:
    """Gives meaning, formula and source of a feature; raises KeyError."""
    return {one.name: one for one in descriptions()}[name]


def descriptions() -> list[Description]:
    """Gives those of all features, in the order in which they are shown."""
    tables = (layers.TABLE, choices.TABLE, TABLE)
    return [one for table in tables for one in table.descriptions.values()]


@TABLE.described("run")
def perplexity(logprob: Spread) -> Spread:
    """Among how many tokens the choice was as open as it was on average.

    Formula: exp(-mean of logprob); its interval from that of logprob
    Source: Jelinek et al. 1977.
    """
    middle, low, high = (float(exp(-x)) for x in (logprob.mean, logprob.high, logprob.low))
    return Spread(middle, low, high, logprob.n)


@TABLE.described("points")
def effective_rank(rows: np.ndarray) -> float:
    """How many directions the rows of a point fill: rows (N, width) of N positions.

    Taken of at most 64 rows, evenly chosen; 0 of fewer than 2, and of equal ones.

    Formula: tr(G)^2 / tr(G^2), G the products of all rows with each other, their mean taken away
    Source: the participation ratio of the eigenvalues, Gao et al. 2017, bioRxiv 214262.
    """
    import numpy as np

    count = len(rows)
    if count > MOST_ROWS:
        rows = rows[[i * count // MOST_ROWS for i in range(MOST_ROWS)]]
    x = rows.astype(np.float64)
    if len(x) < 2:
        return 0.0
    x -= total(x, 0) / len(x)
    square = trace = 0.0
    for i in range(len(x)):
        products = dot(x[i:], x[i])  # of the upper half of G
        own, others = float(products[0]), float(dot(products[1:], products[1:]))
        trace += own
        square += own * own + 2.0 * others
    return trace * trace / square if square else 0.0


def head_kind(words: np.ndarray) -> str:
    """Gives the kind of a head from its totals (8,) f32: the first of these that fits.

    ``induction``: at more than half of the positions whose token was there before, it looks
    most at what came next then (Olsson et al. 2022, arXiv 2209.11895). ``previous``: more than
    half of its mass is on the position before (Voita et al. 2019, arXiv 1905.09418). ``first``:
    it gives the first position more than 0.3, a sink (Gu et al. 2025, arXiv 2410.10781).
    ``local``: it looks back less than a tenth of the way (Clark et al. 2019, arXiv 1906.04341).
    ``broad``: its entropy is more than 0.8 of the greatest. ``mixed``: none of these. The
    thresholds but 0.3 are our own choice; all numbers are means over the positions from 1 on.
    """
    broadness, sink, own, previous, distance, _, induction, _ = (float(w) for w in words)
    del own
    kinds = {
        "induction": induction > HALF,
        "previous": previous > HALF,
        "first": sink > SINK,
        "local": distance < NEAR,
        "broad": broadness > BROAD,
    }
    return next((kind for kind, fits in kinds.items() if fits), "mixed")
