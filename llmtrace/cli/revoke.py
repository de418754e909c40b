"""Revoke: take back records of one's own chain, by a record that says so."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from llmtrace.cli.frame import Session, command
from llmtrace.errors import Misuse, Trouble

if TYPE_CHECKING:
    from llmtrace.store.chain import Store
    from llmtrace.store.entry import Entry

FIXED = frozenset({"identity", "rotate", "revoke"})  # what the chain itself rests on


@command()
@click.argument("commits", nargs=-1, required=True, metavar="COMMIT...")
@click.option("--reason", default="", metavar="TEXT", help="Why; everybody can read it.")
def revoke(session: Session, commits: tuple[str, ...], reason: str) -> int:
    r"""Revoke records of one's own chain

    COMMIT is any git revision of the store. Appends a record that names them;
    nothing is deleted, and it cannot be undone. 'llmtrace log', 'show' and
    'verify' tell of it. Prints the commit id of the new record.

    \b
    Examples:
        llmtrace revoke HEAD
        llmtrace revoke --reason "wrong model" 3f0c1e9 77ab02d
    """
    import time

    from llmtrace.cli.opening import open_store
    from llmtrace.store.schema import REASON, REVOKED

    if len(reason) > REASON:
        raise Misuse(f"--reason has {len(reason)} characters, at most {REASON} are recorded")
    store = open_store(session, create=False)
    entries = {entry.id: entry for entry in map(store.read, commits)}
    if len(entries) > REVOKED:
        raise Misuse(f"{len(entries)} records, at most {REVOKED} are revoked at once")
    _refuse(store, list(entries.values()))
    records = sorted((e.record.seq, e.record.digest) for e in entries.values())
    section = {
        "records": [{"seq": seq, "record": digest} for seq, digest in records],
        "reason": reason,
    }
    commit = store.append("revoke", {"revoke": section}, {}, int(time.time()))
    if session.out.json:
        session.out.object("revoke", commit=commit, node=store.node, **section)
    else:
        session.out.line(commit)
    return 0


def _refuse(store: Store, entries: list[Entry]) -> None:
    """Refuses what the chain would not be sound with, before anything is signed."""
    from llmtrace.verify.audit import audit_commit
    from llmtrace.verify.revocation import Revocations

    revocations = Revocations(store)
    wanted = {entry.id: entry for entry in entries}
    for entry in entries:
        record, short = entry.record, entry.id[:8]
        if record.node != store.node:
            raise Trouble(f"'{short}' is of another chain: only its own node can revoke it")
        if record.kind in FIXED:
            raise Trouble(f"'{short}' is of kind '{record.kind}', which cannot be revoked")
        for finding in audit_commit(store, entry):
            raise Trouble(f"'{short}' is no sound record: {finding.part}: {finding.reason}")
        if before := revocations.of(entry):
            raise Trouble(f"'{short}' is revoked already, by '{before.commit[:8]}'")
    lowest = min(entry.record.seq for entry in entries)
    for entry in store.log(f"node/{store.node}"):
        wanted.pop(entry.id, None)
        if not wanted or entry.record.seq <= lowest:
            break
    for one in wanted:
        raise Trouble(f"'{one[:8]}' is not in one's own chain")
