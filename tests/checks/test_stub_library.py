"""Stub libraries: read back by pyelftools, loaded by the machine's own loader, linked against by its linkers."""

from __future__ import annotations

import ctypes
import io
import platform
import subprocess
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


@pytest.mark.parametrize("linker", ["bfd", "gold"])
def test_linker_takes_it_and_the_loader_asks_for_its_soname(tmp_path: Path, linker: str) -> None:
    """A program too, in which every name must be defined; a stub that is not called by its soname is never loaded."""
    (tmp_path / "libcuda.so").write_bytes(make(platform.machine(), "libcuda.so.1", NAMES, 34))
    (tmp_path / "main.c").write_text("int cuInit(int), cuName499(int); int main() { return cuInit(0) + cuName499(0); }")
    subprocess.run(["gcc", f"-fuse-ld={linker}", "main.c", "-o", "main", "-L.", "-lcuda"], cwd=tmp_path, check=True)
    with (tmp_path / "main").open("rb") as stream:
        found = read_library(stream)
    assert found.elf.needed[0] == "libcuda.so.1"
    there = {"LD_LIBRARY_PATH": str(tmp_path)}
    program = [str(tmp_path / "main")]
    done = subprocess.run(program, env=there, capture_output=True, text=True, check=False)
    assert "libcuda.so.1: cannot open shared object file" in done.stderr
    (tmp_path / "libcuda.so").rename(tmp_path / "libcuda.so.1")
    assert subprocess.run(program, env=there, check=False).returncode == 68
    (tmp_path / "main.c").write_text("int cuOther(int); int main() { return cuOther(0); }")
    (tmp_path / "libcuda.so.1").rename(tmp_path / "libcuda.so")
    done = subprocess.run(["gcc", f"-fuse-ld={linker}", "main.c", "-L.", "-lcuda"], cwd=tmp_path, capture_output=True,
                          text=True, check=False)
    assert "undefined reference to" in done.stderr


def test_library_without_names_loads(tmp_path: Path) -> None:
    path = tmp_path / "libempty.so"
    path.write_bytes(make(platform.machine(), "libempty.so", [], 0))
    ctypes.CDLL(str(path))


def test_hash_is_that_of_the_standard() -> None:
    # Figures of the gABI's function for well-known names, as GNU ld writes them into DT_HASH.
    assert (elf_hash(""), elf_hash("printf"), elf_hash("exit")) == (0, 0x077905A6, 0x0006CF04)
