"""Symbols from the beginning of a library: the same as from the whole of it, or none."""

from __future__ import annotations

import contextlib
import io
import random
from pathlib import Path

import pytest

from checks.elf_head import NoTablesError, machine, read_head
from checks.symbols import read_library
from tests.support.elf_factory import make_elf
from tests.support.shared_objects import MACHINE, Compiler

#: As an extension with device code: what names the tables lies behind 2 MB.
SOURCE = "".join(f"extern int asked_{n}(void); int given_{n}(void) {{ return asked_{n}(); }}\n"
                 for n in range(40)) + """
extern int perhaps(void) __attribute__((weak));
int uses(void) { return perhaps ? perhaps() : 0; }
__attribute__((visibility("hidden"))) int secret(void) { return 5; }
__attribute__((section(".nv_fatbin"))) const char code[2000000] = {1};
"""


@pytest.fixture
def compiler(tmp_path: Path) -> Compiler:
    return Compiler(tmp_path)


def whole(data: bytes) -> tuple[set[str], set[str]]:
    found = read_library(io.BytesIO(data))
    return {item.name for item in found.undefined if not item.weak}, set(found.exports)


def beginning(data: bytes) -> tuple[set[str], set[str]]:
    found = read_head(data)
    assert found is not None
    assert found.machine == MACHINE
    return set(found.undefined), set(found.exports)


def test_the_beginning_says_what_the_whole_says(compiler: Compiler) -> None:
    data = compiler.library("lib.so", SOURCE)
    assert len(data) > 2_000_000
    assert beginning(data[:16384]) == whole(data)
    assert "asked_7" in beginning(data[:16384])[0]
    assert {"given_7", "code"} <= beginning(data[:16384])[1]
    assert not {"secret", "perhaps"} & set.union(*beginning(data[:16384]))


def test_too_little_of_it_is_no_answer(compiler: Compiler) -> None:
    data = compiler.library("lib.so", SOURCE)
    answers = {read_head(data[:size]) for size in range(0, 16384, 97)}
    assert answers == {None, read_head(data)}  # never a part of the symbols


def test_another_hash_table_is_known_by_the_first_bytes(compiler: Compiler) -> None:
    with pytest.raises(NoTablesError):
        read_head(compiler.library("lib.so", SOURCE, flags=["-Wl,--hash-style=sysv"])[:4096])


@pytest.mark.parametrize("data", [b"no ELF at all" * 9, make_elf(extra=bytes(500)), b"\x7fELF" + bytes(200)])
def test_what_has_no_tables_there_says_so(data: bytes) -> None:
    with pytest.raises(NoTablesError):
        read_head(data)


def test_machine_by_the_first_bytes() -> None:
    assert machine(make_elf("aarch64")[:64]) == "aarch64"
    assert machine(make_elf("x86_64")[:64]) == "x86_64"
    assert machine(b"\x7fELF\1\1" + bytes(80)) is None
    assert machine(b"") is None


def test_damaged_bytes_never_raise(compiler: Compiler) -> None:
    data = compiler.library("lib.so", SOURCE)[:16384]
    chance = random.Random(5)
    for _ in range(2000):
        damaged = bytearray(data)
        for _ in range(chance.randrange(1, 30)):
            damaged[chance.randrange(len(damaged) // 4)] = chance.randrange(256)
        with contextlib.suppress(NoTablesError):
            read_head(bytes(damaged))
