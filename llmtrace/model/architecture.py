"""What a config.json means: one description for every family, refusing what it does not know.

A key that could change a number and that we do not honour is an error, because
a model that runs wrongly still looks as if it ran.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from decimal import Decimal, localcontext
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from llmtrace.errors import Trouble
from llmtrace.model.rope import Rope
from llmtrace.model.rounding import context, exact, to_float32

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from llmtrace.model.checkpoint import Checkpoint

FAMILIES = ("llama",)
# transformers 5, LlamaConfig
DEFAULTS: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
}
# Options of other families that would change the numbers if they meant anything here.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "sliding_window": (None,),
    "use_sliding_window": (None, False),
    "quantization_config": (None,),
    "rope_interleaved": (None, False),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "num_local_experts": (None, 0),
    "use_qk_norm": (None, False),
}


@dataclass(frozen=True)
class Architecture:
    """The sizes and constants that blocks need, whatever the family."""

    family: str
    vocab_size: int
    hidden_size: int
    layer_count: int
    head_count: int
    kv_head_count: int
    head_size: int
    ff_size: int
    norm_epsilon: np.float32
    """The decimal number of config.json, rounded once."""
    context_length: int
    tied: bool
    """The unembedding is the embedding table."""
    attention_bias: bool
    """q, k, v and o projections have biases."""
    mlp_bias: bool
    end_tokens: tuple[int, ...]
    """Tokens that end a run: generation_config.json's, else config.json's."""
    bos_token: int | None
    rope: Rope = field(repr=False)

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Architecture:
        """Reads the configuration; raises Trouble for anything it does not know."""
        config = checkpoint.config
        _refuse_unknown(config)
        heads = _count(config, "num_attention_heads")
        hidden = _count(config, "hidden_size")
        head_size = _head_size(config, hidden, heads)
        kv_heads = _count(config, "num_key_value_heads", heads)
        if heads % kv_heads:
            raise Trouble(
                f"num_attention_heads '{heads}' of 'config.json' is not a multiple of"
                f" num_key_value_heads '{kv_heads}'"
            )
        vocab_size = _count(config, "vocab_size")
        context_length = _count(config, "max_position_embeddings")
        return cls(
            family=config["model_type"],
            vocab_size=vocab_size,
            hidden_size=hidden,
            layer_count=_count(config, "num_hidden_layers"),
            head_count=heads,
            kv_head_count=kv_heads,
            head_size=head_size,
            ff_size=_count(config, "intermediate_size"),
            norm_epsilon=_epsilon(config),
            context_length=context_length,
            tied=_flag(config, "tie_word_embeddings"),
            attention_bias=_flag(config, "attention_bias"),
            mlp_bias=_flag(config, "mlp_bias"),
            end_tokens=_end_tokens(checkpoint, vocab_size),
            bos_token=_bos_token(config, vocab_size),
            rope=Rope.of(config, head_size, context_length),
        )

    def inverse_frequencies(self, run_limit: int) -> npt.NDArray[np.float32]:
        """The rotary angle per position of each pair of a head: (head_size/2,) f32, radians.

        ``run_limit`` is prompt plus max tokens; only dynamic and longrope depend on it.
        """
        import numpy as np

        limit = run_limit if self.rope.follows_limit else 0
        return np.array(_frequencies(self.rope, limit), np.float32)

    def rope_attention_factor(self, run_limit: int) -> np.float32:
        """What multiplies every rotary sine and cosine; 1 for most scalings."""
        del run_limit  # no scaling of today's makes it depend on the length
        return _attention_factor(self.rope)

    def attention_scale(self) -> np.float32:
        """What multiplies q·k: 1/sqrt(head_size), rounded once."""
        with localcontext(context()):
            return to_float32(1 / Decimal(self.head_size).sqrt())

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor the checkpoint must hold, by its Hugging Face name."""
        hidden, ff = self.hidden_size, self.ff_size
        q_size, kv_size = self.head_count * self.head_size, self.kv_head_count * self.head_size
        shapes: dict[str, tuple[int, ...]] = {
            "model.embed_tokens.weight": (self.vocab_size, hidden)
        }
        for layer in range(self.layer_count):
            at = f"model.layers.{layer}"
            shapes[f"{at}.input_layernorm.weight"] = (hidden,)
            shapes[f"{at}.post_attention_layernorm.weight"] = (hidden,)
            for name, rows, columns, has_bias in (
                ("self_attn.q_proj", q_size, hidden, self.attention_bias),
                ("self_attn.k_proj", kv_size, hidden, self.attention_bias),
                ("self_attn.v_proj", kv_size, hidden, self.attention_bias),
                ("self_attn.o_proj", hidden, q_size, self.attention_bias),
                ("mlp.gate_proj", ff, hidden, self.mlp_bias),
                ("mlp.up_proj", ff, hidden, self.mlp_bias),
                ("mlp.down_proj", hidden, ff, self.mlp_bias),
            ):
                shapes[f"{at}.{name}.weight"] = (rows, columns)
                if has_bias:
                    shapes[f"{at}.{name}.bias"] = (rows,)
        shapes["model.norm.weight"] = (hidden,)
        if not self.tied:
            shapes["lm_head.weight"] = (self.vocab_size, hidden)
        return shapes

    def check(self, checkpoint: Checkpoint) -> None:
        """Raises Trouble at the first tensor that is missing, misshapen or has no meaning here."""
        held = len(checkpoint.tensors)
        if self.layer_count > held:  # refused before as many names are made
            raise Trouble(
                f"num_hidden_layers '{self.layer_count}' of 'config.json' needs more than the"
                f" {held} tensors of '{checkpoint.path}'"
            )
        expected = self.tensor_shapes()
        for name, shape in expected.items():
            tensor = checkpoint.tensors.get(name)
            if tensor is None:
                raise Trouble(
                    f"no tensor '{name}' in '{checkpoint.path}'",
                    f"its config.json asks for one of shape {list(shape)}",
                )
            if tensor.shape != shape:
                raise Trouble(
                    f"tensor '{name}' of '{checkpoint.path}' has shape {list(tensor.shape)},"
                    f" expected {list(shape)}"
                )
        for name in checkpoint.tensors:
            # Old checkpoints store the rotary frequencies, which we compute.
            if name in expected or name.endswith(".rotary_emb.inv_freq"):
                continue
            if name == "lm_head.weight" and _is_copy_of_embedding(checkpoint):
                continue
            raise Trouble(
                f"tensor '{name}' of '{checkpoint.path}' has no meaning for"
                f" '{self.family}' with this config.json"
            )


