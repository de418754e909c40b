"""The device half of every kernel, its warps emulated, gives the bits of the host half.

No GPU takes part: see warps.h for what that leaves open, and test_cuda.py for the rest.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import kernel_cases
import warp_emulator
from llmtrace.blocks.variants import PART, variants
from llmtrace.device.compile import kernels_folder
from llmtrace.device.cpu import CpuDevice
from llmtrace.device.cuda import CudaDevice
from llmtrace.device.device import Launch
from llmtrace.errors import Inconclusive

CACHE = Path(os.environ["XDG_CACHE_HOME"]) / "llmtrace" / "kernels"
CASES = [case for family in kernel_cases.FAMILIES for case in kernel_cases.cases(family, 3000)]
FORWARD, BACKWARD, SHUFFLED = 0, 1, 7
orders = pytest.mark.parametrize("order", [FORWARD, BACKWARD, SHUFFLED])


@pytest.fixture(scope="module")
def cpu() -> CpuDevice:
    try:
        return CpuDevice(kernels_folder(), CACHE, threads=2)
    except Inconclusive as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="module")
def library(cpu: CpuDevice) -> warp_emulator.Library:
    assert cpu
    return warp_emulator.Library(sorted(kernels_folder().glob("*.cu")), CACHE)


@pytest.fixture
def gpu(library: warp_emulator.Library, monkeypatch: pytest.MonkeyPatch) -> CudaDevice:
    return warp_emulator.cuda_device(library, monkeypatch)


@orders
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_warps_give_the_bits_of_the_cpu(
    case: kernel_cases.Case,
    order: int,
    cpu: CpuDevice,
    gpu: CudaDevice,
    library: warp_emulator.Library,
) -> None:
    library.order = order
    assert not kernel_cases.differences(case.run(gpu), case.run(cpu))


SIZES = [(1, 5, 40), (3, 37, 96), (16, 8, 333), (17, 65, 130), (33, 16, 64), (40, 130, 1090)]


@orders
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kind", ["bf16", "f16", "f32", "8", "4"])
def test_tiles_give_the_bits_of_rows(
    kind: str,
    size: tuple[int, int, int],
    order: int,
    cpu: CpuDevice,
    gpu: CudaDevice,
    library: warp_emulator.Library,
) -> None:
    """What only a GPU has: a warp's tiles, and tensor cores; of every rest of rows and tokens."""
    library.order = order
    for seed in range(2):
        rng = np.random.default_rng(seed)
        if kind in {"8", "4"}:
            case, name = kernel_cases.integers(rng, int(kind), size, has_bias=seed > 0), "tensor_"
        else:
            top, name = 127 if seed else 20, "tile_"
            case = kernel_cases.linear(rng, kind, size, top, has_bias=seed > 0)
        ((kernel, args, items),) = case.launches
        expected = case.run(cpu)
        tiled = [(name + kernel, args, items)]
        made = kernel_cases.Case(case.name, case.arrays, case.outputs, tiled)
        assert not kernel_cases.differences(made.run(gpu), expected)


@pytest.mark.parametrize("bits", [8, 4])
def test_large_tiles_give_the_bits_of_rows(bits: int, cpu: CpuDevice, gpu: CudaDevice) -> None:
    """As many tiles as the large ones need to be taken."""
    size = (70, 16 * 1024, 20) if bits == 4 else (40, 64 * 600, 20)
    case = kernel_cases.integers(np.random.default_rng(bits), bits, size, has_bias=True)
    ((kernel, args, items),) = case.launches
    tiled = [("tensor_" + kernel, args, items)]
    made = kernel_cases.Case(case.name, case.arrays, case.outputs, tiled)
    assert not kernel_cases.differences(made.run(gpu), case.run(cpu))


ATTENTION = [case for case in CASES if "attention" in case.name and "wide" not in case.name]
MOST = 5  # tiles that a sequence may have: one more than the longest here


