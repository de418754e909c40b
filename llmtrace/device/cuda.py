"""The GPU: the kernels' cubins, loaded and launched by CuPy, one CUDA graph a step.

Of CuPy only memory, copies, streams, graphs and launches are used: an operation of its own on an
array would be compiled by it, with flags of its own.
"""

from __future__ import annotations

import ctypes
import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmtrace.device import nvrtc
from llmtrace.device.device import Array, Device, Launch, Step
from llmtrace.errors import Inconclusive, Trouble

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np

WARPS = 4  # of a thread block, as lanes_cuda.cuh has it
BLOCKS = 16  # thread blocks for each multiprocessor: 64 warps are the most that one holds


def is_available() -> bool:
    """Says whether GPU 0 can be used; never raises, and asks CuPy only where there is a driver."""
    return _obstacle(0) is None


class CudaDevice(Device):
    """Owns one GPU's stream and loaded kernels; everything happens on that stream, in order."""

    def __init__(
        self,
        kernels: Path,
        cache: Path,
        index: int = 0,
        announce: Callable[[str], None] = lambda _: None,
    ) -> None:
        obstacle = _obstacle(index)
        if obstacle:
            raise obstacle
        self.name = f"cuda:{index}"
        self._index = index
        self._cupy = _cupy()
        self._gpu = self._cupy.cuda.Device(index)
        with self._gpu:
            self._stream = self._cupy.cuda.Stream(non_blocking=True)
            _, self.memory = map(int, self._cupy.cuda.runtime.memGetInfo())
        runtime = self._cupy.cuda.runtime
        count = runtime.deviceGetAttribute(runtime.cudaDevAttrMultiProcessorCount, index)
        self._blocks = BLOCKS * int(count)
        architecture = f"sm_{self._gpu.compute_capability}"
        self._cubins = nvrtc.cubins(kernels, cache, architecture, announce)
        folder = next(iter(self._cubins.values())).parent
        self.cache, self.build = cache, re.sub(r"\W+", "-", f"{folder.name} {self._gpu_name()}")
        self._functions: dict[str, Any] = {}

    def zeros(self, shape: tuple[int, ...], dtype: str, *, stays: bool = False) -> Array:
        """Makes an array of zeros; CuPy's pool aligns it to 512 bytes."""
        with self._current():
            array = self._cupy.zeros(shape, dtype)
            self._stream.synchronize()
            return array

    def upload(self, host: np.ndarray, *, stays: bool = False) -> Array:
        """Copies to the GPU, rows closed up."""
        with self._current():
            array = self._cupy.empty(host.shape, host.dtype)
            self._copy(array, host)
            return array

    def write(self, array: Array, host: np.ndarray) -> None:
        """Copies onto the first elements; ``host`` may be changed as soon as this returns."""
        with self._current():
            self._copy(array[: len(host)], host.astype(array.dtype, copy=False))

    def copy(self, array: Array, source: Array) -> None:
        """Copies on the GPU, in the order of the stream."""
        assert array.flags.c_contiguous
        assert source.flags.c_contiguous
        with self._current():
            array.data.copy_from_device_async(source.data, source.nbytes, self._stream)

    def download(self, array: Array) -> np.ndarray:
        """Copies from the GPU into memory of its own."""
        import numpy as np

        assert array.flags.c_contiguous, "CuPy would compile a kernel to gather it"
        host = np.empty(array.shape, array.dtype)
        with self._current():
            array.get(stream=self._stream, out=host)
            self._stream.synchronize()
        return host

    def address(self, array: Array) -> int:
        """Gives the address on the GPU."""
        return int(array.data.ptr)

    def capture(self, launches: Sequence[Launch]) -> Step:
        """Makes a CUDA graph; the kernels see the sizes in memory only when it runs."""
        with self._current():
            functions = [self._function(launch.kernel) for launch in launches]
            self._stream.begin_capture()
            try:
                for function, launch in zip(functions, launches, strict=True):
                    blocks = min(-(-launch.items // WARPS), self._blocks)
                    words = tuple(_word(value) for value in launch.args)
                    function((max(blocks, 1),), (32 * WARPS,), words)
            finally:
                graph = self._stream.end_capture()
        return _CudaStep(self, graph, launches)

    def replay(self, graph: Any) -> None:
        """Runs a captured graph and waits for its end."""
        with self._current():
            graph.launch(self._stream)
            self._stream.synchronize()

    def describe(self) -> dict[str, str]:
        """Gives the GPU, its driver and what compiled and launched the kernels."""
        runtime = self._cupy.cuda.runtime
        number = str(self._gpu.compute_capability)
        return {
            "device": self.name,
            "gpu": self._gpu_name(),
            "capability": f"{number[:-1]}.{number[-1]}",
            "driver": _driver_release(),
            "driver_cuda": _dotted(runtime.driverGetVersion()),
            "runtime": _dotted(runtime.runtimeGetVersion()),
            "nvrtc": ".".join(map(str, nvrtc.version())),
            "cupy": str(self._cupy.__version__),
        }

    def _gpu_name(self) -> str:
        properties = self._cupy.cuda.runtime.getDeviceProperties(self._index)
        return str(properties["name"].decode())

    @contextmanager
    def _current(self) -> Iterator[None]:
        """Makes GPU and stream the current ones; memory is then owned by the stream as well."""
        try:
            with self._gpu, self._stream:
                yield
        except self._cupy.cuda.memory.OutOfMemoryError as error:
            raise Trouble(
                f"no room on '{self.name}': {error}", "use a smaller model or batch", "use -d cpu"
            ) from None

    def _copy(self, array: Array, host: np.ndarray) -> None:
        import numpy as np

        if host.size:
            array.set(np.ascontiguousarray(host), stream=self._stream)
            self._stream.synchronize()  # the host's memory may be gone or changed afterwards

    def _function(self, name: str) -> Any:
        if name not in self._functions:
            module = self._cupy.RawModule(path=str(self._cubins[name]))
            self._functions[name] = module.get_function(name)  # loads it, so never in a capture
        return self._functions[name]


class _CudaStep(Step):
    def __init__(self, device: CudaDevice, graph: Any, launches: Sequence[Launch]) -> None:
        self._device = device
        self._graph = graph
        self._keep = [launch.args for launch in launches]  # the graph holds bare addresses

    def run(self, work: int) -> None:
        del work  # one stream, whatever the size
        self._device.replay(self._graph)


def _word(value: Any) -> Any:
    """Gives an argument as the NumPy scalar of the parameter's size, which CuPy copies as it is."""
    import numpy as np

    if value is None:
        return np.uint64(0)
    if isinstance(value, np.float32):
        return value
    if isinstance(value, int):
        return np.uint32(value & 0xFFFFFFFF)
    return np.uint64(value.data.ptr)


def _cupy() -> Any:
    import cupy

    return cupy


def _obstacle(index: int) -> Inconclusive | None:
    """Gives the reason why GPU ``index`` cannot be used here, or None."""
    version, found = _driver()
    if index >= len(found):
        there = f"there are {len(found)}" if found else "no NVIDIA driver finds one"
        return Inconclusive(f"no GPU 'cuda:{index}': {there}", "use -d cpu")
    try:
        known = nvrtc.architectures()
    except Inconclusive as missing:
        return missing
    needed = int(_cupy().cuda.runtime.runtimeGetVersion())
    if version // 1000 < needed // 1000:
        return Inconclusive(
            f"the NVIDIA driver knows CUDA {_dotted(version)}, CuPy needs {needed // 1000}.0",
            "update the driver",
            "use -d cpu",
        )
    if found[index] not in known:
        return Inconclusive(
            f"NVRTC does not compile for GPU 'cuda:{index}', an '{found[index]}'",
            f"{nvrtc.INSTALL} --upgrade",
            "use -d cpu",
        )
    return None


def _driver() -> tuple[int, list[str]]:
    """Asks the NVIDIA driver for its CUDA version (13010 is 13.1) and each GPU's architecture."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0, []
    version, count = ctypes.c_int(0), ctypes.c_int(0)
    if cuda.cuInit(0) or cuda.cuDriverGetVersion(ctypes.byref(version)):
        return 0, []
    if cuda.cuDeviceGetCount(ctypes.byref(count)):
        return version.value, []
    found = []
    for index in range(count.value):
        gpu, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        cuda.cuDeviceGet(ctypes.byref(gpu), index)
        cuda.cuDeviceGetAttribute(ctypes.byref(major), 75, gpu)  # COMPUTE_CAPABILITY_MAJOR
        cuda.cuDeviceGetAttribute(ctypes.byref(minor), 76, gpu)  # COMPUTE_CAPABILITY_MINOR
        found.append(f"sm_{major.value}{minor.value}")
    return version.value, found


def _dotted(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"


def _driver_release() -> str:
    try:
        return Path("/sys/module/nvidia/version").read_text().strip()
    except OSError:
        return "unknown"
