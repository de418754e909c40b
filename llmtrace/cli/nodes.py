"""Nodes on the command line: which ones a word names, and what a node is called here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmtrace.errors import Trouble

if TYPE_CHECKING:
    from llmtrace.store.chain import Store

SELF = "self"


def own_node(store: Store) -> str | None:
    """The node that HEAD names, whether its chain is here or not; None without one."""
    try:
        return store.node
    except Trouble:
        return None


def named_nodes(store: Store, word: str) -> list[str]:
    """The nodes that a word names: `self`, an id or the beginning of one, a remote's name.

    Raises Trouble if there is none.
    """
    from llmtrace.store.remotes import Remotes, check_node

    if word == SELF:
        return [store.node]
    remotes = Remotes.open(store.path)
    if word in remotes.names():
        nodes = remotes.get(word).nodes
        if not nodes:
            hint = f"llmtrace remote set {word} --node ID"
            raise Trouble(f"no node is expected at the remote '{word}'", hint)
        return list(nodes)
    return [check_node(word.removeprefix("node/"), store.nodes())]


def called(store: Store, node: str) -> str:
    """What a node is called here: `self`, the names of the remotes that expect it, or `unknown`.

    `self` needs the key: a store that somebody handed over names his own node.
    """
    from llmtrace.store.remotes import Remotes
    from llmtrace.verify.caps import is_own

    if is_own(store, node):
        return SELF
    return ",".join(Remotes.open(store.path).who(node)) or "unknown"
