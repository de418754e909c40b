"""Probe records by plain numpy, as design and kernels lay them out: an oracle, and random runs."""

from __future__ import annotations

import numpy as np

from llmtrace.probes.records import Seen
from llmtrace.probes.stretch import Shape

F16 = 65504.0


def shape(layers: int = 2, heads: int = 3, d: int = 16, ff: int = 24, vocab: int = 40) -> Shape:
    widths = {"ln1.hook_scale": 1, "ln1.hook_normalized": d, "attn.hook_q": d, "attn.hook_k": d}
    widths |= {"attn.hook_v": d, "attn.hook_rot_q": d, "attn.hook_rot_k": d, "attn.hook_z": d}
    widths |= {"hook_attn_out": d, "hook_resid_mid": d, "ln2.hook_scale": 1}
    widths |= {"ln2.hook_normalized": d, "mlp.hook_pre": ff, "mlp.hook_pre_linear": ff}
    widths |= {"mlp.hook_post": ff, "hook_mlp_out": d, "hook_resid_post": d}
    inner = [("hook_embed", d)]
    inner += [(f"blocks.{i}.{n}", w) for i in range(layers) for n, w in widths.items()]
    outer = [("ln_final.hook_scale", 1), ("ln_final.hook_normalized", d)]
    outer += [("unembed.hook_in", d), ("unembed.hook_out", vocab)]
    return Shape(tuple(inner), tuple(outer), layers, heads)


def record(x: np.ndarray) -> np.ndarray:
    """The exact words of a row, without samples and sketches: (32,) u32."""
    x = x.astype(np.float64)
    words, n = np.zeros(32, np.uint32), len(x)
    square, size = x * x, np.abs(x)
    s2 = square.sum()
    share = square / s2 if s2 else square
    live = share[share > 0]
    floats = [np.sqrt(s2 / n), x.mean(), size.sum(), size.max()]
    floats += [(square * square).mean() / (s2 / n) ** 2 if s2 else 0.0]
    floats += [max(0.0, float(-(live * np.log(live)).sum()))]
    words[:6] = np.array(floats, np.float32).view(np.uint32)
    order = np.lexsort((np.arange(n), -size))[:4]
    order = np.concatenate([order, np.zeros(4 - len(order), np.int64)])
    words[6], words[8:12] = order[0], order
    words[12:16] = x[order].astype(np.float32).view(np.uint32)
    bound = 2 * size.sum() / n
    counts = [size < 2.0**-126, size > F16, size < size.max() / 1024, size > bound]
    words[28:32] = [int(c.sum()) for c in counts]
    return words


def head_record(p: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Of weights over the visible positions: (8,) u32."""
    words, at = np.zeros(8, np.uint32), len(p) - 1
    live = p[p > 0]
    floats = [np.log(np.exp(scores).sum()), max(0.0, float(-(live * np.log(live)).sum()))]
    floats += [scores.max(), p[0], p[at], (p * (at - np.arange(at + 1))).sum()]
    words[:6] = np.array(floats, np.float32).view(np.uint32)
    words[6] = int(p.argmax())
    words[7] = np.float32(p[at - 1] if at else 0.0).view(np.uint32)
    return words


def rows(of: Shape, positions: int, seed: int) -> dict[str, np.ndarray]:
    """Random rows of every point, (positions, width) f32: the stream adds up as it should."""
    draw = np.random.default_rng(seed)
    found = {
        name: (draw.standard_t(3, (positions, width)) * draw.uniform(0.1, 3)).astype(np.float32)
        for name, width in (*of.points, *of.picked)
    }
    for i in range(of.layers):
        at = f"blocks.{i}."
        before = found[f"blocks.{i - 1}.hook_resid_post" if i else "hook_embed"]
        found[at + "hook_resid_mid"] = before + found[at + "hook_attn_out"]
        found[at + "hook_resid_post"] = found[at + "hook_resid_mid"] + found[at + "hook_mlp_out"]
        found[at + "mlp.hook_post"][draw.uniform(size=found[at + "mlp.hook_post"].shape) < 0.1] = 0
    return found


def run(of: Shape, positions: int, drew: int, seed: int = 0) -> tuple[Seen, dict[str, np.ndarray]]:
    """What probes would see of random rows, and the rows; patterns under ``patterns``."""
    draw = np.random.default_rng(seed + 1000)
    values = rows(of, positions, seed)
    points = np.stack([[record(values[n][t]) for n, _ in of.points] for t in range(positions)])
    late = range(positions - drew, positions)
    picked = np.stack([[record(values[n][t]) for n, _ in of.picked] for t in late])
    heads = np.zeros((positions, of.layers, of.heads, 8), np.uint32)
    patterns = np.zeros((positions, of.layers, of.heads, positions))
    for t, layer, head in np.ndindex(heads.shape[:3]):
        scores = draw.normal(size=t + 1) * 3
        p = np.exp(scores) / np.exp(scores).sum()
        heads[t, layer, head] = head_record(p, scores)
        patterns[t, layer, head, : t + 1] = p
    drawn = np.zeros((drew, 4), np.uint32)
    floats = np.stack([-draw.exponential(2, drew), draw.exponential(2, drew)], axis=1)
    drawn[:, :2] = floats.astype(np.float32).view(np.uint32)
    drawn[:, 2] = draw.normal(size=drew).astype(np.float32).view(np.uint32)
    drawn[:, 3] = draw.integers(0, 3, drew)
    tokens = draw.integers(0, 5, positions)
    seen = Seen(np.arange(positions), tokens, points, picked, heads, drawn)
    return seen, {**values, "patterns": patterns}


def cut(seen: Seen, ends: list[int]) -> list[Seen]:
    """The same in pieces that end at these positions and at the last."""
    found, begin, inner = [], 0, len(seen.positions) - len(seen.drawn)
    for end in [*ends, len(seen.positions)]:
        late = slice(max(begin - inner, 0), max(end - inner, 0))
        here = slice(begin, end)
        found.append(
            Seen(
                seen.positions[here],
                seen.tokens[here],
                seen.points[here],
                seen.picked[late],
                seen.heads[here],
                seen.drawn[late],
            )
        )
        begin = end
    return found
