"""What a version costs on a device and what it gives: whole, and block by block beside the floors.

Times and ceilings are measured here and now. Accuracy is that of a text that the model itself
tells, the same for all versions: of a block against float64 from the same inputs, of the whole
against a pass in float64.
"""

from __future__ import annotations

import math
import re
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmtrace.blocks.block import Cache
from llmtrace.blocks.choices import subject
from llmtrace.blocks.plan import POINTS
from llmtrace.device.device import Launch
from llmtrace.device.timing import microseconds
from llmtrace.engine.evidence import Claim
from llmtrace.engine.feed import feed
from llmtrace.engine.request import Request, Sampling
from llmtrace.engine.sequence import Sequence
from llmtrace.engine.trace import Done, trace
from llmtrace.introspect.cost import Traffic, cache_bytes, read_bandwidth, traffic
from llmtrace.introspect.fitness import SIGNIFICAND, Local, fitness
from llmtrace.introspect.forward import propagate
from llmtrace.introspect.inside import look
from llmtrace.probes.records import WORDS
from llmtrace.probes.scheme import NONE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import numpy as np

    from llmtrace.blocks.block import Block
    from llmtrace.blocks.plan import Plan
    from llmtrace.engine.inside import Inside
    from llmtrace.engine.trace import Model

ROUNDS = 3
"""Measurements of a variant, of which the least counts, and of a step, of which the median does."""
CEILING_US = 20_000.0
"""Time that a measurement of a ceiling takes at least."""
NEAR_CPU, NEAR_GPU = 1 << 15, 16 << 20
"""Bytes that are read again and again to find how fast what is near can be read."""
FLOATS, INTEGERS = 640, 6144
"""Operations of an item and a step of ``kernels/ceiling.cu``."""
DIGEST = 32
"""Bytes."""
SAME_TIME, SAME_BITS = 1.05, 0.5
"""What no measurement can tell apart."""


@dataclass(frozen=True)
class Size:
    """A step: so many sequences of which each feeds so many tokens."""

    name: str
    sequences: int
    tokens: int

    @property
    def rows(self) -> int:
        """Tokens that are fed."""
        return self.sequences * self.tokens


def sizes(batch: int, length: int) -> tuple[Size, ...]:
    """The steps that are measured: one token, one of several sequences, a prompt."""
    return Size("token", 1, 1), Size("batch", batch, 1), Size("prompt", 1, length)


@dataclass(frozen=True)
class Ceilings:
    """What a device can do in a second."""

    read: float
    """Bytes, as many as the weights have."""
    near: float
    """Bytes that are near: a core's first cache, a GPU's last one."""
    floats: float
    """Operations in float32."""
    integers: float
    """Operations in integers of 8 bits."""

    @classmethod
    def measure(cls, plan: Plan) -> Ceilings:
        """Measures a device, as large as a plan's weights are."""
        threads = plan.device.threads
        near = read_bandwidth(plan, NEAR_CPU) * threads if threads else 0.0
        near = near or read_bandwidth(plan, NEAR_GPU)
        operations = (_operations(plan, name) for name in ("float", "integer"))
        return cls(read_bandwidth(plan), near, *operations)

    def floor(self, needed: Traffic, *, integers: bool) -> float:
        """Microseconds that so much takes at least."""
        most = self.integers if integers else self.floats
        parts = needed.held / self.read, needed.moved / self.near, needed.operations / most
        return max(parts) * 1e6


def _operations(plan: Plan, kind: str) -> float:
    import numpy as np

    device, items, steps = plan.device, 4096, 1000
    count = device.upload(np.array([items], np.int32))
    if kind == "float":
        arrays, each = [device.upload(np.full((12, 32), 0.5, np.float32))], FLOATS
    else:
        shapes, each = ((64, 4), (12, 4)), INTEGERS
        arrays = [device.upload(np.ones(shape, np.int8)) for shape in shapes]
    args = (device.zeros((items,), "<f4" if kind == "float" else "<i4"), *arrays, count, steps)
    launches = [[Launch(f"ceiling_{kind}", args, items)]]
    taken = microseconds(device, launches, work=1 << 40, rounds=ROUNDS, least=CEILING_US)
    return items * steps * each / taken[0] * 1e6


def told(model: Model, length: int) -> Request:
    """Gives a text of the model's own, drawn at temperature 1, as a run to be replayed."""
    first = model.architecture.bos_token or 0
    request = Request((first,), length, Sampling(1.0, 0, 1 << 32, 0))
    plan = model.plan([request], probes=0, digests=False)
    done = next(e for e in trace(model, plan, [request]) if isinstance(e, Done))
    return Request((first,), length, request.sampling, forced=done.trace.output)


