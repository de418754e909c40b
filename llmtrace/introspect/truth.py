"""What probes should have measured: a stretch of float64, made of whole rows and the KV cache.

Features read it as they read records, so that both can be compared. Attention rows are made again
by ``kernels/wide.cu``, all else with ``llmtrace.probes.exact``: equal bits on every machine.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from llmtrace.introspect import wide
from llmtrace.introspect.invariants.sampling import ranks
from llmtrace.introspect.measures import counts, largest, pattern
from llmtrace.probes import exact
from llmtrace.probes.records import TOKEN_WORDS, WORDS, Seen
from llmtrace.probes.stretch import HEAD_WORD, MOMENTS, Stretch

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from llmtrace.engine.inside import Inside
    from llmtrace.engine.trace import Model
    from llmtrace.probes.stretch import Columns, Floats, Shape

VALUES = 1 << 20
"""Values that are worked on together."""
ARGMAX, TOP, TOP_VALUES, COUNTS = 6, slice(8, 12), slice(12, 16), slice(28, 32)
"""Words of a record that are exact."""


def seen(inside: Inside) -> Seen:
    """What the probes measured at the positions that were looked at."""
    return Seen(
        inside.positions,
        inside.tokens[inside.positions],
        inside.points,
        inside.picked,
        inside.heads,
        inside.drawn,
    )


class Truth(Stretch):
    """The positions of an inside as features read them, of float64 in place of records."""

    def __init__(self, shape: Shape, columns: Columns, model: Model, inside: Inside) -> None:
        import numpy as np

        made = [
            [_measured(inside.rows[name]) for name, _ in points]
            for points in (shape.points, shape.picked)
        ]
        records = [np.stack([words for _, words in each], axis=1) for each in made]
        super().__init__(
            shape, columns, replace(seen(inside), points=records[0], picked=records[1])
        )
        self.moments, self.picked_moments = (
            np.stack([moments for moments, _ in each], axis=1) for each in made
        )
        self.heads = _heads(model, inside)
        self._head_means = exact.total(self.heads, 0) / shape.heads
        self._drawn = _drawn(inside)

    def drawn(self, name: str) -> Floats:
        """A field of the token records: (m,)."""
        return self._drawn[name]


def _measured(rows: np.ndarray) -> tuple[Floats, np.ndarray]:
    """Of rows (N, n) f32 their moments (N, 8) f64, and the exact words of their records (N, 32)."""
    import numpy as np

    moments, words = np.zeros((len(rows), 8)), np.zeros((len(rows), WORDS), np.uint32)
    each = np.arange(len(rows))[:, None]
    for here in _stretches(*rows.shape):
        moments[here, : len(MOMENTS)] = np.stack(_moments(rows[here]), axis=1)
    top = largest(rows)
    words[:, ARGMAX], words[:, TOP] = top[:, 0], top
    words[:, TOP_VALUES] = np.ascontiguousarray(rows[each, top]).view(np.uint32)
    words[:, COUNTS] = counts(rows, moments[:, MOMENTS.index("l1")])
    return moments, words


def _moments(rows: np.ndarray) -> Sequence[np.ndarray]:
    """In the order of ``MOMENTS``; what has no energy has no kurtosis and no entropy."""
    import numpy as np

    x = rows.astype(np.float64)
    size, square = np.abs(x), x * x
    energy, width = exact.total(square), float(rows.shape[1])
    some = np.where(energy > 0, energy, 1.0)
    fourth = exact.total(square * square) / width / (some / width * (some / width))
    entropy = exact.entropy(square / some[:, None])
    return (
        np.sqrt(energy / width),
        exact.total(x) / width,
        exact.total(size),
        size.max(axis=1),
        fourth,
        np.maximum(entropy, 0.0),
    )


def _stretches(count: int, width: int) -> list[slice]:
    step = max(VALUES // max(width, 1), 1)
    return [slice(begin, begin + step) for begin in range(0, count, step)]


def _heads(model: Model, inside: Inside) -> Floats:
    """Head records as a stretch holds them, (H, N, L, 8): entropy and distance are shares."""
    import numpy as np

    a, at = inside.architecture, inside.positions
    made = np.zeros((a.head_count, len(at), a.layer_count, 8))
    group = np.arange(a.head_count) // (a.head_count // a.kv_head_count)
    scale = float(a.attention_scale())
    for layer in range(a.layer_count):
        keys, values = inside.cache(layer)
        queries = inside.rows[f"blocks.{layer}.attn.hook_rot_q"].astype(np.float64) * scale
        for here in _stretches(len(at), a.head_count * len(keys)):
            q = queries[here].reshape(-1, a.head_count, a.head_size)
            (w,) = wide.weights(model, [wide.Mixes(q, keys, values, at[here] + 1)])
            found = pattern(
                (w / exact.total(w)[..., None]).reshape(-1, len(keys)),
                np.repeat(at[here], a.head_count),
            )
            best = keys.astype(np.float64)[w.argmax(axis=-1), group]  # (N, H, D)
            found["max"] = exact.dot(q, best).reshape(-1)
            for name, column in found.items():
                by_head = column.reshape(len(q), a.head_count)
                made[:, here, layer, HEAD_WORD[name]] = by_head.T
    ways, visible = np.maximum(at, 1), exact.log(at + 1.0)
    made[..., HEAD_WORD["entropy"]] /= np.where(at > 0, visible, 1.0)[:, None]
    made[..., HEAD_WORD["distance"]] /= ways[:, None]
    return made


def _drawn(inside: Inside) -> dict[str, Floats]:
    """Token records: logprob, entropy, margin and rank, (M,) f64 each."""
    import numpy as np

    later = inside.positions[inside.positions >= inside.first_pick] - inside.first_pick
    found = np.zeros((len(later), TOKEN_WORDS))
    for row, (logits, i) in enumerate(zip(inside.rows["unembed.hook_out"], later, strict=True)):
        token, keys = inside.output[i], ranks(logits)
        x = logits.astype(np.float64)
        share = x - exact.logsumexp(x)
        others = np.delete(x, token)
        found[row] = (
            share[token],
            max(0.0 - float(exact.dot(exact.exp(share), share)), 0.0),
            x[token] - others.max() if len(others) else 0.0,
            (keys > keys[token]).sum(),
        )
    names = ("logprob", "entropy", "margin", "rank")
    return {name: found[:, word] for word, name in enumerate(names)}
