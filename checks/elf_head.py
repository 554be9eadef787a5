"""The dynamic symbols of an ELF file of which only the beginning is at hand. Reads; judges nothing.

What names the tables (`.dynamic`, the section headers) lies behind the device code, far from the beginning. GNU ld and
gold put `.gnu.hash`, `.dynsym` and `.dynstr` first, in this order, behind the notes; so they are found by what must be
true of them, and what does not agree in every respect is not read at all. A file that another linker or patchelf laid
out otherwise says so by its first bytes already: whoever asks must then read the whole file (`checks.symbols`).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from checks.elf import MAGIC

_HEADER = struct.Struct("<16s2HI3QI6H")
_SEGMENT = struct.Struct("<2I6Q")
_SYMBOL = struct.Struct("<IBBHQQ")
_HASH = struct.Struct("<4I")

_WEAK, _GLOBAL = 2, 1
_LOAD, _INTERP, _NOTE = 1, 3, 4
_MACHINES = {183: "aarch64", 62: "x86_64"}
_LONGEST = 1 << 16
#: More symbols than any library has (torch: 94,700).
_MOST = 1 << 20


@dataclass(frozen=True)
class Head:
    """Names of the beginning of a shared library.

    Attributes:
        machine: as `uname -m` says it, or the number of the machine.
        undefined: names of strong symbols that it does not define, in its order.
        exports: names that it defines for others.
    """

    machine: str
    undefined: tuple[str, ...]
    exports: tuple[str, ...]


def machine(data: bytes) -> str | None:
    """The machine of a 64-bit little-endian ELF file by its first 64 bytes; None if it is none."""
    if len(data) < _HEADER.size or data[:4] != MAGIC or data[4:6] != b"\2\1":
        return None
    number = _HEADER.unpack_from(data)[2]
    return _MACHINES.get(number, f"machine {number}")


class NoTablesError(Exception):
    """The tables are not at the beginning, however much of the file there is."""


def read_head(data: bytes) -> Head | None:
    """The symbols of a library that begins with `data`; None if more of it is needed to tell.

    Raises:
        NoTablesError: no ELF file, or its tables are elsewhere.
    """
    if len(data) < _HEADER.size:
        return None
    found = machine(data)
    if found is None:
        raise NoTablesError("not a 64-bit ELF file")
    try:
        table, strings, count = _tables(data)
        return _symbols(data, found, table, strings, count)
    except (struct.error, _TooShort):
        return None


class _TooShort(Exception):
    """The bytes end before it is sure."""


def _tables(data: bytes) -> tuple[int, int, int]:
    """Offsets of `.dynsym` and `.dynstr`, and the number of symbols."""
    at = _behind_notes(data)
    for start in range(at, at + 64, 8):  # some linkers leave a gap
        try:
            end, count = _gnu_hash(data, start)
            table = (end + 7) // 8 * 8
            strings = table + count * _SYMBOL.size
            _check(data[table : table + _SYMBOL.size] in (bytes(_SYMBOL.size), data[table:]))
            _check(data[strings : strings + 1] in (b"\0", b""))
        except NoTablesError:
            continue
        if strings >= len(data):
            raise _TooShort
        return table, strings, count
    raise NoTablesError("no table of symbols behind the notes")


def _behind_notes(data: bytes) -> int:
    """Where the program headers, the interpreter and the notes that follow them end."""
    header = _HEADER.unpack_from(data)
    start, size, count = header[5], header[9], header[10]
    _check(start == _HEADER.size and size == _SEGMENT.size and 0 < count < 64)
    segments = [_SEGMENT.unpack_from(data, start + number * size) for number in range(count)]
    loads = [item for item in segments if item[0] == _LOAD]
    # Addresses and offsets agree in the first segment: what follows may take one for the other.
    _check(bool(loads) and loads[0][2] == loads[0][3])
    end = start + count * size
    for kind, _, offset, _, _, length, _, _ in sorted(segments, key=lambda item: int(item[2])):
        if kind in (_INTERP, _NOTE) and offset <= end + 64:
            end = max(end, offset + length)
            _check(end <= 1 << 20)
    return (int(end) + 7) // 8 * 8


def _gnu_hash(data: bytes, at: int) -> tuple[int, int]:
    """End of the hash table at `at`, and the number of symbols that it speaks of."""
    buckets, first, bloom, shift = _HASH.unpack_from(data, at)
    _check(0 < buckets < _MOST and 0 < first < _MOST and 0 < bloom < _MOST and not bloom & (bloom - 1) and shift < 64)
    heads_at = at + _HASH.size + 8 * bloom
    heads = struct.unpack_from(f"<{buckets}I", data, heads_at)
    last = max(heads)
    _check(first <= last < _MOST and all(head == 0 or head >= first for head in heads))
    chains = heads_at + 4 * buckets
    while not struct.unpack_from("<I", data, chains + 4 * (last - first))[0] & 1:
        last += 1
        _check(last < _MOST)
    return chains + 4 * (last + 1 - first), last + 1


def _symbols(data: bytes, machine: str, table: int, strings: int, count: int) -> Head:
    undefined, exports = [], []
    left = 16 * len(data)  # linkers let names share their ends; hostile ones may let all share one
    for at in range(table + _SYMBOL.size, table + count * _SYMBOL.size, _SYMBOL.size):
        name_at, info, other, section, _, _ = _SYMBOL.unpack_from(data, at)
        if info >> 4 not in (_GLOBAL, _WEAK, 10):
            continue
        end = data.find(b"\0", strings + name_at, strings + name_at + _LONGEST)
        if end < 0 and strings + name_at + _LONGEST > len(data):
            raise _TooShort
        left -= end - strings - name_at
        _check(bool(name_at) and end >= 0 and left >= 0)
        name = data[strings + name_at : end].decode("utf-8", "surrogateescape")
        if section:
            if other & 3 in (0, 3):
                exports.append(name)
        elif info >> 4 != _WEAK:
            undefined.append(name)
    return Head(machine, tuple(undefined), tuple(exports))


def _check(true: bool) -> None:
    if not true:
        raise NoTablesError("the bytes are not what they would be taken for")
