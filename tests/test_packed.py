"""Kept quantised weights: read again to the bit, and never believed when they are not sound."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from blake3 import blake3

from checkpoints import make
from llmtrace.blocks.block import Matrix
from llmtrace.blocks.versions import version
from llmtrace.blocks.weights import Weights
from llmtrace.engine.request import Request
from llmtrace.engine.trace import Model
from llmtrace.model.architecture import Architecture
from llmtrace.model.checkpoint import Checkpoint
from running import avx_vnni, device, run
from scored import prompt_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from llmtrace.engine.sequence import Trace

ASKED = Request(prompt_of(17, 259, seed=2), 6)
INTEGERS = ("speed", "memory")


def place(folder: Path, numerics: str, packed: Path | None, **on: str) -> Model:
    opened = Checkpoint.open(folder)
    parts = (opened, Architecture.of(opened), device(**on), "test", version(numerics))
    return Model.place(*parts, packed)


def ran(folder: Path, numerics: str, packed: Path | None, **on: str) -> Trace:
    (trace,) = run(place(folder, numerics, packed, **on), [ASKED], level="sample")
    return trace


def files(packed: Path) -> list[Path]:
    return sorted(path for path in packed.rglob("*") if path.is_file())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make(tmp_path / "model", layers=2, hidden=96, ff=160)


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Whoever quantises fails."""
    monkeypatch.setattr(Weights, "made_again", lambda *_: pytest.fail("it quantised"))
    return monkeypatch


@pytest.mark.parametrize("numerics", INTEGERS)
def test_later_runs_read_what_the_first_made(
    folder: Path, tmp_path: Path, numerics: str, request: pytest.FixtureRequest
) -> None:
    alone = ran(folder, numerics, None)
    first = ran(folder, numerics, tmp_path / "packed")
    kept = files(tmp_path / "packed")
    assert len(kept) == 4 * 2 + 1
    for path in kept:
        content = path.read_bytes()
        assert blake3(content[:-32]).digest() == content[-32:]
    request.getfixturevalue("never")
    again = ran(folder, numerics, tmp_path / "packed")
    assert alone.commitment == first.commitment == again.commitment
    assert alone.output == first.output == again.output


OTHERS = [
    pytest.param([{"cpu": "x86-64-v3"}, {"cpu": "x86-64-v2"}], id="AVX2 and SSE"),
    avx_vnni([{"cpu": "x86-64-v3", "cxx": "g++ -mavxvnni"}, {"cpu": "x86-64-v3"}]),
]


@pytest.mark.parametrize("others", OTHERS)
@pytest.mark.parametrize("numerics", INTEGERS)
def test_another_layout_has_files_of_its_own(
    folder: Path, tmp_path: Path, numerics: str, others: list[dict[str, str]]
) -> None:
    packed, builds = tmp_path / "packed", [{}, *others, {}]
    found = {ran(folder, numerics, packed, **on).commitment for on in builds}
    assert len(found) == 1
    layouts = {device(**on).layout for on in builds}
    assert len(list(packed.iterdir())) == len(layouts) > 1


SPOILT: dict[str, Callable[[bytes], bytes]] = {
    "a bit": lambda content: bytes([content[0] ^ 1]) + content[1:],
    "a bit of the digest": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    "the end": lambda content: content[:-1],
    "more": lambda content: content + b"\0",
    "everything": lambda _: b"",
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_a_file_that_is_not_sound_is_made_again(
    folder: Path, tmp_path: Path, spoil: Callable[[bytes], bytes]
) -> None:
    expected = ran(folder, "memory", tmp_path / "packed").commitment
    kept = {path: path.read_bytes() for path in files(tmp_path / "packed")}
    for path, content in kept.items():
        path.write_bytes(spoil(content))
    assert ran(folder, "memory", tmp_path / "packed").commitment == expected
    assert {path: path.read_bytes() for path in files(tmp_path / "packed")} == kept


def test_a_run_goes_on_where_nothing_can_be_kept(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "packed").write_text("a file, no folder")
    expected = ran(folder, "speed", None).commitment
    assert ran(folder, "speed", tmp_path / "packed").commitment == expected
    assert (tmp_path / "packed").read_text() == "a file, no folder"


@pytest.mark.parametrize("numerics", INTEGERS)
def test_runs_in_integers_hold_no_other_weights(folder: Path, numerics: str) -> None:
    """But for the embedding: scores that want stored weights take the rows that they need."""
    model = place(folder, numerics, None)
    run(model, [ASKED], level="sample")
    matrices = {key for key in model.weights._placed if isinstance(key, Matrix)}
    assert [matrix.tensors for matrix in matrices] == [("model.embed_tokens.weight",)]


@pytest.mark.parametrize("shapes", [((5, 40),), ((5, 40), (3, 40), (9, 40))])
@pytest.mark.parametrize("kinds", ["bf16", "mixed"])
def test_chosen_rows_are_those_of_the_matrix(
    tmp_path: Path, shapes: tuple[tuple[int, int], ...], kinds: str
) -> None:
    import torch
    from safetensors.torch import save_file

    types = [torch.bfloat16, torch.float16 if kinds == "mixed" else torch.bfloat16] * 2
    tensors = {f"t{n}": torch.randn(shape).to(types[n]) for n, shape in enumerate(shapes)}
    (tmp_path / "config.json").write_text("{}")
    save_file(tensors, tmp_path / "model.safetensors")
    model = Weights(Checkpoint.open(tmp_path), device(), None)  # type: ignore[arg-type]
    matrix = Matrix(tuple(tensors))
    whole = device().download(model.matrix(matrix))
    index = np.array([4, 0, sum(n for n, _ in shapes) - 1, 4])
    both = np.stack([index, index[::-1]])
    for chosen, rows in zip(both, model.rows([matrix, matrix], both), strict=True):
        assert np.array_equal(device().download(rows), whole[chosen])
    for multiple in (1, 2, 32):
        assert np.array_equal(np.concatenate([*model.stripes(matrix, multiple)]), whole)
    with pytest.raises(IndexError, match="'t0' has"):
        model.rows([matrix], index[None] + 1)
    with pytest.raises(IndexError, match="has"):
        model.rows([matrix], index[None] - 1)
