"""Features of attention, layer by layer, and of the tokens that were drawn.

In formulas p are the weights that a head gives to the positions that it sees, of which there are
visible; mean and max are taken over the heads of a layer, and then over positions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmtrace.introspect.described import Table
from llmtrace.probes.exact import mean

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from llmtrace.probes.stretch import Stretch

    Floats = npt.NDArray[np.float64]

TABLE = Table()
SINK = 0.3
"""A head rests on the first position if it gives it more than this."""
LOGIT_ERROR = 5e-5
"""How far a logit of a float32 version may be from the float64 one, of the largest."""


@TABLE.heads
def attn_entropy(s: Stretch) -> Floats:
    """How widely the heads look, from 0 (at one position) to 1 (at all alike).

    Formula: mean over heads of -sum p ln p / ln(visible positions)
    Source: Zhai et al. 2023, arXiv 2303.06296 (attention entropy collapse).
    """
    return s.head_mean("entropy")


@TABLE.heads
def attn_sink(s: Stretch) -> Floats:
    """What the heads give to the first position, where there is nothing to look for.

    Formula: mean over heads of p at position 0
    Source: Xiao et al. 2024 (StreamingLLM), arXiv 2309.17453.
    """
    return s.head_mean("sink")


@TABLE.heads
def sink_heads(s: Stretch) -> Floats:
    """The share of heads that rest on the first position.

    Formula: share of heads with p > 0.3 at position 0
    Source: Gu et al. 2025, arXiv 2410.10781, epsilon 0.3.
    """
    return mean(s.head("sink") > SINK, 0)


@TABLE.heads
def attn_self(s: Stretch) -> Floats:
    """What the heads give to the position itself.

    Formula: mean over heads of p at the own position
    Source: Clark et al. 2019, arXiv 1906.04341.
    """
    return s.head_mean("self")


@TABLE.heads
def attn_previous(s: Stretch) -> Floats:
    """What the heads give to the position before.

    Formula: mean over heads of p at the position before
    Source: Clark et al. 2019; Voita et al. 2019, arXiv 1905.09418 (positional heads).
    """
    return s.head_mean("previous")


@TABLE.heads
def attn_distance(s: Stretch) -> Floats:
    """How far back the heads look, from 0 (at themselves) to 1 (at the first position).

    Formula: mean over heads of sum p (position - key) / position
    Source: the mean attention distance of Vig and Belinkov 2019, arXiv 1906.04284.
    """
    return s.head_mean("distance")


@TABLE.heads
def attn_score(s: Stretch) -> Floats:
    """The largest score of any head, whose growth announces instability.

    Formula: max over heads and keys of q k / sqrt(D)
    Source: Dehghani et al. 2023, arXiv 2302.05442; QK-clip of Kimi K2, arXiv 2507.20534.
    """
    import numpy as np

    return np.asarray(s.head("max").max(axis=0))


@TABLE.token
def logprob(s: Stretch) -> Floats:
    """Log-probability of the drawn token at temperature 1; exp(-mean) is the perplexity.

    Formula: ln p(token)
    Source: Jelinek et al. 1977 (perplexity).
    """
    return s.drawn("logprob")


@TABLE.token
def entropy(s: Stretch) -> Floats:
    """How open the choice of a token was, in nats, at temperature 1.

    Formula: -sum p ln p over the vocabulary
    Source: Shannon 1948.
    """
    return s.drawn("entropy")


@TABLE.token
def margin(s: Stretch) -> Floats:
    """How far the drawn token is ahead of the next; negative if another was ahead.

    Formula: its logit - the largest other logit
    Source: the best-versus-second-best margin of Scheffer et al. 2001.
    """
    return s.drawn("margin")


@TABLE.token
def greedy(s: Stretch) -> Floats:
    """Whether the drawn token is the most likely one.

    Formula: 1 if no token is more likely, else 0
    Source: greedy decoding.
    """
    import numpy as np

    return np.asarray((s.drawn("rank") == 0).astype(np.float64))


@TABLE.token
def certified(s: Stretch) -> Floats:
    """Whether no rounding error could have made another token the most likely one.

    Formula: 1 if margin > 2 * 5e-5 max |logit|, else 0
    Source: both logits may be off by the error that float32 is held to.
    """
    import numpy as np

    return np.asarray((s.drawn("margin") > 2.0 * LOGIT_ERROR * s.logits("absmax")).astype("f8"))
