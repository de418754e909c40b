"""Verify names what was tampered with: bytes flipped, parts falsified and signed, models."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import zlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from checkpoints import make
from llmtrace.cli import main
from llmtrace.errors import Trouble
from llmtrace.model.checkpoint import Checkpoint
from llmtrace.model.identity import identify
from llmtrace.probes.records import probes_bin, read_probes_bin
from llmtrace.probes.scheme import Rule, Scheme
from llmtrace.store.chain import Store

if TYPE_CHECKING:
    from collections.abc import Callable

PROMPT = "the quick brown fox"
RUN = [
    "run",
    PROMPT,
    "-n",
    "12",
    "-d",
    "cpu",
    "--temperature",
    "0.7",
    "--top-k",
    "50",
    "--top-p",
    "0.9",
    "--seed",
    "5",
]
KEEP = ["--keep", "blocks.0.hook_mlp_out"]


@dataclasses.dataclass
class Place:
    """A home with one model and one record."""

    root: Path
    model: Path
    commit: str

    @property
    def store(self) -> Store:
        return Store.open(
            self.root / "store.git", self.root / "config" / "llmtrace" / "keys", create=True
        )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    root = tmp_path_factory.mktemp("place")
    model = make(root / "model", layers=2, head_size=32, heads=2, kv_heads=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(root / "config"))
        assert (
            main(
                [
                    "--store",
                    str(root / "store.git"),
                    *RUN,
                    *KEEP,
                    "-m",
                    str(model),
                    "--format",
                    "id",
                ]
            )
            == 0
        )
    commit = subprocess.run(
        ["git", "-C", root / "store.git", "rev-parse", "HEAD"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    return Place(root, model, commit)


@pytest.fixture
def verify(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, dict[str, Any]]]:
    """Runs `llmtrace verify --json` on one commit: its status and its line."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(place.root / "config"))

    def call(commit: str, model: Path = place.model) -> tuple[int, dict[str, Any]]:
        capsys.readouterr()
        arguments = [
            "--store",
            str(place.root / "store.git"),
            "verify",
            commit,
            "-m",
            str(model),
            "-d",
            "cpu",
            "--json",
        ]
        status = main(arguments)
        lines = capsys.readouterr().out.splitlines()
        return status, json.loads(lines[0])

    return call


def test_an_honest_record_is_verified_and_all_its_parts_are_named(
    place: Place, verify: Callable
) -> None:
    status, line = verify(place.commit)
    assert (status, line["verdict"], line["reason"]) == (0, "verified", "")
    parts = {"digests.bin", "kept.000", "output.txt", "prompt.txt"}
    parts |= {"features.json", "probes.bin", "scores.json"}
    assert set(line["checked"]) == {"trace", *parts}
    assert line["unchecked"] == ["attested"]
    assert line["first_difference"] is None


def sections_and_parts(place: Place) -> tuple[dict[str, Any], dict[str, bytes]]:
    record = place.store.read(place.commit).record
    return json.loads(json.dumps(record.sections)), {
        name: record.parts[name] for name in record.parts
    }


def falsified(place: Place, sections: dict[str, Any], parts: dict[str, bytes]) -> str:
    """Signs a record with the node's own key, all sizes and digests right."""
    return place.store.append_run(
        sections["trace"], sections["probes"], sections["attested"], parts, 1_800_000_000
    )


def output_text(_: dict, parts: dict[str, bytes]) -> None:
    parts["output.txt"] = parts["output.txt"][:-1] + b"!"


def prompt_text(_: dict, parts: dict[str, bytes]) -> None:
    parts["prompt.txt"] = parts["prompt.txt"].replace(b"quick", b"slick")


def feature(_: dict, parts: dict[str, bytes]) -> None:
    made = json.loads(parts["features.json"])
    means = made["layers"]["stream_rms"]["mean"]
    means[1] = float(np.nextafter(np.float32(float.fromhex(means[1])), np.float32(9))).hex()
    parts["features.json"] = packed(made)


def score(_: dict, parts: dict[str, bytes]) -> None:
    made = json.loads(parts["scores.json"])
    made["run"]["usefulness"]["q16"] += 1
    parts["scores.json"] = packed(made)


