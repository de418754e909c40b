"""Variants give the bits of the kernels that they stand for, and touch nothing beside them."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from kernel_cases import Case, cases, differences, integers, linear, pattern
from llmtrace.blocks import quantized
from llmtrace.blocks.variants import TILED_ROWS, fused, room, variant
from llmtrace.device.cpu import CpuDevice
from llmtrace.device.device import Launch
from running import device

BUILDS = {
    "native": {},
    "AVX2": {"cpu": "x86-64-v3"},
    "no FMA": {"cpu": "x86-64-v2"},
    "clang": {"cxx": f"{sys.executable} -m ziglang c++"},
    "5 threads": {"threads": 5},
}
ROWS = 300


@pytest.fixture(params=BUILDS.values(), ids=BUILDS, scope="module")
def built(request: pytest.FixtureRequest) -> CpuDevice:
    return device(**request.param)


def varied(case: Case, threads: int) -> Case:
    """The same case by its variant, with the room that a plan would give it, full of a pattern."""
    ((kernel, args, items),) = case.launches
    sizes = room(ROWS, args[-1], threads)
    rooms = {name: pattern(*shape) for name, (shape, _) in sizes.items()}
    launches = variant(Launch(kernel, args, items), ROWS, {name: name for name in rooms})
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


def interleaved(case: Case, on: CpuDevice) -> Case:
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
    launches.append((f"panel_{kernel}", ("y", *held, *args[len(names) + 1 :]), items))
    return Case(case.name, arrays, case.outputs, launches)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(
    ("T", "N", "K"),
    [
        *((1, 37, 96), (2, 64, 333), (3, 200, 64), (4, 16, 1000), (5, 70, 32), (6, 1, 2816)),
        *((7, 32, 1), (13, 65, 1090), (47, 129, 160)),
    ],
)
def test_panels_give_the_bits_of_rows(built: CpuDevice, bits: int, T: int, N: int, K: int) -> None:
    """Integers up to the ends of their ranges: nothing saturates."""
    for seed in range(3):
        case = integers(np.random.default_rng(seed), bits, (T, N + 3, K), has_bias=seed < 2)
        expected = case.run(built)
        assert not differences(interleaved(case, built).run(built), expected)
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
        launches = fused([Launch(*launch) for launch in case.launches], built.threads)
        assert [launch.kernel for launch in launches] == ["blake3_probe"]
        case.launches = [(launch.kernel, launch.args, launch.items) for launch in launches]
        assert not differences(case.run(built), expected)


def test_small_steps_and_graphics_cards_take_the_plain_kernel() -> None:
    launch = Launch("linear_bf16", (), 1)
    assert variant(launch, TILED_ROWS, {"lane_major": None}) == [launch]
    assert variant(launch, ROWS, room(ROWS, 64, 0)) == [launch]
    assert not room(TILED_ROWS, 64, 2)
    pair = [Launch("blake3", (), 1), Launch("probe", (), 1)]
    assert fused(pair, 0) == pair
