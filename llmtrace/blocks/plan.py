"""The plan: the launches of all blocks of a model, for one version on one device.

A plan owns the weights, the arena (one buffer a name, shared by all layers), the KV cache
and the captured steps. One step feeds up to ``rows`` tokens of any sequences; what they are
stands in small arrays that the kernels read, so one capture serves prefill, decode and replay.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmtrace.blocks.block import Block, Cache, Input, Matrix, Point, Rows, Stride, Vector, makers
from llmtrace.blocks.llama import blocks, chunks
from llmtrace.blocks.weights import Weights, padded
from llmtrace.device.device import Array, Device, Launch, Step
from llmtrace.errors import Trouble
from llmtrace.probes.commitment import group

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    import numpy as np

    from llmtrace.model.architecture import Architecture
    from llmtrace.model.checkpoint import Checkpoint

TILE = 128
"""Positions in a tile of the KV cache (``kernels/attention.cu``)."""
SMALL = 16
"""Rows up to which a step counts as decode: a GPU's grids are sized for it."""
WIDEST = 1 << 20
"""Most floats of a row that is digested (``kernels/blake3.cu``)."""
RECORD_WORDS = 32
"""32-bit words of a probe record (``kernels/moments.cu``)."""


@dataclass(frozen=True)
class Limits:
    """What a plan has room for.

    ``rows`` tokens a step, of which ``picks`` may ask for logits; ``tiles`` of KV cache;
    ``tables`` rotary tables.
    """

    rows: int
    picks: int
    tiles: int
    tables: int


Shapes = dict[str, tuple[tuple[int, ...], str]]
"""Arrays of a plan by name: shape and dtype."""


def arrays(a: Architecture, limits: Limits, keep: Collection[str]) -> dict[str, Shapes]:
    """Says what a plan allocates: the arena, inputs, KV cache, results and kept rows."""
    made = blocks(a)
    points = [point for block in made for point in block.points]
    shape = (a.layer_count, limits.tiles, a.kv_head_count)
    rows = limits.rows
    return {
        "arena": {
            name: ((limits.picks if name == "logits" else rows, stride), "<f4")
            for name, stride in _strides(made).items()
        },
        "inputs": _inputs(a, limits),
        "cache": {
            "keys": ((*shape, a.head_size, TILE), "<f4"),
            "values": ((*shape, TILE, 32 * chunks(a.head_size)), "<f4"),
        },
        "results": {
            "digests": ((rows, len(points), 8), "<u4"),
            "flaws": ((rows, len(points)), "|u1"),
            "records": ((rows, a.layer_count, RECORD_WORDS), "<u4"),
        },
        "kept": {p.name: ((rows, p.rows.width), "<f4") for p in points if p.name in keep},
    }


def footprint(a: Architecture, limits: Limits, keep: Collection[str] = ()) -> int:
    """Bytes that a plan allocates beside the weights, known before anything is."""
    return sum(
        math.prod(shape) * int(dtype[-1])
        for shapes in arrays(a, limits, keep).values()
        for shape, dtype in shapes.values()
    )


def _strides(made: Sequence[Block]) -> dict[str, int]:
    """Floats from row to row of each buffer of the arena."""
    strides: dict[str, int] = {}
    for rows in (arg for block in made for arg in block.args if isinstance(arg, Rows)):
        width = rows.column + rows.width
        stride = 1 if width == 1 else padded(width)
        strides[rows.buffer] = max(strides.get(rows.buffer, 0), stride)
    return strides


