"""Hooks that a git server runs: refuse a push before anything of it is kept."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

from llmtrace.cli.frame import Group, Session, command
from llmtrace.cli.output import complain, plain
from llmtrace.errors import Trouble

if TYPE_CHECKING:
    from collections.abc import Set

    from llmtrace.store.chain import Store

_LINES = 10_000  # of one push: 5,000 chains, and the proofs of as many
_LONGEST = 1024  # characters of a line
_LINE = re.compile(r"([0-9a-f]{40}) ([0-9a-f]{40}) (\S+)")
_NONE = "0" * 40

hook = Group("hook", help="Refuse bad chains on a git server", no_args_is_help=True)


@command("pre-receive", group=hook)
@click.option(
    "--only",
    multiple=True,
    metavar="NODE",
    help="Take chains and proofs of this node alone (can be repeated).",
)
@click.option(
    "--max-records",
    type=click.IntRange(1),
    default=100_000,
    metavar="COUNT",
    help="Take at most COUNT records a push (default: 100000).",
)
def pre_receive(session: Session, only: tuple[str, ...], max_records: int) -> int:
    r"""Refuse a push that is not sound chains going on

    For the file hooks/pre-receive of a bare repository: git gives it one line
    a branch, and keeps nothing of the push if one is refused. Takes new
    chains and records after those that are there, all audited, and proofs of
    forks that hold. Refuses all else: other branches, deletions, rewrites.

    \b
    Examples:
        exec llmtrace hook pre-receive
    """
    from llmtrace.store.remotes import check_node

    nodes = {check_node(node) for node in only}
    judge = _Judge(_open(session), nodes, max_records)
    status = 0
    for old, new, ref in _pushed():
        reason = judge.refuse(old, new, ref)
        if session.out.json:
            session.out.object("hook", ref=ref, accepted=reason is None, reason=reason)
        if reason is not None:
            complain(f"refused {ref}: {reason}")
            status = 4
    return status


def _open(session: Session) -> Store:
    """The repository that is pushed to, and what waits to get into it."""
    from pathlib import Path

    from llmtrace.store.chain import Store
    from llmtrace.store.objects import Objects

    push = session.settings.push
    if "GIT_DIR" not in push:
        raise Trouble("no 'GIT_DIR': this is for git to run", "see 'man llmtrace-hook'")
    folder = Path(push["GIT_DIR"])
    extra = [Path(push["GIT_OBJECT_DIRECTORY"])] if "GIT_OBJECT_DIRECTORY" in push else []
    store = Store(Objects.open(folder, extra), folder / "llmtrace-keys")  # there are none
    store.lineage.keep_in(session.settings.cache / "places")
    return store


def _pushed() -> list[tuple[str, str, str]]:
    """What is pushed: old and new id, and the name, of each ref."""
    from llmtrace.cli.input import read_lines

    found = []
    for line in read_lines("-"):
        match = _LINE.fullmatch(line) if len(line) <= _LONGEST else None
        if match is None:
            raise Trouble(f"not a line as git gives them: '{plain(line[:80])}'")
        found.append((match[1], match[2], match[3]))
        if len(found) > _LINES:
            raise Trouble(f"more than {_LINES} refs in one push")
    return found


class _Judge:
    """Says of each pushed ref why it is refused, None if it is not."""

    def __init__(self, store: Store, only: Set[str], most: int) -> None:
        self._store = store
        self._only = only
        self._most = most
        self._count = 0

    def refuse(self, old: str, new: str, ref: str) -> str | None:
        from llmtrace.store.forks import REFS
        from llmtrace.store.quarantine import CHAINS
        from llmtrace.store.schema import NODE_ID

        node = ref.rpartition("/")[2]
        prefix = ref[: -len(node)] if node else ref
        if prefix not in {CHAINS, REFS} or not NODE_ID.fullmatch(node):
            return f"neither a chain, {CHAINS}ID, nor a proof, {REFS}ID"
        if self._only and node not in self._only:
            return "not a node that may write here"
        if new == _NONE:
            return "deletes it: chains only grow"
        if prefix == CHAINS:
            return self._chain(old, new, node)
        return self._proof(old, new, node)

    def _chain(self, old: str, new: str, node: str) -> str | None:
        from llmtrace.verify.intake import FETCHED, FORKED, examine

        try:
            known = None if old == _NONE else old
            outcome = examine(self._store, node, known, new, told=self._counted)
        except Trouble as error:
            return str(error)
        if outcome.result == FETCHED:
            return None
        if outcome.result == FORKED:
            return f"rewrites the chain: another record {outcome.seq} is here"
        if outcome.reason is None:
            return "rewrites the chain: it has fewer records than are here"
        return f"{outcome.commit} {outcome.part}: {outcome.reason}"

    def _proof(self, old: str, new: str, node: str) -> str | None:
        from llmtrace.store import forks

        if old != _NONE:
            return "a proof against this node is here already"
        proof = forks.read(self._store, new, node)
        return proof if isinstance(proof, str) else None

    def _counted(self, _commit: str) -> None:
        self._count += 1
        if self._count > self._most:
            raise Trouble(f"more than {self._most} records in one push")
