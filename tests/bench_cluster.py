"""What a second worker brings: one batch on a cluster of one and of two, in turn.

    python -m tests.bench_cluster [--rounds 5] [--prompts 96] [--tokens 64]

From the top of the checkout. Workers are processes of this machine with a thread each, the model is
the sample. A time is that of the whole command but for the start of Python: prompts to tokens, the
batch, its records on the disk, its lines printed. One JSON line: tokens/s with one worker and with
two, and the ratio of the times; medians over the rounds with the least and the most. Two workers of
a machine share its memory and its disk, and client and scheduler run beside them: of two cores they
cannot make twice as much.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

from llmtrace.cli import main as llmtrace
from tests import bench_cpu, clusters


def seconds(address: str, batch: Path, tokens: int) -> tuple[float, int]:
    """How long a batch takes, and how many tokens it makes."""
    line = ["run", "--batch", str(batch), "--cluster", address, "-n", str(tokens), "--json"]
    started, out = time.perf_counter(), io.StringIO()
    with contextlib.redirect_stdout(out):
        assert llmtrace([*line, "-d", "cpu", "--threads", "1"]) == 0
    took = time.perf_counter() - started
    *runs, _ = map(json.loads, out.getvalue().splitlines())
    return took, sum(len(run["output_tokens"]) for run in runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=96)
    parser.add_argument("--tokens", type=int, default=64)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        place = Path(folder)
        os.environ |= {"HOME": folder, "XDG_CACHE_HOME": str(place / "cache")}
        batch = place / "batch.jsonl"
        prompts = (f"Once upon a time there were {number}" for number in range(options.prompts))
        batch.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
        started = {n: clusters.cluster(place / str(n), n) for n in (1, 2)}
        address = {n: stack.enter_context(one) for n, one in started.items()}
        for n in address:
            seconds(address[n], batch, 2)  # compiles the kernels, opens model and store
        rates: dict[int, list[float]] = {n: [] for n in address}
        ratios = []
        for _ in range(options.rounds):
            took = {}
            for n in address:
                took[n], tokens = seconds(address[n], batch, options.tokens)
                rates[n].append(tokens / took[n])
            ratios.append(took[1] / took[2])
    about = {"commit": bench_cpu.commit(), "cpu": bench_cpu.cpu_name(), "cores": os.cpu_count()}
    spread = {
        "one_tok_s": [round(f(rates[1]), 1) for f in (statistics.median, min, max)],
        "two_tok_s": [round(f(rates[2]), 1) for f in (statistics.median, min, max)],
        "ratio": [round(f(ratios), 2) for f in (statistics.median, min, max)],
    }
    print(json.dumps(spread | {"prompts": options.prompts, "tokens": options.tokens} | about))


if __name__ == "__main__":
    main()
