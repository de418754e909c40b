"""What is made of the probes of a run while it goes on: the parts of its record that tell of it.

`run` and `verify` both have one of these for each request, so that both make the same bytes.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from llmtrace.engine.evidence import pack_tensors
from llmtrace.introspect.features import features, totals
from llmtrace.introspect.sampler import Sampler
from llmtrace.introspect.scores import Scorer
from llmtrace.probes.recorder import Recorder
from llmtrace.probes.records import layout, probes_bin
from llmtrace.probes.scheme import DETAIL, NONE, Scheme

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmtrace.engine.inside import Inside, Observer
    from llmtrace.engine.request import Request
    from llmtrace.engine.trace import Model
    from llmtrace.probes.records import Seen
    from llmtrace.probes.totals import Totals


def observing(model: Model, level: str, scheme: Scheme = NONE) -> Callable[[Request], Observing]:
    """Gives what ``engine.trace`` calls for an observer of each request."""
    return lambda request: Observing(model, request, level, scheme)


class Observing:
    """Observes one request."""

    def __init__(self, model: Model, request: Request, level: str, scheme: Scheme) -> None:
        if level == "detail":
            scheme = Scheme((*scheme.rules, *DETAIL.rules))
        first_pick = len(request.prompt) - 1
        self._recorder = Recorder(level, first_pick, totals(model.architecture), scheme)
        self._scorer = Scorer(model, request)
        self._sampler = Sampler(model, request, self._recorder, scheme)

    @property
    def totals(self) -> Totals:
        """Those of all positions seen so far."""
        return self._recorder.totals

    def saw(self, seen: Seen) -> None:
        """Takes what a step measured."""
        self._recorder.saw(seen)

    def follow(self, other: Observing) -> None:
        """Takes over what another of the same level and scheme saw."""
        self._recorder.follow(other._recorder)

    def wanted(self) -> list[int]:
        """Scores are of the positions whose records are stored."""
        return self._recorder.positions()

    def looked(self, inside: Inside) -> None:
        """Stores, samples and scores some of them."""
        self._recorder.store(inside.positions, inside.points, inside.picked, inside.heads)
        self._sampler.add(inside)
        self._scorer.add(inside)

    def parts(self) -> dict[str, bytes]:
        """Gives ``probes.bin``, ``features.json``, ``scores.json``, and ``samples.safetensors``."""
        points = layout(self._recorder.points)
        samples = self._sampler.tensors()
        return {
            "probes.bin": probes_bin(self._recorder.stored()),
            "features.json": _json(features(self._recorder.totals) | {"points": points}),
            "scores.json": _json(self._scorer.scores()),
            **({"samples.safetensors": pack_tensors(samples)} if samples else {}),
        }


class Both:
    """Two observers of one request, each told of the positions that it wants.

    The parts are those of the first.
    """

    def __init__(self, first: Observer, second: Observer) -> None:
        self._both = (first, second)
        self._wanted: tuple[list[int], ...] = ()

    def saw(self, seen: Seen) -> None:
        """Takes what a step measured."""
        for each in self._both:
            each.saw(seen)

    def wanted(self) -> list[int]:
        """What either of them wants."""
        self._wanted = tuple(each.wanted() for each in self._both)
        return sorted({*self._wanted[0], *self._wanted[1]})

    def looked(self, inside: Inside) -> None:
        """Tells each of its own."""
        for each, wanted in zip(self._both, self._wanted, strict=True):
            mine = inside.at(wanted)
            if len(mine.positions):
                each.looked(mine)

    def parts(self) -> dict[str, bytes]:
        """Gives those of the first."""
        return self._both[0].parts()


def _json(value: dict[str, Any]) -> bytes:
    return (
        json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode() + b"\n"
    )
