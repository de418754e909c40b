"""Train the sample model: a small Llama of children's tales, on two CPU cores in about an hour.

    python samples/train.py DATA_DIR OUT_DIR [--minutes N] [--state FILE]   train, then measure
    python samples/train.py DATA_DIR OUT_DIR --card                         measure only

DATA_DIR holds the training texts named below and HELD_OUT, which neither tokenizer nor model ever
sees.  OUT_DIR receives the model in Hugging Face's form (weights in bfloat16) and metrics.json.

Shapes: hidden 256, 6 layers, 4 query heads and 2 key/value heads of 64, feed-forward 640, tied
embeddings of 2048 byte-level BPE tokens.  Master weights in float32; passes in bfloat16, compiled.
Recipe: prose is re-wrapped at 66 columns without blank lines, so that all books look alike.  A
step takes 4096 tokens as windows of 256, then 512, then 1024 tokens; half the windows begin at a
line's start behind the document token, half anywhere.  Tales are drawn at twice their size,
Shakespeare's plays at a third.  Muon steps the matrices, AdamW the embedding and the gains.  Rate
and window length follow the elapsed share of the time given: a busy machine trains on fewer tokens
and still ends on time with the rate at zero.  At the end the last gain is scaled, and all logits
with it, to the least loss on the texts' unseen ends: after several epochs they are too sure.
"""

import argparse
import bz2
import gzip
import itertools
import json
import lzma
import math
import re
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.nn import functional

TALES = "grimm oz bryant_stories burgess_busterbrown edgeworth_parents"
NOVELS = "austen_emma austen_persuasion austen_sense chesterton_ball chesterton_brown "
NOVELS += "chesterton_thursday dracula melville_moby_dick monte_cristo"
VERSE, HELD_OUT = "shakespeare", "alice.txt"
SHARES = dict.fromkeys(TALES.split(), 2.0) | dict.fromkeys(NOVELS.split(), 1.0) | {VERSE: 0.33}
COLUMNS, SEED = 66, 7
PROMPTS = "Once upon a time there was", '"Who are you?" said the'
VOCAB, HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, FF = 2048, 256, 6, 4, 2, 64, 640
CONTEXT, THETA, EPS = 1024, 10000.0, 1e-5
DOCUMENT, DOCUMENT_ID = "<|endoftext|>", 0
TOKENS_PER_STEP = 4096
WINDOWS = ((0.0, 256), (0.45, 512), (0.75, 1024))
MUON_RATE, MUON_DECAY, MUON_MOMENTUM = 0.02, 0.1, 0.95
ADAM_RATE, ADAM_BETAS = 0.004, (0.9, 0.95)
WARM_UP, DECAY_FROM = 0.02, 0.35
Weights = dict[str, Tensor]


def read_documents(path: Path) -> list[str]:
    """The documents of one text; prose comes back in lines of at most COLUMNS, no blank ones."""
    text = path.read_text(encoding="utf-8")
    if path.stem == VERSE or text.count("\n\n") < 100:
        return [text.strip() + "\n"]
    wrapper = textwrap.TextWrapper(COLUMNS, break_long_words=False, break_on_hyphens=False)
    documents = []
    for part in re.split(r"\n{3,}(?=[A-Z])", text):
        paragraphs = [wrapper.fill(" ".join(p.split())) for p in part.split("\n\n")]
        documents.append("\n".join(paragraphs) + "\n")
    return documents


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Learns a byte-level BPE whose encodings begin with the document token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    options = {"vocab_size": VOCAB, "special_tokens": [DOCUMENT], "show_progress": False}
    options["initial_alphabet"] = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(**options))
    special = [(DOCUMENT, DOCUMENT_ID)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{DOCUMENT} $A", pair=f"{DOCUMENT} $A {DOCUMENT} $B", special_tokens=special
    )
    return tokenizer


