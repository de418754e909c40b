"""Publishing: what a remote lacks of chains and of proofs of forks, and how it gets there.

Branches only ever move forward there: exact names, no force. What is large goes in batches
that end at commits of the chain, so that a server with limits takes it, and a push that was
interrupted goes on where it stood.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from llmtrace.errors import Trouble
from llmtrace.store import forks
from llmtrace.store.carrier import Carrier, Failed
from llmtrace.store.chain import Store
from llmtrace.store.process import Caps
from llmtrace.store.quarantine import CHAINS, Quarantine, quarantine
from llmtrace.store.remotes import Remote
from llmtrace.store.schema import printable

RECORDS = 10_000  # in one push
BYTES = 256 << 20
REFS = 50  # forges fail with more than a hundred
# Hooks of a remote that is a path inherit these: they audit what comes.
CAPS = Caps(seconds=4 * 3600, cpu_seconds=3600, file_bytes=2 << 30, memory_bytes=1 << 30)

_PUSH = (
    *("push", "--porcelain", "--no-verify", "--no-follow-tags", "--recurse-submodules=no"),
    *("--no-signed", "--no-force", "--progress"),
)
_REJECTED = re.compile(r"!\t[0-9a-f]*:(\S+)\t(.*)")
_WORDS = 200  # characters of a server's reason


@dataclass(frozen=True)
class Chain:
    """A chain, here and at a remote."""

    node: str
    tip: str
    state: str  # new | same | ahead (the remote is) | forked
    commits: tuple[str, ...] = ()  # that the remote lacks, oldest first
    fork: str = ""  # the last commit in common, of a fork

    @property
    def ref(self) -> str:
        """Its name in a repository."""
        return CHAINS + self.node


def survey(
    store: Store, carrier: Carrier, remote: Remote, nodes: Iterable[str], own: str | None
) -> tuple[list[Chain], dict[str, str]]:
    """Asks a remote for its tips: the chains as they stand, and the proofs it lacks, by ref.

    ``own`` is the chain that nobody else writes. Raises Trouble if the remote holds records of
    it that are not here: then this store is not the newest.
    """
    asked = list(nodes)
    proofs = {
        forks.REFS + node for node, proof in forks.listed(store) if not isinstance(proof, str)
    }
    named = {name.removeprefix(forks.REFS) for name in proofs}
    with quarantine(store, carrier) as aside:
        there = _asked(remote, lambda: aside.offered(remote.url, {*asked, *named}))
        chains = [_compared(store, node, there.get(CHAINS + node)) for node in asked]
        for chain in chains:
            if chain.node == own and chain.state == "ahead":
                why = f"'{remote.name}' holds records of your own chain that this store does not"
                hint = f"llmtrace fetch {remote.name}"
                raise Trouble(f"{why}: it is a copy or was restored", hint)
        late = [chain for chain in chains if chain.state == "ahead"]
        known = {chain.node: chain for chain in _judged(store, aside, remote, late)} if late else {}
    missing = {name: store.objects.reference(name) or "" for name in proofs - set(there)}
    return [known.get(chain.node, chain) for chain in chains], missing


def send(
    store: Store,
    carrier: Carrier,
    remote: Remote,
    targets: Mapping[str, Sequence[str]],
    sizes: Mapping[str, int],
    progress: Callable[[int, str], None] = lambda count, text: None,
) -> Iterator[str]:
    """Pushes; gives the name of each ref that the remote has whole.

    ``targets`` are the new objects of each ref, the oldest first: commits, or one blob;
    ``sizes`` their bytes. ``progress`` hears how many more are there, and what git says. Raises
    Trouble with the remote's own reason; what was given before is there.
    """
    with carrier.scratch(store.path) as scratch:
        for batch, count, whole in _batches(targets, sizes):
            _push(carrier, scratch, store.path / "objects", remote, batch, progress)
            progress(count, "")
            yield from whole


def _asked(remote: Remote, ask: Callable[[], dict[str, str]]) -> dict[str, str]:
    try:
        return ask()
    except Failed as error:
        hint = "see 'llmtrace remote list'"
        raise Trouble(f"cannot reach '{remote.name}': {error}", hint) from error


def _compared(store: Store, node: str, there: str | None) -> Chain:
    """A chain beside the tip that the remote has; "ahead" stands for any tip not known here."""
    tip = store.read(f"node/{node}").id
    if there == tip:
        return Chain(node, tip, "same")
    if there is not None and not store.objects.contains(there):
        return Chain(node, tip, "ahead")
    commits = []
    for entry in store.log(tip):
        if entry.id == there:
            break
        commits.append(entry.id)
    else:
        if there is not None:
            return Chain(node, tip, "ahead")
    return Chain(node, tip, "new", tuple(reversed(commits)))


def _judged(
    store: Store, aside: Quarantine, remote: Remote, late: Sequence[Chain]
) -> Iterator[Chain]:
    """Tells a remote that goes on where a chain ends from one that forked off before."""
    for name, why in aside.receive(remote.url, [chain.ref for chain in late]).items():
        raise Trouble(f"cannot compare '{name.removeprefix(CHAINS)}' with '{remote.name}': {why}")
    other, tips = aside.arrived(chain.ref for chain in late)
    for chain in late:
        ours = {entry.id for entry in store.log(chain.tip)}
        met = (entry.id for entry in other.log(tips[chain.ref]) if entry.id in ours)
        fork = next(met, "")
        yield chain if fork == chain.tip else replace(chain, state="forked", fork=fork)


def _batches(
    targets: Mapping[str, Sequence[str]], sizes: Mapping[str, int]
) -> Iterator[tuple[dict[str, str], int, list[str]]]:
    """What each push moves where, how many records that are, and which refs it completes."""
    batch: dict[str, str] = {}
    whole: list[str] = []
    count = size = 0
    for ref, objects in targets.items():
        for oid in objects:
            more = sizes.get(oid, 0)
            full = count == RECORDS or size + more > BYTES
            if batch and (full or (ref not in batch and len(batch) == REFS)):
                yield batch, count, whole
                batch, whole, count, size = {}, [], 0, 0
            batch[ref] = oid
            count, size = count + 1, size + more
        if ref in batch:
            whole.append(ref)
    if batch:
        yield batch, count, whole


def _push(
    carrier: Carrier,
    scratch: Path,
    objects: Path,
    remote: Remote,
    batch: Mapping[str, str],
    progress: Callable[[int, str], None],
) -> None:
    specs = [f"{oid}:{ref}" for ref, oid in batch.items()]
    try:
        carrier.run(
            [*_PUSH, "--", remote.url, *specs],
            repository=scratch,
            objects=objects,
            caps=CAPS,
            progress=lambda text: progress(0, text),
        )
    except Failed as error:
        raise _refused(remote, error) from error


def _refused(remote: Remote, error: Failed) -> Trouble:
    """The remote's refusal in one line: of the first branch, in the server's own words."""
    lines = error.output.decode(errors="replace").splitlines()
    match = next(filter(None, map(_REJECTED.fullmatch, lines)), None)
    if match is None:
        return Trouble(f"cannot push to '{remote.name}': {error}")
    name = printable(match[1].removeprefix("refs/heads/").removeprefix("refs/llmtrace/"))
    if re.search(r"non-fast-forward|fetch first|stale info", match[2]):
        why = f"'{remote.name}' has other records of '{name}' by now"
        return Trouble(why, f"llmtrace fetch {remote.name}")
    said = re.findall(r"^remote: *(\S.*?) *$", error.said, re.MULTILINE)
    words = "; ".join([match[2].strip(), *said[:3]])
    return Trouble(f"'{remote.name}' refused '{name}': {_escaped(words)}")


def _escaped(text: str) -> str:
    return re.sub(r"[^ -~]", lambda m: ascii(m[0])[1:-1], text)[:_WORDS]
