"""SSH signatures (openssh/PROTOCOL.sshsig), Ed25519 with SHA-512, made and checked in process.

Byte for byte what ``ssh-keygen -Y sign`` makes, at 27,000 instead of 160 a second. A
signature is only ever checked against a key that the caller expects; the key inside
the signature is a claim.
"""

import base64
import binascii
import hashlib
import struct
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

_MAGIC = b"SSHSIG"
_ALGORITHM = b"ssh-ed25519"
_HASH = b"sha512"
_BEGIN = "-----BEGIN SSH SIGNATURE-----"
_END = "-----END SSH SIGNATURE-----"
_WIDTH = 70  # characters of base64 a line, as ssh-keygen wraps
_LONGEST = 4096  # characters of an armored signature; ours have 294


def sign(data: bytes, key: "Ed25519PrivateKey", namespace: str = "git") -> str:
    """The armored signature of data; deterministic, as Ed25519 is."""
    signature = key.sign(_signed(data, namespace))
    return _armor(key.public_key().public_bytes_raw(), namespace, signature)


def check(data: bytes, armored: str, public_key: bytes, namespace: str = "git") -> str | None:
    """Says why the signature does not prove that the holder of public_key signed data.

    None means that it does. A signature in any other form than ``sign`` gives it is
    refused as well, so that a signed object cannot be spelled in two ways.
    """
    from cryptography.exceptions import InvalidSignature

    blob = _disarm(armored)
    if blob is None or len(blob) < 64:
        return "not an SSH signature"
    claimed = _armor(public_key, namespace, blob[-64:])
    if claimed != armored:
        return _difference(blob, public_key, namespace)
    try:
        _public_key(public_key).verify(blob[-64:], _signed(data, namespace))
    except (InvalidSignature, ValueError):
        return "bad signature"
    return None


def public_line(public_key: bytes, comment: str) -> str:
    """One line as in ``id_ed25519.pub``, without a newline."""
    return f"ssh-ed25519 {base64.b64encode(_public_blob(public_key)).decode()} {comment}"


def allowed_line(principal: str, public_key: bytes, namespace: str = "git") -> str:
    """One line for git's ``gpg.ssh.allowedSignersFile``, without a newline."""
    key = base64.b64encode(_public_blob(public_key)).decode()
    return f'{principal} namespaces="{namespace}" ssh-ed25519 {key}'


@lru_cache(maxsize=64)
def _public_key(raw: bytes) -> "Ed25519PublicKey":
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    return Ed25519PublicKey.from_public_bytes(raw)


def _string(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def _public_blob(public_key: bytes) -> bytes:
    return _string(_ALGORITHM) + _string(public_key)


def _signed(data: bytes, namespace: str) -> bytes:
    """What Ed25519 signs: the namespace keeps a commit from passing for anything else."""
    return _signed_head(namespace) + hashlib.sha512(data).digest()


@lru_cache(maxsize=16)
def _signed_head(namespace: str) -> bytes:
    strings = (namespace.encode(), b"", _HASH)
    return _MAGIC + b"".join(map(_string, strings)) + struct.pack(">I", 64)


def _armor(public_key: bytes, namespace: str, signature: bytes) -> str:
    text = base64.b64encode(_head(public_key, namespace) + signature).decode()
    lines = [text[i : i + _WIDTH] for i in range(0, len(text), _WIDTH)]
    return "\n".join([_BEGIN, *lines, _END, ""])


@lru_cache(maxsize=64)
def _head(public_key: bytes, namespace: str) -> bytes:
    """What stands before the 64 bytes of the signature itself."""
    inner = _string(_ALGORITHM) + struct.pack(">I", 64)
    strings = (_public_blob(public_key), namespace.encode(), b"", _HASH)
    size = struct.pack(">I", len(inner) + 64)
    return _MAGIC + struct.pack(">I", 1) + b"".join(map(_string, strings)) + size + inner


def _disarm(armored: str) -> bytes | None:
    """The bytes inside the armor, or None; any layout of lines passes here."""
    text = armored.strip()
    if len(armored) > _LONGEST or not (text.startswith(_BEGIN) and text.endswith(_END)):
        return None
    try:
        return base64.b64decode("".join(text[len(_BEGIN) : -len(_END)].split()), validate=True)
    except (binascii.Error, ValueError):
        return None


def _difference(blob: bytes, public_key: bytes, namespace: str) -> str:
    """Names the field of a signature that is not as expected."""
    if not blob.startswith(_MAGIC + struct.pack(">I", 1)):
        return "not an SSH signature of version 1"
    fields = _strings(blob[len(_MAGIC) + 4 :])
    if fields is None or len(fields) != 5:
        return "malformed signature"
    if fields[0] != _public_blob(public_key):
        return "signed by another key"
    if fields[1] != namespace.encode():
        return "signed for another namespace"
    if fields[3] != _HASH:
        return "signed with another hash than sha512"
    return "signature not in canonical form"


def _strings(data: bytes) -> list[bytes] | None:
    found = []
    while data:
        if len(data) < 4:
            return None
        size = int.from_bytes(data[:4], "big")
        if size > len(data) - 4:
            return None
        found.append(data[4 : 4 + size])
        data = data[4 + size :]
    return found
