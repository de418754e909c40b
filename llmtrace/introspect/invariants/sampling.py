"""Invariants of the last block: the token is the sampler's choice, its log-probability is right.

Hides contract point 9 once more, in numpy: integers and Philox.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmtrace.introspect.invariants.arithmetic import exponential, logarithm
from llmtrace.introspect.invariants.bounds import EXP, LANES, C, U, variance
from llmtrace.introspect.invariants.case import BITS, Case, Invariant, Place

if TYPE_CHECKING:
    import numpy as np

    from llmtrace.engine.request import Sampling

ONE = 1 << 32


def tokens(case: Case) -> Invariant:
    """Each token of the output is what the sampler draws from its logits."""
    tally = case.tally("sampler's choice", BITS)
    sampling, first = case.claim.request.sampling, case.inside.first_pick
    for logits, position in zip(case.rows("unembed.hook_out"), case.picked, strict=True):
        drawn = choose(logits, sampling, int(position))
        told = case.claim.output[position - first]
        why = f"token {told} at position {position}: the sampler draws {drawn}"
        tally.same(Place(int(position), "sample"), told == drawn, why)
    return tally.result("no position that was looked at has logits")


def logprobs(case: Case) -> Invariant:
    """The log-probability of each drawn token is that of the contract, from its integer sum."""
    import numpy as np

    tally = case.tally("log-probability", BITS)
    first, rows = case.inside.first_pick, case.rows("unembed.hook_out")
    told = np.ascontiguousarray(case.inside.drawn[:, 0]).view(np.float32)
    wanted = np.zeros(len(rows), np.float32)
    for i, (logits, position) in enumerate(zip(rows, case.picked, strict=True)):
        wanted[i] = logprob(logits, case.claim.output[position - first])
    tally.equal("sample", None, case.picked, told, wanted)
    return tally.result("no position that was looked at has logits")


def records(case: Case) -> Invariant:
    """Entropy, margin and rank of each token record are those of the logits."""
    import numpy as np

    tally = case.tally("token records", "equal bits; entropy: 8 deviations of its sums' rounding")
    drawn, at = case.inside.drawn, case.picked
    floats, first = drawn.view(np.float32), case.inside.first_pick
    rows = case.rows("unembed.hook_out")
    for i, (logits, position) in enumerate(zip(rows, at, strict=True)):
        token, here = case.claim.output[position - first], at[i : i + 1]
        keys = ranks(logits)
        others = np.delete(logits, token)
        margin = logits[token] - others.max() if len(others) else np.float32(0)
        rank = int((keys > keys[token]).sum())
        tally.equal("sample", None, here, floats[i : i + 1, 2], np.array([margin], np.float32))
        tally.within("sample", None, here, drawn[i : i + 1, 3], np.array([rank]), 0.5)
        entropy, bound = _entropy(logits)
        wanted, got = np.array([entropy]), floats[i : i + 1, 1]
        tally.within("sample", None, here, got, wanted, np.array([bound]))
    return tally.result("no position that was looked at has logits")


def _entropy(logits: np.ndarray) -> tuple[float, float]:
    """Entropy in nats of softmax(logits), and how far rounding may take it."""
    import numpy as np

    below = logits.astype(np.float64) - float(logits.max())
    p = np.exp(below)
    total, tiles = p.sum(), -(-len(p) // 1024)
    p /= total
    entropy = float(np.log(total) - (p * below).sum())
    size = np.log(total) - (p * below).sum() + 1
    each = (variance(EXP / U) + variance() * below**2) * (p * (1 - below)) ** 2
    steps = LANES + 5 + tiles + 4  # lanes, tree, tiles; log, division, difference
    return entropy, float(C * np.sqrt(each.sum() + variance() * steps * size**2))


def choose(logits: np.ndarray, sampling: Sampling, position: int) -> int:
    """Draws a token from a row of logits (V,) f32 as ``kernels/sample.cu`` does."""
    import numpy as np

    keys = ranks(logits)
    best = int(keys.argmax())
    largest, heat = logits[best], np.float32(sampling.temperature)
    if heat == 0:
        return best
    weights = weigh((logits - largest) / heat)
    ids = np.argsort(keys)[::-1]  # the likeliest first
    if sampling.top_k:
        ids = ids[: sampling.top_k]
    below = np.cumsum(weights[ids], dtype=np.uint64)
    if sampling.top_p < ONE:
        need = -(-sampling.top_p * int(below[-1]) // ONE)
        ids = ids[: max(1, int(np.searchsorted(below, need)) + 1)]
    ids = np.sort(ids)
    below = np.cumsum(weights[ids], dtype=np.uint64)
    low, high, *_ = philox(sampling.seed, (position, 0, 0, 0))
    target = (high << 32 | low) * int(below[-1]) >> 64
    at = int(np.searchsorted(below, target, side="right"))
    return int(ids[at])


def logprob(logits: np.ndarray, token: int) -> np.float32:
    """The log-probability of a token at temperature 1, to the bit."""
    import numpy as np

    largest = logits[int(ranks(logits).argmax())]
    unit = np.float32(int(weigh(logits - largest).sum())) * np.float32(2.0**-31)
    found: np.float32 = (logits[token] - largest) - logarithm(np.array([unit]))[0]
    return found


def ranks(logits: np.ndarray) -> np.ndarray:
    """Unique keys (V,) i64, larger for what is likelier: by logit, then the lowest id."""
    import numpy as np

    bits = np.ascontiguousarray(logits).view(np.int32).astype(np.int64)
    ordered = np.where(bits < 0, -(bits & 0x7FFFFFFF) - 1, bits)
    keys: np.ndarray = (ordered << 31) - np.arange(len(logits))
    return keys


def weigh(x: np.ndarray) -> np.ndarray:
    """rint(exp(x) 2^31) as u64, of x (V,) f32."""
    import numpy as np

    found: np.ndarray = np.rint(exponential(x).astype(np.float64) * 2.0**31).astype(np.uint64)
    return found


def philox(seed: int, counter: tuple[Any, int, int, int]) -> tuple[Any, Any, Any, Any]:
    """Four random words: Philox4x32-10 of a counter (its first word may be many, u64), by seed."""
    low = 0xFFFFFFFF
    a, b, c, d = counter
    key, other = seed & low, seed >> 32
    for _ in range(10):
        one, two = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (two >> 32) ^ b ^ key, two & low, (one >> 32) ^ d ^ other, one & low
        key, other = (key + 0x9E3779B9) & low, (other + 0xBB67AE85) & low
    return a, b, c, d
