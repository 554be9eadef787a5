"""Names of kernels in cubins and PTX texts that no compiler would write like this."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import pytest

import fatbin


@pytest.mark.parametrize(("text", "names"), [
    (b".visible .entry _Z3addPf(\n.param .u64 a\n)\n{ret;}", ("_Z3addPf",)),
    (b".entry one()\n{}\n.weak .entry two()\n{}\n\t.visible\t.entry\n  $three()\n{}", ("one", "two", "$three")),
    (b".visible .entry twice();\n.visible .entry twice()\n{}", ("twice",)),
    (b".extern .entry elsewhere();", ()),
    (b"// .entry a()\n  // .visible .entry b()\n/* \n.entry c()\n*/ .entry d() {}", ("d",)),
    (b'.file 1 "/*"\n.visible .entry real()\n.file 2 "*/"', ("real",)),
    (b".visible .func .entryless()\n.b8 x[] = .entry_\n", ()),
    (b" " * 300 + b".entry far()", ()),
    (b"/* never closed\n.entry a()", ()),
    (b"", ()),
    (bytes(range(256)), ()),
])
def test_entries_of_ptx(text: bytes, names: tuple[str, ...]) -> None:
    assert fatbin.ptx_kernels(text) == names


def test_no_text_makes_it_hang() -> None:
    program = """
import fatbin
for text in (b"/*", b"/**", b'/* */"', b".entry ", b".visible ", b".entry\\n", b"/", b"*", b"//", b".entry a",
             b"/* */.entry a "):
    fatbin.ptx_kernels(text * (4_000_000 // len(text)))
"""
    # A scan that is quadratic takes hours for four million bytes, one that is linear a second.
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300, cwd=Path(fatbin.__file__).parents[1])


def test_a_cubin_without_symbols_still_names_its_kernels(samples: dict[str, Path]) -> None:
    cubin = bytearray(samples["bare.cubin"].read_bytes())
    named = fatbin.cubin_kernels(bytes(cubin))
    assert sorted(named) == ["_Z6hiddenPi", "fill"]
    start, count = struct.unpack_from("<Q", cubin, 0x28)[0], struct.unpack_from("<H", cubin, 0x3C)[0]
    for index in range(count):
        if struct.unpack_from("<I", cubin, start + 64 * index + 4)[0] == 2:  # SHT_SYMTAB
            struct.pack_into("<I", cubin, start + 64 * index + 4, 0)
    assert sorted(fatbin.cubin_kernels(bytes(cubin))) == sorted(named)


def test_a_function_that_is_no_kernel_is_not_named(samples: dict[str, Path]) -> None:
    found = fatbin.read(samples["relocatable.o"].read_bytes())
    cubin = next(entry for entry in found.entries if entry.kind is fatbin.Kind.CUBIN)
    assert b"_Z5twicef" in cubin.payload()
    assert fatbin.kernels(cubin) == ("_Z5otherPf",)


def test_ir_hides_its_kernels(samples: dict[str, Path]) -> None:
    found = fatbin.read(samples["lto.o"].read_bytes())
    assert {fatbin.kernels(entry) for entry in found.entries if entry.kind is fatbin.Kind.IR} == {None}


def test_no_cubin(samples: dict[str, Path]) -> None:
    with pytest.raises(fatbin.FatbinError, match="no cubin: an ELF file for"):
        fatbin.cubin_kernels(samples["many.so"].read_bytes())
    with pytest.raises(fatbin.FatbinError, match=r"not an ELF file \(at offset 0x0 of my cubin\)"):
        fatbin.cubin_kernels(b"text", part="my cubin")


def cubin_with_symbols(names: bytes, symbols: list[int], *, section: int = 1) -> bytes:
    """A cubin with one table of kernels in this section, whose names begin at these offsets of `names`."""
    table = b"".join(struct.pack("<IBBHQQ", name, 0x12, 0x10, section, 0, 0) for name in symbols)
    sections = [(0, 0, 0, 0, 0), (0, 2, 64, len(table), 2), (0, 3, 64 + len(table), len(names), 0)]
    head = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, 190, 1, 0, 0, 64 + len(table) + len(names), 0,
                       64, 0, 0, 64, len(sections), 2)
    rows = [struct.pack("<IIQQQQIIQQ", name, kind, 0, 0, at, size, link, 0, 0, 0)
            for name, kind, at, size, link in sections]
    return head + table + names + b"".join(rows)


def test_symbols_that_share_one_long_name_are_refused() -> None:
    long = b"\0" + b"k" * 60_000 + b"\0"
    assert fatbin.cubin_kernels(cubin_with_symbols(long, [1, 2])) == ("k" * 60_000, "k" * 59_999)
    with pytest.raises(fatbin.FatbinError, match="more names of symbols than their table can hold"):
        fatbin.cubin_kernels(cubin_with_symbols(long, [1 + index for index in range(1000)]))


def test_a_kernel_of_another_cubin_is_not_named() -> None:
    assert fatbin.cubin_kernels(cubin_with_symbols(b"\0here\0", [1])) == ("here",)
    assert fatbin.cubin_kernels(cubin_with_symbols(b"\0there\0", [1], section=0)) == ()


@pytest.mark.parametrize(("names", "symbol", "message"), [
    (b"\0name", 1, "has no end"), (b"\0name\0", 6, "has no end"), (b"\0" + b"k" * 70_000 + b"\0", 1, "has no end")])
def test_names_that_do_not_end(names: bytes, symbol: int, message: str) -> None:
    with pytest.raises(fatbin.FatbinError, match=message):
        fatbin.cubin_kernels(cubin_with_symbols(names, [symbol]))
