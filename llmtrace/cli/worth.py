"""Scores and features of a run, as ``introspect`` prints them: as JSON, and as lines made of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmtrace.cli.table import columns, facts, interval

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from llmtrace.introspect.scores import Scorer
    from llmtrace.introspect.worth import Worth
    from llmtrace.probes.exact import Spread
    from llmtrace.probes.totals import Totals

LEAST = 3
"""Points whose fitness is printed: the least ones, and all that are not trusted."""
NAME = 22


def number(value: float) -> dict[str, Any]:
    """A number, and its float32 as records write it."""
    from llmtrace.probes.exact import hex32

    return {"value": value, "hex": hex32(value)}


def spread(of: Spread) -> dict[str, Any]:
    """A mean with its interval: floats, and under ``hex`` their float32 as records write them.

    What is beyond the largest float32 is said to be it: JSON has no infinity.
    """
    from llmtrace.probes.exact import LARGEST, hex32

    told = {"mean": of.mean, "low": of.low, "high": of.high}
    values = {name: min(max(value, -LARGEST), LARGEST) for name, value in told.items()}
    return {**values, "n": of.n, "hex": {name: hex32(value) for name, value in values.items()}}


def scores(scorer: Scorer, worth: list[Worth]) -> dict[str, Any]:
    """The scores of the run, of points and of features."""
    table = scorer.table()
    run = {line.name: spread(line.spread) for line in table if line.of == "run"}
    points = [
        {"score": line.name, "of": line.of, **spread(line.spread), "trusted": line.trusted}
        for line in table
        if line.of != "run"
    ]
    trusted = next(line.trusted for line in table if line.of == "run")
    return {"run": run, "trusted": trusted, "points": points, "features": [*map(_worth, worth)]}


def _worth(one: Worth) -> dict[str, Any]:
    from llmtrace.introspect.fitness import TRUSTED

    found = one.relevance
    return {
        "name": one.name,
        "fitness": spread(one.fitness) if one.fitness else None,
        "trusted": one.fitness.mean >= TRUSTED if one.fitness else None,
        "beauty": None if one.beauty is None else {**number(one.beauty), "cells": one.cells},
        "relevance": found
        and {**number(found.relevance), "spearman": spread(found.correlation), "p": found.p},
    }


def features(totals: Totals) -> dict[str, Any]:
    """The features of the run over all its positions, under the names of ``features.json``."""
    from llmtrace.introspect.features import FEATURES, perplexity

    run, layers = {}, {}
    for feature in FEATURES:
        found = totals.spreads(feature.name)
        if feature.of == "layer":
            layers[feature.name] = [spread(one) for one in found]
        elif found:
            run[feature.name] = spread(found[0])
            if feature.name == "logprob":
                run["perplexity"] = spread(perplexity(found[0]))
    return {
        "positions": totals.positions,
        "output": totals.output,
        "run": run,
        "layers": {name: found for name, found in layers.items() if found},
    }


def score_lines(whole: Mapping[str, Any]) -> Iterator[str]:
    """What is printed of the scores."""
    found = whole["scores"]
    if found is None:
        yield "none: no position that drew a token was looked at"
        return
    for name, one in found["run"].items():
        yield f"{name:{NAME}} {as_text(one)}{'' if found['trusted'] else '  untrusted'}"
    points = sorted(
        (each for each in found["points"] if each["score"] == "fitness"),
        key=lambda each: each["mean"],
    )
    yield ""
    yield f"{'least fit':33} F"
    for i, each in enumerate(points):
        if i < LEAST or not each["trusted"]:
            yield f"{each['of']:33} {as_text(each)}{'' if each['trusted'] else '  untrusted'}"
    yield ""
    yield f"{'feature':{NAME}} {'F':>6} {'B':>6} {'R':>6} {'p':>6}"
    for each in found["features"]:
        cells = (_value(each[name]) for name in ("fitness", "beauty", "relevance"))
        p = f"{each['relevance']['p']:6.3f}" if each["relevance"] else f"{'-':>6}"
        mark = "  untrusted" if each["trusted"] is False else ""
        yield f"{each['name']:{NAME}} {' '.join(cells)} {p}{mark}"


def feature_lines(whole: Mapping[str, Any]) -> Iterator[str]:
    """What is printed of the features: those of the run, then layer by layer."""
    found = whole["features"]
    yield from facts({name: as_text(one) for name, one in found["run"].items()})
    layers = found["layers"]
    count = max(map(len, layers.values()), default=0)
    names = [f"L{layer}" for layer in range(count)]
    rows = [(name, [one["mean"] for one in every]) for name, every in layers.items()]
    yield from columns(names, rows, cell=8, digits=3)


def as_text(one: Mapping[str, Any]) -> str:
    """A spread of JSON as text."""
    from llmtrace.probes.exact import Spread

    return interval(Spread(one["mean"], one["low"], one["high"], one["n"]))


def _value(one: Mapping[str, Any] | None) -> str:
    if one is None:
        return f"{'-':>6}"
    return f"{one['mean'] if 'mean' in one else one['value']:6.3f}"
