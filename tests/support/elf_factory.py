"""Makes small ELF files: 64 bit, little endian, well-formed for readers, with a dynamic section. They hold no code."""

from __future__ import annotations

import struct
from collections.abc import Iterable

MACHINES = {"aarch64": 183, "x86_64": 62}
_DYNAMIC = {"soname": 14, "rpath": 15, "runpath": 29, "needed": 1}


def make_elf(machine: str = "aarch64", *, kind: int = 3, needed: Iterable[str] = (), soname: str = "", rpath: str = "",
             runpath: str = "", interpreter: str = "", exports: Iterable[str] = (), extra: bytes = b"") -> bytes:
    """An ELF file of a machine as `uname -m` says it.

    Args:
        kind: `e_type`: 1 object, 2 executable, 3 shared.
        exports: names of functions that it defines.
        extra: bytes appended, within the loaded segment.
    """
    strings = bytearray(b"\0")

    def text(value: str) -> int:
        at = len(strings)
        strings.extend(value.encode() + b"\0")
        return at

    tags = [(_DYNAMIC["needed"], text(name)) for name in needed]
    for name, value in (("soname", soname), ("rpath", rpath), ("runpath", runpath)):
        if value:
            tags.append((_DYNAMIC[name], text(value)))
    interp_at = text(interpreter) if interpreter else 0
    symbols = [bytes(24), *(struct.pack("<IBBHQQ", text(name), 0x12, 0, 1, 64, 8) for name in exports)]
    segments = 3 if interpreter else 2
    strings_at = 64 + 56 * segments
    symbols_at = (strings_at + len(strings) + 15) // 16 * 16
    table = b"".join(symbols) + struct.pack("<2I", 0, len(symbols)) if len(symbols) > 1 else b""  # and DT_HASH's counts
    dynamic_at = (symbols_at + len(table) + 15) // 16 * 16
    if table:
        tags += [(6, symbols_at), (4, symbols_at + 24 * len(symbols))]
    dynamic = b"".join(struct.pack("<2Q", *tag) for tag in [*tags, (5, strings_at), (10, len(strings)), (0, 0)])
    size = dynamic_at + len(dynamic) + len(extra)
    head = b"\x7fELF\2\1\1" + bytes(9) + struct.pack("<2HI3QI6H", kind, MACHINES[machine], 1, 0, 64, 0, 0, 64, 56,
                                                     segments, 64, 0, 0)
    heads = struct.pack("<2I6Q", 1, 5, 0, 0, 0, size, size, 4096)
    heads += struct.pack("<2I6Q", 2, 4, dynamic_at, dynamic_at, dynamic_at, len(dynamic), len(dynamic), 8)
    if interpreter:
        length = len(interpreter) + 1
        at = strings_at + interp_at
        heads += struct.pack("<2I6Q", 3, 4, at, at, at, length, length, 1)
    front = (head + heads + bytes(strings)).ljust(symbols_at, b"\0") + table
    return front.ljust(dynamic_at, b"\0") + dynamic + extra
