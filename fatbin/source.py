"""Bytes by offset, from memory or from a seekable file. Every read is checked against the size.

Concurrency: a file object has one position, so a `Source` over a file is for one thread at a time.
"""

from __future__ import annotations

import os
from typing import BinaryIO

from fatbin.errors import FatbinError


class Source:
    """A file, or bytes, that is read at offsets.

    Attributes:
        size: bytes in all.
        part: what the offsets count from, for messages; empty for a file.
    """

    def __init__(self, data: bytes | bytearray | memoryview | BinaryIO, part: str = "") -> None:
        self.part = part
        self._file: BinaryIO | None = None
        self._view = memoryview(b"")
        if isinstance(data, (bytes, bytearray, memoryview)):
            self._view = memoryview(data).cast("B")
            self.size = len(self._view)
        else:
            self._file = data
            self.size = data.seek(0, os.SEEK_END)

    def read(self, offset: int, length: int, what: str) -> bytes:
        """`length` bytes at `offset`.

        Args:
            what: the thing that is read, for the message.

        Raises:
            FatbinError: they reach over the end.
        """
        if offset < 0 or length < 0 or offset + length > self.size:
            raise self.error(f"{what} reaches over the end: {length} bytes where {max(self.size - offset, 0)} are left",
                             offset)
        if self._file is None:
            return bytes(self._view[offset:offset + length])
        self._file.seek(offset)
        pieces = []
        wanted = length
        while wanted:  # an unbuffered file may give less than was asked for
            piece = self._file.read(wanted)
            if not piece:
                raise self.error(f"{what}: the file became shorter while it was read", offset)
            pieces.append(piece)
            wanted -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def error(self, message: str, offset: int) -> FatbinError:
        """The error that says what is wrong where in this source."""
        return FatbinError(message, offset=offset, part=self.part)
