"""Dynamic symbols of ELF files, with their versions: what a library gives and what it asks for.

Read from the dynamic segment as the loader does, so that a file without section headers reads too. pyelftools finds
the tables; their entries are taken apart here, because the loader's tables are plain arrays and torch has 94,700
symbols. Layouts: System V gABI chapter 5, and the GNU symbol versioning and hash sections of the LSB (10.7) and glibc.

`library` keeps what it read in the store by the file's digest (`cache.derived`), so a library is read once for all
targets and runs.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO

from elftools.elf.dynamic import DynamicSegment
from elftools.elf.elffile import ELFFile

from cache.derived import derived
from checks.elf import DamagedElfError, Elf, read_elf, tags_of

if TYPE_CHECKING:
    from cache.store import Store

#: Raised when `read_library` gives something else for the same file.
VERSION = 1

_MAX_TABLE = 256 << 20  # bytes of one table; libtorch_cpu's strings are 9 MiB

_LOCAL, _WEAK, _UNIQUE = 0, 2, 10  # binding
_HIDDEN, _INTERNAL = 2, 1  # visibility
_NAMELESS = frozenset({3, 4})  # STT_SECTION, STT_FILE
_VERSION_HIDDEN = 0x8000


@dataclass(frozen=True)
class Reference:
    """A symbol that a library does not define: `version` and the `file` that shall have it may be ""."""

    name: str
    version: str = ""
    file: str = ""
    weak: bool = False


@dataclass(frozen=True)
class Library:
    """What the dynamic loader sees of an ELF file.

    Attributes:
        elf: machine, NEEDED and the like.
        exports: symbol name to its versions; "" is a symbol without a version. Empty for a file without any.
        undefined: what must or may come from elsewhere.
        needed_versions: file to the versions that must be defined there, or the loader refuses to start
            ("version `GLIBC_2.38' not found"). Those marked weak are left out.
        defined_versions: versions that it defines itself; without any, a reference with a version binds to
            a symbol of that name without looking at versions.
    """

    elf: Elf
    exports: dict[str, tuple[str, ...]] = field(default_factory=dict)
    undefined: tuple[Reference, ...] = ()
    needed_versions: dict[str, tuple[str, ...]] = field(default_factory=dict)
    defined_versions: tuple[str, ...] = ()

    def gives(self, name: str, version: str = "") -> bool:
        """True if a reference binds here, by the rules of glibc's `do_lookup_x` and `check_match`."""
        versions = self.exports.get(name)
        if versions is None:
            return False
        return not version or version in versions or not self.defined_versions


def library(store: Store, digest: str, open_: Callable[[], BinaryIO]) -> Library:
    """The library whose content has that digest; read only if the store does not know it.

    Raises:
        DamagedElfError: it is no well-formed ELF file.
    """
    fact = derived(store, "elf-symbols", VERSION, digest, lambda: _read_packed(open_))
    return unpack(json.loads(fact))


def read_library(stream: BinaryIO) -> Library:
    """Read a seekable stream.

    Raises:
        DamagedElfError: it does not begin like an ELF file, is cut off or malformed.
    """
    elf = read_elf(stream)
    if elf is None:
        raise DamagedElfError("not an ELF file")
    stream.seek(0)
    size = stream.seek(0, 2)
    try:
        return _Reader(stream, size).library(elf)
    except DamagedElfError:
        raise
    except Exception as error:  # the parser checks little: bad data makes it raise nearly anything
        raise DamagedElfError(str(error) or type(error).__name__) from error


# -- how it is kept -------------------------------------------------------------------------------


def _read_packed(open_: Callable[[], BinaryIO]) -> bytes:
    with open_() as stream:
        try:
            return pack(read_library(stream))
        except DamagedElfError as error:
            return json.dumps({"damaged": str(error)}).encode()