def split(case: kernel_cases.Case, gpu: CudaDevice) -> kernel_cases.Case:
    """The same with attention by tiles, whose parts are noise before."""
    rows = len(case.arrays["position"])
    made, arrays = [], dict(case.arrays)
    for kernel, args, items in case.launches:
        launches = [Launch(kernel, args, items)]
        if "attention" in kernel:
            words = PART + 32 * int(kernel.rpartition("_")[2])
            arrays["parts"] = kernel_cases.pattern(rows, items // rows, MOST, words)
            launches = variants(launches, rows, {"parts": arrays["parts"]}, gpu)["split"]
        for launch in launches:
            given = tuple("parts" if a is arrays.get("parts") else a for a in launch.args)
            made.append((launch.kernel, given, launch.items))
    return kernel_cases.Case(case.name, arrays, case.outputs, made)


@orders
@pytest.mark.parametrize("case", ATTENTION, ids=lambda case: case.name)
def test_tiles_of_the_cache_give_the_bits_of_the_whole(
    case: kernel_cases.Case,
    order: int,
    cpu: CpuDevice,
    gpu: CudaDevice,
    library: warp_emulator.Library,
) -> None:
    library.order = order
    by_tiles = split(case, gpu)
    assert {kernel.partition("_")[0] for kernel in by_tiles.kernels} >= {"split", "join"}
    assert not kernel_cases.differences(by_tiles.run(gpu), case.run(cpu))


def test_every_kernel_has_a_case(gpu: CudaDevice, library: warp_emulator.Library) -> None:
    tiled = {f"tile_linear_{kind}" for kind in ("bf16", "f16", "f32")}
    tiled |= set().union(*(split(case, gpu).kernels for case in ATTENTION))
    tiled |= {"tensor_linear8", "tensor_linear4"}
    assert set().union(*(case.kernels for case in CASES)) | tiled == set(library.names)


PARTED = "KERNEL(parted, u64* y) { if (LANE < 16) y[LANE] = all_sum((u64)1); }"
RACING = """KERNEL(racing, u64* y) {
    SCRATCH(u64, box, 32);
    box[LANE] = LANE;
    y[LANE] = box[31 - LANE];
}"""


def test_emulator_sees_a_warp_that_parts_and_a_race(
    cpu: CpuDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the kernels are cleared of would have been seen."""
    source = tmp_path / "wrong.cu"
    source.write_text(f'#include "lanes.cuh"\n{PARTED}\n{RACING}\n')
    library = warp_emulator.Library([source], tmp_path)
    gpu = warp_emulator.cuda_device(library, monkeypatch)
    y = gpu.zeros((32,), "u8")
    with pytest.raises(AssertionError, match="'parted': some threads of a warp wait"):
        gpu.capture([Launch("parted", (y,), 1)]).run(0)
    seen = set()
    for library.order in (FORWARD, BACKWARD):
        gpu.capture([Launch("racing", (y,), 1)]).run(0)
        seen.add(gpu.download(y).tobytes())
    assert len(seen) == 2


def test_device_moves_arrays_and_refuses_other_arguments(gpu: CudaDevice) -> None:
    host = np.arange(12, dtype=np.float32).reshape(4, 3)
    array = gpu.upload(host[:, ::-1])
    gpu.write(array, np.full((2, 3), 7, np.float32))
    gpu.write(array, np.zeros((0, 3), np.float32))
    copied = gpu.zeros((2, 3), "f4")
    gpu.copy(copied, array[1:3])
    assert gpu.download(copied).tolist() == [[7, 7, 7], [8, 7, 6]]
    assert gpu.memory == 1 << 31
    assert gpu.download(array).tolist() == [[7, 7, 7], [7, 7, 7], [8, 7, 6], [11, 10, 9]]
    assert not gpu.download(gpu.zeros((2, 2), "u4")).any()
    for wrong in (1.0, np.int64(1), "y"):
        with pytest.raises(AttributeError):
            gpu.capture([Launch("add", (array, wrong), 1)])


def test_one_capture_serves_every_size(gpu: CudaDevice) -> None:
    """Sizes are read when the step runs, and its arrays live as long as it does."""
    x = gpu.upload(np.ones((3, 32), np.float32))
    y, rows = gpu.zeros((3, 32), "f4"), gpu.zeros((1,), "i4")
    step = gpu.capture([Launch("add", (y, x, x, rows, 32, 32), 3)])
    del x
    for count in (1, 3):
        gpu.write(rows, np.array([count], np.int32))
        step.run(0)
        assert gpu.download(y).sum() == 64 * count
