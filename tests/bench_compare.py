"""How often `llmtrace compare` is right: other engines that are honest, and others that are not.

    python -m tests.bench_compare [--trials N] [--levels stats,detail] [--seed S] [KIND...]

One JSON line a level and kind: what was done, whether it should agree, trials, how many did, and
the 95 % interval of that share (Wilson 1927); in how many trials each witness told; and where it
should agree, how near each came to its threshold. A trial is a prompt of the sample model
from 8 to 40 tokens and 4 to 16 tokens of output, recorded by llmtrace, and the same tokens fed
to transformers.
"""

import argparse
import collections
import contextlib
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "samples"))

import export_activations as exporter
import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from checkpoints import make
from commands import answer, home, open_store
from llmtrace.introspect.compare import Comparison, Told, compare
from llmtrace.introspect.tensors import tensors_of
from llmtrace.verify.reading import Run

SAMPLE = Path(__file__).parents[1] / "samples" / "model"
Inside = dict[str, Tensor]
Edit = Callable[[Inside, np.random.Generator], None]


class Kind(NamedTuple):
    """What another engine did: its arithmetic, its model, what became of the file."""

    agrees: bool
    model: str = "sample"
    dtype: str = "bfloat16"
    attention: str = "sdpa"
    threads: int = 1
    noise: str = "bfloat16"
    edit: Edit | None = None
    inside: str = ""
    record: str = "sample"


def small(found: Inside, draw: np.random.Generator) -> None:
    """Turns the sign of all values below the median of their row, at one point."""
    x = found[_point(found, draw)]
    size = x.abs().float()
    x[size < size.median(-1, keepdim=True).values] *= -1


def single(found: Inside, draw: np.random.Generator) -> None:
    """Moves one column of one point by the rms of its row."""
    x = found[_point(found, draw)]
    column = int(draw.integers(x.shape[1]))
    x[:, column] += x.float().pow(2).mean(-1).sqrt().to(x.dtype)


def massive(found: Inside, draw: np.random.Generator) -> None:
    """Moves the largest column of the residual stream behind one layer by 2 %."""
    x = found[f"blocks.{draw.integers(6)}.hook_resid_post"].float()
    column = int(x.abs().mean(0).argmax())
    name = next(n for n, v in found.items() if v.shape == x.shape and torch.equal(v.float(), x))
    x[:, column] *= 1.02
    found[name] = x


def zeroed(found: Inside, draw: np.random.Generator) -> None:
    """Writes one neuron of one layer as 0."""
    x = found[f"blocks.{draw.integers(6)}.mlp.hook_post"]
    x[:, int(draw.integers(x.shape[1]))] = 0


def _point(found: Inside, draw: np.random.Generator) -> str:
    names = [name for name, x in found.items() if x.shape[1] >= 32]
    return names[int(draw.integers(len(names)))]


KINDS = {
    "bfloat16 eager": Kind(True, attention="eager"),
    "bfloat16 sdpa": Kind(True),
    "bfloat16 2 threads": Kind(True, threads=2),
    "float16": Kind(True, dtype="float16", attention="eager", noise="float16"),
    "float32": Kind(True, dtype="float32"),
    "float32 as such": Kind(True, dtype="float32", attention="eager", noise="float32"),
    "int8 rows, float32": Kind(False, "int8", "float32"),
    "int8 rows, bfloat16": Kind(False, "int8"),
    "int4 groups of 64": Kind(False, "int4"),
    "float16 weights, float32": Kind(False, "half", "float32", noise="float32", record="wide"),
    "another model": Kind(False, "random"),
    "fine-tuned neighbour": Kind(False, "tuned"),
    "weights with 1 % noise": Kind(False, "noisy"),
    "one token of the prompt": Kind(False, inside="prompt"),
    "a head by 1.05": Kind(False, inside="head"),
    "a neuron zeroed": Kind(False, inside="neuron"),
    "a neuron zeroed in the file": Kind(False, edit=zeroed),
    "small entries": Kind(False, edit=small),
    "one entry by 1 sigma": Kind(False, edit=single),
    "a massive one by 2 %": Kind(False, edit=massive),
}


