"""A gate before any GPU: the PTX of every kernel rounds where the source does, and nowhere else.

NVRTC needs no GPU. The gate's own teeth are shown by sources and flags that it must refuse.
"""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

import pytest

from llmtrace.device import cuda, nvrtc
from llmtrace.device.compile import kernels_folder
from llmtrace.errors import Inconclusive, Trouble

ARCHITECTURES = ("sm_80", "sm_90", "sm_120")
CACHE = Path(os.environ["XDG_CACHE_HOME"]) / "llmtrace" / "kernels"
KERNELS = kernels_folder()
HEADERS = {path.name: path.read_text() for path in KERNELS.glob("*.cuh")}

ROUNDED = {"add", "sub", "mul", "div", "sqrt", "fma"}
FLOATS = {"f16", "f16x2", "bf16", "bf16x2", "tf32", "f32", "f32x2", "f64"}
EXACT = {  # whatever else may touch a float: it moves, selects or compares
    *("abs", "ld", "max", "min", "mov", "neg", "selp", "set", "setp", "slct", "st"),
}


def instructions(ptx: str) -> list[str]:
    """The instructions of a PTX text with all their modifiers, such as ``add.rn.f32``."""
    found = re.findall(r"^\s+(?:@!?%\w+\s+)?\{?\s*([a-z]\w*(?:[.:]+\w+)*)\s", ptx, re.MULTILINE)
    return [*found, *re.findall(r"\{(cvt\S*)\s", ptx)]


def flaw(instruction: str) -> str:
    """Why an instruction may not stand in a kernel, or an empty string."""
    name, *modifiers = instruction.split(".")
    types = FLOATS & set(modifiers)
    if "ftz" in modifiers:
        return "flushes subnormals"
    if "approx" in modifiers or name in {"ex2", "lg2", "rcp", "rsqrt", "sin", "cos", "tanh"}:
        return "approximates"
    if name == "call":
        return "calls a library"
    if not types:
        return ""
    if name in ROUNDED:
        narrow = types - {"f32", "f64"}
        return "computes with a storage type" if narrow else "" if "rn" in modifiers else "not .rn"
    if name == "cvt":
        to, source = modifiers[-2:]
        widens = {source, to} <= FLOATS and (source, to) in {
            ("f16", "f32"),
            ("bf16", "f32"),
            ("f32", "f64"),
            ("f16", "f64"),
        }
        rounds = {"rzi", "rni"} if to not in FLOATS else {"rn"}
        return "" if widens or rounds & set(modifiers) else "rounds in another way"
    return "" if name in EXACT else "is not known to be the same everywhere"


def flaws(ptx: str) -> set[str]:
    return {f"{one}: {why}" for one in instructions(ptx) if (why := flaw(one))}


def fused(ptx: str) -> int:
    return sum(one.startswith(("fma.", "mad.rn.f")) for one in instructions(ptx))


def entries(ptx: str) -> dict[str, str]:
    """The text of each kernel by its name."""
    parts = re.split(r"^\.visible \.entry (\w+)", ptx, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def source_names(which: str = "*.cu") -> set[str]:
    """The kernels that the sources define, those made by a macro of one parameter included."""
    found = set()
    for path in KERNELS.glob(which):
        text = path.read_text()
        for name, parameter in re.findall(r"\bKERNEL\((?!name)(\w+?)(?:##(\w+))?\s*,", text):
            if not parameter:
                found.add(name)
                continue
            pattern = rf"#define (\w+)\({parameter}\)(?:[^\n]*\\\n)*\s*KERNEL\({name}##"
            (macro,) = re.findall(pattern, text)
            values = re.findall(rf"^{macro}\((\w+)\)", text, re.MULTILINE)
            found |= {name + value for value in values}
    return found


def ptx_of(source: str, *flags: str, architecture: str = "compute_90") -> str:
    text = '#include "math.cuh"\n' + source
    return nvrtc.compile_source(text, "small.cu", HEADERS, architecture, flags or nvrtc.FLAGS).ptx


@pytest.fixture(scope="module", autouse=True)
def _has_nvrtc() -> None:
    if not importlib.util.find_spec("cupy"):
        pytest.skip("no CuPy to reach NVRTC through: pip install 'llmtrace[cuda]'")
    try:
        nvrtc.version()
    except Inconclusive as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="module", params=ARCHITECTURES)
def folder(request: pytest.FixtureRequest) -> Path:
    """Where the binaries of one architecture lie, kept between runs by what they were made from."""
    if request.param not in nvrtc.architectures():
        pytest.skip(f"NVRTC {nvrtc.version()} does not compile for {request.param}")
    return next(iter(nvrtc.cubins(KERNELS, CACHE, request.param).values())).parent


@pytest.fixture
def ptx(folder: Path) -> dict[str, str]:
    return {path.stem: path.read_text() for path in sorted(folder.glob("*.ptx"))}


