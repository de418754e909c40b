"""Servers that never answer, never end, or lie."""

import contextlib
import hashlib
import os
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator

from hostile.place import STORE, Case, Place, case, line
from hostile.stranger import Stranger

Talk = Callable[[socket.socket], None]
PAINT = "\x1b[2J\x1b]0;x\x07\x9b31m\u202e\u2028"


def listen(place: Place, talk: Talk) -> str:
    """A TCP server on loopback, closed when the case ends; gives its address."""
    server = socket.create_server(("127.0.0.1", 0))
    open_: list[socket.socket] = []

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection = server.accept()[0]
                open_.append(connection)
                threading.Thread(target=converse, args=(connection,), daemon=True).start()

    def converse(connection: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError), connection:
            talk(connection)

    def close() -> None:
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)
        server.close()
        for connection in open_:
            connection.close()

    threading.Thread(target=serve, daemon=True).start()
    place.closing.callback(close)
    return f"127.0.0.1:{server.getsockname()[1]}"


# Git's own protocol, version 2


def packet(data: bytes | str) -> bytes:
    data = data.encode() if isinstance(data, str) else data
    return f"{len(data) + 4:04x}".encode() + data


FLUSH, DELIMITER = b"0000", b"0001"


def requests(connection: socket.socket) -> Iterator[list[bytes]]:
    """What the client says, up to each flush; the first packet, which has none, by itself."""
    file = connection.makefile("rb")
    said: list[bytes] = []
    first = True
    while header := file.read(4):
        size = int(header, 16)
        data = file.read(size - 4) if size > 4 else b""
        if size > 1:
            said.append(data)
        if size == 0 or first:
            yield said
            said, first = [], False


def git_server(
    place: Place,
    refs: Iterable[tuple[str, str | bytes]],
    pack: Callable[[], Iterable[bytes]],
    *,
    capabilities: tuple[str, ...] = (),
    told: bytes = b"",
    sections: bytes = b"",
) -> str:
    """Serves these refs and this pack, whatever is asked for; gives its URL."""

    def talk(connection: socket.socket) -> None:
        asked = requests(connection)
        next(asked)
        start = ("version 2\n", "ls-refs\n", "fetch=shallow\n", "object-format=sha1\n")
        connection.sendall(b"".join(map(packet, (*start, *capabilities))) + FLUSH)
        for said in asked:
            if not said:
                return
            if said[0].startswith(b"command=ls-refs"):
                for oid, name in refs:
                    name = name.encode() if isinstance(name, str) else name
                    connection.sendall(packet(oid.encode() + b" " + name + b"\n"))
                connection.sendall(FLUSH)
                continue
            assert said[0].startswith(b"command=fetch"), said
            ready = b"".join(map(packet, ("acknowledgments\n", "NAK\n", "ready\n"))) + DELIMITER
            connection.sendall(b"" if b"done\n" in said else ready)
            connection.sendall(sections + packet("packfile\n"))
            if told:
                connection.sendall(packet(b"\x02" + told))
            for data in pack():
                for at in range(0, len(data), 60_000):
                    connection.sendall(packet(b"\x01" + data[at : at + 60_000]))
            connection.sendall(FLUSH)

    return f"git://{listen(place, talk)}/x.git"


def packed(stranger: Stranger) -> bytes:
    """All objects of a chain as a pack without deltas."""
    kinds = {b"commit": 1, b"tree": 2, b"blob": 3}
    whole = b""
    paths = sorted(stranger.path.glob("objects/??/*"))
    for path in paths:
        header, _, data = zlib.decompress(path.read_bytes()).partition(b"\0")
        kind, size = kinds[header.split()[0]], len(data)
        first, size = kind << 4 | size & 15, size >> 4
        sizes = []
        while size:
            sizes.append(first | 128)
            first, size = size & 127, size >> 7
        whole += bytes([*sizes, first]) + zlib.compress(data)
    whole = b"PACK" + struct.pack(">II", 2, len(paths)) + whole
    return whole + hashlib.sha1(whole).digest()


def honest(place: Place, name: str = "stranger", seed: int = 1) -> Stranger:
    stranger = place.stranger(name, seed)
    stranger.add(stranger.run())
    return stranger


def ref(stranger: Stranger) -> str:
    return f"refs/heads/{stranger.branch}"


FETCH = ("fetch", "--timeout", "2")
LATE = "took more than 2 seconds"


