"""The check of relevance: what a component is said to do, against what its loss does.

A component is mean-ablated: at every position it is replaced by its mean over positions, and the
model is computed from there on in float64. The damage is KL(P || P without it) at the positions
that drew a token; A = 1 - exp(-KL). Spearman's correlation of R and KL over the sampled
components is the trust in relevance: 1 in the best case. Attribution sees direct effects alone,
so what works through later layers is where they part (arXiv 2605.14075 asks for the measured drop).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmtrace.introspect.forward import Forward, Told, kl
from llmtrace.introspect.relevance import components
from llmtrace.probes import exact
from llmtrace.probes.records import philox

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from llmtrace.engine.trace import Model

SAMPLED = 16
"""Components that are ablated, if there are more."""


@dataclass(frozen=True)
class Ablation:
    """What m ablated components did, in the order of the layers."""

    names: tuple[str, ...]
    kl: np.ndarray
    """(m, M) f64, in nats, at each position that drew a token."""
    share: np.ndarray
    """(m,) f64: their mean R."""

    @property
    def damage(self) -> np.ndarray:
        """A, (m,) f64: 1 - exp(-mean KL)."""
        return 1.0 - exact.exp(-exact.mean(self.kl))

    @property
    def trust(self) -> exact.Spread:
        """Spearman's correlation of R and the mean KL, with its 95 % interval."""
        return exact.spearman(self.share, exact.mean(self.kl))


def sampled(count: int, seed: int, most: int = SAMPLED) -> list[int]:
    """Draws components by Philox, one from each of ``most`` equal parts; all of few."""
    import numpy as np

    if count <= most:
        return list(range(count))
    none = np.uint64(0)
    words = philox((np.arange(most, dtype=np.uint64), none, none, np.uint64(3)), seed)[0]
    begin = np.array([count * s // most for s in range(most + 1)], np.int64)
    drawn = words * np.diff(begin).astype(np.uint64) >> np.uint64(32)
    return [int(index) for index in begin[:-1] + drawn.astype(np.int64)]


def ablate(
    model: Model,
    tokens: np.ndarray,
    picks: np.ndarray,
    share: np.ndarray,
    *,
    run_limit: int,
    seed: int,
    most: int = SAMPLED,
    heed: Callable[[], None] = lambda: None,
) -> Ablation:
    """Ablates sampled components of a run, one at a time.

    ``tokens`` (T,) were fed, ``picks`` (M,) are positions that drew, ``share`` (M, K) is R there.
    ``heed`` is called between the blocks and may raise.
    """
    import numpy as np

    names = components(model.architecture.layer_count)
    chosen = sampled(len(names), seed, most)
    forward, base = Forward(model, run_limit, heed), _Streams()
    logits = forward(tokens, picks, base)
    found = []
    for index in chosen:
        x = _without(forward, base, names[index])
        for layer in range(_behind(names[index]), model.architecture.layer_count):
            x = forward.layer(layer, x)
        found.append(kl(logits, forward.logits(x[picks])))
    mean = exact.mean(share, axis=0)
    return Ablation(tuple(names[i] for i in chosen), np.stack(found), mean[chosen])


class _Streams(Told):
    """Keeps the residual stream and what is added to it."""

    def __init__(self) -> None:
        self.rows: dict[str, np.ndarray] = {}

    def __call__(self, name: str, rows: np.ndarray) -> np.ndarray:
        if name.endswith(
            ("hook_attn_out", "hook_mlp_out", "hook_embed", "hook_resid_mid", "hook_resid_post")
        ):
            self.rows[name] = rows
        return rows


def _behind(name: str) -> int:
    """The first layer that comes behind a component: that which is computed again whole."""
    return 0 if name == "hook_embed" else int(name.split(".")[1]) + 1


def _without(forward: Forward, base: _Streams, name: str) -> np.ndarray:
    """The residual stream behind the layer of a component, its values replaced by their mean."""
    import numpy as np

    rows = base.rows[name]
    flat = np.broadcast_to(exact.mean(rows, axis=0), rows.shape)
    if name == "hook_embed":
        return flat
    layer = int(name.split(".")[1])
    before = f"blocks.{layer - 1}.hook_resid_post" if layer else "hook_embed"
    if name.endswith("hook_attn_out"):
        return forward.mlp(layer, base.rows[before] + flat, Told())
    return np.asarray(base.rows[f"blocks.{layer}.hook_resid_mid"] + flat)
