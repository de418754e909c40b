"""The plan: the launches of all blocks of a model, for one version on one device.

A plan owns the weights, the arena (one buffer a name, shared by all layers), the KV cache
and the captured steps. One step feeds up to ``rows`` tokens of any sequences; what they are
stands in small arrays that the kernels read, so one capture serves prefill, decode and replay.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmtrace.blocks.block import Block, Cache, Input, Matrix, Point, Rows, Stride, Vector
from llmtrace.blocks.llama import blocks, chunks
from llmtrace.blocks.weights import Weights, padded
from llmtrace.device.device import Array, Device, Launch, Step
from llmtrace.errors import Trouble

if TYPE_CHECKING:
    from collections.abc import Sequence

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
    ) -> None:
        self.checkpoint, self.architecture, self.device, self.limits = (
            checkpoint,
            architecture,
            device,
            limits,
        )
        self.blocks = blocks(architecture)
        self.points = [point for block in self.blocks for point in block.points]
        self.keep = tuple(keep)
        self.probes = probes
        self._weights = weights
        self._buffers: dict[str, Array] = {}
        self._strides: dict[str, int] = {}
        self._lay_out()
        self._inputs = self._make_inputs()
        a, shape = (
            architecture,
            (architecture.layer_count, limits.tiles, architecture.kv_head_count),
        )
        self._cache = {
            "keys": device.zeros((*shape, a.head_size, TILE), "<f4"),
            "values": device.zeros((*shape, TILE, 32 * chunks(a.head_size)), "<f4"),
        }
        self.digests = device.zeros((limits.rows, len(self.points), 8), "<u4")
        self.flaws = device.zeros((limits.rows, len(self.points)), "|u1")
        self.records = device.zeros((limits.rows, a.layer_count, RECORD_WORDS), "<u4")
        self.kept = {
            p.name: device.zeros((limits.rows, p.rows.width), "<f4")
            for p in self.points
            if p.name in self.keep
        }
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
        import numpy as np

        rows, picks = len(feed["token"]), len(feed["pick"])
        for name, values in feed.items():
            self.device.write(self._inputs[name], values)
        self.device.write(self._inputs["count"], np.array([rows, picks], np.int32))
        size = self._small if max(rows, picks) <= self._small else self.limits.rows
        self._steps[size].run(self._weights.nbytes * rows)

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

    def _lay_out(self) -> None:
        for point in self.points:
            if point.rows.width > WIDEST:
                raise Trouble(f"rows of '{point.name}' have more than {WIDEST} values")
        for block in self.blocks:
            for rows in (arg for arg in block.args if isinstance(arg, Rows)):
                width = rows.column + rows.width
                self._strides[rows.buffer] = max(
                    self._strides.get(rows.buffer, 0), 1 if width == 1 else padded(width)
                )
        for name, stride in self._strides.items():
            count = self.limits.picks if name == "logits" else self.limits.rows
            self._buffers[name] = self.device.zeros((count, stride), "<f4")

    def _make_inputs(self) -> dict[str, Array]:
        limits, zeros = self.limits, self.device.zeros
        made = {
            name: zeros((limits.rows,), "<i4") for name in ("token", "position", "tile0", "table")
        }
        made["probe_seed"] = zeros((limits.rows,), "<u8")
        kinds = {"pick": "<i4", "temperature": "<f4", "top_k": "<i4", "top_p": "<u8", "seed": "<u8"}
        made |= {name: zeros((limits.picks,), kind) for name, kind in kinds.items()}
        made["drawn.token"] = zeros((limits.picks,), "<i4")
        made["drawn.logprob"] = zeros((limits.picks,), "<f4")
        made["drawn.weight"] = zeros((limits.picks, self.architecture.vocab_size), "<u4")
        made["frequency"] = zeros((limits.tables, self.architecture.head_size // 2), "<f4")
        made["factor"] = zeros((limits.tables,), "<f4")
        made["count"] = zeros((2,), "<i4")
        made["fed"], made["picked"] = made["count"][:1], made["count"][1:]
        return made

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

    def _launch(self, block: Block, rows: int) -> Launch:
        kernel = block.kernel
        if kernel.endswith("_"):
            kernel += self._weights.suffix(
                next(arg for arg in block.args if isinstance(arg, Matrix))
            )
        count = min(rows, self.limits.picks) if block.which == "picked" else rows
        return Launch(kernel, tuple(map(self._resolve, block.args)), block.items * count)

    def _resolve(self, arg: Any) -> Any:
        match arg:
            case Matrix():
                return self._weights.matrix(arg)
            case Vector():
                return self._weights.vector(arg)
            case Rows():
                return self._buffers[arg.buffer].reshape(-1)[arg.column :]
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
