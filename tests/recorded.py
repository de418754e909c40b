"""Fixtures of the tests of commands: a home with a few runs in it, made once a module."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import commands as made
from llmtrace.store.chain import Store


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of the home."""
    with made.home(tmp_path_factory.mktemp("commands")) as folder:
        yield folder


@pytest.fixture(scope="module")
def runs(place: Path) -> dict[str, Any]:
    """What `run --json` printed, by the names of the runs."""
    return made.make_runs(place)


@pytest.fixture(scope="module")
def commits(runs: dict[str, Any]) -> dict[str, str]:
    """Commit ids by the names of the runs."""
    return {name: runs[name]["commit"] for name in made.NAMES}


@pytest.fixture(scope="module")
def store(place: Path, runs: dict[str, Any]) -> Store:
    """The store that holds the runs."""
    return made.open_store(place)
