"""What digests and probes cost on the CPU: a 350M Llama with them and without, in turn.

    python -m tests.bench_probe --work DIR [--rounds 7] [--threads 2]

From the top of the checkout. DIR keeps the weights (0.8 GB, made at first use). One JSON line a
round, then one of medians and of the least and the most. A round runs each of three plans once,
in another order each time: ``off`` as ``run --no-commit --probe off`` does, which only looks for
NaN; ``digests`` as ``run --probe off`` does; ``stats`` as ``run`` does, totals and features
included.

Costs are extra time over ``off`` in percent: of 48 decoded tokens after a prompt of 16, and of a
prompt of 256. ``end_ms`` is what follows the last token: looking again at the two positions whose
records are stored, and their scores; once a run, however long it is.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from llmtrace.device.compile import kernels_folder
from llmtrace.device.cpu import CpuDevice
from llmtrace.engine.request import Request
from llmtrace.engine.trace import Done, Model, Token, trace
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


def seconds(model: Model, prompt: int, new: int, name: str) -> tuple[float, float, float]:
    """Times of the prompt, of the tokens after the first, and of what follows the last."""
    request = Request(tuple((7 * i) % 31000 for i in range(prompt)), new)
    plan = model.plan([request], **PLANS[name])
    observe = observing(model, "stats") if name == "stats" else None
    start, tokens, end = time.perf_counter(), [], 0.0
    for event in trace(model, plan, [request], observe=observe):
        if isinstance(event, Token):
            tokens.append(time.perf_counter())
        if isinstance(event, Done):
            if event.trace.observer:
                event.trace.observer.parts()
            end = time.perf_counter()
    return tokens[0] - start, tokens[-1] - tokens[0], end - tokens[-1]


def measure(model: Model, order: list[str]) -> dict[str, Any]:
    prefill = {name: seconds(model, PROMPT, 1, name)[0] for name in order}
    found = {name: seconds(model, FEW, NEW, name) for name in order}
    decode = {name: times[1] for name, times in found.items()}
    line: dict[str, Any] = {
        "decode_tok_s": round((NEW - 1) / decode["off"], 2),
        "prefill_tok_s": round(PROMPT / prefill["off"], 1),
    }
    for kind, times in (("decode", decode), ("prefill", prefill)):
        for name in ("digests", "stats"):
            line[f"{kind}_{name}_percent"] = round(100 * (times[name] / times["off"] - 1), 2)
    line["end_ms"] = round(1000 * (found["stats"][2] - found["off"][2]), 1)
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
    names = list(PLANS)
    measure(model, names)  # warms up
    lines = []
    for index in range(options.rounds):
        turn = index % len(names)
        lines.append(measure(model, names[turn:] + names[:turn]))
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
