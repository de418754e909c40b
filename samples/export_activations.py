"""Export what happens inside a transformers model, for `llmtrace compare`.

    llmtrace run --json "Once upon a time" > run.json
    python samples/export_activations.py MODEL_DIR run.json -o inside.safetensors --dtype bfloat16
    llmtrace compare HEAD inside.safetensors

Feeds the run's prompt and output to a checkpoint on disk, in one teacher-forced pass, and writes
what stands at every point under its TransformerLens name: one tensor a point, (T, width) for the
T tokens that were fed, and (G, width) behind the last layer, for the G positions that drew a
token.  Tensors have the type in which the model computed them; llmtrace widens them exactly.

run.json is what `llmtrace run --json` printed, `-` is standard input.  Without it give the ids:
`--tokens "1 5 7 9" --drawn 2` feeds four tokens, of which the last two positions drew one each.

    --dtype bfloat16|float16|float32|float64   arithmetic of the pass, float32 if not said.  In
                                               float64 norms and angles are in float64 as well,
                                               and the tensors are rounded to float32
    --attention eager|sdpa                     how transformers computes attention
    --points GLOB                              only these points; may be repeated
    --device cpu|cuda

Takes Llama and whatever has its modules: `input_layernorm`, `self_attn.{q,k,v,o}_proj`,
`post_attention_layernorm`, `mlp.{gate,up,down}_proj`, no bias or with one.  Needs torch,
transformers and safetensors, and nothing of llmtrace: other engines can write such files alike.
"""

import argparse
import contextlib
import fnmatch
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn

DTYPES = ("bfloat16", "float16", "float32", "float64")
Put = Callable[[str, Tensor], None]


