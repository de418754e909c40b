"""A quarantine: a stranger's objects, apart from the store until somebody has audited them.

A scratch repository inside the store's folder, so on the same disk, which sees the objects of
the store beside its own; git transfers into it what is new. What was audited is then packed,
object by object, into the store, and the rest goes with the folder. The store itself is never
the repository of a git process.
"""

import contextlib
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

from llmtrace.errors import Trouble
from llmtrace.store import durable
from llmtrace.store.carrier import Carrier, Failed
from llmtrace.store.chain import Store
from llmtrace.store.forks import REFS as FORKS
from llmtrace.store.process import Caps
from llmtrace.store.schema import NODE_ID

CHAINS = "refs/heads/node/"
MOST_CHAINS = 5000  # of one remote
MOST_OBJECTS = 20_000_000  # in what one fetch brings
_PATIENCE = 86400  # seconds for our own disk, whatever a remote is given
_BATCH = 200_000  # objects of a pack that is accepted
_LISTED = 2 << 20  # bytes of a list of refs: 5,000 chains and as many proofs
_EXACT = 64  # nodes that are asked for by name; more by listing all
_LINE = re.compile(rf"([0-9a-f]{{40}})\t({CHAINS}|{FORKS})({NODE_ID.pattern})")
_FETCH = (
    *("-c", "core.fsync=none"),  # what is accepted is synced
    *("fetch", "--no-tags", "--no-recurse-submodules", "--no-write-fetch-head", "--atomic"),
    *("--no-auto-maintenance", "--refmap=", "--stdin", "--progress"),
)
_PACK = (
    *("-c", "core.fsync=all", "-c", "core.fsyncMethod=fsync"),
    *("pack-objects", "--quiet", "--local", "--non-empty", "--delta-base-offset"),
)

CAPS = Caps(seconds=3600, cpu_seconds=1200, file_bytes=2 << 30, memory_bytes=192 << 20)