def int8(w: Tensor) -> Tensor:
    """A scale a row."""
    scale = w.abs().amax(1, keepdim=True) / 127
    return (w / scale).round().clamp(-127, 127) * scale


def int4(w: Tensor) -> Tensor:
    """A scale and a minimum for 64 weights."""
    groups = w.reshape(len(w), -1, 64)
    low, high = groups.amin(2, keepdim=True), groups.amax(2, keepdim=True)
    scale = (high - low) / 15
    return (((groups - low) / scale).round() * scale + low).reshape(w.shape)


class Bench:
    """A home with records of the sample model, and other engines beside it."""

    def __init__(self, folder: Path, seed: int = 1, steps: int = 20) -> None:
        self.folder, self.draw, self.steps = folder, np.random.default_rng(seed), steps
        self.store = open_store(folder)
        self.models: dict[tuple[str, str, str], Any] = {}
        text = ("--prompt-tokens", "0", "-n", "1000", "--temperature", "1", "--seed", str(seed))
        self.text = answer("run", "-m", SAMPLE, "--no-commit", *text)["output_tokens"]

    def recorded(self, level: str, record: str, prompt: list[int], count: int) -> Told:
        """A record of the prompt, as compare reads it."""
        folder = SAMPLE if record == "sample" else self.wide()
        asked = ("--prompt-tokens", " ".join(map(str, prompt)), "-n", str(count))
        said = answer("run", "-m", folder, "--probe", level, *asked)
        run = Run.of(self.store.read(said["commit"]))
        return Told(run.claim, run.points, run.stored, run.kept)

    def prompt(self) -> tuple[list[int], int]:
        """Tokens that the sample model wrote, and how many to ask for."""
        length, begin = int(self.draw.integers(8, 41)), int(self.draw.integers(0, 900))
        return self.text[begin : begin + length], int(self.draw.integers(4, 17))

    def made(self, kind: Kind, told: Told) -> Path:
        """A file of what the other engine made of the record's tokens."""
        tokens = [*told.claim.request.prompt, *told.claim.output[:-1]]
        if kind.inside == "prompt":
            at = int(self.draw.integers(len(told.claim.request.prompt)))
            tokens[at] = (tokens[at] + int(self.draw.integers(1, 2048))) % 2048
        torch.set_num_threads(kind.threads)
        model = self.model(kind)
        with self.changed(model, kind.inside):
            found = exporter.collect(model, tokens, len(told.claim.output))
        if kind.edit:
            kind.edit(found, self.draw)
        save_file(found, self.folder / "inside.safetensors")
        return self.folder / "inside.safetensors"

    def judge(self, kind: Kind, told: Told) -> Comparison:
        """One trial."""
        return compare(told, tensors_of(self.made(kind, told)), kind.noise)

    @contextlib.contextmanager
    def changed(self, model: Any, what: str) -> Iterator[None]:
        """Edits one layer for as long as it is open."""
        layer = model.model.layers[int(self.draw.integers(6))]
        head, neuron = int(self.draw.integers(4)), int(self.draw.integers(640))
        handles = []
        if what == "head":
            scale = torch.ones(256, dtype=model.dtype)
            scale[64 * head : 64 * head + 64] = 1.05
            project = layer.self_attn.o_proj
            handles = [project.register_forward_pre_hook(lambda _m, x: (x[0] * scale,))]
        if what == "neuron":
            keep = torch.ones(640, dtype=model.dtype)
            keep[neuron] = 0
            project = layer.mlp.down_proj
            handles = [project.register_forward_pre_hook(lambda _m, x: (x[0] * keep,))]
        yield
        for handle in handles:
            handle.remove()

    def model(self, kind: Kind) -> Any:
        """Opens the other engine's model, once."""
        key = (kind.model, kind.dtype, kind.attention)
        if key not in self.models:
            self.models[key] = self.opened(*key)
        return self.models[key]

    def opened(self, name: str, dtype: str, attention: str) -> Any:
        """The sample model, or what became of it."""
        if name == "random":
            sizes = {"hidden": 256, "layers": 6, "heads": 4, "kv_heads": 2, "ff": 640}
            folder = make(self.folder / "random", vocab=2048, tied=True, tokenizer=False, **sizes)
            return exporter.load(folder, dtype, attention)
        if name == "tuned":
            return tuned(
                exporter.load(SAMPLE, "float32", attention), self.text, self.steps
            ).bfloat16()
        model = exporter.load(self.wide() if name == "half" else SAMPLE, dtype, attention)
        edits: dict[str, Callable[[Tensor], Tensor]] = {
            "int8": int8,
            "int4": int4,
            "half": lambda w: w.half().float(),
            "noisy": lambda w: w * (1 + 0.01 * torch.from_numpy(self.draw.normal(size=w.shape))),
        }
        with torch.no_grad():
            for weight in (p for n, p in model.named_parameters() if n.endswith("_proj.weight")):
                if name in edits:
                    weight.copy_(edits[name](weight.float()).to(weight.dtype))
        return model

    def wide(self) -> Path:
        """The sample model with weights that take all of float32."""
        folder = self.folder / "wide"
        if not folder.exists():
            shutil.copytree(SAMPLE, folder)
            config = json.loads((SAMPLE / "config.json").read_text()) | {"torch_dtype": "float32"}
            (folder / "config.json").write_text(json.dumps(config))
            torch.manual_seed(3)
            weights = load_file(SAMPLE / "model.safetensors")
            wide = {n: w.float() * (1 + 0.001 * torch.randn(w.shape)) for n, w in weights.items()}
            save_file(wide, folder / "model.safetensors", {"format": "pt"})
        return folder


