"""The symbol reader against binutils, on real libraries and on made ones; and on damaged ones."""

from __future__ import annotations

import io
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cache.canonical import sha256
from cache.store import Store
from checks.elf import DamagedElfError
from checks.symbols import Library, library, pack, read_library, unpack
from tests.support.shared_objects import Compiler

VERSIONED = """
int old_one(void) { return 1; }
int new_one(void) { return 2; }
__asm__(".symver old_one,thing@V_1");
__asm__(".symver new_one,thing@@V_2");
int plain(void) { return 3; }
__attribute__((weak)) int soft(void) { return 4; }
__attribute__((visibility("hidden"))) int secret(void) { return 5; }
"""
SCRIPT = "V_1 { global: thing; plain; soft; local: *; }; V_2 { global: thing; } V_1;"


@pytest.fixture
def compiler(tmp_path: Path) -> Compiler:
    return Compiler(tmp_path / "objects")


def read(data: bytes) -> Library:
    return read_library(io.BytesIO(data))


def nm(path: Path, *options: str) -> list[tuple[str, str, str]]:
    """(type, name, version) of the dynamic symbols as binutils says."""
    listed = subprocess.run(["nm", "-D", *options, str(path)], capture_output=True, text=True, check=True).stdout
    found = []
    for line in listed.splitlines():
        kind, name = line.split()[-2:]
        name, _, version = name.partition("@")
        found.append((kind, name, version.lstrip("@")))
    return found


SYSTEM = sorted({path.resolve() for path in Path("/").glob("usr/lib/*-linux-gnu/*.so.?")
                 if re.match(r"lib(c|m|stdc\+\+|z|crypto|ssl|gcc_s|python3\.\d+|selinux|mount)\.so", path.name)})


@pytest.mark.parametrize("path", SYSTEM, ids=lambda path: path.name)
def test_as_binutils_read_them(path: Path) -> None:
    found = read(path.read_bytes())
    defined = {(name, version) for kind, name, version in nm(path, "--defined-only") if kind not in "aA" or not version}
    # nm also lists the names of versions, as absolute symbols.
    defined = {(name, version) for name, version in defined if name not in found.defined_versions}
    assert {(name, version) for name, versions in found.exports.items() for version in versions
            if name not in found.defined_versions} == defined
    undefined = {(name, version, kind in "wv") for kind, name, version in nm(path, "--undefined-only")}
    assert {(r.name, r.version, r.weak) for r in found.undefined} == undefined


def test_versions_weakness_and_visibility(compiler: Compiler) -> None:
    found = read(compiler.library("libthing.so.1", VERSIONED, versions=SCRIPT))
    assert found.exports["thing"] == ("V_1", "V_2") or found.exports["thing"] == ("V_2", "V_1")
    assert found.exports["plain"] == ("V_1",)
    assert "secret" not in found.exports
    assert set(found.defined_versions) == {"V_1", "V_2"}
    assert found.elf.soname == "libthing.so.1"


def test_reference_names_version_and_file(compiler: Compiler) -> None:
    compiler.library("libthing.so.1", VERSIONED, versions=SCRIPT)
    found = read(compiler.library("libuser.so", "int thing(void); int soft(void) __attribute__((weak));"
                                                "int f(void) { return thing() + (soft ? soft() : 0); }",
                                  against=["libthing.so.1"]))
    references = {reference.name: reference for reference in found.undefined}
    assert (references["thing"].version, references["thing"].file) == ("V_2", "libthing.so.1")
    assert not references["thing"].weak
    assert references["soft"].weak
    assert found.needed_versions["libthing.so.1"]


@pytest.mark.parametrize("flag", ["-Wl,--hash-style=gnu", "-Wl,--hash-style=sysv", "-Wl,--hash-style=both"])
def test_hash_tables(compiler: Compiler, flag: str) -> None:
    source = "".join(f"int name_{number}(void) {{ return {number}; }}\n" for number in range(300))
    found = read(compiler.library("libmany.so", source, flags=[flag]))
    assert {f"name_{number}" for number in range(300)} <= set(found.exports)


@pytest.mark.parametrize("flag", ["-Wl,--hash-style=gnu", "-Wl,--hash-style=sysv"])
def test_library_that_only_asks(compiler: Compiler, flag: str) -> None:
    """GNU's hash table does not hold undefined symbols: nothing in it says how many there are."""
    found = read(compiler.library("libasks.so", "extern int a, b, c; int *f[] __attribute__((visibility(\"hidden\")))"
                                                " = {&a, &b, &c};", flags=[flag, "-Wl,--exclude-libs,ALL"]))
    assert {"a", "b", "c"} <= {reference.name for reference in found.undefined}


