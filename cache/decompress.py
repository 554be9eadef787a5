"""Streams of what is compressed by gzip, xz, bzip2 or zstd, told apart by their first bytes.

For archives from outside: memory is bounded whatever the stream asks for, and a stream that is damaged or
ends too early raises IntegrityError instead of looking like a short one.
"""

from __future__ import annotations

import io
import zlib
from typing import Any, BinaryIO

from cache.errors import IntegrityError

_READ = 256 << 10
#: zstd's output is not bounded otherwise than by what it is fed: four bytes may become 128 KiB. So it is fed
#: more while little comes out, and less when much does.
_ZSTD_FEED = (64, 32 << 10)
_ZSTD_MUCH = 2 << 20
#: Memory that xz may use: -9 needs 65 MiB, an evil stream may ask for 4 GiB.
_MEMORY = 160 << 20


def decompressed(fileobj: BinaryIO, where: str) -> BinaryIO:
    """`fileobj` decompressed, or as it is if it is not compressed.

    Raises (when read):
        IntegrityError: damaged, truncated, or wants more memory than any usual compressor asks for.
    """
    head = b""
    while len(head) < 6 and (more := fileobj.read(6 - len(head))):
        head += more
    source = io.BufferedReader(_Rejoined(head, fileobj), _READ)
    if head[:2] == b"\x1f\x8b":
        return io.BufferedReader(_Decompressed(source, where, "gzip"), 1 << 20)
    if head[:6] == b"\xfd7zXZ\0":
        return io.BufferedReader(_Decompressed(source, where, "xz"), 1 << 20)
    if head[:3] == b"BZh":
        return io.BufferedReader(_Decompressed(source, where, "bzip2"), 1 << 20)
    if head[:4] == b"\x28\xb5\x2f\xfd":
        return io.BufferedReader(_Zstd(source, where), 1 << 20)
    return source


class _Rejoined(io.RawIOBase):
    """A stream with the bytes put back that were read from its head."""

    def __init__(self, head: bytes, rest: BinaryIO) -> None:
        self._head, self._rest = head, rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._head or self._rest.read(len(buffer))
        taken = data[:len(buffer)]
        self._head = self._head[len(taken):] if self._head else b""
        buffer[:len(taken)] = taken
        return len(taken)


def _engine(kind: str) -> Any:
    if kind == "gzip":
        return _Gzip()
    if kind == "bzip2":
        import bz2

        return bz2.BZ2Decompressor()
    import lzma

    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MEMORY)


class _Gzip:
    """zlib with the interface of the others: `decompress(data, max_length)`, `needs_input`, `eof`."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(16 + zlib.MAX_WBITS)

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._zlib.decompress(self._zlib.unconsumed_tail + data, max_length)

    @property
    def needs_input(self) -> bool:
        return not self._zlib.unconsumed_tail and not self._zlib.eof

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data


class _Decompressed(io.RawIOBase):
    """Members of a compressed stream, one after the other."""

    def __init__(self, source: BinaryIO, where: str, kind: str) -> None:
        self._source, self._where, self._kind = source, where, kind
        self._engine = _engine(kind)
        self._done = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._done:
            try:
                data = self._more(len(buffer))
            except Exception as error:
                if isinstance(error, IntegrityError) or getattr(error, "errno", None):
                    raise
                raise IntegrityError(f"damaged {self._kind} data", where=self._where, found=str(error)) from error
            if data:
                buffer[:len(data)] = data
                return len(data)
        return 0

    def _more(self, size: int) -> bytes:
        if self._engine.eof:
            rest = self._engine.unused_data.lstrip(b"\0") or self._source.read(_READ).lstrip(b"\0")
            if not rest:
                self._done = True
                return b""
            self._engine = _engine(self._kind)
            return bytes(self._engine.decompress(rest, size))
        data = b""
        if self._engine.needs_input:
            data = self._source.read(_READ)
            if not data:
                raise IntegrityError(f"{self._kind} data that ends too early", where=self._where)
        return bytes(self._engine.decompress(data, size))


class _Zstd(io.RawIOBase):
    """Frames of zstd. The library's own reader takes a cut frame for the end, so frames are watched here."""

    def __init__(self, source: BinaryIO, where: str) -> None:
        self._source, self._where = source, where
        self._frame: Any = None
        self._feed = 256
        self._ready = b""
        self._at = 0
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while self._at >= len(self._ready):
            data = self._rest or self._source.read(_ZSTD_FEED[1])
            data, self._rest = data[:self._feed], data[self._feed:]
            if not data:
                if self._frame is not None:
                    raise IntegrityError("zstd data that ends too early", where=self._where)
                return 0
            self._ready, self._at = self._decompress(data), 0
            self._feed = max(_ZSTD_FEED[0], self._feed // 2) if len(self._ready) > _ZSTD_MUCH \
                else min(_ZSTD_FEED[1], self._feed * 2)
        count = min(len(buffer), len(self._ready) - self._at)
        buffer[:count] = memoryview(self._ready)[self._at:self._at + count]
        self._at += count
        return count

    def _decompress(self, data: bytes) -> bytes:
        import zstandard

        if self._frame is None:
            self._frame = zstandard.ZstdDecompressor().decompressobj()  # refuses windows over 128 MiB
        try:
            out = bytes(self._frame.decompress(data))
        except zstandard.ZstdError as error:
            raise IntegrityError("damaged zstd data", where=self._where, found=str(error)) from error
        if self._frame.eof:
            self._rest, self._frame = self._frame.unused_data + self._rest, None
        return out