def tuned(model: Any, text: list[int], count: int) -> Any:
    """The model after some steps of Adam at 1e-4 on one window of text."""
    window = torch.tensor([text[:256]])
    steps = torch.optim.Adam(model.parameters(), lr=1e-4)
    for _ in range(count):
        steps.zero_grad()
        model(input_ids=window, labels=window).loss.backward()
        steps.step()
    return model.eval()


def wilson(hits: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927)."""
    z, p = 1.959964, hits / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5 / (1 + z * z / n)
    return round(max(centre - half, 0.0), 4), round(min(centre + half, 1.0), 4)


def nearest(most: dict[str, float]) -> dict[str, float]:
    """The greatest ratio of each witness to its threshold, greatest first."""
    return {n: round(v, 3) for n, v in sorted(most.items(), key=lambda each: -each[1])}


def measure(bench: Bench, level: str, kinds: list[str], trials: int) -> list[dict[str, Any]]:
    """One line a kind."""
    agreed: dict[str, int] = collections.Counter()
    most: dict[str, dict[str, float]] = {name: collections.Counter() for name in kinds}
    telling: dict[str, dict[str, int]] = {name: collections.Counter() for name in kinds}
    for _ in range(trials):
        prompt, count = bench.prompt()
        told: dict[str, Told] = {}
        for name in kinds:
            kind = KINDS[name]
            if kind.record not in told:
                told[kind.record] = bench.recorded(level, kind.record, prompt, count)
            judged = bench.judge(kind, told[kind.record])
            agreed[name] += judged.judgement == "agrees"
            for witness in {f.witness for t in judged.tensors for f in t.findings if f.ratio > 1}:
                telling[name][witness] += 1
            for finding in (f for t in judged.tensors for f in t.findings):
                most[name][finding.witness] = max(most[name][finding.witness], finding.ratio)
    return [
        {
            "level": level,
            "kind": name,
            "noise": KINDS[name].noise,
            "should": "agree" if KINDS[name].agrees else "differ",
            "trials": trials,
            "agreed": agreed[name],
            "share_right": (right := agreed[name] if KINDS[name].agrees else trials - agreed[name])
            / trials,
            "interval": wilson(right, trials),
            "told": dict(sorted(telling[name].items(), key=lambda each: -each[1])),
            **({"nearest": nearest(most[name])} if KINDS[name].agrees else {}),
        }
        for name in kinds
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", default=[*KINDS])
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--levels", default="stats,detail")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder, home(Path(folder)):
        for level in asked.levels.split(","):
            bench = Bench(Path(folder), asked.seed)
            for line in measure(bench, level, asked.kinds or [*KINDS], asked.trials):
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
