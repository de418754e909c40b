"""Init: make a store, its key and its first record."""

from __future__ import annotations

from llmtrace.cli.frame import Session, command


@command()
def init(session: Session) -> int:
    r"""Make a store with a node of one's own and print its id

    The store is a bare git repository, its first commit the identity of the
    node: a key made for it. 'llmtrace run' does the same on first use. Nothing
    happens to a store that has a node already.

    \b
    Examples:
        llmtrace init
        llmtrace init --store ./runs.git
    """
    from llmtrace.cli.opening import open_store

    store = open_store(session, create=True)
    if session.out.json:
        session.out.object("init", node=store.node, store=str(store.path))
    else:
        session.out.line(store.node)
    return 0
