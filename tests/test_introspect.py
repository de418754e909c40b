"""introspect: silent faults are found and named, sound runs are left alone, and the command."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import silent_faults
from checkpoints import make
from commands import answer, call, tell
from llmtrace.blocks.block import Matrix
from llmtrace.device.device import Launch
from llmtrace.engine.evidence import Claim
from llmtrace.engine.request import TOP_P_ALL, Request, Sampling
from llmtrace.introspect.inside import look
from llmtrace.introspect.invariants import (
    Case,
    Invariant,
    arithmetic,
    check,
    first_fault,
    measured,
    sampling,
)
from llmtrace.introspect.positions import spread
from llmtrace.model.checkpoint import Checkpoint
from llmtrace.model.identity import identify
from llmtrace.store.chain import Store
from running import device, load, run
from silent_faults import GROUPS, HEADS, LAYERS, OUTPUT, PROMPT, SIZE, Fault, machine
from test_math import philox
from test_sample import draw

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llmtrace.engine.trace import Model

SAMPLE = Path(__file__).parents[1] / "samples" / "model"
HOT = Sampling(np.float32(2.5), 50, TOP_P_ALL * 9 // 10, 11)


def opened(folder: Path) -> Model:
    return load(folder, model_id=identify(Checkpoint.open(folder), None))


def recorded(model: Model, request: Request) -> tuple[Claim, bytes]:
    """Runs a request; what its record would claim, and its digests."""
    (trace,) = run(model, [request])
    forced = dataclasses.replace(request, forced=trace.output)
    claim = Claim(model.id, "accuracy.1", forced, trace.output, trace.finish_reason, "stats", ())
    return claim, trace.commitment.stored()


def case_of(model: Model, request: Request, positions: Iterable[int] | None = None) -> Case:
    claim, digests = recorded(model, request)
    return Case(look(model, claim, positions), model, claim, digests, b"a checksum")


def asked(rng: np.random.Generator, prompt: int, output: int, how: Sampling) -> Request:
    tokens = tuple(int(token) for token in rng.integers(0, 256, prompt))
    return Request(tokens, output, how)


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes: dict[str, Any] = {"layers": LAYERS, "heads": HEADS, "kv_heads": GROUPS}
    return make(
        tmp_path_factory.mktemp("spoilt"), seed=3, head_size=SIZE, attention_bias=True, **sizes
    )


def seen(folder: Path, fault: Fault) -> tuple[Case, list[Invariant]]:
    """A run by a machine with a fault, looked at by the same machine."""
    model = opened(folder)
    rng = np.random.default_rng(5)
    request = asked(rng, PROMPT, OUTPUT, HOT if fault.sampled else Sampling())
    with machine(fault):
        case = case_of(model, request)
        return case, list(check(case))


def test_a_machine_without_a_fault_is_sound(spoilt: Path) -> None:
    """What the faults are made with changes nothing by itself."""
    case, found = seen(spoilt, Fault(np.random.default_rng(0)))
    assert [each for each in found if each.verdict == "fail"] == []
    honest = case_of(opened(spoilt), asked(np.random.default_rng(5), PROMPT, OUTPUT, Sampling()))
    assert honest.digests == case.digests


@pytest.mark.parametrize("fault", [*silent_faults.faults()], ids=lambda fault: type(fault).__name__)
def test_every_silent_fault_is_found_and_named(spoilt: Path, fault: Fault) -> None:
    case, found = seen(spoilt, fault)
    assert all(np.isfinite(rows).all() for rows in case.inside.rows.values())
    first = first_fault(found, case)
    assert first is not None
    assert not first.compares, "found by comparison with the record alone"
    assert first.where is not None
    assert first.where.block in fault.blocks, [
        (each.name, each.where, each.why) for each in found if each.verdict == "fail"
    ]


def test_the_set_of_faults_is_large_enough() -> None:
    assert len(silent_faults.KINDS) >= 30


def test_a_replay_by_another_machine_differs_from_the_record(spoilt: Path) -> None:
    """An honest record looked at by a machine with a fault: the block is named all the same."""
    model, fault = opened(spoilt), silent_faults.Gelu(np.random.default_rng(1))
    claim, digests = recorded(model, asked(np.random.default_rng(5), PROMPT, OUTPUT, Sampling()))
    with machine(fault):
        case = Case(look(model, claim), model, claim, digests, b"")
    found = {each.name: each for each in check(case)}
    assert found["digests"].verdict == "fail"
    first = first_fault([*found.values()], case)
    assert first is found["activation"]
    assert first.where is not None
    assert (first.where.block,) == fault.blocks
    honest = Case(look(model, claim), model, claim, digests, b"")
    flipped = bytearray(digests)
    flipped[16 * 7] ^= 1
    wrong = dataclasses.replace(honest, digests=bytes(flipped))
    (only,) = (each for each in check(wrong) if each.verdict == "fail")
    assert (only.name, only.where and only.where.position) == ("digests", 7)
    short = dataclasses.replace(honest, digests=digests[:-16])
    assert [each.name for each in check(short) if each.verdict == "fail"] == ["digests"]


def test_a_bit_that_no_sum_can_show_is_found_among_the_weights(tmp_path: Path) -> None:
    model = opened(make(tmp_path / "model", dtype="float32", hidden=256, heads=4))
    name = "model.layers.1.mlp.up_proj.weight"
    both = Matrix((name.replace("up_", "gate_"), name))
    model.weights.matrix(both).view("<u4")[96 + 5, 7] ^= 1  # 96 rows of gate before it
    case = case_of(model, asked(np.random.default_rng(5), 6, 2, Sampling()))
    (only,) = (each for each in check(case) if each.verdict == "fail")
    assert only.name == "weights on the device"
    assert only.where is not None
    assert (only.where.position, only.where.block) == (None, "layers.1.gate_up")
    assert f"{name}[5, 7]" in only.why


def test_another_checkpoint_is_not_the_model(spoilt: Path, tmp_path: Path) -> None:
    """The file has changed since it was opened; what is on the device has not."""
    folder = shutil.copytree(spoilt, tmp_path / "copy")
    model = opened(folder)
    case = case_of(model, asked(np.random.default_rng(5), 6, 2, Sampling()))
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 64
    file.write_bytes(data)
    failed = {each.name for each in check(case) if each.verdict == "fail"}
    assert {"model identity", "weights on the device"} <= failed


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied": {"tied": True, "dtype": "float16"},
    "biases": {"attention_bias": True, "mlp_bias": True, "dtype": "float32"},
    "one group": {"head_size": 32, "kv_heads": 1},
    "no groups": {"heads": 3, "kv_heads": 3, "head_size": 96, "hidden": 72, "ff": 104},
    "heads of 128": {"heads": 2, "kv_heads": 1, "head_size": 128, "tied": True},
    "odd sizes": {"heads": 6, "kv_heads": 3, "head_size": 10, "hidden": 50, "ff": 70, "vocab": 301},
    "wide": {"hidden": 1056, "ff": 64, "layers": 1, "heads": 8, "kv_heads": 4, "head_size": 64},
    "llama3": {
        "rope": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    },
    "massive": {"layers": 4, "dtype": "float16"},
    "zeros": {"dtype": "float32", "context": 1024},
}
RUNS = 10  # of each kind


def zeros(folder: Path) -> None:
    """Makes some rows of the table, one layer's queries and another's gates zero."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"][:64] = 0
    tensors["model.layers.0.self_attn.q_proj.weight"][:] = 0
    tensors["model.layers.1.mlp.gate_proj.weight"][:] = 0
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def massive(folder: Path) -> None:
    """Makes two dimensions of the residual stream a thousand times larger than the others."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"][:, [3, 40]] *= 900
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("kind", KINDS)
def test_sound_runs_are_left_alone(kind: str, tmp_path: Path) -> None:
    make(tmp_path / "model", seed=len(kind), **KINDS[kind])
    if kind in {"massive", "zeros"}:
        {"massive": massive, "zeros": zeros}[kind](tmp_path / "model")
    model, rng = opened(tmp_path / "model"), np.random.default_rng(len(kind))
    for i in range(RUNS):
        how = [Sampling(), HOT, Sampling(np.float32(1.0), 0, TOP_P_ALL, i)][i % 3]
        lengths = [(1, 1), (1, 12), (9, 1), (25, 6), (130, 3)][i % 5]
        case = case_of(model, asked(rng, *lengths, how))
        unsound = [
            (each.name, each.where, each.why) for each in check(case) if each.verdict == "fail"
        ]
        assert unsound == []


def test_the_sample_model_is_sound() -> None:
    model = opened(SAMPLE)
    case = case_of(model, asked(np.random.default_rng(1), 150, 30, HOT), [0, 1, 127, 128, 149, 178])
    found = {each.name: each for each in check(case)}
    assert [each for each in found.values() if each.verdict == "fail"] == []
    assert found["sampler's choice"].n == 2
    assert found["attention mix"].n == 6 * 6 * 256


def test_exp_and_log_are_those_of_the_kernels() -> None:
    """To the bit, over all exponents, as far as sampling uses them."""
    on, rng = device(), np.random.default_rng(2)
    below = -np.exp2(rng.uniform(-40, 7, 200_000)).astype("<f4")
    near = rng.uniform(-20, 0, 200_000).astype("<f4")
    for name, mine, x in (
        ("math_exp", arithmetic.exponential, np.concatenate([below, near, np.zeros(1, "<f4")])),
        ("math_log", arithmetic.logarithm, np.exp2(rng.uniform(0, 20, 200_000)).astype("<f4")),
    ):
        y = on.zeros(x.shape, "<f4")
        on.capture([Launch(name, (y, on.upload(x), x.size), 1)]).run(0)
        assert (mine(x).view("<u4") == y.view("<u4")).all()


def test_philox_is_the_published_one() -> None:
    for seed, position in ((0, 0), (1 << 63 | 12345, 77), ((1 << 64) - 1, 1 << 20)):
        words = philox([position, 0, 0, 0], [seed & 0xFFFFFFFF, seed >> 32])
        assert [*sampling.philox(seed, (position, 0, 0, 0))] == words


@pytest.mark.parametrize("kind", ["normal", "ties", "flat", "zeros of both signs"])
def test_choices_and_logprobs_are_those_of_the_kernel(kind: str) -> None:
    rng, rows, width = np.random.default_rng(len(kind)), 120, 331
    logits = {
        "normal": rng.standard_normal((rows, width)) * 4,
        "ties": rng.integers(-3, 3, (rows, width)),
        "flat": np.full((rows, width), -7.25),
        "zeros of both signs": np.where(rng.random((rows, width)) < 0.5, 0.0, -0.0),
    }[kind].astype("<f4")
    heat = rng.choice([0.0, 0.1, 0.7, 1.0, 1.5, 50.0], rows).astype("<f4").tolist()
    top_k = rng.choice([0, 1, 2, 40, width, 5000], rows).tolist()
    top_p = rng.choice([TOP_P_ALL, 0, 1, TOP_P_ALL * 9 // 10, TOP_P_ALL - 1], rows).tolist()
    seed = rng.integers(0, 1 << 64, rows, dtype=np.uint64).tolist()
    tokens, logprobs = draw(logits, heat, top_k, top_p, seed, [*range(rows)])
    for t in range(rows):
        asked_ = Sampling(np.float32(heat[t]), top_k[t], top_p[t], seed[t])
        assert sampling.choose(logits[t], asked_, t) == tokens[t]
        mine = sampling.logprob(logits[t], int(tokens[t]))
        assert mine.tobytes() == logprobs[t].tobytes()


def test_records_of_heads_and_tokens_are_judged(spoilt: Path) -> None:
    model = opened(spoilt)
    case = case_of(model, asked(np.random.default_rng(5), PROMPT, OUTPUT, HOT))
    for word, step in enumerate((1e-4, 1e-4, 1e-4, 1e-4, 1e-4, 1e-3, 0, 1e-4)):
        heads = case.inside.heads.copy()
        one = heads[9, 1, 2]
        if word == 6:
            one[word] = 0 if one[word] else 1
        else:
            one.view("<f4")[word] += np.float32(step)
        inside = dataclasses.replace(case.inside, heads=heads)
        (first, *_) = failed = [
            each
            for each in check(dataclasses.replace(case, inside=inside))
            if each.verdict == "fail"
        ]
        assert "head records" in {each.name for each in failed}
        assert (word == 0) == ("attention rows sum to one" in {each.name for each in failed})
        assert first.where is not None
        assert (first.where.position, first.where.block) == (9, "layers.1.attn")
    heads = case.inside.heads.copy()
    heads[9, 1, 2].view("<f4")[1] = 3.0  # ln(10) is 2.3
    inside = dataclasses.replace(case.inside, heads=heads)
    found = {each.name: each for each in check(dataclasses.replace(case, inside=inside))}
    assert found["attention entropy in its range"].verdict == "fail"
    for word in range(4):
        drawn = case.inside.drawn.copy()
        drawn[3, word] += 1 if word in {0, 2, 3} else 1 << 10
        inside = dataclasses.replace(case.inside, drawn=drawn)
        failed = [e for e in check(dataclasses.replace(case, inside=inside)) if e.verdict == "fail"]
        assert [each.name for each in failed] == ["token records" if word else "log-probability"]
        assert failed[0].where is not None
        assert (failed[0].where.position, failed[0].where.block) == (PROMPT + 2, "sample")


def test_every_word_of_a_probe_record_is_judged(spoilt: Path) -> None:
    """All but the one that is always 0."""
    model = opened(spoilt)
    case = case_of(model, asked(np.random.default_rng(5), PROMPT, OUTPUT, Sampling()))
    names = [point.name for block in case.blocks for point in block.points]
    inner = case.inside.points.shape[1]
    for word in (w for w in range(32) if w != 7):
        points, picked = case.inside.points.copy(), case.inside.picked.copy()
        at, column = word % len(points), 3 + word % (inner - 3)
        here = points[at] if word % 2 else picked[word % len(picked)]
        column = column if word % 2 else len(here) - 1
        bit = 14 if word < 6 else 8 if 24 <= word < 28 else 0
        here[column, word] ^= 1 << bit
        inside = dataclasses.replace(case.inside, points=points, picked=picked)
        found = measured.records(dataclasses.replace(case, inside=inside))
        assert (word, found.verdict) == (word, "fail")
        assert found.where is not None
        assert (found.where.point or "").startswith(names[column if word % 2 else -1])
    assert measured.records(case).verdict == "pass"


def test_positions_are_spread() -> None:
    logprobs = np.array([-0.5, -3.0, -0.25, -0.125], np.float32)  # position 97 is uncertain
    assert spread(100, 96, logprobs, 100) == [*range(100)]
    assert spread(100, 96, logprobs, 1) == [99]
    assert spread(100, 96, logprobs, 2) == [97, 99]
    assert spread(100, 96, logprobs, 3) == [0, 97, 99]
    chosen = spread(100, 96, logprobs, 9)
    assert {0, 97, 99} <= {*chosen}
    assert len(chosen) <= 9
    assert max(np.diff(chosen)) <= 20
    assert spread(1000, 3, None)[-1] == 999
    assert len(spread(1000, 3, None)) == 64


def test_the_command_says_that_a_run_is_sound(commits: dict[str, str]) -> None:
    for name, rest in (("drawn", []), ("bare", ["--positions", "last"]), ("kept", [])):
        said = call("introspect", "-d", "cpu", commits[name], *rest)
        assert (said.status, said.err) == (0, "")
        assert said.lines[0] == "run"
        assert f"  commit     {commits[name]}" in said.lines
        assert said.lines[-1].startswith("sound: ")
        assert ", 0 fail, " in said.lines[-1]
    whole = answer("introspect", "-d", "cpu", "--positions", "4", commits["drawn"])
    assert whole["run"]["looked_at"][0] == 0
    assert whole["run"]["looked_at"][-1] == 12
    assert len(whole["run"]["looked_at"]) == 4
    assert {each["verdict"] for each in whole["invariants"]} <= {"pass", "not applicable"}
    assert all(each["margin"] <= each["bound"] for each in whole["invariants"])


def test_the_command_names_what_is_wrong(place: Path, commits: dict[str, str]) -> None:
    fault = silent_faults.Gelu(np.random.default_rng(0))
    fault.layer, fault.blocks = 1, ("layers.1.act",)
    with machine(fault):
        said = call("introspect", "-d", "cpu", commits["greedy"])
        told = call("introspect", "-d", "cpu", commits["greedy"], "--json")
    assert said.status == told.status == 4
    short = commits["greedy"][:8]
    wanted = f"llmtrace: error: the inside of '{short}' is not sound: activation at 'layers.1.act',"
    assert said.err.startswith(wanted + " position 0\n")
    assert said.lines[-1].startswith("unsound: ")
    assert any(line.strip().startswith("layers.1.act: ") for line in said.lines)
    whole, end = told.objects
    assert end["status"] == 4
    (found,) = (each for each in whole["invariants"] if each["name"] == "activation")
    assert found["verdict"] == "fail"
    assert found["margin"] > 1
    assert found["where"] == {
        "position": 0,
        "block": "layers.1.act",
        "point": "blocks.1.mlp.hook_post",
    }


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["HEAD", "--positions", "0"], 2, "invalid value for '--positions'"),
        (["HEAD", "--positions", "few"], 2, "invalid value for '--positions'"),
        (["nowhere"], 4, "no record 'nowhere'"),
        (["HEAD", "-d", "abacus"], 2, "no device 'abacus'"),
        (["HEAD", "-m", "other"], 4, "no model 'other'"),
    ],
)
def test_the_command_refuses(
    commits: dict[str, str], arguments: list[str], status: int, said: str
) -> None:
    refused = call("introspect", *arguments)
    assert (refused.status, refused.out) == (status, "")
    assert refused.err.startswith(f"llmtrace: error: {said}")


def test_records_that_cannot_be_looked_at(
    store: Store, place: Path, commits: dict[str, str], tmp_path: Path
) -> None:
    first = f"{commits['greedy']}~"
    assert "not of a run" in call("introspect", first).err
    model = call("introspect", "-d", "cpu", commits["other"])
    assert (model.status, "the record needs model" in model.err) == (3, True)
    beyond = tell(store, commits["bare"], trace={"prompt_tokens": [9999, 1, 2, 3]})
    said = call("introspect", "-d", "cpu", beyond)
    assert said.status == 4
    assert "no token '9999' in a vocabulary" in said.err
    other = Store.open(tmp_path / "s.git", tmp_path / "keys", create=True)
    record = store.read(commits["greedy"]).record
    sections = [record.sections[name] for name in ("trace", "probes", "attested")]
    other.append_run(*sections, {**record.parts}, 1)
    ref = f"refs/heads/node/{other.node}"
    subprocess.run(["git", "-C", store.path, "fetch", "-q", other.path, f"{ref}:{ref}"], check=True)
    theirs = f"node/{other.node}"
    assert call("introspect", "-d", "cpu", theirs).status == 0
    for options, text in (
        (("--max-tokens", "13"), "the run has 14 tokens, more than the 13"),
        (("--max-memory", "64K"), "MiB beside the weights"),
    ):
        capped = call("introspect", "-d", "cpu", theirs, *options)
        assert (capped.status, capped.out, text in capped.err) == (3, "", True)
        assert call("introspect", "-d", "cpu", commits["greedy"], *options).status == 0
