"""What a step is told: how the next tokens of sequences become the arrays that kernels read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from llmtrace.blocks.arrays import Limits
    from llmtrace.engine.sequence import Sequence


def schedule(active: list[Sequence], limits: Limits, chunk: int) -> list[tuple[Sequence, int]]:
    """Says how many tokens of which sequences the next step feeds, at most ``chunk`` of one."""
    rows, picks = limits.rows, limits.picks
    share = []
    for sequence in sorted(active, key=lambda s: s.pending):
        count = min(sequence.pending, sequence.until_stop, chunk, rows)
        while sequence.picks(count) > picks:
            count -= sequence.picks(count) - picks
        if count > 0:
            share.append((sequence, count))
            rows -= count
            picks -= sequence.picks(count)
    return share


def feed(share: list[tuple[Sequence, int]], table_of: dict[int, int]) -> dict[str, np.ndarray]:
    """Says to ``Plan.step`` what so many tokens of each sequence are, by their rotary tables."""
    import numpy as np

    rows: dict[str, list[int]] = {
        name: [] for name in ("token", "position", "tile0", "table", "probe_seed")
    }
    picks: dict[str, list[Any]] = {
        name: [] for name in ("pick", "temperature", "top_k", "top_p", "seed")
    }
    for sequence, count in share:
        begin, at = sequence.fed, len(rows["token"])
        rows["token"] += sequence.coming(count)
        rows["position"] += range(begin, begin + count)
        rows["tile0"] += [sequence.tile0] * count
        rows["table"] += [table_of[sequence.index]] * count
        rows["probe_seed"] += [sequence.probe_seed] * count
        wanted, s = sequence.picks(count), sequence.request.sampling
        picks["pick"] += range(at + count - wanted, at + count)
        for name, value in (
            ("temperature", s.temperature),
            ("top_k", s.top_k),
            ("top_p", s.top_p),
            ("seed", s.seed),
        ):
            picks[name] += [value] * wanted
    kinds = {
        "probe_seed": np.uint64,
        "temperature": np.float32,
        "top_p": np.uint64,
        "seed": np.uint64,
    }
    return {
        name: np.array(values, kinds.get(name, np.int32)) for name, values in (rows | picks).items()
    }


def feed_again(
    places: list[tuple[Sequence, int]], table_of: dict[int, int]
) -> dict[str, np.ndarray]:
    """As ``feed``, of single positions of sequences that were fed before."""
    import numpy as np

    pieces = []
    for row, (sequence, position) in enumerate(places):
        fed = sequence.fed
        try:
            sequence.fed = position
            pieces.append(feed([(sequence, 1)], table_of))
        finally:
            sequence.fed = fed
        pieces[-1]["pick"] += row
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