def _inputs(a: Architecture, limits: Limits) -> Shapes:
    made: Shapes = dict.fromkeys(("token", "position", "tile0", "table"), ((limits.rows,), "<i4"))
    made["probe_seed"] = (limits.rows,), "<u8"
    kinds = {"pick": "<i4", "temperature": "<f4", "top_k": "<i4", "top_p": "<u8", "seed": "<u8"}
    made |= {name: ((limits.picks,), kind) for name, kind in kinds.items()}
    made["drawn.token"] = (limits.picks,), "<i4"
    made["drawn.logprob"] = (limits.picks,), "<f4"
    made["drawn.weight"] = (limits.picks, a.vocab_size), "<u4"
    made["frequency"] = (limits.tables, a.head_size // 2), "<f4"
    made["factor"] = (limits.tables,), "<f4"
    made["count"] = (2,), "<i4"
    return made


class Plan:
    """Runs steps of one model on one device; the same object serves a run and its replay."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        architecture: Architecture,
        device: Device,
        weights: Weights,
        limits: Limits,
        *,
        probes: bool = True,
        keep: Sequence[str] = (),
        leaves: bool = False,
    ) -> None:
        self.checkpoint, self.architecture, self.device, self.limits = (
            checkpoint,
            architecture,
            device,
            limits,
        )
        self.blocks = blocks(architecture)
        self.points = [point for block in self.blocks for point in block.points]
        self.makers = makers(self.blocks)
        for point in self.points:
            if point.rows.width > WIDEST:
                raise Trouble(f"rows of '{point.name}' have more than {WIDEST} values")
        self.groups = tuple(group(p.name, architecture.layer_count) for p in self.points)
        self.keep = tuple(keep)
        self.probes, self.leaves = probes, leaves
        self._weights = weights
        self._strides = _strides(self.blocks)
        placed = {
            part: {name: device.zeros(*shape) for name, shape in shapes.items()}
            for part, shapes in arrays(architecture, limits, self.keep).items()
        }
        self._buffers, self._inputs, self._cache = (
            placed["arena"],
            placed["inputs"],
            placed["cache"],
        )
        self._inputs["fed"], self._inputs["picked"] = (
            self._inputs["count"][:1],
            self._inputs["count"][1:],
        )
        results = placed["results"]
        self.digests, self.flaws, self.records = (
            results["digests"],
            results["flaws"],
            results["records"],
        )
        self.kept = placed["kept"]
        self._small = min(limits.rows, SMALL)
        sizes = {self._small, limits.rows}
        self._steps: dict[int, Step] = {n: device.capture(self._launches(n)) for n in sizes}

    def step(self, feed: dict[str, np.ndarray]) -> None:
        """Feeds tokens: runs every block on them, digests and probes included.

        ``feed``: token, position, tile0, table (T,) i32 and probe_seed (T,) u64 for each row;
        pick (M,) i32, temperature (M,) f32, top_k (M,) i32, top_p, seed (M,) u64 for each row
        whose logits are wanted. Results stay in ``digests``, ``flaws``, ``records``, ``kept``,
        ``tokens()`` until the next step.
        """
        rows, picks = self._write(feed)
        size = self._small if max(rows, picks) <= self._small else self.limits.rows
        self._steps[size].run(self._weights.nbytes * rows)

    def alone(self, feed: dict[str, np.ndarray], block: Block) -> dict[str, np.ndarray]:
        """Executes one block by itself, from copies of its inputs: one launch for one token.

        ``feed`` as in ``step``, of one token whose logits are wanted; all before it were fed.
        What stands before the block is run to make its inputs. Gives every buffer of the
        arena that the block writes (width,) f32, and ``token`` and ``logprob`` (1,) if it draws.
        """
        rows, _ = self._write(feed)
        before = self.blocks[: self.blocks.index(block)]
        self.device.capture([self._launch(b, rows) for b in before]).run(self._weights.nbytes)
        written = {arg.buffer: arg for arg in block.outputs if isinstance(arg, Rows)}
        named = {arg.buffer for arg in block.args if isinstance(arg, Rows)}
        mine = {
            name: self.device.zeros((1, self._strides[name]), "<f4")
            if name in written
            else self.device.upload(self.device.download(self._buffers[name][:1]))
            for name in named
        }
        drawn = {name: self._inputs["drawn." + name][:1] for name in ("token", "logprob")}
        for array in drawn.values():
            self.device.write(array, self.device.download(array) * 0)
        self.device.capture([self._launch(block, rows, mine)]).run(0)
        found = {n: self.device.download(mine[n])[0, : _end(written[n])] for n in written}
        if block.kernel == "sample":
            found |= {name: self.device.download(array) for name, array in drawn.items()}
        return found

    def _write(self, feed: dict[str, np.ndarray]) -> tuple[int, int]:
        """Tells the kernels what is fed; gives the numbers of rows and of picks."""
        import numpy as np

        rows, picks = len(feed["token"]), len(feed["pick"])
        for name, values in feed.items():
            self.device.write(self._inputs[name], values)
        self.device.write(self._inputs["count"], np.array([rows, picks], np.int32))
        return rows, picks

    def set_table(self, index: int, frequencies: np.ndarray, factor: np.float32) -> None:
        """Sets a rotary table: (D/2,) f32 inverse frequencies and the attention factor."""
        import numpy as np

        self.device.write(self._inputs["frequency"][index : index + 1], frequencies.reshape(1, -1))
        self.device.write(self._inputs["factor"][index : index + 1], np.array([factor], np.float32))

    def tokens(self, picks: int) -> tuple[np.ndarray, np.ndarray]:
        """Gives what the sampler chose at each pick: tokens (M,) i32 and logprobs (M,) f32."""
        token, logprob = self._inputs["drawn.token"], self._inputs["drawn.logprob"]
        return self.device.download(token[:picks]), self.device.download(logprob[:picks])

    def no_records(self) -> np.ndarray:
        """Gives (0, L, 32) u32: the probe records of a plan without probes."""
        import numpy as np

        return np.zeros((0, self.architecture.layer_count, RECORD_WORDS), np.uint32)

    def _launches(self, rows: int) -> list[Launch]:
        found: list[Launch] = []
        waiting: list[Point] = []  # digested together at the end of a layer
        for block in self.blocks:
            found.append(self._launch(block, rows))
            waiting += block.points
            for point in block.points:
                if point.name in self.kept:
                    found.append(self._copy(point, rows))
                if self.probes and point.name.endswith(".hook_resid_post"):
                    found.append(self._moments(point, rows))
            if block.name.endswith("resid_add2") or block.name == "unembed":
                found.append(self._digest(waiting, rows))
                waiting = []
        return found

    def _launch(self, block: Block, rows: int, arena: dict[str, Array] | None = None) -> Launch:
        kernel = block.kernel
        if kernel.endswith("_"):
            kernel += self._weights.suffix(
                next(arg for arg in block.args if isinstance(arg, Matrix))
            )
        count = min(rows, self.limits.picks) if block.which == "picked" else rows
        args = tuple(self._resolve(arg, arena) for arg in block.args)
        return Launch(kernel, args, block.items * count)

    def _resolve(self, arg: Any, arena: dict[str, Array] | None = None) -> Any:
        match arg:
            case Matrix():
                return self._weights.matrix(arg)
            case Vector():
                return self._weights.vector(arg)
            case Rows():
                return (arena or self._buffers)[arg.buffer].reshape(-1)[arg.column :]
            case Input():
                return self._inputs[arg.name]
            case Cache():
                return self._cache[arg.kind][arg.layer]
            case Stride(of=Rows() as rows):
                return self._strides[rows.buffer]
            case Stride(of=Matrix() as matrix):
                return int(self._weights.matrix(matrix).shape[1])
            case _:
                return arg

    def _digest(self, points: list[Point], rows: int) -> Launch:
        import numpy as np

        which = points[0].which
        table = np.array(
            [
                (
                    self.device.address(self._resolve(p.rows)),
                    self._strides[p.rows.buffer],
                    p.rows.width,
                    self.points.index(p),
                )
                for p in points
            ],
            np.uint64,
        )
        placed = self.device.upload(table)
        args = (
            self.digests,
            self.flaws,
            placed,
            self._inputs[which],
            len(points),
            len(self.points),
        )
        return Launch("blake3", args, rows * len(points))

    def _moments(self, point: Point, rows: int) -> Launch:
        layer = int(point.name.split(".")[1])
        stride = self._strides[point.rows.buffer]
        fed = (self._inputs["probe_seed"], self._inputs["position"], self._inputs["fed"])
        record = self.records.reshape(-1)[layer * RECORD_WORDS :]
        sizes = (
            point.rows.width,
            self.architecture.layer_count * RECORD_WORDS,
            stride,
            self.points.index(point),
        )
        return Launch("moments", (record, self._resolve(point.rows), *fed, *sizes), rows)

    def _copy(self, point: Point, rows: int) -> Launch:
        width, stride = point.rows.width, self._strides[point.rows.buffer]
        args = (
            self.kept[point.name],
            self._resolve(point.rows),
            self._inputs[point.which],
            width,
            width,
            stride,
        )
        return Launch("copy", args, rows * -(-width // 512))


def _end(rows: Rows) -> int:
    return rows.column + rows.width
