"""Linear layers in integers: their weights on a device, and the launches that multiply by them.

A device whose quantised weights stand interleaved (``Device.panel``) has kernels of its own for
them (``kernels/panel_host.cuh``), with the bits of those for rows.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from llmtrace.device.device import Launch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy as np

    from llmtrace.device.device import Array, Device

GROUP = 64
"""Inputs that share a scale (``kernels/quantize.cu``)."""
STRIPE = 16 << 20
"""Bytes of stored weights that are quantised at a time."""


def groups(width: int) -> int:
    """Gives the number of groups that hold so many inputs."""
    return -(-width // GROUP)


def shapes(rows: int, width: int, bits: int) -> tuple[tuple[tuple[int, ...], str], ...]:
    """Shapes and dtypes of quantised weights, in the order of the kernels' parameters."""
    g = groups(width)
    if bits == 8:
        return ((rows, GROUP * g), "|i1"), ((rows, g), "<u2")
    return (
        ((rows, GROUP // 2 * g), "|u1"),
        ((rows, 2 * g), "|u1"),
        ((rows, 2 * g), "|u1"),
        ((rows, 2), "<f4"),
    )


def nbytes(rows: int, width: int, bits: int) -> int:
    """Bytes of quantised weights, without what an interleaved layout is filled up with."""
    return sum(math.prod(shape) * int(dtype[-1]) for shape, dtype in shapes(rows, width, bits))


def held(
    device: Device, shape: tuple[int, int], bits: int
) -> tuple[tuple[tuple[int, ...], str], ...]:
    """Shapes and dtypes of a quantised matrix (N, K) on a device, in whole panels."""
    count, width = shape
    return shapes(-(-count // device.panel) * device.panel, width, bits)


def room(rows: int, widest: int) -> dict[str, tuple[tuple[int, ...], str]]:
    """Says what quantised rows of activations need: shapes and dtypes by name."""
    g = groups(widest)
    return {
        "levels": ((rows, GROUP * g), "<i2"),  # a core may hold them in 16 bits
        "steps": ((rows, g), "<f4"),
        "sums": ((rows, 2 * g), "<i2"),
    }


def quantize(
    device: Device, stripes: Iterator[np.ndarray], kind: str, shape: tuple[int, int], bits: int
) -> tuple[Array, ...]:
    """Quantises a matrix (N, K) on a device.

    ``stripes`` gives its rows in order, padded to a multiple of 32, of a type named ``kind``;
    all but the last have a multiple of ``Device.panel`` rows.
    """
    width, g = shape[1], groups(shape[1])
    placed = tuple(device.zeros(*each, stays=True) for each in held(device, shape, bits))
    begin = 0
    for stripe in stripes:
        rows, stored = len(stripe), device.upload(stripe)
        parts = tuple(array[begin:] for array in placed)
        made = parts
        if device.panel > 1:
            made = tuple(device.zeros(*each) for each in shapes(rows, width, bits))
        w = (stored, rows, width, int(stripe.shape[1]))
        if bits == 8:
            launches = [Launch(f"quantize8_{kind}", (*made, *w), rows * g)]
        else:
            found = device.zeros((rows, 4 * g), "<f4")
            launches = [
                Launch(f"fit4_{kind}", (found, *w), 2 * rows * g),
                Launch(f"quantize4_{kind}", (*made, found, *w), rows),
            ]
        if device.panel > 1:
            launches += interleave(device, parts, made, shapes(rows, width, bits), rows)
        device.capture(launches).run(stripe.nbytes << 8)
        begin += rows
    return placed


def interleave(
    device: Device,
    to: Sequence[Array],
    made: Sequence[Array],
    shapes: Sequence[tuple[tuple[int, ...], str]],
    rows: int,
) -> list[Launch]:
    """Gives the launches that bring the arrays of quantised weights into the device's layout."""
    units = (device.unit8, 2) if len(shapes) == 2 else (4, 2, 2, 4)
    launches = []
    for n, ((_, width), dtype) in enumerate(shapes):
        count = width * int(dtype[-1]) // units[n]
        args = (to[n], made[n], rows, count, units[n], int(dtype == "|i1"))
        launches.append(Launch("interleave", args, rows))
    return launches


def linear(
    args: Sequence[Any], weights: tuple[Array, ...], room: Mapping[str, Array], device: Device
) -> list[Launch]:
    """Gives the launches of a linear block.

    ``args``: y, x, bias, the number of rows, N, K, and the row strides of y and x.
    """
    y, x, bias, count, n, k, ldy, ldx = args
    bits, interleaved = (8 if len(weights) == 2 else 4), device.panel > 1
    rows = (room["levels"], room["steps"], room["sums"])
    name = "factors" if interleaved and bits == 8 else "quantize"
    kernel = f"panel_linear{bits}" if interleaved else f"linear{bits}"
    items = int(room["steps"].shape[0])
    return [
        Launch(name, (*rows, x, count, k, ldx), items * groups(k)),
        Launch(kernel, (y, *weights, *rows, bias, count, n, k, ldy), n),
    ]
