"""Random checkpoints for tests, and what transformers makes of them in float64."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

BOS, EOS, PAD = 256, 257, 258


def make(
    folder: Path,
    *,
    seed: int = 0,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    head_size: int | None = None,
    ff: int = 96,
    vocab: int = 259,
    tied: bool = False,
    dtype: str = "bfloat16",
    rope: dict[str, Any] | None = None,
    context: int = 512,
    shards: int = 1,
    attention_bias: bool = False,
    mlp_bias: bool = False,
    tokenizer: bool = True,
) -> Path:
    """Writes a random Llama checkpoint whose logits are lively; equal arguments, equal bytes.

    ``rope`` is the ``rope_parameters`` of config.json, without ``rope_theta``: 10000.
    """
    folder.mkdir(parents=True, exist_ok=True)
    size = hidden // heads if head_size is None else head_size
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": ff,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": size,
        "hidden_act": "silu",
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": tied,
        "attention_bias": attention_bias,
        "mlp_bias": mlp_bias,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "torch_dtype": dtype,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default", **(rope or {})},
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    generation = {"bos_token_id": BOS, "eos_token_id": [EOS], "do_sample": False}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    shapes = _shapes(config)
    write_tensors(folder, _random_tensors(shapes, seed, dtype), shards)
    if tokenizer:
        byte_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def write_tensors(folder: Path, tensors: dict[str, Any], shards: int = 1) -> None:
    """Writes torch tensors as model.safetensors, or as shards and their index."""
    from safetensors.torch import save_file

    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = list(tensors)
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = names[shard::shards]
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def byte_tokenizer() -> Any:
    """A byte-level tokenizer: token b is byte b, then <s>, </s> and <pad>; encode adds <s>."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.BPE(_byte_vocabulary(), []))
    tokenizer.add_special_tokens(
        [AddedToken(text, special=True) for text in ("<s>", "</s>", "<pad>")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", BOS)]
    )
    return tokenizer


def _byte_vocabulary() -> dict[str, int]:
    # GPT-2's printable stand-ins: a byte that prints is itself, the others follow 256
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    return {chr(byte if byte in printable else next(others)): byte for byte in range(256)}


def _shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, ff, size = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    q_size = config["num_attention_heads"] * size
    kv_size = config["num_key_value_heads"] * size
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden)
    }
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        linear = {
            "self_attn.q_proj": (q_size, hidden),
            "self_attn.k_proj": (kv_size, hidden),
            "self_attn.v_proj": (kv_size, hidden),
            "self_attn.o_proj": (hidden, q_size),
            "mlp.gate_proj": (ff, hidden),
            "mlp.up_proj": (ff, hidden),
            "mlp.down_proj": (hidden, ff),
        }
        for name, shape in linear.items():
            shapes[f"{at}.{name}.weight"] = shape
            if config["attention_bias" if "attn" in name else "mlp_bias"]:
                shapes[f"{at}.{name}.bias"] = shape[:1]
        shapes[f"{at}.input_layernorm.weight"] = (hidden,)
        shapes[f"{at}.post_attention_layernorm.weight"] = (hidden,)
    shapes["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    return shapes


def _random_tensors(shapes: dict[str, tuple[int, ...]], seed: int, dtype: str) -> dict[str, Any]:
    import torch

    generator = np.random.default_rng(seed)
    tensors = {}
    for name, shape in shapes.items():
        if name.endswith("norm.weight"):
            values = generator.normal(1.0, 0.2, shape)
        elif name.endswith(".bias"):
            values = generator.normal(0.0, 0.2, shape)
        elif "embed_tokens" in name:
            values = generator.normal(0.0, 0.5, shape)
        elif name == "lm_head.weight":
            values = generator.normal(0.0, 3.0 / np.sqrt(shape[1]), shape)
        else:  # of fan-in shape[1]: outputs of about unit variance, and lively attention
            values = generator.normal(0.0, 1.2 / np.sqrt(shape[1]), shape)
        tensors[name] = torch.from_numpy(values).to(getattr(torch, dtype)).contiguous()
    return tensors


def reference_logits(
    folder: Path, tokens: list[int], inv_freq: npt.NDArray[np.float32], factor: float = 1.0
) -> npt.NDArray[np.float64]:
    """Logits of every position by transformers in float64: (T, vocab).

    Stored weights are widened exactly. Angles are ours: float32(position) times
    ``inv_freq``, rounded to float32; ``factor`` is the rope attention factor.
    """
    import torch

    model = reference_model(folder, inv_freq, factor)
    with torch.no_grad():
        logits = model(torch.tensor([tokens]), use_cache=False).logits[0]
    assert logits.dtype == torch.float64
    return np.asarray(logits.numpy(), np.float64)


def reference_model(folder: Path, inv_freq: npt.NDArray[np.float32], factor: float = 1.0) -> Any:
    """A transformers LlamaForCausalLM that computes in float64 throughout, with our angles."""
    import torch
    from transformers import LlamaForCausalLM
    from transformers.models.llama import modeling_llama

    modeling_llama.ALL_ATTENTION_FUNCTIONS.register("float64", _attention)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    model.config._attn_implementation = "float64"
    model.model.rotary_emb = _rotary(inv_freq, factor)
    for module in model.modules():
        if isinstance(module, modeling_llama.LlamaRMSNorm):
            module.forward = _rms_norm.__get__(module)
    return model


def _rotary(inv_freq: npt.NDArray[np.float32], factor: float) -> Any:
    import torch

    class Rotary(torch.nn.Module):
        def forward(self, x: Any, position_ids: Any) -> tuple[Any, Any]:
            assert x.dtype == torch.float64
            angle = position_ids[..., None].float() * torch.from_numpy(inv_freq)  # (B,T,d/2) f32
            angle = torch.cat((angle, angle), dim=-1).double()
            return angle.cos() * factor, angle.sin() * factor

    return Rotary()


def _rms_norm(self: Any, x: Any) -> Any:
    # transformers casts to float32 here
    import torch

    epsilon = float(np.float32(self.variance_epsilon))
    return self.weight * (x / torch.sqrt((x * x).mean(-1, keepdim=True) + epsilon))


def _attention(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    scaling: float,
    **kwargs: Any,
) -> tuple[Any, None]:
    # transformers' own softmax is in float32; causal by ourselves
    import torch

    del attention_mask, kwargs
    group = module.num_key_value_groups
    key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    scores = query @ key.transpose(2, 3) * scaling  # (B,H,T,T) f64
    future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    mixed = scores.masked_fill(future, -torch.inf).softmax(-1) @ value
    return mixed.transpose(1, 2).contiguous(), None