def packed(made: dict) -> bytes:
    return json.dumps(made, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def sample(_: dict, parts: dict[str, bytes]) -> None:
    stored = read_probes_bin(parts["probes.bin"])
    points = stored.points.copy()
    points[-1, -1, 23] += 1  # the last of 8 samples of the last record
    parts["probes.bin"] = probes_bin(replace(stored, points=points))


def head(_: dict, parts: dict[str, bytes]) -> None:
    stored = read_probes_bin(parts["probes.bin"])
    heads = stored.heads.copy()
    heads[0, 1, 1, 1] ^= 1 << 16  # the sink mass of a head, by one step
    parts["probes.bin"] = probes_bin(replace(stored, heads=heads))


def logprob(_: dict, parts: dict[str, bytes]) -> None:
    stored = read_probes_bin(parts["probes.bin"])
    drawn = stored.drawn.copy()
    drawn[0, 0] ^= 1
    parts["probes.bin"] = probes_bin(replace(stored, drawn=drawn))


def kept(_: dict, parts: dict[str, bytes]) -> None:
    parts["kept.000"] = parts["kept.000"][:-4] + np.array(1.0, "<f4").tobytes()


def position_digest(_: dict, parts: dict[str, bytes]) -> None:
    parts["digests.bin"] = parts["digests.bin"][:48] + bytes(16) + parts["digests.bin"][64:]


def root(sections: dict, _: dict) -> None:
    sections["trace"]["activations"] = "0" * 64


def finish_reason(sections: dict, _: dict) -> None:
    sections["trace"]["finish_reason"] = "stop"


def seed(sections: dict, _: dict) -> None:
    sections["trace"]["seed"] = "6"


def missing_part(_: dict, parts: dict[str, bytes]) -> None:
    del parts["features.json"]


def missing_digests(_: dict, parts: dict[str, bytes]) -> None:
    del parts["digests.bin"]


def extra_part(_: dict, parts: dict[str, bytes]) -> None:
    parts["samples.safetensors"] = b"{}\n"


def token(sections: dict, _: dict) -> None:
    sections["trace"]["output_tokens"][4] ^= 1


def prompt_token(sections: dict, _: dict) -> None:
    sections["trace"]["prompt_tokens"][2] ^= 1


FALSIFIED = {
    output_text: "output.txt: differs from the replay at byte",
    prompt_text: "prompt.txt does not encode to the prompt tokens",
    feature: "features.json: differs from the replay at byte",
    sample: "probes.bin: differs from the replay at byte",
    score: "scores.json: differs from the replay at byte",
    head: "probes.bin: differs from the replay at byte",
    logprob: "probes.bin: differs from the replay at byte 32",
    kept: "kept.000: differs from the replay at byte",
    position_digest: "digests.bin differs: position 3",
    root: "root of the activations does not follow from digests.bin",
    finish_reason: "finish reason is 'stop', replay gives 'length'",
    seed: "the sampler draws",
    missing_part: "features.json: missing",
    missing_digests: "digests.bin has 0 bytes",
    extra_part: "samples.safetensors: a replay makes no such part",
    token: "token 4 at position",
    prompt_token: "prompt.txt does not encode to the prompt tokens",
}


@pytest.mark.parametrize("change", FALSIFIED, ids=lambda change: change.__name__)
def test_a_falsified_part_that_its_author_signed_is_found_and_named(
    place: Place, verify: Callable, change: Callable
) -> None:
    sections, parts = sections_and_parts(place)
    change(sections, parts)
    status, line = verify(falsified(place, sections, parts))
    assert (status, line["verdict"]) == (1, "differs")
    assert FALSIFIED[change] in line["reason"]


def test_a_falsified_token_gives_its_position_and_what_was_drawn(
    place: Place, verify: Callable
) -> None:
    sections, parts = sections_and_parts(place)
    honest = sections["trace"]["output_tokens"][4]
    token(sections, parts)
    _, line = verify(falsified(place, sections, parts))
    prompt = len(sections["trace"]["prompt_tokens"])
    difference = line["first_difference"]
    assert (difference["position"], difference["token"], difference["block"]) == (
        prompt + 3,
        4,
        "sample",
    )
    assert (difference["expected"], difference["got"]) == (str(honest ^ 1), str(honest))


def test_a_single_fault_is_located_by_position_and_block(place: Place, verify: Callable) -> None:
    """As after a fault in layer 1 at position 5: the roots of one row and one column differ."""
    sections, parts = sections_and_parts(place)
    positions = len(sections["trace"]["prompt_tokens"]) + 12 - 1
    column = 1 + 17 + 15  # hook_embed, layer 0, then hook_mlp_out of layer 1
    digests = bytearray(parts["digests.bin"])
    for row in (5, positions + column):
        digests[16 * row] ^= 1
    parts["digests.bin"] = bytes(digests)
    sections["trace"]["activations"] = "1" * 64
    status, line = verify(falsified(place, sections, parts))
    difference = line["first_difference"]
    assert status == 1
    assert (difference["position"], difference["block"]) == (5, "layers.1.down_proj")
    assert difference["point"] == "blocks.1.hook_mlp_out"


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.pop("seed"),
        lambda t: t.update(seed="07"),
        lambda t: t.update(output_tokens=[]),
        lambda t: t.update(prompt_tokens=[-1]),
        lambda t: t.update(prompt_tokens=[300]),
        lambda t: t["sampling"].update(temperature="0x1.0000000000001p-1"),
        lambda t: t["sampling"].update(temperature="nan"),
        lambda t: t["limits"].update(max_tokens=True),
        lambda t: t["limits"].update(max_tokens=0),
        lambda t: t.update(more=1),
    ],
)
def test_a_malformed_claim_is_invalid(place: Place, verify: Callable, change: Callable) -> None:
    sections, parts = sections_and_parts(place)
    change(sections["trace"])
    status, line = verify(falsified(place, sections, parts))
    assert (status, line["verdict"]) == (1, "invalid")