def fetched(
    url: str, *says: str, status: int | tuple[int, ...] = 4, may: tuple[str, ...] = ()
) -> Case:
    return Case([line(*FETCH, url, status=status, says=says, may=may, seconds=15)])


@case("an honest server of this corpus")
def _honest(place: Place) -> Case:
    """Else it would be no wonder that the others are refused."""
    stranger = honest(place)
    url = git_server(place, [(stranger.tip, ref(stranger))], lambda: [packed(stranger)])
    return fetched(url, "fetched", status=0, may=(f"home/{STORE}",))


def _silent(connection: socket.socket) -> None:
    connection.recv(1 << 16)
    time.sleep(60)


for _scheme in ("git", "http"):

    @case(f"a {_scheme} server that never answers")
    def _never(place: Place, scheme: str = _scheme) -> Case:
        return fetched(f"{scheme}://{listen(place, _silent)}/x.git", LATE)


def _loris(connection: socket.socket) -> None:
    connection.recv(1 << 16)
    for byte in b"HTTP/1.1 200 OK\r\nX-Wait: " + b"x" * 1000:
        connection.sendall(bytes([byte]))
        time.sleep(0.1)


@case("a http server that answers byte by byte")
def _slow_http(place: Place) -> Case:
    return fetched(f"http://{listen(place, _loris)}/x.git", LATE)


