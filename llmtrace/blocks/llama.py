"""The basic blocks of a Llama, in the order in which they run.

Every tensor of the plan that carries a TransformerLens name is a point. Points that are
the same value stand once: ``hook_resid_pre`` of a layer is ``hook_resid_post`` of the one
before (``hook_embed`` for the first).
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from llmtrace.blocks.block import Block, Cache, Input, Matrix, Point, Rows, Stride, Vector, Which
from llmtrace.probes.points import Names

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from llmtrace.model.architecture import Architecture

ATTENTION_CHUNKS = (1, 2, 3, 4, 8)
"""Head sizes that attention is compiled for, in units of 32 (``kernels/attention.cu``)."""


def chunks(head_size: int) -> int:
    """Gives the number of 32-wide chunks that hold a head."""
    return next(c for c in ATTENTION_CHUNKS if 32 * c >= head_size)


@lru_cache(maxsize=4)
def blocks(a: Architecture) -> tuple[Block, ...]:
    """Lists all blocks: ``angles``, ``embed``, those of each layer, ``ln_final``, ``unembed``."""
    half = a.head_size // 2
    angles = (Rows("cosine", half), Rows("sine", half))
    table = Matrix(("model.embed_tokens.weight",))
    stream = _stream(a, 0)
    found = [
        Block(
            "angles",
            "angles",
            (
                *angles,
                Input("position"),
                Input("table"),
                Input("frequency"),
                Input("factor"),
                Input("fed"),
                half,
                Stride(angles[0]),
            ),
            1,
        ),
        Block(
            "embed",
            "embed_",
            (
                stream,
                table,
                Input("token"),
                Input("fed"),
                a.hidden_size,
                Stride(stream),
                Stride(table),
            ),
            1,
            (Point("hook_embed", stream),),
        ),
    ]
    for layer in range(a.layer_count):
        found += _attention(a, layer, angles)
        found += _mlp(a, layer)
    return (*found, *_head(a, table))


def names(a: Architecture) -> Names:
    """Gives what the points are called."""
    return Names(point.name for block in blocks(a) for point in block.points)


def aliases(a: Architecture) -> Mapping[str, str]:
    """Maps names of points that are the same value as another to that other's name."""
    return names(a).aliases


def _stream(a: Architecture, layer: int) -> Rows:
    # Two buffers in turn: the digests of a layer are made before the next one overwrites its input.
    return Rows(f"resid{layer % 2}", a.hidden_size)


def _norm(
    a: Architecture, name: str, point: str, x: Rows, gain: str, which: Which = "fed"
) -> Block:
    y, normalized, scale = (
        Rows("norm", x.width),
        Rows("normalized." + name, x.width),
        Rows("scale." + name, 1),
    )
    pick = Input("pick") if which == "picked" else None
    args = (
        y,
        normalized,
        scale,
        x,
        Vector((gain,)),
        pick,
        Input(which),
        x.width,
        Stride(x),
        a.norm_epsilon,
    )
    points = (
        Point(point + ".hook_scale", scale, which),
        Point(point + ".hook_normalized", normalized, which),
    )
    return Block(_where(point) + name, "rms_norm", args, 1, points, which)


def _where(point: str) -> str:
    layer = point.split(".")[1] if point.startswith("blocks.") else ""
    return f"layers.{layer}." if layer else ""


def _linear(
    name: str,
    y: Rows,
    x: Rows,
    tensors: tuple[str, ...],
    has_bias: bool,
    points: tuple[Point, ...],
    which: Which = "fed",
) -> Block:
    w = Matrix(tuple(t + ".weight" for t in tensors))
    bias = Vector(tuple(t + ".bias" for t in tensors)) if has_bias else None
    args = (y, w, x, bias, Input(which), y.width, x.width, Stride(y), Stride(w), Stride(x))
    return Block(name, "linear_", args, y.width, points, which)


