"""Remotes: names that this store gives to other repositories, and the nodes expected there.

Kept in ``remotes.json`` in the store, and not in its git configuration: nothing that stands
there can become a setting of git. What is read from it is checked as if it were typed.
"""

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from llmtrace.errors import Trouble
from llmtrace.store import canonical, durable
from llmtrace.store.schema import NODE_ID, printable

FILE = "remotes.json"
_FORMAT = 1
_LIMIT = 1 << 20  # bytes of the file
_LONGEST = 2048  # characters of a URL
_SHORTEST = 8  # characters of a part of a node's id
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_USER = re.compile(r"[A-Za-z0-9._~+][A-Za-z0-9._~+-]*")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?\.?|\[[0-9A-Fa-f:.]+\]")
_SCHEMES = ("https", "http", "ssh", "git", "file")
_SCP = re.compile(r"(?:([^@/:]+)@)?(\[[^\]/]+\]|[^:/]+):(.+)")
_FORMS = "a URL is https://, http://, ssh://, git://, file://, host:path or a path"


class Url(NamedTuple):
    """Where a remote is, as git may be told."""

    text: str
    scheme: str  # "path" for a folder
    host: str  # "" for a folder


@dataclass(frozen=True)
class Remote:
    """One remote of a store."""

    name: str
    url: str
    nodes: tuple[str, ...] = ()  # expected there, sorted
    published: bool = False  # whether its user allowed the first push


