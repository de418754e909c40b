"""Variants: other schedules of a launch, with the bits of the one that they stand for.

Which is taken depends on the device and the size of a step, and is in no record.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmtrace.device.device import Array, Launch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

TILED_ROWS = 16
"""Rows of a step up to which a core streams the weights row by row."""
STRIP, PANEL = 12, 32
"""Most tokens of a strip and outputs of a panel of any core (``kernels/linear_host.cuh``)."""


def room(rows: int, widest: int, threads: int) -> dict[str, tuple[tuple[int, ...], str]]:
    """Says what the variants of steps of so many rows need: shapes and dtypes by name.

    ``widest``: floats of the longest row that a linear layer reads; ``threads`` as of ``Device``.
    """
    if not threads or rows <= TILED_ROWS:
        return {}
    return {
        "lane_major": ((rows + STRIP, widest), "<f4"),
        "wide": ((threads * PANEL, widest), "<f4"),
    }


def variant(launch: Launch, rows: int, room: Mapping[str, Array]) -> list[Launch]:
    """Gives the launches that make what ``launch`` makes, in a step of so many rows."""
    if not launch.kernel.startswith("linear_") or not room or rows <= TILED_ROWS:
        return [launch]
    y, w, x, bias, count, n, k, ldy, ldw, ldx = launch.args
    at, wide = room["lane_major"], room["wide"]
    tiled = (y, w, x, at, wide, bias, count, n, k, ldy, ldw, ldx)
    return [
        Launch("lane_major", (at, x, count, k, ldx), rows),
        Launch("tiled_" + launch.kernel, tiled, launch.items),
    ]


def fused(launches: Sequence[Launch], threads: int) -> list[Launch]:
    """Gives the launches with each pair of ``blake3`` and ``probe`` made one, where that helps.

    A core then reads a row once for both; ``threads`` as of ``Device``.
    """
    found: list[Launch] = []
    for launch in launches:
        if threads and launch.kernel == "probe" and found and found[-1].kernel == "blake3":
            digests, flaws, table, which, count, width = found.pop().args
            records, _, seed, position, row, *_ = launch.args
            args = (digests, flaws, records, table, seed, position, row, which, count, width)
            found.append(Launch("blake3_probe", args, launch.items))
        else:
            found.append(launch)
    return found
