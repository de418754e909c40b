"""Mutation: one byte of a record or of its repository changed, at random places of a fixed seed.

Four kinds: an object changed under its old id; under a new id, with tree and commit made to fit
but the old signature; a record changed and signed again by its own key, which only a replay can
tell; and the files of git changed as they lie on the disk. Whatever decodes to the very same
repository, as git reads it, is no mutation: it is counted apart.
"""

import re
import select
import shutil
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from checkpoints import make
from commands import call
from hostile.stranger import Stranger, decode
from llmtrace.blocks.versions import Version
from llmtrace.engine import evidence
from llmtrace.engine.request import Request
from llmtrace.engine.trace import Model
from llmtrace.errors import Inconclusive, Trouble
from llmtrace.model.tokenizer import Tokenizer
from llmtrace.store import canonical
from llmtrace.store.chain import Store
from llmtrace.store.commit import MODE, parse_tree
from llmtrace.store.record import Record
from llmtrace.store.schema import Finding, check_sections
from llmtrace.verify.audit import audit_chain, audit_commit
from llmtrace.verify.caps import Caps
from llmtrace.verify.verify import replayed
from running import load, run

MOST = 10_000
SECONDS = 20  # for one audit
SHARES = {"in place": 0.35, "under a new id": 0.25, "signed again": 0.1, "on the disk": 0.3}
UNREADABLE = re.compile(
    r"object '\w{8}' (is damaged|is missing|cannot be read|is no |has \d+ bytes)"
    r"|no record '|cannot read the |malformed|is no record|the index '.*' is damaged"
)
RUNS = (
    ("-n", "5", "--temperature", "0.9", "--seed", "77", "--keep", "blocks.0.hook_mlp_out"),
    ("-n", "4", "--probe", "detail", "--leaves"),
)


