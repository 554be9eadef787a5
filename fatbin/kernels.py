"""Names of the kernels (`__global__` functions, mangled) in a cubin or a PTX text."""

from __future__ import annotations

import re

from fatbin import elf
from fatbin.decompress import LIMITS, Limits
from fatbin.errors import FatbinError
from fatbin.model import Entry, Kind
from fatbin.source import Source

#: In `st_other` of a symbol: the function can be launched (cuobjdump says STO_ENTRY).
_STO_CUDA_ENTRY = 0x10
#: Each kernel, and nothing else, has its parameters in such a section.
_PARAMETERS = ".nv.constant0."

_NAME = rb"[A-Za-z_$%][\w$]*"
#: A kernel begins a line, after its linking directives; `.extern` only declares it.
_ENTRY = re.compile(rb"\.entry\s+(" + _NAME + rb")")
_BEFORE = re.compile(rb"[ \t]*(?:\.(?:visible|weak)[ \t]+)*")
_LONGEST_BEFORE = 256
#: Comments and strings, each also where it is not closed: a pattern that can fail at the end makes hostile text slow.
_SKIPPED = re.compile(rb'//[^\n]*|/\*(?:[^*]|\*(?!/))*(?:\*/)?|"[^"\n]*"?')


def kernels(entry: Entry, *, limits: Limits = LIMITS) -> tuple[str, ...] | None:
    """The kernels of an entry, in the order of the cubin's symbols or of the text. Reads and decompresses it.

    Returns:
        Mangled names, each once. Empty if it has none, as many entries have: count kernels, not entries.
        None for a kind of entry that hides them (NVVM IR, unknown kinds).

    Raises:
        FatbinError: the payload is damaged, or over the limits.
        MissingZstdError: this Python has no zstd.
    """
    if entry.kind not in (Kind.PTX, Kind.CUBIN):
        return None
    payload = entry.payload(limits)
    if entry.kind is Kind.PTX:
        return ptx_kernels(payload)
    return cubin_kernels(payload, part=f"the {entry.target} cubin at {entry.payload_offset:#x}")


def cubin_kernels(cubin: bytes, *, part: str = "") -> tuple[str, ...]:
    """The kernels of a cubin (an ELF file of machine CUDA).

    Args:
        part: what to call the cubin in errors.

    Raises:
        FatbinError: no cubin, or damaged.
    """
    source = Source(cubin, part)
    found = elf.read(source)
    if found.machine != "cuda":
        raise FatbinError(f"no cubin: an ELF file for {found.machine}", offset=0x12, part=part)
    functions = elf.functions(source, found)
    if functions is not None:
        return tuple(dict.fromkeys(name for name, other in functions if other & _STO_CUDA_ENTRY))
    return tuple(dict.fromkeys(section.name[len(_PARAMETERS):] for section in found.sections
                               if section.name.startswith(_PARAMETERS)))


def ptx_kernels(text: bytes) -> tuple[str, ...]:
    """The kernels of a PTX text; any bytes will do, and have no kernels if they are not PTX."""
    if b"/*" in text:  # compilers write no such comments; only they can hide a line
        text = _SKIPPED.sub(lambda match: b'""' if match[0].startswith(b'"') else b" ", text)
    return tuple(dict.fromkeys(match[1].decode("ascii") for match in _ENTRY.finditer(text)
                               if _begins_line(text, match.start())))


def _begins_line(text: bytes, at: int) -> bool:
    start = max(0, at - _LONGEST_BEFORE)
    newline = text.rfind(b"\n", start, at)
    if newline < 0 and start:
        return False
    return _BEFORE.fullmatch(text, newline + 1 if newline >= 0 else 0, at) is not None
