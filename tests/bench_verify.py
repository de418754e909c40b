"""What checking a run costs beside making it, on the CPU: each version, by threads.

    python -m tests.bench_verify --work DIR [--rounds 3] [--threads 1,2] [--tokens 256]
                                 [--numerics accuracy,speed,memory]

From the top of the checkout. DIR keeps the weights of a 350M Llama (0.8 GB, made at first use).
One JSON line a version and number of threads, each in a process of its own; medians over the
rounds, with the least and the most; generating and replaying take turns. Both are as ``run`` and
``verify`` do them: digests and probes, the stored positions looked at, the trace's commitment.

``ratio``: the replay over the generation of so many tokens after a prompt of 16. ``first_ms``: a
prompt of 256 up to its first token. ``place_s``: weights on the device, quantised where the version
does; ``peak_mb``: the most memory that the process had, ``weights_mb`` of it the weights.
``others_cores``: what other programs used meanwhile: quote nothing where it is above 0.1.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from llmtrace.blocks.versions import version
from llmtrace.device.compile import kernels_folder
from llmtrace.device.cpu import CpuDevice
from llmtrace.engine.request import Request
from llmtrace.engine.trace import Done, Model, Token, trace
from llmtrace.introspect.observer import observing
from llmtrace.model.architecture import Architecture
from llmtrace.model.checkpoint import Checkpoint
from tests import bench_cpu, bench_shape

PROMPT, FIRST = 16, 256
"""Tokens of the prompt of what is generated, and of the one whose first token is waited for."""


def timed(model: Model, request: Request) -> tuple[Any, float, float]:
    """The trace of a request, the seconds up to its first token, and those of all of it."""
    start, first = time.perf_counter(), 0.0
    plan, observe = model.plan([request]), observing(model, "stats")
    for event in trace(model, plan, [request], observe=observe):
        if isinstance(event, Token) and not first:
            first = time.perf_counter() - start
        if isinstance(event, Done):
            return event.trace, first, time.perf_counter() - start
    raise AssertionError("a run ends")


def measure(folder: Path, numerics: str, threads: int, tokens: int, rounds: int) -> dict[str, Any]:
    """One version by so many threads."""
    device = CpuDevice(kernels_folder(), folder.parent / "kernels", threads=threads)
    opened, start = Checkpoint.open(folder), time.perf_counter()
    model = Model.place(opened, Architecture.of(opened), device, "bench", version(numerics))
    rng = np.random.default_rng(2)
    prompts = (tuple(rng.integers(0, bench_shape.VOCAB, n).tolist()) for n in (PROMPT, FIRST))
    asked, waited = (Request(prompt, n) for prompt, n in zip(prompts, (tokens, 1), strict=True))
    model.plan([asked])
    placed = time.perf_counter() - start
    found: dict[str, list[float]] = {"generate_s": [], "verify_s": [], "first_ms": []}
    for warm in (replace(asked, max_tokens=4), waited):  # and to choose variants for both sizes
        timed(model, warm)
    for _ in range(rounds):
        done, _, taken = timed(model, asked)
        found["generate_s"].append(taken)
        again, _, taken = timed(model, replace(asked, forced=done.output))
        found["verify_s"].append(taken)
        assert again.commitment == done.commitment, "a replay gives the same"
        found["first_ms"].append(1000 * timed(model, waited)[1])
    pairs = zip(found["verify_s"], found["generate_s"], strict=True)
    found["ratio"] = [verify / generate for verify, generate in pairs]
    return {
        "numerics": numerics,
        "threads": threads,
        "tokens": tokens,
        **{
            name: [round(statistics.median(each), 3), [round(min(each), 3), round(max(each), 3)]]
            for name, each in found.items()
        },
        "tok_s": round(tokens / statistics.median(found["generate_s"]), 2),
        "place_s": round(placed, 2),
        "weights_mb": round(model.weights.held / 1e6, 1),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, 1),
    }


def alone(*arguments: Any) -> dict[str, Any]:
    """Measures in a process of its own, whose memory is then its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, *arguments).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder that keeps the weights")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--numerics", default=",".join(bench_cpu.TWINS))
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    folder = bench_shape.make_checkpoint(options.work)
    about = {"commit": bench_cpu.commit(), "cpu": bench_cpu.cpu_name()}
    about["date"] = time.strftime("%Y-%m-%d")
    for threads in map(int, options.threads.split(",")):
        for numerics in options.numerics.split(","):
            sizes = (folder, numerics, threads, options.tokens, options.rounds)
            line, others = bench_cpu.watched(lambda sizes=sizes: alone(*sizes))
            print(json.dumps({**line, "others_cores": others, **about}), flush=True)


if __name__ == "__main__":
    main()
