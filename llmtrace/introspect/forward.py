"""The whole model in float64, teacher-forced: how far the run is from what the weights say.

Sums by ``kernels/wide.cu``, the rest element by element with ``llmtrace.probes.exact``: equal bits
on every machine. Angles are the contract's (a float32 product); the scale of attention is
1 / sqrt(head size) in float64, which the contract rounds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmtrace.blocks.llama import blocks
from llmtrace.introspect import wide
from llmtrace.introspect.fitness import fitness, silu
from llmtrace.probes import exact

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import numpy as np

    from llmtrace.engine.inside import Inside
    from llmtrace.engine.trace import Model
    from llmtrace.model.architecture import Architecture

TOGETHER = 128
"""Tokens whose attention weights are in memory at the same time."""
COPIES = 8
"""Of what is worked on, in the memory of the host and of the device together."""
ANSWERED = 64
"""Tokens of an answer whose logits are in memory at the same time."""
NINES = 16.0
"""The most nines that are told: float64 knows no more."""


def memory(a: Architecture, fed: int, looked: int, logits: int) -> int:
    """Bytes that ``propagate`` and ``ablate`` take at most, before any is taken.

    Of so many tokens fed, positions looked at, and rows of logits.
    """
    every = sum(point.rows.width for block in blocks(a) for point in block.points)
    heads = a.head_count * a.head_size
    widest = max(2 * a.ff_size, heads + 2 * a.kv_head_count * a.head_size, a.hidden_size)
    streams = (4 * a.layer_count + 2) * a.hidden_size
    held = fed * (streams + COPIES * widest) + looked * 2 * every + logits * COPIES * a.vocab_size
    return 8 * (held + COPIES * TOGETHER * a.head_count * fed)


class Forward:
    """Computes one model in float64. ``run_limit``: prompt plus max tokens of the run.

    ``heed`` is called between the blocks and may raise.
    """

    def __init__(
        self, model: Model, run_limit: int, heed: Callable[[], None] = lambda: None
    ) -> None:
        self._model, self._limit, self._heed = model, run_limit, heed
        self._blocks = wide.blocks_of(model)
        self._gains = {
            name: wide.gain(model, block).astype("f8")
            for name, block in self._blocks.items()
            if block.kernel == "rms_norm"
        }

    def embed(self, tokens: np.ndarray) -> np.ndarray:
        """Gives the first residual stream: (T, C) f64."""
        return wide.rows_of(self._model, wide.matrix_of(self._blocks["embed"]), tokens)

    def layer(self, index: int, x: np.ndarray, told: Told | None = None) -> np.ndarray:
        """Gives the residual stream behind a layer. ``told`` sees and may replace points."""
        told = told or Told()
        return self.mlp(index, self.attention(index, x, told), told)

    def attention(self, index: int, x: np.ndarray, told: Told) -> np.ndarray:
        """Gives the residual stream between attention and MLP."""
        import numpy as np

        a, at, points = self._model.architecture, f"layers.{index}.", f"blocks.{index}."
        heads, groups, size, count = a.head_count, a.kv_head_count, a.head_size, len(x)
        whole = self._linear(at + "qkv", self._norm(at + "ln1", points + "ln1", x, told))
        parts = np.split(whole, [heads * size, (heads + groups) * size], axis=1)
        for name, part in zip("qkv", parts, strict=True):
            told(f"{points}attn.hook_{name}", part)
        q, k, v = (part.reshape(count, -1, size) for part in parts)
        turn = wide.angles(self._model, np.arange(count), self._limit)
        q, k = wide.rotated(q, *turn), wide.rotated(k, *turn)
        told(points + "attn.hook_rot_q", q.reshape(count, -1))
        told(points + "attn.hook_rot_k", k.reshape(count, -1))
        z = self._mix(q / math.sqrt(size), k, v).reshape(count, -1)
        told(points + "attn.hook_z", z)
        out = told(points + "hook_attn_out", self._linear(at + "o_proj", z))
        return told(points + "hook_resid_mid", x + out)

    def mlp(self, index: int, mid: np.ndarray, told: Told) -> np.ndarray:
        """Gives the residual stream behind the MLP."""
        import numpy as np

        at, points = f"layers.{index}.", f"blocks.{index}."
        both = self._linear(at + "gate_up", self._norm(at + "ln2", points + "ln2", mid, told))
        gate, up = np.split(both, 2, axis=1)
        told(points + "mlp.hook_pre", gate)
        told(points + "mlp.hook_pre_linear", up)
        act = told(points + "mlp.hook_post", silu(gate) * up)
        out = told(points + "hook_mlp_out", self._linear(at + "down_proj", act))
        return told(points + "hook_resid_post", mid + out)

    def logits(self, x: np.ndarray, told: Told | None = None) -> np.ndarray:
        """Gives the logits of rows of the last residual stream: (M, V) f64."""
        told = told or Told()
        fed = told("unembed.hook_in", self._norm("ln_final", "ln_final", x, told))
        return told("unembed.hook_out", self._linear("unembed", fed))

    def __call__(
        self, tokens: np.ndarray, picks: np.ndarray, told: Told | None = None
    ) -> np.ndarray:
        """Feeds tokens (T,) and gives the logits at positions ``picks``: (M, V) f64."""
        told = told or Told()
        return self.logits(self.stream(tokens, told)[picks], told)

    def stream(self, tokens: np.ndarray, told: Told | None = None) -> np.ndarray:
        """Feeds tokens (T,) and gives the last residual stream: (T, C) f64."""
        told = told or Told()
        x = told("hook_embed", self.embed(tokens))
        for index in range(self._model.architecture.layer_count):
            x = self.layer(index, x, told)
        return x

    def _norm(self, block: str, point: str, x: np.ndarray, told: Told) -> np.ndarray:
        import numpy as np

        epsilon = float(self._model.architecture.norm_epsilon)
        scale = np.sqrt(exact.total(x * x) / x.shape[1] + epsilon)[:, None]
        told(point + ".hook_scale", scale)
        normalized = told(point + ".hook_normalized", x / scale)
        return np.asarray(normalized * self._gains[block])

    def _linear(self, name: str, x: np.ndarray) -> np.ndarray:
        import numpy as np

        self._heed()
        layers = wide.layers(self._model, [self._blocks[name]])
        (y,) = wide.linear(self._model, [wide.Outputs(layers, x[None])])
        return np.asarray(y[0])

    def _mix(self, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        import numpy as np

        found = []
        for begin in range(0, len(q), TOGETHER):
            self._heed()
            end = min(begin + TOGETHER, len(q))
            asked = wide.Mixes(q[begin:end], k[:end], v[:end], np.arange(begin, end) + 1)
            found += wide.attention(self._model, [asked])
        return np.concatenate(found)


class Told:
    """Is told every point of a forward pass by its name, and gives what goes on instead."""

    def __call__(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Is told a point: (T, width) f64, or (M, width) of those behind the layers."""
        del name
        return rows


