"""What the running totals and features of a run cost on the host, microseconds a token.

    python -m tests.bench_totals

One JSON line: CPU time of one thread, the best of many, at a 350M shape (24 layers of 17 points,
16 heads), of a prefill of 256 tokens at once and of tokens that come one by one.
"""

import json
import platform
import time

import numpy as np

from llmtrace.introspect.features import FEATURES
from llmtrace.probes.records import Seen
from llmtrace.probes.totals import Totals
from tests import seen as made

SHAPE = made.shape(layers=24, heads=16, d=1024, ff=2816, vocab=32000)
ROWS, REPEATS = 256, 20


def records() -> Seen:
    """Records of random numbers, as wide as those of a run."""
    draw, columns = np.random.default_rng(0), len(SHAPE.points)
    points = np.zeros((ROWS, columns, 32), np.uint32)
    for words in (slice(0, 6), slice(12, 16)):
        count = words.stop - words.start
        values = draw.uniform(0.1, 5, (ROWS, columns, count)).astype("<f4")
        points[..., words] = values.view("<u4")
    heads = draw.uniform(0, 1, (ROWS, SHAPE.layers, SHAPE.heads, 8)).astype("<f4").view("<u4")
    heads[..., 6] = draw.integers(0, ROWS, heads.shape[:3])
    drawn = draw.uniform(0, 1, (ROWS, 4)).astype("<f4").view("<u4")
    tokens = draw.integers(0, 50, ROWS)
    return Seen(np.arange(ROWS), tokens, points, points[:, : len(SHAPE.picked)], heads, drawn)


def cost(parts: list[Seen]) -> float:
    best = float("inf")
    for _ in range(REPEATS):
        totals = Totals(SHAPE, FEATURES)
        begin = time.thread_time()
        for part in parts:
            totals.add(part)
        best = min(best, time.thread_time() - begin)
    return best / ROWS * 1e6


def main() -> None:
    seen = records()
    line = {
        "prefill_us_a_token": round(cost([seen]), 1),
        "decode_us_a_token": round(cost(made.cut(seen, list(range(1, ROWS)))), 1),
        "numpy": np.__version__,
        "machine": platform.machine(),
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
