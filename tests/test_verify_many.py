"""verify of many: ranges, chains, draws; recorded verdicts; what strangers may cost."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import numpy as np
import pytest
from blake3 import blake3

from checkpoints import make
from commands import answer, call, tell
from faults import fault
from llmtrace.blocks.arrays import Limits, footprint
from llmtrace.device.cpu import CpuDevice
from llmtrace.engine.request import Request
from llmtrace.engine.trace import Done, Fed, trace
from llmtrace.store.chain import Store
from llmtrace.store.remotes import Remotes
from llmtrace.verify.caps import Caps
from llmtrace.verify.spot import Drawn, confidence, draw
from running import load

if TYPE_CHECKING:
    from collections.abc import Iterator

SEED = "00112233445566778899aabbccddeeff"
CPU = ("-d", "cpu")
ROOT = Path(__file__).parents[1]


def verdicts(*arguments: str, status: int = 0) -> list[dict[str, Any]]:
    said = call("verify", *CPU, "--json", *arguments)
    assert said.status == status, said.err
    *lines, end = said.objects
    assert end["type"] == "end"
    assert end["status"] == status
    return [*lines, end] if status == 4 else lines


def ids(*arguments: str, status: int = 0) -> list[str]:
    return [v["commit"] for v in verdicts(*arguments, status=status) if v["type"] == "verify"]


# Ranges and chains


def test_a_range_means_the_runs_in_b_and_not_in_a(commits: dict[str, str]) -> None:
    order = list(commits.values())
    whole = [*order[:5]]  # of "other" the model has no name here
    assert ids(f"{order[0]}..{order[4]}") == whole[1:]
    assert ids(f"{order[0]}~..{order[2]}") == whole[:3]  # the identity is in front of the first
    assert ids(f"{order[4]}~..{order[4]}", order[0], f"{order[4]}~..{order[4]}") == [
        order[4],
        order[0],
        order[4],
    ]


def test_a_range_of_head(store: Store, commits: dict[str, str]) -> None:
    head = store.read("HEAD").id
    assert ids(f"{head}~..", status=3) == ids(f"{head}~..HEAD", status=3) == [head]
    refused = call("verify", "HEAD..")
    assert (refused.status, refused.out) == (4, "")
    assert "no records in 'HEAD..'" in refused.err


@pytest.mark.parametrize("text", ["{b}..{a}", "{a}..{a}"])
def test_an_empty_range_is_trouble(commits: dict[str, str], text: str) -> None:
    a, b = commits["greedy"], commits["drawn"]
    refused = call("verify", text.format(a=a, b=b))
    assert (refused.status, refused.out) == (4, "")
    assert "no records in '" in refused.err


def test_other_kinds_are_audited_and_skipped(store: Store, commits: dict[str, str]) -> None:
    first = commits["greedy"]
    said = call("verify", *CPU, "--json", f"{first}~..{first}")
    assert said.objects[-1] == {"v": 1, "type": "end", "status": 0, "verified": 1}
    said = call("verify", *CPU, "--json", "--node", "self")
    assert said.status == 3  # a model that is not here
    assert said.objects[-1]["skipped"] == 1
    assert [v["commit"] for v in said.objects[:-1]] == list(commits.values())
    named = verdicts(f"{first}~", status=3)[0]
    assert "kind 'identity' holds nothing to replay" in named["reason"]


def test_a_chain_without_runs_is_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    assert call("--store", tmp_path / "s.git", "init").status == 0
    refused = call("--store", tmp_path / "s.git", "verify", "--node", "self")
    assert (refused.status, refused.out) == (4, "")
    assert "no run among 1 records" in refused.err


# Strangers


@pytest.fixture(scope="module")
def theirs(store: Store, commits: dict[str, str], tmp_path_factory: Any) -> Iterator[Store]:
    """A store of another node, and its chain in our store as well."""
    folder = tmp_path_factory.mktemp("theirs")
    other = Store.open(folder / "s.git", folder / "keys", create=True)
    record = store.read(commits["greedy"]).record
    sections = [record.sections[name] for name in ("trace", "probes", "attested")]
    for second in range(3):
        other.append_run(*sections, record.parts, second)
    bring(store, other)
    yield other


@pytest.fixture(scope="module")
def liars(store: Store, commits: dict[str, str], tmp_path_factory: Any) -> Store:
    """Another such, of which nothing is true."""
    folder = tmp_path_factory.mktemp("liars")
    other = Store.open(folder / "s.git", folder / "keys", create=True)
    record = store.read(commits["greedy"]).record
    sections = [record.sections[name] for name in ("trace", "probes", "attested")]
    other.append_run(*sections, record.parts, 1)
    return other


def bring(store: Store, other: Store) -> str:
    """Their chain as it is now; gives its tip."""
    ref = f"refs/heads/node/{other.node}"
    command = ["git", "-C", store.path, "fetch", "-q", other.path, f"{ref}:{ref}"]
    subprocess.run(command, check=True)
    return other.read("HEAD").id


def stranger(store: Store, theirs: Store, **sections: Any) -> str:
    """A record that another node tells; the commit, now in our store."""
    tell(theirs, "HEAD", **sections)
    return bring(store, theirs)


def test_whoever_signed_is_named(store: Store, theirs: Store, commits: dict[str, str]) -> None:
    own = verdicts(commits["greedy"])[0]
    assert (own["node"], own["signer"]) == (store.node, "self")
    chain = verdicts("--node", theirs.node)
    assert {(v["node"], v["signer"]) for v in chain} == {(theirs.node, "unknown")}
    assert len(chain) == 3
    assert ids("--node", theirs.node[:12]) == [v["commit"] for v in chain]
    Remotes.open(store.path).add("friend", "https://example.org/s.git", [theirs.node])
    try:
        assert {v["signer"] for v in verdicts("--node", "friend")} == {"friend"}
        said = call("verify", *CPU, "-v", f"node/{theirs.node}")
        assert f"signed by friend, node {theirs.node}" in said.err
    finally:
        Remotes.open(store.path).remove("friend")
    assert call("verify", "--node", "nobody").status == 4


def test_a_range_from_a_foreign_chain_has_nothing_to_leave_out(
    store: Store, theirs: Store, commits: dict[str, str]
) -> None:
    tip = f"node/{theirs.node}"
    assert ids(f"{commits['greedy']}..{tip}") == ids("--node", theirs.node)


CAPPED = {
    "tokens": (
        ("--max-tokens", "13"),
        "the run has 14 tokens, more than the 13",
        "--max-tokens 14",
    ),
    "memory": (("--max-memory", "64k"), "beside the weights, more than the 0 MiB", "--max-memory"),
    "seconds": (("--max-seconds", "1"), "more than the 1 seconds", "--max-seconds"),
}


@pytest.mark.parametrize("case", CAPPED)
def test_beyond_a_cap_there_is_no_verdict(
    store: Store, theirs: Store, commits: dict[str, str], case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, said, hint = CAPPED[case]
    if case == "seconds":  # each look at the clock is two seconds later
        clock = iter(range(0, 1000, 2))
        monkeypatch.setattr("llmtrace.verify.caps.time.monotonic", lambda: next(clock))
    else:
        monkeypatch.setattr(
            "llmtrace.engine.trace.Model.plan", lambda *_, **__: pytest.fail("made")
        )
    (told,) = verdicts(theirs.read("HEAD").id, *options, status=3)
    assert told["verdict"] == "inconclusive"
    assert said in told["reason"]
    assert hint in told["reason"]
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(store.path.parents[2] / "config"))
    monkeypatch.setenv("XDG_DATA_HOME", str(store.path.parents[2] / "data"))
    assert verdicts(commits["greedy"], *options)[0]["verdict"] == "verified"  # one's own


def test_a_copy_of_a_store_is_not_ones_own(theirs: Store) -> None:
    """Its HEAD names their node, but their key is not here."""
    (told,) = verdicts("HEAD", "--store", str(theirs.path), "--max-tokens", "13", status=3)
    assert (told["signer"], told["verdict"]) == ("unknown", "inconclusive")


HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "max tokens": ({"trace": {"limits": {"max_tokens": 2**31 - 1, "stop": []}}}, "differs"),
    "stops": ({"trace": {"limits": {"max_tokens": 6, "stop": [1] * 300_000}}}, "verified"),
    "long output": ({"trace": {"output_tokens": [1] * 30_000}}, "invalid"),
    "longer output": ({"trace": {"output_tokens": [1] * 40_000}}, "inconclusive"),
    "long prompt": ({"trace": {"prompt_tokens": [1] * 400_000}}, "inconclusive"),
    "keep": ({"probes": {"keep": [f"k{i:06}" for i in range(100_000)]}}, "differs"),
    "keep, all": ({"probes": {"keep": ["hook_embed", "unembed.hook_out"]}}, "differs"),
    "keep of a name": ({"probes": {"keep": ["\x1b[2J"]}}, "differs"),
}


def test_what_a_stranger_claims_costs_next_to_nothing(
    store: Store, liars: Store, place: Path
) -> None:
    """All in one process: what it takes at most is little more than for an honest record."""
    honest = liars.read("HEAD").id
    made = [tell(liars, honest, **sections) for sections, _ in HOSTILE.values()]
    bring(store, liars)
    for commit, (name, (_, verdict)) in zip(made, HOSTILE.items(), strict=True):
        (told,) = verdicts(commit, status={"inconclusive": 3, "verified": 0}.get(verdict, 1))
        assert (name, told["verdict"]) == (name, verdict), told["reason"]
    lean, lean_time = measured(place, honest)
    fat, fat_time = measured(place, *made)
    assert fat - lean < 128 << 20
    assert fat_time - lean_time < 20


def measured(place: Path, *commits: str) -> tuple[int, float]:
    """Bytes at most and seconds of a process that verifies."""
    command = [sys.executable, "-m", "llmtrace", "verify", *CPU, *commits]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XDG_CONFIG_HOME": str(place / "config")}
    start = time.monotonic()
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, _, used = os.wait4(process.pid, 0)
    process.returncode = 0
    return used.ru_maxrss << 10, time.monotonic() - start


def test_the_memory_of_a_plan_is_known_before_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(make(tmp_path / "m", hidden=72, heads=3, kv_heads=1, head_size=40, vocab=301))
    taken = []
    zeros = CpuDevice.zeros
    monkeypatch.setattr(
        CpuDevice, "zeros", lambda s, *a, **k: taken.append(made := zeros(s, *a, **k)) or made
    )
    keep = ("blocks.1.hook_mlp_out", "unembed.hook_out")
    request = Request((1, 2, 3) * 100, 30, forced=(1,) * 30)
    model.plan([request])  # places the weights
    taken.clear()
    model.plan([request], keep=keep)
    size = sum(array.nbytes for array in taken)
    limits = Limits(165, 165, 3, 1)  # 330 positions in two passes
    threads = model.device.threads
    assert footprint(model.architecture, limits, keep, threads=threads) == size
    positions, points = 329, 1 + 2 * 17 + 4
    rows = 2 * 32 * points + 4 * 4 * (72 + 301)
    assert model.memory(request, keep=keep) == size + positions * rows
    whole = 3 * 4 * (32 * points + 2 * 3 * 8)
    assert model.memory(request, keep=keep, whole=True) == size + positions * (rows + whole)


def test_a_replay_tells_how_far_it_is(tmp_path: Path) -> None:
    model = load(make(tmp_path / "m"))
    request = Request(tuple(range(20)), 4, forced=(1, 2, 3, 4))
    plan = model.plan([request], chunk=8)
    events = list(trace(model, plan, [request], chunk=8))
    assert [e.positions for e in events if isinstance(e, Fed)] == [8, 16, 23]
    assert isinstance(events[-1], Done)
    with pytest.raises(Exception, match=r"more than the 0 seconds .* with 8 positions done"):
        clock = Caps(seconds=0).clock()
        for event in trace(model, plan, [request], chunk=8):
            clock.check(event)


@pytest.mark.parametrize(
    ("text", "size"), [("512M", 512 << 20), ("4g", 4 << 30), ("1GiB", 1 << 30), ("7", 7)]
)
def test_sizes(text: str, size: int) -> None:
    from llmtrace.cli.caps import Size

    assert Size().convert(text, None, None) == size


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--max-memory", "much"), "'much' is no size"),
        (("--max-memory", "0"), "'0' is no size"),
        (("--max-tokens", "0"), "invalid value for '--max-tokens'"),
        (("--spot", "0"), "invalid value for '--spot'"),
        (("--spot-seed", SEED), "--spot-seed without --spot"),
        (("--spot", "1", "--spot-seed", "12"), "is not 32 hexadecimal digits"),
    ],
)
def test_options_without_meaning(commits: dict[str, str], options: tuple, said: str) -> None:
    refused = call("verify", commits["greedy"], *options)
    assert (refused.status, refused.out) == (2, "")
    assert said in refused.err


# Draws


def test_a_draw_is_the_smallest_keyed_digests() -> None:
    digests = [blake3(bytes([i])).hexdigest() for i in range(200)]
    records = [Drawn(f"c{i}", digest) for i, digest in enumerate(digests)]
    key = blake3(bytes.fromhex(SEED), derive_key_context="llmtrace verify --spot 1").digest()
    ranked = sorted(digests, key=lambda d: blake3(bytes.fromhex(d), key=key).hexdigest())
    made = draw(bytes.fromhex(SEED), 7, records)
    assert [record.digest for record in made.records] == ranked[:7]
    assert [record.commit for record in made.records] == [
        f"c{digests.index(d)}" for d in ranked[:7]
    ]
    assert made.population == 200
    assert draw(bytes.fromhex(SEED), 7, [*records[::-1], *records]).records == made.records
    assert draw(bytes(16), 7, records).records != made.records
    assert len(draw(bytes(16), 300, records).records) == 200


def test_draws_are_even() -> None:
    """Chi-squared over 4,000 draws of 5 out of 20: 19 degrees of freedom, less than 1 in 10,000."""
    records = [Drawn(str(i), blake3(bytes([i])).hexdigest()) for i in range(20)]
    counts = [0] * 20
    for i in range(4000):
        for record in draw(i.to_bytes(16, "big"), 5, records).records:
            counts[int(record.commit)] += 1
    assert sum((count - 1000) ** 2 / 1000 for count in counts) < 50


def passing(population: int, drawn: int, false: int) -> Fraction:
    """One draw after the other, none of them false."""
    chance = Fraction(1)
    for i in range(drawn):
        chance *= Fraction(max(population - false - i, 0), population - i)
    return chance


@pytest.mark.parametrize(
    ("population", "drawn"), [(400, 20), (1, 1), (7, 3), (20, 20), (100, 1), (1000, 58)]
)
def test_confidence_is_exact(population: int, drawn: int) -> None:
    found = confidence(population, drawn)
    assert found.false == -(-population // 20)
    chance, exact = Fraction(found.chance), passing(population, drawn, found.false)
    assert exact <= chance < exact + Fraction(1, 10**6)
    assert passing(population, drawn, found.most) > Fraction(1, 20) or found.most == 0
    assert passing(population, drawn, found.most + 1) <= Fraction(1, 20)


def test_confidence_of_the_manual() -> None:
    found = confidence(400, 20)
    assert (found.false, found.chance[:4], found.most) == (20, "0.34", 54)


def test_a_spot_check(store: Store, theirs: Store) -> None:
    node = ("--node", theirs.node)
    *replayed, spot = verdicts(*node, "--spot", "2", "--spot-seed", SEED)
    assert [v["commit"] for v in replayed] == spot["drawn"]
    assert (spot["of"], spot["seed"], spot["verdicts"]) == (3, SEED, {"verified": 2})
    digests = [store.read(commit).digest for commit in ids(*node)]
    whole = blake3(b"".join(sorted(map(bytes.fromhex, digests)))).hexdigest()
    assert spot["population"] == whole
    assert spot["confidence"] == {"false": 1, "chance": "0.333334", "most": 1}
    again = verdicts(*node, "--spot", "2", "--spot-seed", SEED)[-1]
    assert again["drawn"] == spot["drawn"]
    said = call("verify", *CPU, *node, "--spot", "2")
    assert re.search(r"^llmtrace: spot seed [0-9a-f]{32}$", said.err, re.MULTILINE)
    assert said.lines[-1].startswith("spot: 2 of 3 replayed, all verified; a chain with 5 % false")
    seeds = {verdicts(*node, "--spot", "1")[-1]["seed"] for _ in range(3)}
    assert len(seeds) == 3


def test_a_spot_check_finds_what_is_false(store: Store, theirs: Store) -> None:
    bad = stranger(store, theirs, trace={"activations": "0" * 64})
    node = ("--node", theirs.node)
    *_, spot = verdicts(*node, "--spot", "9", status=1)
    assert (spot["of"], spot["confidence"]) == (4, None)
    assert spot["verdicts"] == {"verified": 3, "differs": 1}
    assert bad in spot["drawn"]
    said = call("verify", *CPU, *node, "--spot", "9")
    assert (
        said.lines[-1]
        == "spot: 4 of 4 drawn, 3 verified, 1 differs: nothing follows for the others"
    )


def test_a_spot_check_audits_what_it_does_not_draw(store: Store, commits: dict[str, str]) -> None:
    raw = store.read(commits["greedy"]).raw.replace(b"\n\nrun: tiny", b"\n\nrun: tony")
    command = ["git", "-C", store.path, "hash-object", "-w", "-t", "commit", "--stdin"]
    done = subprocess.run(command, input=raw, capture_output=True, check=True)
    bad = done.stdout.decode().strip()
    found = verdicts(bad, commits["greedy"], commits["again"], "--spot", "1", status=1)
    assert (found[0]["verdict"], found[0]["commit"]) == ("invalid", bad)
    assert (found[0]["node"], found[0]["signer"]) == (None, None)
    assert found[-1]["of"] == 2
    assert len(found) == 3


# Recorded verdicts

URI = {"type": "string", "pattern": "^[a-z][a-z0-9+.-]*:[^ ]+$"}
DIGESTS = {
    "type": "object",
    "minProperties": 1,
    "properties": {
        "sha256": {"pattern": "^[0-9a-f]{64}$"},
        "gitCommit": {"pattern": "^([0-9a-f]{40}|[0-9a-f]{64})$"},
    },
    "additionalProperties": {"type": "string"},
}
RESOURCE = {"type": "object", "properties": {"uri": URI, "digest": DIGESTS}}
STATEMENT = {  # in-toto/attestation spec/v1/statement.md, slsa.dev/spec/v1.0/verification_summary
    "type": "object",
    "required": ["_type", "subject", "predicateType", "predicate"],
    "additionalProperties": False,
    "properties": {
        "_type": {"const": "https://in-toto.io/Statement/v1"},
        "subject": {
            "type": "array",
            "minItems": 1,
            "uniqueItems": True,
            "items": {"allOf": [RESOURCE, {"required": ["digest"]}]},
        },
        "predicateType": {"const": "https://slsa.dev/verification_summary/v1"},
        "predicate": {
            "type": "object",
            "required": [
                *("verifier", "timeVerified", "resourceUri", "policy"),
                *("verificationResult", "verifiedLevels"),
            ],
            "properties": {
                "verifier": {"type": "object", "required": ["id"], "properties": {"id": URI}},
                "timeVerified": {
                    "type": "string",
                    "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$",
                },
                "resourceUri": URI,
                "policy": {"allOf": [RESOURCE, {"required": ["uri"]}]},
                "inputAttestations": {"type": "array"},
                "verificationResult": {"enum": ["PASSED", "FAILED"]},
                "verifiedLevels": {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "type": "string",
                        "anyOf": [
                            {"pattern": "^SLSA_BUILD_LEVEL_[0-3]$"},
                            {"not": {"pattern": "^SLSA_"}},
                        ],
                    },
                },
                "dependencyLevels": {"type": "object"},
                "slsaVersion": {"type": "string", "pattern": r"^\d+\.\d+$"},
            },
            "patternProperties": {"^[a-z][a-z0-9+.-]*:[^ ]+$": {}},  # extensions are URIs
            "additionalProperties": False,
        },
    },
}


def statements(*arguments: str, store: Store, status: int) -> list[tuple[dict, dict]]:
    """Each verdict that was printed, with the statement recorded of it."""
    found = []
    for line in verdicts(*arguments, "--record", status=status):
        if line["type"] == "verify" and line["recorded"]:
            record = store.read(line["recorded"]).record
            assert (record.kind, record.node) == ("verdict", store.node)
            statement = json.loads(record.json)["verdict"]
            jsonschema.Draft202012Validator(STATEMENT).validate(statement)
            found.append((line, statement))
    return found


def test_verdicts_are_recorded_as_statements(store: Store, commits: dict[str, str]) -> None:
    bad = tell(store, commits["greedy"], {"output.txt": b"else"})
    asked = [commits["greedy"], bad, commits["other"]]
    found = statements(*asked, store=store, status=1)
    assert [line["commit"] for line, _ in found] == asked[:2]  # an inconclusive one is not
    for line, statement in found:
        entry, predicate = store.read(line["commit"]), statement["predicate"]
        passed = line["verdict"] == "verified"
        assert statement["subject"] == [
            {"name": "commit", "digest": {"gitCommit": entry.id}},
            {
                "name": "record.json",
                "digest": {
                    "blake3": entry.digest,
                    "sha256": hashlib.sha256(entry.json).hexdigest(),
                },
            },
        ]
        assert predicate["verifier"] == {"id": f"urn:llmtrace:node:{store.node}"}
        assert predicate["verificationResult"] == ("PASSED" if passed else "FAILED")
        assert predicate["verifiedLevels"] == ["LLMTRACE_REPLAYED" if passed else "FAILED"]
        ours = predicate["urn:llmtrace:verdict:1"]
        for name in ("verdict", "reason", "checked", "unchecked", "first_difference"):
            assert ours[name] == line[name]
        assert (ours["numerics"], ours["device"]["device"]) == ("accuracy.1", "cpu")
        assert ours["spot"] is None
    assert call("audit", "self").status == 0


def test_a_recorded_draw_can_be_made_again(store: Store, theirs: Store) -> None:
    true = [entry.id for entry in theirs.log()][::-1][1:4]
    found = statements(*true, "--spot", "2", "--spot-seed", SEED, store=store, status=0)
    spot = verdicts(*true, "--spot", "2", "--spot-seed", SEED)[-1]
    assert [line["commit"] for line, _ in found] == spot["drawn"]
    for _, statement in found:
        told = statement["predicate"]["urn:llmtrace:verdict:1"]["spot"]
        assert told == {
            "seed": SEED,
            "drawn": 2,
            "of": spot["of"],
            "population": spot["population"],
        }


def test_a_difference_of_an_invalid_and_a_faulty_record_is_recorded(store: Store) -> None:
    with fault("layers.1.act", 9):
        bad = answer("run", *CPU, "-n", "6", "-m", "tiny", "--leaves", "Once on")["commit"]
    raw = store.read(bad).raw.replace(b"\n\nrun: tiny", b"\n\nrun: tony")
    command = ["git", "-C", store.path, "hash-object", "-w", "-t", "commit", "--stdin"]
    done = subprocess.run(command, input=raw, capture_output=True, check=True)
    invalid = done.stdout.decode().strip()
    (_, first), (line, second) = statements(bad, invalid, store=store, status=1)
    difference = first["predicate"]["urn:llmtrace:verdict:1"]["first_difference"]
    assert (difference["layer"], difference["block"]) == (1, "layers.1.act")
    assert line["verdict"] == "invalid"
    ours = second["predicate"]["urn:llmtrace:verdict:1"]
    assert (ours["numerics"], ours["device"], ours["unchecked"]) == (None, None, ["replay"])


def test_a_verdict_of_another_form_cannot_be_written(store: Store, commits: dict[str, str]) -> None:
    from llmtrace.errors import Trouble
    from llmtrace.verify.judge import Verdict
    from llmtrace.verify.statement import statement
    from llmtrace.verify.verify import audited

    entry = store.read(commits["greedy"])
    assert audited(store, entry) is None
    good = statement(entry, Verdict("verified"), store.node, 1)
    changes: list[dict[str, Any]] = [
        {"_type": "https://in-toto.io/Statement/v0.1"},
        {"predicateType": "https://slsa.dev/provenance/v1"},
        {"subject": []},
        {"subject": [{"name": "commit"}]},
        {"more": 1},
        *(
            {"predicate": good["predicate"] | {name: 1}}
            for name in ("verifier", "verificationResult")
        ),
    ]
    for change in changes:
        with pytest.raises(Trouble, match="a record cannot be made"):
            store.append("verdict", {"verdict": good | change}, {}, 1)
    with pytest.raises(Trouble, match="inconclusive"):
        statement(entry, Verdict("inconclusive"), store.node, 1)
    assert np.isfinite(len(store.append("verdict", {"verdict": good}, {}, 1)))
