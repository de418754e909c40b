"""Init: make a store, its key and its first record."""

from __future__ import annotations

import click

from llmtrace.cli.frame import Session, command
from llmtrace.errors import Trouble


@command()
@click.option(
    "--key-until",
    type=click.IntRange(1),
    metavar="SEQ",
    help="Limit the first key: SEQ is the last record that it may sign.",
)
def init(session: Session, key_until: int | None) -> int:
    r"""Make a store with a node of one's own and print its id

    The store is a bare git repository, its first commit the identity of the
    node: a key made for it. 'llmtrace run' does the same on first use. Nothing
    happens to a store that has a node already.

    \b
    Examples:
        llmtrace init
        llmtrace init --store ./runs.git
    """
    from llmtrace.cli.nodes import own_node
    from llmtrace.store.chain import Store

    path, keys = session.settings.store, session.settings.config / "keys"
    is_store = key_until is not None and (path / "HEAD").is_file()
    if is_store and own_node(Store.open(path, keys)) is not None:
        hint = f"llmtrace key rotate --until {key_until}"
        raise Trouble(f"the store '{path}' has a node already", hint)
    store = Store.open(path, keys, create=True, until=key_until)
    if session.out.json:
        session.out.object("init", node=store.node, store=str(store.path))
    else:
        session.out.line(store.node)
    return 0
