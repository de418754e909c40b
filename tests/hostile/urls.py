"""URLs that are programs, options or files: refused before anything is contacted."""

import http.server
import threading
from collections.abc import Callable
from pathlib import Path

from hostile.place import Case, Place, case, line
from hostile.stranger import Stranger

URLS = {
    "ext::": ("ext::sh -c {payload}", "it names a program of git's to run"),
    "ext:: in capitals": ("EXT::sh -c {payload}", "it names a program of git's to run"),
    "fd::": ("fd::3", "it names a program of git's to run"),
    "a helper of one's own": ("payload::{root}", "it names a program of git's to run"),
    "ext:// ": ("ext://sh -c {payload}", "llmtrace does not speak 'ext'"),
    "ftp://": ("ftp://127.0.0.1/x", "llmtrace does not speak 'ftp'"),
    "gopher://": ("gopher://127.0.0.1:1/_x", "llmtrace does not speak 'gopher'"),
    "an ssh option as a host": ("ssh://-oProxyCommand={payload}/x", "its host is no name"),
    "an ssh option as a user": ("ssh://-oProxyCommand={payload}@127.0.0.1/x", "cannot be a remote"),
    "an ssh option, scp-like": ("-oProxyCommand={payload}:x", "no such option"),
    "an option as a path on a host": ("127.0.0.1:-oProxyCommand={payload}", "begins with '-'"),
    "a newline": ("https://127.0.0.1/x\n\tsshCommand={payload}", "it has control characters"),
    "a newline in escapes": ("https://127.0.0.1/x%0ahost=evil", "control characters"),
    "a carriage return": ("https://127.0.0.1/x\r", "it has control characters"),
    "terminal escapes": ("https://127.0.0.1/\x1b]0;x\x07\u202e", "it has control characters"),
    "a password": ("https://me:secret@127.0.0.1/x", "it has a password in it"),
    "a host with an @": ("https://a@b@127.0.0.1/x", "cannot be a remote"),
    "a port of other digits": ("https://127.0.0.1:\u0668\u0660/x", "cannot be a remote"),
    "a port too high": ("https://127.0.0.1:99999/x", "its port is no port"),
    "a file on a host": ("file://evil/x", "a file:// has no host"),
    "10,000 characters": ("https://127.0.0.1/" + "x" * 10_000, "at most 2048"),
    "nothing": ("", "no remote"),
}


def filled(place: Place, url: str) -> str:
    return url.format(payload=place.payload, root=place.root)


for _name, (_url, _why) in URLS.items():

    @case(f"a URL: {_name}", read=True)
    def _of_url(place: Place, url: str = _url, why: str = _why) -> Case:
        text = filled(place, url)
        is_option = text.startswith("-")
        status = 2 if is_option else 4
        lines = [line("fetch", text, status=status, says=why, never=("secret",))]
        if not is_option and text:  # else it is the name of a remote
            lines.append(line("remote", "add", "evil", text, status=4, says=why))
        return Case(lines)


OPTIONS = ("--upload-pack={payload}", "-u{payload}", "-cprotocol.ext.allow=always")
for _option in OPTIONS:

    @case(f"an option as a remote: {_option[:5]}", read=True)
    def _of_option(place: Place, option: str = _option) -> Case:
        text = filled(place, option)
        return Case(
            [
                line("fetch", text, status=2, says="no such option"),
                line("fetch", "--", text, status=4, says="no remote"),
            ]
        )


@case("a URL: bytes that are no text")
def _no_text(place: Place) -> Case:
    return Case([line("fetch", "https://127.0.0.1:1/%ff", status=4)])


# Redirects


