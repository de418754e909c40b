"""Machines with one silent fault each: wrong numbers, none of them NaN, no sign of trouble.

A machine is the real plan on the real kernels, a launch at a time: a fault changes what a launch
is given, what stands in memory before or after it, or leaves it out. The faults are seeded: layer,
position, head and bit of each are drawn once.
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from llmtrace.blocks.block import Matrix, Vector
from llmtrace.blocks.plan import Plan

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from llmtrace.blocks.block import Block
    from llmtrace.blocks.variants import Ways
    from llmtrace.device.device import Launch

LAYERS, HEADS, GROUPS, SIZE = 3, 4, 2, 16  # of the model that the faults are made for
PROMPT, OUTPUT = 14, 10
SEED = 29


class Fault:
    """Does nothing; ``blocks`` are those that may be named for it, the first that differ."""

    blocks: tuple[str, ...] = ()
    sampled = False
    """Whether it shows only where tokens are drawn."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.layer = int(rng.integers(LAYERS))
        self.position = int(rng.integers(2, PROMPT + OUTPUT - 2))
        self.head = int(rng.integers(HEADS - 1))
        self.blocks = tuple(self.at(name) for name in type(self).blocks)

    def at(self, name: str) -> str:
        return name.replace("*", f"layers.{self.layer}")

    def alter(self, machine: Machine, block: Block, launch: Launch) -> Launch | None:
        return launch

    def before(self, machine: Machine, block: Block) -> None: ...

    def after(self, machine: Machine, block: Block) -> None: ...


class Machine(Plan):
    fault: Fault

    def __init__(
        self, checkpoint: Any, architecture: Any, device: Any, *args: Any, **options: Any
    ) -> None:
        self.blocks_of: dict[int, tuple[Block, Launch]] = {}
        self.steps = 0
        super().__init__(checkpoint, architecture, _Stepping(device, self), *args, **options)

    def _launch(self, block: Block, *args: Any) -> Launch:
        launch = super()._launch(block, *args)
        self.blocks_of[id(launch)] = block, launch
        return launch

    def place(self, what: Matrix | Vector) -> np.ndarray:
        """The array of some weights on the device."""
        held = self._weights
        return held.matrix(what) if isinstance(what, Matrix) else held.vector(what)

    def arg(self, name: str) -> np.ndarray:
        return self._inputs[name]

    def rows(self, buffer: str) -> np.ndarray:
        """The rows of a buffer that are fed in this step."""
        which = "picked" if buffer == "logits" else "fed"
        return self._buffers[buffer][: int(self._inputs[which][0])]

    def row(self, position: int) -> int | None:
        """The row of this step that a position has, if it is fed and another stands before it."""
        fed = int(self._inputs["fed"][0])
        found = np.flatnonzero(self._inputs["position"][:fed] == position)
        return int(found[0]) if len(found) else None

    def ways(self, launches: Sequence[Launch], rows: int) -> Ways:
        """No variants: each block is one launch."""
        return {"only": [*launches]}

    def run(self, launch: Launch, device: Any) -> None:
        block = self.blocks_of.get(id(launch), (None, None))[0]
        if block is None:  # a probe, a digest, a copy
            device.capture([launch]).run(1 << 40)
            return
        self.fault.before(self, block)
        altered = self.fault.alter(self, block, launch)
        if altered is not None:
            device.capture([altered]).run(1 << 40)
        self.fault.after(self, block)


class _Stepping:
    """A device that runs a step launch by launch, through the machine."""

    def __init__(self, device: Any, machine: Machine) -> None:
        self._device, self._machine = device, machine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device, name)

    def capture(self, launches: Sequence[Launch]) -> Any:
        return _Steps(self._device, self._machine, list(launches))


class _Steps:
    def __init__(self, device: Any, machine: Machine, launches: list[Launch]) -> None:
        self._device, self._machine, self._launches = device, machine, launches

    def run(self, work: int) -> None:
        for launch in self._launches:
            self._machine.run(launch, self._device)
        self._machine.steps += 1


@contextlib.contextmanager
def machine(fault: Fault) -> Iterator[None]:
    """All runs meanwhile are made by a machine with this fault."""
    with pytest.MonkeyPatch.context() as patch:
        plan = type("Plan", (Machine,), {"fault": fault})
        patch.setattr("llmtrace.engine.trace.Plan", plan)
        yield


def swap(launch: Launch, old: Any, new: Any) -> Launch:
    """The launch with another argument."""
    args = tuple(new if arg is old else arg for arg in launch.args)
    assert any(arg is old for arg in launch.args)
    return dataclasses.replace(launch, args=args)


def with_arg(launch: Launch, index: int, new: Any) -> Launch:
    args = list(launch.args)
    args[index] = new
    return dataclasses.replace(launch, args=tuple(args))