@pytest.mark.parametrize("values", [8, 16, None])
def test_a_scheme_for_points_that_are_none_is_invalid(
    place: Place, verify: Callable, values: int | None
) -> None:
    """Of one's own record too, for which there are no caps."""
    sections, parts = sections_and_parts(place)
    sections["probes"]["scheme"] = Scheme((Rule(points=("nowhere.*",), values=values),)).json()
    status, line = verify(falsified(place, sections, parts))
    assert (status, line["verdict"]) == (1, "invalid")
    assert "nowhere" in line["reason"]


def test_one_changed_weight_is_inconclusive_and_named_before_computing(
    place: Place, verify: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make(tmp_path / "m", layers=2, head_size=32, heads=2, kv_heads=1)
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-2] ^= 1
    (other / "model.safetensors").write_bytes(weights)
    monkeypatch.setattr("llmtrace.engine.trace.Model.place", lambda *_: pytest.fail("it computed"))
    status, line = verify(place.commit, other)
    claimed = place.store.read(place.commit).record.sections["trace"]["model"]
    assert (status, line["verdict"]) == (3, "inconclusive")
    assert f"the record needs model {claimed[:16]}" in line["reason"]


def test_another_version_of_the_arithmetic_is_inconclusive(place: Place, verify: Callable) -> None:
    sections, parts = sections_and_parts(place)
    sections["trace"]["numerics"] = "accuracy.99"
    status, line = verify(falsified(place, sections, parts))
    assert (status, line["verdict"]) == (3, "inconclusive")
    assert "no numerics 'accuracy.99'" in line["reason"]


def raw(place: Place, *arguments: str, data: bytes = b"") -> bytes:
    command = ["git", "-C", place.root / "store.git", *arguments]
    return subprocess.run(command, input=data, capture_output=True, check=True).stdout


def git(place: Place, *arguments: str, data: bytes = b"") -> str:
    return raw(place, *arguments, data=data).decode().strip()


def some_bytes(size: int) -> list[int]:
    return sorted({0, size - 1, *np.random.default_rng(size).integers(0, size, 6).tolist()})


@pytest.mark.parametrize(
    "name",
    [
        "record.json",
        "prompt.txt",
        "output.txt",
        "digests.bin",
        "probes.bin",
        "features.json",
        "kept.000",
    ],
)
def test_a_flipped_byte_rewritten_under_a_new_commit_is_invalid_and_named(
    place: Place, verify: Callable, name: str
) -> None:
    content = raw(place, "cat-file", "blob", f"{place.commit}:{name}")
    commit = git(place, "cat-file", "commit", place.commit) + "\n"
    for at in some_bytes(len(content)):
        changed = content[:at] + bytes([content[at] ^ 0x20]) + content[at + 1 :]
        blob = git(place, "hash-object", "-w", "--stdin", data=changed)
        listing = git(place, "ls-tree", place.commit) + "\n"
        listing = listing.replace(git(place, "rev-parse", f"{place.commit}:{name}"), blob)
        tree = git(place, "mktree", data=listing.encode())
        rewritten = commit.replace(git(place, "rev-parse", place.commit + "^{tree}"), tree)
        made = git(place, "hash-object", "-w", "-t", "commit", "--stdin", data=rewritten.encode())
        status, line = verify(made)
        assert (status, line["verdict"]) == (1, "invalid")
        assert line["reason"].startswith(name + ":")


@pytest.mark.parametrize("name", ["record.json", "digests.bin", "output.txt"])
def test_a_byte_flipped_in_place_is_invalid_and_named(
    place: Place, verify: Callable, name: str
) -> None:
    oid = git(place, "rev-parse", f"{place.commit}:{name}")
    path = place.root / "store.git" / "objects" / oid[:2] / oid[2:]
    original = path.read_bytes()
    inflated = bytearray(zlib.decompress(original))
    try:
        for at in (inflated.index(0) + 1, len(inflated) - 1):
            changed = bytearray(inflated)
            changed[at] ^= 0x20
            path.chmod(0o644)
            path.write_bytes(zlib.compress(bytes(changed)))
            status, line = verify(place.commit)
            assert (status, line["verdict"]) == (1, "invalid")
            assert line["reason"].startswith(name + ":")
    finally:
        path.write_bytes(original)
    assert verify(place.commit)[0] == 0


def test_a_fault_of_the_machine_is_no_verdict(
    place: Place, verify: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise Trouble("no room on 'cuda:0'")

    monkeypatch.setattr("llmtrace.blocks.plan.Plan.step", fail)
    status, line = verify(place.commit)
    assert (status, line["type"]) == (4, "end")


def test_text_of_a_model_without_a_tokenizer_is_false(
    place: Place, verify: Callable, tmp_path: Path
) -> None:
    mute = make(tmp_path / "m", layers=2, head_size=32, heads=2, kv_heads=1, tokenizer=False)
    sections, parts = sections_and_parts(place)
    sections["trace"]["model"] = identify(Checkpoint.open(mute), None)
    status, line = verify(falsified(place, sections, parts), mute)
    assert (status, line["verdict"]) == (1, "differs")
    assert line["reason"] == "output.txt: the model has no tokenizer"
