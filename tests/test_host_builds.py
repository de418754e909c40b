"""Every kernel gives the same bits on every host: compilers, instruction sets, ARM64."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llmtrace.device.compile import FLAGS, kernels_folder
from running import avx_vnni

DRIVER = Path(__file__).with_name("every_kernel.cpp")
FROZEN = sorted(Path(__file__).with_name("golden").glob("*.kernels"))
"""Of the arithmetic of runs, and of what formats of the probes hold; never changed."""
ZIG = [sys.executable, "-m", "ziglang", "c++", "-nostdlib++"]
GPP = ["g++"]
BUILDS = {
    "g++ -O2 native": [*GPP, "-O2", "-march=native"],
    "g++ AVX2": [*GPP, "-march=x86-64-v3"],
    "g++ no FMA": [*GPP, "-march=x86-64-v2"],
    "g++ -O1 generic": [*GPP, "-O1"],
    "g++ AVX-VNNI": avx_vnni([*GPP, "-march=x86-64-v3", "-mavxvnni"]),
    "clang native": [*ZIG, "-march=native"],
    "clang -O2 AVX2": [*ZIG, "-O2", "-march=x86_64_v3"],
    "clang no FMA": [*ZIG, "-march=x86_64_v2"],
}


def digests(tmp_path: Path, command: list[str], run: list[str] = []) -> dict[str, str]:  # noqa: B006
    program = tmp_path / "every_kernel"
    flags = [
        flag
        for flag in FLAGS
        if flag not in {"-shared", "-fPIC"} and not (flag == "-O3" and "-O" in "".join(command))
    ]
    subprocess.run(
        [*command, f"-I{kernels_folder()}", "-x", "c++", DRIVER, *flags, "-o", program],
        check=True,
        capture_output=True,
    )
    lines = subprocess.run(
        [*run, program], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    return {f"{i} {line.rsplit(' ', 1)[0]}": line.rsplit(" ", 1)[1] for i, line in enumerate(lines)}


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return digests(tmp_path_factory.mktemp("native"), [*GPP, "-march=native"])


def test_every_kernel_is_run(native: dict[str, str]) -> None:
    sources = "".join(path.read_text() for path in kernels_folder().glob("*.cu"))
    named = set(re.findall(r"^KERNEL\((\w+)[,)]", sources, re.MULTILINE))
    run = {name.split(" ", 1)[1].split()[0] for name in native}
    reported = {"math_" + n for n in ("exp", "log", "sin_cos", "tanh", "erf")}
    others = {"copy", "math_philox"}  # a move, and one with known answers
    assert named - run - reported == others | {"tensor_linear8", "tensor_linear4"}
    assert len(native) == 57


def test_no_kernel_has_moved_a_bit(native: dict[str, str]) -> None:
    """What is frozen: sums longer than a tile of 1024, attention over three tiles of keys.

    No version computes ceilings.
    """
    frozen = [line for path in FROZEN for line in path.read_text().splitlines()]
    made = [f"{name.split(' ', 1)[1]} {digest}" for name, digest in native.items()]
    made = [line for line in made if not line.startswith("ceiling")]
    assert sorted(made) == sorted(frozen)


@pytest.mark.parametrize("command", BUILDS.values(), ids=BUILDS)
def test_builds_agree(native: dict[str, str], tmp_path: Path, command: list[str]) -> None:
    assert digests(tmp_path, command) == native


@pytest.mark.slow  # the C library for ARM64 is compiled first
def test_arm64_agrees(native: dict[str, str], tmp_path: Path) -> None:
    emulator = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if not emulator:
        pytest.skip("no qemu-aarch64 (Debian: qemu-user)")
    assert (
        digests(tmp_path, [*ZIG, "-target", "aarch64-linux-musl", "-static"], [emulator]) == native
    )
