"""The plan: the launches of all blocks of a model, for one version on one device.

A plan owns the weights, the arena (one buffer a name, shared by all layers), the KV cache
and the captured steps. One step feeds up to ``rows`` tokens of any sequences; what they are
stands in small arrays that the kernels read, so one capture serves prefill, decode and replay.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmtrace.blocks import quantized
from llmtrace.blocks.arrays import PROBES, SCALES, TILE, Limits, arrays, strides
from llmtrace.blocks.block import Block, Cache, Input, Matrix, Point, Rows, Stride, Vector, makers
from llmtrace.blocks.llama import blocks
from llmtrace.blocks.probing import Probing
from llmtrace.blocks.variants import Ways, trial, variants
from llmtrace.blocks.versions import ACCURACY, Version
from llmtrace.device.device import Array, Device, Launch, Step
from llmtrace.device.timing import microseconds
from llmtrace.errors import Trouble
from llmtrace.probes.commitment import group

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np

    from llmtrace.blocks.choices import Choices
    from llmtrace.blocks.weights import Weights
    from llmtrace.model.architecture import Architecture
    from llmtrace.model.checkpoint import Checkpoint

SIZES = (4, 16, 64)
"""Rows of the steps that are captured, beside the most, each at its first use.

Grids and variants are made for a size."""
TRIED_US = 20_000.0
"""Time after which two measurements of variants are enough."""
READ, BEHIND = 32, {"cpu": 256, "cuda": 2048}
"""When variants are tried: rows of which points are read, and positions in the cache.

