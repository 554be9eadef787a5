"""Payloads: LZ4 blocks and zstd frames to bytes, never more of them than was announced.

zstd comes from `compression.zstd` (Python 3.14) or the package `zstandard`, imported when it is first needed. The LZ4
block decoder is here: the format is two pages, and what makes LZ4 here (nvcc's --compress-mode=speed, toolkits before
13) is rare enough that speed matters little.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from fatbin.errors import FatbinError


@dataclass(frozen=True)
class Limits:
    """What a file may ask for before it is refused.

    Attributes:
        payload: bytes of one payload, compressed or not. The largest known are below 64 MiB.
        entries: of one file; and as many containers.
        total: bytes of all payloads of a file after decompression, as its headers claim.
    """

    payload: int = 1 << 28
    entries: int = 1 << 18
    total: int = 1 << 35


LIMITS = Limits()

_PIECE = 1 << 20


class MissingZstdError(FatbinError):
    """An entry is compressed with zstd, and this Python can not decompress that: `pip install zstandard`."""


def lz4(data: bytes, size: int, offset: int = 0) -> bytes:
    """One LZ4 block (no frame, as nvcc writes it) that holds `size` bytes.

    Args:
        offset: of the block in the file, for messages.

    Raises:
        FatbinError: malformed, or not `size` bytes.
    """
    out = bytearray()
    at, end = 0, len(data)
    try:
        while at < end:
            token = data[at]
            at += 1
            literals = token >> 4
            if literals == 15:
                literals, at = _length(data, at, literals)
            if at + literals > end or len(out) + literals > size:
                raise FatbinError(f"LZ4: {literals} literals do not fit", offset=offset + at)
            out += data[at:at + literals]
            at += literals
            if at == end:  # the last sequence has no match
                break
            distance = data[at] | data[at + 1] << 8
            at += 2
            length = token & 15
            if length == 15:
                length, at = _length(data, at, length)
            length += 4
            start = len(out) - distance
            if distance == 0 or start < 0 or len(out) + length > size:
                raise FatbinError(f"LZ4: a match of {length} bytes, {distance} back, does not fit", offset=offset + at)
            if distance >= length:
                out += out[start:start + length]
            else:  # the match overlaps what it writes: it repeats the last `distance` bytes
                out += (out[start:] * (length // distance + 1))[:length]
    except IndexError:
        raise FatbinError("LZ4: the block is cut off", offset=offset + end) from None
    if len(out) != size:
        raise FatbinError(f"LZ4: {len(out)} bytes, expected {size}", offset=offset)
    return bytes(out)


def _length(data: bytes, at: int, length: int) -> tuple[int, int]:
    while True:
        more = data[at]
        at += 1
        length += more
        if more != 255:
            return length, at


def zstd(data: bytes, size: int, offset: int = 0) -> bytes:
    """One zstd frame that holds `size` bytes.

    Args:
        offset: of the frame in the file, for messages.

    Raises:
        FatbinError: malformed, or not `size` bytes.
        MissingZstdError: this Python has no zstd.
    """
    out = _decoder(offset)(data, size, offset)
    if len(out) != size:
        more = "more than " if len(out) > size else ""
        raise FatbinError(f"zstd: {more}{min(len(out), size)} bytes, expected {size}", offset=offset)
    return out


def _decoder(offset: int) -> Callable[[bytes, int, int], bytes]:
    """A function that gives the first `size` + 1 bytes of a frame, or all if there are fewer.

    What both know by themselves: a frame that asks for a window of more than 128 MiB is refused.
    """
    try:
        import compression.zstd as standard  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        pass
    else:
        def of_standard(data: bytes, size: int, offset: int) -> bytes:
            try:
                return bytes(standard.ZstdDecompressor().decompress(data, max_length=size + 1))
            except (standard.ZstdError, EOFError) as error:
                raise FatbinError(f"zstd: {error}", offset=offset) from None
        return of_standard
    try:
        import zstandard
    except ImportError:
        raise MissingZstdError("compressed with zstd, which this Python has not: install the package zstandard",
                               offset=offset) from None

    def of_package(data: bytes, size: int, offset: int) -> bytes:
        # One-shot decompression is the quicker way, but allocates whatever size the frame's header claims.
        with contextlib.suppress(zstandard.ZstdError):
            if zstandard.get_frame_parameters(data).content_size == size:
                return bytes(zstandard.ZstdDecompressor().decompress(data))
        # In pieces, because a read allocates all that is asked for.
        reader = zstandard.ZstdDecompressor().stream_reader(data)
        out = bytearray()
        try:
            while len(out) <= size and (piece := reader.read(min(_PIECE, size + 1 - len(out)))):
                out += piece
            return bytes(out)
        except zstandard.ZstdError as error:
            raise FatbinError(f"zstd: {error}", offset=offset) from None
    return of_package