# Weights


class Flip(Fault):
    """A bit of a weight, flipped after the first step of the run."""

    tensors: tuple[str, ...]
    bit: int

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__(rng)
        self.where = float(rng.random())
        self.is_done = False

    def before(self, machine: Machine, block: Block) -> None:
        if machine.steps and not self.is_done:
            self.is_done = True
            names = tuple(f"model.layers.{self.layer}.{name}" for name in self.tensors)
            what = Vector(names) if "norm" in names[0] else Matrix(names)
            flat = machine.place(what).reshape(-1)
            bits = flat.view(f"<u{flat.dtype.itemsize}")
            bits[int(self.where * (len(bits) - 32))] ^= 1 << self.bit


class ExponentBit(Flip):
    blocks = ("*.gate_up",)
    tensors = ("mlp.gate_proj.weight", "mlp.up_proj.weight")
    bit = 9


class MantissaBit(Flip):
    blocks = ("*.o_proj",)
    tensors = ("self_attn.o_proj.weight",)
    bit = 0


class GainBit(Flip):
    blocks = ("*.ln2",)
    tensors = ("post_attention_layernorm.weight",)
    bit = 16


class SwappedWeights(Fault):
    """Two layers have each other's down_proj."""

    blocks = ("*.down_proj",)

    def alter(self, machine: Machine, block: Block, launch: Launch) -> Launch | None:
        if block.name != self.at("*.down_proj"):
            return launch
        other = (self.layer + 1) % LAYERS
        name = f"model.layers.{other}.mlp.down_proj.weight"
        return with_arg(launch, 1, machine.place(Matrix((name,))))


class DroppedBias(Fault):
    blocks = ("*.qkv",)

    def alter(self, machine: Machine, block: Block, launch: Launch) -> Launch | None:
        return with_arg(launch, 3, None) if block.name == self.at("*.qkv") else launch


class TruncatedSum(Fault):
    """The last 32 of a row are not added."""

    blocks = ("*.down_proj",)

    def alter(self, machine: Machine, block: Block, launch: Launch) -> Launch | None:
        if block.name != self.blocks[0]:
            return launch
        return with_arg(launch, 6, launch.args[6] - 32)


# Cache and attention


class StaleKeys(Fault):
    """A row of the cache was not written: it is that of the position before."""

    blocks = ("*.kv_append",)
    kind = "keys"

    def after(self, machine: Machine, block: Block) -> None:
        if block.name == self.blocks[0] and machine.row(self.position) is not None:
            cache = machine._cache[self.kind][self.layer][0]  # (G, 4, D, 32) or (G, 128, W)
            if self.kind == "keys":
                cache = cache.transpose(1, 3, 0, 2)  # a view: (4, 32, G, D)
                here, before = (divmod(at, 32) for at in (self.position, self.position - 1))
                cache[here] = cache[before]
            else:
                cache[:, self.position] = cache[:, self.position - 1]


class StaleValues(StaleKeys):
    kind = "values"


class OtherValue(Fault):
    """Attention reads the value of another position; the cache is as it should be afterwards."""

    blocks = ("*.attn",)

    def before(self, machine: Machine, block: Block) -> None:
        if block.name == self.blocks[0]:
            values = machine._cache["values"][self.layer][0]
            self.kept = values[:, 1].copy()
            values[:, 1] = values[:, 0]

    def after(self, machine: Machine, block: Block) -> None:
        if block.name == self.blocks[0]:
            machine._cache["values"][self.layer][0][:, 1] = self.kept


class WrongGroup(Fault):
    """Each head reads the keys and values of the next group."""

    blocks = ("*.attn",)

    def alter(self, machine: Machine, block: Block, launch: Launch) -> Launch | None:
        if block.name != self.blocks[0]:
            return launch
        arrays = [arg for arg in launch.args if isinstance(arg, np.ndarray)]
        caches = [arg for arg in arrays if arg.ndim > 3]  # (tiles, G, …)
        assert len(caches) == 2
        for cache in caches:
            launch = swap(launch, cache, np.roll(cache, 1, axis=1))
        return launch


class Mask(Fault):
    """One key too many is seen, or one too few."""

    blocks = ("*.attn",)
    step = 1

    def alter(self, machine: Machine, block: Block, launch: Launch) -> Launch | None:
        if block.name != self.blocks[0]:
            return launch
        position = machine.arg("position")
        return swap(launch, position, np.maximum(position + np.int32(self.step), 0))


class MaskShort(Mask):
    step = -1


class WrongScale(Fault):
    """1 / d for 1 / sqrt(d)."""

    blocks = ("*.attn",)

    def alter(self, machine: Machine, block: Block, launch: Launch) -> Launch | None:
        if block.name != self.blocks[0]:
            return launch
        return with_arg(launch, len(launch.args) - 1, np.float32(1 / SIZE))


