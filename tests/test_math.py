"""math.cuh and philox.cuh: at most 2 ulp, exact where stated, the same bits from every compiler.

The sample is every 509th float and the neighbours of every special value. ``-m slow`` takes all
2^32 floats, a quarter of an hour, and aarch64 under qemu-user.
"""

from __future__ import annotations

import importlib.util
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import blake3
import mpmath
import numpy as np
import pytest

KERNELS = Path(__file__).resolve().parent.parent / "kernels"
HARNESS = Path(__file__).with_name("math_check.cpp")
FLAGS = [
    *("-std=c++17", "-ffp-contract=off", "-fno-fast-math", "-fno-math-errno"),
    *("-fno-trapping-math", "-fwrapv", "-fno-strict-aliasing"),
    "-D_LIBCPP_REMOVE_TRANSITIVE_INCLUDES",  # or libc++ brings the fma of <cmath>
]
NAN = 0x7FC00000

# The largest error over all 2^32 floats, in ulps of the exact value. No result of any function is
# further than one float from the correctly rounded one.
ULPS = {"exp": 0.8913, "log": 0.9453, "sin": 0.5001, "cos": 0.5001, "tanh": 1.0670, "erf": 1.0132}
FLOATS = 1

# BLAKE3 over the little-endian results: for the sample, and for the bits 0 to 2^32 - 1 in order.
SAMPLE_DIGEST = {
    "exp": "56865fecefbf422454ada40d44d3633d46162a05bab5f075805804021bd7a057",
    "log": "25d0dfa117361c9768147b1694f31d81a5ade454aba869f987b4f523b757eb96",
    "sin": "eca7f0b65308acd30dcbea19093c167cefd113e58c546d07bb91acb23ad60a17",
    "cos": "f6961eeeea921444e2ee0b9b7a0702eed0ab562e0ba252f9c8bcc70b85f9d92d",
    "tanh": "340640022f711b7754e8775915ec21ca681d823db4784c3cc8fd50f20f33e8d0",
    "erf": "a56e6bb22aa83276187b68a867968d1390108ca720aded2cb04817107c22e558",
}
WHOLE_DIGEST = {
    "exp": "22a3565289945ed0d62e90cb32eb02af960ad55226029f28063ac368326f425b",
    "log": "4c367a2e051b5d06b205a904757a804ad0afa732a7f7f10eb87eb2aa26840e5a",
    "sin": "6ebaa25d10f54db7e66317d1c4b1fb72e802188b612c451370231499fc5e6c12",
    "cos": "4b61ae7ab8b2a5af776169509a62aa15290fb08245307a783e5074dc89207b5c",
    "tanh": "9ab42f33db312511c400419494082f7eb31b12861e903460445177e3825f4964",
    "erf": "7e63eed311afbe9f4b4206b4995a43013d83a2aa121bea148e3d62a82ba0ce70",
}
NAMES = tuple(ULPS)

GNU = ["g++"]
ZIG = [sys.executable, "-m", "ziglang", "c++"]
CPUS = ("native", "x86-64-v3", "x86-64-v2") if platform.machine() == "x86_64" else ("native",)
BUILDS = [(cxx, level, cpu) for cxx in ("g++", "zig") for level in ("-O2", "-O3") for cpu in CPUS]


