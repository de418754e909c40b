"""Runs requests on the real kernels, for tests."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from llmtrace.blocks.versions import version
from llmtrace.device.compile import FLAGS, kernels_folder
from llmtrace.device.cpu import CpuDevice
from llmtrace.engine.trace import Done, Model, trace
from llmtrace.introspect.observer import observing
from llmtrace.model.architecture import Architecture
from llmtrace.model.checkpoint import Checkpoint

if TYPE_CHECKING:
    from llmtrace.device.device import Device
    from llmtrace.engine.request import Request
    from llmtrace.engine.sequence import Trace

CACHE = Path(os.environ["XDG_CACHE_HOME"]) / "llmtrace" / "kernels"


def avx_vnni(*build: object) -> Any:
    """Parameters for a build of AVX2 with dot products of bytes, which few machines can run."""
    info = Path("/proc/cpuinfo")
    can = info.exists() and "avx_vnni" in info.read_text().split()
    mark = pytest.mark.skipif(not can, reason="no AVX-VNNI here")
    return pytest.param(*build, marks=mark)


@functools.cache
def device(
    *, threads: int = 2, cxx: str = "", cpu: str = "native", optimise: str = "-O3"
) -> CpuDevice:
    flags = (optimise, *FLAGS[1:])
    return CpuDevice(kernels_folder(), CACHE, threads=threads, cxx=cxx, cpu=cpu, flags=flags)


def load(
    folder: Path, on: Device | None = None, model_id: str = "test", numerics: str = "accuracy"
) -> Model:
    checkpoint = Checkpoint.open(folder)
    architecture = Architecture.of(checkpoint)
    architecture.check(checkpoint)
    return Model.place(checkpoint, architecture, on or device(), model_id, version(numerics))


def run(
    model: Model,
    requests: list[Request],
    *,
    chunk: int = 256,
    level: str = "off",
    **options: Any,
) -> list[Trace]:
    """Runs them all; with a ``level`` of probes each has its observer, as ``llmtrace run`` does."""
    plan = model.plan(requests, chunk=chunk, **options)
    observe = observing(model, level) if level != "off" else None
    done = {
        event.index: event.trace
        for event in trace(model, plan, requests, chunk=chunk, observe=observe)
        if isinstance(event, Done)
    }
    return [done[i] for i in range(len(requests))]
