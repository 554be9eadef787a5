"""The loader's cache: which names it has, in which order; the real ldconfig reads it in tests/e2e."""

import struct

from assemble.ld_cache import MACHINES, encode, libraries, sort_key
from assemble.tree import Node, Tree

ARM = MACHINES["arm64"]


def elf(soname: str, machine: int = 183, kind: int = 3) -> bytes:
    """A shared object with a dynamic section that has DT_STRTAB and DT_SONAME."""
    strings = b"\0" + soname.encode() + b"\0"
    dynamic = struct.pack("<QQQQQQ", 5, 0x1000 + 232, 14, 1, 0, 0)
    header = b"\x7fELF\2\1\1" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", kind, machine, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    load = struct.pack("<IIQQQQQQ", 1, 5, 0, 0x1000, 0x1000, 600, 600, 0)
    section = struct.pack("<IIQQQQQQ", 2, 6, 176, 0x1000 + 176, 0x1000 + 176, 48, 48, 0)
    return (header + load + section + dynamic).ljust(232, b"\0") + strings


def tree(**files: bytes) -> Tree:
    made = Tree(lambda *_: b"")
    for name, data in files.items():
        made.put(name, data)
    return made


def test_names_are_sonames_and_development_links() -> None:
    made = tree(**{"etc/ld.so.conf": b"include /etc/ld.so.conf.d/*.conf\n", "etc/ld.so.conf.d/a.conf": b"/opt/x # no\n",
                   "opt/x/libx.so.1.2": elf("libx.so.1"), "usr/lib/aarch64-linux-gnu/libx.so.1.3": elf("libx.so.1"),
                   "usr/lib/aarch64-linux-gnu/libnone.so": elf(""), "usr/lib/aarch64-linux-gnu/libtext.so": b"INPUT(x)",
                   "usr/lib/aarch64-linux-gnu/libforeign.so.1": elf("libforeign.so.1", machine=62),
                   "usr/lib/aarch64-linux-gnu/libexe.so": elf("libexe.so", kind=2),
                   "usr/lib/aarch64-linux-gnu/other": elf("other")})
    made.link("lib", "usr/lib")
    made.link("usr/lib/aarch64-linux-gnu/libx.so", "libx.so.1.3")
    made.link("usr/lib/aarch64-linux-gnu/libgone.so.1", "nowhere")
    assert libraries(made, ARM) == [
        ("libx.so.1", "/opt/x/libx.so.1"), ("libnone.so", "/lib/aarch64-linux-gnu/libnone.so"),
        ("libx.so", "/lib/aarch64-linux-gnu/libx.so"), ("libx.so.1", "/lib/aarch64-linux-gnu/libx.so.1")]


def test_encoding() -> None:
    data = encode([("liba.so.2", "/l/liba.so.2"), ("liba.so.10", "/l/liba.so.10"), ("liba.so.2", "/m/liba.so.2")], ARM)
    assert data[:20] == b"glibc-ld.so.cache1.1"
    count, size, little, extensions = struct.unpack_from("<IIB3xI", data, 20)
    assert (count, little) == (3, 2)
    found = []
    for number in range(count):
        flags, key, value, version, hwcap = struct.unpack_from("<iIIIQ", data, 48 + 24 * number)
        found.append(tuple(data[at:data.index(b"\0", at)].decode() for at in (key, value)))
        assert (flags, version, hwcap) == (0x0A03, 0, 0)
    # Descending, numbers by value; of one name the directory that is searched first comes first.
    assert found == [("liba.so.10", "/l/liba.so.10"), ("liba.so.2", "/l/liba.so.2"), ("liba.so.2", "/m/liba.so.2")]
    assert extensions >= 48 + 24 * count + size
    assert data.endswith(b"stagecraft")


def test_loader_order() -> None:
    names = ["ld-x.so", "lib", "liba", "libz.so.1", "libz.so.9", "libz.so.10", "lib1"]
    assert sorted(names, key=sort_key) == names


def test_node_ranges_are_respected() -> None:
    made = Tree(lambda spool, offset, size: b"0123456789"[offset:offset + size])
    assert made.content(Node("file", size=3, offset=2, spool=0), 1, 100) == b"34"