class World(NamedTuple):
    """A model, and the honest records of its runs in the chain of a stranger."""

    model: Model
    model_id: str
    chain: Stranger
    records: list[Record]
    commits: list[str]

    def find(self, model_id: str, name: str, version: Version) -> Model:  # as `verify.Models`
        if model_id != self.model_id:
            raise Inconclusive(f"no model {model_id[:8]} here")
        return self.model


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("mutation")
    make(folder / "model", hidden=32, heads=2, kv_heads=1, ff=32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
        store = ("--store", folder / "own.git")
        for words in RUNS:
            said = call(*store, "run", "-d", "cpu", "-m", folder / "model", *words, "one fine day")
            assert said.status == 0, said.err
        own = Store.open(folder / "own.git", folder / "config/llmtrace/keys")
        entries = [entry for entry in own.log() if entry.record.kind == "run"]
    records = [Record(entry.record.sections, dict(entry.record.parts)) for entry in entries]
    chain = Stranger(folder / "chain.git", records[0])
    commits = []
    for like in records:
        chain.like = like
        commits.append(chain.add(chain.run()))
    model_id = str(records[0].sections["trace"]["model"])
    made = World(load(folder / "model", model_id=model_id), model_id, chain, records, commits)
    assert outcome(chain) == "sound"
    for commit in commits:
        store_of = opened(chain)
        verdict = replayed(store_of, store_of.read(commit), made, Caps())
        assert verdict.verdict == "verified", verdict
    return made


def opened(chain: Stranger) -> Store:
    """The repository, with nothing remembered of how it was."""
    return Store.open(chain.path, chain.path / "keys")


def outcome(chain: Stranger) -> str:
    """What audit says of the whole chain: sound, invalid, or why it cannot be read."""
    try:
        found = [one for _, each in audit_chain(opened(chain), chain.branch) for one in each]
    except Trouble as error:
        assert UNREADABLE.search(str(error)), error
        return "unreadable"
    return "invalid" if found else "sound"


class Bytes:
    """Places and values of one kind of mutation, from its seed."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)

    def changed(self, data: bytes) -> tuple[int, bytes]:
        """The data with one byte changed, and its place."""
        place, bits = int(self._random.integers(len(data))), int(self._random.integers(1, 256))
        return place, data[:place] + bytes([data[place] ^ bits]) + data[place + 1 :]

    def among(self, things: list[Any]) -> Any:
        return things[int(self._random.integers(len(things)))]


def counts(request: pytest.FixtureRequest, kind: str) -> int:
    """All ten thousand where slow tests are wanted, else a share of them."""
    return int(SHARES[kind] * MOST * (1.0 if request.param else 0.15))


SIZES = pytest.mark.parametrize(
    "counted",
    [False, pytest.param(True, marks=pytest.mark.slow)],
    ids=["some", "all"],
    indirect=True,
)


@pytest.fixture
def counted(request: pytest.FixtureRequest) -> Iterator[Any]:
    """How many mutations of a kind; the tally is printed when all of them are found."""
    tally: Counter[str] = Counter()

    class Count:
        def of(self, kind: str) -> int:
            return counts(request, kind)

        def add(self, what: str) -> None:
            tally[what] += 1

    yield Count()
    print(f"\n{request.node.name}: {sum(tally.values())} mutations: {dict(tally)}")


def files(chain: Stranger) -> list[Path]:
    return sorted(chain.path.glob("objects/??/*"))


@SIZES
def test_a_byte_changed_in_an_object_under_its_old_id(world: World, counted: Any) -> None:
    """What a collision of SHA-1 would give, or a disk: header and contents, of all objects."""
    pick, chain = Bytes(1), world.chain
    paths = files(chain)
    whole = {path: zlib.decompress(path.read_bytes()) for path in paths}
    for _ in range(counted.of("in place")):
        path = pick.among(paths)
        place, data = pick.changed(whole[path])
        before = path.read_bytes()
        path.write_bytes(zlib.compress(data, 1))
        try:
            found = outcome(chain)
        finally:
            path.write_bytes(before)
        assert found in {"invalid", "unreadable"}, f"{path.name}, byte {place}: {found}"
        counted.add(found)
    assert outcome(chain) == "sound"


def rewritten(chain: Stranger, commit: str, old: str, new: str) -> str:
    """The commit with one id in it changed, under its new id; the signature is the old one."""
    raw = contents(chain, commit)
    assert raw.count(old.encode()) == 1
    return chain.put("commit", raw.replace(old.encode(), new.encode()))


def contents(chain: Stranger, oid: str) -> bytes:
    return zlib.decompress(chain.place(oid).read_bytes()).partition(b"\0")[2]


@SIZES
def test_a_byte_changed_under_a_new_id_with_the_old_signature(world: World, counted: Any) -> None:
    """Everything fits together again, but nobody signed it."""
    pick, chain = Bytes(2), world.chain
    trees = {commit: contents(chain, commit)[5:45].decode() for commit in world.commits}
    blobs = {c: [b for b in parse_tree(contents(chain, trees[c])) if b.mode == MODE] for c in trees}
    before = {*files(chain)}
    for _ in range(counted.of("under a new id")):
        commit = pick.among(world.commits)
        what = pick.among(["commit", "tree", *blobs[commit]])
        named: set[str] = set()
        if what == "commit":
            place, data = pick.changed(contents(chain, commit))
            forged = chain.put("commit", data)
        elif what == "tree":
            place, data = pick.changed(contents(chain, trees[commit]))
            forged = rewritten(chain, commit, trees[commit], chain.put("tree", data))
        else:
            place, data = pick.changed(contents(chain, what.id))
            tree = contents(chain, trees[commit])
            new = chain.put("blob", data)
            tree = tree.replace(bytes.fromhex(what.id), bytes.fromhex(new))
            forged = rewritten(chain, commit, trees[commit], chain.put("tree", tree))
            named = {what.name, "signature"}
        try:
            store = opened(chain)
            found = {finding.part for finding in findings(store, forged)}
        finally:
            for path in {*files(chain)} - before:
                path.unlink()
        assert found, f"{what}, byte {place}"
        assert named <= found or "commit" in found or "chain" in found, (what, place, found)
        counted.add("invalid" if "unreadable" not in found else "unreadable")


def findings(store: Store, commit: str) -> list[Finding]:
    try:
        return audit_commit(store, store.read(commit))
    except Trouble as error:
        assert UNREADABLE.search(str(error)), error
        return [Finding("unreadable", str(error)), Finding("commit", "")]


# Signed again


def told(record: Record, name: str, data: bytes) -> dict[str, bytes]:
    return {**record.parts, name: data}


def other_claim(pick: Bytes, record: Record, section: str) -> dict[str, Any] | None:
    """The section with one byte of its JSON changed; None where that is no canonical JSON."""
    _, data = pick.changed(canonical.encode(record.sections[section]))
    try:
        value = canonical.decode(data)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


@SIZES
def test_a_byte_changed_and_signed_again_is_found_by_replay(world: World, counted: Any) -> None:
    """By the key of the node itself: audit has no complaint, and all the same it is not true."""
    pick, chain = Bytes(3), world.chain
    before = {*files(chain)}
    left = counted.of("signed again")
    while left:
        like = pick.among(world.records)
        what = pick.among([*sorted(like.parts), "trace", "trace", "trace", "probes"])
        sections, parts = decode(like), dict(like.parts)
        if what in parts:
            _, parts[what] = pick.changed(parts[what])
        else:
            value = other_claim(pick, like, what)
            if value is None:
                continue
            sections[what] = value
        chain.like = Record(sections, parts)
        changed = {what: sections[what]} if what in sections else {}
        chain.like.sections.update(changed)
        record = chain.run()
        if check_sections(record.sections):
            continue
        left -= 1
        try:
            commit = chain.write(record)
            store = opened(chain)
            entry = store.read(commit)
            assert audit_commit(store, entry) == [], what
            verdict = replayed(store, entry, world, Caps())
        finally:
            for path in {*files(chain)} - before:
                path.unlink()
        if verdict.verdict == "verified":
            assert what == "trace" and is_true(world, record), f"{what}: {changed}"
            counted.add("another run, and true")
            continue
        claims = record.sections["trace"]
        asked = (claims.get("model"), claims.get("numerics"))
        is_elsewhere = asked != (world.model_id, "accuracy.1")
        assert verdict.verdict in {"differs", "invalid"} or is_elsewhere, (what, verdict)
        counted.add(f"{verdict.verdict}: {'a section' if what in sections else 'a part'}")


def is_true(world: World, record: Record) -> bool:
    """Whether a run of its own, not a replay, gives exactly this record: then nothing is forged.

    Settings that draw nothing else, such as another seed where the most likely token is taken,
    make another record of another run.
    """
    claim = evidence.claim(record.sections)
    asked = claim.request
    request = Request(asked.prompt, asked.max_tokens, asked.sampling, asked.stop)
    (made,) = run(
        world.model,
        [request],
        level=claim.level,
        probes=claim.probes,
        keep=claim.keep,
        leaves=claim.leaves,
    )
    section = evidence.trace_section(made, world.model_id, claim.numerics)
    parts = evidence.parts(
        made,
        level=claim.level,
        tokenizer=Tokenizer.open(world.model.checkpoint),
        prompt=record.parts["prompt.txt"].decode(),
        leaves=claim.leaves,
    )
    return section == record.sections["trace"] and parts == dict(record.parts)


# On the disk


def git(path: Path, *words: str, data: bytes = b"") -> bytes | None:
    done = subprocess.run(
        ["git", "--git-dir", path, *words], input=data, capture_output=True, check=False
    )
    return done.stdout if done.returncode == 0 else None


def as_git_reads(path: Path, ids: list[str]) -> dict[str, bytes]:
    """All objects that git can read: by their ids, type and contents."""
    said = git(path, "cat-file", "--batch", data="\n".join(ids).encode()) or b""
    found = {}
    while said:
        head, _, said = said.partition(b"\n")
        oid, kind, *size = head.split(b" ")
        if size:
            end = int(size[0])
            found[oid.decode()] = kind + b" " + said[:end]
            said = said[end + 1 :]
    return found


def is_the_same(root: Path, honest: dict[str, bytes], chain: Stranger) -> bool:
    """Whether git reads the same objects and branch; of a damaged index it reads nothing at all."""
    found = as_git_reads(root, [*honest])
    tip = git(root, "rev-parse", "--verify", f"refs/heads/{chain.branch}")
    return found in (honest, {}) and tip in (f"{chain.tip}\n".encode(), None if not found else b"")


class Auditor:
    """Audits in another process, which is started again where damage ended it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> "Auditor":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._process is not None:
            self._process.communicate()

    def outcome(self, path: Path, branch: str) -> str:
        if self._process is None or self._process.poll() is not None:
            program = Path(__file__).parent / "hostile" / "auditor.py"
            self._process = subprocess.Popen(
                [sys.executable, program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{path} {branch}\n")
        self._process.stdin.flush()
        if not select.select([self._process.stdout], [], [], SECONDS)[0]:
            self._process.kill()
            self._process.wait()
            return f"no answer in {SECONDS} seconds"
        said = self._process.stdout.readline()
        if not said:
            return f"ended by signal {-self._process.wait()}"
        what, _, why = said.strip().partition(" ")
        assert what != "unreadable" or UNREADABLE.search(why), why
        return what


@pytest.fixture
def auditor() -> Iterator[Auditor]:
    with Auditor() as made:
        yield made


@SIZES
def test_a_byte_changed_on_the_disk(
    world: World, counted: Any, auditor: Auditor, tmp_path: Path
) -> None:
    """In loose files, in a pack, its index and the branch; git decides what is still the same."""
    pick, chain = Bytes(4), world.chain
    loose, packed = tmp_path / "loose.git", tmp_path / "packed.git"
    shutil.copytree(chain.path, loose)
    shutil.copytree(chain.path, packed)
    assert git(packed, "repack", "-adq") is not None
    assert git(packed, "prune-packed", "-q") is not None
    ids = [path.parent.name + path.name for path in files(chain)]
    honest = as_git_reads(loose, ids)
    assert honest == as_git_reads(packed, ids)
    assert [*honest] == ids
    assert not [*packed.glob("objects/??/*")]
    branch = f"refs/heads/{chain.branch}"
    families = {
        "loose": (loose, sorted(loose.glob("objects/??/*"))),
        "pack": (packed, [*packed.glob("objects/pack/*.pack")]),
        "index": (packed, [*packed.glob("objects/pack/*.idx")]),
        "branch": (loose, [loose / branch]),
    }
    for _, paths in families.values():
        for path in paths:
            path.chmod(0o644)
    names = ["loose"] * 9 + ["pack"] * 6 + ["index"] * 4 + ["branch"]
    for _ in range(counted.of("on the disk")):
        family = pick.among(names)
        root, paths = families[family]
        path = pick.among(paths)
        before = path.read_bytes()
        place, data = pick.changed(before)
        path.write_bytes(data)
        try:
            found = auditor.outcome(root, chain.branch)
            known = {"sound", "invalid", "unreadable"}
            assert found in known, f"{path.name}, byte {place}: {found}"
            if found == "sound":
                assert is_the_same(root, honest, chain), f"{path.name}, byte {place}"
        finally:
            path.write_bytes(before)
        counted.add(f"{family}: {'the same' if found == 'sound' else found}")
    assert {auditor.outcome(root, chain.branch) for root in (loose, packed)} == {"sound"}
