"""Runs made on a GPU have the bits of the CPU, and the other way round."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from checkpoints import make
from llmtrace.device.compile import kernels_folder
from llmtrace.engine.request import Request, Sampling
from running import CACHE, device, load, run

if TYPE_CHECKING:
    from llmtrace.engine.sequence import Trace

pytestmark = pytest.mark.gpu
SHAPES = (
    {},
    {"head_size": 40, "heads": 4, "kv_heads": 2, "hidden": 72, "vocab": 300, "layers": 3},
    {"head_size": 128, "heads": 2, "kv_heads": 1, "dtype": "float16", "tied": True},
    {"hidden": 1056, "ff": 2100, "head_size": 96, "heads": 2, "kv_heads": 2, "dtype": "float32"},
)


def requests(vocab: int) -> list[Request]:
    """25 requests: lengths around the tiles of attention; greedy, drawn; long ones begin alike."""
    rng = np.random.default_rng(vocab)
    start = tuple(rng.integers(0, vocab, 150).tolist())
    made = []
    for i in range(25):
        length = [1, 2, 31, 127, 128, 129, 200][i % 7]
        prompt = tuple(rng.integers(0, vocab, length).tolist())
        prompt = start + prompt[150:] if length > 150 else prompt
        heat = np.float32([0.0, 0.7, 1.5][i % 3])
        sampling = Sampling(heat, [0, 40][i % 2], [1 << 32, 3 << 30][i % 2], i)
        made.append(Request(prompt, 5 + 3 * i, sampling))
    return made


def forced(traces: list[Trace]) -> list[Request]:
    return [
        Request(t.request.prompt, t.request.max_tokens, t.request.sampling, (), t.output)
        for t in traces
    ]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_100_runs_replay_on_the_other_device(
    shape: dict, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from llmtrace.device.cuda import CudaDevice

    folder = make(tmp_path_factory.mktemp("m"), **shape)
    on_cpu, on_gpu = load(folder, device()), load(folder, CudaDevice(kernels_folder(), CACHE, 0))
    asked = requests(on_cpu.architecture.vocab_size)
    for here, there in ((on_gpu, on_cpu), (on_cpu, on_gpu)):
        made = run(here, asked, level="detail")
        again = run(there, forced(made), chunk=100, level="detail")
        for one, other in zip(made, again, strict=True):
            assert one.output == other.output
            assert one.commitment == other.commitment
            assert one.observer.parts() == other.observer.parts()
            assert np.array_equal(one.logprobs, other.logprobs)
