"""The digest kernel against the package `blake3`: every length of the tree, and flaws found."""

from __future__ import annotations

import numpy as np
import pytest
from blake3 import blake3

from llmtrace.device.device import Launch
from running import device

WIDTHS = [1, 2, 15, 16, 17, 255, 256, 257, 511, 512, 513, 768, 1000, 1024, 1025, 4097, 16383]
WIDTHS += [64 * 256 - 1, 64 * 256, 64 * 256 + 1, 128256, (1 << 20) - 7]


def digests(
    rows: list[np.ndarray], *, threads: int = 2, cpu: str = "native"
) -> tuple[np.ndarray, np.ndarray]:
    """Runs the kernel on one table of points, each (T, width) f32 of one T."""
    on, count = device(threads=threads, cpu=cpu), len(rows[0])
    placed = [on.upload(array) for array in rows]
    table = [
        (on.address(array), array.shape[1], array.shape[1], p) for p, array in enumerate(placed)
    ]
    digest = on.zeros((count, len(rows), 8), "<u4")
    flaw = on.zeros((count, len(rows)), "|u1")
    points, fed = on.upload(np.array(table, np.uint64)), on.upload(np.array([count], "<i4"))
    args = (digest, flaw, points, fed, len(rows), len(rows))
    on.capture([Launch("blake3", args, count * len(rows))]).run(1 << 40)
    return digest, flaw


@pytest.mark.parametrize("cpu", ["native", "x86-64-v3", "x86-64-v2"])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_every_length_of_the_tree(cpu: str, threads: int) -> None:
    rng = np.random.default_rng(threads)
    rows = [rng.standard_normal((2, width)).astype("<f4") for width in WIDTHS]
    found, flaw = digests(rows, threads=threads, cpu=cpu)
    for t in range(2):
        for p, array in enumerate(rows):
            assert found[t, p].tobytes() == blake3(array[t].tobytes()).digest(), WIDTHS[p]
    assert not flaw.any()


@pytest.mark.parametrize("width", [1, 16, 100, 256, 300, 5000])
def test_a_flaw_anywhere_is_found(width: int) -> None:
    rng = np.random.default_rng(width)
    places = sorted({0, width - 1, *rng.integers(0, width, 10).tolist()})
    array = rng.standard_normal((len(places) + 1, width)).astype("<f4")
    array[:, ::3] *= np.float32(1e37)  # large is no flaw
    for row, at in enumerate(places):
        array[row, at] = [np.nan, np.inf, -np.inf][row % 3]
    found, flaw = digests([array])
    assert flaw[:, 0].tolist() == [1] * len(places) + [0]
    assert found[0, 0].tobytes() == blake3(array[0].tobytes()).digest()
