"""Records of every frozen version of the arithmetic verify, for ever."""

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
    frozen = {version for version in VERSIONS if not version.endswith(".0")}
    assert frozen == {bundle.stem for bundle in BUNDLES}


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
        assert shown["record"]["trace"]["numerics"] == bundle.stem
    assert len(expected) >= 9
