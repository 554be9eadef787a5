"""Gate `cpu-isa`: code of wheels that runs without asking the CPU first needs no more than the target's CPU promises.

Two kinds of evidence. An ELF file may say itself which level of x86-64 it needs (`.note.gnu.property`): glibc refuses
to load it on less. And the code of those modules that `checks/data/cpu.yaml` names is decoded, function by function: a
wheel of vLLM for CPUs that was compiled for AVX-512 dies with SIGILL at its first request, not at import. Code that
asks the CPU first (torch, oneDNN, OpenBLAS) cannot be judged so and is not. It proves what code needs, not that it
runs.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from fnmatch import fnmatchcase
from typing import Any, BinaryIO

from elftools.elf.elffile import ELFFile

from cache.layer import LayerReader
from checks import arm_code, x86_code
from checks.elf import MAGIC
from checks.registry import WHEEL_STAGES
from checks.verdict import CheckInputs, Finding

#: Bytes of code that are decoded of a file: its largest functions, about a second.
_ENOUGH = 4 << 20

_DECODERS: Mapping[str, Callable[[bytes], frozenset[str] | None]] = {
    "x86_64": x86_code.features, "aarch64": arm_code.features}

#: Bits of GNU_PROPERTY_X86_ISA_1_NEEDED (x86-64 psABI).
_NEEDED_PROPERTY = 0xC0008002
_LEVELS = {1: "x86-64-v1", 2: "x86-64-v2", 4: "x86-64-v3", 8: "x86-64-v4"}
_NOTE_GNU_PROPERTY = 5

_MOST = 4096  # sections or segments: no library has so many, and a header can claim billions
_EXECUTABLE = 4  # SHF_EXECINSTR
_FUNCTION = 2  # STT_FUNC


def run(inputs: CheckInputs) -> list[Finding]:
    """Subjects: `<file>` below the site directory; `<file>: ISA level`."""
    facts = inputs.facts
    site = facts["site"]
    found: list[Finding] = []
    with ExitStack() as stack:
        readers = [stack.enter_context(LayerReader(inputs.store, inputs.outputs[f"{stage}/index"]))
                   for stage in WHEEL_STAGES if f"{stage}/index" in inputs.outputs]
        files = {path: reader for reader in readers for path, entry in reader.entries.items()
                 if entry["type"] == "file"}
        row = next((row for row in facts["modules"] if all(f"{site}/{file}" in files for file in row["files"])), None)
        if row is not None:
            def needs(file: str) -> Mapping[str, str] | None:
                with files[f"{site}/{file}"].open(f"{site}/{file}") as stream:
                    return needed(stream, facts["machine"], facts["tested"])

            found += [_at(finding, site) for finding in alternatives(row["alternatives"], facts, needs)]
        if facts["machine"] == "x86_64":
            for path, reader in files.items():
                if reader.peek(reader.entries[path], 4) == MAGIC:
                    with reader.open(path) as stream:
                        found += _levels(path.removeprefix(f"{site}/"), stream, facts)
    return found


def alternatives(rows: Sequence[Mapping[str, Any]], facts: Mapping[str, Any],
                 needs: Callable[[str], Mapping[str, str] | None]) -> list[Finding]:
    """Judge files of which a CPU loads the first that it has the features for. Pure but for `needs`.

    Args:
        facts: `baseline` (name), `features` (all that it promises), `implies` (feature to what comes with it).
        needs: file to the features that its code needs, each with a function that does; None if it has no code that
            can be read.
    """
    promised = set(facts["features"])
    found = []
    for row in rows:
        has = promised.union(*(facts["implies"].get(feature, [feature]) for feature in row["when"]), row["when"])
        given = needs(row["file"])
        if given is None:
            found.append(Finding("warning", row["file"], "what CPU its code needs cannot be read: no functions of "
                                 "known bounds", row["file"], "try it on the least of the devices"))
        else:
            lacking = sorted(set(given) - has - set(row["tested"]))
            if lacking:
                among = f", on CPUs with {', '.join(row['when'])}," if row["when"] else ""
                found.append(Finding(
                    "error", row["file"], f"its code{among} needs {', '.join(lacking)} (in {given[lacking[0]]}), and "
                    f"{facts['baseline']} does not promise that; on the device: Illegal instruction (core dumped)",
                    row["file"], "cpu.baseline and cpu.features in the target, if every device has it; else a build "
                    "for less"))
        if set(row["when"]) <= promised:
            break  # no CPU of the target goes on to the next
    return found


def _at(finding: Finding, site: str) -> Finding:
    return Finding(finding.severity, finding.subject, finding.message, f"/{site}/{finding.where}", finding.cure)


# -- evidence ---------------------------------------------------------------------------------------------------------


def needed(stream: BinaryIO, machine: str, tested: Iterable[str]) -> dict[str, str] | None:
    """Features that the functions of an ELF file need, each with the name of a function that does.

    The largest functions are decoded, `_ENOUGH` bytes in all; one that does not decode to its very end is passed over.
    None if there is none that can be decoded.

    Args:
        tested: globs of names of functions that the CPU is asked for first.
    """
    decode = _DECODERS.get(machine)
    if decode is None:
        return None
    patterns = list(tested)
    found: dict[str, str] = {}
    decoded = 0
    for name, code in _functions(stream):
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            continue
        features = decode(code)
        if features is None:
            continue
        decoded += len(code)
        for feature in features:
            found.setdefault(feature, name)
        if decoded > _ENOUGH:
            break
    return found if decoded else None


def _functions(stream: BinaryIO) -> Iterator[tuple[str, bytes]]:
    """Name and code of the functions of a symbol table (the full one if it is there), the largest first."""
    try:
        file = ELFFile(stream)
        if file.num_sections() > _MOST:
            return
        table = file.get_section_by_name(".symtab") or file.get_section_by_name(".dynsym")
        if table is None or file.elfclass != 64:
            return
        names, data = file.get_section(table["sh_link"]), table.data()
        sections = [(section["sh_addr"], section["sh_addr"] + section["sh_size"], section["sh_offset"])
                    for section in file.iter_sections()
                    if section["sh_flags"] & _EXECUTABLE and section["sh_type"] == "SHT_PROGBITS"]
        found = [(size, value, name) for name, info, _, _, value, size
                 in struct.iter_unpack("<IBBHQQ", data[:len(data) // 24 * 24]) if info & 15 == _FUNCTION and size]
    except Exception:  # the parser checks little: bad data makes it raise nearly anything
        return
    for size, value, name in sorted(found, reverse=True):
        for start, end, offset in sections:
            if start <= value and value + size <= end:
                stream.seek(offset + value - start)
                code = stream.read(size)
                if len(code) == size:
                    yield _name(names, name), code


def _name(names: Any, at: int) -> str:
    try:
        return str(names.get_string(at))
    except Exception:
        return "?"


def _levels(file: str, stream: BinaryIO, facts: Mapping[str, Any]) -> list[Finding]:
    needs = needed_level(stream)
    if not needs or set(facts["levels"][needs]) <= set(facts["features"]):
        return []
    return [Finding("error", f"{file}: ISA level", f"says that it needs {needs}, and {facts['baseline']} is less; on "
                    "the device: CPU ISA level is lower than required", f"/{file}",
                    "cpu.baseline in the target, if every device has it; else a build for less")]


def needed_level(stream: BinaryIO) -> str:
    """The level that a file's `.note.gnu.property` says it needs; empty without one."""
    try:
        file = ELFFile(stream)
        if file.num_segments() > _MOST:
            return ""
        for segment in file.iter_segments():
            if segment["p_type"] in ("PT_NOTE", "PT_GNU_PROPERTY"):
                stream.seek(segment["p_offset"])
                bits = _isa_bits(stream.read(min(segment["p_filesz"], 1 << 16)))
                if bits:
                    return _LEVELS[1 << (bits.bit_length() - 1)]
    except Exception:  # as above; `closure` tells of damaged files
        return ""
    return ""


def _isa_bits(notes: bytes) -> int:
    """GNU_PROPERTY_X86_ISA_1_NEEDED out of the notes of a segment of a 64-bit file; 0 if it is not there."""
    stream = io.BytesIO(notes)
    while len(head := stream.read(12)) == 12:
        name_size, size, kind = struct.unpack("<3I", head)
        name = stream.read((name_size + 3) & ~3)[:name_size]
        content = stream.read((size + 7) & ~7 if kind == _NOTE_GNU_PROPERTY else (size + 3) & ~3)[:size]
        if name != b"GNU\0" or kind != _NOTE_GNU_PROPERTY:
            continue
        at = 0
        while at + 8 <= len(content):
            what, length = struct.unpack_from("<2I", content, at)
            if what == _NEEDED_PROPERTY and length == 4 and at + 12 <= len(content):
                return int(struct.unpack_from("<I", content, at + 8)[0]) & 15
            at += 8 + ((length + 7) & ~7)
    return 0
