"""Real git servers on loopback, for the tests of push and fetch: a path, git, http and ssh.

    with serve("http", folder) as server:
        run(["git", "clone", server.url("store.git")], env=os.environ | server.environment)

A server offers every bare repository of a folder, to read and to write. `make_bare` makes one.
"""

import contextlib
import getpass
import gzip
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest

KINDS = ("path", "git", "http", "ssh")
SSHD = shutil.which("sshd", path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin")))
SECONDS = 10.0  # for a server to begin


@dataclass
class Server:
    """Where a folder of repositories is served."""

    kind: str
    folder: Path
    base: str  # of every URL
    environment: dict[str, str] = field(default_factory=dict)  # which a client of it needs
    requests: list[str] = field(default_factory=list)  # http alone: "GET /store.git/info/refs…"

    def url(self, name: str = "store.git") -> str:
        return f"{self.base}/{name}"

    def path(self, name: str = "store.git") -> Path:
        return self.folder / name


def make_bare(path: Path, **settings: str) -> Path:
    """An empty bare repository; settings such as ``receive__denyDeletes="true"``."""
    git("init", "-q", "--bare", "-b", "main", path)
    for name, value in {"http__receivepack": "true", **settings}.items():
        git("--git-dir", path, "config", name.replace("__", "."), value)
    return path


def git(*arguments: str | Path, **environment: str) -> str:
    """Plain git, as another user has it: what it prints, without the newline at the end."""
    done = subprocess.run(
        ["git", "-c", "safe.directory=*", *map(str, arguments)],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{arguments}: {done.stderr}"
    return done.stdout.rstrip("\n")


def refs(path: Path) -> dict[str, str]:
    """All refs of a repository with their objects."""
    lines = git("--git-dir", path, "for-each-ref", "--format=%(refname) %(objectname)")
    return dict(line.split(" ") for line in lines.splitlines())  # type: ignore[misc]


@contextlib.contextmanager
def serve(kind: str, folder: Path) -> Iterator[Server]:
    """Serves the repositories of a folder until the block ends; skips what is not installed."""
    if kind == "path":
        yield Server("path", folder, str(folder))
        return
    maker = {"git": _git_daemon, "http": _smart_http, "ssh": _sshd}[kind]
    with maker(folder) as server:
        yield server


@contextlib.contextmanager
def _git_daemon(folder: Path) -> Iterator[Server]:
    if not (Path(git("--exec-path")) / "git-daemon").exists():
        pytest.skip("git daemon is not installed")
    port = free_port()
    command = ["git", "daemon", "--listen=127.0.0.1", f"--port={port}", "--reuseaddr"]
    command += ["--export-all", "--enable=receive-pack", f"--base-path={folder}", str(folder)]
    with _running(command, port):
        yield Server("git", folder, f"git://127.0.0.1:{port}")


@contextlib.contextmanager
def _smart_http(folder: Path) -> Iterator[Server]:
    server = Server("http", folder, "")

    class Handler(_Handler):
        offers = server

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        server.base = f"http://127.0.0.1:{listening.server_address[1]}"
        thread = threading.Thread(target=listening.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            listening.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    """A bridge to git's own CGI program."""

    offers: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._bridge()

    def do_POST(self) -> None:
        self._bridge()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        return

    def _bridge(self) -> None:
        self.offers.requests.append(f"{self.command} {self.path}")
        path, _, query = self.path.partition("?")
        body = self._body()
        environment = {
            **{name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_PROJECT_ROOT": str(self.offers.folder),
            "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": unquote(path),
            "QUERY_STRING": query,
            "REQUEST_METHOD": self.command,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
            "REMOTE_ADDR": "127.0.0.1",
        }
        done = subprocess.run(
            ["git", "-c", "safe.directory=*", "http-backend"],
            input=body,
            capture_output=True,
            env=environment,
            check=False,
        )
        head, _, answer = done.stdout.partition(b"\r\n\r\n")
        fields = [line.partition(": ") for line in head.decode().split("\r\n") if line]
        status = next((value for name, _, value in fields if name == "Status"), "200 OK")
        self.send_response(int(status.split()[0]))
        for name, _, value in fields:
            if name != "Status":
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            chunks = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            body = b"".join(chunks)
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body


@contextlib.contextmanager
def _sshd(folder: Path) -> Iterator[Server]:
    if SSHD is None or shutil.which("ssh") is None:
        pytest.skip("openssh-server is not installed")
    if os.getuid() == 0:  # it asks for this folder
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    home = folder / ".ssh-server"
    home.mkdir(mode=0o700)
    for name in ("host", "user"):
        make = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(home / name)]
        subprocess.run(make, check=True, stdout=subprocess.DEVNULL)
    port = free_port()
    (home / "config").write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {home}/host\nPidFile none\n"
        f"AuthorizedKeysFile {home}/user.pub\nStrictModes no\nUsePAM no\n"
        "PasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        "PermitRootLogin prohibit-password\nAcceptEnv GIT_PROTOCOL\nLogLevel ERROR\n"
    )
    key = (home / "host.pub").read_text().split()[:2]
    (home / "known_hosts").write_text(f"[127.0.0.1]:{port} {' '.join(key)}\n")
    options = f"-F /dev/null -i {home}/user -o IdentitiesOnly=yes -o BatchMode=yes"
    options += f" -o UserKnownHostsFile={home}/known_hosts -o StrictHostKeyChecking=yes"
    with _running([SSHD, "-D", "-e", "-f", str(home / "config")], port):
        base = f"ssh://{getpass.getuser()}@127.0.0.1:{port}{folder}"
        yield Server("ssh", folder, base, {"GIT_SSH_COMMAND": f"ssh {options}"})


def free_port() -> int:
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        port: int = asked.getsockname()[1]
        return port


@contextlib.contextmanager
def _running(command: list[str], port: int) -> Iterator[None]:
    """A server in a process group of its own, from when it answers until the block ends."""
    started = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        end = time.monotonic() + SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert started.stderr is not None
                assert started.poll() is None, started.stderr.read().decode()
                assert time.monotonic() < end, f"{command[0]} does not answer"
                time.sleep(0.02)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
        started.communicate()
