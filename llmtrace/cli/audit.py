"""Audit: whole chains of the store, without a model."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click

from llmtrace.cli.frame import Session, command
from llmtrace.cli.output import plain
from llmtrace.errors import Misuse, Trouble

if TYPE_CHECKING:
    from llmtrace.cli.output import Bar
    from llmtrace.store.chain import Store
    from llmtrace.store.forks import Proof

SOUND, INVALID, FORKED = "sound", "invalid", "forked"
MOST = 100  # findings told of one chain


@dataclass(frozen=True)
class _Finding:
    commit: str
    part: str
    reason: str


@dataclass
class _Chain:
    """What an audit says of one chain."""

    node: str
    names: list[str]
    own: bool
    tip: str | None = None
    records: int = 0
    findings: list[_Finding] = field(default_factory=list)
    more: int = 0  # findings that are not told
    forks: list[int] = field(default_factory=list)  # seqs

    @property
    def verdict(self) -> str:
        return INVALID if self.findings else FORKED if self.forks else SOUND


@command()
@click.argument("nodes", nargs=-1, metavar="[NODE...]")
@click.option(
    "--proof", metavar="FILE", help="Check a proof of a fork instead; no store is needed."
)
def audit(session: Session, nodes: tuple[str, ...], proof: str | None) -> int:
    r"""Check whole chains: form, signatures, digests, order, forks

    NODE is the id of a node, the beginning of one, the name of a remote for
    the nodes expected there, or 'self'; without it, all chains of the store.
    Nothing is computed and no model is needed: 'llmtrace verify' runs records
    again.

    Prints one line a chain: sound, invalid with the first finding, or forked
    with the seq at which its key signed two records.

    \b
    Examples:
        llmtrace audit
        llmtrace audit self
        llmtrace audit --proof fork.json
    """
    from llmtrace.cli.nodes import named_nodes
    from llmtrace.cli.opening import open_store

    if proof is not None:
        if nodes:
            raise Misuse("--proof and NODE cannot be used together")
        return _check_proof(session, proof)
    store = open_store(session)
    proofs = _proofs(session, store)
    missing: tuple[str, ...] = ()
    if nodes:
        wanted = list(dict.fromkeys(one for word in nodes for one in named_nodes(store, word)))
    else:
        wanted = sorted({*store.nodes(), *proofs})
        missing = _look_around(session, store)
        if not wanted:
            hint = "make a chain with 'llmtrace run', or fetch one with 'llmtrace fetch'"
            raise Trouble(f"the store '{store.path}' holds no chain", *missing or (hint,))
    worst = 0
    with session.out.progress(None, "audit", "record") as bar:
        for node in wanted:
            chain = _audit(store, node, proofs, bar)
            _print(session, chain)
            session.out.totals[chain.verdict] = session.out.totals.get(chain.verdict, 0) + 1
            worst = max(worst, int(chain.verdict != SOUND))
    if missing:
        raise Trouble(missing[0], "fetch it from where it was pushed")
    return worst


def _audit(store: Store, node: str, proofs: dict[str, int], bar: Bar) -> _Chain:
    from llmtrace.store.remotes import Remotes
    from llmtrace.verify.audit import audit_chain
    from llmtrace.verify.caps import is_own

    names = Remotes.open(store.path).who(node)
    chain = _Chain(node, names, is_own(store, node), store.objects.tip(f"node/{node}"))
    chain.forks = sorted({proofs[node]} if node in proofs else ()) or _second(store, chain)
    if chain.tip is None:
        if not chain.forks:
            raise Trouble(f"no chain 'node/{node}'", "llmtrace fetch")
        return chain
    chain.records = _sound(store, node, chain.tip, bar)
    if chain.records:
        return chain
    for commit, found in audit_chain(store, f"node/{node}"):  # all that is wrong with it
        chain.records += 1
        room = MOST - len(chain.findings)
        chain.findings += [_Finding(commit, *finding) for finding in found[:room]]
        chain.more += len(found[room:])
    return chain


def _sound(store: Store, node: str, tip: str, bar: Bar) -> int:
    """Audits a chain on all cores: the number of its records, 0 if one has findings."""
    from llmtrace.verify.shares import audit_shared

    count = 0
    for _, found in audit_shared(store, None, tip, node):
        if found:
            return 0
        count += 1
        bar.update()
    return count


def _second(store: Store, chain: _Chain) -> list[int]:
    """The seq at which another branch of the store goes on otherwise with the same chain."""
    from llmtrace.verify.intake import FORKED as FORK
    from llmtrace.verify.intake import examine

    for branch in _strange(store):
        tip = store.objects.tip(branch)
        if chain.tip is None or tip is None or _node_at(store, tip) != chain.node:
            continue
        outcome = examine(store, chain.node, chain.tip, tip)
        if outcome.result == FORK and outcome.seq is not None:
            return [outcome.seq]
    return []


def _strange(store: Store) -> list[str]:
    """The branches that are not named for a node."""
    named = {f"node/{node}" for node in store.nodes()}
    return [branch for branch in store.objects.branches("") if branch not in named]


def _node_at(store: Store, tip: str) -> str | None:
    """The node whose chain leads to a commit; None if it is none."""
    try:
        return store.lineage.after(tip).node
    except Trouble:
        return None


def _look_around(session: Session, store: Store) -> tuple[str, ...]:
    """Warns of branches that are not audited; says what HEAD names in vain."""
    from llmtrace.cli.nodes import own_node

    for branch in _strange(store):
        tip = store.objects.tip(branch)
        node = _node_at(store, tip) if tip else None
        if node is None:
            session.out.warn(f"the branch '{branch}' is no chain, so it was not audited")
        elif node not in store.nodes():
            session.out.warn(
                f"the branch '{branch}' holds a chain, but not under its name 'node/{node}', "
                "so it was not audited"
            )
    own = own_node(store)
    if own is not None and own not in store.nodes():
        return (f"HEAD names 'node/{own}', which is not in the store",)
    return ()


def _proofs(session: Session, store: Store) -> dict[str, int]:
    """The seq of the fork that is proven against each node by what the store keeps."""
    from llmtrace.store import forks

    found = {}
    for node, proof in forks.listed(store):
        if isinstance(proof, str):
            session.out.warn(f"'{forks.REFS}{node}' proves nothing: {proof}")
        else:
            found[node] = proof.seq
    return found


def _check_proof(session: Session, path: str) -> int:
    """Judges a proof in a file; one that holds says that its node is forked."""
    proof = read_proof(path)
    if isinstance(proof, str):
        raise Trouble(f"'{path}' proves no fork: {proof}")
    chain = _Chain(proof.node, [], own=False, forks=[proof.seq])
    _print(session, chain)
    session.out.totals[FORKED] = 1
    return 1


def read_proof(path: str) -> Proof | str:
    """The proof in a file, or why it proves nothing; raises Trouble if it cannot be read."""
    from llmtrace.store import forks

    try:
        with Path(path).open("rb") as file:
            return forks.check(file.read(forks.LIMIT + 1))
    except OSError as error:
        raise Trouble(f"cannot read '{path}': {error.strerror}") from error


def _print(session: Session, chain: _Chain) -> None:
    out = session.out
    if out.json:
        fields = asdict(chain)
        node = fields.pop("node")
        out.object("audit", node=node, verdict=chain.verdict, **fields)
        return
    start = f"{chain.verdict} node/{chain.node}"
    lines = [f"{start} {one.commit} {one.part}: {one.reason}" for one in chain.findings]
    if chain.findings:
        for line in lines[1:]:
            out.detail(plain(line))
        if chain.more:
            out.detail(f"{start} and {chain.more} findings more")
        out.line(plain(lines[0]))
    elif chain.forks:
        out.line(f"{start} seq {chain.forks[0]}")
    else:
        who = "self" if chain.own else ",".join(chain.names) or "unknown"
        out.line(plain(f"{start} {chain.records} records {who}"))
