"""Makes a golden chain: records of every kind of run, to be verified by every later version.

    python tests/make_golden.py NAME        writes tests/golden/NAME.bundle and NAME.checksums

Run once for each version of the arithmetic and each format of the probes, when it is frozen, and
NAME is that; never again for the same one.
The chain holds runs of the sample model and of ``tests/golden/model``, a random checkpoint of 2
layers with grouped heads of odd size and llama3 rope scaling.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from llmtrace.store.chain import Store

GOLDEN = Path(__file__).with_name("golden")
TINY = str(GOLDEN / "model")
LONG = "It was a dark night in the deep wood, and the wind sang in the old trees. " * 8
DRAWN = ["--temperature", "0.8", "--seed", "18446744073709551615"]
NUCLEUS = ["--temperature", "1.1", "--top-k", "40", "--top-p", "0.9", "--seed", "3"]
OF_THREE = ["--temperature", "0.3", "--top-k", "3"]
RUNS = [
    ["Once upon a time there was a king", "-n", "40"],
    ["The fox said", "-n", "24", *DRAWN],
    ["A long way off", "-n", "24", *NUCLEUS],
    [LONG, "-n", "12", "--probe", "off"],
    ["The bear", "-n", "6", "--probe", "detail", "--keep", "blocks.2.attn.hook_z"],
    ["--prompt-tokens", "0 5 9 200 1999", "-n", "5"],
    ["-m", TINY, "bytes are all it knows", "-n", "200"],
    ["-m", TINY, "--prompt-tokens", "256 1 2 3", "-n", "130", *DRAWN],
    ["-m", TINY, LONG[:300], "-n", "9", *OF_THREE, "--keep", "unembed.*"],
    ["The old fox said", "-n", "24", "--scheme", "samples/scheme.toml"],
]


def main(name: str) -> None:
    bundle = GOLDEN / f"{name}.bundle"
    if bundle.exists():
        sys.exit(f"{bundle} exists: what is frozen stays")
    with tempfile.TemporaryDirectory() as home:
        store = Path(home) / "store.git"
        environment = {**os.environ, "XDG_CONFIG_HOME": f"{home}/config"}
        for run in RUNS:
            command = [sys.executable, "-m", "llmtrace", "--store", str(store), "run", *run]
            if not name.startswith("probes."):
                command += ["--numerics", name]
            subprocess.run([*command, "--format", "id", "-d", "cpu"], env=environment, check=True)
        subprocess.run(
            ["git", "-C", store, "bundle", "create", bundle, "HEAD", "--all"], check=True
        )
        entries = [entry for entry in Store.open(store, Path(home)).log() if entry.record.checksum]
        lines = [f"{entry.id} {entry.record.checksum}\n" for entry in reversed(entries)]
        bundle.with_suffix(".checksums").write_text("".join(lines))


if __name__ == "__main__":
    main(sys.argv[1])
