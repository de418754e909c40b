"""Pages of reports as rich as real ones, of any size, from a seed; and hostile texts for them."""

from typing import Any

import numpy as np

WORDS = (
    " the",
    " old",
    " king",
    " said",
    ",",
    "\n",
    " I",
    " will",
    " give",
    " you",
    " a",
    " golden",
    " bird",
    ".",
    ' "',
    "But",
    " he",
    " went",
    " into",
    " wood",
)
HOSTILE = (
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    "</style><b>",
    "\u2028\u2029",
    "\u202eevil\u202c",
    "\x00\x1b[31m",
    "&lt;&#60;",
    "\" onmouseover='alert(1)",
    "\ud800",
    "漢字かな",
    "e\u0301\u0327",
    "\u0301",
    "👩\u200d👩\u200d👧",
    "שלום",
    "<!--",
    "]]>",
    "{{7*7}}",
    "javascript:alert(1)",
    "https://example.org/x.png",
    "\ufeff\ufffe",
)
KINDS = ("sink", "previous token", "induction", "diffuse", "local")
FEATURES = {
    "rms": (0.6, 1.35),
    "update_attention": (0.5, 0.85),
    "update_mlp": (0.7, 0.9),
    "kurtosis": (3.0, 1.3),
    "participation": (180.0, 0.9),
    "sparsity": (0.1, 1.2),
}
LIMITS = (
    "Beauty is a proxy: a point that is concentrated need not mean anything.",
    "Attribution is direct: what a component does through later ones is not in it.",
    "The lens of early layers is biased; it was not trained.",
)


