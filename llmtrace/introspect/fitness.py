"""Fitness: how many of a float32's bits are right, block by block.

F = clip(-log2(|y - y64| / |y64|) / 24, 0, 1), the norms over a row, or over what is sampled of it:
the share of the significand's 24 bits that is right (Panchekha et al., PLDI 2015; normwise error,
Higham 2002). Local: y64 is what the block should have made of its recorded inputs, in float64,
with the same stored weights and the contract's angles. Of a linear layer 16 outputs are made
again, of attention 2 heads; which ones is drawn from the probe seed, so fixed before the run.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from llmtrace.blocks.block import Rows
from llmtrace.introspect import wide
from llmtrace.probes import exact
from llmtrace.probes.records import philox, probe_seed

if TYPE_CHECKING:
    import numpy as np

    from llmtrace.blocks.block import Block, Matrix
    from llmtrace.blocks.weights import Weights
    from llmtrace.engine.inside import Inside
    from llmtrace.engine.request import Request
    from llmtrace.engine.trace import Model

SIGNIFICAND = 24
"""Bits of a float32."""
TRUSTED = 0.9
"""Least fitness of what is not marked untrusted."""
OUTPUTS, HEADS = 16, 2
LAYER_BLOCKS = (
    *("ln1", "qkv", "rope_q", "rope_k", "attn", "o_proj", "resid_add1"),
    *("ln2", "gate_up", "act", "down_proj", "resid_add2"),
)
"""Blocks of a layer whose outputs are points, in the order in which they run."""
OTHERS = ("embed", "ln_final", "unembed")


def fitness(got: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Gives F of each row: got (..., n), expected (..., n) f64. A zero row is right or not."""
    import numpy as np

    off = got - expected
    error, size = exact.total(off * off), exact.total(expected * expected)
    usable = (error > 0) & (size > 0)
    bits = exact.log2(np.where(usable, error, 1.0) / np.where(usable, size, 1.0)) / -2.0
    found = np.where(error == 0, 1.0, np.where(usable, bits / SIGNIFICAND, 0.0))
    return np.asarray(np.minimum(np.maximum(found, 0.0), 1.0))


@dataclass(frozen=True)
class _Shape:
    """What is the same for all runs of a model."""

    table: Matrix
    column: dict[str, int]
    """Of each point in ``digests.bin``."""
    linear: dict[str, list[Block]]
    """The linear blocks of each kind, by layer."""
    gains: dict[str, np.ndarray]
    """(L, C) f32 of the norms of layers."""


_shapes: WeakKeyDictionary[Weights, _Shape] = WeakKeyDictionary()


def _shape(model: Model) -> _Shape:
    import numpy as np

    if model.weights not in _shapes:
        made = wide.blocks_of(model)
        linear: dict[str, list[Block]] = {}
        gains: dict[str, list[np.ndarray]] = {}
        for name, block in made.items():
            kind = name.split(".")[-1]
            if block.kernel == "linear_":
                linear.setdefault(kind, []).append(block)
            elif block.kernel == "rms_norm":
                gains.setdefault(kind, []).append(wide.gain(model, block))
        points = [point.name for block in made.values() for point in block.points]
        _shapes[model.weights] = _Shape(
            wide.matrix_of(made["embed"]),
            {name: column for column, name in enumerate(points)},
            linear,
            {name: np.stack(rows) for name, rows in gains.items()},
        )
    return _shapes[model.weights]


