"""The samples that ship run as they are: the Makefile turns prompts into verified stamps."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SAMPLES = Path(__file__).parents[1] / "samples"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copy(SAMPLES / "Makefile", tmp_path)
    shutil.copytree(SAMPLES / "prompts", tmp_path / "prompts")
    return tmp_path


def make(folder: Path, programs: str) -> str:
    environment = {**os.environ, "PATH": programs + os.pathsep + os.environ["PATH"]}
    done = subprocess.run(["make", "-C", folder], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_make_turns_prompts_into_verified_stamps(folder: Path, programs: str) -> None:
    make(folder, programs)
    names = sorted(path.stem for path in (SAMPLES / "prompts").glob("*.txt"))
    assert len(names) == 3
    for name in names:
        commit = (folder / "build" / f"{name}.commit").read_text().strip()
        assert (folder / "build" / f"{name}.verified").read_text() == f"verified {commit}\n"
    assert "llmtrace" not in make(folder, programs)  # nothing left to do


def test_only_a_changed_prompt_runs_again(folder: Path, programs: str) -> None:
    make(folder, programs)
    before = {path.name: path.read_text() for path in (folder / "build").iterdir()}
    (folder / "prompts" / "fox.txt").write_text("The hen said to the fox,")
    make(folder, programs)
    after = {path.name: path.read_text() for path in (folder / "build").iterdir()}
    assert {name for name in before if before[name] != after[name]} == {
        "fox.commit",
        "fox.verified",
    }
