"""Which tiles of the KV cache are free."""

from __future__ import annotations


class Tiles:
    """Free tiles of the KV cache, as ranges: a sequence takes neighbours."""

    def __init__(self, count: int) -> None:
        self._free = [(0, count)]

    def take(self, count: int) -> int | None:
        """Gives the first of so many neighbours; None if there is no such gap."""
        for i, (begin, end) in enumerate(self._free):
            if end - begin >= count:
                self._free[i : i + 1] = [(begin + count, end)] if end - begin > count else []
                return begin
        return None

    def give(self, begin: int, count: int) -> None:
        """Takes tiles back."""
        self._free = sorted([*self._free, (begin, begin + count)])
        joined = self._free[:1]
        for start, end in self._free[1:]:
            if start == joined[-1][1]:
                joined[-1] = (joined[-1][0], end)
            else:
                joined.append((start, end))
        self._free = joined
