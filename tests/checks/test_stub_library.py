"""Stub libraries: read back by pyelftools, and loaded by the machine's own loader."""

from __future__ import annotations

import ctypes
import io
import platform
from pathlib import Path

import pytest

from checks.stub_library import elf_hash, make
from checks.symbols import read_library

NAMES = [f"cuName{number}" for number in range(500)] + ["cuInit", "cuDeviceGetCount"]


@pytest.mark.parametrize("machine", ["aarch64", "x86_64"])
def test_library_is_what_it_should_be(machine: str) -> None:
    found = read_library(io.BytesIO(make(machine, "libcuda.so.1", NAMES, 100)))
    assert (found.elf.machine, found.elf.kind, found.elf.soname) == (machine, "shared", "libcuda.so.1")
    assert set(found.exports) == set(NAMES)
    assert (found.elf.needed, found.undefined) == ((), ())


def test_same_names_same_bytes() -> None:
    assert make("aarch64", "x.so", NAMES, 1) == make("aarch64", "x.so", [*reversed(NAMES), "cuInit"], 1)


def test_loader_finds_every_name_and_each_returns_the_number(tmp_path: Path) -> None:
    path = tmp_path / "libcuda.so.1"
    path.write_bytes(make(platform.machine(), "libcuda.so.1", NAMES, 100))
    library = ctypes.CDLL(str(path))
    assert {getattr(library, name)(1, 2, 3) for name in NAMES} == {100}
    with pytest.raises(AttributeError, match="undefined symbol: cuOther"):
        _ = library.cuOther


def test_library_without_names_loads(tmp_path: Path) -> None:
    path = tmp_path / "libempty.so"
    path.write_bytes(make(platform.machine(), "libempty.so", [], 0))
    ctypes.CDLL(str(path))


def test_hash_is_that_of_the_standard() -> None:
    # Figures of the gABI's function for well-known names, as GNU ld writes them into DT_HASH.
    assert (elf_hash(""), elf_hash("printf"), elf_hash("exit")) == (0, 0x077905A6, 0x0006CF04)