def test_kernels_compile_without_a_warning(folder: Path) -> None:
    logs = {path.stem: path.read_text() for path in folder.glob("*.log")}
    assert set(logs) == {path.stem for path in KERNELS.glob("*.cu")}
    assert not {name: log for name, log in logs.items() if log}


def test_kernels_round_as_the_source_says(ptx: dict[str, str]) -> None:
    assert fused(ptx["linear"]) > 10
    assert not {name: found for name, text in ptx.items() if (found := flaws(text))}


def test_every_fma_is_written_in_the_source() -> None:
    """With fma() made of two roundings no kernel has one left: contraction made none."""
    apart = dict(HEADERS)
    apart["lanes_cuda.cuh"], count = re.subn(
        r"__fmaf_rn\(([\w.]+), ([\w.]+), ([\w.]+)\)",
        r"__fadd_rn(__fmul_rn(\1, \2), \3)",
        HEADERS["lanes_cuda.cuh"],
    )
    assert count == 2
    for path in KERNELS.glob("*.cu"):
        for architecture in ("compute_90", "compute_120"):  # NVRTC has a compiler for each
            made = nvrtc.compile_source(path.read_text(), path.name, apart, architecture)
            assert not fused(made.ptx), path


def test_without_probes_the_code_is_that_without_them(folder: Path) -> None:
    """Level off launches kernels whose binary is, to the bit, as if there were no probes."""
    source = (KERNELS / "attention.cu").read_text()
    architecture = folder.joinpath("embed.ptx").read_text().split(".target ")[1].split()[0]
    code = []
    for flags in (nvrtc.FLAGS, (*nvrtc.FLAGS, "-DNO_PROBES")):
        made = nvrtc.compile_source(source, "attention.cu", HEADERS, architecture, flags)
        code.append({n: t for n, t in sections(made.cubin).items() if n.startswith(".text.")})
    sizes = (1, 2, 3, 4, 8)
    heads = [f"attention{bits}_{n}" for bits in ("", "8") for n in sizes]
    plain = {f".text.{name}" for name in heads}
    tiles = {f".text.split_{name}" for name in heads} | {f".text.join_attention_{n}" for n in sizes}
    assert set(code[1]) == plain | tiles | {".text.kv_append", ".text.kv_append8"}
    assert all(code[0][name] == code[1][name] for name in code[1])
    probed = {name.replace("attention", "probed_attention") for name in plain | tiles}
    assert probed == set(code[0]) - set(code[1])
    with_probes = re.sub("template <int C, bool PROBED, ", "template <int C, bool, ", source)
    forced = "static constexpr bool PROBED = true;\n"  # as if the plain kernels had them
    other = nvrtc.compile_source(
        with_probes.replace("struct Head {", forced + "struct Head {"),
        "attention.cu", HEADERS, architecture, (*nvrtc.FLAGS, "-DNO_PROBES"),
    )  # fmt: skip
    found = sections(other.cubin)
    assert all(found[name] != code[1][name] for name in plain)


def sections(cubin: bytes) -> dict[str, bytes]:
    """The sections of an ELF file, by name."""
    number = lambda at, size: int.from_bytes(cubin[at : at + size], "little")  # noqa: E731
    begin, size, count, names = number(0x28, 8), *(number(at, 2) for at in (0x3A, 0x3C, 0x3E))
    table = [
        (number(at, 4), number(at + 0x18, 8), number(at + 0x20, 8))
        for at in range(begin, begin + size * count, size)
    ]
    strings = cubin[table[names][1] :][: table[names][2]]
    return {
        strings[name:].split(b"\0", 1)[0].decode(): cubin[offset : offset + length]
        for name, offset, length in table
    }


def test_last_addition_of_a_sum_is_kept() -> None:
    """No compiler may take x + (+0) for x: a sum would be -0."""
    text = ptx_of("KERNEL(total, float* y) { y[0] = sum(load(y)); }")
    (zero,) = re.findall(r"mov\.\w+\s+(%\w+), 0f00000000;", text)
    *_, last = re.findall(r"add\.rn\.f32\s+%\w+, (%\w+), (%\w+);", text)
    assert zero in last


def test_kernels_are_those_of_the_sources(ptx: dict[str, str]) -> None:
    found = [name for text in ptx.values() for name in nvrtc.kernel_names(text)]
    assert len(found) == len(set(found))
    assert set(found) == source_names() | source_names("*_cuda.cuh")


def test_table_of_kernels_is_whole() -> None:
    table = KERNELS / "README.md"
    if not table.exists():
        pytest.skip("kernels/README.md is not written yet")
    names, named = source_names() | source_names("*_host.cuh") | source_names("*_cuda.cuh"), set()
    for cell in re.findall(r"^\|([^|]*)\|", table.read_text(), re.MULTILINE):
        named |= set(re.findall(r"`(\w+)`", cell))
        for stem, first, last in re.findall(r"`(\w+_)(\d+)` … `\1(\d+)`", cell):
            named |= {f"{stem}{n}" for n in range(int(first), int(last) + 1)} & names
    assert named == names


