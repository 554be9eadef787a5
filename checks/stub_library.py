"""Makes a shared library that exports names and does nothing: every function returns one number.

For libraries that a device's driver brings and no image holds: with a stub in their place the dynamic loader can be
asked whether all the rest fits, and a linker has what to link against. Written byte by byte, so no compiler is needed.
Layout: System V gABI chapters 4 and 5, one segment that holds everything, a SysV hash table; the loader reads segments,
linkers read the sections.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

_MACHINES = {"aarch64": 183, "x86_64": 62}
_PAGE = 1 << 16  # the largest page size of aarch64 kernels
_SYMBOL = struct.Struct("<IBBHQQ")
_DT = {"soname": 14, "hash": 4, "strtab": 5, "symtab": 6, "strsz": 10, "syment": 11}
_FUNCTION = 1 << 4 | 2  # STB_GLOBAL, STT_FUNC
_SECTION = struct.Struct("<2I4Q2I2Q")
#: Of each section: name, sh_type, sh_flags (SHF_WRITE 1, SHF_ALLOC 2, SHF_EXECINSTR 4), sh_link, sh_info, sh_addralign,
#: sh_entsize. The first stands as number 1, which symbols name as theirs.
_SECTIONS = ((".text", 1, 2 | 4, 0, 0, 16, 0), (".hash", 5, 2, 3, 0, 8, 4), (".dynsym", 11, 2, 4, 1, 8, 24),
             (".dynstr", 3, 2, 0, 0, 1, 0), (".dynamic", 6, 1 | 2, 4, 0, 8, 16), (".shstrtab", 3, 0, 0, 0, 1, 0))


def make(machine: str, soname: str, names: Iterable[str], value: int) -> bytes:
    """The bytes of the library; the same for the same arguments.

    Args:
        machine: `aarch64` or `x86_64`.
        names: of its functions, in any order; ASCII.
        value: that each returns, 0 to 65535.

    Raises:
        KeyError: another machine.
    """
    listed = sorted(set(names))
    strings = bytearray(b"\0")
    places = {}
    for name in [soname, *listed]:
        places[name] = len(strings)
        strings += name.encode("ascii") + b"\0"
    code = _code(machine, value)
    headers = 64 + 56 * 3
    code_at = _aligned(headers, 16)
    hash_at = _aligned(code_at + len(code), 8)
    table = _hash(listed)
    symbols_at = _aligned(hash_at + len(table), 8)
    symbols = bytes(_SYMBOL.size) + b"".join(
        _SYMBOL.pack(places[name], _FUNCTION, 0, 1, code_at, len(code)) for name in listed)
    strings_at = symbols_at + len(symbols)
    dynamic_at = _aligned(strings_at + len(strings), 16)
    tags = [("soname", places[soname]), ("hash", hash_at), ("strtab", strings_at), ("symtab", symbols_at),
            ("strsz", len(strings)), ("syment", _SYMBOL.size)]
    dynamic = b"".join(struct.pack("<2Q", _DT[tag], number) for tag, number in tags) + bytes(16)
    size = dynamic_at + len(dynamic)
    sections_at = _aligned(size, 8)
    sections = _sections(sections_at, ((code_at, len(code)), (hash_at, len(table)), (symbols_at, len(symbols)),
                                       (strings_at, len(strings)), (dynamic_at, len(dynamic))))
    head = b"\x7fELF\2\1\1" + bytes(9) + struct.pack("<2HI3QI6H", 3, _MACHINES[machine], 1, 0, 64, sections_at, 0, 64,
                                                     56, 3, 64, len(_SECTIONS) + 1, len(_SECTIONS))
    # Writable, because glibc relocates the dynamic section in place; the stack must be said to need no execution.
    head += struct.pack("<2I6Q", 1, 7, 0, 0, 0, size, size, _PAGE)
    head += struct.pack("<2I6Q", 2, 6, dynamic_at, dynamic_at, dynamic_at, len(dynamic), len(dynamic), 8)
    head += struct.pack("<2I6Q", 0x6474E551, 6, 0, 0, 0, 0, 0, 16)
    out = bytearray(sections_at + len(sections))
    for at, part in ((0, head), (code_at, code), (hash_at, table), (symbols_at, symbols), (strings_at, strings),
                     (dynamic_at, dynamic), (sections_at, sections)):
        out[at : at + len(part)] = part
    return bytes(out)


def _sections(at: int, parts: Sequence[tuple[int, int]]) -> bytes:
    """The section headers, for what lies at these places (offset and size, in the order of `_SECTIONS`), then names."""
    names = b"\0" + b"".join(row[0].encode() + b"\0" for row in _SECTIONS)
    own = (at + (len(_SECTIONS) + 1) * _SECTION.size, len(names))
    headers = bytes(_SECTION.size)
    for (name, kind, flags, link, info, alignment, entry), (start, size) in zip(_SECTIONS, (*parts, own), strict=True):
        headers += _SECTION.pack(names.index(b"\0" + name.encode() + b"\0") + 1, kind, flags,
                                 start if flags & 2 else 0, start, size, link, info, alignment, entry)
    return headers + names


def _code(machine: str, value: int) -> bytes:
    """`return value`."""
    if machine == "aarch64":  # mov w0, #value; ret
        return struct.pack("<2I", 0x52800000 | value << 5, 0xD65F03C0)
    if machine == "x86_64":  # mov eax, value; ret
        return b"\xb8" + struct.pack("<I", value) + b"\xc3"
    raise KeyError(machine)


def _hash(names: list[str]) -> bytes:
    """DT_HASH: buckets and chains of symbol numbers; number 0 is the empty symbol."""
    count = max(1, len(names) // 2)
    buckets, chains = [0] * count, [0] * (len(names) + 1)
    for number, name in enumerate(names, start=1):
        bucket = elf_hash(name) % count
        chains[number], buckets[bucket] = buckets[bucket], number
    return struct.pack(f"<{2 + count + len(chains)}I", count, len(chains), *buckets, *chains)


def elf_hash(name: str) -> int:
    """The hash function of the System V gABI, chapter 5."""
    value = 0
    for byte in name.encode("ascii"):
        value = (value << 4) + byte
        high = value & 0xF0000000
        value = (value ^ high >> 24) & ~high & 0xFFFFFFFF
    return value


def _aligned(at: int, to: int) -> int:
    return (at + to - 1) // to * to
