"""Variants give the bits of the kernels that they stand for, and touch nothing beside them."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest

from checkpoints import make
from kernel_cases import Case, cases, differences, integers, linear, pattern, wild
from llmtrace.blocks import quantized
from llmtrace.blocks.choices import Choices, subject
from llmtrace.blocks.variants import PANEL, Ways, parts, room, trial, variants
from llmtrace.device.compile import kernels_folder
from llmtrace.device.cpu import CpuDevice
from llmtrace.device.device import Launch
from llmtrace.engine.request import Request
from llmtrace.engine.trace import Done, trace
from running import CACHE, avx_vnni, device, load, run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BUILDS = {
    "native": {},
    "AVX2": {"cpu": "x86-64-v3"},
    "no FMA": {"cpu": "x86-64-v2"},
    "clang": {"cxx": f"{sys.executable} -m ziglang c++"},
    "5 threads": {"threads": 5},
    "AVX-VNNI": avx_vnni({"cpu": "x86-64-v3", "cxx": "g++ -mavxvnni"}),
}
ROWS = 300


@pytest.fixture(params=BUILDS.values(), ids=BUILDS, scope="module")
def built(request: pytest.FixtureRequest) -> CpuDevice:
    return device(**request.param)


class Threads:
    """A device as far as the choice of variants goes."""

    preferred: tuple[str, ...] = ()
    build = "build"

    def __init__(self, threads: int, cache: Path | None = None, *, matrix: bool = False) -> None:
        self.threads, self.cache, self.matrix = threads, cache, matrix


def varied(case: Case, threads: int) -> Case:
    """The same case by its variant, with the room that a plan would give it, full of a pattern."""
    ((kernel, args, items),) = case.launches
    sizes = room(ROWS, args[-1], threads)
    rooms = {name: pattern(*shape) for name, (shape, _) in sizes.items()}
    held = {name: name for name in rooms}
    launches = variants([Launch(kernel, args, items)], ROWS, held, Threads(threads))["tiles"]
    assert [launch.kernel for launch in launches] == ["lane_major", f"tiled_{kernel}"]
    made = [(launch.kernel, launch.args, launch.items) for launch in launches]
    return Case(case.name, case.arrays | rooms, case.outputs, made)


@pytest.mark.parametrize("kind", ["bf16", "f16", "f32"])
@pytest.mark.parametrize(
    ("T", "N", "K"),
    [
        *((1, 37, 96), (4, 33, 333), (6, 16, 1000), (7, 70, 32), (12, 1, 2816), (13, 32, 1)),
        *((47, 31, 160), (97, 65, 1024), (288, 20, 64), (300, 17, 333)),
    ],
)
def test_outer_products_give_the_bits_of_rows(
    built: CpuDevice, kind: str, T: int, N: int, K: int
) -> None:
    for seed in range(4):
        rng, top = np.random.default_rng(seed), 127 if seed % 2 else 20
        case = linear(rng, kind, (T, N, K), top, has_bias=seed < 2)
        expected = case.run(built)
        assert not differences(varied(case, built.threads).run(built), expected)
        assert (expected["y"][T:] == -7.75).all()


@pytest.mark.parametrize("T", [*range(2, 18), 33])
@pytest.mark.parametrize("kind", ["bf16", "f32"])
def test_tokens_of_a_step_give_the_bits_of_each_alone(built: CpuDevice, kind: str, T: int) -> None:
    """Few tokens share the rows of w, in groups of 1 to 4, over stretches of k."""
    rng = np.random.default_rng(T)
    case = linear(rng, kind, (T, 13, 2816), 127 if T % 2 else 20, has_bias=True)
    together = case.run(built)["y"]
    for t in range(T):
        one = {"x": case.arrays["x"][t : t + 1], "T": np.array([1], "<i4")}
        alone = Case(case.name, case.arrays | one, case.outputs, case.launches).run(built)["y"]
        assert alone[0].tobytes() == together[t].tobytes()


@pytest.mark.parametrize("bits", [32, 8])
@pytest.mark.parametrize(
    ("H", "G", "D"), [(4, 2, 64), (3, 3, 40), (40, 1, 32), (8, 2, 72), (4, 4, 128)]
)
def test_heads_that_share_a_tile_give_the_bits_of_each_alone(
    built: CpuDevice, bits: int, H: int, G: int, D: int
) -> None:
    """Prompts, single tokens, and a guess whose row of the cache is no number."""
    rng, chunks = np.random.default_rng(D + H), -(-D // 32)
    chunks = 8 if chunks > 4 else chunks
    runs = [(0, range(100, 141)), (2, [255]), (4, [3]), (6, range(129)), (8, range(250, 258))]
    where = [(tile, p) for tile, positions in runs for p in positions]
    T, tiles, wide = len(where), 12, 32 * chunks
    arrays = {
        "z": pattern(T + 1, H * D),
        "heads": pattern(T + 1, 8 * H),
        "q": wild(rng, T, H * D, top=2),
        "T": np.array([T], np.int32),
        "position": np.array([p for _, p in where], np.int32),
        "tile0": np.array([tile for tile, _ in where], np.int32),
    }
    values = np.zeros((tiles, G, 128, wide), np.float32)
    values[..., :D] = wild(rng, tiles, G, 128, D, top=60)
    held: dict[str, np.ndarray] = {"keys": wild(rng, tiles, G, D, 128, top=3), "values": values}
    values[1, :, 12:] = np.nan  # of position 140, and behind it
    if bits == 8:
        values = np.where(np.isnan(values), 0, values).clip(-127, 127)
        held = {
            "keys": rng.integers(-127, 128, (tiles, G, D, 128), np.int8),
            "values": values.astype(np.int8),
            "key_scale": np.abs(wild(rng, tiles, G, 128, top=3)),
            "value_scale": np.abs(wild(rng, tiles, G, 128, top=60)),
        }
        held["value_scale"][1, :, 12:] = np.nan
    kernel = f"probed_attention{'8' if bits == 8 else ''}_{chunks}"
    sizes = (H, G, D, H * D, 8 * H, H * D, np.float32(D**-0.5))
    args = ("z", "heads", "q", *held, "position", "tile0", "T", *sizes)
    case = Case(kernel, arrays | held, ("z", "heads"), [(kernel, args, T * H)])
    together = case.run(built)
    assert (together["z"][T] == -7.75).all()
    sure = [t for t in range(T) if where[t][1] != 140]  # a NaN may have any bits
    for apart in ("alone_" + kernel, "alone_" + kernel.removeprefix("probed_")):
        bare = ("z", *args[2:-3], *args[-2:])
        launch = (apart, args if "probed" in apart else bare, T * H)
        other = Case(kernel, case.arrays, case.outputs, [launch]).run(built)
        assert other["z"][sure].tobytes() == together["z"][sure].tobytes(), apart
        assert "probed" not in apart or np.array_equal(other["heads"], together["heads"])
    for t in range(T):
        one = {name: arrays[name][t : t + 1] for name in ("q", "position", "tile0")}
        one["T"] = np.array([1], np.int32)
        alone = Case(kernel, case.arrays | one, case.outputs, case.launches).run(built)
        for name in ("z", "heads"):
            row, other = alone[name][0], together[name][t]
            if where[t][1] == 140 and name == "z":  # a NaN may have any bits
                assert (np.isnan(row) == np.isnan(other)).all()
            else:
                assert row.tobytes() == other.tobytes(), where[t]
    assert np.isfinite(together["z"][:40]).all()
    assert np.isnan(together["z"][40]).any()


def interleaved(case: Case, on: CpuDevice, name: str) -> Case:
    """The same linear layer in integers, as a core computes it: by interleaved rows."""
    ((kernel, args, items),) = case.launches
    bits, (n, k, _) = int(kernel[-1]), args[-3:]
    names = args[1 : 3 if bits == 8 else 5]
    shapes = quantized.shapes(-(-n // on.panel) * on.panel, k, bits)
    held = {f"held {name}": np.ones(*shape) for name, shape in zip(names, shapes, strict=True)}
    launches = [
        (move.kernel, move.args, move.items)
        for move in quantized.interleave(on, [*held], [*names], shapes, n)
    ]
    arrays = case.arrays | held
    if bits == 8 and on.unit8 == 2:
        arrays["q"] = arrays["q"].astype(np.int16)
    launches.append((name + kernel, ("y", *held, *args[len(names) + 1 :]), items))
    return Case(case.name, arrays, case.outputs, launches)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(
    ("T", "N", "K"),
    [
        *((1, 37, 96), (2, 64, 333), (3, 200, 64), (4, 16, 1000), (5, 70, 32), (6, 1, 2816)),
        *((7, 32, 1), (13, 65, 1090), (16, 64, 64), (47, 129, 160), (20, 70, 11264)),
    ],
)
def test_panels_give_the_bits_of_rows(built: CpuDevice, bits: int, T: int, N: int, K: int) -> None:
    """Integers up to the ends of their ranges: nothing saturates."""
    for seed in range(3):
        case = integers(np.random.default_rng(seed), bits, (T, N + 3, K), has_bias=seed < 2)
        expected = case.run(built)
        names = ("panel_", "near_panel_", *(["matrix_panel_"] if built.matrix else []))
        for name in names:
            assert not differences(interleaved(case, built, name).run(built), expected), name
        assert (expected["y"][T:] == -7.75).all()


def test_levels_are_the_same_in_16_bits(built: CpuDevice) -> None:
    for case in cases("quantize", 5000):
        ((kernel, args, items), *_) = case.launches
        if kernel != "quantize":
            continue
        expected = case.run(built)
        wide = np.full(case.arrays["q"].shape, 77, np.int16 if built.unit8 == 2 else np.int8)
        made = Case(case.name, case.arrays | {"q": wide}, case.outputs, [("factors", args, items)])
        assert not differences(made.run(built), expected | {"q": expected["q"].astype(wide.dtype)})


@pytest.mark.parametrize("size", [3000, 300_000])
def test_one_pass_gives_what_two_give(built: CpuDevice, size: int) -> None:
    """Digests, flaws and records of rows of 1 to 2,048 values, more than one batch of them."""
    for case in cases("probe", size):
        if case.name == "finite":
            continue
        ((_, args, items),) = case.launches
        rows, points = case.arrays["record"].shape[:2]
        case.arrays |= {
            "digest": np.full((rows, points, 8), 5, np.uint32),
            "flaw": np.full((rows, points), 3, np.uint8),
        }
        case.outputs = ("digest", "flaw", "record")
        hashed = ("blake3", ("digest", "flaw", "table", "T", points - 1, points), items)
        case.launches = [hashed, ("probe", args, items)]
        expected = case.run(built)
        launches = variants([Launch(*launch) for launch in case.launches], rows, {}, built)[
            "together"
        ]
        assert [launch.kernel for launch in launches] == ["blake3_probe"]
        case.launches = [(launch.kernel, launch.args, launch.items) for launch in launches]
        assert not differences(case.run(built), expected)


def test_what_has_one_way_has_one_way() -> None:
    linear, gpu = Launch("linear_bf16", (), 1), Threads(0)
    assert variants([linear], 1, {}, Threads(2)) == {"rows": [linear]}
    assert variants([Launch("rope", (), 1)], 9, {}, Threads(2)) == {"only": [Launch("rope", (), 1)]}
    assert not room(ROWS, 64, 0)
    pair = [Launch("blake3", (), 1), Launch("probe", (), 1)]
    assert variants(pair, 9, {}, gpu) == {"only": pair}
    panels = [Launch("factors", (), 1), Launch("panel_linear8", (), 1)]
    assert variants(panels, 1, {}, Threads(2, matrix=True)) == {"rows": panels}
    assert variants(panels, 2, {}, Threads(2)).keys() == {"rows", "near"}
    for one in ("linear_f32", "linear8", "linear4"):
        assert variants([Launch(one, (), 1)], 1, {}, gpu).keys() == {"rows"}


def test_a_core_with_a_matrix_unit_has_a_third_way() -> None:
    panels = [Launch("factors", ("q",), 1), Launch("panel_linear4", ("y", 1), 9)]
    found = variants(panels, 2, {}, Threads(2, matrix=True))
    assert [*found] == ["rows", "near", "matrix"]
    assert found["matrix"] == [panels[0], Launch("matrix_panel_linear4", ("y", 1), 9)]


def test_a_gpu_has_attention_by_tiles_for_few_tokens() -> None:
    gpu, sizes = Threads(0), {"parts": np.empty((16, 4, 3, 72), np.float32)}
    held = ("q", "k", "v", "position", "tile0", "T", 4, 2, 64)
    plain = Launch("probed_attention_2", ("z", "heads", *held, 256, 32, 256, 0.125), 20)
    found = variants([plain], 5, sizes, gpu)
    assert found["whole"] == [plain]
    split, join = found["split"]
    at = sizes["parts"]
    assert (split.kernel, split.items) == ("split_probed_attention_2", 5 * 4 * 3)
    assert split.args == (at, *held, 256, 0.125, 3)
    assert (join.kernel, join.items) == ("join_probed_attention_2", 20)
    assert join.args == ("z", "heads", at, "position", "T", 4, 64, 256, 32, 3)
    small = Launch("attention8_2", ("z", *held[:3], "ks", "vs", *held[3:], 256, 256, 0.125), 20)
    split, join = variants([small], 16, sizes, gpu)["split"]
    assert (split.kernel, join.kernel) == ("split_attention8_2", "join_attention_2")
    assert split.args == (at, *held[:3], "ks", "vs", *held[3:], 256, 0.125, 3)
    assert join.args == ("z", at, "position", "T", 4, 64, 256, 3)
    assert variants([plain], 17, sizes, gpu).keys() == variants([plain], 5, {}, gpu).keys()


def test_parts_of_attention_are_for_a_gpu_and_few() -> None:
    assert parts(4, 2, 3, 0) == {"parts": ((16, 4, 3, 72), "<f4")}
    assert not parts(4, 2, 3, 2)
    assert not parts(4, 2, 1, 0)  # nothing to split
    assert not parts(64, 4, 129, 0)


def test_a_gpu_has_two_ways_for_many_tokens() -> None:
    gpu, first = Threads(0), Launch("quantize", ("q",), 7)
    for kernel in ("linear8", "linear4"):
        plain = [first, Launch(kernel, ("y", 1), 9)]
        tensor = [first, Launch(f"tensor_{kernel}", ("y", 1), 9)]
        assert variants(plain, 2, {}, gpu) == {"rows": plain, "tensor": tensor}
    linear = Launch("linear_f16", ("y", 1), 9)
    tiles = Launch("tile_linear_f16", ("y", 1), 9)
    assert variants([linear], 2, {}, gpu) == {"rows": [linear], "tiles": [tiles]}


def test_a_trial_takes_no_more_outputs_than_it_needs() -> None:
    def outputs(n: int, k: int, rows: int) -> int:
        launch = Launch("linear_f32", ("y", "w", "x", None, "T", n, k, n, k, k), n)
        (found,) = trial([launch], rows, Threads(2))
        assert (found.items, found.args[6:]) == (found.args[5], launch.args[6:])
        return int(found.args[5])

    assert outputs(32000, 1024, 256) == 1024
    assert outputs(1000, 1024, 1) == 1000
    assert outputs(128000, 16384, 4096) == 4 * 2 * PANEL  # each thread has some, however slow
    rope = Launch("rope", (1, 2, 3), 1)
    assert trial([rope], 1, Threads(2)) == [rope]


SLOW, FAST = [Launch("a", (1, "x", 7), 1)], [Launch("b", (), 1)]
WAYS: Ways = {"rows": SLOW, "tiles": FAST}


def test_the_fastest_is_taken_and_remembered(tmp_path: Path) -> None:
    here = Threads(2, tmp_path / "new")

    def tried(rows: float, tiles: float) -> Callable[[], dict[str, float]]:
        return lambda: {"rows": rows, "tiles": tiles}

    choices = Choices(here)
    assert (subject(WAYS, 5), subject(WAYS, 1)) == ("ax1x7 8", "ax1x7 1")
    assert choices.take(WAYS, 5, tried(2.0, 1.0)) is FAST
    assert choices.take(WAYS, 9, tried(1.0, 2.0)) is SLOW  # another size
    for again in (choices, Choices(here)):
        assert again.take(WAYS, 8, not_asked) is FAST  # 5 to 8 are one size
        assert again.take(WAYS, 16, not_asked) is SLOW
        assert again.take({"only": SLOW}, 3, not_asked) is SLOW
    assert json.loads((tmp_path / "new" / "variants-build.json").read_text()) == {
        "ax1x7 8": "tiles",
        "ax1x7 16": "rows",
    }
    here.preferred = ("tiles", "rows")
    assert Choices(here).take(WAYS, 16, not_asked) is FAST


def not_asked() -> dict[str, float]:
    pytest.fail("it was known")


@pytest.mark.parametrize(
    "text",
    ["", "[]", '"rows"', "{", '{"ax1x7 8": 3}', '{"ax1x7 8": "gone"}', "\xff", "[" * 9999, None],
)
def test_a_memory_that_says_nothing_is_made_anew(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "variants-build.json"
    if text is None:
        file.mkdir()
    else:
        file.write_bytes(text.encode("latin-1"))
    choices = Choices(Threads(2, tmp_path))
    assert choices.take(WAYS, 8, lambda: {"rows": 2.0, "tiles": 1.0}) is FAST
    assert choices.take(WAYS, 8, not_asked) is FAST
    assert [*tmp_path.iterdir()] == [file]
    if text is not None:
        assert json.loads(file.read_text()) == {"ax1x7 8": "tiles"}


def test_writers_of_a_memory_keep_what_others_found(tmp_path: Path) -> None:
    here = Threads(2, tmp_path)
    one, other = Choices(here), Choices(here)
    one.learn("x", {"rows": 1.0, "tiles": 2.0})
    other.learn("y", {"rows": 2.0, "tiles": 1.0})
    (file,) = tmp_path.iterdir()
    assert json.loads(file.read_text()) == {"x": "rows", "y": "tiles"}


@pytest.mark.parametrize(
    "prefer", [("rows", "apart", "shared"), ("tiles", "near", "together", "alone"), ("matrix",)]
)
@pytest.mark.parametrize("numerics", ["accuracy", "speed", "memory"])
def test_a_run_is_the_same_in_every_variant(
    tmp_path: Path, prefer: tuple[str, ...], numerics: str
) -> None:
    """Prompts of 40 tokens and 3, then steps of two tokens and of one."""
    folder = make(tmp_path / "model")
    requests = [Request(tuple(range(1, 1 + length)), new) for length, new in ((40, 9), (3, 5))]
    plain = run(load(folder, numerics=numerics), requests, level="detail")
    other = CpuDevice(kernels_folder(), CACHE, threads=2)
    other.preferred = prefer
    varied = run(load(folder, other, numerics=numerics), requests, level="detail")
    for one, two in zip(plain, varied, strict=True):
        assert (one.output, one.commitment) == (two.output, two.commitment)
        assert one.logprobs.tobytes() == two.logprobs.tobytes()
        assert one.observer
        assert two.observer
        assert one.observer.parts() == two.observer.parts()


def test_trials_read_only_what_is_there(tmp_path: Path) -> None:
    """Whatever the step before was told, and however small the cache is."""
    here = CpuDevice(kernels_folder(), CACHE, threads=2)
    here.cache = tmp_path / "nothing tried"
    model, asked = load(make(tmp_path / "model"), here), [Request((1, 2, 3), 5)]
    plan = model.plan(asked)
    for name in ("tile0", "position"):
        plan.input(name)[:] = 1 << 24  # far behind the end of the cache
    (done,) = (event for event in trace(model, plan, asked) if isinstance(event, Done))
    assert [*here.cache.iterdir()]
    (plain,) = run(load(tmp_path / "model"), asked)
    assert done.trace.commitment == plain.commitment
