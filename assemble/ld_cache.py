"""`/etc/ld.so.cache`, as ldconfig would write it, for the machine of the image.

The dynamic loader finds libraries outside its built-in directories by this file only. Format
`glibc-ld.so.cache1.1` (glibc: sysdeps/generic/dl-cache.h, elf/cache.c, elf/ldconfig.c), which is the
only one since glibc 2.32. Libraries in `glibc-hwcaps` directories are left out: then the baseline
library is taken, which is always right.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from assemble.tree import Node, Tree

_MAGIC = b"glibc-ld.so.cache1.1"
_EXTENSIONS = 0xEAA42174
_LITTLE_ENDIAN = 2
_GENERATOR = b"stagecraft"
_PT_LOAD, _PT_DYNAMIC, _DT_STRTAB, _DT_SONAME = 1, 2, 5, 14


@dataclass(frozen=True)
class Machine:
    """What a Debian architecture is to the loader: directory name, ELF machine, flags in the cache."""

    triplet: str
    elf: int
    flags: int


#: 64-bit little-endian machines; flags from glibc's sysdeps/generic/ldconfig.h (0x0003: for libc6).
MACHINES: Mapping[str, Machine] = {
    "amd64": Machine("x86_64-linux-gnu", 62, 0x0303),
    "arm64": Machine("aarch64-linux-gnu", 183, 0x0A03),
    "ppc64el": Machine("powerpc64le-linux-gnu", 21, 0x0503),
    "riscv64": Machine("riscv64-linux-gnu", 243, 0x1003),
}


def libraries(tree: Tree, machine: Machine) -> list[tuple[str, str]]:
    """(name to look up, absolute path) of all libraries in the loader's directories, in ldconfig's order of search."""
    found: dict[tuple[str, str], None] = {}
    for directory, place in _directories(tree, machine):
        for name in tree.children(place):
            if not _looks_like_library(name):
                continue
            target = tree.find(f"{place}/{name}")
            node = tree.nodes[target] if target is not None else None
            if node is not None and node.kind == "hardlink":
                node = tree.nodes.get(node.target)
            if node is None or node.kind != "file" or not _is_library(tree, node, machine):
                continue
            known = soname(tree, node) or name
            if tree.nodes[f"{place}/{name}"].kind == "symlink" and name.endswith(".so") and known.startswith(name):
                known = name  # the link for the linker: found by its own name
            found[known, f"{directory}/{known}"] = None
    return list(found)


def encode(entries: Iterable[tuple[str, str]], machine: Machine) -> bytes:
    """The cache file for (name, path) pairs; of one name the earlier path is found first."""
    # The loader bisects a descending list; `reverse` keeps the order of equal names.
    ordered = sorted(entries, key=lambda item: sort_key(item[0]), reverse=True)
    strings = bytearray()
    start = 48 + 24 * len(ordered)
    table = []
    for name, path in ordered:
        value = start + len(strings)
        strings += path.encode() + b"\0"
        key = value + len(path.encode()) - len(name.encode())
        if not path.endswith("/" + name):
            key = start + len(strings)
            strings += name.encode() + b"\0"
        table.append(struct.pack("<iIIIQ", machine.flags, key, value, 0, 0))
    size = start + len(strings)
    extensions = size + -size % 4
    header = struct.pack("<20sIIB3xI12x", _MAGIC, len(table), len(strings), _LITTLE_ENDIAN, extensions)
    # One extension, tag 0: who made the file.
    generator = struct.pack("<IIIIII", _EXTENSIONS, 1, 0, 0, extensions + 24, len(_GENERATOR)) + _GENERATOR
    return header + b"".join(table) + bytes(strings) + bytes(extensions - size) + generator


def sort_key(name: str) -> list[tuple[int, int]]:
    """Order of the loader's `_dl_cache_libcmp`: end, then other characters, then numbers by value."""
    return [(1, int(run)) if run.isdigit() else (0, ord(run)) for run in re.findall(r"[0-9]+|[^0-9]", name)]


def _directories(tree: Tree, machine: Machine) -> list[tuple[str, str]]:
    """(path as configured, where it is in the tree), each real directory once."""
    configured = [*_configured(tree, "etc/ld.so.conf", 0), f"/lib/{machine.triplet}", f"/usr/lib/{machine.triplet}",
                  "/lib", "/usr/lib"]
    found: dict[str, str] = {}
    for path in configured:
        place = tree.find(path)
        if place is not None and tree.nodes[place].kind == "directory":
            found.setdefault(place, path.rstrip("/"))
    return [(path, place) for place, path in found.items()]


def _configured(tree: Tree, path: str, depth: int) -> list[str]:
    if tree.find(path) is None or depth > 8:
        return []
    found: list[str] = []
    for line in tree.read(path).decode("utf-8", "replace").splitlines():
        words = line.partition("#")[0].replace(",", " ").replace(":", " ").split()
        if words[:1] == ["include"]:
            for pattern in words[1:]:
                directory, _, name = pattern.lstrip("/").rpartition("/")
                for child in tree.children(directory):
                    if fnmatchcase(child, name):
                        found += _configured(tree, f"{directory}/{child}", depth + 1)
        elif words[:1] != ["hwcap"]:
            found += [word for word in words if word.startswith("/")]
    return found


def _looks_like_library(name: str) -> bool:
    return name.startswith(("lib", "ld-")) and ".so" in name and not name.endswith("-gdb.py")


def _is_library(tree: Tree, node: Node, machine: Machine) -> bool:
    head = tree.content(node, 0, 20)
    return len(head) == 20 and head[:6] == b"\x7fELF\2\1" and struct.unpack_from("<HH", head, 16) == (3, machine.elf)


def soname(tree: Tree, node: Node) -> str:
    """DT_SONAME of a 64-bit little-endian ELF file; `""` if it has none or its headers are damaged."""
    try:
        return _soname(tree, node)
    except (struct.error, ValueError, UnicodeDecodeError):
        return ""


def _soname(tree: Tree, node: Node) -> str:
    header = tree.content(node, 0, 64)
    offset, = struct.unpack_from("<Q", header, 32)
    size, count = struct.unpack_from("<HH", header, 54)
    if size != 56:
        raise ValueError(size)
    raw = tree.content(node, offset, size * count)
    segments = [struct.unpack_from("<IIQQQQ", raw, size * number) for number in range(count)]
    for kind, _, start, _, _, length in segments:
        if kind != _PT_DYNAMIC:
            continue
        entries = dict(reversed(list(struct.iter_unpack("<QQ", tree.content(node, start, length & ~15)))))
        if _DT_SONAME not in entries:
            return ""
        address = entries[_DT_STRTAB] + entries[_DT_SONAME]
        for kind_, _, begin, virtual, _, extent in segments:
            if kind_ == _PT_LOAD and virtual <= address < virtual + extent:
                text = tree.content(node, begin + address - virtual, 256)
                return text[:text.index(b"\0")].decode("ascii").rpartition("/")[2]
    return ""
