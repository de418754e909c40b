"""``llmtrace bench``: what it prints follows from what it measured, and what runs take from it."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoints import make
from commands import call
from llmtrace.blocks.block import Matrix
from llmtrace.blocks.llama import blocks
from llmtrace.blocks.quantized import nbytes
from llmtrace.blocks.versions import VERSIONS
from llmtrace.engine.trace import Model
from llmtrace.introspect.bench import Ceilings, compare, front, sizes, told
from llmtrace.introspect.cost import Traffic, traffic
from llmtrace.introspect.plot import plot
from running import CACHE, load

NAMES = [version.name for version in VERSIONS]
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("model"), hidden=192, ff=320, layers=3)


@pytest.fixture(scope="module")
def found(folder: Path) -> list[dict[str, Any]]:
    def place(numerics: str) -> Model:
        return load(folder, numerics=numerics)

    return compare(place, NAMES, sizes(4, 12), 20, lambda: None)


def kind(each: dict[str, Any], size: int, name: str) -> dict[str, Any]:
    (unit,) = (unit for unit in each["sizes"][size]["blocks"] if unit["block"] == name)
    return dict(unit)


def test_steps_are_what_was_asked_for(found: list[dict[str, Any]]) -> None:
    assert [each["numerics"] for each in found] == NAMES
    for each in found:
        rows = [(s["size"], s["sequences"], s["rows"]) for s in each["sizes"]]
        assert rows == [("token", 1, 1), ("batch", 4, 4), ("prompt", 1, 12)]
        for size in each["sizes"]:
            assert size["tokens_s"] == pytest.approx(size["rows"] / size["us"] * 1e6, rel=1e-3)
            floors = sum(unit["floor_us"] * unit["calls"] for unit in size["blocks"])
            assert size["floor_us"] == pytest.approx(floors, abs=0.01)
            for unit in size["blocks"]:
                assert unit["us"] == unit["variants"][unit["variant"]]
                assert unit["us"] == min(unit["variants"].values())
                assert unit["calls"] == (3 if unit["block"] in IN_LAYERS else 1)


IN_LAYERS = {
    *("ln1", "qkv", "rope_q", "rope_k", "kv_append", "attn", "o_proj", "resid_add1"),
    *("ln2", "gate_up", "act", "down_proj", "resid_add2"),
}


def test_every_hot_kernel_of_a_core_has_variants(found: list[dict[str, Any]]) -> None:
    for name in ("qkv", "o_proj", "gate_up", "down_proj"):
        assert kind(found[0], 0, name)["variants"].keys() == {"rows"}  # one token
        assert kind(found[0], 2, name)["variants"].keys() == {"rows", "tiles"}
    for each in found:
        assert kind(each, 2, "points")["variants"].keys() == {"apart", "together"}


def test_memory_is_that_of_the_weights(found: list[dict[str, Any]], folder: Path) -> None:
    model = load(folder)
    tensors, made = model.checkpoint.tensors, blocks(model.architecture)
    plain = {n for b in made for a in b.args if isinstance(a, Matrix) for n in a.tensors}
    norms = sum(2 * tensors[n].nbytes for n in tensors.keys() - plain)  # bf16 widened
    assert found[0]["weights_bytes"] == sum(tensors[n].nbytes for n in plain) + norms
    panel = model.device.panel
    for each, bits in zip(found[1:], (8, 4), strict=True):
        held = norms + tensors["model.embed_tokens.weight"].nbytes
        for block in made:
            if block.kernel == "linear_":
                (matrix,) = (a for a in block.args if isinstance(a, Matrix))
                rows = sum(tensors[n].shape[0] for n in matrix.tensors)
                width = tensors[matrix.tensors[0]].shape[1]
                own = 8 if block.name == "unembed" else bits
                held += nbytes(-(-rows // panel) * panel, width, own)
        assert each["weights_bytes"] == held
    a = model.architecture
    row = 2 * a.kv_head_count * a.head_size * a.layer_count
    assert [each["cache_bytes"] for each in found] == [4 * row, 4 * row, row]


def test_accuracy_is_that_of_the_version(found: list[dict[str, Any]]) -> None:
    kl = [each["accuracy"]["kl"]["mean"] for each in found]
    assert kl[0] < 1e-9 < kl[1] < kl[2]
    assert all(each["accuracy"]["kl"]["n"] == 20 for each in found)
    for name in ("qkv", "o_proj", "gate_up", "down_proj"):
        bits = [kind(each, 1, name)["bits"] for each in found]
        assert bits[0] > 21 > 9 > bits[1] > 5.5 > bits[2] > 2
    assert [kind(each, 0, "kv_append")["bits"] > 20 for each in found] == [True, True, False]
    assert [kind(each, 0, "embed")["bits"] for each in found] == [24.0] * 3
    assert all(kind(each, 0, "sample")["bits"] is None for each in found)


def test_a_floor_is_the_longest_of_what_must_be(folder: Path) -> None:
    ceilings = Ceilings(read=1e9, near=1e10, floats=1e11, integers=1e12)
    assert ceilings.floor(Traffic(2000, 0, 0), integers=False) == pytest.approx(2.0)
    assert ceilings.floor(Traffic(0, 30000, 0), integers=False) == pytest.approx(3.0)
    assert ceilings.floor(Traffic(1, 1, 700_000), integers=False) == pytest.approx(7.0)
    assert ceilings.floor(Traffic(1, 1, 700_000), integers=True) == pytest.approx(0.7)
    model = load(folder)
    made = {block.name: block for block in blocks(model.architecture)}
    one, many = (traffic(model, made["layers.0.o_proj"], 30, rows) for rows in (1, 7))
    assert many == Traffic(one.held, 7 * one.moved, 7 * one.operations)
    # 3 tokens that end at position 9 see 8, 9 and 10 keys
    seen = [traffic(model, made["layers.0.attn"], at).operations for at in (7, 8, 9)]
    attention = traffic(model, made["layers.0.attn"], 9, 3)
    assert attention.operations == sum(seen)
    assert attention.held == traffic(model, made["layers.0.attn"], 9).held


def test_a_text_is_told_by_the_model(folder: Path) -> None:
    model = load(folder)
    text = told(model, 9)
    assert text.forced
    assert (len(text.forced), text.positions) == (9, 9)
    assert told(model, 9) == text
    assert len(set(text.forced)) > 3


POINT = st.tuples(st.floats(1, 1e6), st.floats(0, 24), st.floats(1, 1e9))


@given(st.lists(POINT, min_size=1, max_size=6))
def test_what_is_best_in_anything_is_on_the_front(costs: list[tuple[float, float, float]]) -> None:
    marks = front(costs)
    assert any(marks)
    quickest = min(costs)
    if all(us > 1.06 * quickest[0] for us, _, _ in costs if us != quickest[0]):
        same = [n for n, each in enumerate(costs) if each[0] == quickest[0]]
        assert any(marks[n] for n in same)
    assert front(costs * 2) == marks * 2


def test_a_front_has_none_that_another_beats() -> None:
    assert front([(10, 24, 100), (5, 8, 50), (4, 4, 30)]) == [True] * 3
    assert front([(10, 24, 100), (12, 24, 100), (5, 8, 200)]) == [True, False, True]
    assert front([(10, 24.0, 100), (10.2, 23.8, 100)]) == [True, True]  # nobody could tell
    assert front([(10, 24.0, 100), (10.2, 23.8, 90)]) == [False, True]
    assert front([(10, 8, 50), (9, 8, 50)]) == [False, True]


def test_a_plot_shows_every_version(found: list[dict[str, Any]]) -> None:
    text = plot(found, "a <model> & more")
    root = ET.fromstring(text)
    words = " ".join(root.itertext())
    assert "a <model> & more" in words
    for each in found:
        assert each["numerics"] in words
    titles = [each.text or "" for each in root.iter(f"{SVG}title")]
    assert len(titles) == 9
    us = found[1]["sizes"][2]["us"] / 12
    assert titles[7] == f"speed.1: {us:.4g} µs a token"
    bars = [r for r in root.iter(f"{SVG}rect") if r.get("height") == "12"]
    assert len(bars) == 2 * sum(len(size["blocks"]) for each in found for size in each["sizes"])
    widths = [float(r.get("width") or 0) for r in bars]
    assert np.all(np.array(widths[1::2]) <= np.array(widths[::2]) + 0.11), "a floor is no longer"
    bare = [each | {"accuracy": None} for each in found[:1]]
    ET.fromstring(plot(bare, "x"))


def test_the_command_prints_what_was_found(tmp_path: Path, folder: Path) -> None:
    file = tmp_path / "plot.svg"
    done = call("bench", "-d", "cpu", "-m", folder, "-n", "5", "--batch", "2", "-o", file)
    lines = done.out.splitlines()
    assert lines[0].startswith("version")
    assert [line.split()[0] for line in lines[1:4]] == NAMES
    assert lines[-1] == str(file)
    assert file.read_text().startswith("<?xml")
    for title in ("one token, the last", "batch: 2 sequences", "prompt: 5 tokens of a prompt"):
        assert title in done.out
    assert max(map(len, lines)) <= 120
    told = call(
        *("bench", "-d", "cpu", "-m", folder, "-n", "5", "--no-accuracy", "--json"),
        *("--numerics", "memory", "--numerics", "memory.1"),
    )
    (only,) = (each for each in told.objects if each["type"] == "bench")
    assert (only["numerics"], only["accuracy"], only["device"]) == ("memory.1", None, "cpu")
    assert all(unit["front"] for size in only["sizes"] for unit in size["blocks"])


def test_runs_take_what_was_found(folder: Path) -> None:
    call("bench", "-d", "cpu", "-m", folder, "-n", "5", "--numerics", "accuracy", "--no-accuracy")
    files = [json.loads(path.read_text()) for path in CACHE.glob("variants-*.json")]
    assert any("linear_bf16x192x192" in key for file in files for key in file)


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["-n", "100000"], 2, "exceed the model's context of"),
        (["-n", "0"], 2, "0 is not in the range"),
        (["--batch", "0"], 2, "0 is not in the range"),
        (["--numerics", "fast"], 3, "no numerics 'fast'"),
        (["-d", "tpu"], 2, "no device 'tpu'"),
        (["-m", "nowhere"], 4, "no model 'nowhere'"),
        (["-n", "2", "--no-accuracy", "-o", "/nowhere/plot.svg"], 4, "cannot write"),
    ],
)
def test_what_cannot_be_measured(
    folder: Path, arguments: list[str], status: int, said: str
) -> None:
    model = () if "-m" in arguments else ("-m", folder)
    refused = call("bench", *model, *arguments)
    assert refused.status == status
    assert said in refused.err
    assert refused.err.startswith("llmtrace: error: ")
    assert not refused.out
