"""The lens at all positions of a run at once, in float32: for the page, never recorded.

Logits are those of ``llmtrace.introspect.lens``, so what is likeliest and every rank are the same;
log-probability, entropy and KL are float32 numbers made of them, some 1e-5 from its own.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from llmtrace.introspect.lens import Lens, _Logits, streams

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from llmtrace.engine.trace import Model

FLOATS = 4 << 20
"""Logits of a part, of which three are in memory at a time."""
Table = Any
"""Arrays by the names of the fields of a lens."""


def glance(
    model: Model, rows: Mapping[str, np.ndarray], positions: np.ndarray, drawn: np.ndarray
) -> Lens:
    """Looks at N positions; ``rows`` (N, C) of each stream.

    ``drawn`` (N,) i64: the token that came, -1 where none was drawn.
    """
    import numpy as np

    names = streams(model.architecture.layer_count)
    logits_of = _Logits(model)
    step = max(1, FLOATS // (len(names) * model.architecture.vocab_size))
    making = []
    with ThreadPoolExecutor(2) as pool:  # numpy works outside Python's lock
        for begin in range(0, len(positions), step):
            part = np.concatenate([rows[name][begin : begin + step] for name in names])
            logits = logits_of(part).reshape(len(names), -1, model.architecture.vocab_size)
            making.append(pool.submit(_measured, logits, drawn[begin : begin + step]))
            if len(making) > 2:
                making[-3].result()  # no more than two parts wait in memory
    parts: list[Table] = [made.result() for made in making]
    joined = {key: np.concatenate([part[key] for part in parts], axis=-1) for key in parts[0]}
    return Lens(tuple(names), positions, **joined)


def _measured(logits: np.ndarray, drawn: np.ndarray) -> Table:
    import numpy as np

    top = logits.argmax(-1).astype(np.int64)  # of equals the lowest
    final = np.where(drawn >= 0, drawn, top[-1])
    wanted = np.broadcast_to(final, top.shape)[..., None]
    mine = np.take_along_axis(logits, wanted, -1)
    rank = (logits > mine).sum(-1)
    equal = logits == mine
    if equal.sum() > equal[..., 0].size:  # of equals the lower is ahead
        rank += (equal & (np.arange(logits.shape[-1]) < wanted)).sum(-1)
    logits = logits - np.take_along_axis(logits, top[..., None], -1)
    p = np.exp(logits)
    sums = p.sum(-1)
    p /= sums[..., None]
    lse = np.log(sums)
    expected = np.einsum("lnv,lnv->ln", p, logits)
    crossed = np.einsum("nv,lnv->ln", p[-1], logits)
    return {
        "final": final,
        "top": top,
        "top_logprob": -lse,
        "logprob": np.take_along_axis(logits, wanted, -1)[..., 0] - lse,
        "rank": rank.astype(np.int64),
        "entropy": np.maximum(lse - expected, 0),
        "kl": np.maximum(expected[-1] - lse[-1] - crossed + lse, 0),
    }
