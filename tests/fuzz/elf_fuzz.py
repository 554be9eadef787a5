"""Fuzzes the readers of ELF files: real libraries with bytes changed, until the time is over.

    python tests/fuzz/elf_fuzz.py [--seconds 60] [--seed N] [--samples DIR]

Each round takes a library that gcc made, one that this process has loaded, or one of DIR, changes it, and reads it with
`read_elf`, `read_library`, `read_head`, `needed` and `needed_level`. What may come out is a result, `NoTablesError`, or
`DamagedElfError` that is not because memory or the stack ran out; see `harness` for the limits.
"""

from __future__ import annotations

import contextlib
import io
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from elftools.elf.dynamic import DynamicSegment
from elftools.elf.elffile import ELFFile

from checks.cpu_isa import needed, needed_level
from checks.elf import DamagedElfError, read_elf
from checks.elf_head import NoTablesError, read_head
from checks.symbols import pack, read_library
from tests.fuzz.harness import Group, Spots, files_of, main

SOURCE = """
extern int helper(int); extern __attribute__((weak)) int maybe(int); __thread int local = 1;
int one(int x) { return helper(x) + (maybe ? maybe(x) : 0) + local; }
static int old_(int x) { return x; } static int new_(int x) { return x + 1; }
__asm__(".symver old_,twice@OLD"); __asm__(".symver new_,twice@@NEW");
"""
VERSIONS = "OLD { global: one; twice; local: *; }; NEW { global: twice; } OLD;"

#: Name to gcc's options.
BUILDS = {
    "both.so": ["-Wl,--hash-style=both", "-lm", "-Wl,-rpath,$ORIGIN/../lib:/opt/x"],
    "sysv.so": ["-Wl,--hash-style=sysv"],
    "gnu.so": ["-Wl,--hash-style=gnu", "-Wl,-soname,libgnu.so.1"],
}


def read(data: bytes, _: random.Random) -> str:
    """Everything there is to read; what came out, in a word."""
    outcome = "read"
    for reader in (read_elf, read_library):
        try:
            found = reader(io.BytesIO(data))
        except DamagedElfError as error:
            _honest(error)
            outcome = "damaged"
        else:
            if reader is read_library:
                assert len(pack(found)) < 64 * len(data) + 4096
    with contextlib.suppress(NoTablesError):
        read_head(data[:65536])
    needed_level(io.BytesIO(data))
    needed(io.BytesIO(data), "x86_64", [])
    return outcome


def _honest(error: BaseException) -> None:
    assert str(error)
    while error.__cause__ is not None:
        error = error.__cause__
        assert not isinstance(error, (MemoryError, RecursionError)), repr(error)


def spots_of(data: bytes) -> Spots:
    """Offsets in a good file of its headers, its dynamic section and the tables that this names."""
    if not data.startswith(b"\x7fELF"):
        return []
    file = ELFFile(io.BytesIO(data))
    segments = [file["e_phoff"] + file["e_phentsize"] * index for index in range(file["e_phnum"])]
    sections = [file["e_shoff"] + file["e_shentsize"] * index for index in range(file["e_shnum"])]
    dynamic, tables = [], []
    for segment in file.iter_segments():
        if isinstance(segment, DynamicSegment):
            dynamic = [segment["p_offset"] + 16 * index for index in range(segment.num_tags())]
            for tag in segment.iter_tags():
                if tag.entry.d_tag in ("DT_SYMTAB", "DT_STRTAB", "DT_HASH", "DT_GNU_HASH", "DT_VERSYM", "DT_VERNEED",
                                       "DT_VERDEF"):
                    tables.append(list(file.address_offsets(tag.entry.d_val)))
    return [[0], segments, sections, *[dynamic] * 2, *[table for table in tables for _ in range(2)]]


def groups(directory: Path | None) -> list[Group]:
    """The libraries to begin with."""
    if directory is not None:
        files = files_of(directory)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            compile_all(Path(scratch))
            files = files_of(Path(scratch))
        with open("/proc/self/maps", encoding="utf-8") as file:
            loaded = sorted(set(re.findall(r"(/\S+\.so\S*)$", file.read(), re.M)))
        for path in map(Path, loaded):
            if path.is_file() and path.stat().st_size < 200_000:  # larger ones make too few rounds
                files[path.name] = path.read_bytes()
    return [Group(1, files, read, {name: spots_of(data) for name, data in files.items()})]


def compile_all(directory: Path) -> None:
    """Libraries in which every table is, a program, an object file, one without section headers."""
    (directory / "code.c").write_text(SOURCE)
    (directory / "code.map").write_text(VERSIONS)
    (directory / "main.c").write_text("int main(void) { return 0; }")
    for name, options in BUILDS.items():
        subprocess.run(["gcc", "-shared", "-fPIC", "code.c", "-Wl,--version-script=code.map", *options, "-o", name],
                       cwd=directory, check=True)
    subprocess.run(["gcc", "main.c", "-o", "program"], cwd=directory, check=True)
    subprocess.run(["gcc", "-c", "-fPIC", "main.c", "-o", "object.o"], cwd=directory, check=True)
    bare = bytearray((directory / "both.so").read_bytes())
    bare[0x28:0x30], bare[0x3C:0x40] = bytes(8), bytes(4)  # e_shoff; e_shnum and e_shstrndx
    (directory / "no-sections.so").write_bytes(bare)
    for name in ("code.c", "code.map", "main.c"):
        (directory / name).unlink()


if __name__ == "__main__":
    sys.exit(main("elf", groups))
