"""What a draft saves: the same text with ``--draft ngram`` and without, in turn.

    python -m tests.bench_draft --work DIR [--rounds 5] [--tokens 400] [--threads 2]

From the top of the checkout. DIR keeps weights (0.8 GB, made at first use). Probes and digests are
on, as ``run`` has them. ``circles`` is the 350M shape with random weights whose text goes in
circles, after a prompt that does: a stand-in for text that repeats itself word for word. The others
are what the sample model tells, which repeats phrases only; its steps are so short that there is
little to save. One JSON line a text, medians over the rounds with the least and the most: tokens/s
without a draft, the ratio of the times after the first token; and the steps with a draft.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

from llmtrace.device.compile import kernels_folder
from llmtrace.device.cpu import CpuDevice
from llmtrace.engine.draft import Ngram
from llmtrace.engine.request import Request
from llmtrace.engine.trace import Done, Model, trace
from llmtrace.introspect.observer import observing
from llmtrace.model.architecture import Architecture
from llmtrace.model.checkpoint import Checkpoint
from llmtrace.model.registry import sample_folder
from llmtrace.model.tokenizer import Tokenizer
from tests import bench_cpu, bench_shape

TALES = ("The old fox said", "Once upon a time there was a king", "one two three one two three")


def generate(model: Model, request: Request, *, drafts: bool) -> tuple[float, Done]:
    """Seconds from the first token to the last, and what came."""
    plan = model.plan([request])
    draft = (lambda _: Ngram()) if drafts else None
    events = trace(model, plan, [request], observe=observing(model, "stats"), draft=draft)
    next(events)
    start = time.perf_counter()
    for event in events:
        if isinstance(event, Done):
            return time.perf_counter() - start, event
    raise AssertionError("a trace ends with its run")


def measure(model: Model, name: str, request: Request, rounds: int) -> dict[str, object]:
    rates, ratios, steps = [], [], 0
    for _ in range(rounds):
        plain, expected = generate(model, request, drafts=False)
        drafted, got = generate(model, request, drafts=True)
        assert got.trace.commitment == expected.trace.commitment
        tokens, steps = len(expected.trace.output), got.steps
        rates.append((tokens - 1) / plain)
        ratios.append(plain / drafted)
    return {
        "text": name,
        "tokens": tokens,
        "tok_s": [round(f(rates), 1) for f in (statistics.median, min, max)],
        "ratio": [round(f(ratios), 2) for f in (statistics.median, min, max)],
        "steps": steps,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder that keeps the weights")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=400)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    device = CpuDevice(kernels_folder(), options.work / "cache", threads=options.threads)
    about = {"threads": options.threads, "commit": bench_cpu.commit(), "cpu": bench_cpu.cpu_name()}
    for folder, texts in (
        (bench_shape.make_checkpoint(options.work, circles=True), ("circles",)),
        (sample_folder(), TALES),
    ):
        checkpoint = Checkpoint.open(folder)
        model = Model.place(checkpoint, Architecture.of(checkpoint), device, folder.name)
        for text in texts:
            if text == "circles":  # which are in the prompt already
                start = Request((1, 5, 7), 300)
                prompt = [*start.prompt, *generate(model, start, drafts=True)[1].trace.output]
            else:
                prompt = Tokenizer.open(checkpoint).encode(text)
            request = Request(tuple(prompt), options.tokens)
            generate(model, request, drafts=True)  # warms up
            print(json.dumps(measure(model, text, request, options.rounds) | about), flush=True)


if __name__ == "__main__":
    main()
