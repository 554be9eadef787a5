"""Makes small Debian packages for tests: right ones, and ones that are wrong in a chosen way.

What `make_deb` writes is deterministic: equal arguments give equal bytes. tar and ar are written here,
byte by byte, so that a test can put into them what no tool would.
"""

from __future__ import annotations

import gzip
import lzma
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import zstandard

MTIME = 1_600_000_000


@dataclass(frozen=True)
class Member:
    """A tar member; `kind` is the tar type flag. `size` overrides the size in the header."""

    name: str | bytes
    kind: bytes = b"0"
    content: bytes = b""
    target: str = ""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    size: int | None = None
    spoil: bool = False


def file(name: str, content: bytes | str = b"", mode: int = 0o644, *, uid: int = 0, gid: int = 0) -> Member:
    return Member(name, b"0", content.encode() if isinstance(content, str) else content, mode=mode, uid=uid, gid=gid)


def directory(name: str, mode: int = 0o755) -> Member:
    return Member(name.rstrip("/") + "/", b"5", mode=mode)


def symlink(name: str, target: str) -> Member:
    return Member(name, b"2", target=target, mode=0o777)


def hardlink(name: str, target: str) -> Member:
    return Member(name, b"1", target=target)


def tar(members: Sequence[Member], *, ended: bool = True) -> bytes:
    """A GNU tar of the members, in their order."""
    out = bytearray()
    for member in members:
        name = member.name.encode() if isinstance(member.name, str) else member.name
        if len(name) > 100:
            out += _entry(b"././@LongLink", b"L", name + b"\0", Member(""))
        if len(member.target.encode()) > 100:
            out += _entry(b"././@LongLink", b"K", member.target.encode() + b"\0", Member(""))
        out += _entry(name[:100], member.kind, member.content, member)
    return bytes(out + bytes(1024 if ended else 0))


def _entry(name: bytes, kind: bytes, content: bytes, member: Member) -> bytes:
    size = len(content) if member.size is None else member.size
    header = bytearray(512)
    struct.pack_into("100s8s8s8s12s12s8s1s100s8s", header, 0, name, b"%07o\0" % member.mode, b"%07o\0" % member.uid,
                     b"%07o\0" % member.gid, b"%011o\0" % size, b"%011o\0" % MTIME, b" " * 8, kind,
                     member.target.encode()[:100], b"ustar  \0")
    struct.pack_into("8s", header, 148, b"%06o\0 " % (sum(header) + member.spoil))
    return bytes(header) + content + bytes(-len(content) % 512)


def ar(parts: Sequence[tuple[str, bytes]]) -> bytes:
    out = bytearray(b"!<arch>\n")
    for name, data in parts:
        out += f"{name:<16}{MTIME:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode()
        out += data + b"\n" * (len(data) % 2)
    return bytes(out)


def compressed(data: bytes, suffix: str) -> bytes:
    if suffix == ".xz":
        return lzma.compress(data, preset=1)
    if suffix == ".gz":
        return gzip.compress(data, mtime=0)
    if suffix == ".zst":
        return zstandard.ZstdCompressor().compress(data)
    return data


def control_text(name: str, version: str = "1", architecture: str = "arm64", **fields: str) -> str:
    lines = {"Package": name, "Version": version, "Architecture": architecture, "Maintainer": "A <a@example.org>",
             **{key.replace("_", "-"): value for key, value in fields.items()}, "Description": f"{name} for a test"}
    return "".join(f"{key}: {value}\n" for key, value in lines.items())


def make_deb(
    name: str,
    members: Sequence[Member] = (),
    *,
    version: str = "1",
    architecture: str = "arm64",
    scripts: Mapping[str, str] | None = None,
    suffix: str = ".xz",
    control: str | None = None,
    **fields: str,
) -> bytes:
    """A package's bytes. `scripts` are further control files; `fields` further control fields (`_` for `-`)."""
    text = control_text(name, version, architecture, **fields) if control is None else control
    inside = [directory("./"), file("./control", text)]
    inside += [file(f"./{key}", value, 0o755 if key.endswith(("inst", "rm")) else 0o644)
               for key, value in (scripts or {}).items()]
    return ar([("debian-binary", b"2.0\n"), (f"control.tar{suffix}", compressed(tar(inside), suffix)),
               (f"data.tar{suffix}", compressed(tar(members), suffix))])


def file_name(name: str, version: str = "1", architecture: str = "arm64") -> str:
    return f"{name}_{version.partition(':')[2] or version}_{architecture}.deb"