def pack(found: Library) -> bytes:
    """As JSON; names that are no UTF-8 keep their bytes as surrogates."""
    return json.dumps({
        "elf": vars(found.elf), "exports": found.exports,
        "undefined": [[r.name, r.version, r.file, int(r.weak)] for r in found.undefined],
        "needed_versions": found.needed_versions, "defined_versions": found.defined_versions,
    }, separators=(",", ":")).encode()


def unpack(found: Mapping[str, Any]) -> Library:
    """The reverse of `pack`, of its JSON read. Raises DamagedElfError for a file that was found damaged."""
    if "damaged" in found:
        raise DamagedElfError(found["damaged"])
    elf: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value
                           for key, value in found["elf"].items()}
    return Library(
        Elf(**elf), {name: tuple(versions) for name, versions in found["exports"].items()},
        tuple(Reference(name, version, file, bool(weak)) for name, version, file, weak in found["undefined"]),
        {file: tuple(versions) for file, versions in found["needed_versions"].items()},
        tuple(found["defined_versions"]))


# -- reading --------------------------------------------------------------------------------------


class _Reader:
    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream, self._size = stream, size
        self._file = ELFFile(stream)
        self._end = "<" if self._file.little_endian else ">"
        self._wide = self._file.elfclass == 64
        self._loads: list[tuple[int, int, int]] = []
        self._tags: dict[str, int] = {}
        for segment in self._file.iter_segments():
            if segment["p_type"] == "PT_LOAD":
                self._loads.append((segment["p_vaddr"], segment["p_filesz"], segment["p_offset"]))
            elif isinstance(segment, DynamicSegment):
                for tag in tags_of(segment):
                    self._tags.setdefault(str(tag.entry.d_tag), int(tag.entry.d_val))

    def library(self, elf: Elf) -> Library:
        if "DT_SYMTAB" not in self._tags or "DT_STRTAB" not in self._tags:
            return Library(elf)
        self._strings = self._at(self._tags["DT_STRTAB"], self._tags.get("DT_STRSZ", 0))
        needed, names = self._needed_versions()
        defined = self._defined_versions()
        names |= {number: ("", version) for number, version in defined.items()}
        exports: dict[str, list[str]] = {}
        undefined = []
        count = self._count()
        table = self._at(self._tags["DT_SYMTAB"], count * (24 if self._wide else 16))
        layout = struct.Struct(self._end + ("IBBHQQ" if self._wide else "IIIBBH"))
        wide = self._wide
        versions: Iterator[tuple[int]] | None = None
        if "DT_VERSYM" in self._tags:
            versions = struct.iter_unpack(self._end + "H", self._at(self._tags["DT_VERSYM"], count * 2))
        strings = self._strings
        for number, entry in enumerate(layout.iter_unpack(table)):
            index = next(versions)[0] if versions is not None else 1
            if wide:
                at, info, other, section = entry[0], entry[1], entry[2], entry[3]
            else:
                at, info, other, section = entry[0], entry[3], entry[4], entry[5]
            binding = info >> 4
            if not number or binding == _LOCAL or (info & 15) in _NAMELESS:
                continue
            end = strings.find(b"\0", at)
            if at >= len(strings) or end < 0:
                raise DamagedElfError(f"symbol {number} has its name outside the string table")
            name = strings[at:end].decode("utf-8", "surrogateescape")
            file, version = names.get(index & ~_VERSION_HIDDEN, ("", ""))
            if section == 0:
                undefined.append(Reference(name, version, file, binding == _WEAK))
            elif (other & 3) not in (_HIDDEN, _INTERNAL) and index & ~_VERSION_HIDDEN:  # version 0 is local to the file
                exports.setdefault(name, []).append(version)
        return Library(elf, {name: tuple(found) for name, found in exports.items()}, tuple(undefined), needed,
                       tuple(defined.values()))

    def _at(self, address: int, size: int) -> bytes:
        """`size` bytes of the memory image, as far as the file has them."""
        if size > _MAX_TABLE or size > self._size:
            raise DamagedElfError(f"a table of {size} bytes in a file of {self._size}")
        for start, length, offset in self._loads:
            if start <= address < start + length:
                if address + size > start + length:
                    raise DamagedElfError("a table that goes beyond its segment")
                self._stream.seek(offset + address - start)
                data = self._stream.read(size)
                if len(data) != size:
                    raise DamagedElfError("cut off inside a table")
                return data
        if not size:
            return b""
        raise DamagedElfError(f"a table at {address:#x}, where no segment is")

    def _words(self, address: int, count: int, code: str = "I") -> tuple[int, ...]:
        return struct.unpack(f"{self._end}{count}{code}", self._at(address, count * struct.calcsize(self._end + code)))

    def _text(self, at: int) -> str:
        end = self._strings.find(b"\0", at)
        if at >= len(self._strings) or end < 0:
            raise DamagedElfError("a name outside the string table")
        return self._strings[at:end].decode("utf-8", "surrogateescape")

    def _count(self) -> int:
        """How many symbols there are: no field says it, the hash tables do."""
        if "DT_HASH" in self._tags:
            return self._words(self._tags["DT_HASH"], 2)[1]
        if "DT_GNU_HASH" not in self._tags:
            return 0
        address = self._tags["DT_GNU_HASH"]
        buckets, first, bloom, _ = self._words(address, 4)
        if max(buckets, bloom) > self._size:
            raise DamagedElfError("a hash table larger than the file")
        at = address + 16 + bloom * (8 if self._wide else 4)
        last = max(self._words(at, buckets), default=0)
        if last < first:
            return self._without_exports(first)
        chain = at + buckets * 4 + (last - first) * 4
        while True:
            piece = self._words(chain, 1)[0]
            last += 1
            if piece & 1:
                return last
            chain += 4

    def _without_exports(self, first: int) -> int:
        """GNU hash tables leave out undefined symbols: with no others, `first` says nothing sure; a section does."""
        for section in self._file.iter_sections():
            if section["sh_type"] == "SHT_DYNSYM" and section["sh_entsize"]:
                return int(section["sh_size"]) // int(section["sh_entsize"])
        return first

    def _needed_versions(self) -> tuple[dict[str, tuple[str, ...]], dict[int, tuple[str, str]]]:
        """File to versions; and version number to (file, version)."""
        found: dict[str, tuple[str, ...]] = {}
        names: dict[int, tuple[str, str]] = {}
        at = self._tags.get("DT_VERNEED", 0)
        for _ in range(min(self._tags.get("DT_VERNEEDNUM", 0), 1 << 16)):
            _, count, file_at, first, following = struct.unpack(self._end + "HHIII", self._at(at, 16))
            file, inner = self._text(file_at), at + first
            strong = []
            for _ in range(count):
                _, flags, number, name_at, after = struct.unpack(self._end + "IHHII", self._at(inner, 16))
                version = self._text(name_at)
                names[number & ~_VERSION_HIDDEN] = (file, version)
                if not flags & 2:  # VER_FLG_WEAK
                    strong.append(version)
                if not after:
                    break
                inner += after
            found[file] = (*found.get(file, ()), *strong)
            if not following:
                break
            at += following
        return found, names

    def _defined_versions(self) -> dict[int, str]:
        """Version number to name; without the one that names the file itself."""
        found: dict[int, str] = {}
        at = self._tags.get("DT_VERDEF", 0)
        for _ in range(min(self._tags.get("DT_VERDEFNUM", 0), 1 << 16)):
            _, flags, number, _, _, first, following = struct.unpack(self._end + "HHHHIII", self._at(at, 20))
            name_at = struct.unpack(self._end + "I", self._at(at + first, 4))[0]
            if not flags & 1:  # VER_FLG_BASE
                found[number & ~_VERSION_HIDDEN] = self._text(name_at)
            if not following:
                break
            at += following
        return found

