"""Names of remotes: which there are, giving and taking them, and the nodes expected there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from llmtrace.cli.frame import Group, Session, command
from llmtrace.cli.output import plain
from llmtrace.errors import Misuse

if TYPE_CHECKING:
    from llmtrace.store.chain import Store
    from llmtrace.store.remotes import Remote, Remotes

remote = Group(
    "remote",
    help="List, name and forget remotes, and the nodes expected there",
    no_args_is_help=True,
)
_NODE = "Expect this node there (can be repeated)."


@command("list", group=remote)
def list_remotes(session: Session) -> int:
    """List remotes, their URLs and the nodes expected there

    One line a remote: its name, a tab, its URL, a tab, the ids of the nodes
    with commas between them, or -.
    """
    _, remotes = _open(session)
    for name in remotes.names():
        _print(session, remotes.get(name))
    return 0


@command(group=remote)
@click.argument("name")
@click.argument("url")
@click.option("--node", "nodes", multiple=True, metavar="ID", help=_NODE)
def add(session: Session, name: str, url: str, nodes: tuple[str, ...]) -> int:
    r"""Give another repository a name

    URL is https://, http://, ssh://, git://, file://, host:path or a path.
    Nothing is contacted. ID is that of a node, as its owner told you; the
    first 8 characters do for a node whose chain is here. Records of nodes
    that nobody named are shown as unknown.

    \b
    Examples:
        llmtrace remote add origin https://example.org/me/runs.git
        llmtrace remote add alice alice.example.org:runs.git --node ID
    """
    from llmtrace.store.remotes import check_node

    store, remotes = _open(session)
    known = store.nodes()
    _print(session, remotes.add(name, url, [check_node(node, known) for node in nodes]))
    return 0


@command("set", group=remote)
@click.argument("name")
@click.option("--url", metavar="URL", help="Where it is now; the next push there is the first.")
@click.option("--node", "nodes", multiple=True, metavar="ID", help=_NODE)
@click.option(
    "--forget", multiple=True, metavar="ID", help="Expect this node no more (can be repeated)."
)
def set_remote(
    session: Session, name: str, url: str | None, nodes: tuple[str, ...], forget: tuple[str, ...]
) -> int:
    """Change the URL of a remote, or the nodes expected there"""
    from llmtrace.store.remotes import check_node

    if url is None and not nodes and not forget:
        raise Misuse("nothing to change", "give --url, --node or --forget")
    store, remotes = _open(session)
    expected = {*remotes.get(name).nodes}
    gone = {check_node(node, expected) for node in forget}
    new = {check_node(node, store.nodes()) for node in nodes}
    _print(session, remotes.set(name, url=url, nodes=expected - gone | new))
    return 0


@command(group=remote)
@click.argument("name")
def remove(session: Session, name: str) -> int:
    """Forget a remote; the chains that came from it stay"""
    _, remotes = _open(session)
    _print(session, remotes.remove(name))
    return 0


def _open(session: Session) -> tuple[Store, Remotes]:
    from llmtrace.cli.opening import open_store
    from llmtrace.store.remotes import Remotes

    store = open_store(session)
    return store, Remotes.open(store.path)


def _print(session: Session, one: Remote) -> None:
    if session.out.json:
        session.out.object(
            "remote", name=one.name, url=one.url, nodes=[*one.nodes], published=one.published
        )
    else:
        nodes = ",".join(one.nodes) or "-"
        session.out.line(plain(f"{one.name}\t{one.url}\t{nodes}", keep="\t"))