def serve(place: Place, answer: Callable[[http.server.BaseHTTPRequestHandler], None]) -> str:
    """A server on loopback, closed when the case ends; gives its URL."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        do_POST = do_GET  # noqa: N815 - http.server names it so

        def log_message(self, *_: object) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()

    def close() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    place.closing.callback(close)
    return f"http://127.0.0.1:{server.server_port}"


def _redirect(name: str, target: str) -> None:
    @case(f"a redirect to {name}")
    def make(place: Place) -> Case:
        stranger = place.stranger()
        stranger.add(stranger.run())
        asked: list[str] = []

        def answer(request: http.server.BaseHTTPRequestHandler) -> None:
            asked.append(request.path)
            request.send_response(302)
            to = target.format(payload=place.payload, path=stranger.path)
            request.send_header("Location", to)
            request.end_headers()

        url = serve(place, answer)
        return Case([line("fetch", f"{url}/x.git", status=4, seconds=20)])


_redirect("a file", "file://{path}/info/refs")
_redirect("ext::", "ext::sh -c {payload}")
_redirect("ssh", "ssh://-oProxyCommand={payload}/x/info/refs?service=git-upload-pack")
_redirect("a service inside", "gopher://127.0.0.1:1/_x/info/refs")


@case("a redirect to itself, for ever")
def _circle(place: Place) -> Case:
    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(302)
        request.send_header("Location", request.path + "x")
        request.end_headers()

    return Case([line("fetch", f"{serve(place, answer)}/x.git", status=4, seconds=20)])


@case("a dumb server with alternates elsewhere")
def _dumb(place: Place) -> Case:
    """Its objects are said to be in a file, and at another server, which nobody may ask."""
    stranger = place.stranger()
    stranger.add(stranger.run())
    asked: list[str] = []

    def other(request: http.server.BaseHTTPRequestHandler) -> None:
        asked.append(request.path)
        request.send_error(404)

    secret = serve(place, other)
    path = stranger.path

    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        name = request.path.partition("?")[0].removeprefix("/x.git/")
        if name == "info/refs":
            data = f"{stranger.tip}\trefs/heads/{stranger.branch}\n".encode()
        elif name == "HEAD":
            data = f"ref: refs/heads/{stranger.branch}\n".encode()
        elif name == "objects/info/http-alternates":
            data = f"file://{path}/objects\n{secret}/objects\n".encode()
        else:
            request.send_error(404)
            return
        request.send_response(200)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data)

    def unasked() -> None:
        assert not asked, asked

    place.closing.callback(unasked)
    return Case([line("fetch", f"{serve(place, answer)}/x.git", status=4, seconds=20)])


@case("a dumb server of an honest chain")
def _dumb_but_honest(place: Place) -> Case:
    """Git gets it object by object, without its own checks: audit has all the work."""
    stranger = place.stranger()
    stranger.add(stranger.run())
    return Case(
        [
            line(
                *("fetch", f"{serve(place, dumb(stranger))}/x.git"),
                status=0,
                says="fetched",
                may=("home/.local/share/llmtrace/store.git/",),
            ),
            line("verify", stranger.tip, status=0, says="verified"),
        ]
    )


@case("a dumb server of a forged chain")
def _dumb_and_forged(place: Place) -> Case:
    stranger = place.stranger()
    record = stranger.run()
    entries = stranger.files(record)
    link = stranger.put("blob", b"../../../etc/passwd")
    entries += [("120000", "scores.json", link), ("100644", "..", link)]
    stranger.add(record, entries=entries)
    return Case([line("fetch", f"{serve(place, dumb(stranger))}/x.git", status=4, says="refused")])


def dumb(stranger: Stranger) -> Callable[[http.server.BaseHTTPRequestHandler], None]:
    """Serves a repository as files."""

    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        name = request.path.partition("?")[0].removeprefix("/x.git/")
        path = Path(stranger.path, name)
        if name == "info/refs":
            data = f"{stranger.tip}\trefs/heads/{stranger.branch}\n".encode()
        elif path.is_file() and ".." not in name:
            data = path.read_bytes()
        else:
            request.send_error(404)
            return
        request.send_response(200)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data)

    return answer
