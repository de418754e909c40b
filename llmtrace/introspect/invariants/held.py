"""Invariants of what is held: the weights on the device, the model's identity, the digests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmtrace.blocks.block import Matrix, Vector
from llmtrace.introspect.invariants.case import BITS, Case, Invariant, Place, Tally
from llmtrace.model.identity import identify
from llmtrace.probes.commitment import STORED

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

ROWS = 1 << 24
"""Bytes of a matrix that are compared at a time."""


def weights(case: Case) -> Invariant:
    """Every matrix and vector on the device holds the checkpoint's bits, padded with zeros."""
    tally = case.tally("weights on the device", BITS)
    seen: set[Matrix | Vector] = set()
    for block in case.blocks:
        for arg in block.args:
            if isinstance(arg, Matrix | Vector) and arg not in seen:
                bits = case.model.version.bits(block) if block.kernel == "linear_" else 0
                if bits and isinstance(arg, Matrix):
                    _quantized(case, tally, block.name, arg, bits)
                    continue
                seen.add(arg)
                _placed(case, tally, block.name, arg)
    return tally.result()


def _quantized(case: Case, tally: Tally, block: str, matrix: Matrix, bits: int) -> None:
    """Compares with what is made again of the checkpoint; ``linear layers`` checks the making."""
    held, download = case.model.weights, case.model.device.download
    pairs = zip(held.quantized(matrix, bits), held.made_again(matrix, bits), strict=True)
    for number, (array, again) in enumerate(pairs):
        found, wanted = download(array), download(again)
        why = f"array {number} of {matrix.tensors[0]} is not what the checkpoint gives"
        tally.same(Place(None, block), found.tobytes() == wanted.tobytes(), why)


def _placed(case: Case, tally: Tally, block: str, what: Matrix | Vector) -> None:
    import numpy as np

    held, download = case.model.weights, case.model.device.download
    array = held.matrix(what) if isinstance(what, Matrix) else held.vector(what)
    begin = 0
    for name, part in _stored(case, what, array.dtype.str):
        if isinstance(what, Vector):
            found = download(array[begin : begin + part.shape[1]]).reshape(1, -1)
            _compare(tally, block, name, found, part, 0)
            begin += part.shape[1]
            continue
        step = max(1, ROWS // (array.shape[1] * array.dtype.itemsize))
        for at in range(0, len(part), step):
            rows = part[at : at + step]
            found = download(array[begin + at : begin + at + len(rows)])
            _compare(tally, block, name, found, rows, at)
        begin += len(part)
    if isinstance(what, Vector):
        rest = download(array[begin:]).reshape(1, -1)
        _compare(tally, block, "padding", rest, np.zeros_like(rest), 0)


def _stored(case: Case, what: Matrix | Vector, kind: str) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of the checkpoint as they should lie on the device: (rows, width)."""
    for name in what.tensors:
        tensor = case.model.checkpoint.tensors[name]
        as_stored = tensor.array().dtype.str == kind and isinstance(what, Matrix)
        yield name, tensor.array() if as_stored else case.weight(name).reshape(-1, tensor.shape[-1])


def _compare(
    tally: Tally, block: str, name: str, found: np.ndarray, wanted: np.ndarray, row: int
) -> None:
    import numpy as np

    kind = f"<u{found.dtype.itemsize}"
    whole = np.zeros((len(wanted), found.shape[1]), kind)
    whole[:, : wanted.shape[1]] = np.ascontiguousarray(wanted).view(kind)
    differ = np.argwhere(found.view(kind) != whole)
    why = ""
    if len(differ):
        at, column = (int(i) for i in differ[0])
        why = (
            f"{name}[{row + at}, {column}] is {int(found.view(kind)[at, column]):#x} on the"
            f" device, {int(whole[at, column]):#x} in the checkpoint"
        )
    tally.same(Place(None, block, name), not len(differ), why)


def identity(case: Case) -> Invariant:
    """The checkpoint on disk, read now, is the model that the record names."""
    tally = case.tally("model identity", BITS)
    found, named = identify(case.model.checkpoint, None), case.claim.model
    why = f"the checkpoint is {found[:16]}…, the record names {named[:16]}…"
    tally.same(Place(None, None), found == named, why)
    return tally.result()


def digests(case: Case) -> Invariant:
    """The record's roots cover every point, and are those of the rows that were looked at."""
    from blake3 import blake3

    tally = case.tally("digests", BITS, compares=True)
    told = case.digests
    if told is None:
        return tally.result("there is no record to compare with")
    total = len(case.inside.tokens)
    points = [point.name for block in case.blocks for point in block.points]
    missing = [name for name in points if name not in case.inside.rows]
    expected = STORED * (total + len(points))
    why = f"digests.bin has {len(told)} bytes, {total} positions and {len(points)} points need"
    tally.same(Place(None, None), len(told) == expected, f"{why} {expected}")
    tally.same(Place(None, None), not missing, f"nothing was read at {', '.join(missing[:3])}")
    if len(told) != expected or missing:
        return tally.result()
    found = {name: [_row_digest(row) for row in case.rows(name)] for name in points}
    inner = len(case.inside.positions) - len(case.picked)
    for i, position in enumerate(case.inside.positions.tolist()):
        digest = blake3()
        for name in points:
            behind = len(found[name]) == len(case.picked) != inner + len(case.picked)
            at = i - inner if behind else i
            if at >= 0:
                digest.update(found[name][at])
        root = digest.digest()[:STORED]
        why = f"position {position}: the rows have root {root.hex()}, the record says another"
        tally.same(Place(position, None), told[STORED * position :][:STORED] == root, why)
    if len(case.inside.positions) == total:
        _point_roots(case, tally, found, told[STORED * total :])
    return tally.result()


def _point_roots(case: Case, tally: Tally, found: dict[str, list[bytes]], told: bytes) -> None:
    from blake3 import blake3

    from llmtrace.blocks.block import makers

    maker = makers(case.blocks)
    for i, (name, digests_) in enumerate(found.items()):
        root = blake3(b"".join(digests_)).digest()[:STORED]
        why = f"{name}: the rows have root {root.hex()}, the record says another"
        place = Place(None, maker[name].name, name)
        tally.same(place, told[STORED * i :][:STORED] == root, why)


def _row_digest(row: np.ndarray) -> bytes:
    from blake3 import blake3

    return blake3(row.astype("<f4").tobytes()).digest()
