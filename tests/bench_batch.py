"""What batches gain on the CPU: many sequences at a time, and prompts that begin alike.

    python -m tests.bench_batch --work DIR [--rounds 3] [--threads 2] [--numerics accuracy]
        [--probe stats|off] [--sizes 1,2,4,8,16,32,64] [--tokens 24] [--prompt 1000] [--sample]

From the top of the checkout. DIR keeps the weights of a 350M Llama (0.8 GB, made at first use);
with ``--sample`` it is the sample model instead. One JSON line a size of batch, then one for 16
samples of one long prompt; medians over the rounds with the least and the most. In a round the
sizes take turns, so that what else the machine does is done to all.

``tok_s``: tokens of all sequences, from when each has its first to when the first of them ends.
``times_1``: over that of one sequence in the same round. ``shared``: how many times as fast 16
samples are, first to last, as without sharing what their prompts have in common, which is all
but a token of each; ``rows``: the positions that were computed, with sharing and without.
``others_cores``: what other programs used meanwhile; threads wait for each other, so where that
is more than 0.1 quote ``--threads 1``. Probes are as ``run`` has them, unless ``off``, which
still digests.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from llmtrace.blocks.versions import version
from llmtrace.device.compile import kernels_folder
from llmtrace.device.cpu import CpuDevice
from llmtrace.engine.request import Request, Sampling
from llmtrace.engine.trace import Done, Model, Token, trace
from llmtrace.introspect.observer import observing
from llmtrace.model.architecture import Architecture
from llmtrace.model.checkpoint import Checkpoint
from llmtrace.model.registry import sample_folder
from tests import bench_cpu, bench_shape

FEW, SAMPLES, NEW = 8, 16, 16
"""Tokens of a prompt where decoding is measured; samples of one prompt, and tokens of each."""


def requests(model: Model, count: int, prompt: int, new: int, *, alike: bool) -> list[Request]:
    """Seeded prompts, or one prompt with many seeds."""
    rng = np.random.default_rng(0)
    made = []
    for seed in range(count):
        if not (alike and made):
            tokens = tuple(rng.integers(0, model.architecture.vocab_size, prompt).tolist())
        made.append(Request(tokens, new, Sampling(np.float32(0.8), seed=seed)))
    return made


class Steps:
    """Runs requests; counts what is fed."""

    def __init__(self, model: Model, asked: list[Request], probe: str) -> None:
        self.rows = 0
        plan = model.plan(asked, probes=0 if probe == "off" else 2)
        step = plan.step

        def counted(feed: dict[str, np.ndarray]) -> None:
            self.rows += len(feed["token"])
            step(feed)

        plan.step = counted  # type: ignore[method-assign]
        observe = observing(model, probe) if probe != "off" else None
        self.events = trace(model, plan, asked, observe=observe)


def decode(model: Model, count: int, new: int, probe: str) -> float:
    """Tokens/s while all sequences run."""
    left, told, start = set(range(count)), 0, 0.0
    asked = requests(model, count, FEW, new, alike=False)
    for event in Steps(model, asked, probe).events:
        if isinstance(event, Done):
            break
        told += isinstance(event, Token) and not left
        if left and isinstance(event, Token):
            left.discard(event.index)
            start = time.perf_counter()
    return told / (time.perf_counter() - start)


def samples(model: Model, prompt: int, probe: str) -> tuple[float, int]:
    """Seconds from the first step to the last record, and rows fed."""
    asked = requests(model, SAMPLES, prompt, NEW, alike=True)
    steps, start = Steps(model, asked, probe), time.perf_counter()
    for event in steps.events:
        if isinstance(event, Done) and event.trace.observer:
            event.trace.observer.parts()
    return time.perf_counter() - start, steps.rows


def watched(measure: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """A measurement, and how many cores other programs used meanwhile."""
    return bench_cpu.watched(lambda: measure(*arguments))


def spread(values: list[float], digits: int) -> list[float]:
    return [round(f(values), digits) for f in (statistics.median, min, max)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder that keeps the weights")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--numerics", default="accuracy")
    parser.add_argument("--probe", choices=["stats", "off"], default="stats")
    parser.add_argument("--sizes", default="1,2,4,8,16,32,64")
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--prompt", type=int, default=1000)
    parser.add_argument("--sample", action="store_true")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    device = CpuDevice(kernels_folder(), options.work / "cache", threads=options.threads)
    folder = sample_folder() if options.sample else bench_shape.make_checkpoint(options.work)
    numerics, checkpoint = version(options.numerics), Checkpoint.open(folder)
    architecture = Architecture.of(checkpoint)
    model = Model.place(checkpoint, architecture, device, folder.name, numerics)
    about = {
        "model": folder.name,
        "numerics": numerics.name,
        "probe": options.probe,
        "threads": options.threads,
        "commit": bench_cpu.commit(),
        "cpu": bench_cpu.cpu_name(),
    }
    sizes = [int(size) for size in options.sizes.split(",")]
    decode(model, 1, 4, options.probe)  # warms up
    found: dict[int, list[float]] = {size: [] for size in sizes}
    others: dict[int, list[float]] = {size: [] for size in [*sizes, 0]}
    for turn in range(options.rounds):
        for size in sizes if turn % 2 else sizes[::-1]:
            rate, cores = watched(decode, model, size, options.tokens, options.probe)
            found[size].append(rate)
            others[size].append(cores)
    for size, rates in found.items():
        times = [rate / one for rate, one in zip(rates, found[sizes[0]], strict=True)]
        line = {"batch": size, "tok_s": spread(rates, 1), f"times_{sizes[0]}": spread(times, 2)}
        print(json.dumps(line | {"others_cores": spread(others[size], 2)} | about), flush=True)
    gains, fed = [], []
    for _ in range(options.rounds):
        (shared, rows), cores = watched(samples, model, options.prompt, options.probe)
        with patch("llmtrace.engine.admission.prefixes", lambda asked, _: [()] * len(asked)):
            (apart, every), more = watched(samples, model, options.prompt, options.probe)
        gains.append(apart / shared)
        others[0] += [cores, more]
        fed = [rows, every]
    line = {"samples": SAMPLES, "prompt": options.prompt, "shared": spread(gains, 2), "rows": fed}
    print(json.dumps(line | {"others_cores": spread(others[0], 2)} | about), flush=True)


if __name__ == "__main__":
    main()
