"""Log: the records of a chain, one line each."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

import click

from llmtrace.cli.frame import Session, command
from llmtrace.cli.output import plain
from llmtrace.errors import Misuse, Trouble

if TYPE_CHECKING:
    from collections.abc import Iterator, Set

    from llmtrace.store.chain import Store
    from llmtrace.store.entry import Entry
    from llmtrace.verify.revocation import Revocations

NONE = "-"  # in the place of what a record does not have, so that columns stay in place
FACTS = (
    *("seq", "kind", "node", "time", "model", "checksum", "prompt_tokens", "output_tokens"),
    *("problem", "revoked"),
)
NAME = 40  # characters of a model's name


@command()
@click.argument("revision", metavar="[REVISION]", default="HEAD")
@click.option(
    "-n", "--max-count", type=click.IntRange(1), metavar="COUNT", help="List at most COUNT records."
)
@click.option(
    "--kind",
    multiple=True,
    metavar="KIND",
    help="List records of this kind (default: run; can be repeated).",
)
@click.option("--all", "every", is_flag=True, help="List records of every kind.")
def log(
    session: Session, revision: str, max_count: int | None, kind: tuple[str, ...], every: bool
) -> int:
    r"""List records, newest first

    REVISION is any git revision of the store, such as node/ID for the chain
    of another node; A..B lists what is in B and not in A. The default is one's
    own chain. Prints one line a record: commit id, seq, kind, model, first
    digits of the checksum, time, prompt+output tokens.

    Lists runs. A record that cannot be read is listed as malformed, since it
    could be one; one that its author took back ends in 'revoked'.

    \b
    Examples:
        llmtrace log
        llmtrace log -n 3 | llmtrace verify -
        llmtrace log --kind identity
    """
    from llmtrace.cli.opening import open_store
    from llmtrace.store.schema import KINDS

    if every and kind:
        raise Misuse("--all and --kind cannot be used together")
    for name in kind:
        if name not in KINDS:
            raise Misuse(f"no kind '{name}'", "the kinds are " + ", ".join(sorted(KINDS)))
    wanted = KINDS if every else {*kind} or {"run"}
    for commit, facts in islice(_listed(open_store(session), revision, wanted), max_count):
        if session.out.json:
            session.out.object("record", commit=commit, **facts)
        else:
            session.out.line(_line(commit, facts))
    return 0


def _listed(store: Store, revision: str, wanted: Set[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    from llmtrace.verify.revocation import Revocations

    revocations = Revocations(store)
    for entry in store.log(revision):
        facts = _facts(entry, revocations)
        if facts["kind"] is None or facts["kind"] in wanted:
            yield entry.id, facts


def _facts(entry: Entry, revocations: Revocations) -> dict[str, Any]:
    """What a line tells; None for what the record does not have or cannot be read."""
    from llmtrace.verify.reading import Run

    facts: dict[str, Any] = dict.fromkeys(FACTS)
    try:
        record = entry.record
        facts |= {"seq": record.seq, "kind": record.kind, "node": record.node, "time": record.time}
        if revoked := revocations.of(entry):
            facts["revoked"] = revoked._asdict()
        if record.kind == "run":
            run = Run.of(entry)
            facts["model"] = {"name": run.model_name, "id": run.claim.model}
            facts["checksum"] = record.checksum
            facts["prompt_tokens"] = len(run.claim.request.prompt)
            facts["output_tokens"] = len(run.claim.output)
    except Trouble as error:
        facts["problem"] = str(error)
    return facts


def _line(commit: str, facts: dict[str, Any]) -> str:
    from llmtrace.cli.records import utc

    if facts["problem"] is not None:
        seq = NONE if facts["seq"] is None else facts["seq"]
        return f"{commit} {seq:>5} malformed {plain(facts['problem'])}"
    start = f"{commit} {facts['seq']:>5} {facts['kind']}"
    end = "" if facts["revoked"] is None else " revoked"
    if facts["model"] is None:
        return f"{start} {NONE} {NONE} {utc(facts['time'])} {NONE}{end}"
    name = "_".join(plain(facts["model"]["name"][:NAME]).split()) or NONE
    tokens = f"{facts['prompt_tokens']}+{facts['output_tokens']}"
    return f"{start} {name} {facts['checksum'][:12]} {utc(facts['time'])} {tokens}{end}"