def test_without_section_headers(compiler: Compiler) -> None:
    data = bytearray(compiler.library("libthing.so.1", VERSIONED, versions=SCRIPT))
    whole = read(bytes(data))
    data[0x28:0x30] = bytes(8)  # e_shoff
    data[0x3c:0x40] = bytes(4)  # e_shnum, e_shstrndx
    assert read(bytes(data)) == whole


def test_binding_rules(compiler: Compiler) -> None:
    versioned = read(compiler.library("libthing.so.1", VERSIONED, versions=SCRIPT))
    plain = read(compiler.library("libplain.so", "int thing(void) { return 0; }"))
    assert versioned.gives("thing", "V_1")
    assert versioned.gives("thing")  # an old program without versions
    assert not versioned.gives("thing", "V_3")
    assert plain.gives("thing", "V_3")  # a library without versions satisfies any
    assert not plain.gives("other")


def test_kept_and_read_again_without_the_file(compiler: Compiler, tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    data = compiler.library("libthing.so.1", VERSIONED, versions=SCRIPT)
    opened = []

    def open_() -> io.BytesIO:
        opened.append(1)
        return io.BytesIO(data)

    first = library(store, sha256(data), open_)
    assert library(store, sha256(data), open_) == first == read(data)
    assert len(opened) == 1


def test_damaged_file_is_kept_as_damaged(compiler: Compiler, tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    data = compiler.library("libthing.so.1", VERSIONED, versions=SCRIPT)[:900]
    opened = []

    def open_() -> io.BytesIO:
        opened.append(1)
        return io.BytesIO(data)

    for _ in range(2):
        with pytest.raises(DamagedElfError):
            library(store, sha256(data), open_)
    assert len(opened) == 1


def test_pack_keeps_all(compiler: Compiler) -> None:
    found = read(compiler.library("libthing.so.1", VERSIONED, versions=SCRIPT))
    assert unpack(json.loads(pack(found))) == found


Damage = Callable[[bytearray], None]


def _cut(data: bytearray) -> None:
    del data[len(data) // 3:]


def _scribble(data: bytearray) -> None:
    for at in range(0x200, len(data), 7):
        data[at] ^= 0xff


def _no_magic(data: bytearray) -> None:
    data[:4] = b"ELF!"


@pytest.mark.parametrize("damage", [_cut, _scribble, _no_magic])
def test_damaged_is_said(compiler: Compiler, damage: Damage) -> None:
    data = bytearray(compiler.library("libthing.so.1", VERSIONED, versions=SCRIPT))
    damage(data)
    with pytest.raises(DamagedElfError):
        read(bytes(data))


def test_hostile_headers_cost_no_time(compiler: Compiler) -> None:
    """A table of segments, or a dynamic segment, that goes on and on."""
    data = bytearray(compiler.library("libthing.so.1", VERSIONED, versions=SCRIPT))
    data[0x38:0x3a] = b"\xff\xff"  # e_phnum
    with pytest.raises(DamagedElfError, match="65535 segments"):
        read(bytes(data))
    whole = bytes(compiler.library("libthing.so.1", VERSIONED, versions=SCRIPT))
    heads, count = int.from_bytes(whole[0x20:0x28], "little"), int.from_bytes(whole[0x38:0x3a], "little")
    at = next(at for at in range(heads, heads + 56 * count, 56) if whole[at:at + 4] == b"\2\0\0\0")
    endless = bytearray(whole) + b"\1\0\0\0\0\0\0\0" * 2 * 100_000
    endless[at + 8:at + 16] = len(whole).to_bytes(8, "little")  # p_offset
    endless[at + 32:at + 40] = (1_600_000).to_bytes(8, "little")  # p_filesz
    with pytest.raises(DamagedElfError, match="without an end"):
        read(bytes(endless))


def test_object_file_has_no_dynamic_symbols(tmp_path: Path) -> None:
    out = tmp_path / "a.o"
    subprocess.run(["gcc", "-c", "-x", "c", "-", "-o", str(out)], input="int f(void) { return 1; }", text=True,
                   check=True)
    assert read(out.read_bytes()).exports == {}
