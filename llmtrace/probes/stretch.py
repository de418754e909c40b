"""What features read: a stretch of positions, its records as float64 by names of points.

Hides where a point of a layer stands in the records, and how words become numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from llmtrace.probes.exact import log, total
from llmtrace.probes.records import TOKEN_FIELDS, Seen, field

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

MOMENTS = ("rms", "mean", "l1", "absmax", "kurtosis", "entropy")
"""Words 0 to 5 of a record."""
HEAD_WORD = {"entropy": 1, "max": 2, "sink": 3, "self": 4, "distance": 5, "previous": 7}
"""Words of a head record that are read as float32."""
COUNT_NAMES = ("zeros", "saturated", "small", "outside")
"""Words 28 to 31."""
_PRECEDING = "hook_resid_pre"


@dataclass(frozen=True)
class Feature:
    """A number by position, of each layer or of what was drawn, to be averaged over the run."""

    name: str
    of: Literal["layer", "token"]
    make: Callable[[Stretch], npt.NDArray[np.float64]]
    """Gives (n, L) of a layer, (m,) of a token; what is not finite counts as 0."""
    since: int = 0
    """The first position that counts."""


@dataclass(frozen=True)
class Shape:
    """What is measured: the points at every position and behind the layers, with their widths."""

    points: tuple[tuple[str, int], ...]
    picked: tuple[tuple[str, int], ...]
    layers: int
    heads: int


class Stretch:
    """n positions in order, of which the last m drew a token, for features to read."""

    def __init__(self, shape: Shape, columns: Columns, seen: Seen) -> None:
        self.shape, self.positions = shape, seen.positions
        self.moments, self.picked_moments = _moments(seen.points), _moments(seen.picked)
        self.counts, self.picked_counts = _counts(seen.points), _counts(seen.picked)
        self.heads = _heads(seen)
        self._seen, self._columns = seen, columns
        self._largest: dict[str, Floats] = {}
        self._head_means = total(self.heads, 0) / shape.heads  # (n, L, 8)

    def width(self, point: str) -> int:
        """Values of a row of a point of the layers."""
        return self._columns.widths[point]

    def row(self, point: str, name: str) -> Floats:
        """A field at a point of all layers, such as ``hook_resid_pre``: (n, L)."""
        columns = self._columns.of(point)
        if name in MOMENTS:
            return self.moments[:, columns, MOMENTS.index(name)]
        if name in COUNT_NAMES:
            return self.counts[:, columns, COUNT_NAMES.index(name)].astype("f8")
        return field(self._seen.points[:, columns], name).astype("f8")

    def largest(self, point: str) -> Floats:
        """The four largest magnitudes at a point of all layers: (4, n, L)."""
        import numpy as np

        if point not in self._largest:
            four = self._seen.points[:, self._columns.of(point)].view("V16")[..., 3].copy()
            values = four.view("<f4").reshape(*four.shape, 4).transpose(2, 0, 1)
            self._largest[point] = np.abs(values.astype(np.float64, order="C"))
        return self._largest[point]

    def layer_total(self, name: str) -> Floats:
        """A count over all points of each layer: (n, L)."""
        import numpy as np

        found = self.counts[:, self._columns.layers, COUNT_NAMES.index(name)]
        by_layer = found.reshape(len(found), self.shape.layers, -1)
        return np.asarray(np.add.reduce(by_layer, axis=-1, dtype=np.uint32).astype("f8"))

    def head(self, name: str) -> Floats:
        """A field of the heads: (H, n, L); entropy as a share of ln(visible), distance of position.

        At position 0 there is nothing to choose from: both are 0.
        """
        return self.heads[..., HEAD_WORD[name]]

    def head_mean(self, name: str) -> Floats:
        """The mean of ``head`` over the heads: (n, L)."""
        return self._head_means[..., HEAD_WORD[name]]

    def drawn(self, name: str) -> Floats:
        """A field of the token records: (m,)."""
        return field(self._seen.drawn, name, TOKEN_FIELDS).astype("f8")

    def logits(self, name: str) -> Floats:
        """A moment of the logits: (m,)."""
        return self.picked_moments[:, -1, MOMENTS.index(name)]


class Columns:
    """Where the points of the layers stand in a record: a layer is as long as any other."""

    def __init__(self, shape: Shape) -> None:
        names = [name for name, _ in shape.points]
        first = "blocks.0."
        self.widths = {
            name.removeprefix(first): width
            for name, width in shape.points
            if name.startswith(first)
        }
        self._begin, step = names.index(first + next(iter(self.widths))), len(self.widths)
        self._at = {name: i for i, name in enumerate(self.widths)}
        self.layers = slice(self._begin, self._begin + shape.layers * step)
        expected = [f"blocks.{i}.{name}" for i in range(shape.layers) for name in self.widths]
        if names[self.layers] != expected or names[self._begin - 1] != "hook_embed":
            raise ValueError("the points of a layer are not those of another")
        self._step, self._count = step, shape.layers

    def of(self, point: str) -> slice:
        """The columns of a point, layer by layer; ``hook_resid_pre`` stands before the layer."""
        # -1: the embedding, then the last points of the layers but the last
        begin = self._begin + (-1 if point == _PRECEDING else self._at[point])
        return slice(begin, begin + self._count * self._step, self._step)


def _moments(records: npt.NDArray[np.uint32]) -> Floats:
    """Words 0 to 7 of records (…, 32) as (…, 8) f64; what is no float is a number too."""
    import numpy as np

    eight = records.view("V32")[..., 0].copy()  # copied as pieces of 32 bytes, which is fast
    return eight.view("<f4").reshape(*records.shape[:-1], 8).astype(np.float64)


def _counts(records: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """Words 28 to 31 of records (…, 32)."""
    return records.view("V16")[..., 7].copy().view("<u4").reshape(*records.shape[:-1], 4)


def _heads(seen: Seen) -> Floats:
    """Head records (H, n, L, 8) as f64; entropy as a share of ln(visible), distance of position."""
    import numpy as np

    words = seen.heads.view("V32")[..., 0].transpose(2, 0, 1).copy()  # (H, n, L) of 32 bytes
    heads = words.view("<f4").reshape(*words.shape, 8).astype(np.float64)
    at = seen.positions.astype(np.float64)
    heads[..., HEAD_WORD["entropy"]] /= np.where(at > 0, log(at + 1.0), 1.0)[:, None]
    heads[..., HEAD_WORD["distance"]] /= np.maximum(at, 1.0)[:, None]
    return heads
