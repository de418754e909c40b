"""How fast records are written, beside MLflow's file store and DataLad in the same run.

    python -m tests.bench_store [--records N] [--pairs N] [--mlflow PYTHON] [--datalad PROGRAM]

Writes the same payloads (prompt, output, digests, probes of a small run, 3 KB) in three ways of
our own and in those of the peers that are named, alternating, each in a fresh folder. Prints one
JSON line a pass: records a second by the clock, bytes and files a record; at the end medians and
spread. Ours are signed and on the disk when they count. The floor is the same bytes, compressed,
appended to one file with one wait for the disk a group.

MLflow logs a run with three parameters, a metric and the parts as artifacts, unsigned and not
synced; DataLad saves the parts of a record as one commit, unsigned. Both live in environments of
their own: `pip install mlflow datalad git-annex`.
"""

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from llmtrace.store.chain import Event, Store
from llmtrace.store.maintenance import maintain

ROOT = Path(__file__).parents[1]
GROUP = 100
PEER_RECORDS = 40  # of a pass of MLflow and DataLad: they take long
T = 1_700_000_000

MLFLOW = """
import json, os, sys, time
os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
import mlflow
payloads = json.load(open(sys.argv[2]))
mlflow.set_tracking_uri("file://" + sys.argv[1])
mlflow.set_experiment("bench")
def log(number, parts):
    with mlflow.start_run():
        mlflow.log_params({"model": "tiny", "seed": number, "numerics": "accuracy.1"})
        mlflow.log_metric("logprob", number)
        for name, text in parts.items():
            mlflow.log_text(text, name)
log(-1, payloads[0])
start = time.perf_counter()
for number, parts in enumerate(payloads):
    log(number, parts)
print(time.perf_counter() - start)
"""


def payload(number: int) -> dict[str, bytes]:
    """The parts of a record; as text where peers take only text."""
    draw = random.Random(number)
    return {
        "prompt.txt": draw.randbytes(87).hex().encode(),
        "output.txt": draw.randbytes(250).hex().encode(),
        "digests.bin": draw.randbytes(400),
        "probes.bin": draw.randbytes(1800),
    }


def event(number: int) -> Event:
    trace = {"seed": str(number), "prompt_tokens": list(range(16)), "output_tokens": [7] * 64}
    sections = {"trace": trace, "probes": {}, "attested": {"model": "tiny"}}
    return Event("run", sections, payload(number), T + number)


def ours(count: int, group: int) -> Callable[[Path], float]:
    def write(folder: Path) -> float:
        store = Store.open(folder / "store.git", folder / "keys", create=True, time=T)
        events = [event(number) for number in range(count)]
        start = time.perf_counter()
        for at in range(0, count, group):
            store.append_all(events[at : at + group])
        taken = time.perf_counter() - start
        if group > 1:
            maintain(store.path, {"PATH": os.environ["PATH"]})
        return taken

    return write


def floor(count: int) -> Callable[[Path], float]:
    def write(folder: Path) -> float:
        events = [event(number) for number in range(count)]
        start = time.perf_counter()
        with (folder / "file").open("wb", buffering=0) as file:
            for at in range(0, count, GROUP):
                parts = [part for one in events[at : at + GROUP] for part in one.parts.values()]
                file.write(b"".join(zlib.compress(part, 1) for part in parts))
                os.fsync(file.fileno())
        return time.perf_counter() - start

    return write


def mlflow(python: str) -> Callable[[Path], float]:
    def write(folder: Path) -> float:
        texts = [
            {name: data.decode("latin-1") for name, data in payload(number).items()}
            for number in range(PEER_RECORDS)
        ]
        (folder / "payloads").write_text(json.dumps(texts))
        command = [python, "-c", MLFLOW, str(folder / "store"), str(folder / "payloads")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        (folder / "payloads").unlink()
        return float(done.stdout.split()[-1])

    return write


def datalad(program: str) -> Callable[[Path], float]:
    def write(folder: Path) -> float:
        tools = {**os.environ, "PATH": f"{Path(program).parent}:{os.environ['PATH']}"}
        tools |= {
            f"GIT_{who}_{what}": "bench@invalid"
            for who in ("AUTHOR", "COMMITTER")
            for what in ("NAME", "EMAIL")
        }

        def call(*arguments: str) -> None:
            quiet = subprocess.DEVNULL
            subprocess.run([program, *arguments], env=tools, check=True, stdout=quiet, stderr=quiet)

        call("create", str(folder / "store"))
        taken = 0.0
        for number in range(PEER_RECORDS // 10):
            place = folder / "store" / str(number)
            place.mkdir()
            for name, data in payload(number).items():
                (place / name).write_bytes(data)
            start = time.perf_counter()
            call("save", "-d", str(folder / "store"), "-m", f"run {number}")
            taken += time.perf_counter() - start
        return taken * 10

    return write


def measured(write: Callable[[Path], float], count: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as name:
        taken = write(Path(name))
        files = [path for path in Path(name).rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files)
    return {
        "records_per_second": round(count / taken, 1),
        "bytes_per_record": round(size / count),
        "files_per_record": round(len(files) / count, 3),
    }


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--records", type=int, default=3000)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--mlflow", metavar="PYTHON")
    parser.add_argument("--datalad", metavar="PROGRAM")
    asked = parser.parse_args(arguments)
    git = ["git", "describe", "--always", "--dirty"]
    said = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=False)
    where = {"machine": platform.node(), "commit": said.stdout.strip()}
    few = max(1, asked.records // 20)
    writers = {
        "llmtrace, groups of 100": (ours(asked.records, GROUP), asked.records),
        "llmtrace, one by one": (ours(few, 1), few),
        "floor": (floor(asked.records), asked.records),
    }
    if asked.mlflow:
        writers["MLflow files"] = (mlflow(asked.mlflow), PEER_RECORDS)
    if asked.datalad:
        writers["DataLad save"] = (datalad(asked.datalad), PEER_RECORDS)
    passes: dict[str, list[dict[str, float]]] = {name: [] for name in writers}
    for _ in range(asked.pairs):
        for name, (write, count) in writers.items():
            passes[name].append(measured(write, count))
            print(json.dumps({**where, "writer": name, **passes[name][-1]}), flush=True)
    compressed = [sum(len(zlib.compress(p, 1)) for p in payload(n).values()) for n in range(100)]
    print(json.dumps({"payload_bytes_zlib_1": round(statistics.mean(compressed))}))
    for name, lines in passes.items():
        speeds = [line["records_per_second"] for line in lines]
        line = {"median": statistics.median(speeds), "from": min(speeds), "to": max(speeds)}
        print(json.dumps({"writer": name, "records_per_second": line}))


if __name__ == "__main__":
    main(sys.argv[1:])