class Programs:
    """Compiles math_check once for each compiler, level and CPU."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.built: dict[tuple[str, str, str], list[str]] = {}

    def __call__(self, cxx: str, level: str, cpu: str) -> list[str]:
        key = (cxx, level, cpu)
        if key not in self.built:
            needs(cxx)
            self.built[key] = self._build(f"{cxx}{level}-{cpu}", *key)
        return self.built[key]

    def _build(self, name: str, cxx: str, level: str, cpu: str) -> list[str]:
        flag = "-mcpu=" if platform.machine() in {"aarch64", "arm64"} else "-march="
        target = flag + (cpu.replace("-", "_") if cxx == "zig" else cpu)
        command = ZIG if cxx == "zig" else GNU
        kernel, harness = self.folder / f"{name}.o", self.folder / "math_check.o"
        source = ["-x", "c++", "-c", str(KERNELS / "math.cu"), "-o", str(kernel)]
        run([*command, *FLAGS, level, target, *source])
        # Linked by g++: zig would first compile a C++ library for each CPU, for a minute.
        if not harness.exists():
            run([*GNU, "-std=c++17", "-O2", "-c", str(HARNESS), "-o", str(harness)])
        program = self.folder / name
        run([*GNU, str(harness), str(kernel), "-o", str(program)])
        return [str(program)]


def needs(cxx: str) -> None:
    if not shutil.which("g++"):
        pytest.skip("no g++")
    if cxx == "zig" and not importlib.util.find_spec("ziglang"):
        pytest.skip("no ziglang")


def run(command: list[str], data: bytes = b"") -> tuple[bytes, str]:
    """Gives what the command wrote to stdout and stderr, by way of files: pipes are slow here."""
    with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as sink:
        source.write(data)
        source.seek(0)
        done = subprocess.run(
            command, stdin=source, stdout=sink, stderr=subprocess.PIPE, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        sink.seek(0)
        return sink.read(), done.stderr


def evaluate(program: list[str], name: str, x: np.ndarray) -> np.ndarray:
    """Gives the function's results for ``x``, both (n,) u32 bit patterns."""
    return np.frombuffer(run([*program, name, "values"], x.tobytes())[0], np.uint32)


def digest(program: list[str], name: str, x: np.ndarray) -> str:
    return blake3.blake3(evaluate(program, name, x).tobytes()).hexdigest()


def at(program: list[str], name: str, *values: float) -> list[int]:
    return evaluate(program, name, np.array(values, np.float32).view(np.uint32)).tolist()


def bits(*values: float) -> list[int]:
    return np.array(values, np.float32).view(np.uint32).tolist()


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    return Programs(tmp_path_factory.mktemp("math"))


@pytest.fixture(scope="module")
def fast(programs: Programs) -> list[str]:
    return programs("g++", "-O3", "native")


@pytest.fixture(scope="module")
def sample() -> np.ndarray:
    """Gives bit patterns: (n,) u32, the same on every machine."""
    one = np.uint64(1)
    edges = [
        *(one << np.arange(23, dtype=np.uint64)),  # subnormal powers of two
        *(np.arange(256, dtype=np.uint64) << np.uint64(23)),  # the others, ±0, ±inf
        *(np.arange(256, dtype=np.uint64) << np.uint64(23) | np.uint64(0x7FFFFF)),
        NAN,
        *bits(88.722839, -103.97208, -87.336545, 89.0, 104.0, 0.7, 0.9, 4.0, 3.9192059),
        *bits(2 / 3, 4 / 3, 0.34657359, 1.0397208, 9.0109134),
    ]
    near = np.array(edges, np.int64)[:, None] + np.arange(-64, 65)
    multiples = np.concatenate([np.arange(1, 20000), np.arange(1, 2**24, 997)])
    quarters = (multiples * (np.pi / 2)).astype(np.float32).view(np.uint32).astype(np.int64)
    near = np.concatenate([near.ravel(), (quarters[:, None] + np.arange(-2, 3)).ravel()])
    near = np.clip(near, 0, 0x7FFFFFFF).astype(np.uint32)
    strided = np.arange(0, 2**32, 509, dtype=np.uint64).astype(np.uint32)
    return np.concatenate([strided, near, near | np.uint32(0x80000000)])


@pytest.mark.parametrize("name", NAMES)
def test_errors_stay_within_the_bound(fast: list[str], sample: np.ndarray, name: str) -> None:
    ulps, floats, where = run([*fast, name, "errors"], sample.tobytes())[1].split()
    assert float(ulps) <= ULPS[name] <= 2, f"at {where}"
    assert int(floats) <= FLOATS


EXACT = {
    "exp": mpmath.exp,
    "log": mpmath.log,
    "sin": mpmath.sin,
    "cos": mpmath.cos,
    "tanh": mpmath.tanh,
    "erf": mpmath.erf,
}