class Swapped(Fault):
    """Two heads change places."""

    def exchange(self, rows: np.ndarray) -> None:
        one, two = (slice(SIZE * h, SIZE * h + SIZE) for h in (self.head, self.head + 1))
        rows[:, one], rows[:, two] = rows[:, two].copy(), rows[:, one].copy()


class SwappedInQ(Swapped):
    blocks = ("*.qkv",)

    def after(self, machine: Machine, block: Block) -> None:
        if block.name == self.blocks[0]:
            self.exchange(machine.rows("qkv"))


class SwappedInZ(Swapped):
    blocks = ("*.attn",)

    def after(self, machine: Machine, block: Block) -> None:
        if block.name == self.blocks[0]:
            self.exchange(machine.rows("z"))


class SwappedBeforeO(Swapped):
    blocks = ("*.o_proj",)

    def before(self, machine: Machine, block: Block) -> None:
        if block.name == self.blocks[0]:
            self.exchange(machine.rows("z"))


# Positions


class RopeOfOne(Fault):
    """One token is turned as if it stood a position later."""

    blocks = ("layers.0.rope_q",)

    def alter(self, machine: Machine, block: Block, launch: Launch) -> Launch | None:
        if block.kernel != "angles":
            return launch
        position = machine.arg("position")
        return swap(launch, position, position + (position == self.position))


class RopeOfAll(Fault):
    blocks = ("layers.0.rope_q",)

    def alter(self, machine: Machine, block: Block, launch: Launch) -> Launch | None:
        if block.kernel != "angles":
            return launch
        position = machine.arg("position")
        return swap(launch, position, position + np.int32(1))


class RopeBase(Fault):
    """Base 500000 for 10000."""

    blocks = ("layers.0.rope_q",)

    def alter(self, machine: Machine, block: Block, launch: Launch) -> Launch | None:
        if block.kernel != "angles":
            return launch
        rate = machine.arg("frequency")
        base = 500000.0 ** (-np.arange(0, SIZE, 2) / SIZE)
        return swap(launch, rate, np.tile(base.astype("<f4"), (len(rate), 1)))


# Layers and blocks left out


class SkippedLayer(Fault):
    """The residual stream passes a layer by."""

    @property
    def prefix(self) -> str:
        return f"layers.{self.layer}."

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__(rng)
        self.blocks = (self.prefix + "ln1",)

    def alter(self, machine: Machine, block: Block, launch: Launch) -> Launch | None:
        return None if block.name.startswith(self.prefix) else launch

    def after(self, machine: Machine, block: Block) -> None:
        if block.name == self.prefix + "resid_add2":
            here, there = f"resid{self.layer % 2}", f"resid{(self.layer + 1) % 2}"
            machine.rows(there)[...] = machine.rows(here)


class Skipped(Fault):
    """Blocks are left out: their outputs are what stood there."""

    names: tuple[str, ...]

    def alter(self, machine: Machine, block: Block, launch: Launch) -> Launch | None:
        return None if block.name in {self.at("*." + name) for name in self.names} else launch


class SkippedAttention(Skipped):
    blocks, names = ("*.attn",), ("attn",)


class SkippedMlp(Skipped):
    blocks, names = ("*.gate_up",), ("gate_up", "act", "down_proj")


class SkippedAdd(Skipped):
    blocks, names = ("*.resid_add1",), ("resid_add1",)


# Norms


class Epsilon(Fault):
    blocks = ("*.ln1",)
    value = 1e-6

    def alter(self, machine: Machine, block: Block, launch: Launch) -> Launch | None:
        if block.name != self.blocks[0]:
            return launch
        return with_arg(launch, len(launch.args) - 1, np.float32(self.value))


class LargeEpsilon(Epsilon):
    value = 1e-3


class NormOfOtherRow(Fault):
    """The norm of one position reads the row before it, which another step may have left."""

    blocks = ("*.ln2",)

    def alter(self, machine: Machine, block: Block, launch: Launch) -> Launch | None:
        row = machine.row(self.position)
        if block.name != self.blocks[0] or not row:
            return launch
        x = machine._buffers["mid"].copy()
        x[row] = x[row - 1]
        return with_arg(launch, 3, x)


class InPlace(Fault):
    """A norm writes over what it reads."""

    blocks = ("*.resid_add1", "*.ln1")

    def after(self, machine: Machine, block: Block) -> None:
        if block.name == self.at("*.ln1"):
            machine.rows(f"resid{self.layer % 2}")[...] = machine.rows("norm")


# Values


