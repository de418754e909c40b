"""The rules of the house: rooms, arrows, sizes, and files that follow from others."""

import ast
import os
import pwd
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import manual

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "llmtrace").rglob("*.py"))
KERNELS = sorted(path for path in (ROOT / "kernels").iterdir() if path.suffix in {".cu", ".cuh"})
PAGES = sorted((ROOT / "man").glob("*.[1-9]"))

# Which room may import which: whatever is not here is a new arrow, and needs a reason.
ARROWS = {
    "llmtrace": set(),
    "errors": set(),
    "model": set(),
    "device": set(),
    "store": set(),
    "probes": {"device"},
    "blocks": {"device", "model", "probes"},
    "engine": {"blocks", "device", "model", "probes"},
    "introspect": {"blocks", "device", "engine", "model", "probes", "store"},
    "verify": {"blocks", "device", "engine", "introspect", "model", "probes", "store"},
    "cluster": {"store"},
    "market": {"store", "verify"},
    "node": {"blocks", "device", "engine", "introspect", "market", "model", "store", "verify"},
    "cli": {
        *("blocks", "cluster", "device", "engine", "introspect", "market", "model", "node"),
        *("probes", "store", "verify"),
    },
}
EVERYBODY_MAY = {"errors", "llmtrace"}

# Libraries that hide behind one room each.
ONLY_IN = {
    "click": "cli",
    "ctypes": "device",
    "cupy": "device",
    "detect_secrets": "verify",
    "distributed": "cluster",
    "git": "store",
    "huggingface_hub": "model",
    "pygit2": "store",
    "tqdm": "cli",
}

HEAVY = {
    *("blake3", "cryptography", "cupy", "git", "huggingface_hub", "jinja2", "numpy", "pygit2"),
    *(
        "detect_secrets",
        "distributed",
        "safetensors",
        "tokenizers",
        "tomli",
        "torch",
        "tqdm",
        "transformers",
    ),
}

TOP = {
    *("pyproject.toml", "README.md", "llmtrace", "kernels", "tests", "man", "completions"),
    "samples",
}


def room(path: Path) -> str:
    """The part of the package that a module belongs to."""
    first = path.relative_to(ROOT / "llmtrace").parts[0].removesuffix(".py")
    return "llmtrace" if first == "__init__" else "cli" if first == "__main__" else first


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def where(path: Path, node: ast.stmt | ast.expr | None = None) -> str:
    name = str(path.relative_to(ROOT))
    return name if node is None else f"{name}:{node.lineno}"


def imports(nodes: Iterator[ast.AST]) -> Iterator[tuple[ast.stmt, str]]:
    """Every module that is imported, by its whole name."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None
            if node.module == "llmtrace":
                yield from ((node, f"llmtrace.{alias.name}") for alias in node.names)
            else:
                yield node, node.module


def test_arrows_go_one_way() -> None:
    wrong = []
    for path in MODULES:
        allowed = ARROWS[room(path)] | EVERYBODY_MAY | {room(path)}
        for node, name in imports(ast.walk(tree(path))):
            package, _, rest = name.partition(".")
            target = rest.partition(".")[0] or "llmtrace"
            if package == "llmtrace" and target not in allowed and not target.startswith("__"):
                wrong.append(f"{where(path, node)}: '{room(path)}' imports '{target}'")
    assert not wrong, "\n".join(wrong)


def test_arrows_have_no_circle() -> None:
    order: list[str] = []
    while len(order) < len(ARROWS):
        free = [name for name in ARROWS if name not in order and not ARROWS[name] - {*order}]
        assert free, f"a circle among {ARROWS.keys() - {*order}}"
        order += free


def test_libraries_hide_in_one_room() -> None:
    wrong = [
        f"{where(path, node)}: only {ONLY_IN[library]}/ imports {library}"
        for path in MODULES
        for node, name in imports(ast.walk(tree(path)))
        if (library := name.partition(".")[0]) in ONLY_IN and ONLY_IN[library] != room(path)
    ]
    assert not wrong, "\n".join(wrong)


def test_gitpython_is_in_one_file() -> None:
    users = [
        where(path)
        for path in MODULES
        if any(name.partition(".")[0] == "git" for _, name in imports(ast.walk(tree(path))))
    ]
    assert len(users) <= 1, users


def test_only_the_command_line_touches_streams_and_environment() -> None:
    wrong = []
    for path in MODULES:
        allowed = {"stdin", "stdout", "stderr", "argv", "exit"} if room(path) == "cli" else set()
        if path.name == "settings.py" and room(path) == "cli":
            allowed |= {"environ"}
        for node in ast.walk(tree(path)):
            name = ""
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                module, name = node.value.id, node.attr
                if (module, name) == ("os", "getenv"):
                    name = "environ"
                if module not in {"os", "sys"}:
                    continue
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                name = node.func.id if node.func.id in {"print", "input"} else ""
            closed = {"environ", "stdin", "stdout", "stderr", "argv", "exit", "print", "input"}
            if name in closed - allowed:
                assert isinstance(node, ast.expr)
                wrong.append(f"{where(path, node)}: '{name}' is for the command line")
    assert not wrong, "\n".join(wrong)


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    """Imports under `if TYPE_CHECKING` are no imports; those at the top of a module are."""
    wrong = [
        f"{where(path, node)}: '{name}' is imported at the top"
        for path in MODULES
        for node, name in imports(iter(tree(path).body))
        if name.partition(".")[0] in HEAVY
    ]
    assert not wrong, "\n".join(wrong)


def test_files_are_short() -> None:
    sizes = {where(path): path.read_text().count("\n") for path in [*MODULES, *KERNELS]}
    assert not {name: size for name, size in sizes.items() if size > 400}


def test_functions_are_short() -> None:
    long = [
        f"{where(path, node)}: '{node.name}' has {size} lines"
        for path in MODULES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (size := (node.end_lineno or node.lineno) - node.lineno + 1) > 60
    ]
    assert not long, "\n".join(long)


def test_modules_and_kernels_say_what_they_are() -> None:
    mute = [where(path) for path in MODULES if not ast.get_docstring(tree(path))]
    mute += [where(path) for path in KERNELS if not path.read_text().startswith("//")]
    assert not mute


def test_names_are_of_the_house() -> None:
    """No room for whatever has no room: such a file hides nothing."""
    vague = re.compile(r"(^|_)(utils?|helpers?|manager|base|common|misc)\b")
    assert not [where(path) for path in [*MODULES, *KERNELS] if vague.search(path.stem)]


def tracked() -> list[Path]:
    """The files that git has or would add; a copy without git has none to judge."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("no git checkout")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    return [path for path in paths if path.exists()]


