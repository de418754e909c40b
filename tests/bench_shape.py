"""A random Llama of 350M parameters for benchmarks: one set of weights, written for two engines.

Hides both file formats. The weights are seeded, so every machine makes the same files; they
generate noise, which costs what language costs. Needs numpy and gguf (PyPI).
"""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from gguf import GGUFWriter

HIDDEN, FF, LAYERS, HEADS, KV_HEADS, HEAD_SIZE, VOCAB = 1024, 2816, 24, 16, 8, 64, 32000
CONTEXT, EPSILON, THETA = 2048, 1e-5, 10000.0
SEED, SPREAD = 0, 0.02

Bits = np.ndarray
"""bf16 as uint16."""

# Hugging Face's name of a layer's matrix, llama.cpp's, rows, columns
MATRICES = (
    ("self_attn.q_proj", "attn_q", HEADS * HEAD_SIZE, HIDDEN),
    ("self_attn.k_proj", "attn_k", KV_HEADS * HEAD_SIZE, HIDDEN),
    ("self_attn.v_proj", "attn_v", KV_HEADS * HEAD_SIZE, HIDDEN),
    ("self_attn.o_proj", "attn_output", HIDDEN, HEADS * HEAD_SIZE),
    ("mlp.gate_proj", "ffn_gate", FF, HIDDEN),
    ("mlp.up_proj", "ffn_up", FF, HIDDEN),
    ("mlp.down_proj", "ffn_down", HIDDEN, FF),
)
NORMS = (("input_layernorm", "attn_norm"), ("post_attention_layernorm", "ffn_norm"))

LAYER_WEIGHTS = LAYERS * sum(rows * columns for _, _, rows, columns in MATRICES)
DECODE_BYTES = 2 * (LAYER_WEIGHTS + VOCAB * HIDDEN)
"""Bytes of weights that a decoded token reads: all but the embedding table."""
PREFILL_FLOP = 2 * LAYER_WEIGHTS
"""Operations that a prompt token needs in its linear layers; its logits are not wanted."""


def make(folder: Path) -> tuple[Path, Path]:
    """Gives the checkpoint's folder and its GGUF twin, made unless they are there."""
    twin = folder / f"llama-350m-{SEED}.gguf"
    if not twin.is_file():
        part = twin.with_suffix(".part")
        _write_gguf(part, dict(_weights()))
        part.rename(twin)
    return make_checkpoint(folder), twin


def make_checkpoint(folder: Path, *, circles: bool = False) -> Path:
    """Gives the checkpoint's folder, made unless it is there.

    ``circles``: attention adds nothing, so that a token follows from the one before alone, and
    greedy text soon goes in circles.
    """
    checkpoint = folder / (f"llama-350m-{SEED}" + "-circles" * circles)
    file = checkpoint / "model.safetensors"
    if not file.is_file():
        checkpoint.mkdir(parents=True, exist_ok=True)
        _write_configs(checkpoint)
        part = file.with_suffix(".part")
        weights = dict(_weights())
        for name, bits in weights.items():
            if circles and "o_proj" in name:
                bits[...] = 0
        _write_safetensors(part, weights)
        part.rename(file)
    return checkpoint


def _shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, HIDDEN)}
    for layer in range(LAYERS):
        for name, _, rows, columns in MATRICES:
            shapes[f"model.layers.{layer}.{name}.weight"] = (rows, columns)
        for name, _ in NORMS:
            shapes[f"model.layers.{layer}.{name}.weight"] = (HIDDEN,)
    return shapes | {"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCAB, HIDDEN)}


def _weights() -> dict[str, Bits]:
    random = np.random.default_rng(SEED)
    found = {}
    for name, shape in _shapes().items():
        values = np.float32(SPREAD) * random.standard_normal(shape, np.float32)
        found[name] = _to_bf16(values + np.float32(len(shape) == 1))  # gains lie around one
    return found


def _to_bf16(values: np.ndarray) -> Bits:
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)  # half to even


def _write_configs(folder: Path) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": FF,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_SIZE,
        "hidden_act": "silu",
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": EPSILON,
        "rope_theta": THETA,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": None,  # a run ends at its limit only
        "torch_dtype": "bfloat16",
    }
    for name, content in (("config", config), ("generation_config", {"do_sample": False})):
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")


def _write_safetensors(file: Path, weights: dict[str, Bits]) -> None:
    # by hand: the library's numpy side knows no bf16
    header, at = {}, 0
    for name, bits in weights.items():
        offsets = [at, at + bits.nbytes]
        header[name] = {"dtype": "BF16", "shape": list(bits.shape), "data_offsets": offsets}
        at += bits.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for bits in weights.values():
            bits.tofile(out)


def _write_gguf(file: Path, weights: dict[str, Bits]) -> None:
    from gguf import GGUFWriter, LlamaFileType

    writer = GGUFWriter(file, "llama")
    writer.add_file_type(LlamaFileType.MOSTLY_BF16)
    writer.add_vocab_size(VOCAB)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FF)
    writer.add_block_count(LAYERS)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(HEAD_SIZE)
    writer.add_value_length(HEAD_SIZE)
    writer.add_layer_norm_rms_eps(EPSILON)
    writer.add_rope_dimension_count(HEAD_SIZE)
    writer.add_rope_freq_base(THETA)
    writer.add_tokenizer_model("no_vocab")
    for name, tensor in _renamed(weights).items():
        _add_tensor(writer, name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _renamed(weights: dict[str, Bits]) -> dict[str, Bits]:
    outer = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    found = {f"{ours}.weight": weights[f"{theirs}.weight"] for theirs, ours in outer.items()}
    for layer in range(LAYERS):
        for theirs, ours, *_ in (*MATRICES, *NORMS):
            bits = weights[f"model.layers.{layer}.{theirs}.weight"]
            if ours in {"attn_q", "attn_k"}:
                bits = _pairs(bits)
            found[f"blk.{layer}.{ours}.weight"] = bits
    return found


def _pairs(bits: Bits) -> Bits:
    # llama.cpp rotates neighbours where Hugging Face rotates halves of a head
    halves = bits.reshape(-1, 2, HEAD_SIZE // 2, HIDDEN)
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(bits.shape)


def _add_tensor(writer: GGUFWriter, name: str, bits: Bits) -> None:
    from gguf import GGMLQuantizationType

    if bits.ndim == 1:  # llama.cpp wants gains in float32
        writer.add_tensor(name, (bits.astype(np.uint32) << 16).view(np.float32))
    else:
        writer.add_tensor(name, bits.view(np.uint8), raw_dtype=GGMLQuantizationType.BF16)
