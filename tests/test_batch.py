"""Batches: sequences join, leave and share what their prompts have in common; no bit notices."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import combinations, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from checkpoints import make
from llmtrace.blocks.versions import version
from llmtrace.engine.prefix import LEAST, prefixes
from llmtrace.engine.request import Request, Sampling
from llmtrace.engine.trace import CONCURRENT, Done, Fed, Model, NotFinite, Token, trace
from llmtrace.introspect.observer import observing
from llmtrace.probes.scheme import Rule, Scheme
from running import load

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from llmtrace.engine.sequence import Trace

VOCAB, POOL, PROBED = 300, 256, 64
SIZES = (1, 2, 3, 16, 17, 64, 255, 256)
KEEP = ("unembed.hook_out", "blocks.1.attn.hook_z")
LENGTHS = (1, 2, 5, 31, 33, 64, 127, 128, 129, 140, 200, 260)
SCHEME = Scheme((Rule(("*.hook_resid_post",), massive=True, values=4),))


def tokens(rng: np.random.Generator, count: int) -> tuple[int, ...]:
    return tuple(rng.integers(0, VOCAB, count).tolist())


def sampling(seed: int) -> Sampling:
    return Sampling(np.float32([0.0, 0.9, 1.5][seed % 3]), [0, 40][seed % 2], 3 << 30, seed)


def apart() -> list[Request]:
    """Prompts of mixed lengths that have nothing in common."""
    rng = np.random.default_rng(1)
    return [
        Request(tokens(rng, LENGTHS[i % len(LENGTHS)]), 1 + i % 5, sampling(i)) for i in range(POOL)
    ]


def alike() -> list[Request]:
    """Prompts that are equal, go on behind others, or part from them anywhere."""
    rng = np.random.default_rng(2)
    root, other = tokens(rng, 70), tokens(rng, 300)
    stems = (root, root + tokens(rng, 58), root + tokens(rng, 130), other, other[:200], ())
    tails = [tokens(rng, n) for n in (1, 1, 2, 20, 70)]
    found = []
    for i in range(POOL):
        tail = tails[int(rng.integers(len(tails)))] if i % 2 else tokens(rng, 1 + i % 40)
        found.append(Request(stems[i % len(stems)] + tail, 1 + i % 5, sampling(i)))
    return found


@dataclass
class Ran:
    """What a schedule gave."""

    traces: dict[int, Trace] = field(default_factory=dict)
    steps: dict[int, int] = field(default_factory=dict)
    told: dict[int, list[int]] = field(default_factory=dict)
    order: list[tuple[str, int]] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    """Fed by each step."""
    failed: NotFinite | None = None


def run(
    model: Model,
    requests: Sequence[Request],
    level: str = "off",
    *,
    chunk: int = 256,
    scheme: Scheme = SCHEME,
    **options: Any,
) -> Ran:
    observe = None if level == "off" else observing(model, level, scheme)
    options = {"probes": 0 if level == "off" else 2, "keep": KEEP, "leaves": True} | options
    draft, observe = options.pop("draft", None), options.pop("observe", observe)
    plan = model.plan(requests, chunk=chunk, **options)
    ran, step = Ran(told={i: [] for i in range(len(requests))}), plan.step
    plan.step = lambda feed: (ran.rows.append(len(feed["token"])), step(feed))[1]  # type: ignore[method-assign]
    events = trace(model, plan, [*requests], chunk=chunk, observe=observe, draft=draft)
    try:
        for event in events:
            if not isinstance(event, Fed):
                ran.order.append((type(event).__name__, event.index))
            if isinstance(event, Token):
                ran.told[event.index].append(event.token)
            if isinstance(event, Done):
                ran.traces[event.index], ran.steps[event.index] = event.trace, event.steps
    except NotFinite as error:
        ran.failed = error
    return ran


def same(got: Trace, expected: Trace, *, probes: bool) -> None:
    """All that a record is made of."""
    assert (got.output, got.finish_reason) == (expected.output, expected.finish_reason)
    assert got.commitment == expected.commitment
    assert got.logprobs.tobytes() == expected.logprobs.tobytes()
    assert got.leaves() == expected.leaves()
    assert got.kept.keys() == expected.kept.keys()
    for name, rows in got.kept.items():
        assert rows.shape == expected.kept[name].shape
        assert rows.tobytes() == expected.kept[name].tobytes()
    assert got.records.tobytes() == expected.records.tobytes()
    if probes:
        assert got.observer
        assert expected.observer
        assert got.observer.parts() == expected.observer.parts()


def all_same(ran: Ran, expected: Sequence[Trace], *, probes: bool) -> None:
    assert ran.failed is None
    assert len(ran.traces) == len(expected)
    for index, other in enumerate(expected):
        same(ran.traces[index], other, probes=probes)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(make(tmp_path_factory.mktemp("m"), vocab=VOCAB, context=1024))


@pytest.fixture(scope="module")
def pools(model: Model) -> dict[str, tuple[list[Request], list[Trace]]]:
    """Requests and what each gives alone; of the first that are alike with their probes."""
    made = {"apart": (apart(), 0), "alike": (alike(), PROBED)}
    return {
        name: (
            asked,
            [
                run(model, [request], "stats" if i < probed else "off").traces[0]
                for i, request in enumerate(asked)
            ],
        )
        for name, (asked, probed) in made.items()
    }


def fewest(requests: Sequence[Request], alone: Sequence[Trace]) -> int:
    """Rows that have to be fed if each prefix is computed once."""
    fed = sum(len(r.prompt) + len(t.output) - 1 for r, t in zip(requests, alone, strict=True))
    paths = prefixes(requests, [b""] * len(requests))
    longer = {p: p.length - q.length for path in paths for q, p in pairwise(path)}
    longer = {path[0]: path[0].length for path in paths if path} | longer
    return fed - sum((prefix.waiting - 1) * length for prefix, length in longer.items())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["apart", "alike"])
def test_a_batch_gives_each_sequence_the_bits_that_it_has_alone(
    model: Model, pools: dict[str, Any], kind: str, size: int
) -> None:
    requests, alone = pools[kind]
    probed = kind == "alike" and size <= PROBED
    ran = run(model, requests[:size], "stats" if probed else "off", chunk=[256, 50][size % 2])
    all_same(ran, alone[:size], probes=probed)
    assert [tuple(told) for told in ran.told.values()] == [t.output for t in alone[:size]]
    rows = fewest(requests[:size], alone[:size])
    assert rows == sum(r.positions for r in requests[:size]) or kind == "alike"
    assert rows <= sum(ran.rows) <= rows * (1.0 if size <= CONCURRENT else 1.1)
    assert max(ran.rows) > 16 or size < 16


def test_64_at_a_time_in_any_order_five_times_over(model: Model, pools: dict[str, Any]) -> None:
    requests, alone = pools["alike"]
    assert CONCURRENT >= 64
    for turn in range(5):
        order = np.random.default_rng(turn).permutation(64).tolist()
        level = "stats" if turn in {0, 3} else "off"
        ran = run(model, [requests[i] for i in order], level, chunk=[256, 33, 64][turn % 3])
        all_same(ran, [alone[i] for i in order], probes=level == "stats")
        assert sum(ran.rows) == fewest(requests[:64], alone[:64])
        assert max(ran.rows) >= 64


def test_what_all_positions_store_is_drawn_for_each_sequence_itself(model: Model) -> None:
    """Samples and sketches follow from the whole prompt, the positions of others from less."""
    rng = np.random.default_rng(5)
    start = tokens(rng, 60)
    requests = [Request(start + tokens(rng, n), 3, sampling(n)) for n in (1, 2, 9)]
    requests += [replace(requests[1], sampling=sampling(7))]
    alone = [run(model, [request], "detail").traces[0] for request in requests]
    ran = run(model, requests, "detail")
    all_same(ran, alone, probes=True)
    # the second and the fourth have but one more in common, and nobody waits for that
    assert sum(ran.rows) == 60 + (1 + 2) + (2 + 2) + (9 + 2) + (2 + 2)


@pytest.mark.parametrize("name", ["speed", "memory"])
def test_every_version_gives_a_batch_the_bits_of_one(model: Model, name: str) -> None:
    """Steps of few and many rows, and a KV cache of 8 bits, which is taken over with its scales."""
    model = replace(model, version=version(name))
    requests = alike()[:12]
    alone = [run(model, [request], "stats").traces[0] for request in requests]
    ran = run(model, requests, "stats")
    all_same(ran, alone, probes=True)
    assert sum(ran.rows) == fewest(requests, alone)


# What is computed, and how often


def test_samples_of_one_prompt_compute_it_once(model: Model) -> None:
    """Also those that begin when the first have ended, all at once."""
    prompt = tokens(np.random.default_rng(3), 200)
    for count, chunk in ((16, 256), (2 * CONCURRENT + 9, 50)):
        requests = [Request(prompt, 5, sampling(seed)) for seed in range(count)]
        ran = run(model, requests, chunk=chunk)
        assert sum(ran.rows) == 199 + 5 * count
        whole = -(-199 // chunk)
        assert ran.steps == {i: 5 + whole * (i == 0) for i in range(count)}
        assert len({trace.output for trace in ran.traces.values()}) > 5


def test_a_prefix_of_a_prefix_is_computed_once(model: Model) -> None:
    """A text, two questions about it, each asked three times, and one that is half a question."""
    rng = np.random.default_rng(4)
    text, first, second = tokens(rng, 150), tokens(rng, 40), tokens(rng, 50)
    near = (*text, *first[:20], *tokens(rng, 10))
    prompts = [text + first, text + second, text + first, near, text + second]
    prompts += [text + first, text + second]
    requests = [Request(prompt, 2, sampling(i)) for i, prompt in enumerate(prompts)]
    alone = [run(model, [request]).traces[0] for request in requests]
    ran = run(model, requests)
    all_same(ran, alone, probes=False)
    # of each question all but its last token; each once more its last token, and one of the output
    assert sum(ran.rows) == 150 + 39 + 49 + 3 * 2 + 3 * 2 + (30 + 1)


def test_little_in_common_is_not_waited_for(model: Model) -> None:
    rng = np.random.default_rng(6)
    start = tokens(rng, LEAST - 1)
    requests = [Request(start + tokens(rng, 5), 1, sampling(i)) for i in range(3)]
    assert run(model, requests).rows == [3 * (LEAST + 4)]
    start += tokens(rng, 1)
    requests = [Request(start + tokens(rng, 5), 1, sampling(i)) for i in range(3)]
    assert run(model, requests).rows == [LEAST, 3 * 5]


def test_nobody_waits_for_those_who_wait(model: Model) -> None:
    """A long text is read in small pieces while others, asked for later, come and go."""
    rng = np.random.default_rng(7)
    text = tokens(rng, 400)
    questions = [Request(text + tokens(rng, 3), 3, sampling(i)) for i in range(5)]
    others = [Request(tokens(rng, 4), 6, sampling(i)) for i in range(5)]
    requests = [*questions, *others]
    alone = [run(model, [request]).traces[0] for request in requests]
    ran = run(model, requests, chunk=32)
    all_same(ran, alone, probes=False)
    assert {index for _, index in ran.order[: 5 * (6 + 1)]} == set(range(5, 10))
    assert sum(ran.rows) == 400 + 5 * (3 + 2) + 5 * (4 + 5)


def test_other_angles_share_nothing(tmp_path: Path) -> None:
    """Of a model whose rotary table follows the run's limit, prompt and most tokens."""
    factors = {"short_factor": [1.0] * 8, "long_factor": [1.0 + i / 4 for i in range(8)]}
    rope = {"rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": 128}
    model = load(make(tmp_path / "m", vocab=VOCAB, rope=rope | factors))
    prompt = tokens(np.random.default_rng(8), 100)
    requests = [Request(prompt, most, sampling(1), (), (3, 4)) for most in (2, 9, 28, 29, 60)]
    alone = [run(model, [request]).traces[0] for request in requests]
    assert alone[0].commitment.positions[1] != alone[-1].commitment.positions[1]
    ran = run(model, requests)
    all_same(ran, alone, probes=False)
    assert sum(ran.rows) == 2 * 99 + 5 * 2


