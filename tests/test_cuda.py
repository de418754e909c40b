"""Every kernel on a GPU gives the bits of the CPU; and what is said where there is none.

Whatever is marked gpu has been skipped on each machine without one: test_ptx.py and test_warps.py
are what stood in for it there.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

import kernel_cases
from llmtrace.device import cuda
from llmtrace.device.compile import kernels_folder
from llmtrace.device.cpu import CpuDevice
from llmtrace.device.cuda import CudaDevice
from llmtrace.device.device import Launch
from llmtrace.errors import Inconclusive

CACHE = Path(os.environ["XDG_CACHE_HOME"]) / "llmtrace" / "kernels"
VALUES = 1 << 20
FUNCTIONS = {"exp": 1, "log": 1, "sin_cos": 2, "tanh": 1, "erf": 1}


@pytest.fixture(scope="module")
def cpu() -> CpuDevice:
    return CpuDevice(kernels_folder(), CACHE)


@pytest.fixture(scope="module")
def gpu() -> CudaDevice:
    return CudaDevice(kernels_folder(), CACHE)


@pytest.mark.gpu
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("family", kernel_cases.FAMILIES)
def test_kernels_give_the_bits_of_the_cpu(
    family: str, seed: int, cpu: CpuDevice, gpu: CudaDevice
) -> None:
    for case in kernel_cases.cases(family, VALUES, seed):
        assert not kernel_cases.differences(case.run(gpu), case.run(cpu)), case.name


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("function", FUNCTIONS)
def test_function_gives_the_bits_of_the_cpu_for_every_float(
    function: str, cpu: CpuDevice, gpu: CudaDevice
) -> None:
    n, outputs = 1 << 26, FUNCTIONS[function]
    steps = []
    for device in (cpu, gpu):
        x, y = device.zeros((n,), "f4"), [device.zeros((n,), "f4") for _ in range(outputs)]
        launch = Launch(f"math_{function}", (*y, x, n), n // 1024)
        steps.append((device, x, y, device.capture([launch])))
    for first in range(0, 1 << 32, n):
        floats = np.arange(first, first + n, dtype=np.uint32).view(np.float32)
        found = []
        for device, x, y, step in steps:
            device.write(x, floats)
            step.run(1 << 40)
            found.append([device.download(one).view(np.uint32) for one in y])
        for a, b in zip(*found, strict=True):
            assert np.array_equal(a, b), f"among the bits {first:#x} to {first + n - 1:#x}"


@pytest.mark.gpu
def test_a_captured_step_runs_again_and_again(gpu: CudaDevice) -> None:
    x = gpu.upload(np.ones((8, 64), np.float32))
    y, rows = gpu.zeros((8, 64), "f4"), gpu.zeros((1,), "i4")
    step = gpu.capture([Launch("add", (y, y, x, rows, 64, 64), 8)])
    del x
    for count in range(1, 9):
        gpu.write(rows, np.array([count], np.int32))
        step.run(0)
    assert gpu.download(y)[:, 0].tolist() == [8, 7, 6, 5, 4, 3, 2, 1]


@pytest.mark.gpu
def test_device_describes_itself(gpu: CudaDevice) -> None:
    assert cuda.is_available()
    about = gpu.describe()
    assert about["device"] == gpu.name == "cuda:0"
    assert all(about.values())
    assert about["gpu"] != "UNAVAILABLE"


@pytest.mark.parametrize("index", [0, 7])
def test_no_gpu_is_inconclusive(index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_driver", lambda: (0, []))
    assert not cuda.is_available()
    with pytest.raises(Inconclusive, match=f"no GPU 'cuda:{index}'") as caught:
        CudaDevice(kernels_folder(), CACHE, index)
    assert caught.value.hints == ("use -d cpu",)


def test_index_beyond_the_last_gpu_is_inconclusive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_driver", lambda: (13010, ["sm_90", "sm_90"]))
    with pytest.raises(Inconclusive, match="no GPU 'cuda:2': there are 2"):
        CudaDevice(kernels_folder(), CACHE, 2)


@pytest.mark.parametrize(
    ("driver", "reason"),
    [
        ((12080, ["sm_90"]), r"the NVIDIA driver knows CUDA 12\.8, CuPy needs 13\.0"),
        ((13010, ["sm_61"]), "NVRTC does not compile for GPU 'cuda:0', an 'sm_61'"),
    ],
)
def test_gpu_too_old_is_inconclusive(
    driver: tuple[int, list[str]], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("cupy", reason="no CuPy to say what it needs")
    monkeypatch.setattr(cuda, "_driver", lambda: driver)
    assert not cuda.is_available()
    with pytest.raises(Inconclusive, match=reason):
        CudaDevice(kernels_folder(), CACHE)


def test_missing_cupy_is_inconclusive(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver without CuPy: `auto` takes the CPU, and `cuda` says what to install."""
    monkeypatch.setattr(cuda, "_driver", lambda: (13010, ["sm_90"]))
    monkeypatch.setitem(sys.modules, "cupy.cuda", None)
    assert not cuda.is_available()
    with pytest.raises(Inconclusive, match="no CuPy") as caught:
        CudaDevice(kernels_folder(), CACHE)
    assert caught.value.hints[0] == "pip install 'llmtrace[cuda]'"
