"""Features of the residual stream and of the MLP, layer by layer.

In formulas pre, mid and post are the stream before, within and after a layer, |x| is the length
of a row of n values, rms(x) = |x| / sqrt(n). What is not finite, such as a ratio to a zero row,
counts as 0.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from llmtrace.introspect.described import Table
from llmtrace.probes.exact import log, log2, total

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from llmtrace.probes.stretch import Stretch

    Floats = npt.NDArray[np.float64]

TABLE = Table()
MASSIVE, MASSIVE_RATIO = 100.0, 1000.0
"""A massive activation is greater than this, and than so many times what is ordinary."""
OUTLIER = 6.0
"""An outlier is so many times the rms."""
ATTENTION, MLP, NEURONS = "hook_attn_out", "hook_mlp_out", "mlp.hook_post"
PRE, MID, POST = "hook_resid_pre", "hook_resid_mid", "hook_resid_post"


@TABLE.layer
def stream_rms(s: Stretch) -> Floats:
    """How large the residual stream is after the layer.

    Formula: rms(post)
    Source: Heimersheim and Turner 2023, Residual stream norms grow exponentially.
    """
    return s.row(POST, "rms")


@TABLE.layer
def stream_growth(s: Stretch) -> Floats:
    """How much the stream grows in the layer.

    Formula: ln(rms(post) / rms(pre))
    Source: Heimersheim and Turner 2023.
    """
    return log(s.row(POST, "rms") / s.row(PRE, "rms"))


@TABLE.layer
def attn_update(s: Stretch) -> Floats:
    """How large what attention adds is beside the stream that it is added to.

    Formula: rms(attn_out) / rms(pre)
    Source: beside the block influence of Men et al. 2024 (ShortGPT), arXiv 2403.03853.
    """
    return s.row(ATTENTION, "rms") / s.row(PRE, "rms")


@TABLE.layer
def mlp_update(s: Stretch) -> Floats:
    """How large what the MLP adds is beside the stream that it is added to.

    Formula: rms(mlp_out) / rms(mid)
    Source: as attn_update.
    """
    return s.row(MLP, "rms") / s.row(MID, "rms")


@TABLE.layer
def attn_cosine(s: Stretch) -> Floats:
    """Whether attention adds along the stream (1), across it (0) or against it (-1).

    Formula: (|mid|^2 - |pre|^2 - |attn_out|^2) / (2 |pre| |attn_out|)
    Source: the law of cosines; Men et al. 2024 (ShortGPT).
    """
    return _cosine(s.row(PRE, "rms"), s.row(ATTENTION, "rms"), s.row(MID, "rms"))


@TABLE.layer
def mlp_cosine(s: Stretch) -> Floats:
    """Whether the MLP adds along the stream (1), across it (0) or against it (-1).

    Formula: (|post|^2 - |mid|^2 - |mlp_out|^2) / (2 |mid| |mlp_out|)
    Source: as attn_cosine.
    """
    return _cosine(s.row(MID, "rms"), s.row(MLP, "rms"), s.row(POST, "rms"))


def _cosine(before: Floats, added: Floats, after: Floats) -> Floats:
    """Of the added row with the row before, from three lengths."""
    import numpy as np

    # (after - before)(after + before): the squares would lose what tells them apart
    found = ((after - before) * (after + before) - added * added) / (2.0 * before * added)
    return np.asarray(np.minimum(np.maximum(found, -1.0), 1.0))


@TABLE.layer
def massive(s: Stretch) -> Floats:
    """Massive activations among the four largest values of the stream.

    Formula: number of |x| > 100 and > 1000 times the mean |x| of all but the four largest of post
    Source: Sun et al. 2024, arXiv 2402.17762, with that mean in place of the median.
    """
    import numpy as np

    size = s.largest(POST)  # (4, n, L)
    ordinary = (s.row(POST, "l1") - total(size, 0)) / max(s.width(POST) - 4, 1)
    bound = np.maximum(MASSIVE, MASSIVE_RATIO * ordinary)
    return total(size > bound, 0)


@TABLE.layer
def outliers(s: Stretch) -> Floats:
    """Outliers among the four largest values of the stream.

    Formula: number of |x| > 6 rms(x) in post
    Source: Dettmers et al. 2022 (LLM.int8), arXiv 2208.07339, in units of the rms.
    """
    return total(s.largest(POST) > OUTLIER * s.row(POST, "rms"), 0)


@TABLE.layer
def outlier_stays(s: Stretch) -> Floats:
    """Whether the largest value of the stream stands in the same dimension as a layer before.

    Formula: 1 if argmax |post| = argmax |pre|, else 0
    Source: the fixed outlier dimensions of Kovaleva et al. 2021 and of Sun et al. 2024.
    """
    import numpy as np

    return np.asarray((s.row(POST, "argmax") == s.row(PRE, "argmax")).astype(np.float64))


@TABLE.layer
def stream_kurtosis(s: Stretch) -> Floats:
    """How much of the stream's energy is in few dimensions; 3 if it is normal.

    Formula: mean x^4 / (mean x^2)^2 of post
    Source: Elhage et al. 2023, Privileged bases in the transformer residual stream.
    """
    return s.row(POST, "kurtosis")


@TABLE.layer
def stream_participation(s: Stretch) -> Floats:
    """The share of dimensions that carry the stream; 1/3 if it is normal.

    Formula: (sum x^2)^2 / (n sum x^4) of post
    Source: the participation ratio, Bell and Dean 1970.
    """
    return 1.0 / s.row(POST, "kurtosis")


@TABLE.layer
def stream_entropy(s: Stretch) -> Floats:
    """How evenly the stream's energy is spread over its dimensions, from 0 to 1.

    Formula: -sum e ln e / ln n, e = x^2 / sum x^2, of post
    Source: Roy and Vetterli 2007; llama.cpp's normalised entropy.
    """
    return s.row(POST, "entropy") / _log_of(s.width(POST))


@TABLE.layer
def stream_hoyer(s: Stretch) -> Floats:
    """Sparsity of the stream, from 0 to 1; 0.2 if it is normal.

    Formula: (sqrt(n) - sum |x| / |x|) / (sqrt(n) - 1) of post
    Source: Hoyer 2004; Hurley and Rickard 2009, arXiv 0811.4706.
    """
    return _hoyer(s, POST)


def _hoyer(s: Stretch, point: str) -> Floats:
    import numpy as np

    root = np.sqrt(float(s.width(point)))
    return np.asarray((root - s.row(point, "l1") / (s.row(point, "rms") * root)) / (root - 1.0))


@functools.cache
def _log_of(n: int) -> float:
    return float(log(float(n))) if n > 1 else 1.0


@TABLE.layer
def mlp_sparsity(s: Stretch) -> Floats:
    """The share of neurons that are next to silent.

    Formula: number of |x| < max |x| / 1024 / n of mlp.hook_post
    Source: Li et al. 2023 (the lazy neuron), arXiv 2210.06313, with a threshold in place of 0.
    """
    return s.row(NEURONS, "small") / s.width(NEURONS)


@TABLE.layer
def mlp_participation(s: Stretch) -> Floats:
    """The share of neurons that carry the MLP.

    Formula: (sum x^2)^2 / (n sum x^4) of mlp.hook_post
    Source: as stream_participation.
    """
    return 1.0 / s.row(NEURONS, "kurtosis")


@TABLE.layer
def mlp_entropy(s: Stretch) -> Floats:
    """How evenly the energy of the neurons is spread, from 0 to 1.

    Formula: -sum e ln e / ln n, e = x^2 / sum x^2, of mlp.hook_post
    Source: as stream_entropy.
    """
    return s.row(NEURONS, "entropy") / _log_of(s.width(NEURONS))


@TABLE.layer
def mlp_hoyer(s: Stretch) -> Floats:
    """Sparsity of the neurons, from 0 to 1.

    Formula: (sqrt(n) - sum |x| / |x|) / (sqrt(n) - 1) of mlp.hook_post
    Source: as stream_hoyer.
    """
    return _hoyer(s, NEURONS)


@TABLE.layer
def stream_bits(s: Stretch) -> Floats:
    """Bits of the stream that a row quantised to int8 keeps; 7.8 if all values are as large.

    Formula: log2(sqrt(12) 127 rms(x) / max |x|) of post, at least 0
    Source: Bennett 1948: rounding to steps of max |x| / 127 is noise of step / sqrt(12).
    """
    return _bits(s, POST)


@TABLE.layer
def z_bits(s: Stretch) -> Floats:
    """Bits of what the heads mix that a row quantised to int8 keeps.

    Formula: as stream_bits, of attn.hook_z
    Source: as stream_bits.
    """
    return _bits(s, "attn.hook_z")


@TABLE.layer
def mlp_bits(s: Stretch) -> Floats:
    """Bits of the neurons that a row quantised to int8 keeps.

    Formula: as stream_bits, of mlp.hook_post
    Source: as stream_bits.
    """
    return _bits(s, NEURONS)


def _bits(s: Stretch, point: str) -> Floats:
    import numpy as np

    found = log2(np.sqrt(12.0) * 127.0 * s.row(point, "rms") / s.row(point, "absmax"))
    return np.asarray(np.maximum(found, 0.0))


@TABLE.layer
def zeros(s: Stretch) -> Floats:
    """The share of neurons that are zero or subnormal.

    Formula: number of |x| < 2^-126 / n of mlp.hook_post
    Source: the underflow count of NVIDIA Transformer Engine's statistics.
    """
    return s.row(NEURONS, "zeros") / s.width(NEURONS)


@TABLE.layer
def saturated(s: Stretch) -> Floats:
    """Values of all points of the layer that float16 cannot hold.

    Formula: number of |x| > 65504
    Source: the overflow count of NVIDIA Transformer Engine's statistics.
    """
    return s.layer_total("saturated")
