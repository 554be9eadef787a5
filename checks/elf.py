"""ELF files of a layer: what they are and what they ask of the dynamic loader. Reads; judges nothing.

The parsing is pyelftools' business. Nothing is executed or mapped.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from elftools.elf.dynamic import DynamicSegment
from elftools.elf.elffile import ELFFile
from elftools.elf.segments import InterpSegment

#: `e_machine` to the name that `uname -m` gives.
_MACHINES = {"EM_AARCH64": "aarch64", "EM_X86_64": "x86_64", "EM_386": "i686", "EM_ARM": "armv7l", "EM_CUDA": "cuda"}
_KINDS = {"ET_DYN": "shared", "ET_EXEC": "executable", "ET_REL": "object"}

#: More than linkers write (seen: 14 segments, 160 tags): a hostile header must not cost minutes.
_MOST_SEGMENTS, _MOST_TAGS = 512, 8192

MAGIC = b"\x7fELF"


class DamagedElfError(Exception):
    """Begins like an ELF file and is none: cut off, or not well-formed."""


@dataclass(frozen=True)
class Elf:
    """What an ELF file says of itself.

    Attributes:
        machine: as `uname -m` says it, or the `e_machine` constant.
        kind: "shared" (a library, or an executable that loads anywhere), "executable", "object", or the constant.
        soname, needed: of the dynamic section.
        rpath, runpath: directories, `$ORIGIN` as written. The loader ignores the first where there is the second.
        interpreter: path of the loader that an executable asks for.
    """

    machine: str
    kind: str
    soname: str = ""
    needed: tuple[str, ...] = ()
    rpath: tuple[str, ...] = ()
    runpath: tuple[str, ...] = ()
    interpreter: str = ""


def read_elf(stream: BinaryIO) -> Elf | None:
    """Read a seekable stream; None if it does not begin like an ELF file.

    Raises:
        DamagedElfError: it does, and is cut off or malformed.
    """
    stream.seek(0)
    if stream.read(4) != MAGIC:
        return None
    size = stream.seek(0, 2)
    try:
        return _read(stream, size)
    except DamagedElfError:
        raise
    except Exception as error:  # the parser checks little: bad data makes it raise nearly anything
        raise DamagedElfError(str(error) or type(error).__name__) from error


def tags_of(segment: DynamicSegment) -> Iterator[Any]:
    """The entries of a dynamic segment, up to the one that ends it.

    Raises:
        DamagedElfError: nothing ends it within its size, or as many as linkers write; the parser would look on and on.
    """
    file: ELFFile = segment.elffile
    width = 16 if file.elfclass == 64 else 8
    file.stream.seek(segment["p_offset"])
    data = file.stream.read(min(segment["p_filesz"], _MOST_TAGS * width))
    if not any(data[at:at + width // 2] == bytes(width // 2) for at in range(0, len(data) - width + 1, width)):
        raise DamagedElfError("a dynamic segment without an end")
    yield from segment.iter_tags()


def _read(stream: BinaryIO, size: int) -> Elf:
    stream.seek(0)
    file = ELFFile(stream)
    found: dict[str, list[str]] = {"DT_SONAME": [], "DT_NEEDED": [], "DT_RPATH": [], "DT_RUNPATH": []}
    interpreter = ""
    if file["e_phnum"] > _MOST_SEGMENTS:
        raise DamagedElfError(f"{file['e_phnum']} segments")
    for segment in file.iter_segments():
        end = segment["p_offset"] + segment["p_filesz"]
        if segment["p_type"] == "PT_LOAD" and end > size:
            raise DamagedElfError(f"cut off: a segment ends at {end} of {size} bytes")
        if isinstance(segment, InterpSegment):
            interpreter = segment.get_interp_name()
        if isinstance(segment, DynamicSegment):
            for tag in tags_of(segment):
                if tag.entry.d_tag in found:
                    found[tag.entry.d_tag].append(getattr(tag, tag.entry.d_tag.removeprefix("DT_").lower()))
    paths = {kind: tuple(part for text in found[kind] for part in text.split(":") if part)
             for kind in ("DT_RPATH", "DT_RUNPATH")}
    machine, kind = str(file["e_machine"]), str(file["e_type"])
    return Elf(_MACHINES.get(machine, machine), _KINDS.get(kind, kind),
               "".join(found["DT_SONAME"]), tuple(found["DT_NEEDED"]), paths["DT_RPATH"], paths["DT_RUNPATH"],
               interpreter)
