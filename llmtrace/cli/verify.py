"""Verify: audit and replay commits."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from llmtrace.cli.caps import replays
from llmtrace.cli.frame import Session, command
from llmtrace.cli.input import read_lines
from llmtrace.cli.output import plain
from llmtrace.errors import Misuse, Trouble

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from llmtrace.cli.opening import Models
    from llmtrace.store.chain import Store
    from llmtrace.store.entry import Entry
    from llmtrace.verify.caps import Caps
    from llmtrace.verify.judge import Verdict
    from llmtrace.verify.revocation import Revocations
    from llmtrace.verify.spot import Draw, Drawn

STATUS = {"verified": 0, "differs": 1, "invalid": 1, "inconclusive": 3}


class _Chosen(NamedTuple):
    """A commit to look at; in a range or a chain only runs are replayed."""

    revision: str
    is_named: bool


@dataclass
class _Line:
    """What holds for all commits of one command line, and the worst that was found."""

    session: Session
    store: Store
    models: Models
    caps: Caps
    records: bool
    worst: int = 0
    recorded: int = 0

    @cached_property
    def revocations(self) -> Revocations:
        """Those in the chains of the store."""
        from llmtrace.verify.revocation import Revocations

        return Revocations(self.store)

    def count(self, name: str) -> None:
        """Counts for the last line of JSON."""
        totals = self.session.out.totals
        totals[name] = totals.get(name, 0) + 1


@command()
@click.argument("commits", nargs=-1, metavar="COMMIT...")
@click.option(
    "--node",
    "nodes",
    multiple=True,
    metavar="ID",
    help="Verify the whole chain of a node: its id, 'self' or a remote (can be repeated).",
)
@click.option(
    "--spot",
    type=click.IntRange(1),
    metavar="COUNT",
    help="Audit everything, replay COUNT runs drawn at random.",
)
@click.option("--spot-seed", metavar="HEX", help="Make the draw of this seed again.")
@click.option("--record", "records", is_flag=True, help="Record each verdict in one's own chain.")
@replays
def verify(
    session: Session,
    commits: tuple[str, ...],
    nodes: tuple[str, ...],
    spot: int | None,
    spot_seed: str | None,
    records: bool,
    **options: Any,
) -> int:
    r"""Replay recorded runs and compare them with their records

    COMMIT is any git revision of the store, or a range A..B, which means the
    runs in B and not in A; '-' reads commit ids, the first word of each line
    of standard input. Prints one line a commit: verified, differs, invalid or
    inconclusive, the commit id and the reason.

    \b
    Examples:
        llmtrace verify HEAD
        llmtrace verify HEAD~10..HEAD
        llmtrace verify --node self --spot 20
    """
    from llmtrace.cli.opening import Models, open_store
    from llmtrace.verify.caps import Caps

    seed = _seed(spot, spot_seed)
    if not commits and not nodes:
        raise Misuse("missing argument 'COMMIT...'", "see 'llmtrace verify --help'")
    models = Models(session, options["model"], options["device"], options["threads"])
    store = open_store(session, create=records)
    caps = Caps(options["max_tokens"], options["max_memory"], options["max_seconds"])
    line = _Line(session, store, models, caps, records)
    chosen = list(_chosen(store, commits, nodes))
    if spot:
        _spot(line, chosen, spot, seed)
    else:
        _each(line, chosen)
    if line.recorded:
        session.out.note(f"llmtrace: verdicts recorded: {line.recorded}")
    return line.worst


def _seed(spot: int | None, text: str | None) -> bytes:
    """The seed that was given, or a new one that nobody could foresee."""
    import re
    import secrets

    from llmtrace.verify.spot import SEED_BYTES

    if text is None:
        return secrets.token_bytes(SEED_BYTES)
    if spot is None:
        raise Misuse("--spot-seed without --spot", "add '--spot COUNT'")
    if not re.fullmatch(f"[0-9a-fA-F]{{{2 * SEED_BYTES}}}", text):
        raise Misuse(f"spot seed '{text}' is not {2 * SEED_BYTES} hexadecimal digits")
    return bytes.fromhex(text)


def _chosen(store: Store, commits: tuple[str, ...], nodes: tuple[str, ...]) -> Iterator[_Chosen]:
    from llmtrace.cli.nodes import named_nodes
    from llmtrace.verify.selection import chain, span

    for node in (node for word in nodes for node in named_nodes(store, word)):
        yield from (_Chosen(one, is_named=False) for one in chain(store, node))
    for commit in commits:
        if commit == "-":
            lines = list(read_lines("-"))
            if not lines:  # nothing checked must not read as all verified
                raise Trouble("no commit on standard input", "llmtrace log | llmtrace verify -")
            yield from (_Chosen(text.split()[0], is_named=True) for text in lines)
        elif ".." in commit:
            yield from (_Chosen(one, is_named=False) for one in span(store, commit))
        else:
            yield _Chosen(commit, is_named=True)


def _each(line: _Line, chosen: list[_Chosen]) -> None:
    """Audits and replays all of them."""
    from llmtrace.verify.verify import replayed

    found = 0
    with line.session.out.progress(len(chosen), "verify", "record") as bar:
        for start, entry, verdict in _audited(line, chosen, bar.update):
            said = verdict or replayed(line.store, entry, line.models, line.caps)
            _conclude(line, entry, said, start)
            found += 1
    _skipped(line, found)


def _spot(line: _Line, chosen: list[_Chosen], count: int, seed: bytes) -> None:
    """Audits all of them, draws some runs and replays these."""
    from llmtrace.verify.spot import Drawn, draw
    from llmtrace.verify.verify import replayed

    out, store = line.session.out, line.store
    runs: list[Drawn] = []
    with out.progress(len(chosen), "audit", "record") as bar:
        every = [_Chosen(one.revision, is_named=False) for one in chosen]
        for start, entry, verdict in _audited(line, every, bar.update):
            if verdict:
                _conclude(line, entry, verdict, start)
            else:
                runs.append(Drawn(entry.id, entry.digest))
    _skipped(line, len(runs))
    drawn = draw(seed, count, runs)
    out.note(f"llmtrace: spot seed {seed.hex()}")
    verdicts: dict[str, int] = {}
    with out.progress(len(drawn.records), "replay", "record") as bar:
        for one in drawn.records:
            start, entry = time.monotonic_ns(), store.read(one.commit)
            verdict = replayed(store, entry, line.models, line.caps)
            verdicts[verdict.verdict] = verdicts.get(verdict.verdict, 0) + 1
            _conclude(line, entry, verdict, start, drawn)
            bar.update(1)
    _print_spot(line.session, drawn, verdicts)


def _audited(
    line: _Line, chosen: Iterable[_Chosen], tick: Any
) -> Iterator[tuple[int, Entry, Verdict | None]]:
    """Audits each; leaves out what is sound but no run, unless it was named."""
    from llmtrace.verify.verify import audited

    for one in chosen:
        start, entry = time.monotonic_ns(), line.store.read(one.revision)
        verdict = audited(line.store, entry)
        if verdict or one.is_named or entry.record.kind == "run":
            yield start, entry, verdict
        else:
            line.count("skipped")
        tick(1)


def _skipped(line: _Line, found: int) -> None:
    out = line.session.out
    skipped = out.totals.get("skipped", 0)
    if not found and not line.worst:
        raise Trouble(f"no run among {skipped} records", "list runs with 'llmtrace log'")
    if skipped:
        out.detail(f"llmtrace: {skipped} records of other kinds were audited")


def _conclude(
    line: _Line, entry: Entry, verdict: Verdict, start: int, drawn: Draw | None = None
) -> None:
    """Records a verdict, if asked to, and prints it."""
    from llmtrace.verify.statement import statement

    line.worst = max(line.worst, STATUS[verdict.verdict], key=(0, 3, 1).index)
    line.count(verdict.verdict)
    recorded = None
    if line.records and verdict.verdict != "inconclusive":
        now = int(time.time())
        section = statement(entry, verdict, line.store.node, now, drawn)
        recorded = line.store.append("verdict", {"verdict": section}, {}, now)
        line.recorded += 1
    _print(line, entry, verdict, recorded, (time.monotonic_ns() - start) // 1000)


def _print(line: _Line, entry: Entry, verdict: Verdict, recorded: str | None, elapsed: int) -> None:
    from llmtrace.cli.nodes import called

    out = line.session.out
    node = entry.record.node if verdict.verdict != "invalid" else None
    signer = called(line.store, node) if node else None
    revoked = line.revocations.of(entry) if node else None
    if out.json:
        difference = verdict.difference
        out.object(
            "verify",
            commit=entry.id,
            verdict=verdict.verdict,
            reason=verdict.reason,
            node=node,
            signer=signer,
            checked=list(verdict.checked),
            unchecked=list(verdict.unchecked),
            first_difference=dataclasses.asdict(difference) if difference else None,
            revoked=revoked._asdict() if revoked else None,
            recorded=recorded,
            timings={"total_us": elapsed},
        )
        return
    reasons = [verdict.reason] if verdict.reason else []
    if revoked:  # which says nothing about bits
        reasons.append(f"revoked: {revoked.reason}" if revoked.reason else "revoked")
    out.line(plain(" ".join([verdict.verdict, entry.id, "; ".join(reasons)]).rstrip()))
    if node:
        out.detail(plain(f"llmtrace: signed by {signer}, node {node}"))
    if recorded:
        out.detail(f"llmtrace: recorded {recorded}")


def _print_spot(session: Session, drawn: Draw, verdicts: dict[str, int]) -> None:
    """Says what the draw proves of the records that were not replayed."""
    from llmtrace.verify.spot import PERCENT, confidence

    out, count, of = session.out, len(drawn.records), drawn.population
    proven = confidence(of, count) if verdicts == {"verified": count} else None
    if out.json:
        out.object(
            "spot",
            seed=drawn.seed.hex(),
            drawn=[record.commit for record in drawn.records],
            of=of,
            population=drawn.digest,
            verdicts=verdicts,
            confidence=dataclasses.asdict(proven) if proven else None,
        )
    elif proven:
        out.line(
            f"spot: {count} of {of} replayed, all verified; a chain with {PERCENT} % false records"
            f" would have passed with probability {proven.chance}; with {100 - PERCENT} %"
            f" confidence at most {proven.most} of the others are false"
        )
    else:
        counts = ", ".join(f"{verdicts[name]} {name}" for name in STATUS if name in verdicts)
        out.line(f"spot: {count} of {of} drawn, {counts}: nothing follows for the others")
