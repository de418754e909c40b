"""Gradient times activation, by torch: a second opinion on relevance, for reading only.

For each component the sum over positions of <d logit / d component, component>, where the logit is
that of the drawn token less the mean of all. It sees what attribution does not: effects through
later layers. torch adds in an order of its own, so nothing of this is ever recorded or compared.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmtrace.blocks.llama import blocks
from llmtrace.blocks.weights import widen
from llmtrace.errors import Inconclusive
from llmtrace.introspect.relevance import Attributor, components
from llmtrace.probes import exact
from llmtrace.probes.records import TOKEN_FIELDS, field

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from llmtrace.engine.inside import Inside
    from llmtrace.engine.trace import Model

LEAST = 3
"""Tokens whose gradients are made."""


@dataclass(frozen=True)
class Opinion:
    """What gradients say of the components at a few tokens, beside their relevance."""

    names: tuple[str, ...]
    positions: tuple[int, ...]
    """Those that drew the tokens: the least expected ones."""
    share: np.ndarray
    """(K,) f64: |gradient x activation| over the sum of all, the mean of the tokens."""
    relevance: np.ndarray
    """(K,) f64: their R at the same tokens."""

    @property
    def trust(self) -> exact.Spread:
        """Spearman's correlation of both, with its 95 % interval."""
        return exact.spearman(self.share, self.relevance)


def memory(model: Model, fed: int) -> int:
    """Bytes that gradients of the last of so many tokens take, about: every weight is widened."""
    a = model.architecture
    weights = sum(math.prod(tensor.shape) for tensor in model.checkpoint.tensors.values())
    every = sum(point.rows.width for block in blocks(a) for point in block.points)
    return 8 * (2 * weights + 3 * fed * every + 4 * a.layer_count * a.head_count * fed * fed)


def opinion(
    model: Model, inside: Inside, run_limit: int, heed: Callable[[], None] = lambda: None
) -> Opinion:
    """Asks for gradients at the least expected tokens that were looked at.

    ``heed`` is called between the tokens and may raise. Raises Inconclusive without torch.
    """
    import numpy as np

    later = inside.positions[inside.positions >= inside.first_pick]
    logprob = field(inside.drawn, "logprob", TOKEN_FIELDS)
    chosen = np.sort(logprob.argsort(kind="stable")[:LEAST])
    drawn = np.array([inside.output[i] for i in later[chosen] - inside.first_pick])
    parts = []
    for position, token in zip(later[chosen], drawn, strict=True):
        heed()
        one = np.array([position]), np.array([token])
        parts.append(np.abs(gradients(model, inside.tokens, *one, run_limit)))
    size = np.concatenate(parts)
    whole = size.sum(1, keepdims=True)
    return Opinion(
        tuple(components(model.architecture.layer_count)),
        tuple(later[chosen].tolist()),
        (size / np.where(whole > 0, whole, 1.0)).mean(0),
        exact.mean(Attributor(model)(inside).share[chosen], axis=0),
    )


def gradients(
    model: Model, tokens: np.ndarray, picks: np.ndarray, drawn: np.ndarray, run_limit: int
) -> np.ndarray:
    """Gives (M, K) f64, for the tokens ``drawn`` (M,) at positions ``picks`` (M,) of ``tokens``.

    K components, as ``relevance.components`` names them. Raises Inconclusive without torch.
    """
    try:
        import torch
    except ImportError:
        raise Inconclusive(
            "no torch to make gradients", "pip install 'llmtrace[reference]'"
        ) from None
    found = []
    for position, token in zip(picks.tolist(), drawn.tolist(), strict=True):
        parts = _Graph(model, run_limit, torch)
        logits = parts.logits(torch.from_numpy(tokens[: position + 1]))
        (logits[token] - logits.mean()).backward()
        found.append([float((part.grad * part.detach()).sum()) for part in parts.components])
    import numpy as np

    return np.array(found, np.float64)


class _Graph:
    """One forward pass of which the components keep their gradients."""

    def __init__(self, model: Model, run_limit: int, torch: Any) -> None:
        self._model, self._limit, self._torch = model, run_limit, torch
        self.components: list[Any] = []

    def logits(self, tokens: Any) -> Any:
        """The logits of the last token, (V,) f64."""
        a = self._model.architecture
        x = self._keep(self._weight("model.embed_tokens.weight")[tokens].clone())
        for layer in range(a.layer_count):
            at = f"model.layers.{layer}."
            normed = self._norm(x, at + "input_layernorm.weight")
            x = x + self._keep(self._attention(normed, at + "self_attn."))
            normed = self._norm(x, at + "post_attention_layernorm.weight")
            act = self._torch.nn.functional.silu(self._linear(normed, at + "mlp.gate_proj"))
            act = act * self._linear(normed, at + "mlp.up_proj")
            x = x + self._keep(self._linear(act, at + "mlp.down_proj"))
        table = "model.embed_tokens.weight" if a.tied else "lm_head.weight"
        return self._weight(table) @ self._norm(x[-1:], "model.norm.weight")[0]

    def _keep(self, rows: Any) -> Any:
        if not rows.requires_grad:
            rows.requires_grad_()
        rows.retain_grad()
        self.components.append(rows)
        return rows

    def _weight(self, name: str) -> Any:
        return self._torch.from_numpy(widen(self._model.checkpoint.tensors[name]).astype("f8"))

    def _linear(self, x: Any, name: str) -> Any:
        y = x @ self._weight(name + ".weight").T
        bias = name + ".bias"
        return y + self._weight(bias) if bias in self._model.checkpoint.tensors else y

    def _norm(self, x: Any, gain: str) -> Any:
        epsilon = float(self._model.architecture.norm_epsilon)
        scale = self._torch.sqrt((x * x).mean(-1, keepdim=True) + epsilon)
        return x / scale * self._weight(gain)

    def _attention(self, x: Any, at: str) -> Any:
        a, count, torch = self._model.architecture, len(x), self._torch
        q, k, v = (
            self._linear(x, f"{at}{n}_proj").view(count, -1, a.head_size).transpose(0, 1)
            for n in "qkv"
        )
        rate = torch.from_numpy(a.inverse_frequencies(self._limit))
        angle = (torch.arange(count).float()[:, None] * rate).double()
        factor = float(a.rope_attention_factor(self._limit))
        cosine, sine = angle.cos() * factor, angle.sin() * factor

        def turned(part: Any) -> Any:
            low, high = part.chunk(2, dim=-1)
            return torch.cat((low * cosine - high * sine, high * cosine + low * sine), dim=-1)

        group = a.head_count // a.kv_head_count
        k, v = turned(k).repeat_interleave(group, 0), v.repeat_interleave(group, 0)
        scores = turned(q) @ k.transpose(1, 2) / a.head_size**0.5
        future = torch.ones(count, count, dtype=torch.bool).triu(1)
        mixed = scores.masked_fill(future, -torch.inf).softmax(-1) @ v
        return self._linear(mixed.transpose(0, 1).reshape(count, -1), at + "o_proj")
