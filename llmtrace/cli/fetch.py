"""Fetch: chains of other nodes from a remote, audited before they enter the store."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from llmtrace.cli.caps import Size
from llmtrace.cli.frame import Session, command
from llmtrace.cli.nodes import SELF, called
from llmtrace.cli.output import plain
from llmtrace.errors import Misuse

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llmtrace.cli.output import Bar
    from llmtrace.store.chain import Store
    from llmtrace.store.remotes import Remotes
    from llmtrace.verify.intake import Outcome

_LOCAL = ("/", "./", "../")
_STEP = re.compile(r"(?:remote: )?(\w+ \w+):\s+(\d+)%")


@command()
@click.argument("remote", required=False, metavar="[REMOTE]")
@click.argument("nodes", nargs=-1, metavar="[NODE...]")
@click.option("--all", "every", is_flag=True, help="Fetch every chain that the remote offers.")
@click.option(
    "--max-bytes",
    type=Size(),
    default=2 << 30,
    metavar="SIZE",
    help="Transfer at most SIZE, such as 500M (default: 2G).",
)
@click.option(
    "--max-memory",
    type=Size(),
    default=192 << 20,
    metavar="SIZE",
    help="Let git use at most SIZE of memory (default: 192M).",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=3600.0,
    metavar="SECONDS",
    help="Give up a transfer after SECONDS (default: 3600).",
)
def fetch(
    session: Session,
    remote: str | None,
    nodes: tuple[str, ...],
    every: bool,
    max_bytes: int,
    max_memory: int,
    timeout: float,
) -> int:
    r"""Fetch chains of other nodes and let in what is sound

    REMOTE is a name given by 'llmtrace remote add', a URL or a path; without
    it 'origin', or the only remote. NODE is the id of a node or 'self'; without
    it, the nodes that are expected at the remote, or all that it offers if
    none is named.

    Nothing enters the store before it was audited. Prints one line a chain:
    fetched, up to date, behind, refused or forked. A forked chain, of which
    the remote has another continuation than the store, stays as it is here;
    the proof is kept.

    \b
    Examples:
        llmtrace fetch
        llmtrace fetch origin --all
        llmtrace fetch ./their-store.git
    """
    from llmtrace.cli.opening import open_carrier, open_store
    from llmtrace.store.maintenance import is_due, maintain
    from llmtrace.store.quarantine import CAPS
    from llmtrace.store.remotes import Remotes
    from llmtrace.store.schema import NODE_ID
    from llmtrace.verify.intake import BAD, intake

    if remote is not None and (remote == SELF or NODE_ID.fullmatch(remote)):
        nodes, remote = (remote, *nodes), None
    if every and nodes:
        raise Misuse("--all and NODE cannot be used together")
    caps = replace(CAPS, seconds=timeout, file_bytes=max_bytes, memory_bytes=max_memory)
    store = open_store(session)
    remotes = Remotes.open(store.path)
    url, expected = _resolve(remotes, remote)
    wanted = None if every else _named(store, nodes, expected) or expected or None
    meter = _Bar(session)
    status = came = 0
    for outcome in intake(store, open_carrier(session), url, wanted, caps=caps, meter=meter):
        came += outcome.records
        _print(session, store, remotes, outcome)
        word = outcome.result.replace(" ", "_")
        session.out.totals[word] = session.out.totals.get(word, 0) + 1
        if outcome.result in BAD:
            status = 4
    meter.close()
    if came and is_due(store.path):  # each fetch leaves a pack
        maintain(store.path, session.settings.network)
    return status


def _resolve(remotes: Remotes, name: str | None) -> tuple[str, tuple[str, ...]]:
    """The URL of a remote and the nodes that are expected there."""
    from llmtrace.store.remotes import check_url

    known = remotes.names()
    if name is None:
        if "origin" not in known and len(known) != 1:
            hint = "llmtrace remote add origin URL"
            raise Misuse("no remote 'origin': say where to fetch from", hint)
        name = "origin" if "origin" in known else known[0]
    if name not in known and (":" in name or name.startswith(_LOCAL)):
        return check_url(name).text, ()
    found = remotes.get(name)
    return found.url, found.nodes


def _named(store: Store, nodes: tuple[str, ...], expected: Iterable[str]) -> list[str]:
    """Ids of nodes, of which the beginning is enough for one that is known here."""
    from llmtrace.store.remotes import check_node

    known = {*store.nodes(), *expected} if nodes else ()
    words = [word.removeprefix("node/") for word in nodes]
    return [store.node if word == SELF else check_node(word, known) for word in words]


class _Bar:
    """A progress bar that is there when there is something to show."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._bar: Bar | None = None

    def transfer(self, line: str) -> None:
        step = _STEP.match(line)
        if step:
            self._open().set_postfix_str(plain(f"{step[1].lower()} {step[2]}%"))

    def audited(self) -> None:
        self._open().update()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _open(self) -> Bar:
        if self._bar is None:
            self._bar = self._session.out.progress(None, "fetch", "record")
        return self._bar


def _print(session: Session, store: Store, remotes: Remotes, outcome: Outcome) -> None:
    from llmtrace.verify.caps import is_own

    own = is_own(store, outcome.node)
    if session.out.json:
        session.out.object(
            "fetch",
            node=outcome.node,
            names=remotes.who(outcome.node),
            own=own,
            result=outcome.result.replace(" ", "_"),
            records=outcome.records,
            tip=outcome.tip,
            commit=outcome.commit,
            part=outcome.part,
            reason=outcome.reason,
            seq=outcome.seq,
        )
    else:
        who = called(store, outcome.node)
        session.out.line(plain(f"{outcome.result} node/{outcome.node}{_rest(outcome, who)}"))
    if outcome.seq is not None:
        _warn(session, outcome, own)


def _rest(outcome: Outcome, who: str) -> str:
    """What a line tells after the chain."""
    if outcome.reason is not None:
        return f" {outcome.commit or '-'} {outcome.part}: {outcome.reason}"
    if outcome.seq is not None:
        return f" seq {outcome.seq} {who}"
    if outcome.records:
        return f" {outcome.records} records {who}"
    return f" {who}"


def _warn(session: Session, outcome: Outcome, own: bool) -> None:
    proof = f"refs/llmtrace/fork/{outcome.node}"
    if own:
        session.out.warn(
            f"your own key has signed two records for seq {outcome.seq}: two copies of it are in "
            f"use, or somebody else has it; the proof '{proof}' convicts you; see "
            "'man llmtrace-fetch'"
        )
    else:
        session.out.warn(
            f"whoever holds the key of node/{outcome.node} has signed two records for seq "
            f"{outcome.seq}; the proof is kept as '{proof}'"
        )
