"""The keys of a node: the one in force, the next, and what was signed last.

One folder a node, outside the store, so that a copied store has no key. A signature is
given only for a record that the memory names, and the memory only moves forward: a
second digest for one seq is never signed, whatever becomes of the store.

    key  next   private keys in OpenSSH format, mode 0600
    after       the key after next, while a rotation is under way
    last        canonical JSON: seq, digest and tree of the record signed last; under
                "before" digest and tree of each that was promised together with it; under
                "until" the last seq that the key in force may sign, unless it is any
    lock        held by the one writer of the chain
"""

import contextlib
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from llmtrace.errors import Trouble
from llmtrace.store import canonical, durable, sshsig
from llmtrace.store.record import node_name

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


class Last(NamedTuple):
    """The record that a key signed last: its place, the digest of record.json, its git tree."""

    seq: int
    record: str
    tree: str


class Keys:
    """The keys of one node. Reading and signing need ``lock``."""

    def __init__(self, folder: Path, node: str) -> None:
        self._folder = folder / node
        self.node = node
        if not (self._folder / "key").is_file():
            raise Trouble(
                f"no key of {node_name(node)} in '{folder}'",
                "to write your own: 'llmtrace init --store DIR'",
            )

    @classmethod
    def create(
        cls,
        folder: Path,
        node: str,
        pair: tuple["Ed25519PrivateKey", "Ed25519PrivateKey"],
        last: Last,
        until: int | None = None,
    ) -> "Keys":
        """Stores the first two keys of a new node, whole or not at all."""
        new = folder / f".{node}.new"
        with durable.troubled("write", folder / node):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir(mode=0o700)
            try:
                for name, key in zip(("key", "next"), pair, strict=True):
                    durable.write_file(new / name, _private_text(key))
                durable.write_file(new / "last", _memory([last], until))
                durable.rename(new, folder / node)
            except BaseException:
                shutil.rmtree(new, ignore_errors=True)
                raise
        return cls(folder, node)

    @staticmethod
    def exists(folder: Path, node: str) -> bool:
        """Says whether the key of a node is here."""
        return (folder / node / "key").is_file()

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Makes the caller the one writer of the chain; others wait."""
        with durable.lock(self._folder / "lock"):
            yield

    @property
    def last(self) -> Last:
        """The record signed last, or about to be; raises Trouble if that is not known."""
        return self.promised[-1]

    @property
    def promised(self) -> list[Last]:
        """The records promised together, the one signed last at the end; raises Trouble."""
        return self._read_memory()[0]

    @property
    def until(self) -> int | None:
        """Last seq that may be signed by the key that signs the next record; None for any."""
        return self._read_memory()[1]

    def _read_memory(self) -> tuple[list[Last], int | None]:
        path = self._folder / "last"
        with durable.troubled("read", path):
            data = path.read_bytes()
        try:
            return _remembered(canonical.decode(data))
        except (ValueError, TypeError, KeyError):
            raise Trouble(f"'{path}' does not say what was signed last") from None

    def promise(self, following: Sequence[Last], until: int | None = None) -> None:
        """Remembers, durably, the records that will be signed next, and ``until`` after them."""
        last = self.last
        for seq, one in enumerate(following, last.seq + 1):
            if one.seq != seq:
                raise Trouble(f"record {one.seq} cannot be signed after record {seq - 1}")
        durable.write_file(self._folder / "last", _memory(following, until))

    def catch_up(self, last: Last) -> None:
        """Remembers a later record that this key did sign: one that the memory had lost."""
        if last.seq <= self.last.seq:
            raise Trouble(f"the key of {node_name(self.node)} has signed record {last.seq} already")
        durable.write_file(self._folder / "last", _memory([last], self.until))

    def signer(self, promised: Sequence[Last]) -> Callable[[bytes], str]:
        """Signs the commits of the records that the memory names, and of no others."""
        if self.promised != list(promised):
            raise Trouble(f"another record {promised[-1].seq} was signed already")
        key = self._load("key")
        return lambda payload: sshsig.sign(payload, key)

    def public_key(self) -> bytes:
        """The key in force, raw 32 bytes."""
        return self._load("key").public_key().public_bytes_raw()

    def begin_rotation(self) -> tuple[bytes, bytes]:
        """Makes the key after next; gives the public halves of next and of that one."""
        after = generate()
        durable.write_file(self._folder / "after", _private_text(after))
        following = self._load("next").public_key().public_bytes_raw()
        return following, after.public_key().public_bytes_raw()

    def end_rotation(self, public_key: bytes) -> None:
        """Puts the key in force that the chain's newest record, a rotation, announces.

        May be called again after a crash at any point, and changes nothing then.
        """
        if self.public_key() != public_key:
            if self._load("next").public_key().public_bytes_raw() != public_key:
                raise Trouble(f"the key of {node_name(self.node)} is not the one in force")
            durable.rename(self._folder / "next", self._folder / "key")
        if not (self._folder / "next").exists():
            durable.rename(self._folder / "after", self._folder / "next")

    def _load(self, name: str) -> "Ed25519PrivateKey":
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_ssh_private_key

        path = self._folder / name
        with durable.troubled("read", path):
            if stat.S_IMODE(path.stat().st_mode) & 0o077:
                raise Trouble(f"others can read the key '{path}'", f"chmod 600 {path}")
            data = path.read_bytes()
        try:
            key = load_ssh_private_key(data, password=None)
        except (ValueError, TypeError) as error:
            raise Trouble(f"'{path}' is no private key") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise Trouble(f"'{path}' is no Ed25519 key")
        return key


def _memory(promised: Sequence[Last], until: int | None) -> bytes:
    """What the file ``last`` holds."""
    whole: dict[str, object] = dict(promised[-1]._asdict())
    if until is not None:
        whole["until"] = until
    if len(promised) > 1:
        whole["before"] = [[one.record, one.tree] for one in promised[:-1]]
    return canonical.encode(whole)


def _remembered(value: object) -> tuple[list[Last], int | None]:
    if not isinstance(value, dict) or set(value) - {"before", "until"} != set(Last._fields):
        raise ValueError("other keys")
    pairs = [*value.get("before", []), [value["record"], value["tree"]]]
    first = int(value["seq"]) - len(pairs) + 1
    lasts = [Last(first + i, str(record), str(tree)) for i, (record, tree) in enumerate(pairs)]
    return lasts, int(value["until"]) if "until" in value else None


def generate() -> "Ed25519PrivateKey":
    """A new key, from the system's random numbers."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.generate()


def _private_text(key: "Ed25519PrivateKey") -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
