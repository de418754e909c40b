"""Variants: other schedules of a launch, with the bits of the one that they stand for.

Which is taken is found by trying (``llmtrace/blocks/choices.py``), and is in no record.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from llmtrace.device.device import Array, Device, Launch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Ways = dict[str, list[Launch]]
"""Lists of launches that make the same, by the name of the variant; the plainest first."""

STRIP, PANEL = 12, 32
"""Most tokens of a strip and outputs of a panel of any core (``kernels/linear_host.cuh``)."""
SIZE_AT = {"linear": 5, "linear8": 8, "linear4": 10}
"""Where the arguments of a linear kernel have N and K."""
SPLIT_ROWS, SPLIT_BYTES = 16, 64 << 20
"""Most rows of a step whose attention goes by tiles, and bytes that it takes for them."""
PART = 8
"""Words of a part of attention before its mix (``kernels/attention_cuda.cuh``)."""
TRIED = {"cpu": 1 << 28, "cuda": 1 << 34}
"""Products that a trial takes at most, by the kind of device."""


def room(rows: int, widest: int, threads: int) -> dict[str, tuple[tuple[int, ...], str]]:
    """Says what the variants of steps of so many rows need: shapes and dtypes by name.

    ``widest``: floats of the longest row that a linear layer reads; ``threads`` as of ``Device``.
    """
    if not threads:
        return {}
    return {
        "lane_major": ((rows + STRIP, widest), "<f4"),
        "wide": ((threads * PANEL, widest), "<f4"),
    }


def parts(
    heads: int, chunks: int, tiles: int, threads: int
) -> dict[str, tuple[tuple[int, ...], str]]:
    """Says what the variant of attention by tiles needs, where there is one: as ``room``.

    ``tiles`` that a sequence may have; ``chunks`` of 32 floats of a head.
    """
    shape = (SPLIT_ROWS, heads, tiles, PART + 32 * chunks)
    if threads or tiles < 2 or 4 * math.prod(shape) > SPLIT_BYTES:
        return {}
    return {"parts": (shape, "<f4")}


def variants(
    launches: Sequence[Launch], rows: int, room: Mapping[str, Array], device: Device
) -> Ways:
    """Gives the ways to make what ``launches`` make, in a step of so many rows.

    ``launches`` compute one block, or read points.
    """
    plain, last = [*launches], launches[-1]
    kind, is_gpu = last.kernel.partition("_")[0], not device.threads
    if [launch.kernel for launch in plain] == ["blake3", "probe"] and not is_gpu:
        return {"apart": plain, "together": [_together(*plain)]}
    if "attention" in last.kernel:
        if not is_gpu:
            return {"shared": plain, "alone": [replace(last, kernel="alone_" + last.kernel)]}
        few = "parts" in room and rows <= SPLIT_ROWS
        return {"whole": plain} | ({"split": _split(last, rows, room["parts"])} if few else {})
    if kind not in {"linear", "linear8", "linear4", "panel"}:
        return {"only": plain}
    if rows == 1:
        return {"rows": plain}
    if kind == "panel":
        names = {"rows": "", "near": "near_"} | ({"matrix": "matrix_"} if device.matrix else {})
        return {
            name: [*plain[:-1], replace(last, kernel=begin + last.kernel)]
            for name, begin in names.items()
        }
    if kind == "linear":
        other = (
            [replace(last, kernel="tile_" + last.kernel)] if is_gpu else _tiles(last, rows, room)
        )
        return {"rows": plain, "tiles": other}
    return {"rows": plain, "tensor": [*plain[:-1], replace(last, kernel="tensor_" + last.kernel)]}


def trial(launches: Sequence[Launch], rows: int, device: Device) -> list[Launch]:
    """Gives launches with no more outputs of a linear layer than it takes to compare their ways."""
    *before, last = launches
    kind = last.kernel.removeprefix("panel_").partition("_")[0]
    if kind not in SIZE_AT:
        return [*launches]
    at = SIZE_AT[kind]
    n, k = last.args[at : at + 2]
    most = TRIED["cpu" if device.threads else "cuda"] // (rows * k)
    few = min(n, max(most // PANEL, 4 * device.threads, 1) * PANEL)
    return [*before, replace(last, args=(*last.args[:at], few, *last.args[at + 1 :]), items=few)]


def _split(launch: Launch, rows: int, parts: Array) -> list[Launch]:
    """Attention by tiles of the cache: what each comes to, then all of a head in order."""
    kernel, most = launch.kernel, int(parts.shape[2])
    is_probed = kernel.startswith("probed_")
    z, *args = launch.args
    heads = [args.pop(0)] if is_probed else []
    q, *cache, position, tile0, count, n_heads, groups, size, ldz = args[: -2 - is_probed]
    ldh, (ldq, scale) = args[-3:-2] if is_probed else [], args[-2:]
    first = (parts, q, *cache, position, tile0, count, n_heads, groups, size, ldq, scale, most)
    then = (z, *heads, parts, position, count, n_heads, size, ldz, *ldh, most)
    return [
        Launch("split_" + kernel, first, rows * n_heads * most),
        Launch("join_" + kernel.replace("8_", "_"), then, launch.items),
    ]


def _tiles(launch: Launch, rows: int, room: Mapping[str, Array]) -> list[Launch]:
    """A linear layer by outer products."""
    y, w, x, bias, count, n, k, ldy, ldw, ldx = launch.args
    at, wide = room["lane_major"], room["wide"]
    tiled = (y, w, x, at, wide, bias, count, n, k, ldy, ldw, ldx)
    return [
        Launch("lane_major", (at, x, count, k, ldx), rows),
        Launch("tiled_" + launch.kernel, tiled, launch.items),
    ]


def _together(digest: Launch, probe: Launch) -> Launch:
    """Digests and probes in one launch: a core reads a row once for both."""
    digests, flaws, table, which, count, width = digest.args
    records, _, seed, position, row, *_ = probe.args
    args = (digests, flaws, records, table, seed, position, row, which, count, width)
    return Launch("blake3_probe", args, digest.items)
