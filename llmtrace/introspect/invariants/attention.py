"""Invariants of attention: its rows computed again in float64 from queries and the KV cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmtrace.introspect.invariants.bounds import EXP, LANES, C, U, dot, variance
from llmtrace.introspect.measures import pattern

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

    from llmtrace.introspect.invariants.case import Case, Invariant, Tally

TILE = 128
CHAIN = TILE // 4
"""Additions in a chain of a tile (contract point 7)."""
LSE, ENTROPY, MAX, SINK, SELF, DISTANCE, ARGMAX, PREVIOUS = range(8)
"""Words of a head record."""


@dataclass(frozen=True)
class Head:
    """One head at the N positions looked at, over T keys; what is invisible is 0 in all.

    ``spread`` is the variance of the scores' rounding; ``relative`` that of exp(score - max),
    ``drift`` the relative error that the keys of a tile share, at most.
    """

    layer: int
    index: int
    seen: np.ndarray  # (N, T) bool
    scores: np.ndarray  # (N, T) f64, scaled
    below: np.ndarray  # (N, T) f64, score - max
    pattern: np.ndarray  # (N, T) f64, rows sum to one
    values: np.ndarray  # (T, D) f64
    spread: np.ndarray  # (N, T) f64
    relative: np.ndarray  # (N, T) f64
    drift: np.ndarray  # (N, 1) f64

    @property
    def block(self) -> str:
        """The block that computes it."""
        return f"layers.{self.layer}.attn"


def mixes(case: Case) -> Invariant:
    """What is mixed, z, is softmax(q k / sqrt(d)) v over the visible keys of the cache."""
    return _studied(case)[0]


def sums(case: Case) -> Invariant:
    """The recorded log-sum-exp makes the attention row sum to one."""
    return _studied(case)[1]


def entropies(case: Case) -> Invariant:
    """The recorded entropy lies between 0 and ln(visible keys)."""
    return _studied(case)[2]


def records(case: Case) -> Invariant:
    """Each head record is what float64 makes of the scores."""
    return _studied(case)[3]


def _studied(case: Case) -> list[Invariant]:
    """All four, in one pass over the heads."""
    found: list[Invariant] = case.once("attention", _study)
    return found


def _study(case: Case) -> list[Invariant]:
    mix = case.tally(
        "attention mix",
        "8 u sqrt(sum_j p_j^2 e_j^2 (v_j^2 + z^2) + (69 + 4 tiles)/3 (sum_j p_j |v_j|)^2)",
    )
    one = case.tally(
        "attention rows sum to one", "8 u sqrt(sum_j p_j^2 e_j^2 + (36 + 2 tiles + 4 lse^2)/3)"
    )
    interval = case.tally(
        "attention entropy in its range", "0 to ln(visible), to the bound of its rounding"
    )
    record = case.tally(
        "head records", "8 deviations of the scores' and the sums' rounding; argmax: 16, of two"
    )
    for head in heads(case):
        _mix(case, head, mix)
        _sum(case, head, one)
        _range(case, head, interval)
        _record(case, head, record)
    return [tally.result() for tally in (mix, one, interval, record)]


def _mix(case: Case, head: Head, tally: Tally) -> None:
    import numpy as np

    at, size = case.inside.positions, case.architecture.head_size
    p, v, tiles = head.pattern, head.values, at[:, None] // TILE + 1.0
    wanted, mass = p @ v, p @ np.abs(v)
    weights = p**2 * head.relative
    spread = 2 * (weights @ v**2 + weights.sum(axis=1, keepdims=True) * wanted**2)
    spread += variance() * (2 * (CHAIN + 3 + 2 * tiles) + 1) * mass**2
    point = f"blocks.{head.layer}.attn.hook_z"
    got = case.rows(point)[:, head.index * size :][:, :size]
    bound = C * np.sqrt(spread) + 2 * head.drift * mass
    tally.within(head.block, point, at, got, wanted, bound)


def _sum(case: Case, head: Head, tally: Tally) -> None:
    import numpy as np

    lse = _word(case, head, LSE)
    with np.errstate(over="ignore"):
        masses = np.where(head.seen, np.exp(head.scores - lse[:, None]), 0.0)
    got, at = masses.sum(axis=1), case.inside.positions
    tally.within(head.block, None, at, got, np.ones(len(got)), _lse_bound(case, head))


def _range(case: Case, head: Head, tally: Tally) -> None:
    import numpy as np

    got, at = _word(case, head, ENTROPY), case.inside.positions
    wanted = np.clip(got, 0.0, np.log(at + 1.0))
    tally.within(head.block, None, at, got, wanted, _entropy_bound(case, head))


def _record(case: Case, head: Head, tally: Tally) -> None:
    import numpy as np

    at = case.inside.positions
    for word, wanted, bound in _statistics(case, head):
        tally.within(head.block, None, at, _word(case, head, word), wanted, bound)
    key = case.inside.heads[:, head.layer, head.index, ARGMAX].astype(np.int64)
    lost = np.where(key <= at, _top(head) - _pick(head.scores, np.minimum(key, at)), np.inf)
    bound = 2 * C * np.sqrt(head.spread.max(axis=1))
    tally.within(head.block, None, at, lost, np.zeros(len(at)), bound)


def _statistics(case: Case, head: Head) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Words of the record, what they should be, and how far from it they may be."""
    import numpy as np

    at, p = case.inside.positions, head.pattern
    top, wanted = _top(head), pattern(p, at)
    common = C * np.sqrt((p**2 * head.relative).sum(axis=1) + variance() * _steps(at))
    common += 2 * head.drift[:, 0]
    yield (
        LSE,
        np.log(np.exp(head.below).sum(axis=1, where=head.seen)) + top,
        _lse_bound(case, head),
    )
    yield ENTROPY, wanted["entropy"], _entropy_bound(case, head)
    yield MAX, top, C * np.sqrt(head.spread.max(axis=1)) + 2.0**-148
    for word, name, key in (
        (SINK, "sink", np.zeros_like(at)),
        (SELF, "self", at),
        (PREVIOUS, "previous", at - 1),
    ):
        own = C * np.sqrt(_pick(head.relative, np.maximum(key, 0)) + variance() * _steps(at))
        yield word, wanted[name], wanted[name] * (own + common) + 2.0**-126
    yield DISTANCE, wanted["distance"], 2 * wanted["distance"] * common + at * common