class Local:
    """Recomputes every block of a model from the inputs that a run recorded."""

    def __init__(self, model: Model, request: Request) -> None:
        self._model, self._request = model, request
        self._seed = probe_seed(model.id, request.prompt)
        self._shape = _shape(model)
        self.sampled = {kind: self._outputs(each) for kind, each in self._shape.linear.items()}
        """Outputs of the linear blocks that are made again: (L, 16) i64 by kind."""
        points = [f"blocks.{n}.attn.hook_z" for n in range(model.architecture.layer_count)]
        self.heads = self._strata(points, model.architecture.head_count, HEADS)
        """Heads that are: (L, 2) i64."""

    def measure(self, inside: Inside) -> dict[str, np.ndarray]:
        """Gives F by block: (L, N) f64 of those of layers, (1, N) or (1, M) of the others."""
        import numpy as np

        @cache
        def stack(point: str) -> np.ndarray:
            return _stack(inside, point).astype(np.float64)

        found = {"embed": self._embed(inside)}
        for name, point in (("ln1", "hook_resid_pre"), ("ln2", "hook_resid_mid")):
            found[name] = self._norm(stack(point), stack(name + ".hook_normalized"))
        turn = wide.angles(self._model, inside.positions, self._request.run_limit)
        for name in ("q", "k"):
            x, y = stack(f"attn.hook_{name}"), stack(f"attn.hook_rot_{name}")
            heads = x.reshape(*x.shape[:-1], -1, inside.architecture.head_size)
            found[f"rope_{name}"] = fitness(y, wide.rotated(heads, *turn).reshape(y.shape))
        found["attn"] = self._attention(inside)
        for name, (a, b, to) in {
            "resid_add1": ("hook_resid_pre", "hook_attn_out", "hook_resid_mid"),
            "resid_add2": ("hook_resid_mid", "hook_mlp_out", "hook_resid_post"),
        }.items():
            found[name] = fitness(stack(to), stack(a) + stack(b))
        act = silu(stack("mlp.hook_pre")) * stack("mlp.hook_pre_linear")
        found["act"] = fitness(stack("mlp.hook_post"), act)
        found |= self._linear(inside)
        later = inside.positions >= inside.first_pick
        if later.any():
            last = stack("hook_resid_post")[-1:, later]
            found["ln_final"] = self._norm(last, inside.rows["ln_final.hook_normalized"][None])
        return {name: found[name] for name in (*LAYER_BLOCKS, *OTHERS) if name in found}

    @cached_property
    def _placed(self) -> dict[str, wide.Layers]:
        made = self._shape.linear
        return {k: wide.layers(self._model, made[k], rows) for k, rows in self.sampled.items()}

    def _embed(self, inside: Inside) -> np.ndarray:
        tokens = inside.tokens[inside.positions]
        rows = wide.rows_of(self._model, self._shape.table, tokens)
        return fitness(inside.rows["hook_embed"], rows)[None]

    def _norm(self, x: np.ndarray, normalized: np.ndarray) -> np.ndarray:
        import numpy as np

        epsilon = float(self._model.architecture.norm_epsilon)
        scale = np.sqrt(exact.total(x * x) / x.shape[-1] + epsilon)
        return fitness(normalized, x / scale[..., None])

    def _attention(self, inside: Inside) -> np.ndarray:
        """The sampled heads of all layers stand side by side, each with keys of its own."""
        import numpy as np

        a = inside.architecture
        size, share, scale = a.head_size, a.head_count // a.kv_head_count, a.attention_scale()
        parts: dict[str, list[np.ndarray]] = {"keys": [], "values": [], "q": [], "z": []}
        for layer, heads in enumerate(self.heads):
            held = inside.cache(layer, (heads // share).tolist())
            parts["keys"].append(held[0])
            parts["values"].append(held[1])
            for name, point in (("q", "hook_rot_q"), ("z", "hook_z")):
                rows = inside.rows[f"blocks.{layer}.attn.{point}"]
                parts[name].append(rows.reshape(len(rows), -1, size)[:, heads])
        k, v, q, got = (np.concatenate(part, axis=1) for part in parts.values())
        mixes = wide.Mixes(q.astype(np.float64) * float(scale), k, v, inside.positions + 1)
        (made,) = wide.attention(self._model, [mixes])
        by_layer = (len(got), a.layer_count, HEADS * size)
        return fitness(got.reshape(by_layer), made.reshape(by_layer)).T

    def _linear(self, inside: Inside) -> dict[str, np.ndarray]:
        import numpy as np

        asked, got = [], []
        for kind, rows in self.sampled.items():
            asked.append(wide.Outputs(self._placed[kind], self._input(inside, kind)))
            for block, chosen in zip(self._shape.linear[kind], rows, strict=True):
                made = np.concatenate([inside.rows[name] for name in _outputs(block)], axis=-1)
                got.append(made[:, chosen])
        expected = wide.linear(self._model, asked)
        wanted = [y64.reshape(-1, OUTPUTS) for y64 in expected]
        found = fitness(np.concatenate(got), np.concatenate(wanted))  # one pass over all
        parts = np.split(found, np.cumsum([len(rows) for rows in wanted])[:-1])
        shaped = (f.reshape(y64.shape[:2]) for f, y64 in zip(parts, expected, strict=True))
        return dict(zip(self.sampled, shaped, strict=True))

    def _input(self, inside: Inside, kind: str) -> np.ndarray:
        """The rows that linear blocks were fed, to the bit: a norm's product with its gain."""
        import numpy as np

        if kind == "unembed":
            return inside.rows["unembed.hook_in"][None]
        norm = {"qkv": "ln1", "gate_up": "ln2"}.get(kind)
        if norm is None:
            return _stack(inside, {"o_proj": "attn.hook_z", "down_proj": "mlp.hook_post"}[kind])
        gain = self._shape.gains[norm][:, None]
        return np.asarray(_stack(inside, norm + ".hook_normalized") * gain)

    def _outputs(self, each: list[Block]) -> np.ndarray:
        """Draws 16 outputs of each block, one from each sixteenth of them: (L, 16)."""
        points = [_outputs(block) for block in each]
        width = sum(points[0].values())
        return self._strata([next(iter(names)) for names in points], width, OUTPUTS)

    def _strata(self, points: list[str], width: int, count: int) -> np.ndarray:
        """Draws for each point one index from each of ``count`` equal parts: (L, count)."""
        import numpy as np

        begin = np.array([width * s // count for s in range(count + 1)], np.int64)
        column = np.array([self._shape.column[point] for point in points], np.uint64)
        call, column = np.meshgrid(np.arange(-(-count // 4), dtype=np.uint64), column)
        # the last word keeps these draws apart from the probes' own
        four = philox((call, column, np.uint64(0), np.uint64(2)), self._seed)
        drawn = np.stack(four, axis=-1).reshape(len(points), -1)[:, :count]
        words = drawn * np.diff(begin).astype(np.uint64)
        return begin[:-1] + (words >> np.uint64(32)).astype(np.int64)


def silu(x: np.ndarray) -> np.ndarray:
    """The SiLU, x / (1 + exp(-x)), in f64."""
    return x / (1.0 + exact.exp(-x))


def _outputs(block: Block) -> dict[str, int]:
    """The points that a linear block writes, in order, and their widths: not those it reads."""
    y = block.args[0]
    assert isinstance(y, Rows)
    return {p.name: p.rows.width for p in block.points if p.rows.buffer == y.buffer}


def _stack(inside: Inside, point: str) -> np.ndarray:
    """The rows of a point of every layer: (L, N, width) f32."""
    import numpy as np

    names = [f"blocks.{layer}.{point}" for layer in range(inside.architecture.layer_count)]
    if point == "hook_resid_pre":
        names = ["hook_embed", *(f"blocks.{n}.hook_resid_post" for n in range(len(names) - 1))]
    return np.stack([inside.rows[name] for name in names])