@case("a git server that answers byte by byte")
def _slow_git(place: Place) -> Case:
    def talk(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        while True:
            for byte in packet("version 2\n") + packet("agent=" + "x" * 500):
                connection.sendall(bytes([byte]))
                time.sleep(0.1)

    return fetched(f"git://{listen(place, talk)}/x.git", LATE)


@case("a git server of garbage")
def _garbage(place: Place) -> Case:
    def talk(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        connection.sendall(os.urandom(1 << 16))

    return fetched(f"git://{listen(place, talk)}/x.git")


@case("a http server of garbage")
def _http_garbage(place: Place) -> Case:
    def talk(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        kind = b"application/x-git-upload-pack-advertisement"
        start = b"HTTP/1.1 200 OK\r\nContent-Type: " + kind + b"\r\n\r\n"
        connection.sendall(start + os.urandom(1 << 16))

    return fetched(f"http://{listen(place, talk)}/x.git")


@case("a server that lists refs for ever")
def _endless_refs(place: Place) -> Case:
    def talk(connection: socket.socket) -> None:
        asked = requests(connection)
        next(asked)
        connection.sendall(packet("version 2\n") + packet("ls-refs\n") + FLUSH)
        next(asked)
        while True:
            lines = (packet(f"{n:040x} refs/heads/node/{n:052}\n") for n in range(10_000))
            connection.sendall(b"".join(lines))

    url = f"git://{listen(place, talk)}/x.git"
    return Case([line("fetch", "--timeout", "20", url, status=4, seconds=40)])


def endless() -> Iterator[bytes]:
    """A pack of 2^32 - 1 objects, the first a blob of 2^60 bytes that cannot be compressed."""
    yield b"PACK" + struct.pack(">II", 2, 0xFFFFFFFF) + bytes([0xBF] + [0xFF] * 7 + [0x0F])
    yield b"\x78\x01"
    while True:
        for _ in range(16):
            yield b"\x00\xff\xff\x00\x00" + os.urandom(0xFFFF)


@case("a server whose pack never ends")
def _endless_pack(place: Place) -> Case:
    stranger = honest(place)
    url = git_server(place, [(stranger.tip, ref(stranger))], endless)
    words = ("fetch", "--timeout", "20", "--max-bytes", "16M", url)
    return Case([line(*words, status=4, says="refused", seconds=40)])


@case("a server whose pack has four billion objects")
def _many(place: Place) -> Case:
    def pack() -> Iterator[bytes]:
        yield b"PACK" + struct.pack(">II", 2, 0xFFFFFFFF)
        one = bytes([0x30]) + zlib.compress(b"")
        while True:
            yield one * 5000

    stranger = honest(place)
    url = git_server(place, [(stranger.tip, ref(stranger))], pack)
    return Case([line("fetch", "--timeout", "10", url, status=4, seconds=30)])


@case("a server that says one tip and delivers another")
def _liar(place: Place) -> Case:
    stranger, other = honest(place), honest(place, "other", 2)
    url = git_server(place, [(stranger.tip, ref(stranger))], lambda: [packed(other)])
    return fetched(url, "refused", "transfer: ")


@case("a server that delivers half a pack")
def _half(place: Place) -> Case:
    stranger = honest(place)
    url = git_server(place, [(stranger.tip, ref(stranger))], lambda: [packed(stranger)[:700]])
    return fetched(url, "refused", "transfer: ")


@case("a server that delivers a pack with one bit changed")
def _bit(place: Place) -> Case:
    stranger = honest(place)
    data = bytearray(packed(stranger))
    data[len(data) // 2] ^= 4
    data[-20:] = hashlib.sha1(data[:-20]).digest()
    url = git_server(place, [(stranger.tip, ref(stranger))], lambda: [bytes(data)])
    return fetched(url, "refused", "transfer: ")


for _kind in ("blob", "tree"):

    @case(f"a branch that is a {_kind}")
    def _no_commit(place: Place, kind: str = _kind) -> Case:
        stranger = honest(place)
        oid = stranger.put(kind, b"")
        url = git_server(place, [(oid, ref(stranger))], lambda: [packed(stranger)])
        return fetched(url, "refused")


@case("a server that shows one tip and then another")
def _changing(place: Place) -> Case:
    """What comes counts, not what was listed: it is the same chain, and sound."""
    stranger = honest(place)
    early = stranger.tip
    stranger.add(stranger.run())
    times: list[int] = []

    class Refs(list):  # type: ignore[type-arg]
        def __iter__(self) -> Iterator[tuple[str, str]]:
            times.append(1)
            return iter([(early if len(times) == 1 else stranger.tip, ref(stranger))])

    refs = Refs()
    url = git_server(place, refs, lambda: [packed(stranger)])
    return fetched(url, "fetched", status=0, may=(f"home/{STORE}",))


@case("a server that makes the chain shallow")
def _made_shallow(place: Place) -> Case:
    stranger = honest(place)
    sections = packet("shallow-info\n") + packet(f"shallow {stranger.tip}") + DELIMITER
    url = git_server(
        place, [(stranger.tip, ref(stranger))], lambda: [packed(stranger)], sections=sections
    )
    return fetched(url)


@case("a server that offers a pack elsewhere")
def _elsewhere(place: Place) -> Case:
    """Nobody asked for URLs of packs; git follows them all the same, where it may speak http."""
    stranger = honest(place)
    asked: list[bytes] = []

    def other(connection: socket.socket) -> None:
        asked.append(connection.recv(1 << 16))

    uris = [f"http://{listen(place, other)}/p", f"file://{place.root}/stranger.git/config"]
    lines = (packet(f"{n:040x} {uri}\n") for n, uri in enumerate(uris))
    sections = packet("packfile-uris\n") + b"".join(lines) + DELIMITER
    url = git_server(
        place,
        [(stranger.tip, ref(stranger))],
        lambda: [packed(stranger)],
        capabilities=("bundle-uri\n",),
        sections=sections,
    )

    def unasked() -> None:
        assert not asked, asked

    place.closing.callback(unasked)
    words = (*FETCH, url)
    return Case([line(*words, status=4, programs=("git-http-fetch",), seconds=15)])


# What others say, on a terminal


@case("a server that paints: its error")
def _painted_error(place: Place) -> Case:
    def talk(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        connection.sendall(packet(f"ERR {PAINT}gone\n"))

    return fetched(f"git://{listen(place, talk)}/x.git", "gone")


@case("a server that paints: what it says beside the pack")
def _painted_progress(place: Place) -> Case:
    stranger = honest(place)
    told = f"{PAINT}\rerror: {PAINT}\nfatal: {PAINT}\n".encode() * 100
    url = git_server(place, [(stranger.tip, ref(stranger))], lambda: [b"PACK"], told=told[:60_000])
    return fetched(url, "refused")


@case("a server that paints: names of branches")
def _painted_names(place: Place) -> Case:
    stranger = honest(place)
    names = [f"refs/heads/node/{PAINT}", f"refs/heads/{PAINT}", "refs/heads/node/../../x", "HEAD"]
    refs = [(stranger.tip, name) for name in names]
    url = git_server(place, refs, lambda: [packed(stranger)])
    return fetched(url, status=(0, 4))


@case("a http server that paints: its error")
def _painted_http(place: Place) -> Case:
    def talk(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        text = f"{PAINT} refused by the teapot".encode()
        head = f"HTTP/1.1 418 {PAINT}\r\nContent-Type: text/plain; charset=utf-8\r\n"
        connection.sendall(head.encode() + f"Content-Length: {len(text)}\r\n\r\n".encode() + text)

    return fetched(f"http://{listen(place, talk)}/x.git")
