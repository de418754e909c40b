"""Drafts save steps and move no bit, whoever guesses, and however wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from checkpoints import make
from llmtrace.engine.draft import LONGEST, SHORTEST, Ngram, Smaller, fits
from llmtrace.engine.request import Request, Sampling
from llmtrace.engine.trace import Done, Model, Token, trace
from llmtrace.errors import Misuse
from llmtrace.introspect.observer import observing
from llmtrace.model.registry import sample_folder
from llmtrace.model.tokenizer import Tokenizer
from running import load, run

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from llmtrace.engine.draft import Drafter
    from llmtrace.engine.sequence import Trace

DRAWN = Sampling(np.float32(0.9), 40, 3 << 30, seed=5)


class Scripted:
    """Guesses an output that is known before, with every so many tokens wrong."""

    def __init__(self, request: Request, output: Sequence[int], wrong_every: int = 0) -> None:
        self._after = len(request.prompt)
        self._output = [
            (token + 1) % 300 if wrong_every and i % wrong_every == wrong_every - 1 else token
            for i, token in enumerate(output)
        ]

    def guess(self, known: Sequence[int], most: int) -> list[int]:
        begin = len(known) - self._after
        return self._output[begin : begin + most]


def drafted(
    model: Model,
    requests: list[Request],
    draft: Callable[[Request], Drafter] | None,
    chunk: int = 256,
    **options: Any,
) -> tuple[list[Trace], list[list[int]], int]:
    """The traces, the tokens as they were told, and how many steps it took."""
    plan = model.plan(requests, chunk=chunk, **options)
    steps, step = [], plan.step
    plan.step = lambda feed: (steps.append(len(feed["token"])), step(feed))[1]  # type: ignore[method-assign]
    done: dict[int, Trace] = {}
    told: list[list[int]] = [[] for _ in requests]
    observe = observing(model, "detail")
    for event in trace(model, plan, requests, chunk=chunk, observe=observe, draft=draft):
        if isinstance(event, Token):
            told[event.index].append(event.token)
        if isinstance(event, Done):
            done[event.index] = event.trace
    return [done[i] for i in range(len(requests))], told, len(steps)


def same(one: Trace, other: Trace) -> None:
    assert one.output == other.output
    assert one.finish_reason == other.finish_reason
    assert one.commitment == other.commitment
    assert one.logprobs.tobytes() == other.logprobs.tobytes()
    assert one.kept.keys() == other.kept.keys()
    assert all(np.array_equal(one.kept[name], other.kept[name]) for name in one.kept)
    assert one.observer
    assert other.observer
    assert one.observer.parts() == other.observer.parts()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(make(tmp_path_factory.mktemp("draft"), vocab=300, layers=3))


def prompt_of(length: int, seed: int = 0) -> tuple[int, ...]:
    return tuple(np.random.default_rng(seed).integers(0, 300, length).tolist())


@pytest.mark.parametrize("wrong_every", [0, 1, 2, 5, 9])
@pytest.mark.parametrize("length", [1, 7, 120])
def test_no_guess_moves_a_bit(model: Model, length: int, wrong_every: int) -> None:
    """Right, wrong and mixed; across tiles of the cache; all that probes and digests tell."""
    request = Request(prompt_of(length), 40, DRAWN)
    keep = ["unembed.hook_out", "blocks.1.attn.hook_z"]
    (expected,), _, plain = drafted(model, [request], None, keep=keep)
    scripted = Scripted(request, expected.output, wrong_every)
    (got,), (told,), steps = drafted(model, [request], lambda _: scripted, keep=keep)
    same(got, expected)
    assert tuple(told) == expected.output
    assert plain == 40
    # right ones: of 4, 8, 15 tokens; every other wrong: a guess may always come at the wrong one
    assert steps <= {0: 5, 1: 40, 2: 40, 5: 20, 9: 12}[wrong_every]


def test_a_stop_token_ends_the_run_among_right_guesses(model: Model) -> None:
    request = Request(prompt_of(9), 40, DRAWN)
    (whole,) = run(model, [request])
    stop = whole.output[17]
    ended = Request(request.prompt, 40, DRAWN, stop=(stop,))
    (expected,), _, _ = drafted(model, [ended], None)
    (got,), (told,), _ = drafted(model, [ended], lambda r: Scripted(r, whole.output))
    same(got, expected)
    assert got.finish_reason == "stop"
    assert tuple(told) == got.output == whole.output[: whole.output.index(stop) + 1]


def test_a_batch_of_drafts_gives_each_sequence_its_bits(model: Model) -> None:
    requests = [Request(prompt_of(3 + 7 * n, n), 12 + n, DRAWN) for n in range(20)]
    expected = [drafted(model, [r], None)[0][0] for r in requests]
    outputs = {r: t.output for r, t in zip(requests, expected, strict=True)}
    got, _, _ = drafted(model, requests, lambda r: Scripted(r, outputs[r], 4), chunk=24)
    for one, other in zip(got, expected, strict=True):
        same(one, other)


def test_what_a_wrong_guess_overflows_to_is_nowhere_seen(tmp_path: Path) -> None:
    """Its keys and values are not finite, and stand right behind those that are read."""
    folder = make(tmp_path / "m", vocab=300, dtype="float32")
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    table = tensors["model.embed_tokens.weight"]
    table[7] = np.inf
    save_file(tensors, file, {"format": "pt"})
    model = load(folder)
    request = Request(prompt_of(126), 10)
    (expected,), _, _ = drafted(model, [request], None)
    assert 7 not in (*request.prompt, *expected.output)
    wrong = [*expected.output[:2], *[7] * 8]
    (got,), _, steps = drafted(model, [request], lambda r: Scripted(r, wrong))
    same(got, expected)
    assert steps < 10


def test_a_smaller_model_guesses_as_it_would_draw_itself(model: Model, tmp_path: Path) -> None:
    """The model itself guesses right always, also behind tokens that it would not draw."""
    request = Request(prompt_of(50), 40, DRAWN)
    (expected,), _, _ = drafted(model, [request], None)
    (got,), _, steps = drafted(model, [request], lambda r: Smaller(model, r))
    same(got, expected)
    assert steps == 5
    other = load(make(tmp_path / "other", seed=3, layers=1, vocab=300))
    (got,), _, steps = drafted(model, [request], lambda r: Smaller(other, r))
    same(got, expected)
    assert steps > 5
    late = Smaller(model, request)
    known = [*request.prompt, *expected.output[:3], (expected.output[3] + 1) % 300]
    late.guess([*request.prompt, *expected.output[:2]], 6)
    (apart,) = run(model, [Request(tuple(known), 5, DRAWN)])
    assert late.guess(known, 5) == list(apart.output)


def test_a_draft_needs_the_same_vocabulary(model: Model, tmp_path: Path) -> None:
    with pytest.raises(Misuse, match="the draft model has 259 tokens, the model 300"):
        fits(model.architecture, load(make(tmp_path / "m")).architecture)


@given(st.lists(st.integers(0, 2), max_size=60), st.integers(1, 9), st.data())
def test_ngram_gives_what_followed_the_latest_longest_occurrence(
    known: list[int], most: int, data: st.DataObject
) -> None:
    ngram = Ngram()
    for end in sorted(data.draw(st.sets(st.integers(0, len(known))))):
        ngram.guess(known[:end], 3)  # asked before, when less was known
    found: list[int] = []
    for size in range(SHORTEST, LONGEST + 1):
        gram = known[len(known) - size :]
        for end in range(size, len(known)):
            if len(known) >= size and known[end - size : end] == gram:
                found = known[end : end + most]
    assert ngram.guess(known, most) == found


def test_text_that_repeats_takes_few_steps() -> None:
    model = load(sample_folder())
    tokenizer = Tokenizer.open(model.checkpoint)
    request = Request(tuple(tokenizer.encode("one two three one two three one two")), 120)
    (expected,), _, _ = drafted(model, [request], None)
    (got,), _, steps = drafted(model, [request], lambda _: Ngram())
    same(got, expected)
    assert steps < 100
