"""Compressed layers: the form in which a layer travels to a registry.

Builder `compressed-layer`. Input: `layer` (an uncompressed tar). Output: `layer` (gzip or zstd). Params:
`{"compressor": {"name", "level", "library", "version"}}`: the library's version changes the bytes, so it is part of the
key; `compressor` fills it in for this machine.

The bytes depend on the input and the compressor alone, not on cores, CPU or the size of reads:

- zstd: libzstd as it comes hash-locked with the `zstandard` wheel, always in its multi-threaded form, whose output is
  the same for any number of threads from one up (it differs from the single-threaded form; measured with 1.5.7).
- gzip: the zlib of this Python, in blocks of 1 MiB that each know the 32 KiB before them, as pigz does; no name, no
  time. zlib and not isa-l, which picks its match finder by the CPU it runs on.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import zstandard

from cache.build import BuildContext
from cache.errors import InputError, ToolError
from cache.store import Blob
from oci import media

_READ = 1 << 20
_WINDOW = 32 << 10
_LEVELS = {"zstd": range(1, 20), "gzip": range(1, 10)}

MEDIA_TYPES: Mapping[str, str] = {"zstd": media.LAYER_ZSTD, "gzip": media.LAYER_GZIP}


def compressor(name: str, level: int) -> dict[str, str | int]:
    """A compressor as this machine has it, in full: what goes into the key and into the record of a push.

    Raises:
        InputError: an unknown compressor, or a level that it does not have.
    """
    if name not in _LEVELS:
        raise InputError("unknown compressor", where="image.compression", expected="zstd or gzip", found=name)
    levels = _LEVELS[name]
    if level not in levels:
        raise InputError(f"{name} has no such level", where="image.compression.level",
                         expected=f"{levels[0]} to {levels[-1]}", found=str(level))
    if name == "zstd":
        library, version = "libzstd", ".".join(map(str, zstandard.ZSTD_VERSION))
    else:
        library, version = "zlib", zlib.ZLIB_RUNTIME_VERSION
    return {"name": name, "level": level, "library": library, "version": version}


def build(context: BuildContext) -> dict[str, Blob]:
    """Builder `compressed-layer`; see the module text.

    Raises:
        ToolError: this machine has another version of the library than the params name.
        InputError: an unknown compressor or level.
    """
    wanted = context.params["compressor"]
    here = compressor(wanted["name"], wanted["level"])
    if here != wanted:
        raise ToolError("this machine compresses otherwise", where="compressor",
                        expected=f"{wanted['library']} {wanted['version']}",
                        found=f"{here['library']} {here['version']}",
                        cure="./doit sets up the locked environment")
    digest = context.inputs["layer"]
    path = context.store.use(digest)
    size = path.stat().st_size
    with path.open("rb", buffering=0) as file, context.store.writer() as writer:
        for chunk in compress(_chunks(file.read, size, context.progress), size, wanted["name"], wanted["level"]):
            writer.write(chunk)
        blob = writer.commit()
    context.log(f"{size} bytes to {blob.size} with {wanted['name']} {wanted['level']} "
                f"({wanted['library']} {wanted['version']})")
    return {"layer": blob}


def _chunks(read: Callable[[int], bytes], size: int, progress: Callable[[int, int], None]) -> Iterator[bytes]:
    done = 0
    while chunk := read(_READ):
        yield chunk
        done += len(chunk)
        progress(done, size)


def compress(chunks: Iterable[bytes], size: int, name: str, level: int, threads: int = 0) -> Iterator[bytes]:
    """Compress a stream of `size` bytes in all; memory is bounded whatever the size.

    Args:
        threads: how many work at it; 0: one for each core, at most eight. The output does not depend on it.
    """
    # Each thread holds some 30 MiB at usual levels; more than eight gain little and would take much.
    count = threads or min(8, os.cpu_count() or 1)
    return _zstd(chunks, size, level, count) if name == "zstd" else _gzip(chunks, level, count)


def _zstd(chunks: Iterable[bytes], size: int, level: int, threads: int) -> Iterator[bytes]:
    stream = zstandard.ZstdCompressor(level=level, threads=threads).compressobj(size=size)
    for chunk in chunks:
        if piece := stream.compress(chunk):
            yield piece
    yield stream.flush()


def _gzip(chunks: Iterable[bytes], level: int, threads: int) -> Iterator[bytes]:
    extra = 2 if level == 9 else 4 if level == 1 else 0  # RFC 1952: XFL, best or fastest
    yield b"\x1f\x8b\x08\x00\x00\x00\x00\x00" + bytes([extra, 255])
    checksum = length = 0
    before = b""
    waiting: deque[Future[bytes]] = deque()
    with ThreadPoolExecutor(threads, "gzip") as pool:
        for block in _blocks(chunks):
            checksum, length = zlib.crc32(block, checksum), length + len(block)
            waiting.append(pool.submit(_deflate, block, before, level))
            before = block[-_WINDOW:]
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    # An empty last block ends the stream, so that no block needs to know whether it is the last.
    yield b"\x03\x00" + struct.pack("<II", checksum, length & 0xFFFFFFFF)


def _blocks(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in blocks of exactly `_READ`, but the last: the output must not depend on how they came."""
    held = bytearray()
    for chunk in chunks:
        held += chunk
        while len(held) >= _READ:
            yield bytes(held[:_READ])
            del held[:_READ]
    if held:
        yield bytes(held)


def _deflate(block: bytes, before: bytes, level: int) -> bytes:
    """A deflate stream without end, on a byte boundary, that may refer to the bytes before the block."""
    stream = (zlib.compressobj(level, zlib.DEFLATED, -15, 8, zlib.Z_DEFAULT_STRATEGY, before) if before
              else zlib.compressobj(level, zlib.DEFLATED, -15, 8))
    return stream.compress(block) + stream.flush(zlib.Z_SYNC_FLUSH)
