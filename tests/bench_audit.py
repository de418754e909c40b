"""How fast chains are audited, and in how much memory.

    python -m tests.bench_audit [RECORDS...]

One JSON line a chain: machine, commit, records, loose or packed, records a second of one
core, resident memory above that of a process that audited a chain of 100 records. Each is a
process of its own; the time is the least of three passes.
"""

import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from chains import make
from llmtrace.store.chain import Store
from llmtrace.verify.audit import audit_chain

ROOT = Path(__file__).parents[1]
PASSES = 3


def memory() -> int:
    """Bytes of this process that are its own: no file, such as a mapped pack, counts."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))


def measure(path: Path, node: str) -> dict[str, float]:
    """One pass over a chain in this process, after one over a short one."""
    store = Store.open(path, path)
    with tempfile.TemporaryDirectory() as folder:
        short = Path(folder) / "store.git"
        other, _ = make(short, 100)
        list(audit_chain(Store.open(short, short), f"node/{other}"))
    base, most, count = memory(), 0, 0
    start = time.perf_counter()
    for _, findings in audit_chain(store, f"node/{node}"):
        assert not findings
        count += 1
        if count % 1000 == 0:
            most = max(most, memory())
    return {"count": count, "seconds": time.perf_counter() - start, "bytes": most - base}


def cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "")


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["--one"]:
        print(json.dumps(measure(Path(arguments[1]), arguments[2])))
        return
    git = ["git", "describe", "--always", "--dirty"]
    said = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=False)
    for count in map(int, arguments or ("1000", "10000", "50000")):
        for loose in (True, False):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "store.git"
                node, _ = make(path, count, loose=loose)
                one = [sys.executable, __file__, "--one", str(path), node]
                done = [subprocess.run(one, stdout=-1, check=True, cwd=ROOT) for _ in range(PASSES)]
            runs = [json.loads(process.stdout) for process in done]
            line = {
                "machine": f"{platform.node()}, {cpu()}, Python {platform.python_version()}",
                "commit": said.stdout.strip(),
                "records": count,
                "objects": "loose" if loose else "packed",
                "records_per_second": round(count / min(run["seconds"] for run in runs)),
                "all_passes": [round(count / run["seconds"]) for run in runs],
                "megabytes_above_base": round(max(run["bytes"] for run in runs) / 1e6, 1),
            }
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
