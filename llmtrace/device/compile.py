"""Compiles the kernels for the host, once per source, flags, compiler and CPU."""

from __future__ import annotations

import hashlib
import importlib.util
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from llmtrace.errors import Inconclusive, Trouble

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

FLAGS = (
    "-O3",
    "-std=c++17",
    "-shared",
    "-fPIC",
    "-pthread",
    "-fno-exceptions",
    "-fno-rtti",
    "-ffp-contract=off",  # an fma stands where the source writes it
    "-fno-fast-math",
    "-fno-math-errno",  # sqrt is the instruction
    "-fno-trapping-math",  # both sides of a selection may be computed: vectors, not branches
    "-fwrapv",
    "-fno-strict-aliasing",
)
BUILDS = ("native", "x86-64-v3", "x86-64-v2", "generic")


def kernels_folder() -> Path:
    """Finds ``kernels/``: inside an installed package, else beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "_kernels", package.parent / "kernels"):
        if (folder / "lanes.cuh").is_file():
            return folder
    raise Trouble("no kernels found beside the package", "install llmtrace again")


def sources_digest(kernels: Path) -> str:
    """Gives SHA-256 over names and contents of all kernel sources."""
    digest = hashlib.sha256()
    for path in sorted(kernels.iterdir()):
        if path.suffix in {".cu", ".cuh", ".cpp"}:
            text = path.read_bytes()
            digest.update(f"{path.name} {len(text)}\n".encode() + text)
    return digest.hexdigest()


def compiler(cxx: str) -> list[str]:
    """Gives the command of the C++17 compiler: ``cxx``, else c++, g++, clang++, else ziglang's."""
    for name in [cxx] if cxx else ["c++", "g++", "clang++"]:
        words = name.split()
        found = shutil.which(words[0]) if words else None
        if found:
            return [found, *words[1:]]
    if not cxx and importlib.util.find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "c++"]
    raise Inconclusive(
        f"no C++ compiler '{cxx}'" if cxx else "no C++ compiler found",
        "install g++ or clang, or: pip install 'llmtrace[compiler]'",
    )


def host_library(
    kernels: Path,
    cache: Path,
    *,
    cxx: str = "",
    cpu: str = "native",
    flags: Sequence[str] = FLAGS,
    announce: Callable[[str], None] = lambda _: None,
) -> Path:
    """Gives the path of the compiled library, compiling it if the cache has none.

    The key holds everything that the code depends on: sources, flags, the compiler's file
    and, for ``native``, the CPU's features, so that a shared home is safe.
    ``announce`` is told before a compilation starts: it takes seconds.
    """
    command = compiler(cxx)
    target = [*flags, *_target(cpu, command)]
    stat = Path(command[0]).stat()
    key = hashlib.sha256(
        repr(
            (
                sources_digest(kernels),
                target,
                command,
                stat.st_size,
                stat.st_mtime_ns,
                _features(cpu),
            )
        ).encode()
    ).hexdigest()[:32]
    library = cache / f"host-{key}.so"
    if library.is_file():
        return library
    announce("compiling the kernels for this CPU, once")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            built = Path(folder) / "k.so"
            _compile([*command, "-x", "c++", str(kernels / "host.cpp"), *target], built)
            built.replace(library)
    except OSError as error:
        raise Trouble(
            f"cannot write '{cache}': {error.strerror}", "set XDG_CACHE_HOME to a folder with room"
        ) from None
    return library


def _compile(command: list[str], built: Path) -> None:
    hint = "set CXX to another C++17 compiler"
    command = [*command, "-o", str(built)]
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, errors="replace"
        )
    except OSError as error:
        raise Trouble(f"cannot run '{command[0]}': {error.strerror}", hint) from None
    if done.returncode or not built.is_file():
        said = done.stderr.splitlines()
        line = next((line for line in said if "error" in line), said[0] if said else "")
        how = f"exited {done.returncode}" if done.returncode >= 0 else "was killed"
        raise Trouble(f"'{command[0]}' {how}: {line[:300] or 'it said nothing'}", hint)


def _target(cpu: str, command: list[str]) -> list[str]:
    if cpu not in BUILDS:
        raise Trouble(f"no host build '{cpu}'", "set LLMTRACE_CPU to one of: " + ", ".join(BUILDS))
    zig = "ziglang" in command or Path(command[0]).name == "zig"
    # Zig builds the C++ library from source before it links it, for a minute and more.
    flags = ["-nostdlib++"] if zig else []
    if cpu == "generic":
        return flags
    if platform.machine() in {"aarch64", "arm64"}:
        return [*flags, "-mcpu=native"] if cpu == "native" else flags
    return [*flags, "-march=" + (cpu.replace("-", "_") if zig else cpu)]


def _features(cpu: str) -> str:
    if cpu != "native":
        return cpu
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as lines:
            return (
                next((line for line in lines if line.startswith(("flags", "Features"))), "")
                + platform.machine()
            )
    except OSError:
        return platform.processor() + platform.machine()
