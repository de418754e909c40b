"""How long `llmtrace --help` takes beside a click program that does nothing.

    python tests/bench_help.py [ROUNDS]

One JSON line: medians in milliseconds and their ratio, which the design bounds by 1.5.
"""

import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

EMPTY = "import click\n@click.group()\ndef cli(): pass\ncli(prog_name='empty')\n"
OURS = "import sys; from llmtrace.cli import main; sys.exit(main())"


def seconds(program: str) -> float:
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", program, "--help"],
        cwd=Path(__file__).parents[1],
        check=True,
        capture_output=True,
    )
    return time.perf_counter() - started


def main(rounds: int) -> None:
    times = [(seconds(OURS), seconds(EMPTY)) for _ in range(rounds + 1)][1:]  # alternating, warm
    ours, empty = (statistics.median(column) for column in zip(*times, strict=True))
    line = {
        "llmtrace_ms": round(ours * 1e3, 1),
        "empty_click_ms": round(empty * 1e3, 1),
        "ratio": round(ours / empty, 2),
        "rounds": rounds,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 40)
