"""Format 2 of the probes: the words that kernels measure, and ``probes.bin``, which keeps some.

``probes.bin``, little-endian 32-bit words; T fed positions, G output tokens, P points that exist at
every position and Q that exist where logits do, L layers, H heads, N stored positions:

    8              "LTP2", G, N, P, Q, L, H, and the position that drew the first token
    G, 4           token records (``kernels/token.cu``)
    P + Q, 16      totals of the points, L, H, 8 of the heads (``llmtrace.probes.totals``)
    N              the stored positions, ascending
    N, P, 32       records of the points there (``kernels/probe.cu``)
    M, Q, 32       and of the others, at those M positions that drew a token
    N, L, H, 4     head records: six f16 in three words, then the argmax

Of a head the words of ``kernels/attention.cu`` are rounded to f16, half to even: log-sum-exp,
entropy, largest score, mass on position 0, on itself, mean distance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy as np

LEVELS = ("off", "stats", "detail")
WORDS, HEAD_WORDS, TOKEN_WORDS = 32, 8, 4
TOTAL_WORDS, HEAD_TOTAL_WORDS = 16, 8
_STORED_HEAD_WORDS = 4
_MAGIC = int.from_bytes(b"LTP2", "little")
_LARGEST = 65504.0  # of f16

POINT_FIELDS: dict[str, tuple[slice | int, str]] = {
    "rms": (0, "<f4"),
    "mean": (1, "<f4"),
    "l1": (2, "<f4"),
    "absmax": (3, "<f4"),
    "kurtosis": (4, "<f4"),
    "entropy": (5, "<f4"),
    "argmax": (6, "<u4"),
    "top_index": (slice(8, 12), "<u4"),
    "top_value": (slice(12, 16), "<f4"),
    "sample": (slice(16, 24), "<f4"),
    "linear_sketch": (slice(24, 26), "<f2"),
    "clipped_sketch": (slice(26, 28), "<f2"),
    "zeros": (28, "<u4"),
    "saturated": (29, "<u4"),
    "small": (30, "<u4"),
    "outside": (31, "<u4"),
}
HEAD_FIELDS: dict[str, tuple[slice | int, str]] = {
    "lse": (0, "<f4"),
    "entropy": (1, "<f4"),
    "max": (2, "<f4"),
    "sink": (3, "<f4"),
    "self": (4, "<f4"),
    "distance": (5, "<f4"),
    "argmax": (6, "<u4"),
    "previous": (7, "<f4"),
}
TOKEN_FIELDS: dict[str, tuple[slice | int, str]] = {
    "logprob": (0, "<f4"),
    "entropy": (1, "<f4"),
    "margin": (2, "<f4"),
    "rank": (3, "<u4"),
}
STORED_HEAD_FIELDS = ("lse", "entropy", "max", "sink", "self", "distance")


@dataclass(frozen=True)
class Seen:
    """What one step measured of one sequence, n positions in order, the last m with logits.

    Whoever takes over a prefix is not told of its positions, but follows an observer that was. That
    one's samples and sketches (words 16 to 27 of a record) were drawn by the seed of another
    prompt, so nothing that lasts is made of them here: those that are stored are measured again.
    """

    positions: np.ndarray
    """(n,) i64"""
    tokens: np.ndarray
    """(n,) i64, fed there"""
    points: np.ndarray
    """(n, P, 32) u32"""
    picked: np.ndarray
    """(m, Q, 32) u32"""
    heads: np.ndarray
    """(n, L, H, 8) u32"""
    drawn: np.ndarray
    """(m, 4) u32"""


@dataclass(frozen=True)
class Stored:
    """What ``probes.bin`` holds; shapes at the top of this file."""

    first_pick: int
    drawn: np.ndarray
    totals: np.ndarray
    head_totals: np.ndarray
    positions: np.ndarray
    points: np.ndarray
    picked: np.ndarray
    heads: np.ndarray

    def at(self, position: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Gives the records of a stored position: (P, 32), and (Q, 32) if it drew a token."""
        row = self.positions.tolist().index(position)
        later = row - (len(self.positions) - len(self.picked))
        return self.points[row], self.picked[later] if later >= 0 else None


def field(
    records: np.ndarray,
    name: str,
    fields: dict[str, tuple[slice | int, str]] = POINT_FIELDS,
) -> np.ndarray:
    """Gives one field of records (..., words) u32: (...) or (..., k), in the type that it has."""
    words, dtype = fields[name]
    if isinstance(words, int):
        return records[..., words].view(dtype)
    return records[..., words].copy().view(dtype)


def stored_heads(heads: np.ndarray) -> np.ndarray:
    """Rounds head records (..., 8) u32 to the (..., 4) u32 that are stored."""
    import numpy as np

    floats = heads[..., :6].copy().view("<f4")
    halves = np.clip(floats, -_LARGEST, _LARGEST).astype("<f2")  # half to even
    return np.concatenate([halves.view("<u4"), heads[..., 6:7]], axis=-1)


def head_field(stored: np.ndarray, name: str) -> np.ndarray:
    """Gives a field of stored head records (..., 4) u32: f16, or u32 for ``argmax``."""
    if name == "argmax":
        return stored[..., 3]
    return stored[..., :3].copy().view("<f2")[..., STORED_HEAD_FIELDS.index(name)]


