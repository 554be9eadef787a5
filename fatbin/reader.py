"""From a file to its device code: finds the sections, walks the containers, counts the wrappers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from fatbin import elf, layout
from fatbin.decompress import LIMITS, Limits
from fatbin.model import Container, Entry, Fatbin
from fatbin.source import Source

_PIECE = 1 << 16


def read(file: bytes | bytearray | memoryview | BinaryIO, *, limits: Limits = LIMITS) -> Fatbin:
    """The device code of a file, by its headers only: nothing is decompressed, of a large file little is read.

    Args:
        file: a 64-bit ELF file or a plain `.fatbin`: its bytes, or a seekable binary file object. A file object must
            stay open, and be used by one thread at a time, as long as payloads are read.
        limits: what the file may ask for.

    Returns:
        Without any container if the file has no device code.

    Raises:
        FatbinError: neither ELF nor fat binary, damaged, of a version that is not known, or over the limits.
        OSError: the file object cannot be read.
    """
    source = Source(file)
    budget = _Budget(source, limits)
    if source.size >= 4 and source.read(0, 4, "magic") == layout.CONTAINER_MAGIC.to_bytes(4, "little"):
        return Fatbin("", tuple(_containers(source, "", 0, source.size, budget)), None)
    host = elf.read(source)
    if host.machine == "cuda":
        raise source.error("a cubin, which is device code itself: `cubin_kernels` reads it", 0x12)
    containers: list[Container] = []
    for section in _sections(source, host, layout.CONTAINER_SECTIONS):
        containers += _containers(source, section.name, section.offset, section.offset + section.size, budget)
    wrappers = sum(_wrappers(source, section) for section in _sections(source, host, (layout.WRAPPER_SECTION,)))
    return Fatbin(host.machine, tuple(containers), wrappers)


class _Budget:
    """What the entries of one file may still ask for."""

    def __init__(self, source: Source, limits: Limits) -> None:
        self._source = source
        self._limits = limits
        self._entries = limits.entries
        self._containers = limits.entries
        self._total = limits.total

    def take_container(self, offset: int) -> None:
        self._containers -= 1
        if self._containers < 0:
            raise self._source.error(f"more than {self._limits.entries} containers", offset)

    def take(self, entry: Entry) -> None:
        self._entries -= 1
        self._total -= entry.full_size
        if self._entries < 0:
            raise self._source.error(f"more than {self._limits.entries} entries", entry.offset)
        if self._total < 0:
            raise self._source.error(f"payloads of more than {self._limits.total} bytes in all", entry.offset)


def _sections(source: Source, host: elf.Elf, names: tuple[str, ...]) -> list[elf.Section]:
    """The sections of these names that have bytes, each byte in one of them only."""
    found = [section for section in host.sections if section.name in names and section.size and not section.nobits]
    end = 0
    for section in sorted(found, key=lambda section: section.offset):
        if section.compressed:
            raise source.error(f"section {section.name} is compressed as a whole", section.offset)
        if section.offset < end:  # hostile: one piece of the file would be read any number of times
            raise source.error(f"section {section.name} overlaps another", section.offset)
        end = section.offset + section.size
        if end > source.size:
            raise source.error(f"section {section.name} of {section.size} bytes reaches over the end of the file",
                               section.offset)
    return found


def _containers(source: Source, section: str, start: int, end: int, budget: _Budget) -> Iterator[Container]:
    at = start
    while (at := _skip_zeros(source, at, end)) < end:
        budget.take_container(at)
        first, last = layout.container_end(source, at, end)
        entries = []
        offset = first
        while offset < last:
            entry, offset = layout.entry(source, offset, last)
            budget.take(entry)
            entries.append(entry)
        yield Container(section, at, last - at, tuple(entries))
        at = last


def _skip_zeros(source: Source, at: int, end: int) -> int:
    """The next offset from `at` on with a byte that is not zero; linkers align with zeros."""
    size = layout.CONTAINER.size  # mostly the next container is here, or near
    while at < end:
        piece = source.read(at, min(size, end - at), "section of containers")
        size = min(4 * size, _PIECE)
        rest = piece.lstrip(b"\0")
        if rest:
            return at + (len(piece) - len(rest))
        at += len(piece)
    return end


def _wrappers(source: Source, section: elf.Section) -> int:
    size = layout.WRAPPER.size
    if section.size % size:
        raise source.error(f"section {section.name} of {section.size} bytes is no whole number of wrappers",
                           section.offset)
    for offset in range(section.offset, section.offset + section.size, size):
        magic, version, _, _ = layout.WRAPPER.unpack(source.read(offset, size, "wrapper"))
        if magic != layout.WRAPPER_MAGIC or version not in (1, 2):
            raise source.error(f"no wrapper: magic {magic:#010x}, version {version}", offset)
    return section.size // size