class Corpus:
    """The training tokens, file by file, each file's unseen last 513, and the windows drawn."""

    def __init__(self, tokenizer: Tokenizer, files: dict[str, list[str]]) -> None:
        ends_line = np.array(["Ċ" in (tokenizer.id_to_token(i) or "") for i in range(VOCAB)])
        tokens = [np.concatenate([tokenizer.encode(d).ids for d in f]) for f in files.values()]
        self.train = [t[:-513] for t in tokens]
        last = torch.from_numpy(np.stack([t[-513:] for t in tokens]))
        self.valid = last[:, :-1], last[:, 1:]
        self.line_starts = [1 + np.flatnonzero(ends_line[t[:-1]]) for t in self.train]
        mass = np.array([len(t) * SHARES[n] for t, n in zip(self.train, files, strict=True)])
        self.share = mass / mass.sum()

    def batch(self, rng: np.random.Generator, length: int) -> tuple[Tensor, Tensor]:
        """Draws the windows of one step: inputs and targets, [windows, length] each."""
        rows: list[np.ndarray] = []
        for k in rng.choice(len(self.train), TOKENS_PER_STEP // length, p=self.share):
            tokens, lines = self.train[k], self.line_starts[k]
            start = int(rng.integers(1, len(tokens) - length - 1))
            rows.append(tokens[start : start + length + 1])
            if rng.random() < 0.5:
                start = lines[max(np.searchsorted(lines, start) - 1, 0)]
                rows[-1] = np.concatenate([[DOCUMENT_ID], tokens[start : start + length]])
        x = torch.from_numpy(np.stack(rows))
        return x[:, :-1].contiguous(), x[:, 1:].contiguous()


def initial_weights() -> Weights:
    """In float32, normal; the matrices that write to the residual stream begin at zero."""
    generator = torch.Generator().manual_seed(SEED)
    embedding = torch.empty(VOCAB, HIDDEN).normal_(0, 0.03, generator=generator)
    weights: Weights = {"model.embed_tokens.weight": embedding}
    q, kv = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    shapes = {"q": (q, HIDDEN), "k": (kv, HIDDEN), "v": (kv, HIDDEN), "o": (HIDDEN, q)}
    shapes |= {"gate": (FF, HIDDEN), "up": (FF, HIDDEN), "down": (HIDDEN, FF)}
    for i in range(LAYERS):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            weights[f"model.layers.{i}.{norm}.weight"] = torch.ones(HIDDEN)
        for name, shape in shapes.items():
            key = f"model.layers.{i}.{'self_attn' if name in 'qkvo' else 'mlp'}.{name}_proj.weight"
            deviation = 0 if name in ("o", "down") else 0.6 / math.sqrt(HIDDEN)
            weights[key] = torch.empty(shape).normal_(0, deviation, generator=generator)
    weights["model.norm.weight"] = torch.ones(HIDDEN)
    return weights


def rotary_tables(length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines, [length, HEAD_DIM] each."""
    frequency = THETA ** -(torch.arange(0, HEAD_DIM, 2).float() / HEAD_DIM)
    angle = torch.outer(torch.arange(length).float(), frequency).repeat(1, 2)
    return angle.cos().to(dtype), angle.sin().to(dtype)


def logits_of(w: Weights, ids: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Maps ids [batch, length] to logits [batch, length, VOCAB]."""
    batch, length = ids.shape

    def heads(x: Tensor, name: str, count: int) -> Tensor:
        return functional.linear(x, w[name]).view(batch, length, count, HEAD_DIM).transpose(1, 2)

    def rotate(x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=-1)
        return x * cos + torch.cat((-b, a), dim=-1) * sin

    x = functional.embedding(ids, w["model.embed_tokens.weight"])
    for i in range(LAYERS):
        p = f"model.layers.{i}."
        h = functional.rms_norm(x, (HIDDEN,), w[p + "input_layernorm.weight"], EPS)
        q = rotate(heads(h, p + "self_attn.q_proj.weight", HEADS))
        k = rotate(heads(h, p + "self_attn.k_proj.weight", KV_HEADS))
        v = heads(h, p + "self_attn.v_proj.weight", KV_HEADS)
        a = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        a = a.transpose(1, 2).reshape(batch, length, HEADS * HEAD_DIM)
        x = x + functional.linear(a, w[p + "self_attn.o_proj.weight"])
        h = functional.rms_norm(x, (HIDDEN,), w[p + "post_attention_layernorm.weight"], EPS)
        gate = functional.silu(functional.linear(h, w[p + "mlp.gate_proj.weight"]))
        up = functional.linear(h, w[p + "mlp.up_proj.weight"])
        x = x + functional.linear(gate * up, w[p + "mlp.down_proj.weight"])
    x = functional.rms_norm(x, (HIDDEN,), w["model.norm.weight"], EPS)
    return functional.linear(x, w["model.embed_tokens.weight"])


def mean_loss(w: Weights, ids: Tensor, targets: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Nats a token."""
    logits = logits_of(w, ids, cos, sin).float().flatten(0, 1)
    return functional.cross_entropy(logits, targets.flatten())


class Optimizer:
    """Muon for the layers' matrices, stacked by shape; AdamW, undecayed, for everything else."""

    def __init__(self, master: Weights) -> None:
        self.master, self.moments = master, {n: torch.zeros_like(w) for n, w in master.items()}
        self.stacks: dict[tuple[int, ...], list[str]] = {}
        for name in [n for n in master if n.endswith("_proj.weight")]:
            self.stacks.setdefault(tuple(sorted(master[name].shape)), []).append(name)
        self.others = [n for n in master if not n.endswith("_proj.weight")]
        self.moments |= {n + ".square": torch.zeros_like(master[n]) for n in self.others}

    @torch.no_grad()
    def step(self, gradients: Weights, scale: float, count: int) -> None:
        """Steps the master weights in place; count is one for the first step."""
        for (rows, _), names in self.stacks.items():
            wide = []
            for g, m in ((gradients[n].float(), self.moments[n]) for n in names):
                g.lerp_(m.lerp_(g, 1 - MUON_MOMENTUM), MUON_MOMENTUM)
                wide.append(g if g.shape[0] == rows else g.T)
            for name, o in zip(names, orthogonal(torch.stack(wide)).float(), strict=True):
                w, rate = self.master[name], scale * MUON_RATE
                w.mul_(1 - rate * MUON_DECAY)
                rate *= max(1, w.shape[0] / w.shape[1]) ** 0.5
                w.sub_(o if w.shape[0] == rows else o.T, alpha=rate)
        b1, b2 = ADAM_BETAS
        for name in self.others:
            g, m, v = gradients[name].float(), self.moments[name], self.moments[name + ".square"]
            m.lerp_(g, 1 - b1)
            v.lerp_(g.square(), 1 - b2)
            root = (v / (1 - b2**count)).sqrt_().add_(1e-10)
            self.master[name].addcdiv_(m, root, value=-scale * ADAM_RATE / (1 - b1**count))


def orthogonal(g: Tensor) -> Tensor:
    """Newton-Schulz: every [rows <= columns] matrix of the stack with singular values near one."""
    x = (g / (g.norm(dim=(-2, -1), keepdim=True) + 1e-7)).bfloat16()
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + torch.baddbmm(a, a, a, beta=-4.7750, alpha=2.0315) @ x
    return x


def train(corpus: Corpus, out: Path, minutes: float, state_file: Path | None) -> dict[str, Any]:
    """Train until the time is up, saving weights and, if asked, the state every minute."""
    master = initial_weights()
    optimizer = Optimizer(master)
    run: dict[str, Any] = {"seconds": 0.0, "steps": 0, "tokens_seen": 0, "log": []}
    if state_file and state_file.exists():
        run, kept, moments = torch.load(state_file, weights_only=True)
        master.update(kept)
        optimizer.moments.update(moments)
    loss_of, losses = torch.compile(mean_loss, dynamic=False), []
    start, saved = time.monotonic() - run["seconds"], time.monotonic()
    while (share := (time.monotonic() - start) / (60 * minutes)) < 1:
        length = max(n for since, n in WINDOWS if share >= since)
        ids, targets = corpus.batch(np.random.default_rng((SEED, run["steps"])), length)
        work = {n: w.bfloat16().requires_grad_() for n, w in master.items()}
        loss = loss_of(work, ids, targets, *rotary_tables(length, torch.bfloat16))
        gradients = torch.autograd.grad(loss, list(work.values()))
        run["steps"] += 1
        run["tokens_seen"] += ids.numel()
        rate = min(share / WARM_UP, 1, (1 - share) / (1 - DECAY_FROM))
        optimizer.step(dict(zip(work, gradients, strict=True)), rate, run["steps"])
        losses.append(loss.item())
        run["seconds"] = (now := time.monotonic()) - start
        if now - saved > 60:
            saved = now
            with torch.no_grad():
                valid = mean_loss(work, *corpus.valid, *rotary_tables(512, torch.bfloat16)).item()
            line = [round(now - start), run["steps"], sum(losses) / len(losses), valid]
            run["log"].append([round(x, 4) for x in line])
            print("seconds {}  step {}  train {:.4f}  valid {:.4f}".format(*line), flush=True)
            losses.clear()
            export(master, out)
            if state_file:
                torch.save((run, master, optimizer.moments), temporary := Path(f"{state_file}.tmp"))
                temporary.replace(state_file)
    run["logits_scaled_by"] = calibrate(master, corpus)
    export(master, out)
    return run


@torch.no_grad()
def calibrate(master: Weights, corpus: Corpus) -> float:
    """Scales the last gain to the least loss on the unseen ends of the training texts."""
    gain, losses = master["model.norm.weight"], {}
    for scale in (percent / 100 for percent in range(80, 111, 2)):
        master["model.norm.weight"] = gain * scale
        losses[scale] = mean_loss(master, *corpus.valid, *rotary_tables(512, torch.float32)).item()
    best = min(losses, key=losses.__getitem__)
    master["model.norm.weight"] = gain * best
    return best


def export(master: Weights, out: Path) -> None:
    """Writes the weights in bfloat16, whole or not at all."""
    if not all(w.isfinite().all() for w in master.values()):
        raise SystemExit("the weights are not finite; nothing was written")
    temporary = out / "model.safetensors.tmp"
    save_file({n: w.bfloat16() for n, w in master.items()}, temporary, metadata={"format": "pt"})
    temporary.chmod(0o644)
    temporary.replace(out / "model.safetensors")


def write_configs(out: Path) -> None:
    """Writes what other programs need to know of the model."""
    tokens = {"bos_token_id": DOCUMENT_ID, "eos_token_id": DOCUMENT_ID}
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": VOCAB,
        "hidden_size": HIDDEN, "intermediate_size": FF, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM,
        "hidden_act": "silu", "max_position_embeddings": CONTEXT, "rope_theta": THETA,
        "rms_norm_eps": EPS, "attention_bias": False, "mlp_bias": False,
        "tie_word_embeddings": True, "torch_dtype": "bfloat16",
    }  # fmt: skip
    sampling = {"do_sample": True, "temperature": 0.8, "top_p": 0.95, "max_new_tokens": 256}
    names = {"bos_token": DOCUMENT, "eos_token": DOCUMENT, "model_max_length": CONTEXT}
    names |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    files = {"config": config | tokens, "generation_config": sampling | tokens}
    for name, value in (files | {"tokenizer_config": names}).items():
        (out / f"{name}.json").write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


@torch.no_grad()
def total_nats(weights: Weights, tokens: np.ndarray, window: int) -> float:
    """Nats of all tokens behind the first; windows move on by half their length."""
    x, last = torch.from_numpy(tokens), len(tokens) - 1
    nats, scored = 0.0, 0
    for begin in range(0, max(last - window // 2, 1), window // 2):
        end = min(begin + window, last)
        tables = rotary_tables(end - begin, torch.float32)
        new = logits_of(weights, x[None, begin:end], *tables)[0, scored - begin :]
        nats += functional.cross_entropy(new, x[scored + 1 : end + 1], reduction="sum").item()
        scored = end
    return nats


def kneser_ney_nats(train: np.ndarray, test: np.ndarray, order: int = 5) -> float:
    """Nats of test behind its first token: interpolated Kneser-Ney, a discount for each order."""

    def grams(tokens: np.ndarray, n: int) -> np.ndarray:  # 11 bits a token, the last one lowest
        x = np.pad(tokens, (n - 1, 0))
        return sum(x[k : k + len(tokens)] << (11 * (n - 1 - k)) for k in range(n))

    def look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        return np.where(keys[at] == wanted, values[at], 0)

    probability = np.full(len(test), 1 / VOCAB)
    for n in range(1, order + 1):
        longer = np.unique(grams(train, n + 1)) & ((1 << (11 * n)) - 1) if n < order else None
        keys, counts = np.unique(grams(train, n) if n == order else longer, return_counts=True)
        ones, twos = max((counts == 1).sum(), 1), (counts == 2).sum()
        discount = ones / (ones + 2 * twos + 1)
        contexts, first = np.unique(keys >> 11, return_index=True)
        wanted = grams(test, n)
        total = look_up(contexts, np.add.reduceat(counts, first), wanted >> 11)
        rest = discount * look_up(contexts, np.diff(np.append(first, len(keys))), wanted >> 11)
        own = np.maximum(look_up(keys, counts, wanted) - discount, 0) + rest * probability
        probability = np.where(total > 0, own / np.maximum(total, 1), probability)
    return -float(np.log(probability[1:]).sum())


@torch.no_grad()
def sample(weights: Weights, tokenizer: Tokenizer, prompt: str, count: int, heat: float) -> str:
    """Continues the prompt by count tokens; heat 0 takes the likeliest."""
    generator, ids = torch.Generator().manual_seed(SEED), tokenizer.encode(prompt).ids
    for _ in range(count):
        x = torch.tensor(ids[-CONTEXT:])[None]
        last = logits_of(weights, x, *rotary_tables(x.shape[1], torch.float32))[0, -1]
        drawn = torch.multinomial((last / (heat or 1)).softmax(-1), 1, generator=generator)
        ids.append(int(drawn if heat else last.argmax()))
    return tokenizer.decode(ids, skip_special_tokens=False)


def card(corpus: Corpus, tokenizer: Tokenizer, held_out: Path, out: Path) -> dict[str, Any]:
    """Measures the saved weights and the yardsticks on the held-out text; prints table rows."""
    weights = {n: w.float() for n, w in load_file(out / "model.safetensors").items()}
    raw = held_out.read_bytes()
    tokens = np.array(tokenizer.encode(raw.decode("utf-8")).ids)
    if tokenizer.decode(tokens).encode("utf-8") != raw:
        raise SystemExit(f"{held_out.name} does not survive encoding and decoding")
    packed = {"gzip -9": gzip.compress(raw, 9), "bzip2 -9": bz2.compress(raw, 9)}
    packed["xz -9e"] = lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME)
    nats = {"5-gram": kneser_ney_nats(np.concatenate(corpus.train), tokens)}
    nats |= {f"model, windows of {n}": total_nats(weights, tokens, n) for n in (256, 512, CONTEXT)}
    bits = {k: 8 * len(v) / len(raw) for k, v in packed.items()}
    bits |= {k: v / math.log(2) / len(raw) for k, v in nats.items()}
    print(*(f"| {k} | {v:.3f} |" for k, v in bits.items()), sep="\n")
    for prompt, heat in itertools.product(PROMPTS, (0.0, 0.8)):
        print(f"\n--- temperature {heat}\n{sample(weights, tokenizer, prompt, 160, heat)}")
    return {
        "parameters": sum(w.numel() for w in weights.values()),
        "tokens": {"training": sum(map(len, corpus.train)), "held_out": len(tokens) - 1},
        "perplexity_per_token": {k: math.exp(v / (len(tokens) - 1)) for k, v in nats.items()},
        "bits_per_byte": bits,
    }


def main() -> None:
    """Trains, unless told only to measure, then measures."""
    parser = argparse.ArgumentParser(description="Train and measure the sample model.")
    parser.add_argument("data", type=Path, help="folder of the texts")
    parser.add_argument("out", type=Path, help="folder of the model")
    parser.add_argument("--minutes", type=float, default=60, help="wall time to train for")
    parser.add_argument("--state", type=Path, help="file to save to and resume from")
    parser.add_argument("--card", action="store_true", help="measure only")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    files = {name: read_documents(args.data / f"{name}.txt") for name in SHARES}
    tokenizer_file, metrics_file = args.out / "tokenizer.json", args.out / "metrics.json"
    if not args.card:
        tokenizer = train_tokenizer([d for documents in files.values() for d in documents])
        tokenizer.save(str(tokenizer_file))
        write_configs(args.out)
        corpus = Corpus(tokenizer, files)
        metrics = {"training": train(corpus, args.out, args.minutes, args.state)}
    else:
        corpus = Corpus(tokenizer := Tokenizer.from_file(str(tokenizer_file)), files)
        metrics = json.loads(metrics_file.read_text(encoding="utf-8"))
    metrics["held_out"] = card(corpus, tokenizer, args.data / HELD_OUT, args.out)
    metrics_file.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
