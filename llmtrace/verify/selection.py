"""Which records a range or a node means: ids alone, since a chain may be long."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmtrace.errors import Trouble

if TYPE_CHECKING:
    from llmtrace.store.chain import Store


def span(store: Store, text: str) -> list[str]:
    """Ids of the commits in B and not in A of ``A..B``, oldest first; HEAD where one is absent.

    Raises Trouble for an unknown revision and for a range without commits.
    """
    since, _, until = text.partition("..")
    start, end = store.read(since or "HEAD").id, store.read(until or "HEAD").id
    ids: list[str] = []
    for entry in store.log(end):
        if entry.id == start:
            break
        ids.append(entry.id)
    else:  # A stands later in the chain, on a fork of it, or in another one
        older = {entry.id for entry in store.log(start)}
        ids = ids[: next((i for i, one in enumerate(ids) if one in older), len(ids))]
    if not ids:
        raise Trouble(f"no records in '{text}'", "the older one comes first: 'HEAD~5..HEAD'")
    return ids[::-1]


def chain(store: Store, node: str) -> list[str]:
    """Ids of all commits of a node's chain, oldest first; raises Trouble if it is not here."""
    tip = store.objects.tip(f"node/{node}")
    if tip is None:
        raise Trouble(f"no chain of node '{node}'", "llmtrace fetch")
    return [entry.id for entry in store.log(tip)][::-1]