def test_top_level_has_what_the_layout_names() -> None:
    names = {path.relative_to(ROOT).parts[0] for path in tracked()}
    assert not {name for name in names - TOP if not name.startswith(".")}


def test_no_path_of_one_machine_and_no_loose_end() -> None:
    home = pwd.getpwuid(os.getuid()).pw_dir  # the real one: that of a test is another
    homes = {
        f"{ROOT.parent}/",
        f"{home}/",
        "/".join(("..", "shared")),
        "/".join(("", "opt", "v", "")),
    }
    loose = re.compile(r"\b(TO" r"DO|FIX" r"ME|XX" r"X|HA" r"CK)\b|NotImplemented" r"Error")
    wrong = []
    for path in tracked():
        try:
            lines = path.read_text().splitlines()
        except UnicodeDecodeError:
            continue
        if path.suffix in {".json", ".jsonl"}:  # a vocabulary holds any word
            continue
        for number, line in enumerate(lines, 1):
            if any(home in line for home in homes - {"//"}):
                wrong.append(f"{where(path)}:{number}: a path of one machine")
            if path.suffix in {".py", ".cu", ".cuh"} and loose.search(line):
                wrong.append(f"{where(path)}:{number}: a loose end")
    assert not wrong, "\n".join(wrong)


RUFF = ["ruff", "check", "--no-cache", "--output-format=concise"]


@pytest.mark.parametrize("tool", [RUFF, ["mypy"]], ids=["ruff", "mypy"])
def test_checker_is_silent(tool: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *tool], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_generated_files_are_current() -> None:
    stale = [where(path) for path in manual.stale()]
    assert not stale, f"{stale}: run 'python -m tests.manual --write'"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page_is_sound(page: Path) -> None:
    """What every page has; the option lists are checked with the generated files."""
    text = page.read_text()
    titles = re.findall(r"^\.SH (.*)$", text, re.MULTILINE)
    assert titles[0] == "NAME"
    assert titles[-1] == "SEE ALSO"
    assert f"\n{page.stem} \\- ".replace("-", "\\-").replace("\\\\-", "\\-") in text
    if page.suffix == ".1":
        assert {"SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXIT STATUS", "EXAMPLES"} <= {*titles}
    for name, section in re.findall(r"^\.BR (llmtrace\S*) \((\d)\)", text, re.MULTILINE):
        other = name.replace("\\-", "-")
        assert (ROOT / "man" / f"{other}.{section}").exists(), f"'{other}' has no page"
    if shutil.which("groff") is None:
        pytest.skip("groff is not installed")
    done = subprocess.run(
        ["groff", "-man", "-ww", "-z", "-Kutf8", str(page)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""


def test_every_command_has_a_page() -> None:
    names = {f"llmtrace-{name}.1" for name in manual.COMMANDS} | {"llmtrace.1"}
    assert not names - {page.name for page in PAGES}


def test_wheel_carries_every_page_and_script() -> None:
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())
    shared = table["tool"]["hatch"]["build"]["targets"]["wheel"]["shared-data"]
    for page in PAGES:
        assert shared.get(f"man/{page.name}") == f"share/man/man{page.suffix[1:]}/{page.name}"
    for script in manual.SCRIPTS.values():
        assert f"completions/{script}" in shared


def test_versions_are_one() -> None:
    import llmtrace

    table = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert table["project"]["dynamic"] == ["version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", llmtrace.__version__)
