"""Invariants of what is computed value by value: embedding, norms, rotation, activation, sums."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from llmtrace.introspect.invariants import arithmetic, levels
from llmtrace.introspect.invariants.bounds import EXP, U, norm_scale
from llmtrace.introspect.invariants.case import BITS

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

    from llmtrace.introspect.invariants.case import Case, Invariant

TINY = 2.0**-126
"""Below it float32 has no full significand."""


class Norm(NamedTuple):
    """An RMS norm: its block, the name its points begin with, what it reads, its gain."""

    block: str
    point: str
    x: np.ndarray
    gain: str


def norms(case: Case) -> Iterator[Norm]:
    """All norms, in the order in which they run."""
    for layer in case.layers:
        block, point, tensor = f"layers.{layer}.", f"blocks.{layer}.", f"model.layers.{layer}."
        pre, mid = case.rows(case.stream(layer)), case.rows(point + "hook_resid_mid")
        yield Norm(block + "ln1", point + "ln1", pre, tensor + "input_layernorm.weight")
        yield Norm(block + "ln2", point + "ln2", mid, tensor + "post_attention_layernorm.weight")
    last = case.rows(case.stream(case.architecture.layer_count))
    picked = last[len(last) - len(case.picked) :]
    yield Norm("ln_final", "ln_final", picked, "model.norm.weight")


def gained(case: Case, point: str, gain: str) -> np.ndarray:
    """What a norm hands on, (N, C) f32: the normalised row times the gain, as the kernel does."""
    made: np.ndarray = case.rows(point + ".hook_normalized") * case.weight(gain)
    return made


def embedding(case: Case) -> Invariant:
    """The residual stream begins with the table's row of the token that was fed."""
    tally = case.tally("embedding", BITS)
    tokens = case.inside.tokens[case.inside.positions]
    table = case.weight("model.embed_tokens.weight", tokens)
    got = case.rows("hook_embed")
    tally.equal("embed", "hook_embed", case.inside.positions, got, table)
    return tally.result()


def residual(case: Case) -> Invariant:
    """resid_mid = resid_pre + attn_out and resid_post = resid_mid + mlp_out."""
    tally = case.tally("residual stream", BITS)
    for layer in case.layers:
        point, at = f"blocks.{layer}.", case.inside.positions
        pre, mid = case.rows(case.stream(layer)), case.rows(point + "hook_resid_mid")
        post = case.rows(point + "hook_resid_post")
        attn, mlp = case.rows(point + "hook_attn_out"), case.rows(point + "hook_mlp_out")
        tally.equal(f"layers.{layer}.resid_add1", point + "hook_resid_mid", at, mid, pre + attn)
        tally.equal(f"layers.{layer}.resid_add2", point + "hook_resid_post", at, post, mid + mlp)
    return tally.result()


def scales(case: Case) -> Invariant:
    """The scale of each norm is the root of the mean square plus epsilon."""
    tally = case.tally("norm scale", BITS)
    for norm in norms(case):
        point = norm.point + ".hook_scale"
        wanted = arithmetic.norm_scale(norm.x, case.architecture.norm_epsilon)
        tally.equal(norm.block, point, case.at(point), case.rows(point)[:, 0], wanted)
    return tally.result()


def normalised(case: Case) -> Invariant:
    """Each row is divided by its scale; what the last norm hands on is that times the gain."""
    import numpy as np

    tally = case.tally("normalised rows", BITS)
    for norm in norms(case):
        point = norm.point + ".hook_normalized"
        with np.errstate(all="ignore"):
            wanted = norm.x / case.rows(norm.point + ".hook_scale")
        tally.equal(norm.block, point, case.at(point), case.rows(point), wanted)
    wanted = gained(case, "ln_final", "model.norm.weight")
    got = case.rows("unembed.hook_in")
    tally.equal("ln_final", "unembed.hook_in", case.picked, got, wanted)
    return tally.result()


