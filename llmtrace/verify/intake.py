"""Intake: what a remote offers, taken into the store as far as an audit finds it sound.

Transfers into a quarantine, audits there what is new, and only then lets the audited objects
of sound chains into the store and their branches forward. A chain that goes another way than
ours is a fork: the proof of it is kept, and our chain stays as it is. Whatever is wrong with
one chain is no matter to the others.
"""

import math
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import IO, Protocol

from llmtrace.errors import Trouble
from llmtrace.store import forks
from llmtrace.store.carrier import Carrier
from llmtrace.store.chain import Store
from llmtrace.store.commit import COMMIT_LIMIT, parse_tree
from llmtrace.store.entry import TREE_LIMIT, Entry
from llmtrace.store.forks import REFS as FORKS
from llmtrace.store.forks import Proof
from llmtrace.store.process import Caps
from llmtrace.store.quarantine import CAPS, CHAINS, Quarantine, quarantine
from llmtrace.verify.audit import audit_commit
from llmtrace.verify.shares import audit_shared

FETCHED, CURRENT, BEHIND = "fetched", "up to date", "behind"
REFUSED, FORKED = "refused", "forked"
BAD = frozenset({REFUSED, FORKED})


@dataclass(frozen=True)
class Outcome:
    """What became of one chain, or of one proof; ``reason`` is not escaped."""

    node: str
    result: str
    records: int = 0  # that are new here
    tip: str | None = None  # of our chain, now
    commit: str | None = None  # theirs that was refused or forks, or another object
    against: str | None = None  # our commit, of a fork
    part: str | None = None
    reason: str | None = None
    seq: int | None = None  # of a fork


class Meter(Protocol):
    """Is told how far an intake is."""

    def transfer(self, line: str) -> None:
        """Takes a line of git's progress, not escaped."""

    def audited(self) -> None:
        """Counts one more record that was audited."""


class _Silent:
    """A meter that nobody looks at."""

    def transfer(self, line: str) -> None:
        pass

    def audited(self) -> None:
        pass


def intake(
    store: Store,
    carrier: Carrier,
    url: str,
    nodes: Iterable[str] | None = None,
    *,
    caps: Caps = CAPS,
    meter: Meter = _Silent(),  # noqa: B008 (it holds nothing)
) -> Iterator[Outcome]:
    """Fetches the chains of these nodes, or all that a remote offers; one outcome a chain.

    An outcome is given when what it says is on the disk. Raises Trouble, after which the
    store holds what it held before, or what was said to be fetched.
    """
    listed = None if nodes is None else list(dict.fromkeys(nodes))
    with quarantine(store, carrier, caps) as room:
        offered = room.offered(url, listed)
        found = {name.removeprefix(CHAINS) for name in offered if name.startswith(CHAINS)}
        wanted = []
        for node in sorted(found) if listed is None else listed:
            outcome = _known(store, node, offered.get(CHAINS + node))
            if outcome is None:
                wanted.append(CHAINS + node)
            else:
                yield outcome
        proofs = [name for name in offered if name.startswith(FORKS)]
        wanted += [name for name in proofs if store.objects.reference(name) != offered[name]]
        if wanted:
            yield from _Intake(room, meter).take(url, wanted, offered)


def examine(
    store: Store,
    node: str,
    old: str | None,
    new: str,
    *,
    told: Callable[[str], None] = lambda _commit: None,
    end: float = math.inf,
) -> Outcome:
    """Audits what a chain has after the commit ``old`` up to ``new``; ``told`` of each sound one.

    The result is FETCHED for a sound continuation, BEHIND if there is nothing new, REFUSED,
    or FORKED, with no proof made. The store has both commits. Raises Trouble if it is not
    done by ``end`` (``time.monotonic``): a few bytes of a pack can be many to hash.
    """
    try:
        store.read(new)
    except Trouble:
        return Outcome(node, REFUSED, 0, old, new, part="commit", reason="is no commit")
    count = 0
    for one, found in audit_shared(store, old, new, node, end):
        if found and found[0].part == "chain" and old is not None and not count:
            return _elsewhere(store, node, old, new)
        if found:
            part, reason = found[0]
            return Outcome(node, REFUSED, 0, old, one, part=part, reason=reason)
        told(one)
        count += 1
    return Outcome(node, FETCHED, count, new)