def layout(points: Iterable[tuple[str, int]]) -> dict[str, list[list[str | int]]]:
    """Says what the points of a plan are, given their names and widths in its order.

    ``before`` and ``after`` the layers whole names, in each ``layer`` what follows ``blocks.N.``.
    """
    found: dict[str, list[list[str | int]]] = {"before": [], "layer": [], "after": []}
    last = -1
    for name, width in points:
        if not name.startswith("blocks."):
            found["after" if last >= 0 else "before"].append([name, width])
            continue
        _, layer, short = name.split(".", 2)
        last = int(layer)
        if last == 0:
            found["layer"].append([short, width])
        else:
            assert [short, width] in found["layer"], "layers have the same points"
    return found


def points_of(layout: dict[str, list[list[str | int]]], layers: int) -> list[tuple[str, int]]:
    """Gives names and widths in the order of the plan."""
    inner = [
        (f"blocks.{layer}.{name}", int(width))
        for layer in range(layers)
        for name, width in layout["layer"]
    ]
    before, after = ([(str(n), int(w)) for n, w in layout[k]] for k in ("before", "after"))
    return [*before, *inner, *after]


def probe_seed(model_id: str, prompt: Sequence[int]) -> int:
    """The seed of samples and sketches: fixed before the run, so that nobody chooses them."""
    from blake3 import blake3

    text = f"llmtrace probe {model_id} " + " ".join(map(str, prompt))
    return int.from_bytes(blake3(text.encode()).digest(8), "little")


def sample_indices(
    seed: int, column: int, positions: Iterable[int], width: int, count: int = 8, stream: int = 1
) -> np.ndarray:
    """Gives (N, count) i64: where the samples of a point of that width are, at each position.

    Sample s is drawn from the s-th of ``count`` equal parts of the row. Draws of different
    streams know nothing of each other; 1 is that of the probe records.
    """
    import numpy as np

    at = np.array(list(positions), np.uint64)
    found = np.empty((len(at), count), np.int64)
    for four in range(0, count, 4):
        words = philox((at, np.uint64(column), np.uint64(four // 4), np.uint64(stream)), seed)
        for s, word in zip(range(four, count), words, strict=False):
            begin, end = width * s // count, width * (s + 1) // count
            drawn = (word * np.uint64(end - begin)) >> np.uint64(32)
            found[:, s] = begin + drawn.astype(np.int64)
    return found


def philox(counter: tuple[np.ndarray | np.uint64, ...], key: int) -> tuple[np.ndarray, ...]:
    """Philox4x32-10 as in ``kernels/philox.cuh``, for many counters: four words in u64s."""
    import numpy as np

    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    k0, k1 = key & 0xFFFFFFFF, key >> 32
    a, b, c, d = (word + np.zeros_like(counter[0]) for word in counter)
    for _ in range(10):
        p, q = np.uint64(0xD2511F53) * a, np.uint64(0xCD9E8D57) * c
        a, b, c, d = (
            (q >> shift) ^ b ^ np.uint64(k0),
            q & low,
            (p >> shift) ^ d ^ np.uint64(k1),
            p & low,
        )
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return a, b, c, d


def probes_bin(stored: Stored) -> bytes:
    """Packs ``probes.bin``."""
    import numpy as np

    points, others, heads = stored.points.shape[1], stored.picked.shape[1], stored.heads.shape[1:3]
    sizes = (len(stored.drawn), len(stored.positions), points, others, *heads, stored.first_pick)
    arrays = (
        np.array([_MAGIC, *sizes], "<u4"),
        stored.drawn,
        stored.totals,
        stored.head_totals,
        stored.positions,
        stored.points,
        stored.picked,
        stored.heads,
    )
    return b"".join(_words(array) for array in arrays)


def _words(array: np.ndarray) -> bytes:
    return array.astype("<f4" if array.dtype.kind == "f" else "<u4", copy=False).tobytes()


def read_probes_bin(data: bytes) -> Stored:
    """Unpacks ``probes.bin``, whoever wrote it; raises ValueError."""
    import numpy as np

    if len(data) < 32 or len(data) % 4:
        raise ValueError("not whole words")
    words = np.frombuffer(data, "<u4")
    magic, tokens, count, points, others, layers, heads, first = (int(word) for word in words[:8])
    if magic != _MAGIC:
        raise ValueError("not of format 2")
    at = 8 + tokens * TOKEN_WORDS + (points + others) * TOTAL_WORDS
    at += layers * heads * HEAD_TOTAL_WORDS
    if at + count > len(words):
        raise ValueError("sizes do not add up")
    later = int((words[at : at + count] >= first).sum())
    shapes = (
        (8,),
        (tokens, TOKEN_WORDS),
        (points + others, TOTAL_WORDS),
        (layers, heads, HEAD_TOTAL_WORDS),
        (count,),
        (count, points, WORDS),
        (later, others, WORDS),
        (count, layers, heads, _STORED_HEAD_WORDS),
    )
    found, begin = [], 0
    for shape in shapes:
        size = 1
        for n in shape:
            size *= n
        if begin + size > len(words):
            raise ValueError("sizes do not add up")
        found.append(words[begin : begin + size].reshape(shape))
        begin += size
    if begin != len(words):
        raise ValueError("sizes do not add up")
    _, drawn, totals, head_totals, positions, *records = found
    return Stored(
        first, drawn, totals, head_totals.view("<f4"), positions.astype(np.int64), *records
    )
