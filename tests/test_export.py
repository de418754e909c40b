"""export: files that hold what was kept and sampled, whole or not at all."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from commands import POINT, answer, call, tell
from llmtrace.store.chain import Store


def test_export_holds_what_was_kept_and_sampled(
    runs: dict[str, Any], commits: dict[str, str], tmp_path: Path
) -> None:
    file = tmp_path / "inside.safetensors"
    done = call("export", commits["kept"], "-o", file)
    assert done == (0, f"{file}\n", "")
    tensors = load_file(file)
    kept = [tensors[POINT.format(layer)] for layer in (0, 1)]
    assert [array.shape for array in kept] == [(13, 64), (13, 64)]
    assert tensors["unembed.hook_out"].shape == (6, 259)
    assert tensors["unembed.hook_out"].argmax(1).tolist() == runs["kept"]["output_tokens"]
    features = answer("show", commits["kept"])["features"]["layers"]
    for layer, values in enumerate(kept):
        point, double = POINT.format(layer), values.astype(np.float64)
        positions, index = tensors[f"{point}.positions"], tensors[f"{point}.sample_index"]
        assert (positions.dtype, index.dtype, index.shape) == (
            np.int32,
            np.int32,
            (len(positions), 8),
        )
        assert positions[-1] == 12
        assert (tensors[f"{point}.samples"] == values[positions[:, None], index]).all()
        rms = np.sqrt((double**2).mean(1)).mean()
        found = float.fromhex(features["stream_rms"]["mean"][layer])
        assert found == pytest.approx(rms, rel=1e-6)
        for name in ("attn.hook_q", "mlp.hook_pre_linear"):
            assert tensors[f"blocks.{layer}.{name}.samples"].shape == (len(positions), 8)
    assert [*tmp_path.iterdir()] == [file]


def test_export_is_the_same_every_time(commits: dict[str, str], tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert call("export", commits["kept"], "-o", tmp_path / name).status == 0
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    told = answer("export", commits["again"], "-o", tmp_path / "all")
    assert told["bytes"] == (tmp_path / "all").stat().st_size
    name = POINT.format(1) + ".samples"
    assert told["tensors"][name] == {"dtype": "float32", "shape": [13, 8]}
    assert {*told["tensors"]} == {*load_file(tmp_path / "all")}


def test_export_replaces_files_and_keeps_links(commits: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "there").write_text("old")
    (tmp_path / "link").symlink_to("there")
    assert call("export", commits["kept"], "-o", tmp_path / "link").status == 0
    assert (tmp_path / "link").is_symlink()
    assert POINT.format(0) in load_file(tmp_path / "there")


def test_export_writes_whole_files_or_none(
    commits: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").write_text("old")

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    full = call("export", commits["kept"], "-o", tmp_path / "there")
    assert full.status == 4
    said = f"llmtrace: error: cannot write '{tmp_path / 'there'}': No space left on device\n"
    assert full.err == said
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    assert (tmp_path / "there").read_text() == "old"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("/dev/null", "not a regular file"),
        (".", "not a regular file"),
        ("no/such/folder/file", "No such file or directory"),
        ("a\0b", "embedded null byte"),
    ],
)
def test_export_refuses_places(commits: dict[str, str], name: str, why: str) -> None:
    refused = call("export", commits["kept"], "-o", name)
    assert (refused.status, refused.out) == (4, "")
    assert refused.err.startswith("llmtrace: error: cannot write '")
    assert refused.err.endswith(f"': {why}\n")
    assert Path("/dev/null").is_char_device()


def test_export_refuses_records(store: Store, commits: dict[str, str], tmp_path: Path) -> None:
    def refuse(commit: str) -> str:
        refused = call("export", commit, "-o", tmp_path / "file")
        assert (refused.status, refused.out) == (4, "")
        assert not [*tmp_path.iterdir()]
        return refused.err

    said = refuse(commits["bare"])
    assert "holds no samples and no kept tensors" in said
    assert "llmtrace run --keep" in said
    assert "is a record of kind 'identity'" in refuse(f"{commits['greedy']}~")
    assert "'kept.000' is malformed" in refuse(tell(store, commits["kept"], {"kept.000": b"no"}))
    other = tell(store, commits["kept"], probes={"keep": ["hook_embed"]})
    assert "not the float32 tensors that the record names" in refuse(other)
    assert "'kept.000' is malformed" in refuse(tell(store, commits["kept"], {"kept.000": None}))
    assert call("export", commits["kept"]).status == 2
