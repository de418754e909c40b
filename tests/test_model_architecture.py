"""What a config.json means, and the constants computed from it."""

import json
import math
from decimal import Decimal, getcontext
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoints import make
from llmtrace.errors import Trouble
from llmtrace.model.architecture import Architecture, _attention_factor, _frequencies
from llmtrace.model.checkpoint import Checkpoint
from llmtrace.model.rounding import exact, to_float32

LLAMA31 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.05, 1.1, 1.15, 1.2, 1.25, 1.3, 1.0299999713897705],
    "long_factor": [1, 2, 3.5, 5, 8, 13.25, 21, 34.7],
    "original_max_position_embeddings": 64,
}
SCALINGS = {
    "default": {},
    "theta": {"rope_theta": 500000.0},
    "linear": {"rope_type": "linear", "factor": 2.5},
    "dynamic": {"rope_type": "dynamic", "factor": 3.0},
    "llama3": LLAMA31,
    "llama3-of-3.2": LLAMA31 | {"factor": 32.0, "rope_theta": 500000.0},
    "llama3-length": {k: v for k, v in LLAMA31.items() if not k.startswith("orig")},
    "yarn": YARN,
    "yarn-betas": YARN | {"beta_fast": 16, "beta_slow": 2.5},
    "yarn-mscale": YARN | {"mscale": 0.707, "mscale_all_dim": 1.2},
    "yarn-one-mscale": YARN | {"mscale": 0.707},
    "yarn-no-mscale": YARN | {"mscale": 0.0, "mscale_all_dim": 1.0},
    "yarn-exact": YARN | {"truncate": False},
    "yarn-attention": YARN | {"attention_factor": 0.9},
    "yarn-nothing-to-do": YARN | {"factor": 1.0},
    "yarn-ratio": YARN | {"factor": None},
    "yarn-flat-ramp": YARN | {"beta_fast": 1e-6, "beta_slow": 1e-7},
    "longrope": LONGROPE,
    "longrope-factor": LONGROPE | {"factor": 4.0},
    "longrope-shrunk": LONGROPE | {"factor": 0.5},
    "longrope-attention": LONGROPE | {"attention_factor": 1.25},
}


def changed(folder, **changes):
    """The checkpoint with keys of its config.json set, or removed where the value is ``...``."""
    file = folder / "config.json"
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))
    return Checkpoint.open(folder)


def architecture(folder, **changes):
    return Architecture.of(changed(folder, **changes))


def assert_rounded_right(found, is_below):
    """Holds if the true value, of which is_below tells what is below it, rounds to this float32."""
    bits = int(found.view(np.uint32))
    low, high = (
        (Fraction(float(found)) + Fraction(float(np.uint32(other).view(np.float32)))) / 2
        for other in (bits - 1, bits + 1)
    )
    assert is_below(low)
    assert not is_below(high)


# --- rounding