def load(folder: str | Path, dtype: str, attention: str = "sdpa", device: str = "cpu") -> Any:
    """Opens a checkpoint; nothing is fetched, and no code of it is run."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=getattr(torch, dtype),
        attn_implementation=attention,
        local_files_only=True,
        trust_remote_code=False,
    )
    model.eval().to(device)
    if dtype == "float64":
        _widen(model)
    return model


def collect(
    model: Any, tokens: list[int], drawn: int, wanted: tuple[str, ...] = ("*",)
) -> dict[str, Tensor]:
    """Feeds tokens and gives what stands at the points, the last `drawn` positions of the head."""
    found: dict[str, Tensor] = {}
    rows = len(tokens)

    def put(name: str, value: Tensor) -> None:
        if any(fnmatch.fnmatchcase(name, glob) for glob in wanted):
            flat = value.detach().reshape(-1, value.shape[-1] if value.ndim > 1 else 1)
            flat = flat[-(drawn if name.startswith(("ln_final", "unembed")) else rows) :]
            found[name] = (flat.float() if flat.dtype == torch.float64 else flat).cpu().clone()

    with _hooked(model, put), torch.no_grad():
        ids = torch.tensor([tokens], device=model.device)
        model(input_ids=ids, use_cache=False, logits_to_keep=drawn)
    return found


@contextlib.contextmanager
def _hooked(model: Any, put: Put) -> Iterator[None]:
    """Listens at all points for as long as it is open."""
    handles = []

    def after(module: nn.Module, name: str) -> None:
        handles.append(module.register_forward_hook(lambda _m, _x, y: put(name, _first(y))))

    def before(module: nn.Module, name: str) -> None:
        handles.append(module.register_forward_pre_hook(lambda _m, x: put(name, x[0])))

    def norm(module: nn.Module, name: str) -> None:
        handles.append(module.register_forward_pre_hook(lambda m, x: _norm(m, x[0], name, put)))

    after(model.model.embed_tokens, "hook_embed")
    for i, layer in enumerate(model.model.layers):
        at, attention, mlp = f"blocks.{i}.", layer.self_attn, layer.mlp
        norm(layer.input_layernorm, at + "ln1")
        for name in "qkv":
            after(getattr(attention, f"{name}_proj"), f"{at}attn.hook_{name}")
        before(attention.o_proj, at + "attn.hook_z")
        after(attention.o_proj, at + "hook_attn_out")
        before(layer.post_attention_layernorm, at + "hook_resid_mid")
        norm(layer.post_attention_layernorm, at + "ln2")
        after(mlp.gate_proj, at + "mlp.hook_pre")
        after(mlp.up_proj, at + "mlp.hook_pre_linear")
        before(mlp.down_proj, at + "mlp.hook_post")
        after(mlp.down_proj, at + "hook_mlp_out")
        after(layer, at + "hook_resid_post")
    norm(model.model.norm, "ln_final")
    before(model.lm_head, "unembed.hook_in")
    after(model.lm_head, "unembed.hook_out")
    with _rotated(model, put):
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _first(value: Any) -> Tensor:
    return value[0] if isinstance(value, tuple) else value


def _norm(module: Any, x: Tensor, name: str, put: Put) -> None:
    """What an RMS norm makes before its gain, as transformers does it."""
    wide = x if x.dtype == torch.float64 else x.float()
    square = wide.pow(2).mean(-1, keepdim=True) + module.variance_epsilon
    put(name + ".hook_scale", square.sqrt())
    put(name + ".hook_normalized", (wide * torch.rsqrt(square)).to(x.dtype))


@contextlib.contextmanager
def _rotated(model: Any, put: Put) -> Iterator[None]:
    """Listens to the rotation of queries and keys, which is a function and no module."""
    home: Any = sys.modules[type(model.model.layers[0].self_attn).__module__]
    rotate, layers = home.apply_rotary_pos_emb, iter(range(len(model.model.layers)))

    def listen(q: Tensor, k: Tensor, *args: Any, **options: Any) -> tuple[Tensor, Tensor]:
        both = rotate(q, k, *args, **options)
        at = f"blocks.{next(layers)}.attn.hook_rot_"
        for name, value in zip("qk", both, strict=True):
            put(at + name, value.transpose(1, 2).flatten(2))  # (1, heads, T, size) before
        return both

    home.apply_rotary_pos_emb = listen
    try:
        yield
    finally:
        home.apply_rotary_pos_emb = rotate


def _widen(model: Any) -> None:
    """Keeps in float64 what transformers computes in float32 whatever the model's type."""

    def norm(self: Any, x: Tensor) -> Tensor:
        return self.weight * (
            x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        )

    def angles(self: Any, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        angle = (position_ids[..., None].float() * self.inv_freq.float()).double()
        angle = torch.cat((angle, angle), dim=-1)
        return angle.cos() * self.attention_scaling, angle.sin() * self.attention_scaling

    for module in model.modules():
        if hasattr(module, "variance_epsilon"):
            module.forward = norm.__get__(module)
    model.model.rotary_emb.forward = angles.__get__(model.model.rotary_emb)


def _asked(arguments: argparse.Namespace) -> tuple[list[int], int]:
    """The tokens to feed, and at how many of the last positions one was drawn."""
    if arguments.tokens:
        return [int(word) for word in arguments.tokens.replace(",", " ").split()], arguments.drawn
    text = sys.stdin.read() if arguments.run == "-" else Path(arguments.run).read_text("utf-8")
    run = next(line for line in map(json.loads, text.splitlines()) if line["type"] == "run")
    return run["prompt_tokens"] + run["output_tokens"][:-1], len(run["output_tokens"])


def main() -> None:
    """Reads the command line, runs the model once, writes the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="folder of the checkpoint")
    parser.add_argument("run", nargs="?", default="-", help="what `llmtrace run --json` printed")
    parser.add_argument("-o", "--output", required=True, help="safetensors file to write")
    parser.add_argument("--tokens", help="ids of all tokens to feed, instead of a run")
    parser.add_argument("--drawn", type=int, default=1, help="positions that drew a token")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--attention", choices=("eager", "sdpa"), default="sdpa")
    parser.add_argument("--points", action="append", metavar="GLOB", help="only these points")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    tokens, drawn = _asked(arguments)
    model = load(arguments.model, arguments.dtype, arguments.attention, arguments.device)
    found = collect(model, tokens, drawn, tuple(arguments.points or ("*",)))
    origin = f"transformers {transformers.__version__}, {arguments.dtype}, {arguments.attention}"
    save_file(found, arguments.output, {"made_by": origin})
    print(f"{arguments.output}: {len(found)} points, {len(tokens)} tokens")


if __name__ == "__main__":
    main()