def test_records_of_format_1_are_shared_by_equal_prompts_alone(model: Model) -> None:
    rng = np.random.default_rng(9)
    prompt = tokens(rng, 64)
    asked = [Request(prompt, 2, sampling(1)), Request((*prompt, 5), 2, sampling(2))]
    requests = [*asked, replace(asked[0], sampling=sampling(4))]
    alone = [run(model, [request], probes=1).traces[0] for request in requests]
    assert alone[0].records[0].tobytes() != alone[1].records[0].tobytes()
    ran = run(model, requests, probes=1)
    all_same(ran, alone, probes=False)
    assert sum(ran.rows) == 63 + 2 * 2 + 66


def test_observers_that_cannot_follow_see_every_position(model: Model) -> None:
    class Counting:
        def __init__(self) -> None:
            self.positions: list[int] = []

        def saw(self, seen: Any) -> None:
            self.positions += seen.positions.tolist()

        def wanted(self) -> list[int]:
            return []

        def parts(self) -> dict[str, bytes]:
            return {}

    counting = [Counting() for _ in range(3)]
    left = iter(counting)
    requests = [Request(tokens(np.random.default_rng(10), 50), 2, sampling(i)) for i in range(3)]
    ran = run(model, requests, observe=lambda _: next(left), probes=2)
    assert [one.positions for one in counting] == [[*range(51)]] * 3
    assert sum(ran.rows) == 3 * 51