class Kept(Told):
    """Keeps the points of a pass at some positions, those behind the layers whole."""

    def __init__(self, positions: np.ndarray, names: Iterable[str]) -> None:
        self._positions, self._names = positions, frozenset(names)
        self.rows: dict[str, np.ndarray] = {}

    def __call__(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Is told a point, and keeps it."""
        if name in self._names:
            behind = name.startswith(("ln_final.", "unembed."))
            self.rows[name] = rows if behind else rows[self._positions]
        return rows


@dataclass(frozen=True)
class Propagated:
    """What a run lost to the rounding of all its blocks together."""

    points: dict[str, exact.Spread]
    """F of each point against the float64 pass, over the positions."""
    kl: exact.Spread
    """Of the float64 distribution and the run's at each drawn token, in nats."""
    fitness: exact.Spread
    """F of the run: exp(-mean KL); its interval is that of the mean KL."""
    nines: float
    """-log10 of the mean KL, at most 16."""
    worst_kl: float
    same_top: exact.Spread
    """Share of positions with the same most likely token."""
    certified: exact.Spread
    """Share of positions where the margin is more than twice the largest error of a logit."""

    def json(self) -> dict[str, Any]:
        """Gives plain types: numbers as floats, spreads by mean, low, high and n."""
        spreads = {
            name: vars(getattr(self, name)) for name in ("kl", "fitness", "same_top", "certified")
        }
        points = {name: vars(spread) for name, spread in self.points.items()}
        return {**spreads, "nines": self.nines, "worst_kl": self.worst_kl, "points": points}


def propagate(
    model: Model, inside: Inside, run_limit: int, heed: Callable[[], None] = lambda: None
) -> Propagated:
    """Feeds the run's tokens in float64 and compares all that was looked at."""
    import numpy as np

    later = inside.positions >= inside.first_pick
    if not later.any():
        raise ValueError("no position that drew a token was looked at")
    kept = Kept(inside.positions, inside.rows)
    logits64 = Forward(model, run_limit, heed)(inside.tokens, inside.positions[later], kept)
    logits = inside.rows["unembed.hook_out"].astype(np.float64)
    points = {
        name: exact.spread(fitness(inside.rows[name], rows)) for name, rows in kept.rows.items()
    }
    divergence = kl(logits64, logits)
    spread = exact.spread(divergence)
    ends = (spread.mean, min(spread.high, 700.0), max(spread.low, 0.0))
    mean, low, high = (min(float(exact.exp(-end)), 1.0) for end in ends)
    ten = float(exact.log(10.0))
    nines = -float(exact.log(spread.mean)) / ten if spread.mean > 0 else NINES
    ordered = np.sort(logits, axis=1)
    margin = ordered[:, -1] - ordered[:, -2:][:, 0]  # 0 where there is one token only
    error = np.abs(logits - logits64).max(1)
    same = logits.argmax(1) == logits64.argmax(1)
    return Propagated(
        points,
        spread,
        exact.Spread(mean, low, high, spread.n),
        min(max(nines, 0.0), NINES),
        float(divergence.max()),
        share(same),
        share(margin > 2.0 * error),
    )


def share(holds: np.ndarray) -> exact.Spread:
    """The share of what holds, with Wilson's 95 % interval."""
    n, z = len(holds), exact.NORMAL_975
    p, z2 = int(holds.sum()) / n, z * z
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return exact.Spread(p, max(min(middle - half, p), 0.0), min(max(middle + half, p), 1.0), n)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Ln p of rows (M, V) f64."""
    return logits - exact.logsumexp(logits)[:, None]


def kl(truth: np.ndarray, other: np.ndarray) -> np.ndarray:
    """KL(truth || other) in nats of rows of logits (M, V): (M,) f64, never below 0."""
    import numpy as np

    ours, theirs = log_softmax(truth), log_softmax(other)
    return np.maximum(exact.dot(exact.exp(ours), ours - theirs), 0.0)


def likelihood(
    model: Model,
    prompt: Sequence[int],
    answer: Sequence[int],
    heed: Callable[[], None] = lambda: None,
) -> exact.Spread:
    """How likely the model in float64 finds a given answer: ln p by token, n its tokens."""
    import numpy as np

    if not prompt or not answer:
        raise ValueError("no prompt, or no answer")
    tokens = np.array([*prompt, *answer][:-1], np.int64)
    picks = np.arange(len(prompt) - 1, len(tokens))
    forward, found = Forward(model, len(prompt) + len(answer), heed), []
    stream = forward.stream(tokens)
    for begin in range(0, len(picks), ANSWERED):
        logits = forward.logits(stream[picks[begin : begin + ANSWERED]])
        own = np.array(answer[begin : begin + ANSWERED])
        found.append(log_softmax(logits)[np.arange(len(own)), own])
    return exact.spread(np.concatenate(found))
