"""Decode and prefill of a 350M Llama on the CPU: llmtrace beside llama.cpp and beside the floors.

    python -m tests.bench_cpu --work DIR --llama-bench FILE [--numerics accuracy|speed|memory]
                              [--pairs 3] [--threads 2] [--depth 0]

From the top of the checkout. DIR keeps the weights (2 GB, made at first use). Beside llmtrace
it needs numpy, gguf (PyPI), a C++ compiler and llama.cpp's llama-bench and llama-quantize, in one
folder; their sources are in the source package of llama-cpp-python:

    cmake -S vendor/llama.cpp -B build -DBUILD_SHARED_LIBS=OFF -DLLAMA_BUILD_SERVER=OFF \\
        -DLLAMA_BUILD_APP=OFF -DLLAMA_OPENSSL=OFF && \\
        cmake --build build --target llama-bench llama-quantize

One JSON line a pair, the engines in turn, then one of medians over the steady pairs and over
all. Speeds are tokens a second; ratios are llmtrace over llama.cpp: above one, llmtrace is faster.

The memory of a virtual machine may be twice as fast for seconds, which no counter here shows
(2026-11-20, 2 cores: 45 GB/s, now and then 98). So the ceilings are measured before, between and
after the engines, and a pair is steady only if the three medians of read bandwidth lie within
10 %, other programs used at most 0.1 core throughout (``others_cores``), and no engine decoded
faster than its floor. Quote steady pairs only: while others run, llama.cpp's threads spin and
it seems many times slower than it is.

What is compared: the same bf16 weights, ``speed`` beside Q8_0 and ``memory`` beside Q4_0 made of
them; prompts of 256 tokens, then 64 steps of one token. llmtrace samples, digests and probes every
point as ``llmtrace run`` does; ``bare`` is a prompt without digests and probes. llama.cpp rounds
activations to bf16 beside ``accuracy`` (where the CPU multiplies bf16, no float32 floor holds for
it), samples nothing and decodes from an empty context; --depth 256 gives it ours.
The floor of integers is that of products of 8 bits, or of pairs of 16 where there are none; a
matrix unit (AMX) is faster. llama.cpp uses one too, but what g++ 12 makes of its
``ggml_tile_config_init`` ends with signal 11: take a newer compiler, or put a barrier there.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests import bench_shape

if TYPE_CHECKING:
    from collections.abc import Callable

PROMPT_TOKENS, NEW_TOKENS = 256, 64
ROUNDS = 3
"""Runs of each engine in a pair, after one to warm up; their median counts."""
KINDS, ENGINES = ("decode", "prefill", "bare"), ("llmtrace", "llama.cpp")
TWINS = {"accuracy": "BF16", "speed": "Q8_0", "memory": "Q4_0"}
"""The type of llama.cpp that a version stands beside."""


@dataclass(frozen=True)
class Setting:
    """What is measured, and with what."""

    checkpoint: Path
    gguf: Path
    llama_bench: Path
    ceilings: Path
    threads: int
    depth: int
    numerics: str


def llmtrace_times(
    checkpoint: Path,
    prompt_tokens: int = PROMPT_TOKENS,
    new_tokens: int = NEW_TOKENS,
    threads: int = 2,
    numerics: str = "accuracy",
) -> dict[str, float]:
    """Seconds of a prompt up to its first token, and of the steps of one token after it.

    As ``llmtrace run`` does it: digests, probes and the trace's commitment are within. Loading
    and packing the weights are not.
    """
    import numpy as np

    from llmtrace.blocks.versions import version
    from llmtrace.device.compile import kernels_folder
    from llmtrace.device.cpu import CpuDevice
    from llmtrace.engine.request import Request
    from llmtrace.engine.trace import Done, Model, Token, trace
    from llmtrace.model.architecture import Architecture
    from llmtrace.model.checkpoint import Checkpoint

    device = CpuDevice(kernels_folder(), checkpoint.parent / "kernels", threads=threads)
    opened = Checkpoint.open(checkpoint)
    model = Model.place(opened, Architecture.of(opened), device, "bench", version(numerics))
    prompt = np.random.default_rng(1).integers(0, bench_shape.VOCAB, prompt_tokens)
    request = Request(tuple(prompt.tolist()), new_tokens + 1)  # the prompt's step gives one
    plan, bare = model.plan([request]), model.plan([request], probes=0, digests=False)
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(ROUNDS + 1):
        for each in (plan, bare):
            first, started = 0.0, time.perf_counter()
            for event in trace(model, each, [request]):
                if isinstance(event, Token) and not first:
                    first = time.perf_counter()
                if each is bare and first:
                    break
            times["bare" if each is bare else "prefill"].append(first - started)
            if each is plan:
                times["decode"].append(time.perf_counter() - first)
                assert isinstance(event, Done)
                assert len(event.trace.output) == new_tokens + 1
    return {kind: statistics.median(found[1:]) for kind, found in times.items()}


def llmtrace_speeds(setting: Setting) -> dict[str, float]:
    # in a process of its own, as llama-bench is: nothing of it stays to disturb the next run
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        call = pool.submit(
            llmtrace_times,
            setting.checkpoint,
            threads=setting.threads,
            numerics=setting.numerics,
        )
        seconds = call.result()
    tokens = {"decode": NEW_TOKENS, "prefill": PROMPT_TOKENS, "bare": PROMPT_TOKENS}
    return {kind: tokens[kind] / seconds[kind] for kind in KINDS}


def llama_speeds(setting: Setting) -> dict[str, float]:
    tests = {
        "prefill": ["-p", str(PROMPT_TOKENS), "-n", "0"],
        "decode": ["-p", "0", "-n", str(NEW_TOKENS), "-d", str(setting.depth)],
    }
    shared = ["-t", str(setting.threads), "-r", str(ROUNDS), "-o", "json"]
    speeds = {}
    for kind, sizes in tests.items():
        command = [str(setting.llama_bench), "-m", str(setting.gguf), *shared, *sizes]
        (found,) = json.loads(output(command))
        assert found["model_type"].endswith(" " + TWINS[setting.numerics]), found["model_type"]
        speeds[kind] = statistics.median(found["samples_ts"])
    return speeds | {"bare": speeds["prefill"]}


def output(command: list[str]) -> str:
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return done.stdout.decode()


def watched(call: Callable[[], Any]) -> tuple[Any, float]:
    """The result of a call, and how many cores other programs used while it ran."""
    before, started = others_s(), time.perf_counter()
    result = call()
    return result, round((others_s() - before) / (time.perf_counter() - started), 2)


def others_s() -> float:
    # user, nice, system, irq, softirq and steal of the machine, less what we and our children used
    ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    machine = (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")
    return machine - sum(os.times()[:4])


def pair(setting: Setting) -> dict[str, Any]:
    def ceilings() -> Any:
        return json.loads(output([str(setting.ceilings), str(setting.threads)]))

    calls = (
        ceilings, lambda: llmtrace_speeds(setting),
        ceilings, lambda: llama_speeds(setting),
        ceilings,
    )  # fmt: skip
    (before, ours, between, theirs, after), others = zip(*map(watched, calls), strict=True)
    found = (before, between, after)
    ours_under = floors(setting.numerics, before, between)
    theirs_under = floors(setting.numerics, between, after)
    line: dict[str, Any] = {
        kind: {
            "llmtrace": round(ours[kind], 2),
            "llama.cpp": round(theirs[kind], 2),
            "ratio": round(ours[kind] / theirs[kind], 3),
            "llmtrace_of_floor": round(ours[kind] / ours_under[kind], 3),
            "llama.cpp_of_floor": round(theirs[kind] / theirs_under[kind], 3),
        }
        for kind in KINDS
    }
    reads = [each["read_gb_s"][1] for each in found]
    highest = max(line["decode"][f"{name}_of_floor"] for name in ENGINES)
    line["steady"] = max(others) <= 0.1 and max(reads) <= 1.1 * min(reads) and highest <= 1
    line["ceilings_best_median"] = {
        kind: [each[kind] for each in found] for kind in ("read_gb_s", "fma_gflop_s", "int_gop_s")
    }
    line["others_cores"] = others
    return line


def floors(numerics: str, *ceilings: dict[str, Any]) -> dict[str, float]:
    """Tokens a second that nothing can exceed, if the machine was as fast as before and after.

    Both engines are held against the bytes of our weights: theirs have a little more.
    """
    read = max(each["read_gb_s"][0] for each in ceilings)
    unit = "fma_gflop_s" if numerics == "accuracy" else "int_gop_s"
    most = max(each[unit][0] for each in ceilings)
    bits = {"accuracy": 16.0, "speed": 8.25, "memory": 4.5}[numerics]
    head = (bench_shape.VOCAB * bench_shape.HIDDEN) * (max(bits, 8.25) - bits)
    prefill = most * 1e9 / bench_shape.PREFILL_FLOP
    decode = read * 1e9 / (bench_shape.DECODE_BYTES / 16 * bits + head / 8)
    return {"decode": decode, "prefill": prefill, "bare": prefill}


def summary(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians, and [least, most], of what each pair says."""
    found: dict[str, Any] = {"pairs": len(lines)}
    for kind in KINDS if lines else ():
        columns = {name: [line[kind][name] for line in lines] for name in lines[0][kind]}
        found[kind] = {
            name: [round(statistics.median(column), 3), [min(column), max(column)]]
            for name, column in columns.items()
        }
    return found


