"""The device half of the kernels on a CPU: warps.h underneath, a stand-in for CuPy on top.

``cuda_device`` is the real ``CudaDevice`` with the few calls of CuPy that it makes answered here,
so that its packing of arguments, its grids and its steps run as well. What it cannot show is what
a GPU does: its arithmetic (the PTX gate), its memory, its driver.
"""

from __future__ import annotations

import ctypes
import hashlib
import re
import subprocess
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from llmtrace.device import cuda, nvrtc
from llmtrace.device.compile import compiler

HERE = Path(__file__).parent
KERNELS = HERE.parents[1] / "kernels"
FLAGS = ("-O1", "-std=c++17", "-shared", "-fPIC", "-ffp-contract=off", "-fwrapv")
FLAGS += ("-fno-math-errno", "-fno-strict-aliasing")
PROCESSORS = 3  # of the emulated GPU: few, so that warps come back for more items


class Library:
    """Kernels compiled from CUDA sources; ``order`` says which thread of a block goes first."""

    def __init__(self, sources: list[Path], folder: Path) -> None:
        text = '#include "warps.h"\n' + "".join(f'#include "{path}"\n' for path in sources)
        parts = [*KERNELS.glob("*.cuh"), HERE / "warps.h", *sources]
        key = hashlib.sha256(text.encode() + b"".join(path.read_bytes() for path in parts))
        unit = folder / f"warps-{key.hexdigest()[:32]}.cpp"
        library = unit.with_suffix(".so")
        if not library.exists():
            folder.mkdir(parents=True, exist_ok=True)
            unit.write_text(text)
            building = unit.with_suffix(".building")
            include = ("-I", str(KERNELS), "-I", str(HERE))
            command = [*compiler(""), *FLAGS, *include, str(unit), "-o", str(building)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr[:3000]
            building.replace(library)
        self._library = ctypes.CDLL(str(library))
        found = re.findall(rb"\0warps_(\w+)(?=\0)", library.read_bytes())
        self.names = sorted({name.decode() for name in found})
        self.order = 0

    def launch(self, name: str, grid: int, words: list[int]) -> None:
        packed = (ctypes.c_uint64 * len(words))(*words)
        parted = getattr(self._library, f"warps_{name}")(packed, grid, self.order)
        assert not parted, f"'{name}': some threads of a warp wait where the others never come"


class _Array:
    """An array of the stand-in: what ``CudaDevice`` uses of cupy.ndarray, and nothing else."""

    def __init__(self, host: np.ndarray) -> None:
        self.host, self.shape, self.dtype, self.flags = host, host.shape, host.dtype, host.flags
        self.nbytes = host.nbytes
        self.data = SimpleNamespace(ptr=host.ctypes.data, copy_from_device_async=self._take)

    def __getitem__(self, key: Any) -> _Array:
        return _Array(self.host[key])

    def set(self, host: np.ndarray, stream: _Stream) -> None:
        assert stream.is_current
        assert (host.dtype, host.shape) == (self.dtype, self.shape)
        assert self.flags.c_contiguous
        self.host[...] = host

    def _take(self, source: SimpleNamespace, size: int, stream: _Stream) -> None:
        assert stream.is_current
        assert size == self.host.nbytes
        ctypes.memmove(self.data.ptr, source.ptr, size)

    def get(self, stream: _Stream, out: np.ndarray) -> None:
        assert stream.is_current
        assert (out.dtype, out.shape) == (self.dtype, self.shape)
        out[...] = self.host


class _Stream:
    """Keeps what is launched during a capture; a graph is that list."""

    is_current = False
    captured: list[Any] | None = None

    def __init__(self, *, non_blocking: bool) -> None:
        assert non_blocking

    def __enter__(self) -> None:
        self.is_current = True

    def __exit__(self, *_: object) -> None:
        self.is_current = False

    def begin_capture(self) -> None:
        self.captured = []

    def end_capture(self) -> Any:
        launches, self.captured = self.captured, None
        assert launches is not None

        def launch(stream: _Stream) -> None:
            assert stream is self
            for one in launches:
                one()

        return SimpleNamespace(launch=launch)

    def synchronize(self) -> None:
        assert self.is_current


def _cupy(library: Library) -> Any:
    streams: list[_Stream] = []

    def stream(**options: bool) -> _Stream:
        streams.append(_Stream(**options))
        return streams[-1]

    def function(name: str) -> Any:
        def launch(grid: tuple[int], block: tuple[int], arguments: tuple[Any, ...]) -> None:
            assert block == (128,)
            assert all(type(value) in {np.uint32, np.uint64, np.float32} for value in arguments)
            words = [int.from_bytes(value.tobytes(), "little") for value in arguments]
            assert streams[-1].captured is not None
            streams[-1].captured.append(lambda: library.launch(name, grid[0], words))

        return launch

    def gpu(_: int) -> Any:
        device: Any = nullcontext()
        device.compute_capability = "90"
        return device

    memory = SimpleNamespace(OutOfMemoryError=MemoryError)
    runtime = SimpleNamespace(
        cudaDevAttrMultiProcessorCount=16,
        deviceGetAttribute=lambda *_: PROCESSORS,
        memGetInfo=lambda: (1 << 30, 1 << 31),
        getDeviceProperties=lambda _: {"name": b"Emulated GPU"},
    )
    return SimpleNamespace(
        RawModule=lambda path: SimpleNamespace(get_function=function),
        zeros=lambda shape, dtype: _Array(np.zeros(shape, dtype)),
        empty=lambda shape, dtype: _Array(np.empty(shape, dtype)),
        cuda=SimpleNamespace(Device=gpu, Stream=stream, memory=memory, runtime=runtime),
    )


def cuda_device(library: Library, monkeypatch: pytest.MonkeyPatch) -> cuda.CudaDevice:
    """Opens the real ``CudaDevice`` on the emulated kernels."""
    stand_in = _cupy(library)
    paths = {name: Path("emulated.cubin") for name in library.names}
    monkeypatch.setattr(cuda, "_obstacle", lambda _: None)
    monkeypatch.setattr(cuda, "_cupy", lambda: stand_in)
    monkeypatch.setattr(nvrtc, "cubins", lambda *_: paths)
    return cuda.CudaDevice(KERNELS, Path("nowhere"))
