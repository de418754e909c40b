"""Whole commands on the sample model, warm cache: run of 64 tokens with its commit, verify of it.

python -m tests.bench_run [RUNS]       from the top of the checkout; prints medians in seconds
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TOP = Path(__file__).parents[1]
BARS = {"run, 64 tokens": 1.0, "verify": 0.5}


def seconds(command: list[str], environment: dict[str, str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main(runs: int) -> None:
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "HOME": home, "PYTHONPATH": str(TOP), "LLMTRACE_DEVICE": "cpu"}
        llmtrace = [sys.executable, "-m", "llmtrace", "-q"]
        run = [*llmtrace, "run", "Once upon a time", "-n", "64", "--format", "id"]
        print(f"first run, kernels compiled: {seconds(run, environment):.2f}")
        commands = {"run, 64 tokens": run, "verify": [*llmtrace, "verify", "HEAD"]}
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(runs):
            for name, command in commands.items():
                times[name].append(seconds(command, environment))
    for name, taken in times.items():
        spread = f"{min(taken):.3f} to {max(taken):.3f}"
        print(f"{name}: {statistics.median(taken):.3f} ({spread}; bar {BARS[name]})")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 15)
