"""The byte layout of fat binaries: headers to data, nothing else. All numbers are little-endian.

NVIDIA documents only the wrapper (`fatbinary_section.h` in the toolkit). The rest was measured: the same source
compiled by nvcc with one option changed, and compared with what `cuobjdump` says; docs/fatbin.md has the tables.
"""

from __future__ import annotations

import struct

from fatbin.model import Compression, Entry, Kind
from fatbin.source import Source

#: Names of ELF sections with containers: of what can be loaded, and of what -rdc=true leaves for the device linker.
CONTAINER_SECTIONS = (".nv_fatbin", "__nv_relfatbin")
WRAPPER_SECTION = ".nvFatBinSegment"

#: magic, version, size of this header, size of what follows it
CONTAINER = struct.Struct("<IHHQ")
CONTAINER_MAGIC = 0xBA55ED50
#: magic, version, address of the container, address of a list that the device linker makes
WRAPPER = struct.Struct("<IIQQ")
WRAPPER_MAGIC = 0x466243B1

#: kind, 0x0101, header size, payload size, compressed size, extension, version minor, major, arch, identifier offset
#: and length, flags, (IR only), uncompressed size
ENTRY = struct.Struct("<HHIQIIHHIIIQQQ")
_ENTRY_VERSION = 0x0101
_EXTENSION = struct.Struct("<II")

FLAG_LZ4, FLAG_ZSTD = 0x2000, 0x8000
FLAG_ARCH_SPECIFIC, FLAG_FAMILY_SPECIFIC = 0x100000, 0x200000

_KINDS = {kind.value: kind for kind in Kind if kind is not Kind.OTHER}


def container_end(source: Source, offset: int, end: int) -> tuple[int, int]:
    """Offsets of the first entry and of the end of the container at `offset`, which must end at `end` or before.

    Raises:
        FatbinError: no container, a version that is not known, or it reaches over `end`.
    """
    magic, version, header, size = CONTAINER.unpack(source.read(offset, CONTAINER.size, "container header"))
    if magic != CONTAINER_MAGIC:
        raise source.error(f"no container: magic {magic:#010x}, expected {CONTAINER_MAGIC:#010x}", offset)
    if version != 1 or header < CONTAINER.size:
        raise source.error(f"a container of version {version} with a header of {header} bytes is not known", offset)
    if offset + header + size > end:
        raise source.error(f"a container of {header + size} bytes where {end - offset} are left", offset)
    return offset + header, offset + header + size


def entry(source: Source, offset: int, end: int) -> tuple[Entry, int]:
    """The entry at `offset`, and the offset after it, which is `end` (of its container) or before.

    Raises:
        FatbinError: malformed, of a version that is not known, or it reaches over `end`.
    """
    if end - offset < ENTRY.size:
        raise source.error(f"an entry header of {ENTRY.size} bytes where {end - offset} are left", offset)
    (kind, version, header, size, compressed, extension, minor, major, arch, name_at, name_size, flags, _,
     full) = ENTRY.unpack(source.read(offset, ENTRY.size, "entry header"))
    if version != _ENTRY_VERSION:
        raise source.error(f"entry of version {version:#06x}, expected {_ENTRY_VERSION:#06x}", offset)
    if header < ENTRY.size or offset + header + size > end:
        raise source.error(f"an entry of {header} bytes of header and {size} of payload where {end - offset} are left",
                           offset)
    compression = _compression(source, offset, flags)
    if compression is Compression.STORED:
        compressed, full = size, size
    elif not 0 < compressed <= size:
        raise source.error(f"{compressed} compressed bytes in a payload of {size}", offset)
    suffix = ("f" if flags & FLAG_FAMILY_SPECIFIC else "") + ("a" if flags & FLAG_ARCH_SPECIFIC else "")
    if len(suffix) > 1:
        raise source.error(f"flags {flags:#x} say both architecture-specific and family-specific", offset)
    known = _KINDS.get(kind, Kind.OTHER)
    found = Entry(
        offset=offset, kind=known, kind_number=kind, arch=arch, suffix=suffix, version=(major, minor),
        compression=compression, size=compressed, full_size=full, flags=flags,
        identifier=_text(source, offset, header, name_at, name_size, "identifier"),
        options=_options(source, offset, header, extension) if known in (Kind.PTX, Kind.IR) and extension else "",
        payload_offset=offset + header, _source=source)
    return found, offset + header + size


def _compression(source: Source, offset: int, flags: int) -> Compression:
    match flags & (FLAG_LZ4 | FLAG_ZSTD):
        case 0:
            return Compression.STORED
        case 0x2000:
            return Compression.LZ4
        case 0x8000:
            return Compression.ZSTD
    raise source.error(f"flags {flags:#x} say both LZ4 and zstd", offset)


def _options(source: Source, offset: int, header: int, extension: int) -> str:
    if extension + _EXTENSION.size > header:
        raise source.error(f"an extension at {extension} of an entry header of {header} bytes", offset)
    at, size = _EXTENSION.unpack(source.read(offset + extension, _EXTENSION.size, "entry extension"))
    return _text(source, offset, header, at, size, "options")


def _text(source: Source, offset: int, header: int, at: int, size: int, what: str) -> str:
    if not size:
        return ""
    if at < ENTRY.size or at + size > header:
        raise source.error(f"{what}: {size} bytes at {at} of an entry header of {header} bytes", offset)
    return source.read(offset + at, size, what).rstrip(b"\0").decode("utf-8", "replace")
