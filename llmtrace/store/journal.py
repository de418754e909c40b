"""Records on their way into a chain: one by one when they are rare, in groups when many.

A record that comes alone is written at once. Those that come within the next moments wait
for each other, so that the disk is waited for once a group: 50 ms a record become 0.7.
"""

import time
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

from llmtrace.store.chain import Event, Store
from llmtrace.store.maintenance import is_due, maintain

_SECONDS = 0.05  # for which a record may wait, as long as somebody calls ``tick``
_MOST = 100  # records of a group
_BYTES = 64 << 20  # of the parts of a group, which is held in memory

T = TypeVar("T")


class Journal(Generic[T]):
    """Appends events to one's own chain; ``done(item, commit)`` follows when each is on the disk.

    ``item`` is whatever the caller knows the event by. Nothing is acknowledged early: what
    waits when the process ends was never in the chain, unless ``close`` was called. Where
    the store has become large in files, ``environment`` is that of git, which packs them.
    """

    def __init__(
        self, store: Store, done: Callable[[T, str], None], environment: Mapping[str, str]
    ) -> None:
        self._store = store
        self._done = done
        self._environment = environment
        self._waiting: list[tuple[T, Event]] = []
        self._bytes = 0
        self._written = -_SECONDS  # when the last group was

    def add(self, item: T, event: Event) -> None:
        """Takes an event; may write it, or the whole group. Raises Trouble."""
        self._waiting.append((item, event))
        self._bytes += sum(map(len, event.parts.values()))
        if len(self._waiting) >= _MOST or self._bytes >= _BYTES:
            self.close()
        else:
            self.tick()

    def tick(self) -> None:
        """Writes what has waited long enough; to be called often. Raises Trouble."""
        if self._waiting and time.monotonic() - self._written >= _SECONDS:
            self.close()

    def close(self) -> None:
        """Writes what waits. Raises Trouble."""
        group, self._waiting, self._bytes = self._waiting, [], 0
        commits = self._store.append_all([event for _, event in group])
        self._written = time.monotonic()
        for (item, _), commit in zip(group, commits, strict=True):
            self._done(item, commit)
        if is_due(self._store.path):
            maintain(self._store.path, self._environment)