class Scripted:
    """Guesses an output that is known before, every third token wrong."""

    def __init__(self, request: Request, output: Sequence[int]) -> None:
        self._after = len(request.prompt)
        self._output = [(t + (i % 3 == 2)) % VOCAB for i, t in enumerate(output)]

    def guess(self, known: Sequence[int], most: int) -> list[int]:
        begin = len(known) - self._after
        return self._output[begin : begin + most]


def test_drafts_and_replays_share_as_well(model: Model) -> None:
    rng = np.random.default_rng(11)
    prompt = tokens(rng, 130)
    asked = [Request(prompt, 12, sampling(i)) for i in range(6)]
    asked += [Request(prompt[:90] + tokens(rng, 4), 12, sampling(i)) for i in range(6)]
    alone = [run(model, [request], "stats").traces[0] for request in asked]
    outputs = {request: trace.output for request, trace in zip(asked, alone, strict=True)}
    draft: Any = {"draft": lambda request: Scripted(request, outputs[request])}
    drafted = run(model, asked, "stats", **draft)
    all_same(drafted, alone, probes=True)
    assert max(drafted.steps.values()) < 12
    forced = [replace(r, forced=t.output) for r, t in zip(asked, alone, strict=True)]
    ran = run(model, [*forced[:3], *asked[3:9], *forced[9:]], "stats", chunk=40, **draft)
    all_same(ran, alone, probes=True)
    # a wrong guess is fed for nothing, a prompt is not fed twice
    assert sum(ran.rows) < 130 + 10 + 12 * 40