@pytest.mark.parametrize("name", NAMES)
def test_libm_is_a_fair_reference(fast: list[str], name: str) -> None:
    """The harness trusts libm's double functions: here mpmath judges some results instead."""
    chosen = np.random.default_rng(3).normal(0, 3, 300).astype(np.float32)
    chosen = np.concatenate([chosen, chosen * np.float32(30), chosen * np.float32(1e-20)])
    chosen = np.abs(chosen) if name == "log" else chosen
    chosen = np.clip(chosen, -103, 88) if name == "exp" else chosen
    results = evaluate(fast, name, chosen.view(np.uint32)).view(np.float32)
    with mpmath.workdps(40):
        for x, y in zip(chosen.tolist(), results.tolist(), strict=True):
            exact = EXACT[name](mpmath.mpf(x))
            spacing = max(mpmath.mpf(2) ** -149, mpmath.mpf(2) ** (mpmath.frexp(exact)[1] - 24))
            assert abs(y - exact) / spacing <= ULPS[name], x.hex()


@pytest.mark.parametrize("name", NAMES)
def test_every_nan_is_canonical(fast: list[str], sample: np.ndarray, name: str) -> None:
    x, y = sample.view(np.float32), evaluate(fast, name, sample)
    with np.errstate(invalid="ignore"):
        undefined = np.isnan(x)
        if name == "log":
            undefined |= x < 0
        if name in {"sin", "cos"}:
            undefined |= np.abs(x) > 2**24
    assert (y[undefined] == NAN).all()
    assert not np.isnan(y[~undefined].view(np.float32)).any()


def test_exp_is_exact_at_its_ends(fast: list[str], sample: np.ndarray) -> None:
    """Overflow and underflow begin where the rounded exponential's do; exp(x) <= 1 for x <= 0."""
    assert at(fast, "exp", 0.0, -0.0, np.inf, -np.inf) == bits(1, 1, np.inf, 0)
    edges = ("0x1.62e42ep6", "0x1.62e43p6", "-0x1.9fe368p6", "-0x1.9fe36ap6")
    assert at(fast, "exp", *map(float.fromhex, edges)) == [0x7F7FFF84, *bits(np.inf), 1, 0]
    y = evaluate(fast, "exp", sample).view(np.float32)
    assert (y[sample.view(np.float32) <= 0] <= 1).all()
    assert (y[sample.view(np.float32) >= 0] >= 1).all()


def test_log_is_exact_at_its_ends(fast: list[str]) -> None:
    tiny = 2.0**-149
    values = at(fast, "log", 0.0, -0.0, 1.0, np.inf, -tiny, -np.inf)
    assert values == [*bits(-np.inf, -np.inf, 0, np.inf), NAN, NAN]


@pytest.mark.parametrize("name", ["sin", "tanh", "erf"])
def test_odd_functions_are_odd_to_the_bit(fast: list[str], sample: np.ndarray, name: str) -> None:
    y = evaluate(fast, name, sample)
    mirrored = evaluate(fast, name, sample ^ np.uint32(0x80000000))
    defined = y != NAN
    assert (mirrored[defined] == y[defined] ^ np.uint32(0x80000000)).all()
    assert (np.abs(y[defined].view(np.float32)) <= 1).all()
    assert at(fast, name, 0.0, -0.0) == bits(0.0, -0.0)
    small = 1e-30 if name == "erf" else 1e-6
    assert at(fast, name, small) == bits(small * (2 / np.pi**0.5 if name == "erf" else 1))
    if name != "sin":
        assert at(fast, name, np.inf, -np.inf, 10.0) == bits(1, -1, 1)


def test_cos_is_even_to_the_bit(fast: list[str], sample: np.ndarray) -> None:
    y = evaluate(fast, "cos", sample)
    assert (evaluate(fast, "cos", sample ^ np.uint32(0x80000000)) == y).all()
    assert at(fast, "cos", 0.0, -0.0, 2.0**24) == bits(1, 1, np.cos(2.0**24))
    assert at(fast, "cos", 2.0**24 + 2, np.inf, -np.inf) == [NAN] * 3


