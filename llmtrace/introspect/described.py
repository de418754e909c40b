"""How features are listed: each is a function whose docstring is its only description."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from llmtrace.probes.stretch import Feature, Stretch

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]
    Make = Callable[[Stretch], Floats]

F = TypeVar("F", bound=Callable[..., Any])
Of = Literal["layer", "token", "run", "points"]
"""What has a value: a layer at a position, a drawn token, the run, or some rows of a point."""


@dataclass(frozen=True)
class Description:
    """What is said of a feature."""

    name: str
    of: Of
    meaning: str
    formula: str
    source: str


class Table:
    """Features in the order in which they are shown; its methods are decorators.

    The docstring has the meaning, then ``Formula:`` and ``Source:``.
    """

    def __init__(self) -> None:
        self.features: list[Feature] = []
        self.descriptions: dict[str, Description] = {}

    def layer(self, make: Make) -> Make:
        """Of every layer at every position."""
        self.features.append(Feature(make.__name__, "layer", make))
        return self.described("layer")(make)

    def heads(self, make: Make) -> Make:
        """Of every layer at the positions from 1 on, where heads have a choice."""
        self.features.append(Feature(make.__name__, "layer", make, since=1))
        return self.described("layer")(make)

    def token(self, make: Make) -> Make:
        """Of every drawn token."""
        self.features.append(Feature(make.__name__, "token", make))
        return self.described("token")(make)

    def described(self, of: Of) -> Callable[[F], F]:
        """Of something that no position has by itself."""

        def take(make: F) -> F:
            words = " ".join((make.__doc__ or "").split())
            meaning, _, rest = words.partition(" Formula: ")
            formula, _, source = rest.partition(" Source: ")
            name = make.__name__
            self.descriptions[name] = Description(name, of, meaning, formula, source)
            return make

        return take
