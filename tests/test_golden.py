"""Records of every frozen version of the arithmetic and format of the probes verify, for ever."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from llmtrace.blocks.versions import VERSIONS
from llmtrace.cli import main

GOLDEN = Path(__file__).with_name("golden")
BUNDLES = sorted(GOLDEN.glob("*.bundle"))


def test_every_frozen_version_has_a_golden_chain() -> None:
    frozen = {version.name for version in VERSIONS if not version.name.endswith(".0")}
    assert frozen == {bundle.stem for bundle in BUNDLES if not bundle.stem.startswith("probes.")}


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda bundle: bundle.stem)
def test_golden_records_verify(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store.git"
    subprocess.run(["git", "clone", "--quiet", "--bare", bundle, store], check=True)
    expected = dict(
        line.split() for line in bundle.with_suffix(".checksums").read_text().splitlines()
    )
    models = {"sample": [], "model": ["-m", str(GOLDEN / "model")]}
    for commit, checksum in expected.items():
        assert main(["--store", str(store), "show", commit, "--json"]) == 0
        shown = json.loads(capsys.readouterr().out.split("\n")[0])
        name = shown["record"]["attested"]["model"]
        status = main(
            ["--store", str(store), "verify", commit, "-d", "cpu", *models[name], "--json"]
        )
        line = json.loads(capsys.readouterr().out.split("\n")[0])
        assert (status, line["verdict"], line["reason"]) == (0, "verified", "")
        assert shown["checksum"] == checksum
        numerics, form = bundle.stem, 1 if bundle.stem == "accuracy.1" else 2
        if bundle.stem.startswith("probes."):
            numerics, form = "accuracy.1", int(bundle.stem.removeprefix("probes."))
        assert shown["record"]["trace"]["numerics"] == numerics
        assert shown["record"]["probes"]["format"] == form
    assert len(expected) >= 9


def test_probes_move_no_checksum() -> None:
    """The same runs with probes of another format have the same checksums."""
    first, second = (
        [line.split()[1] for line in (GOLDEN / f"{name}.checksums").read_text().splitlines()]
        for name in ("accuracy.1", "probes.2")
    )
    assert second[: len(first)] == first