@settings(deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_float64_rounds_to_float32_as_numpy_does(value):
    if abs(value) >= 2.0**128 - 2.0**103:
        with pytest.raises(OverflowError):
            to_float32(Decimal(value))
    else:
        assert to_float32(Decimal(value)).tobytes() == np.float32(value + 0.0 or 0.0).tobytes()


@settings(deadline=None)
@given(st.integers(0, 2**31 - 2**23 - 1), st.sampled_from([-1, 0, 1]))
def test_midpoints_and_their_neighbours_round_right(bits, side):
    below, above = np.array([bits, bits + 1], np.uint32).view(np.float32)
    if np.isinf(above):
        return
    middle = (Fraction(float(below)) + Fraction(float(above))) / 2
    getcontext().prec = 400
    exactly = Decimal(middle.numerator) / Decimal(middle.denominator)
    value = exactly + side * Decimal(10) ** -300
    even = below if bits % 2 == 0 else above
    assert to_float32(value) == {-1: below, 0: even, 1: above}[side]


def test_there_is_no_rounding_on_the_way():
    just_above = Decimal(1) + Decimal(2) ** -24 + Decimal(10) ** -40
    assert np.float32(float(just_above)) == 1  # what a float64 on the way would give
    assert to_float32(just_above) == 1 + 2.0**-23
    assert to_float32(Decimal(0)).tobytes() == bytes(4)
    assert to_float32(-(Decimal(2) ** -149)) == np.float32(-(2.0**-149))
    assert to_float32(Decimal(2) ** -150) == 0


def test_numbers_are_taken_as_written():
    assert exact(0.1) == Decimal("0.1")
    assert exact(1e-05) == Decimal("0.00001")
    assert exact(500000) == Decimal(500000)


# --- rotary embedding


@pytest.mark.parametrize(
    ("theta", "size"), [(10000.0, 16), (10000.0, 128), (500000.0, 64), (1e6, 80)]
)
def test_default_frequencies_are_rounded_correctly(tmp_path, theta, size):
    make(tmp_path, hidden=64, head_size=size)
    found = architecture(tmp_path, rope_parameters={"rope_theta": theta})
    for i, frequency in enumerate(found.inverse_frequencies(100)):
        # y < theta^(-2i/d) exactly where y^d theta^2i < 1
        assert_rounded_right(frequency, lambda y, i=i: y**size * Fraction(theta) ** (2 * i) < 1)


class _Wide:
    """Torch, but float32 is float64: transformers' formulas without their rounding."""

    float = float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


def transformers_rope(folder, run_limit, monkeypatch):
    from transformers import LlamaConfig, modeling_rope_utils
    from transformers.models.llama import modeling_llama

    config = LlamaConfig.from_pretrained(folder)
    monkeypatch.setattr(modeling_rope_utils, "torch", _Wide())
    monkeypatch.setattr(modeling_llama, "torch", _Wide())
    kind = config.rope_parameters["rope_type"]
    default = modeling_llama.LlamaRotaryEmbedding.compute_default_rope_parameters
    function = modeling_rope_utils.ROPE_INIT_FUNCTIONS.get(kind, default)
    frequencies, factor = function(config, device="cpu", seq_len=run_limit)
    return frequencies.numpy(), factor


@pytest.mark.parametrize("run_limit", [1, 64, 65, 512, 513, 2000])
@pytest.mark.parametrize("name", SCALINGS)
def test_scalings_agree_with_transformers(tmp_path, name, run_limit, monkeypatch):
    make(tmp_path, rope=SCALINGS[name])
    found = Architecture.of(Checkpoint.open(tmp_path))
    frequencies, factor = transformers_rope(tmp_path, run_limit, monkeypatch)
    assert frequencies.dtype == np.float64
    ours = found.inverse_frequencies(run_limit)
    assert (ours.dtype, ours.shape) == (np.float32, (8,))
    # half a unit of float32, and a little for the float64 of theirs; longrope insists on float32
    bound = 1e-6 if found.rope.kind == "longrope" else 2.0**-24 * 1.000001
    assert np.all(np.abs(ours - frequencies) <= bound * frequencies)
    assert type(found.rope_attention_factor(run_limit)) is np.float32
    assert found.rope_attention_factor(run_limit) == np.float32(factor)


@pytest.mark.parametrize("name", SCALINGS)
def test_only_dynamic_and_longrope_follow_the_limit(tmp_path, name):
    make(tmp_path, rope=SCALINGS[name])
    found = Architecture.of(Checkpoint.open(tmp_path))
    distinct = {found.inverse_frequencies(limit).tobytes() for limit in (10, 64, 65, 512, 513, 514)}
    assert len(distinct) == {"dynamic": 3, "longrope": 2}.get(found.rope.kind, 1)


@pytest.mark.parametrize("name", SCALINGS)
def test_both_spellings_mean_the_same(tmp_path, name):
    new = make(tmp_path / "new", rope=SCALINGS[name])
    old = make(tmp_path / "old")
    scaling = {"rope_theta": 10000.0, **SCALINGS[name]}
    theta, kind = scaling.pop("rope_theta"), scaling.pop("rope_type", "default")
    for key in ("type", "rope_type"):
        scaling = {
            key: kind,
            **{k: v for k, v in scaling.items() if k not in {"type", "rope_type"}},
        }
        found = architecture(old, rope_parameters=..., rope_theta=theta, rope_scaling=scaling)
        assert found == Architecture.of(Checkpoint.open(new))
        assert hash(found) == hash(Architecture.of(Checkpoint.open(new)))


def test_the_outer_original_length_wins(tmp_path, monkeypatch):
    make(tmp_path, rope=YARN)
    changed(tmp_path, original_max_position_embeddings=32)
    found = Architecture.of(Checkpoint.open(tmp_path))
    assert found.rope.original_length == 32
    frequencies, _ = transformers_rope(tmp_path, 10, monkeypatch)
    assert np.all(np.abs(found.inverse_frequencies(10) - frequencies) <= 2.0**-23 * frequencies)


def test_constants_do_not_depend_on_the_decimal_context_of_the_program(tmp_path):
    make(tmp_path, rope=SCALINGS["yarn-mscale"])
    found = Architecture.of(Checkpoint.open(tmp_path))
    before = found.inverse_frequencies(9).tobytes(), found.rope_attention_factor(9)
    for cached in (_frequencies, _attention_factor):
        cached.cache_clear()
    getcontext().prec = 5
    try:
        assert (found.inverse_frequencies(9).tobytes(), found.rope_attention_factor(9)) == before
        assert getcontext().prec == 5
    finally:
        getcontext().prec = 28


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        ({"rope_type": "spiral"}, "rope type 'spiral' is unknown"),
        ({"rope_type": ["yarn"]}, "rope type '['yarn']' is unknown"),
        ({"rope_type": "linear"}, "rope type 'linear' has no 'factor' in 'config.json'"),
        (
            {"rope_type": "dynamic", "factor": None},
            "rope type 'dynamic' has no 'factor' in 'config.json'",
        ),
        ({"rope_type": "linear", "factor": 0}, "factor '0' of 'config.json' is not above zero"),
        (
            {"rope_type": "linear", "factor": -1.5},
            "factor '-1.5' of 'config.json' is not above zero",
        ),
        ({"rope_type": "linear", "factor": "2"}, "factor '2' of 'config.json' is not a number"),
        ({"rope_type": "linear", "factor": True}, "factor 'True' of 'config.json' is not a number"),
        ({"rope_theta": math.nan}, "rope_theta 'nan' of 'config.json' is not a number"),
        ({"rope_theta": 0}, "rope_theta '0' of 'config.json' is not above zero"),
        (
            {"partial_rotary_factor": 0.5},
            "partial_rotary_factor '0.5' is not supported for 'llama'",
        ),
        (
            {k: v for k, v in LLAMA31.items() if k != "low_freq_factor"},
            "rope type 'llama3' has no 'low_freq_factor' in 'config.json'",
        ),
        (
            LLAMA31 | {"high_freq_factor": 1.0},
            "'high_freq_factor' of 'config.json' is not above 'low_freq_factor'",
        ),
        (
            LONGROPE | {"long_factor": [1.0]},
            "'long_factor' of 'config.json' is not a list of '8' numbers",
        ),
        (
            LONGROPE | {"short_factor": [0] * 8},
            "short_factor '0' of 'config.json' is not above zero",
        ),
        (
            LONGROPE | {"original_max_position_embeddings": 1},
            "rope type 'longrope' has no meaning for an original length of '1'",
        ),
        (YARN | {"rope_theta": 1}, "rope type 'yarn' has no meaning for a rope_theta of '1'"),
    ],
)
def test_rope_troubles(tmp_path, rope, message):
    with pytest.raises(Trouble) as caught:
        Architecture.of(Checkpoint.open(make(tmp_path, rope=rope)))
    assert str(caught.value) == message


