"""A bare git repository as objects and branches: the only file that knows pygit2.

Sizes are looked at before contents are read, and nothing of a repository is executed or
followed: objects are read by ``loose`` and ``packed``, and libgit2 keeps the branches. What
is written is on the disk before the call returns.
"""

import contextlib
import os
import shutil
import time
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from llmtrace.errors import Trouble
from llmtrace.store import durable
from llmtrace.store.index import check_indexes
from llmtrace.store.loose import Batch, Loose, object_id
from llmtrace.store.pack import Pack
from llmtrace.store.packed import Packed, Packs
from llmtrace.store.revision import resolve

_CONFIG = """\
[core]
\trepositoryformatversion = 0
\tfilemode = true
\tbare = true
\tlogAllRefUpdates = false
\tfsync = all
[gc]
\tauto = 0
\tpruneExpire = never
[maintenance]
\tauto = false
[receive]
\tdenyNonFastForwards = true
\tdenyDeletes = true
[transfer]
\tfsckObjects = true
"""
_HEAD = "refs/heads/main"  # of a store without a node of its own
_HEAD_LIMIT = 4096  # bytes
_PLAIN_LIMIT = 64 << 20  # bytes of a file that libgit2 reads whole: configuration, packed refs
_MOVES = 3  # tries to find an object that git moves meanwhile
_STALE = 1.0  # seconds after which a ref's lock file belongs to a dead process


