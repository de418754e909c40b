"""What every device offers: memory, launches, and steps that are captured once and run often."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmtrace.errors import Misuse

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import numpy as np

Array = Any
"""An array of the device: numpy's on a CPU, CuPy's on a GPU."""


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel of ``kernels/``, in the order of its parameters.

    An argument is an array (its address is passed), an int (i32), a ``np.float32`` (f32)
    or None (a null address). ``items`` is the most items that the kernel can meet; it sizes
    the grid of a GPU and has no influence on any bit.
    """

    kernel: str
    args: tuple[Any, ...]
    items: int


class Step(ABC):
    """A captured list of launches. Sizes and positions are read from memory at each run."""

    @abstractmethod
    def run(self, work: int) -> None:
        """Runs all launches in order and returns when their results can be read.

        ``work``: bytes of weights times rows fed; how many threads take part may depend on it.
        """


class Device(ABC):
    """One place to compute. Its results are the same bits as every other device's."""

    name: str
    threads = 0
    """Threads of a CPU, which share each launch; 0 for a GPU."""
    memory: int
    """Bytes that it has in all."""
    cache: Path
    """The folder of what was compiled, or found by trying."""
    build: str
    """A name for the compiled kernels and what runs them: speeds are those of a build."""
    preferred: tuple[str, ...] = ()
    """Variants to take where there are any: for tests."""
    panel = 1
    """Rows of quantised weights that stand interleaved; 1 where rows stay as they are."""
    unit8 = 1
    """Bytes of a row of 8-bit weights that stay together there."""
    layout = "1"
    """A name for how these lie: what is kept of one layout serves all devices of it."""
    matrix = False
    """Says whether it has a unit that multiplies panels and tokens at once, and may use it."""

    @abstractmethod
    def zeros(self, shape: tuple[int, ...], dtype: str, *, stays: bool = False) -> Array:
        """Makes an array of zeros, aligned to 64 bytes.

        ``stays``: for as long as a plan or a model, and read at every step. What of it is never
        used may take no memory.
        """

    @abstractmethod
    def upload(self, host: np.ndarray, *, stays: bool = False) -> Array:
        """Copies to the device; ``stays`` as in ``zeros``."""

    @abstractmethod
    def write(self, array: Array, host: np.ndarray) -> None:
        """Copies onto the first elements of a device array of the same dtype and row shape."""

    @abstractmethod
    def copy(self, array: Array, source: Array) -> None:
        """Copies one array of the device onto another; both are contiguous and of one shape."""

    @abstractmethod
    def download(self, array: Array) -> np.ndarray:
        """Copies from the device."""

    def peek(self, array: Array) -> np.ndarray:
        """Gives what ``download`` does, to be read at once: it may change with the next step."""
        return self.download(array)

    @abstractmethod
    def address(self, array: Array) -> int:
        """Gives the address of the first element, for kernels that read tables of addresses."""

    @abstractmethod
    def capture(self, launches: Sequence[Launch]) -> Step:
        """Prepares launches to be run many times."""

    @abstractmethod
    def describe(self) -> dict[str, str]:
        """Gives names and versions of hardware, driver and compiler, for the attested section."""


def parse_name(name: str) -> tuple[str, int]:
    """Gives kind and index of ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; raises Misuse."""
    kind, colon, index = name.partition(":")
    known = kind in {"auto", "cpu", "cuda"}
    if not known or (colon and not (kind == "cuda" and index.isascii() and index.isdigit())):
        raise Misuse(f"no device '{name}'", "use -d auto, cpu, cuda or cuda:N")
    return kind, int(index or 0)


def open_device(
    name: str,
    *,
    kernels: Path,
    cache: Path,
    threads: int = 0,
    cxx: str = "",
    cpu: str = "native",
    announce: Callable[[str], None] = lambda _: None,
) -> Device:
    """Opens ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    ``auto`` takes a GPU where there is a usable one. ``cxx`` is the user's compiler or "",
    ``cpu`` the host build (native, x86-64-v3, x86-64-v2), ``threads`` 0 for all cores;
    ``announce`` is told before a compilation starts.

    Raises Misuse for a name of another form, Trouble or Inconclusive where it cannot be had.
    """
    kind, index = parse_name(name)
    if kind != "cpu":
        from llmtrace.device import cuda

        if kind == "cuda" or cuda.is_available():
            return cuda.CudaDevice(kernels, cache, index, announce)
    from llmtrace.device.cpu import CpuDevice

    return CpuDevice(kernels, cache, threads=threads, cxx=cxx, cpu=cpu, announce=announce)