def test_thread_blocks_are_what_the_device_launches(ptx: dict[str, str]) -> None:
    assert re.search(r"#define WARPS (\d+)", HEADERS["lanes_cuda.cuh"])[1] == str(cuda.WARPS)
    for text in ptx.values():
        sizes = re.findall(r"^\.maxntid (\d+)", text, re.MULTILINE)
        assert sizes == [str(32 * cuda.WARPS)] * len(nvrtc.kernel_names(text))


def test_kernels_fit_a_multiprocessor(ptx: dict[str, str]) -> None:
    """Shared memory is static, at most 48 KB a thread block; no array lies in local memory."""
    for text in ptx.values():
        declared = r"\.shared \.align \d+ \.b8 (\w+)\[(\d+)\]"
        shared = {name: int(size) for name, size in re.findall(declared, text)}
        for name, body in entries(re.sub(declared, "", text)).items():
            assert sum(size for array, size in shared.items() if array in body) <= 48 << 10, name
            assert "__local_depot" not in body, name


@pytest.mark.parametrize(
    ("source", "flags", "expected"),
    [
        ("y[0] = y[1] * y[2] + y[3];", ("-fmad=true",), None),
        ("y[0] = fma(y[1], y[2], y[3]);", ("-fmad=false", "-ftz=true"), "fma.rn.ftz.f32"),
        ("y[0] = y[1] / y[2];", ("-fmad=false", "-prec-div=false"), "div.full.f32"),
        ("y[0] = square_root(y[1]); y[1] = sqrtf(y[2]);", ("-prec-sqrt=false",), "sqrt.approx.f32"),
        ("y[0] = expf(y[1]);", (), "ex2.approx.ftz.f32"),
        ("y[0] = rsqrtf(y[1]);", (), "rsqrt.approx.f32"),
        ("y[0] = __fadd_rz(y[1], y[2]);", (), "add.rz.f32"),
        ("y[0] = __fdividef(y[1], y[2]);", (), "div.approx.f32"),
        ("atomicAdd(y, y[1]);", (), "atom.global.add.f32"),
        ("y[0] = __uint2float_rz((u32)y[1]);", (), "cvt.rz.f32.u32"),
    ],
)
def test_gate_refuses(source: str, flags: tuple[str, ...], expected: str | None) -> None:
    """Each trap of numerics.md, as it looks when somebody steps into it."""
    flags = ("-std=c++17", *flags) if flags else nvrtc.FLAGS
    text = ptx_of(f"KERNEL(trap, float* y) {{ {source} }}", *flags)
    if expected is None:
        assert fused(text) == 1
        assert fused(ptx_of(f"KERNEL(trap, float* y) {{ {source} }}")) == 0
    else:
        assert any(found.startswith(expected + ":") for found in flaws(text)), flaws(text)


def test_gate_refuses_tensor_cores_on_floats_only() -> None:
    assert flaw("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32")
    assert flaw("wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16")
    assert flaw("red.global.add.f32")
    assert flaw("redux.sync.max.f32")
    assert flaw("call.uni")
    assert flaw("cvt.f32.s32")
    assert flaw("add.f32")
    assert flaw("fma.rn.bf16")
    assert not flaw("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32")
    assert not flaw("dp4a.s32.s32")


def test_broken_source_is_trouble_with_its_first_line() -> None:
    with pytest.raises(Trouble, match=r"'x\.cu' for 'sm_90': x\.cu\(2\): error: .*unknown_word"):
        nvrtc.compile_source("\nunknown_word y;", "x.cu", {}, "sm_90")


def test_cubin_is_whole(folder: Path) -> None:
    """CuPy drops the last byte; the driver reads a file by the lengths in its header."""
    for path in folder.glob("*.cubin"):
        cubin = path.read_bytes()
        number = lambda at, size, c=cubin: int.from_bytes(c[at : at + size], "little")  # noqa: E731
        assert number(0x20, 8) + number(0x36, 2) * number(0x38, 2) <= len(cubin)
        assert number(0x28, 8) + number(0x3A, 2) * number(0x3C, 2) <= len(cubin)


def test_cache_is_used_and_keyed(folder: Path, tmp_path: Path) -> None:
    told: list[str] = []
    architecture = re.search(r"^\.target (\w+)", (folder / "embed.ptx").read_text(), re.MULTILINE)
    assert architecture
    again = nvrtc.cubins(KERNELS, CACHE, architecture[1], told.append)
    assert not told
    assert {path.parent for path in again.values()} == {folder}
    kernels = tmp_path / "kernels"
    kernels.mkdir()
    for name in ("embed.cu", "lanes.cuh", "lanes_cuda.cuh"):
        (kernels / name).write_text((KERNELS / name).read_text() + "// changed\n")
    other = nvrtc.cubins(kernels, tmp_path, architecture[1], told.append)
    assert told == ["compiling the kernels for this GPU, once"]
    assert {path.parent for path in other.values()} != {folder}
    assert not list(tmp_path.rglob("tmp*"))
