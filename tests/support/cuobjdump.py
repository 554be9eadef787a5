"""What NVIDIA's cuobjdump says of a file, as data to compare with ours."""

from __future__ import annotations

import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.support.cuda import Toolkit

_KINDS = {"elf": "CUBIN", "ptx": "PTX", "nvvm": "IR"}
_BLOCK = re.compile(r"^Fatbin (\w+) code:\n=+\n", re.MULTILINE)


@dataclass(frozen=True)
class Said:
    """One entry, as cuobjdump prints it; `kernels` of cubins, if asked for."""

    kind: str
    arch: str
    version: tuple[int, int]
    is_64bit: bool
    compressed: bool
    debug: bool
    identifier: str
    options: str
    kernels: tuple[str, ...] = ()


def entries(toolkit: Toolkit, path: Path) -> list[Said]:
    """All entries with the kernels of cubins: those of .nv_fatbin first, then those of __nv_relfatbin."""
    return parse(toolkit.cuobjdump("-all", "-symbols", str(path), cwd=path.parent))


def parse(text: str) -> list[Said]:
    """The entries of what cuobjdump prints."""
    pieces = _BLOCK.split(text)
    return [_entry(kind, block) for kind, block in zip(pieces[1::2], pieces[2::2], strict=True)]


def _entry(kind: str, block: str) -> Said:
    fields = dict(re.findall(r"^([\w ]+?) = ?(.*)$", block, re.MULTILINE))
    lines = block.splitlines()
    major, minor = fields["code version"].strip("[]").split(",")
    kernels = tuple(line.split()[-1] for line in lines if re.match(r"FUNC +\w+ +\w+ +ENTRY ", line))
    return Said(_KINDS[kind], fields["arch"], (int(major), int(minor)), fields["compile_size"] == "64bit",
                "compressed" in lines, "has debug info" in lines, fields.get("identifier", ""),
                fields.get("ptxasOptions", fields.get("nvvmOptions", "")).strip(), kernels)


def payloads(toolkit: Toolkit, path: Path) -> dict[str, list[bytes]]:
    """The extracted payloads, "elf" and "ptx", in cuobjdump's order."""
    found: dict[str, list[bytes]] = {}
    for kind, ending in (("elf", "cubin"), ("ptx", "ptx")):
        with tempfile.TemporaryDirectory() as scratch:
            copy = Path(scratch) / "in" / path.name
            copy.parent.mkdir()
            shutil.copy(path, copy)
            printed = toolkit.cuobjdump("-all", f"-x{kind}", "all", str(copy), cwd=Path(scratch))
            names = re.findall(rf"^Extracting .*: (\S+\.{ending})\b", printed, re.MULTILINE)
            found[kind] = [(Path(scratch) / name).read_bytes() for name in names]
    return found
