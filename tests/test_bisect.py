"""bisect: the block that a faulty machine got wrong is named, and the side that is right."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from blake3 import blake3
from safetensors.numpy import load_file, save_file

from commands import answer, call, forged, tell
from faults import fault
from llmtrace.store.chain import Store
from llmtrace.verify.reading import Run
from llmtrace.verify.values import Value

if TYPE_CHECKING:
    from pathlib import Path

RUN = ("run", "-d", "cpu", "-n", "6", "-m", "tiny", "--format", "id", "Once on")
VARIANTS = {
    "plain": (),
    "leaves": ("--leaves",),
    "kept": ("--keep", "*"),
    "off": ("--probe", "off"),
}
POSITIONS = 13  # 8 prompt tokens and 6 output tokens, of which the last is not fed
FIRST = 7  # draws the first token
LAYER = {
    "ln1": "ln1.hook_normalized",
    "qkv": "attn.hook_q",
    "rope_q": "attn.hook_rot_q",
    "rope_k": "attn.hook_rot_k",
    "attn": "attn.hook_z",
    "o_proj": "hook_attn_out",
    "resid_add1": "hook_resid_mid",
    "ln2": "ln2.hook_normalized",
    "gate_up": "mlp.hook_pre",
    "act": "mlp.hook_post",
    "down_proj": "hook_mlp_out",
    "resid_add2": "hook_resid_post",
}
POINTS = {f"layers.{n}.{b}": f"blocks.{n}.{p}" for n in (0, 1) for b, p in LAYER.items()}
POINTS |= {"embed": "hook_embed", "ln_final": "ln_final.hook_normalized"}
POINTS |= {"unembed": "unembed.hook_out"}


@pytest.fixture(scope="module")
def honest(commits: dict[str, str]) -> dict[str, str]:
    return {name: run(*VARIANTS[name]) for name in VARIANTS}


def run(*options: str) -> str:
    said = call(*RUN, *options)
    assert said.status == 0, said.err
    return said.out.strip()


def bisect(a: str, b: str | Path, *options: str) -> tuple[int, dict[str, Any]]:
    said = call("bisect", a, b, "--json", *options)
    assert len(said.objects) == 2, said.err
    return said.status, said.objects[0]


def tokens(commit: str) -> list[int]:
    found: list[int] = answer("show", commit)["record"]["trace"]["output_tokens"]
    return found


def row_of(store: Store, commit: str, point: str, position: int) -> np.ndarray:
    tensor = Run.of(store.read(commit)).kept[point]
    return tensor[position - POSITIONS + len(tensor)]


def layer_of(block: str) -> int | None:
    return int(block.split(".")[1]) if block.startswith("layers.") else None


@pytest.mark.parametrize("variant", ["plain", "leaves", "kept"])
@pytest.mark.parametrize("block", POINTS)
def test_the_faulty_block_is_named(
    store: Store, honest: dict[str, str], variant: str, block: str
) -> None:
    position = 9 if block in {"ln_final", "unembed"} else 5
    with fault(block, position):
        bad = run(*VARIANTS[variant])
    status, told = bisect(honest[variant], bad)
    assert (status, told["judgement"], told["wrong"]) == (1, "wrong", ["B"]), told
    assert (told["position"], told["block"], told["point"]) == (position, block, POINTS[block])
    assert told["executed"]["block"] == block
    assert POINTS[block] in told["executed"]["digests"]
    if variant == "leaves":
        assert told["layer"] == layer_of(block)
        assert block != "embed" or told["certainty"] == "exact"  # no other stands before the layers
    if variant == "kept":
        assert told["certainty"] == "exact"
        value = told["values"][0]
        assert (value["what"], value["point"]) == ("kept", POINTS[block])
        assert value["a"] == value["law"] != value["b"]
        row = row_of(store, honest["kept"], POINTS[block], position)
        assert told["executed"]["digests"][POINTS[block]] == blake3(row.tobytes()).hexdigest()
        assert (value["ulps_a"], value["ulps_b"]) == (0, 1 << 18)
    else:
        assert told["certainty"] in {"exact", "candidate"}


def test_distances_count_floats_across_zero() -> None:
    least = float(np.float32(1e-45))
    value = Value("kept", "hook_embed", 0, -least, -0.0, least)
    assert (value.ulps("a"), value.ulps("b")) == (2, 1)
    assert Value("kept", None, 0, 1.0, None, 1.0).ulps("b") is None
    one = Value("logprob", None, 0, float(np.nextafter(np.float32(-2), np.float32(0))), 2.0, -2.0)
    assert (one.ulps("a"), one.ulps("b")) == (1, 2 * 0x40000000)


@pytest.mark.parametrize("column", [3, 64 + 3, 96 + 3], ids=["q", "k", "v"])
def test_queries_keys_and_values_are_one_block(honest: dict[str, str], column: int) -> None:
    with fault("layers.0.qkv", 4, column):
        bad = run()
    _, told = bisect(bad, honest["plain"])
    assert (told["wrong"], told["position"], told["block"]) == (["A"], 4, "layers.0.qkv")


def test_a_fault_that_changes_the_tokens_is_found_by_its_own_tokens(
    honest: dict[str, str],
) -> None:
    """From the first other token on every point differs from the other side, but not the law."""
    token = tokens(honest["plain"])[0]
    with fault("unembed", FIRST, token, bit=31):  # the largest logit gets a minus
        bad = run()
    assert tokens(bad)[0] != token
    _, told = bisect(honest["plain"], bad)
    assert (told["position"], told["block"], told["wrong"]) == (FIRST, "unembed", ["B"])
    value = next(v for v in told["values"] if v["what"] == "token")
    assert (value["a"], value["law"], value["b"]) == (token, token, tokens(bad)[0])


@pytest.mark.parametrize("position", [FIRST, 10])
def test_a_token_that_was_not_drawn_so(honest: dict[str, str], position: int) -> None:
    with fault("sample", position):
        bad = run()
    status, told = bisect(honest["plain"], bad)
    assert (status, told["wrong"], told["certainty"]) == (1, ["B"], "exact")
    assert (told["position"], told["token"], told["block"]) == (
        position,
        position - FIRST,
        "sample",
    )
    (value,) = [v for v in told["values"] if v["what"] == "token"]
    assert value["a"] == value["law"] == told["executed"]["token"] == value["b"] ^ 1
    assert (value["index"], value["ulps_b"]) == (position - FIRST, None)


def test_both_may_be_wrong(honest: dict[str, str]) -> None:
    with fault("layers.0.act", 3):
        one = run("--keep", "blocks.0.mlp.hook_post")
    with fault("layers.0.act", 3, 5):
        other = run("--keep", "blocks.0.mlp.hook_post")
    status, told = bisect(one, other)
    assert (status, told["wrong"], told["block"]) == (1, ["A", "B"], "layers.0.act")
    assert [v["index"] for v in told["values"] if v["what"] == "kept"][:2] == [3, 5]
    with fault("layers.1.act", 6):
        later = run()
    _, told = bisect(later, one)
    assert (told["wrong"], told["position"], told["block"]) == (["A", "B"], 3, "layers.0.act")
    said = call("bisect", later, one)
    assert said.lines[:2] == [f"wrong A {later}", f"wrong B {one}"]
    assert "which neither has" in said.out


def test_several_faults_mislead_columns_but_not_leaves_and_kept(honest: dict[str, str]) -> None:
    """The first at position 4 in layer 1, one in layer 0 later: as the page says."""
    told = {}
    for variant in ("plain", "leaves", "kept"):
        with fault("layers.1.down_proj", 4, also=("layers.0.act", 9)):
            bad = run(*VARIANTS[variant])
        _, told[variant] = bisect(honest[variant], bad)
        assert told[variant]["position"] == 4
    plain, leaves, kept = told.values()
    assert (plain["layer"], plain["block"]) == (None, "layers.0.act")
    assert plain["certainty"] == leaves["certainty"] == "candidate"
    assert (leaves["layer"], leaves["block"]) == (1, "layers.1.ln1")
    assert (kept["block"], kept["certainty"]) == ("layers.1.down_proj", "exact")


def test_sound_records_are_the_same(honest: dict[str, str]) -> None:
    said = call("bisect", honest["plain"], honest["kept"])
    assert (said.status, said.out) == (0, f"same {honest['plain']} {honest['kept']}\n")
    status, told = bisect(honest["leaves"], honest["off"])
    assert (status, told["judgement"], told["wrong"], told["values"]) == (0, "same", [], [])


def test_without_the_model_it_is_a_candidate(
    honest: dict[str, str], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = {}
    for variant in ("plain", "leaves", "kept"):
        with fault("layers.1.down_proj", 9):
            bad[variant] = run(*VARIANTS[variant])
    monkeypatch.setenv("XDG_CONFIG_HOME", str(place / "config"))
    models = place / "config" / "llmtrace" / "models.toml"
    named = models.read_bytes()
    try:
        models.write_bytes(b"")
        for variant, commit in bad.items():
            status, told = bisect(honest[variant], commit)
            assert (status, told["judgement"], told["wrong"]) == (3, "inconclusive", [])
            assert (told["position"], told["block"]) == (9, None)
            assert (told["column"], told["certainty"]) == (1 + 17 + 15, "candidate")
            assert told["layer"] == (1 if variant == "leaves" else None)
            assert "the record needs model" in told["reason"]
            assert bool(told["values"]) == (
                variant == "kept"
                or any(v["what"] == "sample" or v["what"] == "logprob" for v in told["values"])
            )
    finally:
        models.write_bytes(named)


def test_forged_digests_name_a_candidate(store: Store, honest: dict[str, str]) -> None:
    bad = forged(store, honest["plain"], 5, 9)
    status, told = bisect(honest["plain"], bad)
    assert (status, told["wrong"], told["position"]) == (1, ["B"], 5)
    assert (told["block"], told["certainty"]) == ("layers.0.o_proj", "exact")  # no other can be
    more = forged(store, bad, 8, 12)
    _, told = bisect(honest["plain"], more)
    assert (told["position"], told["block"]) == (5, "layers.0.o_proj")
    assert told["certainty"] == "candidate"
    last = forged(store, forged(store, honest["plain"], POSITIONS - 1, 9), 0, 12)
    last = forged(store, last, 0, 20)  # and position 0 as it was
    _, told = bisect(honest["plain"], last)
    assert (told["position"], told["certainty"]) == (
        POSITIONS - 1,
        "exact",
    )  # all rows before agree


def test_a_part_that_does_not_follow(store: Store, honest: dict[str, str]) -> None:
    bad = tell(store, honest["plain"], {"output.txt": b"something else"})
    status, told = bisect(honest["plain"], bad)
    assert (status, told["wrong"], told["position"]) == (1, ["B"], None)
    assert told["reason"].startswith("output.txt: differs")


def test_a_logprob_alone(store: Store, honest: dict[str, str]) -> None:
    probes = bytearray(store.read(honest["plain"]).record.parts["probes.bin"])
    probes[4 * 8 + 16 * 2] ^= 1  # of output token 2
    bad = tell(store, honest["plain"], {"probes.bin": bytes(probes)})
    _, told = bisect(honest["plain"], bad)
    assert (told["wrong"], told["block"], told["token"]) == (["B"], "sample", 2)
    (value,) = told["values"]
    assert (value["what"], value["index"], value["ulps_a"], value["ulps_b"]) == ("logprob", 2, 0, 1)
    assert value["law"] == told["executed"]["logprob"]


def test_another_job_is_refused(honest: dict[str, str], commits: dict[str, str]) -> None:
    said = call("bisect", honest["plain"], commits["drawn"])
    assert (said.status, said.out) == (2, "")
    assert "not two records of one job: 'temperature' is" in said.err
    assert call("bisect", honest["plain"], commits["other"]).status == 2
    said = call("bisect", honest["plain"], f"{commits['greedy']}~")
    assert (said.status, "a record of kind 'identity'" in said.err) == (4, True)


def test_an_invalid_record_is_named(store: Store, honest: dict[str, str]) -> None:

    raw = store.read(honest["plain"]).raw.replace(b"\n\nrun: tiny", b"\n\nrun: tony")
    done = subprocess.run(
        ["git", "-C", store.path, "hash-object", "-w", "-t", "commit", "--stdin"],
        input=raw,
        capture_output=True,
        check=True,
    )
    said = call("bisect", honest["plain"], done.stdout.decode().strip())
    assert said.status == 1
    assert said.lines[0].startswith("invalid B ")


def test_a_file_of_activations(honest: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "claimed.safetensors"
    assert call("export", honest["kept"], "-o", file).status == 0
    tensors = {
        k: v
        for k, v in load_file(file).items()
        if k.rpartition(".")[2] not in {"samples", "sample_index", "positions"}
    }
    save_file(tensors, file)
    for a in ("plain", "kept"):
        said = call("bisect", honest[a], file)
        assert (said.status, said.out) == (0, f"same {honest[a]} {file}\n")
    point = "blocks.1.attn.hook_z"
    tensors[point][6, 2] = np.nextafter(tensors[point][6, 2], np.float32(9))
    save_file(tensors, file)
    status, told = bisect(honest["plain"], file)
    assert (status, told["wrong"], told["position"]) == (1, ["B"], 6)
    assert (told["block"], told["point"], told["certainty"]) == ("layers.1.attn", point, "exact")
    assert (told["values"][0]["index"], told["values"][0]["ulps_b"]) == (2, 1)
    assert (told["b"], told["values"][0]["a"]) == (str(file), None)
    few = {name: tensors[name] for name in (point, "unembed.hook_out")}
    save_file(few, file)
    _, told = bisect(honest["plain"], file)
    assert (told["block"], told["certainty"]) == ("layers.1.attn", "candidate")
    with fault("layers.0.act", 3):
        bad = run()
    save_file({point: tensors[point]}, file)
    _, told = bisect(bad, file)
    assert (told["wrong"], told["position"], told["block"]) == (["A", "B"], 3, "layers.0.act")


FILES = {
    "dtype": ({"hook_embed": np.zeros((13, 64), np.float16)}, "'hook_embed' is F16, not F32"),
    "rows": ({"hook_embed": np.zeros((12, 64), np.float32)}, "shape (12, 64), not (13, 64)"),
    "picked": ({"unembed.hook_out": np.zeros((13, 259), np.float32)}, "not (6, 259)"),
    "flat": ({"hook_embed": np.zeros(13, np.float32)}, "shape (13,), not (13, 64)"),
    "name": ({"nonsense": np.zeros((13, 64), np.float32)}, "'nonsense' is no point of the model"),
    "empty": ({}, "holds no tensors"),
}


@pytest.mark.parametrize("case", FILES)
def test_files_that_are_none(honest: dict[str, str], tmp_path: Path, case: str) -> None:
    file = tmp_path / "x.safetensors"
    tensors, said = FILES[case]
    save_file(tensors, file)
    refused = call("bisect", honest["plain"], file)
    assert (refused.status, refused.out) == (4, "")
    assert said in refused.err
    file.write_bytes(b"\x08")
    assert call("bisect", honest["plain"], file).status == 4
    assert call("bisect", honest["plain"], tmp_path / "no.safetensors").status == 4


def test_records_of_others_have_caps(store: Store, honest: dict[str, str], tmp_path: Path) -> None:
    other = Store.open(tmp_path / "s.git", tmp_path / "keys", create=True)
    record = store.read(honest["kept"]).record
    sections = [record.sections[name] for name in ("trace", "probes", "attested")]
    parts = {**record.parts}
    parts["kept.000"] = parts["kept.000"][:-1] + bytes([parts["kept.000"][-1] ^ 1])
    other.append_run(*sections, parts, 1)
    ref = f"refs/heads/node/{other.node}"
    subprocess.run(["git", "-C", store.path, "fetch", "-q", other.path, f"{ref}:{ref}"], check=True)
    theirs = f"node/{other.node}"
    status, told = bisect(honest["kept"], theirs)
    assert (status, told["wrong"], told["position"]) == (1, ["B"], POSITIONS - 1)
    assert told["point"] == "unembed.hook_out"
    for options, said in (
        (("--max-tokens", "13"), "the run has 14 tokens, more than the 13"),
        (("--max-memory", "64K"), "MiB beside the weights"),
    ):
        status, told = bisect(honest["kept"], theirs, *options)
        assert (status, told["judgement"], told["wrong"]) == (3, "inconclusive", [])
        assert said in told["reason"]
    assert bisect(honest["plain"], honest["kept"], "--max-tokens", "1")[0] == 0  # one's own