def mean_square(case: Case) -> Invariant:
    """The mean square of a normalised row is 1, less the share that epsilon has of the scale."""
    import numpy as np

    epsilon = float(case.architecture.norm_epsilon)
    tally = case.tally(
        "mean square of normalised rows",
        "(m + 10 + tiles) u of 1 - epsilon/scale^2, m = min(32, C/32)",
    )
    for norm in norms(case):
        point = norm.point + ".hook_normalized"
        row = np.asarray(case.rows(point), np.float64)
        scale, relative = norm_scale(norm.x, epsilon)
        # 1 - epsilon / scale^2, without the cancellation
        wanted = (norm.x.astype(np.float64) ** 2).mean(axis=1) / scale**2
        bound = 2.01 * (relative + U) * wanted + TINY
        tally.within(norm.block, point, case.at(point), (row**2).mean(axis=1), wanted, bound)
    return tally.result()


def rotation(case: Case) -> Invariant:
    """Queries and keys are turned by the angles of their position."""
    import numpy as np

    a, at = case.architecture, case.inside.positions
    limit = case.claim.request.run_limit
    # One float32 product: an angle is defined by its rounding (contract point 8).
    angle = at.astype(np.float32)[:, None] * a.inverse_frequencies(limit)[None, :]
    factor = float(a.rope_attention_factor(limit))
    cosine, sine = (f(angle.astype(np.float64))[:, None] * factor for f in (np.cos, np.sin))
    tally = case.tally("rotary embedding", "4.01 u (|a cos| + |b sin|)")
    for layer in case.layers:
        for letter, count in (("q", a.head_count), ("k", a.kv_head_count)):
            point = f"blocks.{layer}.attn.hook_rot_{letter}"
            shape = (len(at), count, 2, -1)
            x = case.rows(f"blocks.{layer}.attn.hook_{letter}").astype(np.float64).reshape(shape)
            got = case.rows(point).astype(np.float64).reshape(shape)
            first, second = x[:, :, 0], x[:, :, 1]
            wanted = (first * cosine - second * sine, second * cosine + first * sine)
            size = (
                np.abs(first * cosine) + np.abs(second * sine),
                np.abs(second * cosine) + np.abs(first * sine),
            )
            bound = 4.01 * U * np.stack(size, axis=2) + TINY * U
            block = f"layers.{layer}.rope_{letter}"
            tally.within(block, point, at, got, np.stack(wanted, axis=2), bound)
    return tally.result()


def activation(case: Case) -> Invariant:
    """The activation is silu(gate) times up."""
    import numpy as np

    tally = case.tally("activation", "(1.79 + 3.02) u |silu(gate) up|")
    for layer in case.layers:
        point, block = f"blocks.{layer}.mlp.hook_", f"layers.{layer}.act"
        gate = case.rows(point + "pre").astype(np.float64)
        up = case.rows(point + "pre_linear").astype(np.float64)
        with np.errstate(over="ignore"):
            wanted = gate / (1 + np.exp(-gate)) * up
        # where exp(-gate) is beyond float32, silu is below 2^-120
        bound = (EXP + 3.02 * U) * np.abs(wanted) + 2.0**-120 * np.abs(up) + TINY * U
        got = case.rows(point + "post")
        tally.within(block, point + "post", case.inside.positions, got, wanted, bound)
    return tally.result()


def cache(case: Case) -> Invariant:
    """The KV cache holds at each position that was looked at what was appended there."""
    tally = case.tally("KV cache", BITS)
    a, at = case.architecture, case.inside.positions
    for layer in case.layers:
        shape = (len(at), a.kv_head_count, a.head_size)
        for rows, letter in zip(case.inside.cache(layer), ("rot_k", "v"), strict=True):
            point = f"blocks.{layer}.attn.hook_{letter}"
            wanted = case.rows(point).reshape(shape)
            if case.model.version.cache_bits == 8:
                wanted = levels.row(wanted)
            tally.equal(f"layers.{layer}.kv_append", point, at, rows[at], wanted)
    return tally.result()