def test_more_rope_troubles(tmp_path):
    make(tmp_path, heads=32, head_size=2, rope=SCALINGS["dynamic"])
    with pytest.raises(
        Trouble, match=r"^rope type 'dynamic' has no meaning for a head size of '2'$"
    ):
        Architecture.of(Checkpoint.open(tmp_path))
    make(tmp_path)
    with pytest.raises(Trouble, match=r"^rope_scaling '3' of 'config.json' is not an object$"):
        architecture(tmp_path, rope_scaling=3)
    with pytest.raises(
        Trouble, match=r"^partial_rotary_factor '0.25' is not supported for 'llama'$"
    ):
        architecture(tmp_path, rope_scaling=..., partial_rotary_factor=0.25)
    found = architecture(tmp_path, partial_rotary_factor=1.0, rope_parameters={"rope_theta": 1e-90})
    with pytest.raises(
        Trouble, match=r"^rope frequency '1e\+45' of 'config.json' is beyond float32$"
    ):
        found.inverse_frequencies(1)


# --- the description


def test_every_field_is_read(tmp_path):
    make(
        tmp_path,
        hidden=48,
        layers=3,
        heads=6,
        kv_heads=3,
        head_size=10,
        ff=40,
        vocab=300,
        tied=True,
    )
    found = Architecture.of(Checkpoint.open(tmp_path))
    assert (found.family, found.vocab_size, found.hidden_size) == ("llama", 300, 48)
    assert (found.layer_count, found.head_count, found.kv_head_count) == (3, 6, 3)
    assert (found.head_size, found.ff_size, found.context_length) == (10, 40, 512)
    assert found.norm_epsilon == np.float32(1e-5)
    assert type(found.norm_epsilon) is np.float32
    assert (found.tied, found.attention_bias, found.mlp_bias) == (True, False, False)
    assert (found.end_tokens, found.bos_token) == ((257,), 256)


