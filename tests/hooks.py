"""Every point of a Llama by hooks on transformers in float64: what the kernels should have made."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

import checkpoints
from llmtrace.model.architecture import Architecture


class Hooked:
    """A forward pass over tokens: ``rows`` by points (T, width), patterns and scores (H, T, T)."""

    def __init__(self, folder: Path, a: Architecture, tokens: list[int], limit: int) -> None:
        from transformers.models.llama import modeling_llama

        self.rows: dict[str, np.ndarray] = {}
        self.patterns: list[np.ndarray] = []
        self.scores: list[np.ndarray] = []
        model = checkpoints.reference_model(
            folder, a.inverse_frequencies(limit), float(a.rope_attention_factor(limit))
        )
        modeling_llama.ALL_ATTENTION_FUNCTIONS.register("float64", self._attention)
        self._hook(model)
        with torch.no_grad():
            model(torch.tensor([tokens]), use_cache=False)

    def _hook(self, model: Any) -> None:
        inner = model.model
        self._out(inner.embed_tokens, "hook_embed")
        for i, layer in enumerate(inner.layers):
            at, attention, mlp = f"blocks.{i}.", layer.self_attn, layer.mlp
            self._norm(layer.input_layernorm, at + "ln1")
            for name, module in (
                ("attn.hook_q", attention.q_proj),
                ("attn.hook_k", attention.k_proj),
                ("attn.hook_v", attention.v_proj),
                ("hook_attn_out", attention.o_proj),
                ("mlp.hook_pre", mlp.gate_proj),
                ("mlp.hook_pre_linear", mlp.up_proj),
                ("hook_mlp_out", mlp),
                ("hook_resid_post", layer),
            ):
                self._out(module, at + name)
            self._in(attention.o_proj, at + "attn.hook_z")
            self._in(layer.post_attention_layernorm, at + "hook_resid_mid")
            self._norm(layer.post_attention_layernorm, at + "ln2")
            self._in(mlp.down_proj, at + "mlp.hook_post")
        self._norm(inner.norm, "ln_final")
        self._in(model.lm_head, "unembed.hook_in")
        self._out(model.lm_head, "unembed.hook_out")

    def _out(self, module: Any, name: str) -> None:
        def take(_: Any, __: Any, out: Any) -> None:
            self._keep(name, out[0] if isinstance(out, tuple) else out)

        module.register_forward_hook(take)

    def _in(self, module: Any, name: str) -> None:
        module.register_forward_hook(lambda _, given, __: self._keep(name, given[0]))

    def _norm(self, module: Any, name: str) -> None:
        def take(norm: Any, given: Any, _: Any) -> None:
            epsilon = float(np.float32(norm.variance_epsilon))
            scale = ((given[0] ** 2).mean(-1, keepdim=True) + epsilon).sqrt()
            self._keep(name + ".hook_scale", scale)
            self._keep(name + ".hook_normalized", given[0] / scale)

        module.register_forward_hook(take)

    def _keep(self, name: str, value: Any) -> None:
        assert value.dtype == torch.float64
        self.rows[name] = value[0].numpy().copy()

    def _attention(
        self, module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float, **_: Any
    ) -> tuple[Any, None]:
        del mask
        at = f"blocks.{module.layer_idx}.attn.hook_rot_"
        for name, x in (("q", query), ("k", key)):
            self._keep(at + name, x.transpose(1, 2).flatten(2))
        group = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
        scores = query @ key.transpose(2, 3) * scaling
        future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        pattern = scores.masked_fill(future, -math.inf).softmax(-1)
        self.scores.append(scores[0].numpy().copy())
        self.patterns.append(pattern[0].numpy().copy())
        return (pattern @ value).transpose(1, 2).contiguous(), None
