"""``speed`` and ``memory``: the same bits however run, near float64 on the same levels."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from checkpoints import make, reference_model
from commands import answer, call
from llmtrace.blocks.versions import VERSIONS, version
from llmtrace.engine.draft import Ngram
from llmtrace.engine.request import Request, Sampling
from llmtrace.engine.trace import Done, trace
from llmtrace.errors import Inconclusive, Trouble
from llmtrace.introspect.invariants import levels
from running import device, load, run

if TYPE_CHECKING:
    from pathlib import Path

    from llmtrace.engine.sequence import Trace

INTEGERS = ("speed", "memory")
SHAPES: dict[str, dict[str, Any]] = {
    "odd sizes, biases": {
        **{"head_size": 40, "hidden": 72, "ff": 130, "vocab": 300, "layers": 3},
        **{"attention_bias": True, "mlp_bias": True},
    },
    "tied, float16": {"tied": True, "dtype": "float16", "hidden": 192, "ff": 320},
    "head 128, float32": {"head_size": 128, "heads": 2, "dtype": "float32", "ff": 1100},
}
BUILDS = {
    "1 thread": {"threads": 1},
    "5 threads": {"threads": 5},
    "AVX2": {"cpu": "x86-64-v3"},
    "no FMA": {"cpu": "x86-64-v2"},
    "generic": {"cpu": "generic"},
    "clang": {"cxx": f"{sys.executable} -m ziglang c++"},
}


def prompt_of(length: int) -> tuple[int, ...]:
    return tuple(np.random.default_rng(length).integers(0, 256, length).tolist())


REQUESTS = [
    Request(prompt_of(length), 12, Sampling(np.float32(0.9), 40, 3 << 30, seed=length))
    for length in (1, 2, 5, 17, 130, 257)
]


@pytest.fixture(scope="module", params=SHAPES.values(), ids=SHAPES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("model"), **request.param)


@pytest.fixture(scope="module", params=INTEGERS)
def numerics(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def alone(folder: Path, numerics: str) -> list[Trace]:
    model = load(folder, numerics=numerics)
    return [run(model, [request], level="detail")[0] for request in REQUESTS]


def told(traces: list[Trace]) -> list[Any]:
    """All that records hold of the traces."""
    return [
        (t.output, t.logprobs.tobytes(), t.commitment, t.observer.parts() if t.observer else None)
        for t in traces
    ]


def test_how_it_is_run_moves_no_bit(folder: Path, numerics: str, alone: list[Trace]) -> None:
    model = load(folder, numerics=numerics)
    assert told(run(model, REQUESTS, chunk=50, level="detail")) == told(alone)
    for chunk in (1, 7):
        assert told(run(model, REQUESTS[4:5], chunk=chunk, level="detail")) == told(alone[4:5])
    forced = [
        Request(r.prompt, r.max_tokens, r.sampling, r.stop, t.output)
        for r, t in zip(REQUESTS, alone, strict=True)
    ]
    assert told(run(model, forced, level="detail")) == told(alone)
    assert [t.commitment for t in run(model, REQUESTS)] == [t.commitment for t in alone]
    assert len({t.commitment.root for t in alone}) == len(REQUESTS)


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
def test_builds_agree(
    folder: Path, numerics: str, alone: list[Trace], build: dict[str, Any]
) -> None:
    model = load(folder, device(**build), numerics=numerics)
    assert told(run(model, REQUESTS[2:5], level="detail")) == told(alone[2:5])


def test_drafts_move_no_bit(folder: Path, numerics: str, alone: list[Trace]) -> None:
    model = load(folder, numerics=numerics)
    done = {
        event.index: event.trace
        for event in trace(model, model.plan(REQUESTS), REQUESTS, draft=lambda _: Ngram())
        if isinstance(event, Done)
    }
    assert [done[i].commitment for i in range(len(REQUESTS))] == [t.commitment for t in alone]


def test_logits_are_those_of_the_levels_in_float64(folder: Path, numerics: str) -> None:
    """Weights, what is multiplied and what is cached stand on the levels; the rest is exact.

    A value between two levels may fall on either side, so logits agree within a part of a level.
    """
    model, request = load(folder, numerics=numerics), Request(prompt_of(70), 2)
    (found,) = run(model, [request], keep=["unembed.hook_out"])
    ours = found.kept["unembed.hook_out"][0].astype("f8")
    rate = model.architecture.inverse_frequencies(request.run_limit)
    exact = _logits(reference_model(folder, rate), request.prompt)
    rounded = _logits(_on_levels(reference_model(folder, rate), numerics), request.prompt)
    size = np.sqrt((exact**2).mean())
    off, apart = (np.sqrt(((x - rounded) ** 2).mean()) / size for x in (ours, exact))
    assert apart > {"speed": 0.002, "memory": 0.03}[numerics]
    assert off < 0.35 * apart


def _logits(model: Any, tokens: tuple[int, ...]) -> np.ndarray:
    import torch

    with torch.no_grad():
        return np.asarray(model(torch.tensor([tokens]), use_cache=False).logits[0, -1], "f8")


def _on_levels(model: Any, numerics: str) -> Any:
    import torch

    def snapped(x: Any, make: Any) -> Any:
        rows = x.detach().reshape(-1, x.shape[-1]).numpy().astype("f4")
        return torch.from_numpy(make(rows)).reshape(x.shape).double()

    def fed(_: Any, args: Any) -> Any:
        return (snapped(args[0], lambda rows: levels.rows(rows).values(rows.shape[1])),)

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            bits = 4 if numerics == "memory" and name != "lm_head" else 8
            made = levels.weights(module.weight.detach().numpy().astype("f4"), bits)
            weight = torch.from_numpy(made.values(module.weight.shape[1]))
            module.weight = torch.nn.Parameter(weight)  # not the embedding's, if that is the same
            module.register_forward_pre_hook(fed)
    if numerics == "memory":
        _snap_cache(model, snapped)
    return model


def _snap_cache(model: Any, snapped: Any) -> None:
    from transformers.models.llama import modeling_llama

    plain = modeling_llama.ALL_ATTENTION_FUNCTIONS["float64"]

    def attention(module: Any, query: Any, key: Any, value: Any, *rest: Any, **more: Any) -> Any:
        key, value = (snapped(x, levels.row) for x in (key, value))
        return plain(module, query, key, value, *rest, **more)

    modeling_llama.ALL_ATTENTION_FUNCTIONS.register("on levels", attention)
    model.config._attn_implementation = "on levels"


@pytest.mark.parametrize("bad", [b"\xc0\x7f", b"\x80\x7f"])
def test_a_weight_that_is_not_finite_ends_the_run(
    numerics: str, bad: bytes, tmp_path: Path
) -> None:
    path = make(tmp_path / "m")
    tensor = load(path).checkpoint.tensors["model.layers.1.mlp.down_proj.weight"]
    with tensor.file.open("r+b") as file:
        file.seek(tensor.offset)
        file.write(bad)
    message = r"'blocks.1.hook_mlp_out', position 0, is not finite"
    with pytest.raises(Trouble, match=message) as caught:
        run(load(path, numerics=numerics), [Request((1, 2, 3), 4)])
    assert "'model.layers.1.mlp.down_proj.weight'" in caught.value.hints[0]


def test_names() -> None:
    assert [version(each.name) for each in VERSIONS] == list(VERSIONS)
    assert version("speed") == version("speed.1")
    with pytest.raises(Inconclusive, match=r"no numerics 'speed\.7' in this llmtrace"):
        version("speed.7")


def test_a_record_verifies_and_its_inside_is_sound(numerics: str, tmp_path: Path) -> None:
    store = ("--store", tmp_path / "store.git")
    told = answer(*store, "run", "--numerics", numerics, "-n", "6", "The fox said")
    assert told["numerics"] == version(numerics).name
    assert call(*store, "verify", told["commit"]).out.startswith("verified ")
    looked = answer(*store, "introspect", told["commit"])
    verdicts = [each["verdict"] for each in looked["invariants"]]
    assert (verdicts.count("pass"), verdicts.count("fail"), len(verdicts)) == (21, 0, 23)


def test_another_engine_is_not_judged_by_integers(numerics: str, tmp_path: Path) -> None:
    store, file = ("--store", tmp_path / "store.git"), tmp_path / "x.safetensors"
    told = answer(*store, "run", "--numerics", numerics, "-n", "2", "The fox")
    save_file({"hook_embed": np.zeros((4, 256), "f4")}, file)
    judged = call(*store, "compare", told["commit"], file)
    assert judged.status == 3
    assert "which rounds more than any noise" in judged.err
