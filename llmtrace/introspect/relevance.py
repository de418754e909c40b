"""Relevance: the share of each component in the logit of the chosen token.

The residual stream is the sum of the embedding and of what every attention and MLP added to it,
so the centred logit of token y is a sum over these components p (Elhage et al. 2021):
a_p = < c_p * gamma / sigma, W_U[y] - mean over v of W_U[v] >, sigma the scale of the *final* norm;
R_p = |a_p| / sum over q of |a_q|. What float32 rounded on the way is the gap between the sum of
the a_p and the centred logit, which is stated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmtrace.introspect import wide
from llmtrace.probes import exact
from llmtrace.probes.records import philox

if TYPE_CHECKING:
    import numpy as np

    from llmtrace.engine.inside import Inside
    from llmtrace.engine.trace import Model

LARGEST = 5
"""Components whose share is the concentration of R."""
FEWEST = 30
"""Tokens below which a correlation with a feature is not told."""
PERMUTATIONS = 999


def components(layers: int) -> list[str]:
    """Names the points that add up to the residual stream, in the order of the layers."""
    outs = (f"blocks.{n}.{out}" for n in range(layers) for out in ("hook_attn_out", "hook_mlp_out"))
    return ["hook_embed", *outs]


@dataclass(frozen=True)
class Attribution:
    """Of K components at M positions that drew a token."""

    logit: np.ndarray
    """(M, K) f64: a_p."""
    centred: np.ndarray
    """(M,) f64: the logit of the drawn token less the mean of all."""

    @property
    def share(self) -> np.ndarray:
        """R: (M, K) f64; zeros where nothing is attributed."""
        import numpy as np

        size = np.abs(self.logit)
        whole = exact.total(size)[:, None]
        return np.asarray(size / np.where(whole > 0, whole, 1.0))

    @property
    def gap(self) -> np.ndarray:
        """What rounding took or gave, (M,) f64, in logits."""
        return self.centred - exact.total(self.logit)


class Attributor:
    """Attributes the logits of one model."""

    def __init__(self, model: Model) -> None:
        self._model = model
        found = wide.blocks_of(model)
        self._gain = wide.gain(model, found["ln_final"]).astype("f8")
        self._table = wide.matrix_of(found["unembed"])
        self._names = components(model.architecture.layer_count)

    def __call__(self, inside: Inside) -> Attribution:
        """Attributes what the positions with logits drew."""
        import numpy as np

        later = inside.positions >= inside.first_pick
        drawn = inside.positions[later] - inside.first_pick
        token = np.array([inside.output[i] for i in drawn], np.int64)
        logits = inside.rows["unembed.hook_out"].astype(np.float64)
        scale = inside.rows["ln_final.hook_scale"].astype(np.float64)
        mean = wide.mean_row(self._model, self._table)
        direction = wide.rows_of(self._model, self._table, token) - mean
        direction = direction * self._gain / scale  # (M, C)
        made = np.stack([inside.rows[name][later] for name in self._names], 1).astype(np.float64)
        centred = logits[np.arange(len(token)), token] - exact.total(logits) / logits.shape[1]
        return Attribution(exact.dot(made, direction[:, None]), centred)


def concentration(share: np.ndarray) -> np.ndarray:
    """Gives the share of the 5 largest components, (M,) of shares (M, K)."""
    import numpy as np

    ordered = np.sort(share, axis=-1)[:, ::-1]
    return exact.total(ordered[:, :LARGEST])


@dataclass(frozen=True)
class FeatureRelevance:
    """R of a feature: how its rank and the token's surprise go together. Not a cause."""

    relevance: float
    """The magnitude of Spearman's correlation."""
    correlation: exact.Spread
    p: float
    """Share of 999 permutations, and the truth, that correlate as much."""


def orders(count: int, seed: int) -> np.ndarray:
    """Draws the permutations of ``count`` tokens by Philox: (999, count)."""
    import numpy as np

    index, none = np.arange(PERMUTATIONS * count, dtype=np.uint64), np.uint64(0)
    each = np.uint64(max(count, 1))
    words = philox((index % each, index // each, none, np.uint64(4)), seed)
    return np.argsort(words[0].reshape(PERMUTATIONS, count), axis=1, kind="stable")


def feature_relevance(
    values: np.ndarray, logprob: np.ndarray, order: np.ndarray
) -> FeatureRelevance | None:
    """Correlates a feature's value at each token (n,) with -logprob; None of fewer than 30.

    ``order``: the permutations of n, as ``orders`` gives them.
    """
    import numpy as np

    if len(values) < FEWEST:
        return None
    found = exact.spearman(values, 0.0 - np.asarray(logprob, np.float64))
    middle = (len(values) + 1) / 2
    a, b = exact.ranks(values) - middle, exact.ranks(logprob) - middle
    others = np.abs(exact.dot(a[order], b))
    truth = float(np.abs(exact.dot(a, b)))
    as_much = int((others >= truth * (1 - 2.0**-40)).sum())
    return FeatureRelevance(abs(found.mean), found, (1 + as_much) / (1 + PERMUTATIONS))
