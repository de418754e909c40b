"""run --leaves: what the leaves are, that nothing else notices, and what a false one is called."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from blake3 import blake3

from checkpoints import make
from commands import answer, call, tell
from faults import fault
from llmtrace.engine import evidence
from llmtrace.engine.request import Request
from llmtrace.errors import Trouble
from llmtrace.probes.commitment import group
from running import load, run

if TYPE_CHECKING:
    from pathlib import Path

    from llmtrace.store.chain import Store

RUN = ("run", "-d", "cpu", "-n", "6", "-m", "tiny", "--format", "id")


@pytest.fixture(scope="module")
def leafy(commits: dict[str, str]) -> str:
    return call(*RUN, "--leaves", "Once on").out.strip()


def verify(commit: str) -> dict[str, Any]:
    return answer("verify", "-d", "cpu", commit)


def test_a_leaf_is_the_digest_of_the_digests_of_a_layer(tmp_path: Path) -> None:
    model = load(make(tmp_path / "m", layers=3))
    request = Request(tuple(range(40, 51)), 4)
    points = model.plan([request]).points
    names = [point.name for point in points]
    plain, leafy = (run(model, [request], keep=names, leaves=leaves)[0] for leaves in (False, True))
    assert plain.commitment == leafy.commitment
    assert plain.digests is None
    expected = b""
    for t in range(14):
        for number in range(3 + 2):
            rows = [
                leafy.kept[p.name][t - (10 if p.which == "picked" else 0)]
                for p in points
                if group(p.name, 3) == number and (p.which == "fed" or t >= 10)
            ]
            digests = b"".join(blake3(row.tobytes()).digest() for row in rows)
            expected += blake3(digests).digest()[:16]
    assert leafy.leaves() == expected
    assert [group(n, 3) for n in names] == [0] + [1] * 17 + [2] * 17 + [3] * 17 + [4] * 4
    assert run(model, [request], leaves=True, chunk=3)[0].leaves() == expected


def test_the_size_is_as_the_pages_say(leafy: str, store: Store) -> None:
    assert len(store.read(leafy).record.parts["leaves.bin"]) == 13 * (2 + 2) * 16
    assert 1000 * (32 + 2) * 16 == 544_000


def test_nothing_but_the_part_and_its_mark_is_new(
    leafy: str, commits: dict[str, str], store: Store
) -> None:
    old, new = (store.read(commit).record for commit in (commits["greedy"], leafy))
    assert old.checksum == new.checksum
    assert old.sections["probes"] == {"format": 2, "keep": [], "level": "stats"}
    assert new.sections["probes"] == {"format": 2, "keep": [], "level": "stats", "leaves": True}
    assert {*new.parts} - {*old.parts} == {"leaves.bin"}
    assert all(old.parts[name] == new.parts[name] for name in old.parts)
    told = verify(leafy)
    assert (told["verdict"], "leaves.bin" in told["checked"]) == ("verified", True)
    assert call("diff", commits["greedy"], leafy).status == 0


@pytest.mark.parametrize(("position", "number"), [(0, 0), (5, 1), (12, 2), (12, 3), (7, 3)])
def test_a_false_leaf_is_named(leafy: str, store: Store, position: int, number: int) -> None:
    leaves = bytearray(store.read(leafy).record.parts["leaves.bin"])
    leaves[16 * (4 * position + number)] ^= 1
    told = verify(tell(store, leafy, {"leaves.bin": bytes(leaves)}))
    assert told["verdict"] == "differs"
    where = ("embed", "layer 0", "layer 1", "the head")[number]
    assert told["reason"] == f"leaves.bin differs: position {position}, {where}"
    difference = told["first_difference"]
    layer = number - 1 if number in {1, 2} else None
    assert (difference["position"], difference["layer"]) == (position, layer)


@pytest.mark.parametrize("block", ["layers.0.o_proj", "layers.1.act", "embed", "unembed"])
def test_verify_names_the_layer_of_a_fault(store: Store, block: str) -> None:
    with fault(block, 9):
        bad = call(*RUN, "--leaves", "Once on").out.strip()
    told = verify(bad)["first_difference"]
    layer = int(block[7]) if block.startswith("layers") else None
    assert (told["position"], told["block"], told["layer"]) == (9, block, layer)


@pytest.mark.parametrize("parts", [{"leaves.bin": None}, {"leaves.bin": b"short"}])
def test_leaves_that_are_not_there(leafy: str, store: Store, parts: dict) -> None:
    told = verify(tell(store, leafy, parts))
    assert told["verdict"] == "differs"
    assert told["reason"].startswith("leaves.bin: ")


def test_leaves_that_nobody_announced(commits: dict[str, str], leafy: str, store: Store) -> None:
    parts = {"leaves.bin": store.read(leafy).record.parts["leaves.bin"]}
    told = verify(tell(store, commits["greedy"], parts))
    assert told["reason"] == "leaves.bin: a replay makes no such part"


@pytest.mark.parametrize("leaves", [False, 1, None, "true"])
def test_a_mark_that_is_not_true_is_malformed(leafy: str, store: Store, leaves: object) -> None:
    sections = json.loads(store.read(leafy).record.json)
    sections["probes"]["leaves"] = leaves
    with pytest.raises(Trouble, match="leaves is not true"):
        evidence.claim(sections)
    bad = tell(store, leafy, probes={"leaves": leaves})
    assert verify(bad)["verdict"] == "invalid"