def fake(
    tokens: int = 54,
    layers: int = 6,
    heads: int = 4,
    *,
    prompt: int = 6,
    seed: int = 0,
    words: tuple[str, ...] = WORDS,
) -> dict[str, Any]:
    """A page with every section; equal arguments, equal pages."""
    rng = np.random.default_rng(seed)
    texts = [words[i % len(words)] for i in range(tokens)]
    ids = rng.integers(0, 2048, tokens)
    page: dict[str, Any] = {
        "run": {
            "commit": "3f0c1e9a" * 5,
            "checksum": "9b1dfe40" * 8,
            "model": "sample",
            "model_id": "77aa01c2" * 8,
            "numerics": "accuracy.1",
            "device": "cpu",
            "prompt": "".join(texts[:prompt]),
            "output": "".join(texts[prompt:]),
            "level": "stats",
            "positions": tokens - 1,
            "verdict": "verified",
        }
    }
    page["lens"] = _lens(rng, tokens - 1, layers, texts)
    page["tokens"] = _tokens(rng, texts, ids.tolist(), prompt, layers)
    page["layers"] = [
        {"layer": n, **{name: _mean(rng, a * b**n) for name, (a, b) in FEATURES.items()}}
        for n in range(layers)
    ]
    page["run_features"] = {
        name: _mean(rng, value)
        for name, value in (("logprob", -2.3), ("entropy", 2.5), ("margin", 1.1), ("commit", 3.4))
    }
    page["heads"] = [_head(rng, n, h) for n in range(layers) for h in range(heads)]
    page["patterns"] = [_pattern(rng, n % layers, n % heads, tokens - 1) for n in (0, 1, 3, 4)]
    page["attribution"] = [
        _attribution(rng, p, int(ids[p]), texts[p], layers)
        for p in sorted({prompt, tokens // 2, tokens - 1})
    ]
    page["ablation"] = {"n": 24, "spearman": 0.71, "low": 0.44, "high": 0.87}
    page["scores"] = _scores(rng, layers)
    page["blocks"] = _blocks(rng, layers)
    page["invariants"] = _invariants()
    page["limits"] = list(LIMITS)
    return page


def empty(page: dict[str, Any]) -> dict[str, Any]:
    """The same run with nothing computed."""
    none: dict[str, Any] = {name: [] for name in page if name != "run"}
    return {"run": page["run"], **none, "lens": None, "ablation": None, "run_features": {}}


def _r(value: Any) -> float:
    return round(float(value), 5)


def _mean(rng: Any, value: float) -> dict[str, float | int]:
    value *= 1 + 0.05 * rng.normal()
    spread = abs(value) * 0.08
    return {"mean": _r(value), "low": _r(value - spread), "high": _r(value + spread), "n": 53}


def _tokens(rng: Any, texts: list[str], ids: list[int], prompt: int, layers: int) -> list[Any]:
    surprise = rng.gamma(1.2, 1.8, len(texts))
    return [
        {
            "position": i,
            "token": ids[i],
            "text": text,
            "is_output": i >= prompt,
            "logprob": _r(-surprise[i]) if i >= prompt else None,
            "entropy": _r(rng.uniform(0.2, 5)) if i >= prompt else None,
            "rank": int(surprise[i] ** 2) if i >= prompt else None,
            "margin": _r(rng.normal(0.6, 1.5)) if i >= prompt else None,
            "commit_layer": int(rng.integers(0, layers + 1)) if i >= prompt else None,
        }
        for i, text in enumerate(texts)
    ]


def _lens(rng: Any, positions: int, layers: int, texts: list[str]) -> dict[str, Any]:
    names = ["hook_embed", *(f"blocks.{n}.hook_resid_post" for n in range(layers))]
    depth = np.linspace(1, 0, layers + 1)[:, None]
    kl = np.abs(depth * rng.gamma(4, 1.1, (1, positions)) + depth * rng.normal(0, 0.4))
    kl = np.maximum(kl * (1 + 0.2 * rng.normal(size=kl.shape)), 0)
    kl[-1] = 0
    own = -rng.gamma(1.2, 1.5, positions) - kl
    rank = np.minimum((np.exp(-own) / 3).astype(int), 2047)
    top = [[texts[int(rng.integers(len(texts)))] for _ in range(positions)] for _ in names]

    def rows(array: Any) -> list[list[float]]:
        return [[_r(value) for value in row] for row in array]

    return {
        "layers": names,
        "positions": list(range(positions)),
        "top": top,
        "top_logprob": rows(-rng.gamma(1.2, 1, kl.shape)),
        "logprob": rows(own),
        "rank": [[int(value) for value in row] for row in rank],
        "entropy": rows(rng.uniform(0.3, 6, kl.shape)),
        "kl": rows(kl),
    }


def _head(rng: Any, layer: int, head: int) -> dict[str, Any]:
    kind = KINDS[int(rng.integers(len(KINDS)))]
    sink = rng.uniform(0.4, 0.95) if kind == "sink" else rng.uniform(0, 0.3)
    return {
        "layer": layer,
        "head": head,
        "entropy": _r((1 - sink) * rng.uniform(0.3, 1)),
        "sink": _r(sink),
        "self": _r(rng.uniform(0, 0.3)),
        "previous": _r(rng.uniform(0.5, 0.9) if kind == "previous token" else rng.uniform(0, 0.2)),
        "distance": _r(rng.uniform(0, 0.6)),
        "induction": _r(rng.uniform(0.3, 0.8) if kind == "induction" else rng.uniform(0, 0.1)),
        "kind": kind,
    }


def _pattern(rng: Any, layer: int, head: int, positions: int) -> dict[str, Any]:
    chosen = list(range(max(0, positions - 32), positions))
    rows = []
    for position in chosen:
        weights = rng.exponential(1, position + 1) ** 3
        weights[0] += position
        rows.append([_r(value) for value in weights / weights.sum()])
    return {"layer": layer, "head": head, "positions": chosen, "rows": rows}


def _attribution(rng: Any, position: int, token: int, text: str, layers: int) -> dict[str, Any]:
    names = ["hook_embed"]
    for n in range(layers):
        names += [f"blocks.{n}.hook_attn_out", f"blocks.{n}.hook_mlp_out"]
    logits = rng.normal(0.4, 1.2, len(names)) * np.linspace(0.4, 1.8, len(names))
    shares = np.abs(logits) / np.abs(logits).sum()
    components = [
        {
            "name": name,
            "logit": _r(logit),
            "share": _r(share),
            "ablation": _r(abs(share * 3 + 0.1 * rng.normal())) if i % 2 else None,
        }
        for i, (name, logit, share) in enumerate(zip(names, logits, shares, strict=True))
    ]
    return {
        "position": position,
        "token": token,
        "text": text,
        "components": components,
        "gap": 3.1e-7,
    }


def _scores(rng: Any, layers: int) -> list[dict[str, Any]]:
    of = [
        "run",
        *(f"blocks.{n}.{p}" for n in range(layers) for p in ("attn.hook_z", "mlp.hook_post")),
    ]
    made = []
    for name in ("fitness", "beauty", "relevance", "usefulness"):
        for what in of if name != "usefulness" else ["run"]:
            value = rng.uniform(0.93, 1) if name == "fitness" else rng.uniform(0.02, 0.6)
            low, high = max(0, value - 0.04), min(1, value + 0.04)
            made.append(
                {
                    "name": name,
                    "of": what,
                    "value": _r(value),
                    "low": _r(low),
                    "high": _r(high),
                    "n": 53,
                    "trusted": bool(rng.random() > 0.15),
                }
            )
    return made


def _blocks(rng: Any, layers: int) -> list[dict[str, Any]]:
    kernels = {
        "ln1": ("rms_norm", 4096, 2048),
        "qkv": ("linear_bf16", 262144, 262144),
        "attn": ("attention_2", 65536, 32768),
        "o_proj": ("linear_bf16", 131072, 131072),
        "gate_up": ("linear_bf16", 655360, 655360),
        "down_proj": ("linear_bf16", 327680, 327680),
    }
    made = []
    for n in range(layers):
        for name, (kernel, size, operations) in kernels.items():
            floor = size / 20e3
            made.append(
                {
                    "block": f"layers.{n}.{name}",
                    "kernel": kernel,
                    "calls": 1,
                    "us": _r(floor * rng.uniform(1.1, 4) + 0.4),
                    "bytes": size,
                    "operations": operations,
                    "floor_us": _r(floor),
                }
            )
    return made


def _invariants() -> list[dict[str, Any]]:
    names = (
        ("residual_mid", "pass", 0.0, 0.0, None),
        ("residual_post", "pass", 0.0, 0.0, None),
        ("mean_square", "pass", 2.1e-7, 1e-5, None),
        ("entropy_range", "pass", 0.02, 0.0, None),
        ("attention_rows", "pass", 1.4e-7, 1e-5, None),
        ("sketch_linear", "pass", 3.1e-6, 4e-5, None),
        ("redot", "fail", 4.2e-3, 1e-5, {"position": 17, "block": "layers.2.down_proj"}),
        ("cache", "pass", 0.0, 0.0, None),
        ("lens_last", "pass", 1.1e-6, 1e-5, None),
        ("expert_weights", "not applicable", None, None, None),
    )
    return [
        {
            "name": name,
            "verdict": verdict,
            "margin": margin,
            "bound": bound,
            "n": 318 if verdict != "not applicable" else 0,
            "where": where,
            "why": ""
            if verdict == "pass"
            else "a row is not the product of its inputs"
            if where
            else "the model has no experts",
        }
        for name, verdict, margin, bound, where in names
    ]
