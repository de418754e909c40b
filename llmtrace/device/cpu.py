"""The CPU: the kernels through the host compiler, run by one call a step on a pool of threads."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import platform
from mmap import MADV_HUGEPAGE, MAP_ANONYMOUS, MAP_PRIVATE, mmap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmtrace.device.compile import FLAGS, compiler, host_library
from llmtrace.device.device import Array, Device, Launch, Step
from llmtrace.errors import Trouble

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np


ALONE = 24 << 20
"""Work, in bytes times rows, below which one thread does not wait for others."""
PAGE = 2 << 20
"""Bytes of a large page: what is read from end to end at every step shall need few of them."""
POOL, SMALL = 16 << 20, 4 << 20
"""Bytes that arrays of no more than ``SMALL`` share, so that they fill such pages."""


class _Launch(ctypes.Structure):
    _fields_ = (("kernel", ctypes.c_void_p), ("words", ctypes.c_void_p))


class CpuDevice(Device):
    """Owns the loaded library and the pool of threads; a forked child cannot use it."""

    name = "cpu"

    def __init__(
        self,
        kernels: Path,
        cache: Path,
        *,
        threads: int = 0,
        cxx: str = "",
        cpu: str = "native",
        flags: Sequence[str] = FLAGS,
        announce: Callable[[str], None] = lambda _: None,
    ) -> None:
        import numpy as np

        path = host_library(kernels, cache, cxx=cxx, cpu=cpu, flags=flags, announce=announce)
        try:
            self.library = ctypes.CDLL(str(path))
        except OSError as error:
            raise Trouble(
                f"cannot load '{path}': {error}", "delete it, or set LLMTRACE_CPU=x86-64-v2"
            ) from None
        self.panel, self.unit8 = self.library.panel_rows(), self.library.panel_unit8()
        self.layout = f"{self.panel}x{self.unit8}-{self.library.panel_kind()}"
        self.matrix = bool(self.library.matrix_ready())
        self.threads = threads or len(os.sched_getaffinity(0))
        self.cache, self.build = cache, f"{path.stem}-{self.threads}"
        self.memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        self.library.pool_open.restype = ctypes.c_void_p
        self._left, self._functions = np.empty(0, np.uint8), dict[str, int]()
        self.pool = ctypes.c_void_p(self.library.pool_open(self.threads))
        if not self.pool:
            raise Trouble(f"no memory for {self.threads} threads", "use fewer: --threads 1")
        self._owner = os.getpid()
        program, *rest = compiler(cxx)
        self._build = " ".join((Path(program).name, *rest, cpu))  # no paths: they become public

    def __del__(self) -> None:
        if getattr(self, "_owner", 0) == os.getpid():  # a forked child has none of the threads
            self.library.pool_close(self.pool)

    def zeros(self, shape: tuple[int, ...], dtype: str, *, stays: bool = False) -> Array:
        if stays:
            return self._room(shape, dtype)  # new pages are zero, and none is had before it is used
        array = _aligned(shape, dtype)
        array.fill(0)
        return array

    def upload(self, host: np.ndarray, *, stays: bool = False) -> Array:
        array = (self._room if stays else _aligned)(host.shape, host.dtype.str)
        array[...] = host
        return array

    def _room(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """Memory in large pages: of its own, or of those that small arrays share."""
        import numpy as np

        size = math.prod(shape) * np.dtype(dtype).itemsize
        if size > SMALL:
            return _aligned(shape, dtype, unit=PAGE)
        whole = -(-size // 64) * 64
        if whole > len(self._left):
            self._left = _aligned((POOL,), "|u1", unit=PAGE)
        array, self._left = self._left[:size], self._left[whole:]
        return array.view(dtype).reshape(shape)

    def write(self, array: Array, host: np.ndarray) -> None:
        array[: len(host)] = host

    def copy(self, array: Array, source: Array) -> None:
        array[...] = source

    def download(self, array: Array) -> np.ndarray:
        copy: np.ndarray = array.copy()
        return copy

    def peek(self, array: Array) -> np.ndarray:
        view: np.ndarray = array.view()
        view.flags.writeable = False
        return view

    def address(self, array: Array) -> int:
        return int(array.ctypes.data)

    def capture(self, launches: Sequence[Launch]) -> Step:
        return _CpuStep(self, launches)

    def function(self, kernel: str) -> int:
        """Gives the address of a kernel."""
        if kernel not in self._functions:
            found = ctypes.cast(getattr(self.library, "launch_" + kernel), ctypes.c_void_p)
            self._functions[kernel] = found.value or 0
        return self._functions[kernel]

    def describe(self) -> dict[str, str]:
        return {"device": "cpu", "machine": platform.machine(), "compiler": self._build}


class _CpuStep(Step):
    def __init__(self, device: CpuDevice, launches: Sequence[Launch]) -> None:
        self._device = device
        self._keep = list(launches)  # the arrays must outlive the step
        unique = {id(launch): launch for launch in launches}  # the same may be run many times
        each = {id(value): value for launch in launches for value in launch.args}
        words = {key: _word(value) for key, value in each.items()}  # most stand in many launches
        self._words = {
            id(launch): (ctypes.c_uint64 * len(launch.args))(*(words[id(v)] for v in launch.args))
            for launch in unique.values()
        }
        packed = {key: self._packed(launch) for key, launch in unique.items()}
        self._list = (_Launch * len(launches))(*(packed[id(launch)] for launch in launches))

    def _packed(self, launch: Launch) -> _Launch:
        words = self._words[id(launch)]
        return _Launch(self._device.function(launch.kernel), ctypes.addressof(words))

    def run(self, work: int) -> None:
        alone = int(work < ALONE)
        self._device.library.pool_run(self._device.pool, self._list, len(self._list), alone)


def _aligned(shape: tuple[int, ...], dtype: str, *, unit: int = 64) -> np.ndarray:
    import numpy as np

    size = math.prod(shape) * np.dtype(dtype).itemsize
    try:
        raw = _pages(size) if unit == PAGE else np.empty(size + unit, np.uint8)
    except (MemoryError, OSError, OverflowError, ValueError):  # the last two: beyond any address
        raise Trouble(f"no room for {size} bytes", "use a smaller model, or fewer tokens") from None
    start = -raw.ctypes.data % unit
    return raw[start : start + size].view(dtype).reshape(shape)


def _pages(size: int) -> np.ndarray:
    """Room for so many bytes in large pages of their own, where the system has such pages."""
    import numpy as np

    held = mmap(-1, -(-size // PAGE) * PAGE + PAGE, flags=MAP_PRIVATE | MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # it has not
        held.madvise(MADV_HUGEPAGE)
    return np.frombuffer(held, np.uint8)


def _word(value: Any) -> int:
    """Packs an argument into the 64-bit word that ``call()`` of lanes_host.cuh unpacks."""
    import numpy as np

    if value is None:
        return 0
    if isinstance(value, np.float32):
        return int(value.view(np.uint32))
    if isinstance(value, int):
        return value & 0xFFFFFFFF
    return int(value.ctypes.data)
