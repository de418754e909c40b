"""What digests and probes cost on the CPU: a 350M Llama with them and without, in turn.

    python -m tests.bench_probe --work DIR [--rounds 7] [--threads 2]

From the top of the checkout. DIR keeps the weights (0.8 GB, made at first use). One JSON line a
round, then one of medians and of the least and the most. Three plans go the same way, in turns,
a step each: ``off`` as ``run --no-commit --probe off`` does, which only looks for NaN;
``digests`` as ``run --probe off`` does; ``stats`` as ``run`` does, totals and features included.
So a step is compared with those right before and after it, and what else the machine does at the
time is done to all.

Costs are the median of extra time over ``off`` in percent: of 48 decoded tokens after a prompt of
16, and of prompts of 256 tokens. ``end_ms`` is what follows the last token: looking again at the
two positions whose records are stored, and their scores; once a run, however long it is.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmtrace.device.compile import kernels_folder
from llmtrace.device.cpu import CpuDevice
from llmtrace.engine.request import Request
from llmtrace.engine.trace import Done, Model, trace
from llmtrace.introspect.observer import observing
from llmtrace.model.architecture import Architecture
from llmtrace.model.checkpoint import Checkpoint
from tests import bench_cpu, bench_shape

PROMPT, FEW, NEW = 256, 16, 48
PLANS: dict[str, dict[str, Any]] = {
    "off": {"probes": 0, "digests": False},
    "digests": {"probes": 0},
    "stats": {"probes": 2},
}


def steps(model: Model, prompt: int, new: int, name: str) -> Iterator[float]:
    """Seconds from one token to the next, first of the prompt; at last of what follows them."""
    request = Request(tuple((7 * i) % 31000 for i in range(prompt)), new)
    plan = model.plan([request], **PLANS[name])
    observe = observing(model, "stats") if name == "stats" else None
    events = trace(model, plan, [request], observe=observe)
    while True:
        start = time.perf_counter()
        event = next(events)
        if isinstance(event, Done) and event.trace.observer:
            event.trace.observer.parts()
        yield time.perf_counter() - start
        if isinstance(event, Done):
            return


def in_turns(model: Model, prompt: int, new: int, first: int) -> dict[str, list[float]]:
    """The seconds of every step of the three plans, each step of one beside those of the others."""
    running = {name: steps(model, prompt, new, name) for name in PLANS}
    found: dict[str, list[float]] = {name: [] for name in PLANS}
    for step in range(new + 1):
        turn = (first + step) % len(PLANS)
        for name in (*PLANS, *PLANS)[turn : turn + len(PLANS)]:
            found[name].append(next(running[name]))
    return found


def extra(found: dict[str, list[float]], name: str, which: slice) -> float:
    """The median of the extra time of a plan over that of none, in percent."""
    pairs = zip(found[name][which], found["off"][which], strict=True)
    return round(100 * statistics.median(one / none - 1 for one, none in pairs), 2)


def measure(model: Model, turn: int) -> dict[str, Any]:
    decode = in_turns(model, FEW, NEW, turn)
    prompts = [in_turns(model, PROMPT, 1, turn + i) for i in range(len(PLANS))]
    prefill = {name: [each[name][0] for each in prompts] for name in PLANS}
    tokens, all_of_it = slice(1, NEW), slice(None)
    line: dict[str, Any] = {
        "decode_tok_s": round(1 / statistics.median(decode["off"][tokens]), 2),
        "prefill_tok_s": round(PROMPT / statistics.median(prefill["off"]), 1),
    }
    for kind, times, which in (("decode", decode, tokens), ("prefill", prefill, all_of_it)):
        for name in ("digests", "stats"):
            line[f"{kind}_{name}_percent"] = extra(times, name, which)
    line["end_ms"] = round(1000 * (decode["stats"][-1] - decode["off"][-1]), 1)
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder that keeps the weights")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    checkpoint = Checkpoint.open(bench_shape.make_checkpoint(options.work))
    device = CpuDevice(kernels_folder(), options.work / "cache", threads=options.threads)
    model = Model.place(checkpoint, Architecture.of(checkpoint), device, "350m")
    measure(model, 0)  # warms up
    lines = []
    for index in range(options.rounds):
        lines.append(measure(model, index))
        print(json.dumps({"round": index + 1, **lines[-1]}), flush=True)
    columns = {name: [line[name] for line in lines] for name in lines[0]}
    about = {"threads": options.threads, "commit": bench_cpu.commit(), "cpu": bench_cpu.cpu_name()}
    medians = {
        name: [round(statistics.median(column), 2), [min(column), max(column)]]
        for name, column in columns.items()
    }
    print(json.dumps({"medians": medians, **about, "date": time.strftime("%Y-%m-%d")}))


if __name__ == "__main__":
    main()
