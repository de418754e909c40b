"""Whether relevance says what matters: its rank correlation with the damage of mean-ablation.

    python -m tests.bench_relevance [--tokens 24]

Runs the sample model on twelve openings of tales, greedily, ablates every component in turn, and
prints a JSON line a prompt, then one of the median and the extremes: Spearman's correlation of R
(direct logit attribution) and the KL divergence that the ablation causes, both means over the drawn
tokens; beside it that of |gradient x activation|, where torch is installed. 1: the ranks are the
same; 0: they have nothing to do with each other.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from llmtrace.device.compile import kernels_folder
from llmtrace.device.cpu import CpuDevice
from llmtrace.engine.evidence import Claim
from llmtrace.engine.request import Request
from llmtrace.engine.trace import Done, Model, trace
from llmtrace.errors import Inconclusive
from llmtrace.introspect.ablation import ablate
from llmtrace.introspect.gradients import gradients
from llmtrace.introspect.inside import look
from llmtrace.introspect.relevance import Attributor
from llmtrace.model.architecture import Architecture
from llmtrace.model.checkpoint import Checkpoint
from llmtrace.model.tokenizer import Tokenizer
from llmtrace.probes import exact

SAMPLES = Path(__file__).parents[1] / "samples"
PROMPTS = (
    "Once upon a time there was a king who had three sons",
    "The old fox said to the crow",
    "There was once a poor miller",
    "In the midst of the wood stood a little house",
    "The princess wept and said",
    "'Good morning,' said the wolf",
    "He went on and on until he came to",
    "When the soldier heard this, he",
    "The witch gave her an apple and",
    "A farmer had a donkey that",
    "It was in the middle of winter, when",
    "The golden bird sat on the tree and",
)
GRADIENTS = 4
"""Tokens of a prompt whose gradients are taken: each is a whole pass."""


def correlations(model: Model, prompt: list[int], tokens: int) -> dict[str, Any]:
    request = Request(tuple(prompt), tokens)
    plan = model.plan([request])
    done = next(e.trace for e in trace(model, plan, [request]) if isinstance(e, Done))
    forced = dataclasses.replace(request, forced=done.output)
    claim = Claim(model.id, "accuracy.1", forced, done.output, done.finish_reason, "stats", ())
    picks = np.arange(len(prompt) - 1, request.positions)[: len(done.output)]
    inside = look(model, claim, picks.tolist())
    share = Attributor(model)(inside).share
    damage = ablate(
        model, inside.tokens, picks, share, run_limit=request.run_limit, seed=0, most=1 << 20
    )
    line = {"components": len(damage.names), "spearman": round(damage.trust.mean, 3)}
    few = slice(None, None, max(1, len(picks) // GRADIENTS))
    drawn = np.array(done.output)
    try:
        found = gradients(model, inside.tokens, picks[few], drawn[few], request.run_limit)
    except Inconclusive:
        return line
    other = exact.spearman(np.abs(found).mean(0), exact.mean(damage.kl))
    return line | {"gradient_spearman": round(other.mean, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=24)
    asked = parser.parse_args()
    checkpoint = Checkpoint.open(SAMPLES / "model")
    tokenizer = Tokenizer.open(checkpoint)
    lines = []
    with tempfile.TemporaryDirectory() as cache:
        device = CpuDevice(kernels_folder(), Path(cache))
        model = Model.place(checkpoint, Architecture.of(checkpoint), device, "sample")
        for prompt in PROMPTS:
            line = correlations(model, [*tokenizer.encode(prompt)], asked.tokens)
            lines.append(line)
            print(json.dumps({"prompt": prompt, **line}), flush=True)
    columns = {n: [x[n] for x in lines] for n in lines[0] if n.endswith("spearman")}
    print(
        json.dumps(
            {
                n: {"median": round(statistics.median(c), 3), "least": min(c), "most": max(c)}
                for n, c in columns.items()
            }
            | {"prompts": len(lines)}
        )
    )


if __name__ == "__main__":
    sys.exit(main())
