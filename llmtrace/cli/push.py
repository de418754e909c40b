"""Push: chains to a remote, after saying what becomes public and looking for secrets in it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from llmtrace.cli.frame import Session, command
from llmtrace.cli.output import plain
from llmtrace.errors import Misuse, Trouble

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from llmtrace.store.carrier import Carrier
    from llmtrace.store.chain import Store
    from llmtrace.store.publish import Chain
    from llmtrace.store.remotes import Remote, Remotes
    from llmtrace.verify.exposure import Exposure

ORIGIN = "origin"
_SHOWN = 10  # secrets of which the places are named
_STEP = re.compile(r"(?:remote: )?(\w+ \w+):\s+(\d+)%")


@dataclass(frozen=True)
class _Allowed:
    publish: bool
    secrets: bool


@command()
@click.argument("remote", required=False, metavar="[REMOTE]")
@click.argument("nodes", nargs=-1, metavar="[NODE...]")
@click.option("--all", "every", is_flag=True, help="Push every chain that is here.")
@click.option("--publish", is_flag=True, help="Allow the first push to this remote.")
@click.option("--allow-secrets", is_flag=True, help="Push what looks like a secret, too.")
def push(
    session: Session,
    remote: str | None,
    nodes: tuple[str, ...],
    every: bool,
    publish: bool,
    allow_secrets: bool,
) -> int:
    r"""Push one's own chain to a remote

    REMOTE is a name given by 'llmtrace remote add'; without it 'origin', or
    the only one. NODE is another chain that is here: the id of its
    node or the first 8 characters, or the name of a remote where it is
    expected. Proofs of forks go along.

    What is pushed is public for ever. The first push to a remote lists what
    becomes public, and is refused without --publish. A push of texts that
    look like keys or passwords is refused without --allow-secrets.

    Prints one line a chain: pushed, up to date, ahead (the remote has
    more) or forked.

    \b
    Examples:
        llmtrace push origin --publish
        llmtrace push
        llmtrace push origin --all
    """
    from llmtrace.cli.opening import open_carrier
    from llmtrace.store.publish import survey
    from llmtrace.store.remotes import Remotes

    if every and nodes:
        raise Misuse("--all and NODE cannot be used together")
    store, own = _open(session)
    remotes = Remotes.open(store.path)
    to = remotes.get(_chosen(remotes, remote))
    wanted = store.nodes() if every else _named(store, nodes) or [store.node]
    carrier = open_carrier(session)
    chains, proofs = survey(store, carrier, to, wanted, own)
    targets = {chain.ref: chain.commits for chain in chains if chain.commits}
    if targets or proofs:
        found = _look(session, store, [c for commits in targets.values() for c in commits])
        _ask(session, to, found, _Allowed(publish, allow_secrets))
        remotes.publish(to.name)
        targets |= {ref: (oid,) for ref, oid in proofs.items()}
        _send(session, store, carrier, to, (targets, found.sizes))
    return _rest(session, to, chains)


def _open(session: Session) -> tuple[Store, str | None]:
    """The store, and the chain in it that is one's own: its key is here.

    Opened for writing if so, since it must end with what the key signed last.
    """
    from llmtrace.cli.nodes import own_node
    from llmtrace.cli.opening import open_store
    from llmtrace.store.keys import Keys

    store = open_store(session)
    own = own_node(store)
    if own is None or not Keys.exists(session.settings.config / "keys", own):
        return store, None
    return open_store(session, create=True), own


def _chosen(remotes: Remotes, name: str | None) -> str:
    known = remotes.names()
    if name is not None:
        return name
    if ORIGIN not in known and len(known) != 1:
        hint = f"the remotes are {', '.join(known)}" if known else "llmtrace remote add origin URL"
        raise Misuse("no remote 'origin': say where to push", hint)
    return ORIGIN if ORIGIN in known else known[0]


def _named(store: Store, words: tuple[str, ...]) -> list[str]:
    from llmtrace.cli.nodes import named_nodes

    known = {*store.nodes()}
    named = [node for word in words for node in named_nodes(store, word)]
    for node in named:
        if node not in known:
            raise Trouble(f"no chain of the node '{node}' is here", "see 'llmtrace audit'")
    return list(dict.fromkeys(named))


def _look(session: Session, store: Store, commits: Sequence[str]) -> Exposure:
    from llmtrace.verify.exposure import expose

    with session.out.progress(len(commits), "look", "record") as bar:
        return expose(store, commits, bar.update)


def _ask(session: Session, to: Remote, found: Exposure, allowed: _Allowed) -> None:
    """Says what becomes public at the first push; raises what the user has to allow."""
    again = f"llmtrace push {to.name}"
    if not to.published:
        for line in _listed(found, to.name):
            session.out.note(plain(line))
    if found.secrets and not allowed.secrets:
        for secret in found.secrets[:_SHOWN]:
            session.out.note(f"secret? {secret.commit} {secret.part}: {secret.kind}")
    if not to.published and not allowed.publish:
        why = f"nothing was pushed to '{to.name}' yet, and what is pushed is public for ever"
        raise Misuse(why, f"{again} --publish")
    if found.secrets and not allowed.secrets:
        first, count = found.secrets[0], len({secret.commit for secret in found.secrets})
        others = f", and {count - 1} more records" if count > 1 else ""
        why = f"'{first.part}' of record '{first.commit[:12]}' looks like it holds a secret"
        more = "" if to.published else " --publish"
        raise Trouble(f"{why} ({first.kind}){others}", f"{again}{more} --allow-secrets")


def _listed(found: Exposure, name: str) -> list[str]:
    """What becomes public, in lines that are not escaped."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(found.kinds.items()))
    counts = [
        _some(found.prompts, "prompt"),
        _some(found.outputs, "output"),
        _some(found.bytes, "byte"),
    ]
    lines = [
        f"public at '{name}' for ever: {_some(found.records, 'record')} ({kinds or 'none'})",
        ", ".join(counts),
    ]
    if found.first:
        lines.append(f"prompts, the newest {len(found.first)}:")
        lines += [f"    {line}" for line in found.first]
    if found.unread:
        lines.append(f"{_some(found.unread, 'text')} as tokens alone, not scanned for secrets")
    return lines


