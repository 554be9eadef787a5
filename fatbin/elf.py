"""The little of ELF that is needed to find device code: section headers, names, symbols. 64-bit little-endian only.

Used on the file that carries the code (a library for x86-64 or aarch64) and on cubins, which are ELF files as well.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from fatbin.source import Source

MAGIC = b"\x7fELF"
EM_CUDA = 190

_SHT_SYMTAB, _SHT_NOBITS = 2, 8
_SHN_UNDEF, _SHN_XINDEX = 0, 0xFFFF
_SHF_COMPRESSED = 0x800
_STT_FUNC = 2
_MACHINES = {62: "x86_64", 183: "aarch64", EM_CUDA: "cuda", 243: "riscv64"}

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")

#: Object files of big programs have hundreds of thousands of sections at most.
_MOST_SECTIONS = 1 << 18
#: The longest names of C++ templates in the wild are some ten thousand characters.
LONGEST_NAME = 1 << 16
#: Names may share bytes of their table; hostile ones may share all of them and make little bytes into many.
_SHARED = 16


@dataclass(frozen=True, slots=True)
class Section:
    """One section header; `size` bytes at `offset` of the file, none of them if `nobits`."""

    name: str
    kind: int
    flags: int
    offset: int
    size: int
    link: int

    @property
    def nobits(self) -> bool:
        """True if the section has a size but no bytes in the file (separate debug files)."""
        return self.kind == _SHT_NOBITS

    @property
    def compressed(self) -> bool:
        """True if the section's bytes are compressed as a whole."""
        return bool(self.flags & _SHF_COMPRESSED)


@dataclass(frozen=True, slots=True)
class Elf:
    """The machine as `uname -m` says it ("machine 21" if it has no name here), and the sections in their order."""

    machine: str
    sections: tuple[Section, ...]


def read(source: Source) -> Elf:
    """The section headers of an ELF file.

    Raises:
        FatbinError: no ELF file, 32-bit or big-endian, without section headers, or malformed.
    """
    if source.size < 16 or source.read(0, 4, "ELF magic") != MAGIC:
        raise source.error("not an ELF file", 0)
    ident = source.read(0, 16, "ELF identification")
    if ident[4] != 2 or ident[5] != 1:
        raise source.error(f"not a 64-bit little-endian ELF file (class {ident[4]}, data {ident[5]})", 4)
    header = _HEADER.unpack(source.read(0, _HEADER.size, "ELF header"))
    machine, start, entry, count, names_at = header[2], header[6], header[11], header[12], header[13]
    if start == 0:
        raise source.error("the ELF file has no section headers, so its device code cannot be found", 0x28)
    if entry != _SECTION.size:
        raise source.error(f"section headers of {entry} bytes, expected {_SECTION.size}", 0x3A)
    if count == 0 or names_at == _SHN_XINDEX:  # the real figures are in the first header
        first = _SECTION.unpack(source.read(start, _SECTION.size, "first section header"))
        count = count or first[5]
        names_at = first[6] if names_at == _SHN_XINDEX else names_at
    if count > _MOST_SECTIONS:
        raise source.error(f"{count} sections, more than {_MOST_SECTIONS}", start)
    table = source.read(start, count * _SECTION.size, "section headers")
    rows = list(_SECTION.iter_unpack(table))
    if names_at == _SHN_UNDEF or names_at >= count:
        raise source.error("the ELF file names no section with the names of sections", 0x3E)
    names = source.read(rows[names_at][4], rows[names_at][5], "names of sections")
    sections = []
    total = 0
    for index, row in enumerate(rows):
        name = string(names, row[0], source, start + index * _SECTION.size)
        total += len(name)
        if total > _SHARED * (count + len(names)):
            raise source.error("more names of sections than their table can hold", start + index * _SECTION.size)
        sections.append(Section(name, row[1], row[2], row[4], row[5], row[6]))
    return Elf(_MACHINES.get(machine, f"machine {machine}"), tuple(sections))


def contents(source: Source, section: Section) -> bytes:
    """A section's bytes.

    Raises:
        FatbinError: it reaches over the end of the file.
    """
    return b"" if section.nobits else source.read(section.offset, section.size, f"section {section.name}")


def functions(source: Source, elf: Elf) -> Iterator[tuple[str, int]] | None:
    """Name and `st_other` of the functions that `.symtab` defines; None if the file has no `.symtab`.

    Raises:
        FatbinError: the table is malformed; raised while iterating.
    """
    for section in elf.sections:
        if section.kind == _SHT_SYMTAB:
            return _functions(source, elf, section)
    return None


def _functions(source: Source, elf: Elf, section: Section) -> Iterator[tuple[str, int]]:
    if section.link >= len(elf.sections):
        raise source.error(f"the symbol table names section {section.link} of {len(elf.sections)}", section.offset)
    if section.size % _SYMBOL.size:
        raise source.error(f"a symbol table of {section.size} bytes is not whole", section.offset)
    table = contents(source, section)
    names = contents(source, elf.sections[section.link])
    total = 0
    for index, (name, info, other, where, _value, _size) in enumerate(_SYMBOL.iter_unpack(table)):
        if info & 0xF == _STT_FUNC and where != _SHN_UNDEF:
            found = string(names, name, source, section.offset + index * _SYMBOL.size)
            total += len(found)
            if total > _SHARED * (index + len(names)):
                raise source.error("more names of symbols than their table can hold", section.offset)
            yield found, other


def string(table: bytes, start: int, source: Source, offset: int) -> str:
    """The NUL-terminated string at `start` of `table`; `offset` is where it was asked for, for the message.

    Raises:
        FatbinError: it begins or ends outside of the table, or is longer than any real name.
    """
    end = table.find(b"\0", start, start + LONGEST_NAME + 1)
    if start >= len(table) or end < 0:
        raise source.error(f"a name at {start} of a table of {len(table)} bytes has no end", offset)
    return table[start:end].decode("utf-8", "replace")
