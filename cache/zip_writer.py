"""Writes zip archives that are the same bytes for the same members: stored, one time, nothing of the host.

A member's size and CRC come before its content, so that no reader needs a descriptor behind it (some installers refuse
that for stored members). Streams: memory is the directory, about 100 bytes a member. Writes in order, to anything that
has `write`; durability is that file's business.

Format: APPNOTE.TXT 6.3 of PKWARE, sections 4.3 and 4.5.3 (zip64: what lies beyond 4 GiB, more than 65,534 members).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Protocol

from isal import isal_zlib

from cache.errors import IntegrityError

#: 1980-01-01 00:00, the earliest that a zip file can hold (`cache.archive.SOURCE_DATE_EPOCH`).
_TIME, _DATE = 0, 0x21
_REGULAR, _UNIX, _UTF8 = 0o100000, 3, 0x800
_16, _32 = 0xFFFF, 0xFFFFFFFF


class Sink(Protocol):
    def write(self, data: bytes, /) -> object: ...


class ZipWriter:
    """Writes one archive into `sink`, member by member in ascending byte order of their names, then `finish`.

    A name out of order is a bug of the caller and raises ValueError.
    """

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._at = self._count = 0
        self._last = b""
        self._directory: list[bytes] = []

    def member(self, name: str, size: int, crc: int, chunks: Iterable[bytes], mode: int = 0o644) -> None:
        """Write a file of `size` bytes with CRC-32 `crc`.

        Raises:
            IntegrityError: the chunks give another size or another CRC.
        """
        raw = name.encode()
        if raw <= self._last or len(raw) > _16:
            raise ValueError(f"members out of order, or a name too long: {name!r} after {self._last!r}")
        self._last, offset, found = raw, self._at, 0
        flags = 0 if raw.isascii() else _UTF8
        large = size >= _32
        extra = struct.pack("<2H2Q", 1, 16, size, size) if large else b""
        told = _32 if large else size
        self._write(struct.pack("<4s5H3I2H", b"PK\3\4", 45 if large else 20, flags, 0, _TIME, _DATE, crc, told, told,
                                len(raw), len(extra)) + raw + extra)
        start = self._at
        for chunk in chunks:
            found = isal_zlib.crc32(chunk, found)
            self._write(chunk)
        if self._at - start != size or found != crc:
            raise IntegrityError("a file is not what it was when it was read before", where=name,
                                 expected=f"{size} bytes, CRC {crc:08x}",
                                 found=f"{self._at - start} bytes, CRC {found:08x}")
        self._enter(raw, flags, size, crc, offset, mode)

    def finish(self) -> None:
        """Write the directory and the end of the archive."""
        at = self._at
        for entry in self._directory:
            self._write(entry)
        length, count = self._at - at, self._count
        if at >= _32 or count >= _16:
            end = self._at
            self._write(struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, length, at))
            self._write(struct.pack("<4sIQI", b"PK\6\7", 0, end, 1))
        count = min(count, _16)
        self._write(struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count, count, min(length, _32), min(at, _32), 0))

    def _enter(self, raw: bytes, flags: int, size: int, crc: int, offset: int, mode: int) -> None:
        sizes = [size, size] if size >= _32 else []
        wide = sizes + ([offset] if offset >= _32 else [])
        extra = struct.pack(f"<2H{len(wide)}Q", 1, 8 * len(wide), *wide) if wide else b""
        told = _32 if sizes else size
        self._directory.append(struct.pack(
            "<4s6H3I5H2I", b"PK\1\2", _UNIX << 8 | (45 if wide else 20), 45 if sizes else 20, flags, 0, _TIME, _DATE,
            crc, told, told, len(raw), len(extra), 0, 0, 0, (_REGULAR | mode) << 16, min(offset, _32)) + raw + extra)
        self._count += 1

    def _write(self, data: bytes) -> None:
        self._sink.write(data)
        self._at += len(data)