class Quarantine:
    """Where what one remote gives is kept and looked at; made by ``quarantine``."""

    def __init__(self, home: Store, carrier: Carrier, path: Path, caps: Caps) -> None:
        self.home = home
        self._carrier = carrier
        self._path = path
        self._caps = caps
        self.end = time.monotonic() + caps.seconds  # for all that the remote may cost

    def offered(self, url: str, nodes: Iterable[str] | None = None) -> dict[str, str]:
        """Ids by the names of the chains and proofs that a remote has, of these nodes or of all.

        Raises Trouble for a remote with more than 5,000 chains.
        """
        asked = None if nodes is None else set(nodes)
        names = [CHAINS + "*", FORKS + "*"]
        if asked is not None and len(asked) <= _EXACT:
            names = [prefix + node for node in sorted(asked) for prefix in (CHAINS, FORKS)]
        try:
            listed = self._git(["ls-remote", "--", url, *names], output_bytes=_LISTED)
        except Failed:
            raise
        except Trouble as error:
            raise Trouble(f"cannot list the chains of '{url}': {error}") from error
        found = {}
        for line in listed.decode(errors="replace").splitlines():
            match = _LINE.fullmatch(line)  # git matches ends of names, so others come too
            if match and (asked is None or match[3] in asked):
                found[match[2] + match[3]] = match[1]
        if sum(name.startswith(CHAINS) for name in found) > MOST_CHAINS:
            hint = "name the nodes that you want"
            raise Trouble(f"'{url}' has more than {MOST_CHAINS} chains", hint)
        return found

    def receive(
        self, url: str, names: Iterable[str], progress: Callable[[str], None] | None = None
    ) -> dict[str, str]:
        """Transfers what these refs name; gives, by name, why git could not.

        They come together, or one by one if something is wrong with one of them.
        Raises Trouble when a cap is reached.
        """
        listed = list(names)
        self._open(listed)
        why = self._fetch(url, listed, progress)
        if why is None:
            return {}
        if len(listed) == 1:
            return {listed[0]: why}
        each = {name: self._fetch(url, [name], progress) for name in listed}
        return {name: reason for name, reason in each.items() if reason is not None}

    def arrived(self, names: Iterable[str]) -> tuple[Store, dict[str, str]]:
        """The quarantine as a store of its own, and ids by the names of the refs that came.

        Counts objects before anything is read; raises Trouble for too many.
        """
        count = sum(map(_count, self._packs())) + len(self._loose())
        if count > MOST_OBJECTS:
            raise Trouble(f"{count} objects came, at most {MOST_OBJECTS} are looked at")
        if (self._path / "shallow").exists():
            raise Trouble("the remote has no whole chains: it is shallow")
        store = Store.open(self._path, self._path / "keys")
        store.lineage.keep_as(self.home.lineage)
        ids = {name: store.objects.reference(_incoming(name)) for name in names}
        return store, {name: oid for name, oid in ids.items() if oid}

    def accept(self, objects: Iterable[str]) -> None:
        """Puts exactly these objects into the store, those that it has left out; durable."""
        pack = self.home.path / "objects/pack"
        listed = iter(objects)
        while batch := list(islice(listed, _BATCH)):
            self._git(
                [*_PACK, str((pack / "pack").absolute())],
                stdin=("\n".join(batch) + "\n").encode(),
                seconds=_PATIENCE,
                file_bytes=1 << 62,  # what came was counted already
            )
        with durable.troubled("write the store", self.home.path):
            durable.sync(pack)

    def _open(self, names: Iterable[str]) -> None:
        """Shows git the objects of the store, and what of these refs need not come again.

        No other ref: the remote is told of what it offers itself.
        """
        # Seen from this folder of objects, so that there is no name to quote.
        (self._path / "objects/info/alternates").write_text("../../objects\n")
        tips = {name: self.home.objects.reference(name) for name in sorted(set(names))}
        lines = [f"{tip} {name}\n" for name, tip in tips.items() if tip]
        (self._path / "packed-refs").write_text("# pack-refs with: sorted \n" + "".join(lines))

    def _fetch(
        self, url: str, names: list[str], progress: Callable[[str], None] | None
    ) -> str | None:
        """Transfers what these refs name, all or nothing; says why git could not."""
        wanted = "".join(f"{name}:{_incoming(name)}\n" for name in names)
        room = self._room()
        try:
            self._git([*_FETCH, "--", url], stdin=wanted.encode(), progress=progress)
        except Failed as error:
            rests = (self._path / "objects/pack").glob("tmp_*")
            if any(rest.stat().st_size >= room for rest in rests):
                return f"more than {self._caps.file_bytes} bytes"
            return str(error)
        finally:
            for rest in (self._path / "objects/pack").glob("tmp_*"):
                rest.unlink(missing_ok=True)
        return None

    def _room(self) -> int:
        """The bytes that may still come."""
        came = [*self._packs(), *self._loose()]
        return max(0, self._caps.file_bytes - sum(file.stat().st_size for file in came))

    def _git(
        self,
        arguments: list[str],
        *,
        stdin: bytes = b"",
        progress: Callable[[str], None] | None = None,
        **caps: int,
    ) -> bytes:
        """Runs git here, under what is left of the caps, or other ones."""
        left = max(0.0, self.end - time.monotonic())
        allowed = replace(replace(self._caps, seconds=left, file_bytes=self._room()), **caps)
        try:
            return self._carrier.run(
                arguments, repository=self._path, stdin=stdin, caps=allowed, progress=progress
            )
        except Failed:
            raise
        except Trouble as error:
            if time.monotonic() < self.end:
                raise
            text = f"the transfer took more than {self._caps.seconds:g} seconds"
            raise Trouble(text) from error

    def _packs(self) -> list[Path]:
        return list((self._path / "objects/pack").glob("*.pack"))

    def _loose(self) -> list[Path]:
        """Objects that came one by one, as from a web server that knows nothing of git."""
        return list((self._path / "objects").glob("[0-9a-f][0-9a-f]/*"))


@contextlib.contextmanager
def quarantine(home: Store, carrier: Carrier, caps: Caps = CAPS) -> Iterator[Quarantine]:
    """A quarantine for a store, gone at the end whatever happens."""
    with carrier.scratch(home.path) as path:
        yield Quarantine(home, carrier, path, caps)


def _incoming(name: str) -> str:
    """Where a ref of the remote is kept in the quarantine."""
    return "refs/incoming/" + name.removeprefix("refs/")


def _count(pack: Path) -> int:
    """The number of objects in a pack, by its header."""
    with pack.open("rb") as file:
        return int.from_bytes(file.read(12)[8:], "big")