def quantized(gguf: Path, kind: str, llama_bench: Path) -> Path:
    """Gives the GGUF in another type, made by llama.cpp unless it is there."""
    made = gguf.with_suffix(f".{kind}.gguf")
    if not made.is_file():
        part = made.with_suffix(".part")
        output([str(llama_bench.with_name("llama-quantize")), str(gguf), str(part), kind])
        part.rename(made)
    return made


def compiled(folder: Path) -> Path:
    """Compiles the program that measures the ceilings."""
    source, program = Path(__file__).with_name("ceilings.cpp"), folder / "ceilings"
    flags = ["-O3", "-march=native", "-std=c++17", "-pthread"]
    subprocess.run([os.environ.get("CXX", "g++"), *flags, source, "-o", program], check=True)
    return program


def commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    return done.stdout.strip() or "none"


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    found = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return found[0] if found else platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder that keeps the weights")
    parser.add_argument("--llama-bench", type=Path, required=True, help="llama.cpp's program")
    parser.add_argument("--numerics", choices=list(TWINS), default="accuracy")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--depth", type=int, default=0, help="context llama.cpp decodes after")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    checkpoint, gguf = bench_shape.make(options.work)
    if options.numerics != "accuracy":
        gguf = quantized(gguf, TWINS[options.numerics], options.llama_bench)
    ceilings = compiled(options.work)
    sizes = (options.threads, options.depth, options.numerics)
    setting = Setting(checkpoint, gguf, options.llama_bench, ceilings, *sizes)
    lines = []
    for index in range(options.pairs):
        lines.append(pair(setting))
        print(json.dumps({"pair": index + 1, **lines[-1]}), flush=True)
    about: dict[str, Any] = {"numerics": options.numerics, "beside": TWINS[options.numerics]}
    about |= {"threads": options.threads, "depth": options.depth}
    about |= {"commit": commit(), "cpu": cpu_name(), "date": time.strftime("%Y-%m-%d")}
    steady = [line for line in lines if line["steady"]]
    print(json.dumps({"steady": summary(steady), "all": summary(lines), **about}))


if __name__ == "__main__":
    main()