def _lse_bound(case: Case, head: Head) -> np.ndarray:
    import numpy as np

    at, top = case.inside.positions, _top(head)
    spread = (head.pattern**2 * head.relative).sum(axis=1)
    spread += variance() * (_steps(at) + 4 * (np.log(at + 1.0) + np.abs(top)) ** 2)
    bound: np.ndarray = C * np.sqrt(spread) + 2 * head.drift[:, 0]
    return bound


def _entropy_bound(case: Case, head: Head) -> np.ndarray:
    """Of log(l) - u / l, u the sum of p (s - max): no partial sum is above 2 (ln(visible) + 1)."""
    import numpy as np

    at, p = case.inside.positions, head.pattern
    size = 2 * (np.log(at + 1.0) + 1)
    each = (p**2 * head.relative * (1 - head.below) ** 2).sum(axis=1)
    spread = each + variance() * _steps(at) * size**2
    bound: np.ndarray = C * np.sqrt(spread) + 2 * head.drift[:, 0] * size
    return bound


def heads(case: Case) -> Iterator[Head]:
    """All heads, computed again from the rotated queries and the keys of the cache."""
    a = case.architecture
    for layer in case.layers:
        keys, values = case.inside.cache(layer)
        queries = case.rows(f"blocks.{layer}.attn.hook_rot_q")
        for index in range(a.head_count):
            group = index // (a.head_count // a.kv_head_count)
            q = queries[:, index * a.head_size :][:, : a.head_size]
            yield _head(case, layer, index, q, keys[:, group], values[:, group])


def _head(case: Case, layer: int, index: int, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> Head:
    import numpy as np

    at, scale = case.inside.positions, case.once("attention scale", _scale)
    q, k = q.astype(np.float64), k.astype(np.float64)
    seen = np.arange(len(k)) <= at[:, None]
    scores = np.where(seen, q @ k.T * scale, 0.0)
    top = scores.max(axis=1, where=seen, initial=-np.inf)
    below = np.where(seen, scores - top[:, None], -np.inf)
    masses = np.exp(below)
    spread = scale**2 * dot(q.shape[1]) * (q**2 @ (k**2).T) + variance() * scores**2
    below = np.where(seen, below, 0.0)
    # exp of what is rounded twice: the score, and its distance from the largest
    relative = spread + variance() * below**2 + variance(EXP / U)
    folds = at // TILE + 0.0
    drift = folds * EXP + 2 * U * folds * np.abs(below).max(axis=1)
    return Head(
        layer=layer,
        index=index,
        seen=seen,
        scores=scores,
        below=below,
        pattern=masses / masses.sum(axis=1, keepdims=True),
        values=v.astype(np.float64),
        spread=np.where(seen, spread, 0.0),
        relative=np.where(seen, relative, 0.0),
        drift=drift[:, None],
    )


def _scale(case: Case) -> float:
    return float(case.architecture.attention_scale())


def _word(case: Case, head: Head, word: int) -> np.ndarray:
    """A float of the head's records: (N,) f64."""
    import numpy as np

    words = case.inside.heads[:, head.layer, head.index, word]
    found: np.ndarray = np.ascontiguousarray(words).view(np.float32).astype(np.float64)
    return found


def _top(head: Head) -> np.ndarray:
    import numpy as np

    top: np.ndarray = head.scores.max(axis=1, where=head.seen, initial=-np.inf)
    return top


def _pick(values: np.ndarray, keys: np.ndarray) -> np.ndarray:
    import numpy as np

    picked: np.ndarray = np.take_along_axis(values, keys[:, None], axis=1)[:, 0]
    return picked


def _steps(at: np.ndarray) -> np.ndarray:
    """Roundings of a sum over the keys: chains, their joining, tiles; at most over 32 lanes."""
    steps: np.ndarray = LANES + 4 + 2 * (at // TILE + 1.0)
    return steps