@pytest.mark.parametrize(("cxx", "level", "cpu"), BUILDS)
def test_every_build_gives_the_same_bits(
    programs: Programs, sample: np.ndarray, cxx: str, level: str, cpu: str
) -> None:
    program = programs(cxx, level, cpu)
    for name in NAMES:
        assert digest(program, name, sample) == SAMPLE_DIGEST[name], name


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_whole_range(programs: Programs, name: str) -> None:
    """Takes every float through g++ with errors measured, and through clang for the bits."""
    found, report = whole(programs("g++", "-O3", "native"), name, "errors")
    assert found == WHOLE_DIGEST[name]
    ulps, floats, where = report.split()
    assert float(ulps) <= ULPS[name], f"at {where}"
    assert int(floats) <= FLOATS
    assert whole(programs("zig", "-O3", "native"), name, "values") == (found, "")


def whole(program: list[str], name: str, what: str) -> tuple[str, str]:
    """Gives BLAKE3 over the results for all bit patterns in order, and the report of errors."""
    digest = blake3.blake3()
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*program, name, what, "0", str(2**32)], **pipes) as process:
        while piece := process.stdout.read(1 << 20):
            digest.update(piece)
        report = process.stderr.read().decode()
    assert process.returncode == 0, report
    return digest.hexdigest(), report


@pytest.mark.slow
def test_aarch64_gives_the_same_bits(tmp_path: Path, sample: np.ndarray) -> None:
    needs("zig")
    emulator = shutil.which("qemu-aarch64")
    if not emulator:
        pytest.skip("no qemu-aarch64")
    program = tmp_path / "math_check"
    target = ["-O3", "-target", "aarch64-linux-musl", "-static", "-o", str(program)]
    run([*ZIG, *FLAGS, *target, "-x", "c++", str(KERNELS / "math.cu"), str(HARNESS)])
    for name in NAMES:
        found = digest([emulator, str(program)], name, sample)
        assert found == SAMPLE_DIGEST[name], name


# Random123 v1.14.0, tests/kat_vectors, philox4x32 10: counter, key, result.
PHILOX = """
00000000 00000000 00000000 00000000  00000000 00000000  6627e8d5 e169c58d bc57ac4c 9b00dbd8
ffffffff ffffffff ffffffff ffffffff  ffffffff ffffffff  408f276d 41c83b0e a20bc7c6 6d5451fd
243f6a88 85a308d3 13198a2e 03707344  a4093822 299f31d0  d16cfe09 94fdcceb 5001e420 24126ea1
"""


def philox(counter: list[int], key: list[int]) -> list[int]:
    a, b, c, d = counter
    k, m = key
    for _ in range(10):
        p, q = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (q >> 32) ^ b ^ k, q & 0xFFFFFFFF, (p >> 32) ^ d ^ m, p & 0xFFFFFFFF
        k, m = (k + 0x9E3779B9) & 0xFFFFFFFF, (m + 0xBB67AE85) & 0xFFFFFFFF
    return [a, b, c, d]


@pytest.mark.parametrize(("cxx", "level", "cpu"), [BUILDS[0], BUILDS[-1]])
def test_philox_gives_the_published_words(
    programs: Programs, cxx: str, level: str, cpu: str
) -> None:
    published = [[int(word, 16) for word in line.split()] for line in PHILOX.split("\n")[1:-1]]
    records, want = [line[:6] for line in published], [line[6:] for line in published]
    random = np.random.default_rng(5).integers(0, 2**32, (1000, 6), np.uint32).tolist()
    want += [philox(record[:4], record[4:]) for record in random]
    records += random
    assert philox(records[2][:4], records[2][4:]) == want[2]
    data = np.array(records, np.uint32).tobytes()
    found = np.frombuffer(run([*programs(cxx, level, cpu), "philox"], data)[0], np.uint32)
    assert found.reshape(-1, 4).tolist() == want