# Where there is little room, and where something fails


def room_for(monkeypatch: pytest.MonkeyPatch, model: Model, tiles: int) -> None:
    """Leaves memory for the KV cache of so many tiles."""
    a = model.architecture
    tile = 4 * 2 * a.layer_count * a.kv_head_count * 128 * (a.head_size + 32) // 2
    monkeypatch.setattr(model.device, "memory", 4 * tiles * tile + 3)


def test_as_many_run_as_there_is_memory_for(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [Request((1,) * n, 1) for n in (700, 20, 300, 20, 20)]
    for tiles, expected in ((1, (6, 1)), (8, (6, 1)), (9, (9, 2)), (10, (10, 3)), (99, (12, 5))):
        room_for(monkeypatch, model, tiles)
        limits = model.plan(requests).limits
        assert (limits.tiles, limits.tables) == expected
        assert limits.rows >= limits.tables
        assert limits.picks >= limits.tables
    assert model.plan(requests[:1] * 300).limits.tables == min(99 // 6, CONCURRENT)


@pytest.mark.parametrize("tiles", [1, 5, 7, 12])
def test_a_prefix_outlives_who_computed_it(
    model: Model, monkeypatch: pytest.MonkeyPatch, tiles: int
) -> None:
    """Questions about one text, one or two at a time: its place in the cache is handed on.

    Tiles that the next one takes may overlap those of the one before.
    """
    rng = np.random.default_rng(12)
    text = tokens(rng, 300)
    requests = [Request(tokens(rng, 90), 3, sampling(0))]
    requests += [Request(text + tokens(rng, n), 2, sampling(n)) for n in (20, 200, 1, 150, 60)]
    alone = [run(model, [request], "stats").traces[0] for request in requests]
    room_for(monkeypatch, model, tiles)
    ran = run(model, requests, "stats")
    all_same(ran, alone, probes=True)
    once = 300 + sum(len(r.prompt) - 300 + 1 for r in requests[1:]) + 92
    assert sum(ran.rows) == once
    assert max(ran.rows) <= 256


def test_two_prefixes_outlive_those_who_computed_them(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Questions about two texts in turn, two at a time, which always end in the same step."""
    rng = np.random.default_rng(15)
    texts = tokens(rng, 300), tokens(rng, 300)
    requests = [Request(texts[i % 2] + tokens(rng, 4), 2, sampling(i)) for i in range(6)]
    requests[0] = replace(requests[0], max_tokens=3)  # the first text is read a step earlier
    alone = [run(model, [request]).traces[0] for request in requests]
    room_for(monkeypatch, model, 6)
    ran = run(model, requests)
    all_same(ran, alone, probes=False)
    ends = [index for what, index in ran.order if what == "Done"]
    assert ends == [*range(6)]
    assert sum(ran.rows) == 2 * 300 + 6 * 5 + 1


def test_tiles_move_onto_their_own_place(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text stands from tile 1 on; the next question needs more, and begins at tile 0."""
    rng = np.random.default_rng(13)
    text = tokens(rng, 380)
    requests = [
        Request(tokens(rng, 10), 1, sampling(0)),
        Request(text + tokens(rng, 2), 2, sampling(1)),
        Request(text + tokens(rng, 400), 2, sampling(2)),
    ]
    alone = [run(model, [request]).traces[0] for request in requests]
    room_for(monkeypatch, model, 10)
    copied: list[tuple[int, int]] = []
    copy = type(model.plan(requests)).copy_cache
    monkeypatch.setattr(
        "llmtrace.blocks.plan.Plan.copy_cache",
        lambda plan, *where: (copied.append(where[:2]), copy(plan, *where))[1],
    )
    ran = run(model, requests)
    all_same(ran, alone, probes=False)
    assert copied == [(1, 0)]
    assert sum(ran.rows) == 10 + 380 + 2 + 1 + 400 + 1


@pytest.fixture(scope="module")
def fragile(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A model in which token 7 is infinite, and no other comes near."""
    folder = make(tmp_path_factory.mktemp("fragile"), vocab=VOCAB, dtype="float32")
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    tensors["model.embed_tokens.weight"][7] = np.inf
    save_file(tensors, file, {"format": "pt"})
    return load(folder)


def test_who_overflows_leaves_the_others_right(fragile: Model) -> None:
    """In a prefix, behind one, in a prompt of its own; whoever waited for it or did not."""
    rng = np.random.default_rng(14)
    text = tuple(t for t in tokens(rng, 150) if t != 7)[:120]
    bad = (*text[:60], 7, *text[60:])
    prompts = [
        *((*text, n) for n in (1, 2)),
        *((*bad, n) for n in (3, 4, 5)),
        (*text, 7, 3),
        (7,),
        text[:50],
        *((*text, n) for n in (8, 9)),
    ]
    requests = [Request(prompt, 4, sampling(i)) for i, prompt in enumerate(prompts)]
    fine = [i for i, prompt in enumerate(prompts) if 7 not in prompt]
    alone = {i: run(fragile, [requests[i]], "stats").traces[0] for i in fine}
    assert not any(7 in trace.output[:-1] for trace in alone.values())
    for order in ([*range(10)], [*range(9, -1, -1)]):
        ran = run(fragile, [requests[i] for i in order], "stats")
        assert {order[i] for i in ran.traces} == {*fine}
        for i, got in ran.traces.items():
            same(got, alone[order[i]], probes=True)
        assert ran.failed
        first = next(i for i in range(10) if order[i] not in fine)
        assert (ran.failed.index, ran.failed.point) == (first, "hook_embed")
        assert ran.failed.position == prompts[order[first]].index(7)


# Which prefixes there are


@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(0, 3), max_size=5).map(
                lambda parts: tuple(part for part in parts for _ in range(20))
            ),
            st.lists(st.integers(0, 1), min_size=1, max_size=30).map(tuple),
            st.sampled_from([b"one", b"other"]),
        ),
        max_size=12,
    )
)
def test_prefixes_are_what_prompts_have_in_common(asked: list[tuple]) -> None:
    requests = [Request(stem + tail, 1) for stem, tail, _ in asked]
    found = prefixes(requests, [kind for *_, kind in asked])
    common = {}
    for i, j in combinations(range(len(asked)), 2):
        pairs = zip(requests[i].prompt[:-1], requests[j].prompt[:-1], strict=False)
        equal = [a == b for a, b in pairs]
        count = equal.index(False) if False in equal else len(equal)
        common[i, j] = count if asked[i][2] == asked[j][2] else 0
    for path in found:
        lengths = [0, *(prefix.length for prefix in path)]
        assert all(b - a >= LEAST for a, b in pairwise(lengths))
    for (i, j), count in common.items():
        both = [prefix.length for prefix in found[i] if prefix in found[j]]
        assert max(both, default=0) <= count
        assert count - max(both, default=0) < LEAST
    for prefix in {prefix for path in found for prefix in path}:
        assert prefix.waiting == sum(prefix in path for path in found) > 1