A GPU has time for more, and one of its variants is for many."""
POINTS = "points"
"""What reads points, among the names of what a step launches."""
WIDEST = 1 << 20
"""Most floats of a row that is digested (``kernels/blake3.cu``)."""


class Plan:
    """Runs steps of one model on one device; the same object serves a run and its replay."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        architecture: Architecture,
        device: Device,
        weights: Weights,
        choices: Choices,
        limits: Limits,
        *,
        version: Version = ACCURACY,
        probes: int = PROBES,
        keep: Sequence[str] = (),
        leaves: bool = False,
        digests: bool = True,
    ) -> None:
        self.checkpoint, self.architecture, self.device, self.limits = (
            checkpoint,
            architecture,
            device,
            limits,
        )
        self.version, self.blocks = version, blocks(architecture)
        self.points = [point for block in self.blocks for point in block.points]
        self.inner = sum(point.which == "fed" for point in self.points)  # the others come after
        self.makers = makers(self.blocks)
        for point in self.points:
            if point.rows.width > WIDEST:
                raise Trouble(f"rows of '{point.name}' have more than {WIDEST} values")
        self.groups = tuple(group(p.name, architecture.layer_count) for p in self.points)
        self.keep = tuple(keep)
        self.probes, self.leaves, self.digests = probes, leaves, digests
        self._weights, self._choices = weights, choices
        self._strides = strides(self.blocks)
        placed = {
            part: {name: device.zeros(*shape, stays=True) for name, shape in shapes.items()}
            for part, shapes in arrays(
                architecture, limits, self.keep, probes, device.threads, version
            ).items()
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
        self._room = placed["room"]
        self.results, self.kept, self._looked = (
            placed["results"],
            placed["kept"],
            placed["looked"],
        )
        self._probing = Probing(self, probes, digests=digests)
        self._sizes = [*(size for size in SIZES if size < limits.rows), limits.rows]
        self._steps: dict[int, Step] = {}
        self._look: Step | None = None
        self._place()

    def _place(self) -> None:
        """Puts all weights on the device, as its version wants them."""
        for block in self.blocks:
            bits = self.version.bits(block) if block.kernel == "linear_" else 0
            for arg in block.args:
                if isinstance(arg, Matrix) and bits:
                    self._weights.quantized(arg, bits)
                elif isinstance(arg, Matrix | Vector):
                    self.resolve(arg)

    @property
    def nbytes(self) -> int:
        """Bytes of all weights as stored."""
        return self._weights.nbytes

    def step(self, feed: dict[str, np.ndarray]) -> None:
        """Feeds tokens: runs every block on them, digests and probes included.

        ``feed``: token, position, tile0, table (T,) i32 and probe_seed (T,) u64 for each row;
        pick (M,) i32, temperature (M,) f32, top_k (M,) i32, top_p, seed (M,) u64 for each row
        whose logits are wanted. Results stay in ``results``, ``kept`` and ``tokens()`` until the
        next step: digests, flaws, and where there are probes records, heads and drawn.
        """
        size = next(n for n in self._sizes if max(len(feed["token"]), len(feed["pick"])) <= n)
        if size not in self._steps:  # before anything is written: trying variants spoils the arena
            self._steps[size] = self.device.capture(self._launches(size))
        rows, _ = self._write(feed)
        self._steps[size].run(self._weights.nbytes * rows)

    def look(self, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Feeds tokens again, at most ``looked``: their sequences stand in the cache already.

        No bit changes. ``feed`` as in ``step``. Gives every point's rows by name: (T or M, width)
        f32; the results stay as after a step. Probes are of format 2.
        """
        if self._look is None:
            rows = min(self.limits.looked, self.limits.rows)
            self._look = self.device.capture(self._launches(rows, looks=True))
        rows, picks = self._write(feed)
        self._look.run(self._weights.nbytes * rows)
        found = {}
        for point in self.points:
            count = picks if point.which == "picked" else rows
            found[point.name] = self.device.download(self._looked[point.name][:count])
        return found

    def alone(self, feed: dict[str, np.ndarray], block: Block) -> dict[str, np.ndarray]:
        """Executes one block by itself, from copies of its inputs: one launch for one token.

        ``feed`` as in ``step``, of one token whose logits are wanted; all before it were fed.
        What stands before the block is run to make its inputs. Gives every buffer of the
        arena that the block writes (width,) f32, and ``token`` and ``logprob`` (1,) if it draws.
        """
        rows, _ = self._write(feed)
        before = self.blocks[: self.blocks.index(block)]
        made = [launch for b in before for launch in self.launches(b, rows)]
        self.device.capture(made).run(self._weights.nbytes)
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
        self.device.capture(self.launches(block, rows, mine)).run(0)
        found = {n: self.device.download(mine[n])[0, : _end(written[n])] for n in written}
        if block.kernel == "sample":
            found |= {name: self.device.download(array) for name, array in drawn.items()}
        return found

    def _write(self, feed: dict[str, np.ndarray]) -> tuple[int, int]:
        """Tells the kernels what is fed; gives the numbers of rows and of picks."""
        rows, picks = len(feed["token"]), len(feed["pick"])
        for name, values in feed.items():
            self.device.write(self._inputs[name], values)
        self.pretend(rows, picks)
        return rows, picks

    def pretend(self, rows: int, picks: int) -> None:
        """Sets how many rows are fed and how many of them are picked, whatever they hold."""
        import numpy as np

        self.device.write(self._inputs["count"], np.array([rows, picks], np.int32))

    def set_table(self, index: int, frequencies: np.ndarray, factor: np.float32) -> None:
        """Sets a rotary table: (D/2,) f32 inverse frequencies and the attention factor."""
        import numpy as np

        self.device.write(self._inputs["frequency"][index : index + 1], frequencies.reshape(1, -1))
        self.device.write(self._inputs["factor"][index : index + 1], np.array([factor], np.float32))

    def tokens(self, picks: int) -> tuple[np.ndarray, np.ndarray]:
        """Gives what the sampler chose at each pick: tokens (M,) i32 and logprobs (M,) f32."""
        token, logprob = self._inputs["drawn.token"], self._inputs["drawn.logprob"]
        return self.device.download(token[:picks]), self.device.download(logprob[:picks])

    def cached(
        self, layer: int, tile0: int, positions: int, groups: list[int] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Reads the KV cache of a sequence: keys, values (positions, G, D) f32 of a layer.

        ``groups``: of these alone, in their order.
        """
        tiles = slice(tile0, tile0 + -(-positions // TILE))

        def read(kind: str) -> np.ndarray:
            held = self._cache[kind][layer][tiles]
            return self.device.download(held if groups is None else held[:, groups])

        keys, values = read("keys"), read("values")
        count, size = keys.shape[1], keys.shape[3]  # (tiles, G, TILE / KEYS, D, KEYS)
        keys = keys.transpose(0, 1, 2, 4, 3).reshape(-1, count, TILE, size)
        if self.version.cache_bits == 8:
            by_key, by_value = map(read, SCALES)
            keys = keys.astype("f4") * by_key[..., None]
            values = values.astype("f4") * by_value[..., None]
        flat, rows = (
            held[..., :size].transpose(0, 2, 1, 3).reshape(-1, count, size)[:positions]
            for held in (keys, values)
        )
        return flat.copy(), rows.copy()

    def copy_cache(self, source: int, tile0: int, positions: int) -> None:
        """Copies the KV cache of a sequence's first positions, from tile ``source`` on.

        ``tile0``, where it goes, is before ``source`` or behind what is copied.
        """
        tiles, apart = -(-positions // TILE), abs(tile0 - source)
        for begin in range(0, tiles, apart) if apart else ():  # none onto one still to be copied
            end = min(begin + apart, tiles)
            for layers in self._cache.values():
                for layer in layers:
                    to, of = (layer[at + begin : at + end] for at in (tile0, source))
                    self.device.copy(to, of)

    def units(self, rows: int, *, looks: bool = False) -> Iterator[tuple[str, list[Launch]]]:
        """Gives what a step launches, in order, in the plainest way: blocks by their names.

        What reads points is called ``points``.
        """
        waiting: list[Point] = []  # read together at the end of a layer
        for block in self.blocks:
            yield block.name, self.launches(block, rows)
            copies = self._looked if looks else self.kept
            read = [self._copy(p, rows, copies) for p in block.points if p.name in copies]
            read += self._probing.after(block, rows)
            for launch in read:
                yield POINTS, [launch]
            waiting += block.points
            if block.name.endswith("resid_add2") or block.name == "unembed":
                yield POINTS, [*self._probing.points(waiting, rows)]
                waiting = []

    def _launches(self, rows: int, *, looks: bool = False) -> list[Launch]:
        units = self.units(rows, looks=looks)
        return [launch for _, unit in units for launch in self.chosen(unit, rows)]

    def ways(self, launches: Sequence[Launch], rows: int) -> Ways:
        """Gives the variants of what computes a block or reads points, by name."""
        return variants(launches, rows, self._room, self.device)

    def chosen(self, launches: Sequence[Launch], rows: int) -> list[Launch]:
        """Gives the fastest variant of what computes a block or reads points."""

        def tried() -> dict[str, float]:
            return self._times(self.ways(trial(launches, rows, self.device), rows), rows)

        return self._choices.take(self.ways(launches, rows), rows, tried)

    def _times(self, ways: Ways, rows: int) -> dict[str, float]:
        """Says how many microseconds each variant takes, as if a prompt went on; spoils the arena.

        Reading points takes the more time the more rows there are: some of them will do.
        """
        import numpy as np

        reads = any(launch.kernel == "blake3" for launch in next(iter(ways.values())))
        fed = min(rows, READ) if reads else rows
        end = min(self.limits.tiles * TILE, BEHIND["cpu" if self.device.threads else "cuda"])
        position = np.clip(np.arange(end - fed, end, dtype=np.int32), 0, None)
        self.device.write(self._inputs["position"], position)
        self.device.write(self._inputs["tile0"], np.zeros(fed, np.int32))
        self.pretend(fed, min(fed, self.limits.picks))
        for held in (layer[: -(-end // TILE)] for each in self._cache.values() for layer in each):
            self.device.copy(held, held)  # what nobody wrote yet may be read faster than memory
        work = self._weights.nbytes * fed
        taken = microseconds(self.device, [*ways.values()], work=work, most=TRIED_US)
        return dict(zip(ways, taken, strict=True))

    def launches(
        self, block: Block, rows: int, arena: dict[str, Array] | None = None
    ) -> list[Launch]:
        """Gives what computes a block in a step of so many rows, in the plainest way there is.

        ``arena``: other memory for its rows than the plan's own.
        """
        bits = self.version.bits(block)
        if block.kernel != "linear_" or not bits:
            return [self._launch(block, rows, arena)]
        y, w, x, bias, count, n, k, ldy, _, ldx = block.args
        args = [self.resolve(arg, arena) for arg in (y, x, bias, count, n, k, ldy, ldx)]
        assert isinstance(w, Matrix)
        return quantized.linear(args, self._weights.quantized(w, bits), self._room, self.device)

    def _launch(self, block: Block, rows: int, arena: dict[str, Array] | None = None) -> Launch:
        kernel = block.kernel
        if kernel.endswith("_"):
            kernel += self._weights.suffix(
                next(arg for arg in block.args if isinstance(arg, Matrix))
            )
        count = min(rows, self.limits.picks) if block.which == "picked" else rows
        args = tuple(self.resolve(arg, arena) for arg in block.args)
        caches = [n for n, arg in enumerate(block.args) if isinstance(arg, Cache)]
        if caches and self.version.cache_bits == 8:
            behind, layer = caches[-1] + 1, int(block.name.split(".")[1])
            scales = (self._cache[name][layer] for name in SCALES)
            args = (*args[:behind], *scales, *args[behind:])
            kernel = "kv_append8" if kernel == "kv_append" else kernel.replace("_", "8_")
        if arena is None and kernel.startswith("attention"):
            kernel, args = self._probing.attention(block, kernel, args)
        return Launch(kernel, args, block.items * count)

    def resolve(self, arg: Any, arena: dict[str, Array] | None = None) -> Any:
        """Gives what stands for a symbolic argument of a block: an array or a number."""
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

    def stride(self, rows: Rows) -> int:
        """Floats from row to row of a buffer of the arena."""
        return self._strides[rows.buffer]

    def input(self, name: str) -> Array:
        """Gives an array of inputs, such as ``position`` or ``fed``."""
        return self._inputs[name]

    def _copy(self, point: Point, rows: int, to: dict[str, Array]) -> Launch:
        width, stride = point.rows.width, self._strides[point.rows.buffer]
        args = (
            to[point.name],
            self.resolve(point.rows),
            self._inputs[point.which],
            width,
            width,
            stride,
        )
        return Launch("copy", args, rows * -(-width // 512))


def _end(rows: Rows) -> int:
    return rows.column + rows.width
