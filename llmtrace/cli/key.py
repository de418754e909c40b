"""Keys: who signs one's own chain, and what others need to check chains with plain git."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from llmtrace.cli.frame import Group, Session, command
from llmtrace.cli.output import plain

if TYPE_CHECKING:
    from llmtrace.store.chain import Store

key = Group("key", help="Show, rotate and export keys", no_args_is_help=True)


@command(group=key)
def show(session: Session) -> int:
    """Print one's own node, its key and the digest of the next

    The seq is that of the newest record; 'until' is the last one that the key
    in force may sign, where that was limited.
    """
    from llmtrace.cli.opening import open_store

    _print(session, _facts(open_store(session)))
    return 0


@command(group=key)
@click.option(
    "--until",
    type=click.IntRange(1),
    metavar="SEQ",
    help="Limit the new key: SEQ is the last record that it may sign.",
)
def rotate(session: Session, until: int | None) -> int:
    r"""Put the promised key in force and promise another

    Appends a record signed with the old key, which signs nothing after it.
    Prints the commit id.

    \b
    Examples:
        llmtrace key rotate
        llmtrace key rotate --until 100000
    """
    import time

    from llmtrace.cli.opening import open_store
    from llmtrace.errors import Misuse

    store = open_store(session)
    newest = _facts(store)["seq"]
    if until is not None and until <= newest + 1:
        raise Misuse(f"--until is the seq of a later record, the rotation itself is {newest + 1}")
    commit = store.rotate(int(time.time()), until)
    if session.out.json:
        _print(session, _facts(store))
    else:
        session.out.line(commit)
    return 0


@command(group=key)
@click.argument("nodes", nargs=-1, metavar="[NODE...]")
def export(session: Session, nodes: tuple[str, ...]) -> int:
    r"""Print allowed_signers lines, for plain git to check with

    NODE is an id, the beginning of one, a remote's name or 'self'; without
    it, all chains of the store. Prints a line for each key that a chain ever
    had. git knows no seq: it takes each key for all commits of the node, also
    for those before a rotation or after it; 'llmtrace audit' does not.

    \b
    Examples:
        llmtrace key export > allowed_signers
        git config gpg.ssh.allowedSignersFile "$PWD/allowed_signers"
    """
    from llmtrace.cli.nodes import named_nodes
    from llmtrace.cli.opening import open_store
    from llmtrace.errors import Trouble
    from llmtrace.store.record import address
    from llmtrace.store.sshsig import allowed_line, public_line

    store = open_store(session)
    words = [one for word in nodes for one in named_nodes(store, word)] if nodes else store.nodes()
    if not words:
        raise Trouble(f"the store '{store.path}' holds no chain", "llmtrace init")
    for node in dict.fromkeys(words):
        for one in store.lineage.keys(store.read(f"node/{node}").id):
            if session.out.json:
                fields = {"public_key": public_line(one.key, f"node/{node}")}
                seqs = {"first": one.first, "last": one.last}
                session.out.object("signer", node=node, principal=address(node), **fields, **seqs)
            else:
                session.out.line(allowed_line(address(node), one.key))
    return 0


@command("list", group=key)
def list_keys(session: Session) -> int:
    """List the nodes whose keys are on this machine

    One line a node: its id, the seq that its key signed last, and 'self' for
    that of this store.
    """
    from llmtrace.cli.nodes import own_node
    from llmtrace.store.chain import Store
    from llmtrace.store.keys import Keys
    from llmtrace.store.schema import NODE_ID

    folder, path = session.settings.config / "keys", session.settings.store
    own = own_node(Store.open(path, folder)) if (path / "HEAD").is_file() else None
    found = sorted(one.name for one in folder.iterdir()) if folder.is_dir() else []
    for node in found:
        if not NODE_ID.fullmatch(node) or not Keys.exists(folder, node):
            continue
        keys = Keys(folder, node)
        seq, until = keys.last.seq, keys.until
        if session.out.json:
            blank: dict[str, Any] = {"public_key": None, "next": None}
            session.out.object("key", node=node, own=node == own, seq=seq, until=until, **blank)
        else:
            session.out.line(f"node/{node} {seq}{' self' if node == own else ''}")
    return 0


def _facts(store: Store) -> dict[str, Any]:
    """What the chain says of its node: nothing here needs the private key."""
    from llmtrace.store.sshsig import public_line

    node = store.node
    place = store.lineage.after(store.read(f"node/{node}").id)
    return {
        "node": node,
        "own": True,
        "seq": place.seq,
        "until": place.until,
        "public_key": public_line(place.key, f"node/{node}"),
        "next": place.promised,
    }


def _print(session: Session, facts: dict[str, Any]) -> None:
    if session.out.json:
        session.out.object("key", **facts)
        return
    lines = {
        "node": facts["node"],
        "key": facts["public_key"],
        "next": facts["next"],
        "seq": str(facts["seq"]),
    }
    if facts["until"] is not None:
        lines["until"] = str(facts["until"])
    for name, text in lines.items():
        session.out.line(plain(f"{name:5}  {text}"))
