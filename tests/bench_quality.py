"""How far each version is from float64, beside the number formats of llama.cpp.

    python -m tests.bench_quality --text FILE [--windows 16] [--work DIR]

From the top of the checkout. FILE is text that the sample model was not trained on; it is cut into
windows of 512 tokens. With DIR, which keeps the weights (0.8 GB, made at first use), the 350M shape
is measured too, on one window of random tokens: its weights are random, so its perplexity says
nothing, and its nearly flat logits make its top token a matter of chance.

The reference is transformers in float64. The formats of llama.cpp are computed in float64 too: the
weights of linear layers by its gguf package (of PyPI), what they multiply in its blocks of 32 with
a scale in float16; Q4_0 unembeds in Q8_0, which is more than llama.cpp spends. Its kernels' own
rounding is left out.

One JSON line a model and kind of arithmetic: perplexity; mean KL of float64 to it, in nats; part of
positions with the same top token; and, of 30 prompts of 8 tokens continued greedily by 32, the part
of tokens before the first that float64 would not have drawn, and of prompts without one.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llmtrace.blocks.versions import VERSIONS
from llmtrace.device.compile import kernels_folder
from llmtrace.device.cpu import CpuDevice
from llmtrace.engine.request import Request
from llmtrace.engine.trace import Done, Model, trace
from llmtrace.model.architecture import Architecture
from llmtrace.model.checkpoint import Checkpoint
from llmtrace.model.registry import sample_folder
from llmtrace.model.tokenizer import Tokenizer
from tests import bench_cpu, bench_shape

if TYPE_CHECKING:
    from collections.abc import Callable

WINDOW, PROMPTS, GIVEN, NEW = 512, 30, 8, 32


def of_plan(model: Model) -> Callable[[list[int]], np.ndarray]:
    """Logits (T, V) behind each of T tokens, by our kernels."""

    def logits(tokens: list[int]) -> np.ndarray:
        request = Request((tokens[0],), len(tokens), forced=(*tokens[1:], 0))
        plan = model.plan([request], probes=0, keep=["unembed.hook_out"], digests=False)
        (done,) = (e for e in trace(model, plan, [request]) if isinstance(e, Done))
        return done.trace.kept["unembed.hook_out"]

    return logits


def of_transformers(module: Any) -> Callable[[list[int]], np.ndarray]:
    import torch

    def logits(tokens: list[int]) -> np.ndarray:
        with torch.no_grad():
            found = module(torch.tensor([tokens]), use_cache=False).logits[0]
        return np.asarray(found, np.float64)

    return logits


def reference(folder: Path, model: Model) -> Any:
    """transformers in float64, with the contract's angles."""
    import sys

    sys.path.insert(0, str(Path(__file__).parent))
    from checkpoints import reference_model

    return reference_model(folder, model.architecture.inverse_frequencies(WINDOW))


def rounded(module: Any, kind: str) -> Any:
    """Puts the linear layers into a number format of llama.cpp."""
    import gguf
    import torch

    def stored(values: np.ndarray, name: str) -> np.ndarray:
        made = getattr(gguf.GGMLQuantizationType, name)
        packed = gguf.quants.quantize(values.astype(np.float32), made)
        return np.asarray(gguf.quants.dequantize(packed, made), np.float64)

    def fed(_: Any, args: Any) -> Any:
        x = args[0]
        rows = stored(x.reshape(-1, x.shape[-1]).numpy(), "Q8_0")
        return (torch.from_numpy(rows).reshape(x.shape),)

    for name, layer in module.named_modules():
        if isinstance(layer, torch.nn.Linear):
            of = "Q8_0" if name == "lm_head" else kind
            weight = torch.from_numpy(stored(layer.weight.detach().numpy(), of))
            layer.weight = torch.nn.Parameter(weight)
            layer.register_forward_pre_hook(fed)
    return module