class Gelu(Fault):
    blocks = ("*.act",)

    def after(self, machine: Machine, block: Block) -> None:
        if block.name == self.blocks[0]:
            act, both = machine.rows("act"), machine.rows("pre").astype(np.float64)
            width = machine.architecture.ff_size
            gate, up = both[:, :width], both[:, width : 2 * width]
            inner = np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)
            act[:, :width] = 0.5 * gate * (1 + np.tanh(inner)) * up


class SwappedGate(Fault):
    blocks = ("*.act",)

    def alter(self, machine: Machine, block: Block, launch: Launch) -> Launch | None:
        if block.name != self.blocks[0]:
            return launch
        return with_arg(with_arg(launch, 1, launch.args[2]), 2, launch.args[1])


class StaleRow(Fault):
    """Gate and up of one position are those of the row before."""

    blocks = ("*.gate_up",)

    def after(self, machine: Machine, block: Block) -> None:
        row = machine.row(self.position)
        if block.name == self.blocks[0] and row:
            both = machine.rows("pre")
            both[row] = both[row - 1]


class WrongToken(Fault):
    """One position is fed the row of another token."""

    blocks = ("embed",)

    def alter(self, machine: Machine, block: Block, launch: Launch) -> Launch | None:
        if block.name != "embed":
            return launch
        token, position = machine.arg("token"), machine.arg("position")
        return swap(launch, token, token ^ (position == self.position))


class HalfStream(Fault):
    """The residual stream is kept in 16 bits."""

    blocks = ("*.resid_add2",)

    def after(self, machine: Machine, block: Block) -> None:
        if block.name == self.blocks[0]:
            rows = machine.rows(f"resid{(self.layer + 1) % 2}")
            rows[...] = rows.astype(np.float16)


class Clamp(Fault):
    """What attention adds saturates."""

    blocks = ("*.o_proj",)

    def after(self, machine: Machine, block: Block) -> None:
        if block.name == self.blocks[0]:
            rows = machine.rows("attn_out")
            np.clip(rows, -1.5, 1.5, out=rows)


# Logits and the sampler


class OtherPick(Fault):
    """Logits are those of the row before."""

    blocks = ("ln_final",)

    def alter(self, machine: Machine, block: Block, launch: Launch) -> Launch | None:
        if block.name != "ln_final":
            return launch
        pick = machine.arg("pick")
        return swap(launch, pick, np.maximum(pick - np.int32(1), 0))


class RolledLogits(Fault):
    """The vocabulary is off by one."""

    blocks = ("unembed",)

    def after(self, machine: Machine, block: Block) -> None:
        if block.name == "unembed":
            rows, width = machine.rows("logits"), machine.architecture.vocab_size
            rows[:, :width] = np.roll(rows[:, :width], 1, axis=1)


class SecondBest(Fault):
    """One token is the second most likely."""

    blocks = ("sample",)

    def after(self, machine: Machine, block: Block) -> None:
        if block.name != "sample":
            return
        position, pick = machine.arg("position"), machine.arg("pick")
        for i, row in enumerate(pick[: int(machine.arg("picked")[0])].tolist()):
            if position[row] == PROMPT + 2:
                width = machine.architecture.vocab_size
                order = np.argsort(machine.rows("logits")[i, :width])
                machine.arg("drawn.token")[i] = order[-2]


class NoTemperature(Fault):
    """Drawn at temperature 1 whatever was asked for."""

    blocks, sampled = ("sample",), True

    def alter(self, machine: Machine, block: Block, launch: Launch) -> Launch | None:
        if block.name != "sample":
            return launch
        heat = machine.arg("temperature")
        return swap(launch, heat, np.ones_like(heat))


class WrongLogprob(Fault):
    """Log-probabilities are at the temperature of the draw, not at 1: here, twice as large."""

    blocks = ("sample",)

    def after(self, machine: Machine, block: Block) -> None:
        if block.name == "sample":
            machine.arg("drawn.logprob")[...] *= np.float32(1 + 2.0**-20)


KINDS: tuple[type[Fault], ...] = (
    *(ExponentBit, MantissaBit, GainBit, SwappedWeights, DroppedBias, TruncatedSum),
    *(StaleKeys, StaleValues, OtherValue, WrongGroup, Mask, MaskShort, WrongScale),
    *(SwappedInQ, SwappedInZ, SwappedBeforeO, RopeOfOne, RopeOfAll, RopeBase),
    *(SkippedLayer, SkippedAttention, SkippedMlp, SkippedAdd),
    *(Epsilon, LargeEpsilon, NormOfOtherRow, InPlace),
    *(Gelu, SwappedGate, StaleRow, WrongToken, HalfStream, Clamp),
    *(OtherPick, RolledLogits, SecondBest, NoTemperature, WrongLogprob),
)


def faults(seed: int = SEED) -> Iterator[Fault]:
    """One of each kind."""
    rng = np.random.default_rng(seed)
    for kind in KINDS:
        yield kind(rng)