def accuracy(model: Model, text: Request) -> dict[str, Any]:
    """Compares a version with float64: ``kl`` and ``same_top`` as spreads, bits by block."""
    import numpy as np

    assert text.forced
    level = ("length", "stats", ())
    claim = Claim(model.id, model.version.name, text, text.forced, *level, scheme=NONE)
    inside = look(model, claim)
    whole = propagate(model, inside, text.run_limit)
    blocks = Local(model, text).measure(inside) | {"kv_append": _cached(inside)}
    return {
        "kl": vars(whole.kl),
        "same_top": vars(whole.same_top),
        "blocks": {name: SIGNIFICAND * float(np.mean(each)) for name, each in blocks.items()},
    }


def _cached(inside: Inside) -> np.ndarray:
    """F of what the KV cache holds of the keys and values that were put there."""
    import numpy as np

    found = []
    for layer in range(inside.architecture.layer_count):
        for cached, point in zip(inside.cache(layer), ("hook_rot_k", "hook_v"), strict=True):
            rows = inside.rows[f"blocks.{layer}.attn.{point}"]
            held = cached[inside.positions].reshape(rows.shape)
            found.append(fitness(held, rows.astype(np.float64)))
    return np.stack(found)


@dataclass(frozen=True)
class Unit:
    """What is measured together: the blocks of one kind, or what reads points."""

    name: str
    launches: list[list[Launch]]
    needed: Traffic
    integers: bool


class Bench:
    """Measures the steps of one model in one version."""

    def __init__(self, model: Model, asked: tuple[Size, ...], ceilings: Ceilings | None) -> None:
        self.model, prompt = model, asked[-1]
        first = (model.architecture.bos_token or 0,)
        requests = [Request(first * prompt.tokens, 2)] * max(size.sequences for size in asked)
        self._plan = model.plan(requests, chunk=prompt.tokens)
        most = self._plan.limits.tables  # as many as there is memory for
        self.sizes = [Size(s.name, min(s.sequences, most), s.tokens) for s in asked]
        tiles = self._plan.limits.tiles // most
        self._sequences = [
            Sequence(n, each, n * tiles, [*each.prompt, *first], 0, fed=prompt.tokens)
            for n, each in enumerate(requests[:most])
        ]
        a, limit = model.architecture, requests[0].run_limit
        for n in range(most):
            table = a.inverse_frequencies(limit), a.rope_attention_factor(limit)
            self._plan.set_table(n, *table)
        self.ceilings = ceilings or Ceilings.measure(self._plan)

    def memory(self) -> dict[str, int]:
        """Bytes of the weights on the device, and of a position in the KV cache."""
        layers = self.model.architecture.layer_count
        return {
            "weights_bytes": self.model.weights.held,
            "cache_bytes": layers * cache_bytes(self.model),
        }

    def measure(self, heed: Callable[[], object]) -> Iterator[dict[str, Any]]:
        """Measures each size: the whole step, and its blocks. ``heed`` is called between blocks."""
        for size in self.sizes:
            step = self._step(size)
            units = []
            for unit in self._units(size):
                units.append(self._unit(unit, size))
                heed()
            floor = sum(unit["floor_us"] * unit["calls"] for unit in units)
            yield {
                "size": size.name,
                "sequences": size.sequences,
                "rows": size.rows,
                "us": step,
                "floor_us": round(floor, 3),
                "tokens_s": round(size.rows / step * 1e6, 2),
                "blocks": units,
            }

    def _step(self, size: Size) -> float:
        """Microseconds of a whole step; what it was fed stays."""
        for sequence in self._sequences:
            sequence.fed = len(sequence.request.prompt) if size.tokens == 1 else 0
        share = [(sequence, size.tokens) for sequence in self._sequences[: size.sequences]]
        fed, taken = feed(share, {n: n for n in range(len(share))}), []
        for _ in range(ROUNDS + 1):
            start = time.perf_counter_ns()
            self._plan.step(fed)
            taken.append((time.perf_counter_ns() - start) / 1000)
        return round(statistics.median(taken[1:]), 3)

    def _units(self, size: Size) -> list[Unit]:
        """The kinds of blocks of a step, in order, and last what reads points."""
        named = {block.name: block for block in self._plan.blocks}
        kinds: dict[str, list[list[Launch]]] = {}
        first: dict[str, Block | None] = {}
        for name, launches in self._plan.units(size.rows):
            kind = re.sub(r"^layers\.\d+\.", "", name)
            kinds.setdefault(kind, []).append(launches)
            first.setdefault(kind, named.get(name))
        kinds[POINTS] = kinds.pop(POINTS)
        return [
            Unit(kind, launches, self._traffic(first[kind], size), self._integers(first[kind]))
            for kind, launches in kinds.items()
        ]

    def _traffic(self, block: Block | None, size: Size) -> Traffic:
        """What one block of a step has to do, or all that reads points."""
        if block is None:
            each = sum(4 * p.rows.width + 4 * WORDS + DIGEST for p in self._plan.points)
            return Traffic(0, each * size.rows, 0)
        last = len(self._sequences[0].request.prompt) - (size.tokens > 1)
        if block.which == "picked" or not _is_of_sequences(block):
            count = size.sequences if block.which == "picked" else size.rows
            return traffic(self.model, block, last, count)
        one = traffic(self.model, block, last, size.tokens)
        return Traffic(*(size.sequences * each for each in one))

    def _integers(self, block: Block | None) -> bool:
        return bool(block and block.kernel == "linear_" and self.model.version.bits(block))

    def _unit(self, unit: Unit, size: Size) -> dict[str, Any]:
        """Measures one kind of block in all its variants, and takes note of the fastest."""
        plan, calls = self._plan, 1 if unit.name == POINTS else len(unit.launches)
        each = [plan.ways(launches, size.rows) for launches in unit.launches]
        most = max(each, key=len)
        chains = [[x for w in each for x in w.get(name, next(iter(w.values())))] for name in most]
        plan.pretend(size.rows, size.sequences)
        work = plan.nbytes * size.rows
        taken = microseconds(plan.device, chains, work=work, rounds=ROUNDS)
        times = dict(zip(most, (round(us / calls, 3) for us in taken), strict=True))
        if len(times) > 1:
            self.model.choices.learn(subject(most, size.rows), times)
        fastest = min(times, key=lambda name: times[name])
        floor = self.ceilings.floor(unit.needed, integers=unit.integers)
        return {
            "block": unit.name,
            "kernel": most[fastest][-1].kernel,
            "calls": calls,
            "bytes": unit.needed.nbytes,
            "operations": unit.needed.operations,
            "us": times[fastest],
            "floor_us": round(floor, 3),
            "variant": fastest,
            "variants": times,
        }


