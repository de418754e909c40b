"""diff: where two runs part, from their records alone."""

from pathlib import Path
from typing import Any

import pytest

from commands import answer, call, forged, tell
from llmtrace.store.chain import Store


def differences(a: str, b: str, *options: str | Path) -> list[dict[str, Any]]:
    told = answer("diff", a, b, *options)
    assert told["same"] == (not told["differences"])
    found: list[dict[str, Any]] = told["differences"]
    return found


def test_diff_of_one_run(runs: dict[str, Any], commits: dict[str, str]) -> None:
    for name in ("greedy", "again", "kept"):
        same = call("diff", commits["greedy"], commits[name])
        assert same == (0, f"same {runs['greedy']['checksum']}\n", "")
        told = answer("diff", commits["greedy"], commits[name])
        assert (told["same"], told["differences"], told["features"]) == (True, [], [])


def test_diff_of_settings(runs: dict[str, Any], commits: dict[str, str]) -> None:
    differs = call("diff", commits["greedy"], commits["drawn"])
    assert differs.status == 1
    assert differs.err == ""
    assert differs.lines[0] == "differs at temperature"
    told = answer("diff", commits["greedy"], commits["drawn"])
    stages = [each["stage"] for each in told["differences"]]
    assert stages == ["temperature", "top_k", "seed", "output", "activations"]
    temperature, _, seed, output, activations = told["differences"]
    assert (temperature["a"], temperature["b"]) == ("0x0.0p+0", "0x1.0000000000000p+0")
    assert (seed["a"], seed["b"]) == ("0", "3")
    a, b = runs["greedy"]["output_tokens"], runs["drawn"]["output_tokens"]
    first = next(i for i in range(6) if a[i] != b[i])
    assert (output["index"], output["a"], output["b"]) == (first, a[first], b[first])
    assert output["position"] == 7 + first
    assert activations["position"] == 8 + first  # the token that differs is fed there
    assert activations["column"] is None  # every point differs where tokens do
    assert told["checksums"] == [runs["greedy"]["checksum"], runs["drawn"]["checksum"]]
    distance = {each["feature"]: float.fromhex(each["distance"]) for each in told["features"]}
    mean = [sum(map(float.fromhex, runs[n]["logprobs"])) / 6 for n in ("greedy", "drawn")]
    assert distance["logprob"] == pytest.approx(abs(mean[0] - mean[1]))


def test_diff_of_prompts_and_models(runs: dict[str, Any], commits: dict[str, str]) -> None:
    prompt, *_ = differences(commits["greedy"], commits["bare"])
    tokens = runs["greedy"]["prompt_tokens"]
    assert (prompt["stage"], prompt["index"]) == ("prompt", 0)
    assert (prompt["a"], prompt["b"]) == (tokens[0], 84)
    model, *_ = differences(commits["greedy"], commits["other"])
    assert model["stage"] == "model"
    assert model["b"] == runs["other"]["model"]["id"]
    assert call("diff", commits["greedy"], commits["other"]).lines[0] == "differs at model"


def test_diff_of_a_prompt_that_goes_on(place: Path, commits: dict[str, str]) -> None:
    """Where one prompt ends the other has no logits: that is no difference of what was computed."""
    run = ("run", "-d", "cpu", "-m", "tiny", "--format", "id", "-n", "1", "--prompt-tokens")
    short, long = (call(*run, tokens).out.strip() for tokens in ("1 2 3", "1 2 3 4"))
    stages = {each["stage"]: each for each in differences(short, long)}
    assert (stages["prompt"]["a"], stages["prompt"]["b"], stages["prompt"]["index"]) == (None, 4, 3)
    assert stages["activations"]["position"] is None
    assert "(none) | 4" in call("diff", short, long).out


def test_diff_names_position_and_block(place: Path, store: Store, commits: dict[str, str]) -> None:
    bad = forged(store, commits["greedy"], 5, 9)
    (found,) = differences(commits["greedy"], bad)
    assert (found["stage"], found["position"], found["column"]) == ("activations", 5, 9)
    assert (found["block"], found["point"]) == ("layers.0.o_proj", "blocks.0.hook_attn_out")
    said = call("diff", commits["greedy"], bad)
    assert said.status == 1
    where = "from position 5, layers.0.o_proj (blocks.0.hook_attn_out) on"
    assert said.lines == ["differs at activations", f"activations   {where}"]
    assert f"'llmtrace verify {commits['greedy'][:8]} {bad[:8]}' says which" in said.err
    assert call("-q", "diff", commits["greedy"], bad).err == ""
    nameless = forged(store, commits["other"], 5, 9)
    assert "from position 5, point 9 on" in call("diff", commits["other"], nameless).out
    named = call("diff", "-m", place / "other", commits["other"], nameless)
    assert where in named.out
    assert call("diff", "-m", "tiny", commits["other"], nameless).status == 3


def test_diff_orders_by_position(store: Store, commits: dict[str, str]) -> None:
    """What is computed at a position comes before the token drawn there, and after earlier ones."""
    output = [*store.read(commits["greedy"]).record.sections["trace"]["output_tokens"]]
    output[3] ^= 1
    digests = bytearray(store.read(commits["greedy"]).record.parts["digests.bin"])
    for position, order in ((10, ["activations", "output"]), (11, ["output", "activations"])):
        changed = bytearray(digests)
        changed[16 * position] ^= 1
        trace = {"activations": "0" * 64, "output_tokens": output}
        bad = tell(store, commits["greedy"], {"digests.bin": bytes(changed)}, trace=trace)
        assert [each["stage"] for each in differences(commits["greedy"], bad)] == order


def test_diff_finds_parts_that_contradict(store: Store, commits: dict[str, str]) -> None:
    bad = tell(store, commits["greedy"], {"output.txt": b"something else"})
    (found,) = differences(commits["greedy"], bad)
    assert found["stage"] == "output.txt"
    said = call("diff", commits["greedy"], bad)
    assert (said.status, said.lines[0]) == (1, "differs at output.txt")
    assert "says which record is true" in said.err


def test_diff_refuses(store: Store, commits: dict[str, str]) -> None:
    first = f"{commits['greedy']}~"
    refused = call("diff", commits["greedy"], first)
    assert (refused.status, refused.out) == (4, "")
    assert (
        f"'{store.read(first).id[:8]}' is a record of kind 'identity', not of a run" in refused.err
    )
    short = tell(
        store, commits["greedy"], {"digests.bin": b"short"}, trace={"activations": "0" * 64}
    )
    refused = call("diff", commits["greedy"], short)
    assert (refused.status, refused.out) == (4, "")
    assert "'digests.bin' is malformed: 5 bytes for 13 positions" in refused.err
    none = tell(store, commits["greedy"], {"digests.bin": None}, trace={"activations": "0" * 64})
    assert "'digests.bin' is malformed: missing" in call("diff", none, commits["greedy"]).err
    assert call("diff", commits["greedy"]).status == 2
