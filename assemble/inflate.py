"""Decompress the parts of a Debian package: none, gzip, xz, zstd; in bounded memory, chunk by chunk."""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Callable, Iterator

#: Bytes read and given at once.
CHUNK = 1 << 20
#: xz may ask for a dictionary of 4 GiB, zstd for 2 GiB; packages use 64 MiB and 128 MiB at most.
_XZ_MEMORY = 160 << 20
_ZSTD_WINDOW = 128 << 20

Read = Callable[[int], bytes]


def engine(suffix: str) -> Callable[[Read], Iterator[bytes]] | None:
    """The decompressor for what follows `.tar` in a part's name, or None if there is none.

    It takes a function like `file.read` and raises ValueError if the data is damaged or ends early.
    """
    return {"": _plain, ".gz": _gzip, ".xz": _xz, ".lzma": _lzma, ".zst": _zstd}.get(suffix)


def _plain(read: Read) -> Iterator[bytes]:
    while data := read(CHUNK):
        yield data


def _gzip(read: Read) -> Iterator[bytes]:
    decoder = zlib.decompressobj(31)
    data = b""
    try:
        while data := data or read(CHUNK):
            if decoder.eof:  # several members in a row are one file
                decoder = zlib.decompressobj(31)
            if chunk := decoder.decompress(data, CHUNK):
                yield chunk
            data = decoder.unused_data if decoder.eof else decoder.unconsumed_tail
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if not decoder.eof:
        raise ValueError("it ends early")


def _xz(read: Read) -> Iterator[bytes]:
    return _with_lzma(read, lzma.FORMAT_XZ)


def _lzma(read: Read) -> Iterator[bytes]:
    return _with_lzma(read, lzma.FORMAT_ALONE)


def _with_lzma(read: Read, form: int) -> Iterator[bytes]:
    decoder = lzma.LZMADecompressor(form, _XZ_MEMORY)
    data = b""
    try:
        while True:
            if decoder.eof:  # several streams in a row are one file, with zero padding between them
                data = decoder.unused_data.lstrip(b"\0") or read(CHUNK).lstrip(b"\0")
                if not data:
                    return
                decoder = lzma.LZMADecompressor(form, _XZ_MEMORY)
            elif decoder.needs_input:
                data = read(CHUNK)
                if not data:
                    raise ValueError("it ends early")
            else:
                data = b""
            if chunk := decoder.decompress(data, CHUNK):
                yield chunk
    except lzma.LZMAError as error:
        raise ValueError(str(error)) from error


def _zstd(read: Read) -> Iterator[bytes]:
    import zstandard

    decoder = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).decompressobj()
    try:
        done = False
        # Small bites: zstd's object gives all that a bite holds, up to some hundred times its size.
        while data := read(CHUNK >> 4):
            if done:
                decoder = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).decompressobj()
            if chunk := decoder.decompress(data):
                yield chunk
            done = decoder.eof
            if done and decoder.unused_data:
                raise ValueError("something follows its end")
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error
    if not done:
        raise ValueError("it ends early")
