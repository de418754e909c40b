"""Compiles the kernels for a GPU by NVRTC, once per source, flags, NVRTC version and architecture.

CuPy lends its binding of NVRTC and later loads what this makes. Its own compiler is never asked:
it appends ``-ftz=true`` to whatever it is given, which flushes subnormals even in ``__fmaf_rn``.
"""

from __future__ import annotations

import hashlib
import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmtrace.device.cache import put
from llmtrace.device.compile import sources_digest
from llmtrace.errors import Inconclusive, Trouble

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

FLAGS = (
    "-std=c++17",
    "-fmad=false",  # an fma stands where the source writes it
    "-ftz=false",  # subnormals are kept
    "-prec-div=true",
    "-prec-sqrt=true",  # both correctly rounded
)
FORMAT = 1  # of the files in the cache
INSTALL = "pip install 'llmtrace[cuda]'"


@dataclass(frozen=True)
class Binary:
    """What NVRTC made of one source file; a virtual architecture (``compute_90``) has no cubin."""

    cubin: bytes
    ptx: str
    log: str


def version() -> tuple[int, int]:
    """Gives the version of NVRTC, major and minor.

    Raises Inconclusive where CuPy or NVRTC is not installed.
    """
    major, minor = _binding().getVersion()
    return int(major), int(minor)


def architectures() -> list[str]:
    """Gives the architectures that this NVRTC compiles for, such as ``sm_90``, oldest first."""
    return [f"sm_{number}" for number in sorted(_binding().getSupportedArchs())]


def compile_source(
    source: str,
    name: str,
    headers: Mapping[str, str],
    architecture: str,
    flags: Sequence[str] = FLAGS,
) -> Binary:
    """Compiles one file; ``headers`` are all that it may include, by name.

    Raises Trouble with the first error of NVRTC's log.
    """
    binding = _binding()
    texts = [text.encode() for text in headers.values()]
    program = binding.createProgram(source, name, texts, [key.encode() for key in headers])
    try:
        binding.compileProgram(program, [f"-arch={architecture}", *flags])
        real = architecture.startswith("sm_")
        cubin = _whole(binding.getCUBIN(program)) if real else b""
        return Binary(cubin, binding.getPTX(program).decode(), _log(binding, program))
    except binding.NVRTCError as error:
        lines = _log(binding, program).splitlines() or [str(error)]
        first = next((line for line in lines if "error" in line), lines[0])
        raise Trouble(
            f"cannot compile '{name}' for '{architecture}': {first[:300]}",
            f"update NVRTC: {INSTALL} --upgrade",
            "use -d cpu",
        ) from None
    finally:
        binding.destroyProgram(program)


def cubins(
    kernels: Path,
    cache: Path,
    architecture: str,
    announce: Callable[[str], None] = lambda _: None,
) -> dict[str, Path]:
    """Gives, for the name of every kernel, the cubin that holds it; compiles what the cache lacks.

    ``announce`` is told before a compilation starts: it takes seconds.
    """
    key = repr((FORMAT, sources_digest(kernels), FLAGS, version(), architecture))
    folder = cache / f"cuda-{hashlib.sha256(key.encode()).hexdigest()[:32]}"
    sources = sorted(kernels.glob("*.cu"))
    missing = [source for source in sources if not _is_cached(folder, source.stem)]
    if missing:
        announce("compiling the kernels for this GPU, once")
        headers = {path.name: path.read_text() for path in sorted(kernels.glob("*.cuh"))}

        def build(source: Path) -> None:
            made = compile_source(source.read_text(), source.name, headers, architecture)
            put(folder / f"{source.stem}.log", made.log.encode())
            put(folder / f"{source.stem}.ptx", made.ptx.encode())
            put(folder / f"{source.stem}.cubin", made.cubin)

        try:
            folder.mkdir(parents=True, exist_ok=True)
            with ThreadPoolExecutor(min(len(missing), os.cpu_count() or 1)) as threads:
                for _ in threads.map(build, missing):
                    pass
        except OSError as error:
            raise Trouble(
                f"cannot write '{folder}': {error.strerror}",
                "set XDG_CACHE_HOME to a folder with room",
            ) from None
    found = {}
    for source in sources:
        for name in kernel_names((folder / f"{source.stem}.ptx").read_text()):
            found[name] = folder / f"{source.stem}.cubin"
    return found


def kernel_names(ptx: str) -> list[str]:
    """Gives the names of the kernels in a PTX text, in its order."""
    return re.findall(r"^\.visible \.entry (\w+)", ptx, re.MULTILINE)


def _binding() -> Any:
    """Gives ``cupy.cuda.nvrtc`` once it has found the library itself."""
    try:
        from cupy.cuda import nvrtc

        nvrtc.getVersion()
    except ImportError:
        raise Inconclusive("no CuPy to drive a GPU with", INSTALL, "use -d cpu") from None
    except (RuntimeError, OSError, AssertionError):  # how CuPy says that a library is not here
        raise Inconclusive("no NVRTC to compile the kernels with", INSTALL, "use -d cpu") from None
    return nvrtc


def _log(binding: Any, program: int) -> str:
    text: str = binding.getProgramLog(program)
    return text.strip("\0 \n")


def _whole(cubin: bytes) -> bytes:
    """Gives back the last byte of a cubin, which CuPy takes for the end of a string and drops.

    An ELF file says how long it is: its section and program headers are tables of so many entries.
    The byte is the highest of a size or an alignment, so it is zero. Loaded from memory nobody
    misses it, because Python ends bytes with a zero; a file is cut short.
    """

    def number(at: int, size: int) -> int:
        return int.from_bytes(cubin[at : at + size], "little")

    if not cubin.startswith(b"\x7fELF\x02\x01"):  # 64 bits, little-endian
        raise Trouble("NVRTC made no cubin", f"{INSTALL} --upgrade")
    programs = number(0x20, 8) + number(0x36, 2) * number(0x38, 2)
    sections = number(0x28, 8) + number(0x3A, 2) * number(0x3C, 2)
    short = max(programs, sections) - len(cubin)
    if short > 1:
        raise Trouble(f"NVRTC made a cubin that lacks {short} bytes", f"{INSTALL} --upgrade")
    return cubin + b"\0" * short


def _is_cached(folder: Path, stem: str) -> bool:
    return all((folder / f"{stem}.{kind}").is_file() for kind in ("cubin", "ptx", "log"))