def _attention(a: Architecture, layer: int, angles: tuple[Rows, Rows]) -> Iterator[Block]:
    at, points, tensors = f"layers.{layer}.", f"blocks.{layer}.", f"model.layers.{layer}."
    heads, groups, size = a.head_count, a.kv_head_count, a.head_size
    q_width, kv_width = heads * size, groups * size
    pre, mid = _stream(a, layer), Rows("mid", a.hidden_size)
    norm, z, out = Rows("norm", a.hidden_size), Rows("z", q_width), Rows("attn_out", a.hidden_size)
    whole = Rows("qkv", q_width + 2 * kv_width)
    q, k = Rows("qkv", q_width), Rows("qkv", kv_width, q_width)
    v, rot_q, rot_k = (
        Rows("qkv", kv_width, q_width + kv_width),
        Rows("rot_q", q_width),
        Rows("rot_k", kv_width),
    )
    cosine, sine = angles
    keys, values, fed = Cache("keys", layer), Cache("values", layer), Input("fed")
    where = (Input("position"), Input("tile0"), fed)
    yield _norm(a, "ln1", points + "ln1", pre, tensors + "input_layernorm.weight")
    yield _linear(
        at + "qkv",
        whole,
        norm,
        tuple(f"{tensors}self_attn.{n}_proj" for n in "qkv"),
        a.attention_bias,
        tuple(Point(f"{points}attn.hook_{n}", r) for n, r in (("q", q), ("k", k), ("v", v))),
    )
    for name, to, x, count in (("rope_q", rot_q, q, heads), ("rope_k", rot_k, k, groups)):
        args = (to, x, cosine, sine, fed, count, size // 2, Stride(sine), Stride(to), Stride(x))
        yield Block(
            at + name, "rope", args, count, (Point(f"{points}attn.hook_rot_{name[-1]}", to),)
        )
    wide = 32 * chunks(size)
    append = (keys, values, rot_k, v, *where, groups, size, wide, Stride(rot_k), Stride(v))
    yield Block(at + "kv_append", "kv_append", append, groups * size)
    attend = (
        z,
        rot_q,
        keys,
        values,
        *where,
        heads,
        groups,
        size,
        Stride(z),
        Stride(rot_q),
        a.attention_scale(),
    )
    yield Block(
        at + "attn", f"attention_{chunks(size)}", attend, heads, (Point(points + "attn.hook_z", z),)
    )
    bias = a.attention_bias
    yield _linear(
        at + "o_proj",
        out,
        z,
        (tensors + "self_attn.o_proj",),
        bias,
        (Point(points + "hook_attn_out", out),),
    )
    yield _add(at + "resid_add1", mid, pre, out, points + "hook_resid_mid")


def _mlp(a: Architecture, layer: int) -> Iterator[Block]:
    at, points, tensors = f"layers.{layer}.", f"blocks.{layer}.", f"model.layers.{layer}."
    mid, post = Rows("mid", a.hidden_size), _stream(a, layer + 1)
    norm, out = Rows("norm", a.hidden_size), Rows("mlp_out", a.hidden_size)
    both, gate, up = (
        Rows("pre", 2 * a.ff_size),
        Rows("pre", a.ff_size),
        Rows("pre", a.ff_size, a.ff_size),
    )
    act = Rows("act", a.ff_size)
    yield _norm(a, "ln2", points + "ln2", mid, tensors + "post_attention_layernorm.weight")
    made = (Point(points + "mlp.hook_pre", gate), Point(points + "mlp.hook_pre_linear", up))
    yield _linear(
        at + "gate_up",
        both,
        norm,
        (tensors + "mlp.gate_proj", tensors + "mlp.up_proj"),
        a.mlp_bias,
        made,
    )
    args = (act, gate, up, Input("fed"), a.ff_size, Stride(act), Stride(both))
    yield Block(
        at + "act", "silu_mul", args, -(-a.ff_size // 512), (Point(points + "mlp.hook_post", act),)
    )
    yield _linear(
        at + "down_proj",
        out,
        act,
        (tensors + "mlp.down_proj",),
        a.mlp_bias,
        (Point(points + "hook_mlp_out", out),),
    )
    yield _add(at + "resid_add2", post, mid, out, points + "hook_resid_post")


def _add(name: str, y: Rows, x: Rows, out: Rows, point: str) -> Block:
    args = (y, x, out, Input("fed"), y.width, Stride(y))
    return Block(name, "add", args, -(-y.width // 512), (Point(point, y),))


def _head(a: Architecture, table: Matrix) -> Iterator[Block]:
    last, norm, logits = (
        _stream(a, a.layer_count),
        Rows("norm", a.hidden_size),
        Rows("logits", a.vocab_size),
    )
    yield _norm(a, "ln_final", "ln_final", last, "model.norm.weight", "picked")
    w = table if a.tied else Matrix(("lm_head.weight",))
    args = (
        logits,
        w,
        norm,
        None,
        Input("picked"),
        a.vocab_size,
        a.hidden_size,
        Stride(logits),
        Stride(w),
        Stride(norm),
    )
    points = (Point("unembed.hook_in", norm, "picked"), Point("unembed.hook_out", logits, "picked"))
    yield Block("unembed", "linear_", args, a.vocab_size, points, "picked")
    drawn = [Input("drawn." + name) for name in ("token", "logprob", "weight")]
    asked = [Input(name) for name in ("temperature", "top_k", "top_p", "seed", "pick", "position")]
    sizes = (Input("picked"), a.vocab_size, Stride(logits))
    yield Block("sample", "sample", (*drawn, logits, *asked, *sizes), 1, (), "picked")