class _Intake:
    """What was transferred together, on its way into the store."""

    def __init__(self, room: Quarantine, meter: Meter) -> None:
        self._room = room
        self._meter = meter
        self._home = room.home

    def take(self, url: str, names: list[str], offered: dict[str, str]) -> Iterator[Outcome]:
        failed = self._room.receive(url, names, self._meter.transfer)
        here, ids = self._room.arrived(names)
        sound: list[tuple[Outcome, str | None]] = []
        with tempfile.TemporaryFile("w+") as objects:
            for name in names:
                node = name.rpartition("/")[2]
                if name not in ids:
                    reason = failed.get(name, "git did not get it, perhaps the remote is shallow")
                    tip = self._home.objects.tip(f"node/{node}")
                    where = offered[name]
                    yield Outcome(node, REFUSED, 0, tip, where, part="transfer", reason=reason)
                elif name.startswith(FORKS):
                    yield from self._proof(here, node, ids[name])
                else:
                    old = self._home.objects.tip(f"node/{node}")
                    outcome = self._chain(here, node, (old, ids[name]), objects)
                    if outcome.result == FETCHED:
                        sound.append((outcome, old))
                    else:
                        yield outcome
            if sound:
                objects.seek(0)
                self._room.accept(line.rstrip() for line in objects)
        for outcome, old in sound:
            yield self._advanced(outcome, old)

    def _advanced(self, outcome: Outcome, old: str | None) -> Outcome:
        """Moves the branch, unless somebody moved it since the audit began."""
        try:
            self._home.advance(outcome.node, old, str(outcome.tip))
        except Trouble as error:
            tip = self._home.objects.tip(f"node/{outcome.node}")
            if tip == old:
                raise
            reason = str(error)
            return Outcome(outcome.node, REFUSED, 0, tip, outcome.tip, part="chain", reason=reason)
        return outcome

    def _chain(
        self, here: Store, node: str, tips: tuple[str | None, str], objects: IO[str]
    ) -> Outcome:
        """Audits one chain and lists its objects; of one that is not sound none stay listed."""
        start = objects.tell()

        def told(commit_id: str) -> None:
            objects.writelines(f"{one}\n" for one in _objects_of(here, commit_id))
            self._meter.audited()

        outcome = examine(here, node, *tips, told=told, end=self._room.end)
        if outcome.result != FETCHED:
            objects.seek(start)
            objects.truncate()
        return self._convict(here, outcome) if outcome.result == FORKED else outcome

    def _convict(self, here: Store, outcome: Outcome) -> Outcome:
        """Keeps the proof of a fork that was found."""
        try:
            proof = forks.prove(here, str(outcome.against), str(outcome.commit))
        except Trouble as error:
            return replace(outcome, result=REFUSED, part="chain", reason=str(error))
        forks.keep(self._home, proof)
        return outcome

    def _proof(self, here: Store, node: str, oid: str) -> Iterator[Outcome]:
        """Keeps another's proof if it holds and says something new."""
        proof = forks.read(here, oid, node)
        tip = self._home.objects.tip(f"node/{node}")
        if not isinstance(proof, Proof):
            yield Outcome(node, REFUSED, 0, tip, oid, part="proof", reason=proof)
        elif forks.keep(self._home, proof):
            yield Outcome(node, FORKED, 0, tip, seq=proof.seq)


def _objects_of(store: Store, commit_id: str) -> list[str]:
    """The ids of a commit that was audited, of its tree and of the blobs."""
    raw = store.objects.read(commit_id, "commit", COMMIT_LIMIT, proven=True)
    tree = raw[len("tree ") :][:40].decode()
    blobs = parse_tree(store.objects.read(tree, "tree", TREE_LIMIT, proven=True))
    return [commit_id, tree, *(blob.id for blob in blobs)]


def _known(store: Store, node: str, theirs: str | None) -> Outcome | None:
    """What becomes of a chain of which nothing need come; None if something must."""
    ours = store.objects.tip(f"node/{node}")
    if theirs is None:
        reason = "the remote does not have it"
        return Outcome(node, REFUSED, 0, ours, part="chain", reason=reason)
    if ours == theirs:
        return Outcome(node, CURRENT, 0, ours)
    if ours is not None and store.objects.contains(theirs) and _is_behind(store, ours, theirs):
        return Outcome(node, BEHIND, 0, ours)
    return None


def _is_behind(store: Store, ours: str, theirs: str) -> bool:
    """Says whether our chain has a commit; reads back to its seq, as its trailer gives it."""
    try:
        far = int(forks.trailer(store.read(ours), "Seq")) - int(
            forks.trailer(store.read(theirs), "Seq")
        )
        for one in _back(store, ours):
            if one == theirs:
                return True
            far -= 1
            if far < 0:
                return False
    except (Trouble, ValueError):
        pass
    return False


def _elsewhere(store: Store, node: str, old: str, new: str) -> Outcome:
    """What becomes of a chain that does not continue ours, which ends at ``old``.

    A fork is found at the first record that differs; both are audited up to there. Where
    commits differ but not their records, the key has signed one record in two ways.
    """
    try:
        ours, theirs = (_ids(store, tip) for tip in (old, new))
    except Trouble as error:
        return Outcome(node, REFUSED, 0, old, new, part="chain", reason=str(error))
    same = 0
    while same < min(len(ours), len(theirs)) and ours[same] == theirs[same]:
        same += 1
    if same == len(theirs):
        return Outcome(node, BEHIND, 0, old)
    if same == 0:
        reason = "does not begin with the identity of its node"
        return Outcome(node, REFUSED, 0, old, theirs[0].hex(), part="chain", reason=reason)
    for mine, other in zip(ours[same:], theirs[same:], strict=False):
        pair = [store.read(one.hex()) for one in (mine, other)]
        for entry, whose in zip(pair, ("our own record: ", ""), strict=True):
            if found := audit_commit(store, entry):
                part, reason = found[0].part, whose + found[0].reason
                return Outcome(node, REFUSED, 0, old, other.hex(), part=part, reason=reason)
        one, two = (forks.trailer(entry, "Record") for entry in pair)
        if one != two:
            seq = pair[0].record.seq
            return Outcome(node, FORKED, 0, old, other.hex(), mine.hex(), seq=seq)
    reason = "other commits than here, of the same records"
    return Outcome(node, REFUSED, 0, old, theirs[same].hex(), part="commit", reason=reason)


def _ids(store: Store, tip: str) -> list[bytes]:
    """The commit ids of a chain, oldest first; raises Trouble where it cannot be read."""
    return [bytes.fromhex(one) for one in _back(store, tip)][::-1]


def _back(store: Store, tip: str) -> Iterator[str]:
    """The commit ids of a chain, newest first; raises Trouble where it cannot be read."""
    at: tuple[str, ...] = (tip,)
    while at:
        yield at[0]
        at = Entry(store.objects, at[0]).parents
