"""Signatures: byte for byte those of the real ssh-keygen, and accepted by it."""

import base64
import shutil
import subprocess

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st

from llmtrace.store import sshsig

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = KEY.public_key().public_bytes_raw()
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key().public_bytes_raw()
DATA = b"tree 0\n\nrun: tiny\n"

needs_ssh_keygen = pytest.mark.skipif(
    not shutil.which("ssh-keygen"), reason="no ssh-keygen on this machine"
)


@pytest.fixture
def key_file(tmp_path):
    path = tmp_path / "key"
    path.write_bytes(KEY.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    path.chmod(0o600)
    return path


@needs_ssh_keygen
@pytest.mark.parametrize("namespace", ["git", "in-toto"])
def test_same_bytes_as_ssh_keygen(key_file, namespace):
    command = ["ssh-keygen", "-Y", "sign", "-q", "-n", namespace, "-f", key_file]
    theirs = subprocess.run(command, input=DATA, capture_output=True, check=True)
    assert sshsig.sign(DATA, KEY, namespace) == theirs.stdout.decode()


@needs_ssh_keygen
def test_ssh_keygen_accepts_ours_for_this_data_and_namespace_only(tmp_path):
    (tmp_path / "allowed").write_text(sshsig.allowed_line("me@here", PUBLIC) + "\n")
    (tmp_path / "sig").write_text(sshsig.sign(DATA, KEY))
    command = ["ssh-keygen", "-Y", "verify", "-f", "allowed", "-I", "me@here", "-s", "sig"]

    def verify(data, namespace):
        args = [*command, "-n", namespace]
        return subprocess.run(args, input=data, cwd=tmp_path, capture_output=True, check=False)

    good = verify(DATA, "git")
    assert (good.returncode, good.stdout[:45]) == (
        0,
        b'Good "git" signature for me@here with ED25519',
    )
    assert verify(DATA + b" ", "git").returncode != 0
    assert verify(DATA, "file").returncode != 0


@needs_ssh_keygen
def test_public_line_is_that_of_ssh_keygen(key_file):
    theirs = subprocess.run(["ssh-keygen", "-y", "-f", key_file], capture_output=True, check=True)
    assert sshsig.public_line(PUBLIC, "x").split()[:2] == theirs.stdout.decode().split()[:2]


def test_check_names_what_is_wrong():
    armored = sshsig.sign(DATA, KEY)
    assert sshsig.check(DATA, armored, PUBLIC) is None
    assert sshsig.check(DATA + b".", armored, PUBLIC) == "bad signature"
    assert sshsig.check(DATA, armored, OTHER) == "signed by another key"
    assert sshsig.check(DATA, armored, PUBLIC, "file") == "signed for another namespace"
    assert sshsig.check(DATA, "", PUBLIC) == "not an SSH signature"
    assert sshsig.check(DATA, "x" * 100_000, PUBLIC) == "not an SSH signature"
    crlf = armored.replace("\n", "\r\n")
    assert sshsig.check(DATA, crlf, PUBLIC) == "signature not in canonical form"


def test_every_changed_byte_of_a_signature_is_refused():
    armored = sshsig.sign(DATA, KEY)
    for place in range(len(armored)):
        changed = armored[:place] + chr(ord(armored[place]) ^ 1) + armored[place + 1 :]
        assert sshsig.check(DATA, changed, PUBLIC), f"byte {place}"


def _armored(data):
    text = base64.b64encode(b"SSHSIG\0\0\0\1" + data).decode()
    return f"-----BEGIN SSH SIGNATURE-----\n{text}\n-----END SSH SIGNATURE-----\n"


@given(st.one_of(st.text(), st.binary().map(_armored)))
def test_any_text_is_refused_without_an_exception(text):
    assert sshsig.check(DATA, text, PUBLIC)
