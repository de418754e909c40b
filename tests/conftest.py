"""Every test has a home of its own; the compiled kernels alone are kept between runs."""

import os
import sys
import tempfile
from pathlib import Path

import pytest

pytest_plugins = ["recorded"]
ROOT = Path(__file__).parents[1]


def pytest_configure(config: pytest.Config) -> None:
    """Cuts the tests off from who runs them: no home, no settings, no git configuration."""
    for name in [*os.environ]:
        if name.startswith(("LLMTRACE_", "XDG_", "GIT_", "_LLMTRACE")):
            del os.environ[name]
    cache = getattr(config, "cache", None)  # none under `-p no:cacheprovider`
    compiled = cache.mkdir("compiled") if cache else tempfile.mkdtemp()
    os.environ["XDG_CACHE_HOME"] = str(compiled)  # keyed by what is in it, so never stale
    os.environ["GIT_CONFIG_NOSYSTEM"] = "1"
    os.environ["LC_ALL"] = "C.UTF-8"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    needing = [item for item in items if item.get_closest_marker("gpu")]
    if needing and not has_gpu():
        for item in needing:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def has_gpu() -> bool:
    """Says whether CuPy finds a CUDA device here."""
    try:
        import cupy

        return bool(cupy.cuda.runtime.getDeviceCount())
    except Exception:  # no CuPy, no driver, or none that answers
        return False


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home directory."""
    path = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(path))
    return path


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A PATH that has `llmtrace`: the installed one, else one that runs this tree."""
    ours = Path(sys.executable).parent
    folders = [str(ours), os.environ["PATH"]]
    if not (ours / "llmtrace").exists():
        program = tmp_path_factory.mktemp("bin") / "llmtrace"
        code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        code += "from llmtrace.cli import main\nsys.exit(main())\n"
        program.write_text(f"#!{sys.executable}\n{code}")
        program.chmod(0o755)
        folders.insert(0, str(program.parent))
    return os.pathsep.join(folders)
