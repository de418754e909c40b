"""Names of models: models.toml maps a name to a folder, and ``sample`` is always there."""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from pathlib import Path

from llmtrace.errors import Misuse, Trouble

SAMPLE = "sample"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def resolve(name_or_path: str, models_file: Path, sample: Path) -> Path:
    """The folder of a model: a folder itself, a name of models.toml, or ``sample``.

    A bare word that is both a name and a folder is the folder, if a model lies there.
    """
    if is_folder(name_or_path):
        return Path(name_or_path)
    if name_or_path == SAMPLE:
        return sample
    named = _read(models_file).get(name_or_path)
    if named is None:
        raise Trouble(f"no model '{name_or_path}'", "llmtrace model list")
    if not named.is_dir():
        raise Trouble(
            f"model '{name_or_path}' was in '{named}', which is no folder now",
            f"llmtrace model add {name_or_path} DIR",
        )
    return named


def is_folder(name_or_path: str) -> bool:
    """Says whether a model is called by its folder."""
    folder = Path(name_or_path)
    is_bare = NAME.fullmatch(name_or_path) is not None
    found = bool(name_or_path) and folder.is_dir()
    return found and (not is_bare or (folder / "config.json").is_file())


def add(name: str, path: Path, models_file: Path) -> None:
    """Gives a folder a name, in place of what had that name."""
    if name == SAMPLE or not NAME.fullmatch(name):
        raise Misuse(
            f"'{name}' cannot be the name of a model",
            f"use letters, digits, '.', '_' and '-', and not '{SAMPLE}'",
        )
    if not path.is_dir():
        raise Trouble(f"model folder '{path}' does not exist", "llmtrace model list")
    _write(models_file, _read(models_file) | {name: path.resolve()})


def listing(models_file: Path, sample: Path) -> list[tuple[str, Path]]:
    """All names with their folders: the sample first, then by name."""
    return [(SAMPLE, sample), *sorted(_read(models_file).items())]


def sample_folder() -> Path:
    """The sample model: inside an installed llmtrace, else in the checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "_samples" / "model"
    return installed if installed.is_dir() else package.parent / "samples" / "model"


def _read(models_file: Path) -> dict[str, Path]:
    import tomli

    hint = f"mend or delete '{models_file}'"
    try:
        with models_file.open("rb") as opened:
            models = tomli.load(opened).get("models", {})
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise Trouble(f"cannot read '{models_file}': {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise Trouble(f"cannot read '{models_file}': {error}", hint) from error
    if not isinstance(models, dict) or not all(isinstance(path, str) for path in models.values()):
        raise Trouble(f"'{models_file}' does not map names to folders", hint)
    return {name: Path(path) for name, path in models.items()}


def _write(models_file: Path, models: dict[str, Path]) -> None:
    # Whole or not at all: another process may be reading.
    lines = [f"{_quoted(name)} = {_quoted(str(path))}" for name, path in sorted(models.items())]
    text = "\n".join(["[models]", *lines, ""])
    part = None
    try:
        models_file.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(dir=models_file.parent, prefix=".models-")
        with os.fdopen(handle, "w", encoding="utf-8") as opened:
            opened.write(text)
        Path(part).replace(models_file)
    except (OSError, UnicodeEncodeError) as error:
        if part:
            with contextlib.suppress(OSError):
                Path(part).unlink()
        raise Trouble(f"cannot write '{models_file}': {error}") from error


def _quoted(text: str) -> str:
    # A JSON string is a TOML one, but for DEL.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