class Remotes:
    """All remotes of a store; made by ``Remotes.open``. Other processes see each change at once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @classmethod
    def open(cls, store_path: Path) -> "Remotes":
        """The remotes of the store in this folder; none if it has no file of them."""
        return cls(store_path)

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._read())

    def get(self, name: str) -> Remote:
        """The remote of this name; raises Trouble if there is none."""
        found = self._read()
        if name not in found:
            known = f"the remotes are {', '.join(sorted(found))}" if found else ""
            hint = known or f"name it with 'llmtrace remote add {printable(name)} URL'"
            raise Trouble(f"no remote '{name}'", hint)
        return found[name]

    def who(self, node: str) -> list[str]:
        """Names of the remotes that expect a node: [] for a node that nobody named."""
        return [name for name, remote in sorted(self._read().items()) if node in remote.nodes]

    def add(self, name: str, url: str, nodes: Iterable[str] = ()) -> Remote:
        """Gives a repository a name; raises Trouble if the name is taken or the URL refused."""
        made = Remote(check_name(name), check_url(url).text, _checked(nodes))

        def change(remotes: dict[str, Remote]) -> None:
            if name in remotes:
                hint = f"change it with 'llmtrace remote set {name} --url URL'"
                raise Trouble(f"there is a remote '{name}' already", hint)
            remotes[name] = made

        self._change(change)
        return made

    def remove(self, name: str) -> Remote:
        """Forgets a remote, and the nodes expected there; raises Trouble if there is none."""
        gone = self.get(name)
        self._change(lambda remotes: remotes.pop(name, None))
        return gone

    def set(
        self, name: str, *, url: str | None = None, nodes: Iterable[str] | None = None
    ) -> Remote:
        """Gives a remote another URL, to which nothing was published yet, or other nodes."""
        made = self.get(name)
        if url is not None and (text := check_url(url).text) != made.url:
            made = replace(made, url=text, published=False)
        if nodes is not None:
            made = replace(made, nodes=_checked(nodes))
        self._change(lambda remotes: remotes.update({name: made}))
        return made

    def published(self, name: str) -> bool:
        """Says whether the first push to a remote was allowed."""
        return self.get(name).published

    def publish(self, name: str) -> None:
        """Remembers that it was."""
        made = replace(self.get(name), published=True)
        self._change(lambda remotes: remotes.update({name: made}))

    def _change(self, change: Callable[[dict[str, Remote]], object]) -> None:
        with durable.lock(self._folder / "remotes.lock"):
            remotes = self._read()
            change(remotes)
            listed = {
                name: {"url": one.url, "nodes": list(one.nodes), "published": one.published}
                for name, one in remotes.items()
            }
            data = canonical.encode({"format": _FORMAT, "remotes": listed})
            durable.write_file(self._folder / FILE, data)

    def _read(self) -> dict[str, Remote]:
        path = self._folder / FILE
        with durable.troubled("read", path):
            try:
                with path.open("rb") as file:
                    data = file.read(_LIMIT + 1)
            except FileNotFoundError:
                return {}
        try:
            if len(data) > _LIMIT:
                raise ValueError(f"larger than {_LIMIT} bytes")  # noqa: TRY301
            return _remotes(canonical.decode(data))
        except (ValueError, Trouble) as error:
            raise Trouble(f"'{path}' is no list of remotes: {error}") from None


def check_name(name: str) -> str:
    """The name, if a remote can have it; raises Trouble."""
    if not _NAME.fullmatch(name):
        hint = (
            "a name is at most 64 letters, digits, '.', '_' and '-', and begins with none of these"
        )
        raise Trouble(f"no name for a remote: '{printable(name)}'", hint)
    return name


def check_node(text: str, known: Iterable[str] = ()) -> str:
    """The id of a node, from the id or the beginning of one that is known; raises Trouble."""
    if NODE_ID.fullmatch(text):
        return text
    found = [node for node in known if len(text) >= _SHORTEST and node.startswith(text)]
    if len(found) == 1:
        return found[0]
    if found:
        raise Trouble(f"more than one node begins with '{text}'", "give the whole id")
    hint = f"an id has 52 characters; the first {_SHORTEST} do for a node whose chain is here"
    raise Trouble(f"no node '{printable(text)}'", hint)


def check_url(text: str) -> Url:
    """The URL of a remote that its user typed; raises Trouble for what git must not be given.

    A path is made absolute. Nothing is looked up and nothing is contacted.
    """
    if not 0 < len(text) <= _LONGEST:
        raise _refused(text, f"it has {len(text)} characters, at most {_LONGEST} are allowed")
    if not text.isprintable():
        raise _refused(text, "it has control characters")
    first = text.partition("/")[0]
    if text.startswith("-"):
        raise _refused(text, "it begins with '-'")
    if "::" in first and not first.startswith("[") and "@[" not in first:
        raise _refused(text, "it names a program of git's to run", _FORMS)
    scheme, separator, rest = text.partition("://")
    if separator and re.fullmatch(r"[A-Za-z0-9+.-]+", scheme):
        return _with_scheme(text, scheme.lower(), rest)
    scp = _SCP.fullmatch(text)
    if scp and ":" in first:
        user, host, path = scp.groups()
        _check_place(text, user, host, "")
        if path.startswith("-"):
            raise _refused(text, "its path begins with '-'")
        return Url(text, "ssh", host)
    if ":" in first:
        raise _refused(text, "it has no host or no path", _FORMS)
    return Url(str(Path(os.path.abspath(text))), "path", "")  # noqa: PTH100 (".." goes, links stay)


def _with_scheme(text: str, scheme: str, rest: str) -> Url:
    if scheme not in _SCHEMES:
        raise _refused(text, f"llmtrace does not speak '{printable(scheme)}'", _FORMS)
    place, slash, path = rest.partition("/")
    if not slash or not path:
        raise _refused(text, "it has no path")
    if re.search(r"[\s?#]", text) or not unquote(path, errors="replace").isprintable():
        raise _refused(text, "its path has spaces, '?', '#' or control characters")
    if scheme == "file":
        if place:
            raise _refused(text, "a file:// has no host", "write file:///path")
        return Url(f"file:///{path}", "file", "")
    user, at, host_port = place.rpartition("@")
    host, _, port = (
        host_port.rpartition(":") if re.search(r":[0-9]*$", host_port) else (host_port, "", "")
    )
    if ":" in user:
        hint = "store it with a credential helper of git: see 'git help credentials'"
        raise _refused(f"{scheme}://...@{host_port}/...", "it has a password in it", hint)
    _check_place(text, user if at else None, host, port)
    return Url(f"{scheme}://{place}/{path}", scheme, host)


def _check_place(text: str, user: str | None, host: str, port: str) -> None:
    if user is not None and not _USER.fullmatch(user):
        raise _refused(text, "its user has other characters than letters, digits and '._~+-'")
    if not _HOST.fullmatch(host):
        raise _refused(text, "its host is no name and no address")
    if port and not 0 < int(port) < 1 << 16:
        raise _refused(text, "its port is no port")


def _refused(text: str, why: str, *hints: str) -> Trouble:
    return Trouble(f"'{printable(text)}' cannot be a remote: {why}", *hints)


def _checked(nodes: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({check_node(node) for node in nodes}))


def _remotes(value: object) -> dict[str, Remote]:
    """The remotes in the file; raises ValueError or Trouble for anything but what we write."""
    if not isinstance(value, dict) or set(value) != {"format", "remotes"}:
        raise ValueError("not exactly format and remotes")
    if value["format"] != _FORMAT or not isinstance(value["remotes"], dict):
        raise ValueError(f"its format is not {_FORMAT}")
    return {name: _remote(name, one) for name, one in value["remotes"].items()}


def _remote(name: str, one: object) -> Remote:
    check_name(name)
    if not isinstance(one, dict) or set(one) != {"url", "nodes", "published"}:
        raise ValueError(f"'{name}' does not hold exactly url, nodes, published")
    url, nodes, published = one["url"], one["nodes"], one["published"]
    if not isinstance(url, str) or check_url(url).text != url:
        raise ValueError(f"'{name}' has no whole URL")
    if not isinstance(nodes, list) or not all(isinstance(node, str) for node in nodes):
        raise ValueError(f"'{name}' has no list of nodes")
    if type(published) is not bool:
        raise ValueError(f"'{name}' does not say whether it is published")
    return Remote(name, url, _checked(nodes), published)