def test_absent_keys_take_the_defaults_of_transformers(tmp_path):
    from transformers import LlamaConfig

    make(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "generation_config.json").unlink()
    found, theirs = Architecture.of(Checkpoint.open(tmp_path)), LlamaConfig()
    assert found.vocab_size == theirs.vocab_size
    assert found.hidden_size == theirs.hidden_size
    assert found.ff_size == theirs.intermediate_size
    assert found.layer_count == theirs.num_hidden_layers
    assert found.head_count == theirs.num_attention_heads
    assert found.kv_head_count == theirs.num_key_value_heads
    assert found.head_size == theirs.head_dim
    assert found.context_length == theirs.max_position_embeddings
    assert found.norm_epsilon == np.float32(theirs.rms_norm_eps)
    assert found.tied is theirs.tie_word_embeddings
    assert found.attention_bias is theirs.attention_bias
    assert found.mlp_bias is theirs.mlp_bias
    assert found.bos_token == theirs.bos_token_id
    assert found.end_tokens == (theirs.eos_token_id,)
    assert float(found.rope.theta) == theirs.rope_parameters["rope_theta"]


def test_harmless_keys_are_ignored(tmp_path):
    make(tmp_path)
    plain = Architecture.of(Checkpoint.open(tmp_path))
    changes = {"pretraining_tp": 2, "attention_dropout": 0.5, "rope_interleaved": False}
    changes |= {"sliding_window": None, "layer_types": ["full_attention"] * 2, "rope_scaling": None}
    assert architecture(tmp_path, **changes) == plain


@pytest.mark.parametrize(
    ("generation", "config", "tokens"),
    [
        ([5, 7, 5], 3, (5, 7)),
        (9, 3, (9,)),
        (None, [3, 4], (3, 4)),
        (None, 3, (3,)),
        (None, None, ()),
        (None, ..., (2,)),
        ([-1, 259, 258], 3, (258,)),
    ],
)
def test_end_tokens(tmp_path, generation, config, tokens):
    make(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
    assert architecture(tmp_path, eos_token_id=config).end_tokens == tokens


def test_bos_token_may_be_absent(tmp_path):
    make(tmp_path)
    assert architecture(tmp_path, bos_token_id=None).bos_token is None
    assert architecture(tmp_path, bos_token_id=...).bos_token == 1


@pytest.mark.parametrize("size", [2, 10, 16, 64, 80, 96, 128, 256])
def test_attention_scale_is_rounded_correctly(tmp_path, size):
    scale = Architecture.of(Checkpoint.open(make(tmp_path, head_size=size))).attention_scale()
    assert_rounded_right(scale, lambda y: y**2 * size < 1)
    assert type(scale) is np.float32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "bert"}, "model type 'bert' is not supported"),
        ({"model_type": ...}, "model type 'None' is not supported"),
        ({"model_type": []}, "model type '[]' is not supported"),
        (
            {"architectures": ["LlamaForSequenceClassification"]},
            "architectures '['LlamaForSequenceClassification']' of 'config.json' is not supported",
        ),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported for 'llama'"),
        (
            {"sliding_window": 64},
            "option 'sliding_window' of 'config.json' is not supported for 'llama'",
        ),
        (
            {"quantization_config": {"bits": 4}},
            "option 'quantization_config' of 'config.json' is not supported for 'llama'",
        ),
        (
            {"layer_types": ["full_attention", "sliding_attention"]},
            "option 'layer_types' of 'config.json' is not supported for 'llama'",
        ),
        ({"layer_types": 3}, "option 'layer_types' of 'config.json' is not supported for 'llama'"),
        ({"vocab_size": 0}, "vocab_size '0' of 'config.json' is not a whole number above zero"),
        (
            {"hidden_size": 64.5},
            "hidden_size '64.5' of 'config.json' is not a whole number above zero",
        ),
        (
            {"num_hidden_layers": True},
            "num_hidden_layers 'True' of 'config.json' is not a whole number above zero",
        ),
        (
            {"num_key_value_heads": 3},
            "num_attention_heads '4' of 'config.json' is not a multiple of num_key_value_heads '3'",
        ),
        (
            {"hidden_size": 63, "head_dim": None},
            "hidden_size '63' of 'config.json' is not a multiple of num_attention_heads '4'",
        ),
        ({"head_dim": 15}, "head size '15' of 'config.json' is odd, so it has no rotary pairs"),
        ({"rms_norm_eps": -1}, "rms_norm_eps '-1' of 'config.json' is not a number from zero up"),
        ({"rms_norm_eps": "1"}, "rms_norm_eps '1' of 'config.json' is not a number from zero up"),
        ({"rms_norm_eps": 1e39}, "rms_norm_eps '1e+39' of 'config.json' is beyond float32"),
        ({"mlp_bias": 1}, "mlp_bias '1' of 'config.json' is neither true nor false"),
        ({"bos_token_id": "a"}, "bos_token_id 'a' is not a token or a list of tokens"),
    ],
)
def test_config_troubles(tmp_path, changes, message):
    make(tmp_path)
    with pytest.raises(Trouble) as caught:
        architecture(tmp_path, **changes)
    assert str(caught.value) == message


