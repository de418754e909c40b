"""Chooses among variants by trying them, once for each device and size; what won stays in a file.

The file is a memory and no setting: whatever it says, the bits are the same.
"""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING

from llmtrace.device.cache import put

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from llmtrace.blocks.variants import Ways
    from llmtrace.device.device import Device, Launch


class Choices:
    """What to take on one device. ``Device.preferred`` goes before what was found."""

    def __init__(self, device: Device) -> None:
        self._preferred = device.preferred
        self._path = device.cache / f"variants-{device.build}.json"
        self._found = _read(self._path)

    def take(self, ways: Ways, rows: int, tried: Callable[[], Mapping[str, float]]) -> list[Launch]:
        """Gives the launches of the variant that is fastest in steps of so many rows.

        ``tried`` says how long each takes; it is asked if nobody was before, and ``ways`` are many.
        """
        for name in self._preferred:
            if name in ways:
                return ways[name]
        if len(ways) == 1:
            return next(iter(ways.values()))
        size = subject(ways, rows)
        if self._found.get(size) not in ways:
            self.learn(size, tried())
        return ways[self._found[size]]

    def learn(self, size: str, times: Mapping[str, float]) -> None:
        """Takes note of the fastest, and keeps it where that can be done."""
        self._found[size] = min(times, key=lambda name: times[name])
        known = _read(self._path) | self._found  # others may have tried something else meanwhile
        with contextlib.suppress(OSError):  # it is found again by the next who needs it
            put(self._path, json.dumps(known, indent=0, sort_keys=True).encode())


def subject(ways: Ways, rows: int) -> str:
    """Names what is chosen for: kernels, their sizes, and rows up to the next power of two."""
    plain = next(iter(ways.values()))
    sizes = (
        "x".join([launch.kernel, *(str(arg) for arg in launch.args if isinstance(arg, int))])
        for launch in plain
    )
    return f"{' '.join(sizes)} {1 << (rows - 1).bit_length()}"


def _read(path: Path) -> dict[str, str]:
    """Gives what was found before; nothing of a file that says anything else."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    kept = found.items() if isinstance(found, dict) else ()
    return {key: name for key, name in kept if isinstance(name, str)}
