"""Every feature by its formula, in plain numpy, from whole rows and patterns: no record is read."""

from __future__ import annotations

from typing import Any

import numpy as np

Rows = dict[str, np.ndarray]  # by points: (T, width) f64; those behind the layers (G, width)


def rms(x: np.ndarray) -> np.ndarray:
    return np.sqrt((x * x).mean(-1))


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


def kurtosis(x: np.ndarray) -> np.ndarray:
    return (x**4).mean(-1) / (x**2).mean(-1) ** 2


def participation(x: np.ndarray) -> np.ndarray:
    return (x**2).sum(-1) ** 2 / (x**4).sum(-1) / x.shape[-1]


def energy_entropy(x: np.ndarray) -> np.ndarray:
    e = x**2 / (x**2).sum(-1, keepdims=True)
    return -(e * np.log(np.where(e > 0, e, 1))).sum(-1) / np.log(x.shape[-1])


def hoyer(x: np.ndarray) -> np.ndarray:
    root = np.sqrt(x.shape[-1])
    return (root - np.abs(x).sum(-1) / np.linalg.norm(x, axis=-1)) / (root - 1)


def bits(x: np.ndarray) -> np.ndarray:
    step = np.abs(x).max(-1) / 127
    return np.maximum(np.log2(rms(x) / (step / np.sqrt(12))), 0)


def largest(x: np.ndarray) -> np.ndarray:
    return np.sort(np.abs(x), axis=-1)[..., -4:]


def of_layer(rows: Rows, layer: int) -> dict[str, np.ndarray]:
    """Features of a layer at every position: (T,) each."""
    at = f"blocks.{layer}."
    pre = rows[f"blocks.{layer - 1}.hook_resid_post" if layer else "hook_embed"]
    mid, post = rows[at + "hook_resid_mid"], rows[at + "hook_resid_post"]
    attn, mlp, neurons = (rows[at + n] for n in ("hook_attn_out", "hook_mlp_out", "mlp.hook_post"))
    size, top = np.abs(neurons), largest(post)
    ordinary = np.sort(np.abs(post), axis=-1)[..., :-4].mean(-1, keepdims=True)
    return {
        "stream_rms": rms(post),
        "stream_growth": np.log(rms(post)) - np.log(rms(pre)),
        "attn_update": np.linalg.norm(attn, axis=-1) / np.linalg.norm(pre, axis=-1),
        "mlp_update": np.linalg.norm(mlp, axis=-1) / np.linalg.norm(mid, axis=-1),
        "attn_cosine": cosine(attn, pre),
        "mlp_cosine": cosine(mlp, mid),
        "massive": ((top > 100) & (top > 1000 * ordinary)).sum(-1),
        "outliers": (top > 6 * rms(post)[..., None]).sum(-1),
        "outlier_stays": np.abs(post).argmax(-1) == np.abs(pre).argmax(-1),
        "stream_kurtosis": kurtosis(post),
        "stream_participation": participation(post),
        "stream_entropy": energy_entropy(post),
        "stream_hoyer": hoyer(post),
        "mlp_sparsity": (size < size.max(-1, keepdims=True) / 1024).mean(-1),
        "mlp_participation": participation(neurons),
        "mlp_entropy": energy_entropy(neurons),
        "mlp_hoyer": hoyer(neurons),
        "stream_bits": bits(post),
        "z_bits": bits(rows[at + "attn.hook_z"]),
        "mlp_bits": bits(neurons),
        "zeros": (size < 2.0**-126).mean(-1),
        "saturated": sum((np.abs(x) > 65504).sum(-1) for n, x in rows.items() if n.startswith(at)),
    }


def of_heads(pattern: np.ndarray, scores: np.ndarray) -> dict[str, np.ndarray]:
    """Features of the heads of a layer at positions from 1: (H, T, T) weights and scores."""
    t = pattern.shape[-1]
    at = np.arange(1, t)
    spread = -(pattern * np.log(np.where(pattern > 0, pattern, 1))).sum(-1)[:, 1:] / np.log(at + 1)
    back = (pattern * (np.arange(t)[:, None] - np.arange(t))).sum(-1)[:, 1:] / at
    return {
        "attn_entropy": spread.mean(0),
        "attn_sink": pattern[:, 1:, 0].mean(0),
        "sink_heads": (pattern[:, 1:, 0] > 0.3).mean(0),
        "attn_self": pattern[:, at, at].mean(0),
        "attn_previous": pattern[:, at, at - 1].mean(0),
        "attn_distance": back.mean(0),
        "attn_score": np.where(np.tri(t, dtype=bool), scores, -np.inf).max(-1).max(0)[1:],
    }


def of_tokens(logits: np.ndarray, drawn: list[int]) -> dict[str, np.ndarray]:
    """Features of the drawn tokens, from logits (G, V)."""
    logp = logits - logits.max(-1, keepdims=True)
    logp -= np.log(np.exp(logp).sum(-1, keepdims=True))
    own = np.arange(len(drawn)), np.array(drawn)
    others = logits.copy()
    others[own] = -np.inf
    margin = logits[own] - others.max(-1)
    return {
        "logprob": logp[own],
        "entropy": -(np.exp(logp) * logp).sum(-1),
        "margin": margin,
        "greedy": margin >= 0,
        "certified": margin > 1e-4 * np.abs(logits).max(-1),
    }


def summary(values: Any) -> tuple[float, float]:
    """Mean, and half of the 95 % interval by the quantiles of Student's t."""
    x = np.asarray(values, np.float64)
    if len(x) < 2:
        return float(x.mean()), 0.0
    return float(x.mean()), T_975[len(x) - 1] * float(x.std(ddof=1)) / float(np.sqrt(len(x)))


T_975 = {  # of tables
    **{1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764, 5: 2.5706, 6: 2.4469, 7: 2.3646, 8: 2.3060},
    **{9: 2.2622, 10: 2.2281, 11: 2.2010, 12: 2.1788, 13: 2.1604, 14: 2.1448, 15: 2.1314},
    **{16: 2.1199, 17: 2.1098, 18: 2.1009, 19: 2.0930, 20: 2.0860, 21: 2.0796, 22: 2.0739},
    **{23: 2.0687, 24: 2.0639, 25: 2.0595, 26: 2.0555, 27: 2.0518, 28: 2.0484, 29: 2.0452},
    **{30: 2.0423, 38: 2.0244, 39: 2.0227, 60: 2.0003, 99: 1.9842, 120: 1.9799},
}
