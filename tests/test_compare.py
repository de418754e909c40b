"""compare: another engine's activations agree where it is honest, and differ where it is not."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save, save_file

from bench_compare import KINDS, Bench, exporter
from commands import Answer, answer, call, open_store, tell
from llmtrace.errors import Trouble
from llmtrace.introspect import measures
from llmtrace.introspect.compare import Told
from llmtrace.introspect.tensors import rows_of, tensors_of
from llmtrace.probes.records import field, probe_seed
from llmtrace.store.chain import Store
from llmtrace.verify.reading import Run

EXPORTER = Path(__file__).parents[1] / "samples" / "export_activations.py"
RUN = ("run", "-d", "cpu", "-n", "6", "-m", "tiny", "--prompt-tokens", "84 104 101 32")


@pytest.fixture(scope="module")
def made(place: Path) -> dict[str, Any]:
    """Runs with all tensors kept, stored at both levels."""
    keep = ("--probe", "detail", "--keep", "*")
    return {"all": answer(*RUN, *keep), "stats": answer(*RUN)}


@pytest.fixture(scope="module")
def file(place: Path, made: dict[str, Any]) -> Path:
    """What the run kept, by the names of points."""
    path = place / "kept.safetensors"
    assert call("export", made["all"]["commit"], "-o", path).status == 0
    return path


@pytest.fixture(scope="module")
def bench(place: Path) -> Bench:
    return Bench(place, seed=5, steps=3)


def told(store: Store, commit: str) -> Told:
    run = Run.of(store.read(commit))
    return Told(run.claim, run.points, run.stored, run.kept)


def tensors(file: Path) -> dict[str, torch.Tensor]:
    """The whole tensors of an export, without what was sampled."""
    sampled = (".samples", ".sample_index", ".positions")
    return {name: x for name, x in load_file(file).items() if not name.endswith(sampled)}


def judged(
    made: dict[str, Any], inside: dict[str, torch.Tensor], path: Path, *options: str
) -> Answer:
    save_file(inside, path)
    return call("compare", *options, made["stats"]["commit"], path)


def test_measures_are_those_of_the_kernel(place: Path, made: dict[str, Any]) -> None:
    store = open_store(place)
    run = Run.of(store.read(made["all"]["commit"]))
    assert run.stored is not None
    seed = probe_seed(run.claim.model, run.claim.request.prompt)
    inner = run.stored.points.shape[1]
    assert len(run.points) == 1 + 2 * 17 + 4
    for column, (name, width) in enumerate(run.points):
        rows = run.kept[name].astype(np.float64)
        assert rows.shape[1] == width
        records = (
            run.stored.points[:, column] if column < inner else run.stored.picked[:, column - inner]
        )
        mine = measures.moments(rows)
        for each in ("rms", "mean", "l1", "absmax", "entropy"):
            true = field(records, each)
            scale = np.abs(field(records, "rms")) * (width if each == "l1" else 1)
            close = 1e-5 if each == "entropy" else 1e-6 * scale
            assert (np.abs(getattr(mine, each) - true) <= close + 1e-6 * np.abs(true)).all(), (
                name,
                each,
            )
        signs = measures.signs(seed, column, width)
        bound = measures.clip_bound(mine.l1, width)
        cut = np.clip(rows, -bound[:, None], bound[:, None])
        for each, x, sign, unit in (
            ("linear", rows, signs[0], mine.rms),
            ("clipped", cut, signs[1], bound),
        ):
            true = field(records, f"{each}_sketch").astype(np.float64)
            found = measures.sketch(x, sign, unit)
            assert (np.abs(found - true) <= 2.0**-11 * np.abs(true) + 2.0**-12).all(), (name, each)


def test_sketches_estimate_the_norm_of_a_difference() -> None:
    draw = np.random.default_rng(3)
    rows = draw.standard_t(3, (1, 256))
    found = np.concatenate(
        [measures.sketch(rows, measures.signs(seed, 7, 256)[0], np.ones(1)) for seed in range(2000)]
    )
    assert (found**2).mean() == pytest.approx((rows**2).mean(), rel=0.05)
    first, second = measures.signs(1, 0, 4096)
    assert abs(first.mean()) < 0.05
    assert abs((first * second).mean()) < 0.05
    assert (measures.signs(1, 0, 100) == measures.signs(1, 0, 4096)[:, :100]).all()
    assert (measures.signs(1, 1, 4096)[0] != first).mean() == pytest.approx(0.5, abs=0.05)


def test_what_a_run_kept_agrees_to_the_bit(made: dict[str, Any], file: Path) -> None:
    for commit in (made["all"]["commit"], made["stats"]["commit"]):
        said = call("compare", "--noise", "float32", "--json", commit, file)
        *each, whole, end = said.objects
        assert (said.status, end["status"], whole["judgement"]) == (0, 0, "agrees")
        assert (whole["tensors"], whole["differing"], whole["first"]) == (39, 0, None)
        assert [t["point"] for t in each][:3] == [
            "hook_embed",
            "blocks.0.ln1.hook_scale",
            "blocks.0.ln1.hook_normalized",
        ]
        values = {
            f["witness"]: f["value"]
            for t in each
            for f in t["witnesses"]
            if t["name"] == "blocks.1.hook_attn_out"
        }
        assert values["samples"] == values["largest"] == 0
        assert values["linear"] < 2.0**-11
        assert ("kept" in values) == (commit == made["all"]["commit"])


@pytest.mark.parametrize(
    ("dtype", "attention"),
    [
        ("bfloat16", "eager"),
        ("bfloat16", "sdpa"),
        ("float16", "eager"),
        ("float32", "eager"),
        ("float64", "sdpa"),
    ],
)
def test_honest_arithmetic_agrees(
    place: Path, made: dict[str, Any], dtype: str, attention: str
) -> None:
    run = made["stats"]
    model = exporter.load(place / "tiny-model", dtype, attention)
    inside = exporter.collect(model, run["prompt_tokens"] + run["output_tokens"][:-1], 6)
    noise = "float32" if dtype == "float64" else dtype
    said = judged(made, inside, place / "inside.safetensors", "--noise", noise)
    assert (said.status, said.err) == (0, "")
    assert said.lines[0].startswith(f"agrees in 39 tensors, within the noise of {noise} at level ")


@pytest.fixture(scope="module")
def trials(bench: Bench) -> dict[str, Told]:
    """A record of the sample model at each level, and of its like with float32 weights."""
    prompt, count = bench.prompt()
    levels = {"stats": "sample", "detail": "sample", "wide": "wide"}
    return {
        name: bench.recorded("stats" if name == "stats" else "detail", record, prompt, count)
        for name, record in levels.items()
    }


@pytest.mark.parametrize("kind", [name for name, kind in KINDS.items() if kind.agrees])
def test_honest_engines_agree_on_the_sample(
    bench: Bench, trials: dict[str, Told], kind: str
) -> None:
    for level in ("stats", "detail"):
        assert bench.judge(KINDS[kind], trials[level]).judgement == "agrees"


SEEN = [n for n, k in KINDS.items() if not k.agrees and n != "a massive one by 2 %"]


@pytest.mark.parametrize("kind", SEEN)
def test_others_are_seen_on_the_sample(bench: Bench, trials: dict[str, Told], kind: str) -> None:
    record = trials["wide" if KINDS[kind].record == "wide" else "detail"]
    first = bench.judge(KINDS[kind], record).first
    assert first is not None
    if kind == "one token of the prompt":
        assert first.point == "hook_embed"
    if kind.startswith("int"):
        assert first.point == "blocks.0.attn.hook_q"


def test_first_is_where_it_was_changed(place: Path, made: dict[str, Any], file: Path) -> None:
    inside = tensors(file)
    for name, witness in (
        ("blocks.1.attn.hook_rot_k", "linear"),
        ("blocks.0.mlp.hook_pre", "linear"),
        ("blocks.1.hook_resid_post", "linear"),
        ("unembed.hook_in", "linear"),
    ):
        changed = {n: x.clone() for n, x in inside.items()}
        changed[name][:, 5] += 3 * changed[name].pow(2).mean(-1).sqrt()
        said = judged(made, changed, place / "changed.safetensors", "--json")
        *each, whole, _ = said.objects
        assert (said.status, whole["judgement"]) == (1, "differs")
        assert (whole["first"], whole["differing"]) == (name, 1)
        (bad,) = (t for t in each if t["judgement"] == "differs")
        beyond = {f["witness"] for f in bad["witnesses"] if f["ratio"] > 1}
        assert witness in beyond
        text = judged(made, changed, place / "changed.safetensors")
        assert text.status == 1
        assert text.lines[0].startswith(f"differs from {name} on, in 1 of 39 tensors: ")
        assert text.lines[2].startswith(f"{name} ")
        assert text.lines[2].endswith("  differs")


def test_a_cut_neuron_is_seen_wherever_it_was_small(
    place: Path, made: dict[str, Any], file: Path
) -> None:
    inside = tensors(file)
    x = inside["blocks.1.mlp.hook_post"]
    x[:, int(x.abs().mean(0).argmin())] = 0
    *each, whole, _ = judged(made, inside, place / "cut.safetensors", "--json").objects
    assert whole["first"] == "blocks.1.mlp.hook_post"
    (bad,) = (t for t in each if t["judgement"] == "differs")
    assert [f["witness"] for f in bad["witnesses"] if f["ratio"] > 1] == ["dead"]
    said = judged(made, inside, place / "cut.safetensors", "--noise", "float16", "--json")
    assert '"dead"' not in said.out  # float16 makes zeros of what is small


def test_positions_that_are_not_stored_are_seen_by_the_totals(
    place: Path, made: dict[str, Any], file: Path
) -> None:
    inside = tensors(file)
    inside["blocks.0.hook_mlp_out"][1] *= 3
    *each, whole, _ = judged(made, inside, place / "early.safetensors", "--json").objects
    assert whole["first"] == "blocks.0.hook_mlp_out"
    (bad,) = (t for t in each if t["judgement"] == "differs")
    beyond = {f["witness"] for f in bad["witnesses"] if f["ratio"] > 1}
    assert beyond
    assert all(witness.startswith("total_") for witness in beyond)


def test_names_and_shapes_of_other_tools(place: Path, made: dict[str, Any], file: Path) -> None:
    inside = tensors(file)
    q, logits = inside["blocks.1.attn.hook_q"], inside["unembed.hook_out"]
    given_rows = torch.cat((torch.full((3, 259), 7.0), logits))
    others = {
        "model.layers.1.self_attn.q_proj": q.reshape(1, 9, 4, 16).clone(),
        "blocks.1.attn.q.hook_out": q.reshape(9, 4, 16).contiguous(),
        "blocks.1.hook_resid_pre": inside["blocks.0.hook_resid_post"],
        "blocks.0.ln1.hook_scale": inside["blocks.0.ln1.hook_scale"].reshape(1, 9, 1),
        "blocks.1.ln1.hook_scale": inside["blocks.1.ln1.hook_scale"].reshape(9).clone(),
        "lm_head": given_rows,
        "blocks.0.attn.hook_pattern": torch.zeros(4, 9, 9),
        "something else": torch.zeros(2, dtype=torch.int64),
    }
    said = judged(made, others, place / "others.safetensors", "--noise", "float32", "--json")
    *each, whole, _ = said.objects
    assert (said.status, whole["judgement"], whole["level"]) == (0, "agrees", 1.0)
    assert {t["name"]: t["point"] for t in each} == {
        "blocks.0.ln1.hook_scale": "blocks.0.ln1.hook_scale",
        "blocks.1.hook_resid_pre": "blocks.0.hook_resid_post",
        "blocks.1.ln1.hook_scale": "blocks.1.ln1.hook_scale",
        "model.layers.1.self_attn.q_proj": "blocks.1.attn.hook_q",
        "blocks.1.attn.q.hook_out": "blocks.1.attn.hook_q",
        "lm_head": "unembed.hook_out",
    }
    assert sorted(whole["ignored"]) == ["blocks.0.attn.hook_pattern", "something else"]
    assert "no points of this run: 'blocks.0.attn.hook_pattern' and 1 more" in said.err


def test_bfloat16_and_float16_are_widened(place: Path, made: dict[str, Any], file: Path) -> None:
    inside = tensors(file)
    for dtype in (torch.bfloat16, torch.float16):
        rounded = {name: x.to(dtype) for name, x in inside.items()}
        noise = str(dtype).removeprefix("torch.")
        said = judged(made, rounded, place / "rounded.safetensors", "--noise", noise, "--json")
        assert said.status == 0
        distance = {t["point"]: t["distance"] for t in said.objects[:-2]}
        unit = 2.0**-9 if dtype == torch.bfloat16 else 2.0**-12
        assert 0.5 * unit < distance["blocks.1.hook_resid_post"] < 1.2 * unit


def test_all_prints_every_tensor_in_block_order(made: dict[str, Any], file: Path) -> None:
    commit = made["stats"]["commit"]
    few, every = call("compare", commit, file), call("compare", "--all", commit, file)
    assert (len(few.lines), len(every.lines)) == (13, 41)
    assert few.lines[-1] == "(29 more are nearer to the record: --all)"
    names = [line.split()[0] for line in every.lines[2:]]
    assert names[0] == "hook_embed"
    assert names[-1] == "unembed.hook_out"


@pytest.mark.parametrize(
    ("name", "tensor", "why"),
    [
        ("hook_embed", torch.zeros(9, 64, dtype=torch.int64), "has dtype 'I64'"),
        ("hook_embed", torch.zeros(9, 64, dtype=torch.float64), "has dtype 'F64'"),
        ("hook_embed", torch.zeros(8, 64), "has shape (8, 64), the record needs (9, 64)"),
        ("hook_embed", torch.zeros(9, 65), "has shape (9, 65), the record needs (9, 64)"),
        ("hook_embed", torch.zeros(()), "has shape (), the record needs (9, 64)"),
        ("unembed.hook_out", torch.zeros(5, 259), "has shape (5, 259), the record needs (6, 259)"),
        (
            "lm_head",
            torch.full((6, 259), torch.nan),
            "holds a NaN or an infinity at row 0, column 0",
        ),
        ("hook_embed", torch.full((9, 64), torch.inf).half(), "holds a NaN or an infinity"),
    ],
)
def test_one_error_for_a_tensor_that_cannot_be_read(
    place: Path, made: dict[str, Any], name: str, tensor: torch.Tensor, why: str
) -> None:
    path = place / "bad.safetensors"
    refused = judged(made, {name: tensor}, path)
    assert (refused.status, refused.out) == (4, "")
    assert refused.err.startswith(f"llmtrace: error: '{name}' of '{path}' {why}")


def test_files_that_are_none(place: Path, made: dict[str, Any], tmp_path: Path) -> None:
    commit = made["stats"]["commit"]
    huge = (1 << 40).to_bytes(8, "little") + b"{}"
    for data, why in (
        (b"", "header"),
        (b"no safetensors here", "its header claims"),
        (huge, "its header claims"),
    ):
        (tmp_path / "file").write_bytes(data)
        refused = call("compare", commit, tmp_path / "file")
        assert (refused.status, refused.out) == (4, "")
        assert refused.err.startswith(f"llmtrace: error: cannot read '{tmp_path / 'file'}'")
        assert why in refused.err.lower()
    for path in (tmp_path / "none", tmp_path):
        assert call("compare", commit, path).status == 4


def test_nothing_to_compare_is_inconclusive(
    place: Path, made: dict[str, Any], file: Path, tmp_path: Path
) -> None:
    bare = answer(*RUN, "--probe", "off")["commit"]
    said = call("compare", bare, file)
    assert (said.status, said.out) == (3, "")
    assert f"'{bare[:8]}' holds no numbers to compare" in said.err
    save_file({"lm_tail": torch.zeros(2)}, tmp_path / "file")
    said = call("compare", made["stats"]["commit"], tmp_path / "file", "--json")
    assert (said.status, [line["type"] for line in said.objects]) == (3, ["end"])
    assert "can be compared: it has 'lm_tail'" in said.err


def test_kept_tensors_are_enough(place: Path, file: Path) -> None:
    commit = answer(*RUN, "--probe", "off", "--keep", "blocks.1.hook_mlp_out")["commit"]
    said = call("compare", "--json", commit, file)
    (only, whole, _) = said.objects
    assert (said.status, whole["tensors"]) == (0, 1)
    assert [f["witness"] for f in only["witnesses"]] == ["kept"]
    assert only["distance"] == 0
    other = answer(*RUN[:-1], "84 104 101 33", "--probe", "off", "--keep", "blocks.1.hook_mlp_out")
    said = call("compare", "--json", other["commit"], file)
    assert (said.status, said.objects[0]["judgement"]) == (1, "differs")


def test_a_record_that_lies_is_no_crash(place: Path, made: dict[str, Any], file: Path) -> None:
    store = open_store(place)
    data = store.read(made["stats"]["commit"]).record.parts["probes.bin"]
    words = np.frombuffer(data, "<u4").copy()
    for value in (0x7FC00000, 0x7F800000, 0xFFFFFFFF):
        forged = words.copy()
        forged[len(words) // 2 :] = value
        bad = tell(store, made["stats"]["commit"], {"probes.bin": forged.tobytes()})
        said = call("compare", bad, file)
        assert (said.status, said.out) == (4, "")
        assert "the record's" in said.err or "malformed" in said.err


def test_exporter_is_a_program(place: Path, made: dict[str, Any], tmp_path: Path) -> None:
    line = {"type": "run", **made["stats"]}
    (tmp_path / "run.json").write_text(json.dumps(line) + "\n")
    out = tmp_path / "inside.safetensors"
    arguments = [place / "tiny-model", tmp_path / "run.json", "-o", out, "--dtype", "float64"]
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            EXPORTER,
            *arguments,
            "--points",
            "blocks.1.*",
            "--points",
            "unembed.*",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{out}: 19 points, 9 tokens\n"
    assert call("compare", "--noise", "float32", made["stats"]["commit"], out).status == 0
    assert load_file(out)["unembed.hook_out"].shape == (6, 259)


HONEST = save({"hook_embed": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(2).bfloat16()})


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_reader_survives_any_file(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("file") / "file"
    changed = bytearray(HONEST)
    for _ in range(data.draw(st.integers(0, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(changed)) | st.just(len(changed)))
    path.write_bytes(bytes(changed[:end]) + data.draw(st.binary(max_size=8)))
    try:
        for tensor in tensors_of(path).values():
            rows = rows_of(tensor, "hook_embed", 2, 3, 2)
            assert rows.shape == (2, 3)
            assert np.isfinite(rows).all()
    except Trouble as error:
        assert str(path) in str(error)
