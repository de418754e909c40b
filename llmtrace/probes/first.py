"""Format 1 of the probes: what records of the first days hold, to be made again for ever.

It keeps the residual stream behind each layer, and features computed from it.

``probes.bin``, little-endian 32-bit words:

    4            G output tokens, N positions, L layers, 32 words a record
    G            logprob of each output token, f32
    N            the positions, u32, ascending
    N, L, 32     their records, as ``kernels/moments.cu`` lays them out

At level ``stats`` the positions are the one that drew the least certain token and the last;
at ``detail`` all. Features are means over all positions whatever is stored.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

MOMENTS = {"rms": 0, "mean": 1, "l1": 2, "absmax": 3, "kurtosis": 4}
"""Words of a record that are float32 moments of the row."""


def chosen_positions(level: str, logprobs: np.ndarray, positions: int) -> list[int]:
    """Gives the positions whose records are stored."""
    if level == "detail":
        return list(range(positions))
    first_pick = positions - len(logprobs)
    return sorted({first_pick + int(logprobs.argmin()), positions - 1})


def probes_bin(level: str, logprobs: np.ndarray, records: np.ndarray) -> bytes:
    """Packs ``probes.bin``: logprobs (G,) f32, records (T, L, 32) u32."""
    import numpy as np

    chosen = chosen_positions(level, logprobs, len(records))
    head = np.array([len(logprobs), len(chosen), *records.shape[1:]], "<u4")
    return b"".join(
        (
            head.tobytes(),
            logprobs.astype("<f4").tobytes(),
            np.array(chosen, "<u4").tobytes(),
            records[chosen].astype("<u4").tobytes(),
        )
    )


def read_probes_bin(data: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unpacks logprobs (G,) f32, positions (N,) u32, records (N, L, 32) u32; raises ValueError."""
    import numpy as np

    if len(data) < 16 or len(data) % 4:
        raise ValueError("not whole words")
    words = np.frombuffer(data, "<u4")
    tokens, count, layers, width = (int(word) for word in words[:4])
    if 4 + tokens + count + count * layers * width != len(words):
        raise ValueError("sizes do not add up")
    positions, rest = words[4 + tokens :][:count], words[4 + tokens + count :]
    return words[4:][:tokens].view("<f4"), positions, rest.reshape(count, layers, width)


def features(logprobs: np.ndarray, records: np.ndarray) -> dict[str, Any]:
    """Computes ``features.json``: means over positions, as exact hexadecimal floats.

    A mean is the correctly rounded float64 sum of float32 values, divided by their
    number: the same on every machine, whatever the order.
    """
    points = {}
    for layer in range(records.shape[1]):
        of_layer = records[:, layer].view("<f4")
        points[f"blocks.{layer}.hook_resid_post"] = {
            name: _mean(of_layer[:, word].tolist()) for name, word in MOMENTS.items()
        }
    return {
        "v": 1,
        "positions": len(records),
        "logprob": _mean(logprobs.tolist()),
        "points": points,
    }


def _mean(values: list[float]) -> str:
    return (math.fsum(values) / len(values)).hex()
