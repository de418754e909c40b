"""How long a long chain takes to fetch and to push, beside git itself in the same run.

    python -m tests.bench_sync [--records N] [--rounds N]

Makes a chain of 10,000 records in a bare repository, then alternates: `git clone --mirror` with
its own checks of objects (the floor: nothing is audited), `llmtrace fetch` into an empty store
(transfer, audit, accept: whole command), a fetch of nothing new as a whole command, in a process
that has its imports, and by git. Prints JSON lines; medians and spread in milliseconds at the end.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

from chains import make
from llmtrace.store.carrier import Carrier
from llmtrace.store.chain import Store
from llmtrace.verify.intake import intake

ROOT = Path(__file__).parents[1]


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1e3


class Bench:
    """The folders, and each thing that is measured, in milliseconds."""

    def __init__(self, folder: Path, records: int) -> None:
        self.folder = folder
        self.remote = folder / "remote.git"
        self.node, _ = make(self.remote, records)
        self.store = folder / "store.git"
        self.peak = 0  # resident MiB of a command of ours
        self.environment = {"PATH": os.environ["PATH"], "HOME": str(folder)}

    def call(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "llmtrace", "-q", "--store", str(self.store), *arguments]
        home = {**self.environment, "PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8"}
        quiet = subprocess.DEVNULL
        process = subprocess.Popen(command, env=home, stdout=quiet, stderr=quiet)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0, arguments
        self.peak = max(self.peak, usage.ru_maxrss >> 10)

    def git_clone(self) -> float:
        path = self.folder / "clone.git"
        shutil.rmtree(path, ignore_errors=True)
        checks = ["-c", "transfer.fsckObjects=true"]
        command = ["git", *checks, "clone", "-q", "--mirror", f"file://{self.remote}", str(path)]
        return timed(lambda: subprocess.run(command, check=True))

    def fetch(self) -> float:
        shutil.rmtree(self.store, ignore_errors=True)
        shutil.rmtree(self.folder / ".config", ignore_errors=True)
        shutil.rmtree(self.folder / ".cache", ignore_errors=True)
        self.call("init")
        return timed(lambda: self.call("fetch", str(self.remote)))

    def fetch_nothing(self) -> float:
        return timed(lambda: self.call("fetch", str(self.remote)))

    def fetch_nothing_in_process(self) -> float:
        store = Store.open(self.store, self.folder / ".config/llmtrace/keys")
        carrier = Carrier(self.environment)
        return timed(lambda: list(intake(store, carrier, str(self.remote))))

    def git_fetch_nothing(self) -> float:
        command = ["git", "--git-dir", str(self.folder / "clone.git"), "fetch", "-q", "origin"]
        return timed(lambda: subprocess.run(command, check=True))

    def imports(self) -> float:
        command = [sys.executable, "-c", "import click, pygit2, git"]
        return timed(lambda: subprocess.run(command, check=True))


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args(arguments)
    git = ["git", "describe", "--always", "--dirty"]
    said = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=False)
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), asked.records)
        for _ in range(asked.rounds):
            for work in (
                bench.git_clone,
                bench.fetch,
                bench.fetch_nothing,
                bench.fetch_nothing_in_process,
                bench.git_fetch_nothing,
                bench.imports,
            ):
                times.setdefault(work.__name__, []).append(work())
    where = {"machine": platform.node(), "commit": said.stdout.strip(), "records": asked.records}
    print(json.dumps({**where, "peak_mib": bench.peak}))
    for name, taken in times.items():
        line = {"median": statistics.median(taken), "from": min(taken), "to": max(taken)}
        print(json.dumps({"what": name, "ms": {key: round(line[key], 1) for key in line}}))


if __name__ == "__main__":
    main(sys.argv[1:])