def test_an_unknown_family_is_told_the_known_ones(tmp_path):
    make(tmp_path)
    with pytest.raises(Trouble) as caught:
        architecture(tmp_path, model_type="bert")
    assert caught.value.hints == ("llmtrace runs llama",)


# --- tensors


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_the_tensors_of_transformers_are_expected(tmp_path, tied, bias):
    from transformers import LlamaConfig, LlamaForCausalLM

    make(tmp_path, tied=tied, attention_bias=bias, mlp_bias=bias, head_size=12)
    checkpoint = Checkpoint.open(tmp_path)
    found = Architecture.of(checkpoint)
    found.check(checkpoint)
    theirs = LlamaForCausalLM(LlamaConfig.from_pretrained(tmp_path)).state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in theirs.items()}
    if tied:
        del shapes["lm_head.weight"]
    assert found.tensor_shapes() == shapes


def check(folder, **changes):
    checkpoint = changed(folder, **changes)
    Architecture.of(checkpoint).check(checkpoint)


def test_tensor_troubles(tmp_path):
    make(tmp_path, tied=True)
    with pytest.raises(Trouble) as caught:
        check(tmp_path, tie_word_embeddings=False)
    assert str(caught.value) == f"no tensor 'lm_head.weight' in '{tmp_path}'"
    assert caught.value.hints == ("its config.json asks for one of shape [259, 64]",)
    with pytest.raises(Trouble) as caught:
        check(tmp_path, tie_word_embeddings=True, intermediate_size=100)
    assert str(caught.value) == (
        f"tensor 'model.layers.0.mlp.gate_proj.weight' of '{tmp_path}'"
        " has shape [96, 64], expected [100, 64]"
    )
    with pytest.raises(Trouble) as caught:
        check(tmp_path, intermediate_size=96, num_hidden_layers=1)
    assert str(caught.value) == (
        f"tensor 'model.layers.1.input_layernorm.weight' of '{tmp_path}'"
        " has no meaning for 'llama' with this config.json"
    )


def test_a_tied_model_may_store_its_table_twice(tmp_path):
    from safetensors.torch import load_file

    from checkpoints import write_tensors

    make(tmp_path, tied=True)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    write_tensors(tmp_path, tensors)
    check(tmp_path)
    tensors["lm_head.weight"][5, 5] += 1
    write_tensors(tmp_path, tensors)
    with pytest.raises(
        Trouble, match=r"^tensor 'lm_head.weight' of '.*' has no meaning for 'llama'"
    ):
        check(tmp_path)
