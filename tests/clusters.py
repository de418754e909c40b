"""A LocalCluster in a process of its own: workers that are processes, on a machine of their own.

    python clusters.py PLACE WORKERS [THREADS]

Home, settings and stores are in the folder PLACE. Prints the scheduler's address and ends with its
standard input.
"""

import contextlib
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from distributed import LocalCluster

PATIENT = {  # where a machine is busy with other tests, a process may take long to start
    "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "2m",
    "DASK_DISTRIBUTED__DEPLOY__LOST_WORKER_TIMEOUT": "1h",
}
FOLDERS = {"XDG_CONFIG_HOME": "config", "XDG_DATA_HOME": "data", "LLMTRACE_TEST_ENDS": ""}
HERE = Path(__file__).resolve()


@contextlib.contextmanager
def cluster(place: Path, workers: int) -> Iterator[str]:
    """Starts one; gives its address."""
    own = {name: str(place / folder) for name, folder in FOLDERS.items()}
    with subprocess.Popen(
        [sys.executable, str(HERE), str(place), str(workers)],
        env={
            **os.environ,
            "PYTHONPATH": str(HERE.parents[1]),
            "HOME": str(place),
            **own,
            **PATIENT,
        },
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin and process.stdout
        address = process.stdout.readline().strip()
        yield address
        process.stdin.close()


def main(place: str, workers: str) -> None:
    with LocalCluster(
        n_workers=int(workers),
        threads_per_worker=1,
        processes=True,
        dashboard_address="127.0.0.1:0",
        local_directory=f"{place}/dask",
        preload=[str(HERE.with_name("mortal.py"))],
        silence_logs=logging.CRITICAL,
    ) as cluster:
        print(cluster.scheduler_address, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