def _is_copy_of_embedding(checkpoint: Checkpoint) -> bool:
    # A tied model may store its table twice; two tables that differ are not tied.
    import numpy as np

    ours, embedding = (
        checkpoint.tensors[name] for name in ("lm_head.weight", "model.embed_tokens.weight")
    )
    return (
        ours.dtype == embedding.dtype
        and ours.shape == embedding.shape
        and np.array_equal(ours.array().view(np.uint8), embedding.array().view(np.uint8))
    )


def _refuse_unknown(config: dict[str, Any]) -> None:
    family = config.get("model_type")
    known = f"llmtrace runs {', '.join(FAMILIES)}"
    if family not in FAMILIES:
        raise Trouble(f"model type '{family}' is not supported", known)
    classes = config.get("architectures") or ["LlamaForCausalLM"]
    if classes != ["LlamaForCausalLM"]:
        raise Trouble(f"architectures '{classes}' of 'config.json' is not supported", known)
    activation = config.get("hidden_act", DEFAULTS["hidden_act"])
    if activation != "silu":
        raise Trouble(f"hidden_act '{activation}' is not supported for '{family}'", "expected silu")
    for key, neutral in NEUTRAL.items():
        if config.get(key) not in neutral:
            raise Trouble(f"option '{key}' of 'config.json' is not supported for '{family}'")
    layer_types = config.get("layer_types") or []
    if not isinstance(layer_types, list) or any(each != "full_attention" for each in layer_types):
        raise Trouble(f"option 'layer_types' of 'config.json' is not supported for '{family}'")


def _value(config: dict[str, Any], key: str, default: Any = None) -> Any:
    value = config.get(key)
    return DEFAULTS.get(key, default) if value is None else value


def _count(config: dict[str, Any], key: str, default: int | None = None) -> int:
    value = _value(config, key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise Trouble(f"{key} '{value}' of 'config.json' is not a whole number above zero")
    return value


def _flag(config: dict[str, Any], key: str) -> bool:
    value = _value(config, key)
    if not isinstance(value, bool):
        raise Trouble(f"{key} '{value}' of 'config.json' is neither true nor false")
    return value


def _head_size(config: dict[str, Any], hidden: int, heads: int) -> int:
    if config.get("head_dim") is None and hidden % heads:
        raise Trouble(
            f"hidden_size '{hidden}' of 'config.json' is not a multiple of"
            f" num_attention_heads '{heads}'"
        )
    size = _count(config, "head_dim", hidden // heads)
    if size % 2:
        raise Trouble(f"head size '{size}' of 'config.json' is odd, so it has no rotary pairs")
    return size


def _rounded(what: str, value: Decimal) -> np.float32:
    try:
        return to_float32(value)
    except OverflowError as error:
        raise Trouble(f"{what} '{value:.6g}' of 'config.json' is beyond float32") from error


def _epsilon(config: dict[str, Any]) -> np.float32:
    value = _value(config, "rms_norm_eps")
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or value < 0:
        raise Trouble(f"rms_norm_eps '{value}' of 'config.json' is not a number from zero up")
    return _rounded("rms_norm_eps", exact(value))


@lru_cache(256)
def _frequencies(rope: Rope, run_limit: int) -> tuple[np.float32, ...]:
    """Milliseconds of decimal arithmetic, and each run of a batch asks."""
    found = rope.inverse_frequencies(run_limit)
    return tuple(_rounded("rope frequency", each) for each in found)


@lru_cache(256)
def _attention_factor(rope: Rope) -> np.float32:
    return _rounded("rope attention factor", rope.attention_factor())


def _bos_token(config: dict[str, Any], vocab_size: int) -> int | None:
    tokens = _tokens("bos_token_id", config.get("bos_token_id", 1), vocab_size)
    return tokens[0] if tokens else None


def _end_tokens(checkpoint: Checkpoint, vocab_size: int) -> tuple[int, ...]:
    value = checkpoint.generation_config.get("eos_token_id")
    if value is None:
        value = checkpoint.config.get("eos_token_id", DEFAULTS["eos_token_id"])
    return _tokens("eos_token_id", value, vocab_size)


def _tokens(key: str, value: Any, vocab_size: int) -> tuple[int, ...]:
    # A token beyond the vocabulary, such as the -1 of old files, can never be drawn.
    listed = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(token, int) and not isinstance(token, bool) for token in listed):
        raise Trouble(f"{key} '{value}' is not a token or a list of tokens")
    return tuple(dict.fromkeys(token for token in listed if 0 <= token < vocab_size))