class Objects:
    """The objects and branches of one bare repository (SHA-1, files)."""

    def __init__(self, path: Path, extra: tuple[Path, ...]) -> None:
        import pygit2
        from pygit2.enums import RepositoryOpenFlag as Flag

        self.path = path
        self.extra = extra  # more folders of objects that are read
        self._look()
        _close_off()
        try:
            self._repository = pygit2.Repository(str(path), Flag.NO_SEARCH | Flag.BARE)
            self._odb = self._repository.odb
            for folder in extra:
                self._odb.add_disk_alternate(str(folder))
        except (pygit2.GitError, OSError) as error:
            raise Trouble(f"cannot open the store '{path}': {_why(error)}") from error

    @classmethod
    def open(cls, path: Path, extra: Iterable[Path] = ()) -> "Objects":
        """Opens a bare repository; raises Trouble if there is none.

        ``extra`` are more folders of objects to read from.
        """
        with durable.troubled("read", path):
            exists = (path / "HEAD").is_file()
            if not exists:
                hint = f"make one with 'llmtrace init --store {path}'"
                raise Trouble(f"no store at '{path}'", hint)
            _refuse_odd(path)
        return cls(path, tuple(extra))

    @staticmethod
    def create(path: Path) -> None:
        """Makes an empty repository, whole or not at all; one that is there stays as it is."""
        new = path.with_name(f".{path.name}.{os.getpid()}.new")
        with durable.troubled("make the store", path):
            try:
                for folder in ("objects/info", "objects/pack", "refs/heads", "refs/tags"):
                    (new / folder).mkdir(parents=True, exist_ok=True)
                durable.write_file(new / "config", _CONFIG.encode(), 0o644)
                durable.write_file(new / "HEAD", f"ref: {_HEAD}\n".encode(), 0o644)
                for folder in ("objects", "refs"):
                    durable.sync(new / folder)
                new.rename(path)
            except (OSError, Trouble):
                shutil.rmtree(new, ignore_errors=True)
                if not (path / "HEAD").is_file():  # else another process was first
                    raise
            durable.sync(path.parent)

    def read(self, oid: str, kind: str, limit: int, *, proven: bool = False) -> bytes:
        """The contents of an object of this kind, of at most limit bytes; raises Trouble.

        They are compared with the id, unless the caller proves them by better digests.
        """
        try:
            data = self._contents(oid, kind, limit)
        except KeyError:
            raise Trouble(f"object '{oid[:8]}' is missing") from None
        except (ValueError, OSError, zlib.error) as error:
            raise Trouble(f"object '{oid[:8]}' cannot be read: {_why(error)}") from error
        if not proven and object_id(kind, data) != oid:
            raise Trouble(f"object '{oid[:8]}' is damaged: its contents have another id")
        return data

    def kind(self, oid: str) -> str:
        """Whether an object is a commit, tree, blob or tag; raises KeyError and ValueError."""
        return self._find(oid).kind

    def _contents(self, oid: str, kind: str, limit: int) -> bytes:
        """Raises KeyError, OSError, zlib.error, ValueError; Trouble for another kind or size."""
        for _ in range(_MOVES):
            found = self._find(oid)
            if found.kind != kind:
                raise Trouble(f"object '{oid[:8]}' is no {kind}")
            if found.size > limit:
                size = f"{found.size} bytes, at most {limit} are read"
                raise Trouble(f"object '{oid[:8]}' has {size}")
            with contextlib.suppress(FileNotFoundError):
                return found.contents()
        raise KeyError(oid)

    def _find(self, oid: str) -> Loose | Packed:
        """The object in a file or a pack, wherever git put it meanwhile; raises KeyError."""
        for _ in range(_MOVES):
            for folder in self._loose_folders.get(oid[:2], ()):
                with contextlib.suppress(FileNotFoundError):
                    return Loose(folder / oid[2:])
            found = self._packs.find(oid)
            if found:
                return found
            self._look()
        raise KeyError(oid)

    def _look(self) -> None:
        """Looks where objects are; later ones may be in other folders and packs. Raises Trouble."""
        places = (self.path / "objects", *self.extra)
        folders = [folder for place in places for folder in check_indexes(place)]
        self._loose_folders = _fans(folders)
        self._packs = Packs(folders)

    @contextlib.contextmanager
    def writing(self, name: str, *, many: bool = False) -> Iterator[Batch | Pack]:
        """Takes new objects; when the block ends they are all on the disk. Raises Trouble.

        ``name`` tells this writer from others; the caller holds a lock of that name. Of
        ``many`` objects one pack is made, of few loose files.
        """
        folder = self.path / "objects"
        batch = Pack(folder, name) if many else Batch(folder, self._odb.__contains__, name)
        try:
            yield batch
            batch.publish()
        finally:
            batch.discard()

    def find(self, revision: str) -> str:
        """Id of the commit that any git revision syntax names; raises Trouble."""
        import pygit2

        try:
            oid = resolve(self, revision)
            if oid is None:
                found = self._repository.revparse_single(revision)
                oid = str(found.peel(pygit2.Commit).id)
        except (KeyError, ValueError, pygit2.GitError, OSError, zlib.error) as error:
            why = str(error)
        else:
            return oid
        if "ambiguous" in why:
            hint = "more than one record begins so: give more characters"
            raise Trouble(f"no single record '{revision}'", hint)
        raise Trouble(f"no record '{revision}'", "see 'llmtrace log'")

    def expand(self, part: str) -> str:
        """The id that begins so; raises KeyError or ValueError for none or more than one."""
        return str(self._repository.expand_id(part))

    def branches(self, prefix: str) -> list[str]:
        """Names of the branches that begin so, without refs/heads/, sorted."""
        names = self.references(f"refs/heads/{prefix}")
        return [name[len("refs/heads/") :] for name in names]

    def head(self) -> str:
        """The branch that HEAD names, without refs/heads/, whether it exists or not."""
        with durable.troubled("read", self.path / "HEAD"), (self.path / "HEAD").open("rb") as file:
            text = file.read(_HEAD_LIMIT).decode(errors="replace")
        return text.removeprefix("ref: refs/heads/").strip()

    def set_head(self, branch: str) -> None:
        """Makes HEAD name a branch, durably."""
        durable.write_file(self.path / "HEAD", f"ref: refs/heads/{branch}\n".encode(), 0o644)

    def tip(self, branch: str) -> str | None:
        """Id of the newest commit of a branch, None without one."""
        return self.reference(f"refs/heads/{branch}")

    def reference(self, name: str) -> str | None:
        """Id of the object that a ref names, such as refs/llmtrace/fork/<node>; None without."""
        import pygit2

        try:
            return str(self._repository.lookup_reference(name).target)
        except KeyError:
            return None
        except (pygit2.GitError, ValueError) as error:
            raise Trouble(f"cannot read the ref '{name}': {_why(error)}") from error

    def references(self, prefix: str) -> list[str]:
        """Whole names of the refs that begin so, sorted."""
        import pygit2

        try:
            names = self._repository.listall_references()
        except (pygit2.GitError, ValueError) as error:
            raise Trouble(f"cannot read the refs of '{self.path}': {_why(error)}") from error
        return sorted(name for name in names if name.startswith(prefix))

    def contains(self, oid: str) -> bool:
        """Says whether an object is here."""
        return oid in self._odb

    def move(self, branch: str, old: str | None, new: str) -> None:
        """Moves a branch from old to new, durably; raises Trouble if it is not at old."""
        self.move_reference(f"refs/heads/{branch}", old, new)

    def move_reference(self, name: str, old: str | None, new: str) -> None:
        """Moves a ref from old to new, durably; raises Trouble if it is not at old."""
        path = self.path / name
        lock = path.with_name(f"{path.name}.lock")
        with durable.troubled("write the store", self.path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with os.fdopen(_take(lock), "w") as file:
                try:
                    self._expect(name, old)
                    file.write(f"{new}\n")
                    file.flush()
                    os.fsync(file.fileno())
                    lock.rename(path)
                except BaseException:
                    lock.unlink(missing_ok=True)
                    raise
            for folder in path.parents:  # one at least, and new ones all the way up
                durable.sync(folder)
                if old is not None or folder == self.path / "refs":
                    break

    def _expect(self, name: str, oid: str | None) -> None:
        if self.reference(name) != oid:
            raise Trouble(f"'{name}' was moved by another program")


def _take(lock: Path) -> int:
    """Makes the lock file of a branch, as git does, and waits for another to go.

    A chain has one writer, who holds the lock of its key; git itself holds a branch for
    milliseconds (pack-refs). A file that stays was left by a killed process.
    """
    end = time.monotonic() + _STALE
    while True:
        try:
            return os.open(lock, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            if time.monotonic() > end:
                lock.unlink(missing_ok=True)
            time.sleep(0.02)


def _refuse_odd(store: Path) -> None:
    """Refuses what would block or swamp whoever reads it, in a store that somebody handed over.

    A pipe in the place of a file blocks, and libgit2 reads some files whole.
    """
    folders = [str(store)]
    while folders:
        with contextlib.suppress(FileNotFoundError), os.scandir(folders.pop()) as entries:
            for entry in entries:  # some may go meanwhile: others write here
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                elif not entry.is_file() and not entry.is_dir() and Path(entry.path).exists():
                    raise Trouble(f"'{entry.path}' is neither a file nor a folder")
    for name in ("config", "packed-refs", "objects/info/alternates"):
        path = store / name
        if path.is_file() and path.stat().st_size > _PLAIN_LIMIT:
            raise Trouble(f"'{path}' has more than {_PLAIN_LIMIT} bytes")


def _fans(folders: Iterable[Path]) -> dict[str, list[Path]]:
    """The folders of loose objects by the two digits that they are named for."""
    found: dict[str, list[Path]] = {}
    for folder in folders:
        for fan in folder.glob("[0-9a-f][0-9a-f]"):
            found.setdefault(fan.name, []).append(fan)
    return found


def _close_off() -> None:
    """Keeps libgit2 from the configuration of user and machine.

    It asks who owns a repository because configuration can name programs; nothing here
    runs any, so a store may belong to somebody else.
    """
    from pygit2 import settings
    from pygit2.enums import ConfigLevel as Level

    for level in (Level.SYSTEM, Level.XDG, Level.GLOBAL, Level.PROGRAMDATA):
        settings.search_path[level] = ""
    settings.owner_validation = False


def _why(error: Exception) -> str:
    """The reason in an error of libgit2 or the system, in lower case, on one line."""
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(text.split()).lower() or type(error).__name__