def _is_of_sequences(block: Block) -> bool:
    """Says whether a block reads or writes what each sequence has of its own."""
    return any(isinstance(arg, Cache) for arg in block.args)


def compare(
    place: Callable[[str], Model],
    versions: Iterable[str],
    asked: tuple[Size, ...],
    text: int,
    heed: Callable[[], object],
) -> list[dict[str, Any]]:
    """Measures versions, one after the other, and marks what none of the others beats.

    ``place`` puts the model on the device in a version; ``text``: tokens that are compared with
    float64, 0 for none. ``heed`` is called between blocks and may raise.
    """
    found: list[dict[str, Any]] = []
    ceilings, words = None, None
    for name in versions:
        start = time.perf_counter()
        model = place(name)
        bench = Bench(model, asked, ceilings)
        taken, ceilings, memory = time.perf_counter() - start, bench.ceilings, bench.memory()
        if text:
            words = words or told(model, text)
        given = accuracy(model, words) if words else None
        bits = given.pop("blocks") if given else {}
        found.append(
            {
                "numerics": name,
                "ceilings": {key: round(value) for key, value in vars(ceilings).items()},
                "place_s": round(taken, 3),
                **memory,
                "accuracy": given,
                "sizes": [*bench.measure(heed)],
            }
        )
        for unit in (unit for size in found[-1]["sizes"] for unit in size["blocks"]):
            unit["bits"] = bits.get(unit["block"])
        del model, bench  # its weights make room for the next one's
    _mark(found)
    return found


def _mark(found: list[dict[str, Any]]) -> None:
    """Says of each version, size by size and block by block, whether no other beats it."""
    for n, size in enumerate(found[0]["sizes"]):
        whole = [each["sizes"][n] for each in found]
        costs = [
            (own["us"], _bits(each["accuracy"]), each["weights_bytes"])
            for own, each in zip(whole, found, strict=True)
        ]
        for own, is_front in zip(whole, front(costs), strict=True):
            own["front"] = is_front
        for k in range(len(size["blocks"])):
            units = [own["blocks"][k] for own in whole]
            same = front((u["us"], u["bits"] or 0.0, u["bytes"]) for u in units)
            for unit, is_front in zip(units, same, strict=True):
                unit["front"] = is_front


def _bits(given: dict[str, Any] | None) -> float:
    """The accuracy of a whole version: bits by which its mean KL is below one nat."""
    return -math.log2(max(given["kl"]["mean"], 2.0**-53)) if given else 0.0


def front(costs: Iterable[tuple[float, float, float]]) -> list[bool]:
    """Says of each (time, bits, bytes) whether none is better: the Pareto front.

    Better is what is no worse in any and really better in one: times within 5 % are the same, and
    bits within a half.
    """
    every = [*costs]

    def beats(one: tuple[float, float, float], other: tuple[float, float, float]) -> bool:
        (us, bits, nbytes), (their_us, their_bits, their_bytes) = one, other
        if us > SAME_TIME * their_us or bits < their_bits - SAME_BITS or nbytes > their_bytes:
            return False
        return SAME_TIME * us < their_us or bits > their_bits + SAME_BITS or nbytes < their_bytes

    return [not any(beats(other, each) for other in every) for each in every]
