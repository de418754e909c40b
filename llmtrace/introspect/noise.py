"""How far honest arithmetic may be from a record: noise by point, witnesses, their multiples.

An engine that rounds every tensor to a type of significand ulp 2u is off by some 0.85 u a
rounding, in root mean square and relative to the row. Roundings add up along the stream, and a
model magnifies them more or less. So the noise of a point is

    u  growth(point, depth)  level

where ``growth`` is the profile that bfloat16 passes of transformers show, and ``level`` is the
file's own: the median over its points of distance / (u growth), between LEAST and MOST. A file
is judged against its own level because models differ in it by a factor of four while the
profile hardly differs; the bounds keep a file that is off everywhere from excusing itself.

Where the noise is a matter of a few roundings and of no model, level is 1: the embedding and
what enters the first attention. There alone is 8-bit quantisation of weights farther from the
truth than bfloat16 arithmetic (twice as far), so ``entry`` looks there with all it has.

A threshold is ``base + few / sqrt(N)`` times the noise, for N positions; of what is the most of N
positions it grows by a tenth with each doubling beyond 2. Bases and fews are some 1.5 times what
the worst of honest passes showed: ``tests/bench_compare.py`` measures the margins again, on the
sample model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

UNITS = {"bfloat16": 2.0**-9, "float16": 2.0**-12, "float32": 2.0**-22}
"""u by the type that an engine rounds to; float32 with room for sums in another order."""
LEAST, MOST = 0.4, 1.5
"""Bounds of the level."""
FEW_POINTS = 8
"""With fewer points than these a file has no level of its own: 1 is taken."""
ENTRY = ("blocks.0.attn.hook_q", "blocks.0.attn.hook_k", "blocks.0.attn.hook_v")
SKETCH_ROUNDING = 2.0**-12
"""Of sketches as records hold them, in f16."""
TOTAL_BIAS = 0.6
"""Noise, in u, that no mean over positions removes."""

_SCALE = 5.0  # of a single number, which follows the rms of the stream and not its values


@dataclass(frozen=True)
class Witness:
    """A way to look at a difference: what it is relative to, and its threshold in noises."""

    meaning: str
    base: float
    few: float = 0.0
    floor: float = 0.0
    """What the record's own rounding adds to the noise."""
    is_most: bool = False
    """Whether it is the most of all positions."""

    def threshold(self, noise: float, positions: int) -> float:
        """The largest honest value."""
        multiple = self.base + self.few / math.sqrt(max(positions, 1))
        if self.is_most:
            multiple *= 1.0 + 0.1 * math.log2(max(positions, 2) / 2)
        return multiple * math.hypot(noise, self.floor)


WITNESSES = {
    "samples": Witness("8 samples a position: rms of differences / rms of the row", 4, 4),
    "linear": Witness("linear sketch: |difference| / |row|", 4, 4, SKETCH_ROUNDING),
    "clipped": Witness("the same of values clipped at twice their mean", 2, 2, SKETCH_ROUNDING),
    "worst": Witness(
        "the most of linear and clipped at one position", 10, 0, SKETCH_ROUNDING, is_most=True
    ),
    "largest": Witness("4 largest values: |difference| / |value|", 10, 0, 2.0**-24, is_most=True),
    "rms": Witness("rms: |difference| / rms", 3, 0, 2.0**-20, is_most=True),
    "l1": Witness("mean magnitude: |difference| / rms", 3, 0, 2.0**-20, is_most=True),
    "mean": Witness("mean: |difference| / rms", 2, 0, 2.0**-20, is_most=True),
    "entropy": Witness("energy entropy: |difference| in nats", 7, 0, 2.0**-17, is_most=True),
    "dead": Witness("a column that is zero at all positions, and is not in the record", 0),
    "entry": Witness("q, k and v of the first layer together", 1.65, 3.3, SKETCH_ROUNDING),
    "total_rms": Witness("mean rms over all positions, relative", 3, 0, 2.0**-20),
    "total_l1": Witness("mean l1 over all positions, relative", 3, 0, 2.0**-20),
    "total_absmax": Witness("mean absmax over all positions, relative", 3, 0, 2.0**-20),
    "total_entropy": Witness("mean energy entropy over all positions, in nats", 4, 0, 2.0**-17),
    "logprob": Witness("log-probabilities of the output: rms difference / rms of logits", 3, 4),
    "kept": Witness("kept tensor, all positions: |difference| / |tensor|", 3, 2),
}


def growth(point: str, layers: int) -> float:
    """Noise of a point in units of u, for a model of average level; ``layers`` is its depth."""
    layer, _, name = point.removeprefix("blocks.").partition(".")
    if not point.startswith("blocks."):
        return 1.0 if point == "hook_embed" else _head(point, layers)
    depth = int(layer)
    if name.endswith("hook_scale"):
        return _SCALE
    if is_exact(point):
        return 1.0 if name.startswith("ln1") else 1.7 if "rot_" not in name else 2.0
    if name.startswith("ln1"):
        return _stream(depth)
    if name in {"attn.hook_z", "hook_attn_out"}:
        return 1.2 * _stream(depth)
    if name.startswith("attn"):
        return 1.1 * _stream(depth)
    if name in {"mlp.hook_post", "hook_mlp_out"}:
        return 1.5 * _stream(depth + 0.5)
    if name.startswith("mlp"):
        return 1.1 * _stream(depth + 0.5)
    return _stream(depth + (1 if name == "hook_resid_post" else 0.5))


def is_exact(point: str) -> bool:
    """Says whether the noise of a point is a few roundings, whatever the model."""
    before = ("blocks.0.ln1.", *ENTRY, "blocks.0.attn.hook_rot_")
    return point == "hook_embed" or point.startswith(before)


def _stream(depth: float) -> float:
    """Of the residual stream behind so many layers."""
    return 4.0 * math.sqrt(1 + depth / 2)


def _head(point: str, layers: int) -> float:
    return _SCALE if point.endswith("hook_scale") else 1.1 * _stream(layers)
