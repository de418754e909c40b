"""Keeps a store small: loose objects and small packs become few packs, by git's own hand.

A run leaves some ten loose objects, a group of a batch two packs. Nothing is ever thrown
away, reachable or not, so this may happen while others write, and may be killed anywhere.
"""

import fcntl
import os
from collections.abc import Mapping
from pathlib import Path

from llmtrace.store import durable
from llmtrace.store.process import Caps

_PACKS = 32
_LOOSE = 16  # objects in one of the 256 folders, which are filled alike: 4,096 in all
_CAPS = Caps(seconds=86400, cpu_seconds=86400, file_bytes=1 << 62)  # the store is our own


def is_due(store: Path) -> bool:
    """Says whether a store has many loose objects or many packs."""
    objects = store / "objects"
    packs = sum(name.endswith(".idx") for name in _names(objects / "pack"))
    return packs > _PACKS or len(_names(objects / "17")) >= _LOOSE


def maintain(store: Path, environment: Mapping[str, str]) -> bool:
    """Packs what is loose, joins small packs; False if another process is at it. Raises Trouble.

    Packs are joined where one is not twice as large as all smaller ones together, so each
    object is copied a logarithmic number of times in the life of a store.
    """
    from llmtrace.store.carrier import Carrier

    path = store / "llmtrace.maintenance"
    with durable.troubled("lock", path):
        handle = os.open(path, os.O_RDONLY | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        carrier = Carrier(environment)
        with carrier.scratch(store) as scratch:
            carrier.run(
                ["repack", "-q", "-d", "-n", "--geometric=2", "--window=0", "--depth=0"],
                repository=scratch,
                into=store / "objects",
                caps=_CAPS,
            )
    finally:
        os.close(handle)
    return True


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208 (names alone: this is asked after every run)
    except OSError:
        return []