def _some(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def _send(
    session: Session,
    store: Store,
    carrier: Carrier,
    to: Remote,
    what: tuple[Mapping[str, Sequence[str]], Mapping[str, int]],
) -> None:
    """Pushes, and says of each chain or proof that it is there."""
    from llmtrace.store.forks import REFS
    from llmtrace.store.publish import send

    targets, sizes = what
    with session.out.progress(sum(map(len, targets.values())), "push", "record") as bar:

        def progress(count: int, line: str) -> None:
            bar.update(count)
            if step := _STEP.match(line):
                bar.set_postfix_str(plain(f"{step[1].lower()} {step[2]}%"))

        for ref in send(store, carrier, to, targets, sizes, progress):
            tip, count = targets[ref][-1], len(targets[ref])
            if ref.startswith(REFS):
                node = ref.removeprefix(REFS)
                _print(session, to, ("proof", node, "pushed", tip, 1), f"fork/{node}")
            else:
                node = ref.rpartition("/")[2]
                line = f"node/{node} {_some(count, 'record')}"
                _print(session, to, ("chain", node, "pushed", tip, count), line)


def _rest(session: Session, to: Remote, chains: Sequence[Chain]) -> int:
    """Says what became of the chains of which nothing was pushed; raises Trouble for forks."""
    words = {"same": "up to date", "ahead": "ahead", "forked": "forked"}
    for chain in chains:
        if word := words.get(chain.state):
            line = f"node/{chain.node}"
            _print(session, to, ("chain", chain.node, word, chain.tip, 0), line)
    for chain in chains:
        if chain.state == "forked":
            after = f" after '{chain.fork[:12]}'" if chain.fork else ""
            why = (
                f"the chain 'node/{chain.node}' goes on in two ways{after}, here and at '{to.name}'"
            )
            raise Trouble(why, f"llmtrace fetch {to.name} {chain.node}")
    return 0


def _print(session: Session, to: Remote, facts: tuple[str, str, str, str, int], line: str) -> None:
    what, node, result, tip, count = facts
    word = result.replace(" ", "_")
    if session.out.json:
        session.out.object(
            "push", remote=to.name, what=what, node=node, result=word, records=count, tip=tip
        )
        session.out.totals[word] = session.out.totals.get(word, 0) + 1
    else:
        session.out.line(f"{result} {line}")