def measure(
    logits: Callable[[list[int]], np.ndarray],
    windows: list[list[int]],
    truth: list[np.ndarray],
    greedy: list[list[int]],
) -> dict[str, float]:
    loss, divergence, same, count = 0.0, 0.0, 0, 0
    for tokens, exact in zip(windows, truth, strict=True):
        p, q = (_log_softmax(x) for x in (exact, logits(tokens)))
        loss -= q[np.arange(len(tokens) - 1), tokens[1:]].sum()
        divergence += (np.exp(p) * (p - q)).sum()
        same += int((p.argmax(axis=1) == q.argmax(axis=1)).sum())
        count += len(tokens)
    kept, whole = 0, 0
    for tokens in greedy:
        drawn = logits(tokens)[GIVEN - 1 : -1].argmax(axis=1)
        wrong = np.flatnonzero(drawn != tokens[GIVEN:])
        kept += int(wrong[0]) if len(wrong) else NEW
        whole += not len(wrong)
    return {
        "perplexity": round(float(np.exp(loss / (count - len(windows)))), 4),
        "kl": float(f"{divergence / count:.4g}"),
        "same_top_1": round(same / count, 4),
        "greedy_tokens": round(kept / (NEW * len(greedy)), 4),
        "greedy_prompts": round(whole / len(greedy), 4),
    }


def _log_softmax(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    x = x - x.max(axis=1, keepdims=True)
    return np.asarray(x - np.log(np.exp(x).sum(axis=1, keepdims=True)))


def greedy_of(model: Model, prompts: list[list[int]]) -> list[list[int]]:
    """Prompts and what float64 says: ``accuracy`` draws the same, which the tests show."""
    asked = [Request(tuple(p), NEW) for p in prompts]
    plan = model.plan(asked, probes=0, digests=False)
    done = {e.index: e.trace for e in trace(model, plan, asked) if isinstance(e, Done)}
    return [[*p, *done[i].output] for i, p in enumerate(prompts)]


def compare(folder: Path, windows: list[list[int]], prompts: list[list[int]], work: Path) -> None:
    checkpoint = Checkpoint.open(folder)
    architecture = Architecture.of(checkpoint)
    device = CpuDevice(kernels_folder(), work / "cache")
    models = {
        v.name: Model.place(checkpoint, architecture, device, folder.name, v) for v in VERSIONS
    }
    exact = of_transformers(reference(folder, models[VERSIONS[0].name]))
    truth = [exact(tokens) for tokens in windows]
    greedy = greedy_of(models[VERSIONS[0].name], prompts)
    about = {"model": folder.name, "tokens": sum(map(len, windows))}
    about |= {"commit": bench_cpu.commit(), "cpu": bench_cpu.cpu_name()}
    kinds: dict[str, Callable[[], Callable[[list[int]], np.ndarray]]] = {"float64": lambda: exact}
    for name, model in models.items():
        kinds[name] = lambda model=model: of_plan(model)  # type: ignore[misc]
    for name in ("Q8_0", "Q4_0"):
        module = reference(folder, models[VERSIONS[0].name])
        kinds[name] = lambda module=module, name=name: of_transformers(rounded(module, name))  # type: ignore[misc]
    for name, make in kinds.items():
        line = {"arithmetic": name} | measure(make(), windows, truth, greedy) | about
        print(json.dumps(line), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, required=True, help="text to measure on")
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--work", type=Path, help="folder that keeps the weights of 350M")
    options = parser.parse_args()
    sample = sample_folder()
    tokens = Tokenizer.open(Checkpoint.open(sample)).encode(options.text.read_text())
    windows = [tokens[i * WINDOW : (i + 1) * WINDOW] for i in range(options.windows)]
    begins = range(0, len(tokens) - GIVEN, (len(tokens) - GIVEN) // PROMPTS)
    prompts = [tokens[begin : begin + GIVEN] for begin in begins][:PROMPTS]
    work = options.work or Path("/tmp")
    compare(sample, windows, prompts, work)
    if options.work:
        folder = bench_shape.make_checkpoint(options.work)
        rng = np.random.default_rng(0)
        windows = [rng.integers(0, bench_shape.VOCAB, WINDOW).tolist()]
        prompts = rng.integers(0, bench_shape.VOCAB, (PROMPTS, GIVEN)).tolist()
        compare(folder, windows, prompts, work)


if __name__ == "__main__":
    main()
