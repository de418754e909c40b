"""The engine against transformers in float64, and against itself: the same bits however run."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3

from checkpoints import make, reference_logits
from llmtrace.device.compile import kernels_folder
from llmtrace.device.cpu import PAGE, CpuDevice
from llmtrace.engine.request import Request, Sampling
from llmtrace.engine.sequence import Trace
from llmtrace.errors import Misuse, Trouble
from running import CACHE, device, load, run

SHAPES = {
    "plain": {},
    "tied": {"tied": True, "vocab": 301},
    "one group, head 32": {"head_size": 32, "heads": 8, "kv_heads": 1},
    "all groups, head 128": {"head_size": 128, "heads": 2, "kv_heads": 2, "dtype": "float16"},
    "head 80, f32": {
        "head_size": 80,
        "heads": 3,
        "kv_heads": 3,
        "dtype": "float32",
        "hidden": 102,
        "ff": 130,
        "vocab": 517,
    },
    "head 48, biases": {
        "head_size": 48,
        "heads": 8,
        "kv_heads": 4,
        "attention_bias": True,
        "mlp_bias": True,
    },
    "head 96": {"head_size": 96, "heads": 2, "kv_heads": 1, "hidden": 1056, "ff": 1100},
    "linear": {"rope": {"rope_type": "linear", "factor": 4.0}},
    "dynamic": {"rope": {"rope_type": "dynamic", "factor": 2.0}, "context": 400},
    "llama3": {
        "rope": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    },
    "yarn": {"rope": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}},
    "longrope": {
        "rope": {
            "rope_type": "longrope",
            "factor": 4.0,
            "original_max_position_embeddings": 128,
            "short_factor": [1.0 + i / 8 for i in range(8)],
            "long_factor": [2.0 + i / 4 for i in range(8)],
        }
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(
        tmp_path_factory.mktemp("model"),
        head_size=40,
        heads=4,
        kv_heads=2,
        hidden=72,
        vocab=300,
        layers=3,
    )


def prompt_of(length: int, vocab: int, seed: int = 0) -> tuple[int, ...]:
    return tuple(np.random.default_rng(seed).integers(0, vocab, length).tolist())


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_logits_agree_with_float64_and_greedy_tokens_over_200_steps(
    shape: dict, tmp_path: Path
) -> None:
    path = make(tmp_path / "m", seed=len(str(shape)), **shape)
    model = load(path)
    request = Request(prompt_of(60, model.architecture.vocab_size), 200)
    (trace,) = run(model, [request], keep=["unembed.hook_out"])
    ours = trace.kept["unembed.hook_out"].astype(np.float64)
    tokens = [*request.prompt, *trace.output[:-1]]
    frequencies = model.architecture.inverse_frequencies(request.run_limit)
    factor = float(model.architecture.rope_attention_factor(request.run_limit))
    reference = reference_logits(path, tokens, frequencies, factor)[59:]

    assert len(trace.output) == 200
    assert np.abs(ours - reference).max() <= 5e-5 * np.abs(reference).max()
    assert trace.output == tuple(reference.argmax(axis=1).tolist())
    shifted = reference - reference.max(axis=1, keepdims=True)
    expected = shifted[np.arange(200), trace.output] - np.log(np.exp(shifted).sum(axis=1))
    assert np.abs(trace.logprobs - expected).max() < 1e-4


@pytest.fixture(scope="module")
def baseline(folder: Path) -> tuple:
    requests = [
        Request(
            prompt_of(length, 300, seed=length),
            20,
            Sampling(np.float32(0.9), 40, 3 << 30, seed=length),
        )
        for length in (1, 2, 3, 5, 8, 13, 31, 64, 127, 128, 129, 150, 200, 255, 256, 257)
    ]
    model = load(folder)
    return requests, [run(model, [r], level="detail")[0] for r in requests]


def inside(trace: Trace) -> dict[str, bytes]:
    """All that the probes tell, at every position: records, features, scores."""
    assert trace.observer
    return trace.observer.parts()


@pytest.mark.parametrize("chunk", [1, 7, 64, 10_000])
def test_chunks_of_the_prompt_do_not_move_a_bit(folder: Path, baseline: tuple, chunk: int) -> None:
    requests, traces = baseline
    got = run(load(folder), [requests[12]], chunk=chunk, level="detail")[0]
    assert got.commitment == traces[12].commitment
    assert inside(got) == inside(traces[12])


def test_a_batch_of_16_gives_each_sequence_the_bits_it_has_alone(
    folder: Path, baseline: tuple
) -> None:
    requests, traces = baseline
    together = run(load(folder), requests, chunk=50, level="detail")
    assert [t.commitment.root for t in together] == [t.commitment.root for t in traces]
    assert [t.output for t in together] == [t.output for t in traces]
    assert all(inside(a) == inside(b) for a, b in zip(together, traces, strict=True))
    assert len({t.commitment.root for t in traces}) == 16


def test_more_requests_than_run_at_a_time(folder: Path, baseline: tuple) -> None:
    requests, traces = baseline
    many = run(load(folder), requests[:6] * 4)
    assert [t.commitment.root for t in many] == [t.commitment.root for t in traces[:6]] * 4


def test_replay_gives_the_bits_of_the_run(folder: Path, baseline: tuple) -> None:
    requests, traces = baseline
    forced = [
        Request(r.prompt, r.max_tokens, r.sampling, r.stop, t.output)
        for r, t in zip(requests, traces, strict=True)
    ]
    replayed = run(load(folder), forced, level="detail")
    assert [t.commitment for t in replayed] == [t.commitment for t in traces]
    assert [inside(t) for t in replayed] == [inside(t) for t in traces]
    assert [(t.output, t.finish_reason) for t in replayed] == [
        (t.output, t.finish_reason) for t in traces
    ]


def test_probes_do_not_move_a_bit(folder: Path, baseline: tuple) -> None:
    requests, traces = baseline
    for how in ({"probes": 0}, {"probes": 1}, {"probes": 2}, {"level": "stats"}):
        got = run(load(folder), [requests[9]], keep=["unembed.hook_out"], **how)[0]
        assert got.commitment == traces[9].commitment
        assert len(got.kept["unembed.hook_out"]) == 20


BUILDS = {
    "1 thread": {"threads": 1},
    "3 threads": {"threads": 3},
    "-O2": {"optimise": "-O2"},
    "AVX2": {"cpu": "x86-64-v3"},
    "no FMA": {"cpu": "x86-64-v2"},
    "generic": {"cpu": "generic"},
    "clang": {"cxx": f"{sys.executable} -m ziglang c++"},
    "clang AVX2 -O2": {
        "cxx": f"{sys.executable} -m ziglang c++",
        "cpu": "x86-64-v3",
        "optimise": "-O2",
    },
}


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
def test_host_builds_give_the_same_bits(folder: Path, baseline: tuple, build: dict) -> None:
    requests, traces = baseline
    chosen = [3, 9, 13]
    got = run(load(folder, device(**build)), [requests[i] for i in chosen], level="detail")
    assert [t.commitment for t in got] == [traces[i].commitment for i in chosen]
    assert [t.output for t in got] == [traces[i].output for i in chosen]
    assert [inside(t) for t in got] == [inside(traces[i]) for i in chosen]


def test_digests_are_blake3_of_the_rows(folder: Path) -> None:
    model = load(folder)
    request = Request(prompt_of(11, 300), 4)
    names = [p.name for p in model.plan([request]).points]
    (trace,) = run(model, [request], keep=names)
    leaf = {name: [blake3(row.tobytes()).digest() for row in trace.kept[name]] for name in names}
    inner = 14 - 4
    positions = [
        blake3(
            b"".join(
                leaf[n][t if len(leaf[n]) == 14 else t - inner]
                for n in names
                if len(leaf[n]) == 14 or t >= inner
            )
        )
        for t in range(14)
    ]
    assert [p.digest() for p in positions] == list(trace.commitment.positions)
    columns = [blake3(b"".join(leaf[n])).digest() for n in names]
    assert columns == list(trace.commitment.points)
    assert (
        trace.commitment.root == blake3(b"".join([*trace.commitment.positions, *columns])).digest()
    )
    assert len(set(columns)) == len(names) == 1 + 3 * 17 + 4


def test_residual_identities_hold_to_the_bit(folder: Path) -> None:
    model = load(folder)
    names = [
        f"blocks.1.{n}"
        for n in ("hook_attn_out", "hook_resid_mid", "hook_mlp_out", "hook_resid_post")
    ]
    (trace,) = run(
        model, [Request(prompt_of(20, 300), 3)], keep=["blocks.0.hook_resid_post", *names]
    )
    pre, attn, mid, mlp, post = (trace.kept[n] for n in ("blocks.0.hook_resid_post", *names))
    assert np.array_equal(mid, pre + attn)
    assert np.array_equal(post, mid + mlp)


def test_records_of_format_1_hold_the_moments_of_the_rows(folder: Path) -> None:
    names = ["blocks.2.hook_resid_post"]
    (trace,) = run(load(folder), [Request(prompt_of(20, 300), 3)], keep=names, probes=1)
    rows = trace.kept["blocks.2.hook_resid_post"]
    wide, records = rows.astype(np.float64), trace.records[:, 2]
    values = records.view(np.float32)
    rms = np.sqrt((wide**2).mean(axis=1))
    for word, expected in (
        (0, rms),
        (1, wide.mean(axis=1)),
        (2, np.abs(wide).sum(axis=1)),
        (4, (wide**4).mean(axis=1) / rms**4),
    ):
        assert np.allclose(values[:, word], expected, rtol=1e-5, atol=1e-7)
    assert np.array_equal(values[:, 3], np.abs(rows).max(axis=1))
    largest = np.argsort(-np.abs(rows), axis=1, kind="stable")[:, :4]
    assert np.array_equal(records[:, 5], largest[:, 0])
    assert np.array_equal(records[:, 8:12], largest)
    assert np.array_equal(values[:, 12:16], np.take_along_axis(rows, largest, axis=1))
    assert np.array_equal(
        values[:, 24:32], np.take_along_axis(rows, records[:, 16:24].astype(int), axis=1)
    )
    width = rows.shape[1]
    assert all((width * s // 8 <= records[:, 16 + s]).all() for s in range(8))
    assert all((records[:, 16 + s] < width * (s + 1) // 8).all() for s in range(8))


def test_a_stop_token_ends_the_run(folder: Path, baseline: tuple) -> None:
    requests, traces = baseline
    stop = traces[4].output[7]
    r = requests[4]
    (got,) = run(load(folder), [Request(r.prompt, r.max_tokens, r.sampling, (stop,))])
    first = traces[4].output.index(stop)
    assert got.output == traces[4].output[: first + 1]
    assert got.finish_reason == "stop"


def test_a_nan_weight_is_named(tmp_path: Path) -> None:
    path = make(tmp_path / "m")
    model = load(path)
    tensor = model.checkpoint.tensors["model.layers.1.mlp.down_proj.weight"]
    with tensor.file.open("r+b") as file:
        file.seek(tensor.offset)
        file.write(b"\xc0\x7f")
    with pytest.raises(
        Trouble, match=r"'blocks.1.hook_mlp_out', position 0, is not finite"
    ) as caught:
        run(load(path), [Request((1, 2, 3), 4)])
    assert "'model.layers.1.mlp.down_proj.weight'" in caught.value.hints[0]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request((), 3), "no tokens"),
        (Request((1, 300), 3), "no token '300'"),
        (Request((1,), 0), "max tokens is '0'"),
        (Request(tuple([1] * 500), 14), "context has 512"),
    ],
)
def test_requests_that_do_not_fit_are_refused(
    folder: Path, request_: Request, message: str
) -> None:
    with pytest.raises(Misuse, match=message):
        load(folder).plan([request_])


def test_rows_too_wide_to_digest_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmtrace.blocks.plan.WIDEST", 299)
    with pytest.raises(Trouble, match=r"rows of 'unembed.hook_out' have more than 299 values"):
        load(folder).plan([Request((1,), 1)])


def test_a_forked_child_leaves_the_threads_alone() -> None:
    """A child has none of them; whoever forks must be able to end, and to collect garbage."""
    used = CpuDevice(kernels_folder(), CACHE, threads=2)
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        used.__del__()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    used.capture([]).run(0)


def test_what_stays_has_large_pages_and_takes_memory_when_it_is_used() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    on, rng = CpuDevice(kernels_folder(), CACHE, threads=1), np.random.default_rng(0)
    before = resident()
    large = on.zeros((64 << 20,), "<f4", stays=True)
    assert large.ctypes.data % PAGE == 0
    assert resident() - before < large.nbytes // 8
    small = [on.zeros((n,), "<f4", stays=True) for n in (1, 1000, 1 << 20, 3)]
    host = rng.integers(-9, 9, (300, 7), "|i1")
    copied = [on.upload(host, stays=True), on.upload(host)]
    assert all(array.ctypes.data % 64 == 0 and not array.any() for array in small)
    for number, array in enumerate(small, 1):
        array[:] = number
    assert [set(array.tolist()) for array in small] == [{1.0}, {2.0}, {3.0}, {4.0}]
    assert all((array == host).all() for array in copied)
    assert not large[:: 1 << 10].any()
