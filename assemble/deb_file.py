"""Read a Debian package: its control files, and its data as a spooled tar with an index.

A `.deb` is an ar archive of `debian-binary`, `control.tar*` and `data.tar*`. The control part is
small and read whole. The data part is decompressed once, front to back, into a spool file of the
caller; its members then are ranges of that file, so that they can be written in any order.

Nothing in a package is trusted: every malformed or unusual thing is an IntegrityError that names
package and member. Member kinds are those that dpkg unpacks, less devices and FIFOs.

Writes only to the spool. Not here: what the paths mean (`assemble.tree`), dpkg's own files.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, Literal

from assemble.inflate import engine
from cache.durable import write_all
from cache.errors import IntegrityError

_CONTROL_LIMIT = 64 << 20
_NAME_LIMIT = 64 << 10
_BLOCK = 512

Kind = Literal["file", "directory", "symlink", "hardlink"]


@dataclass(frozen=True)
class Member:
    """One member of a package's data.

    Attributes:
        path: as the package says it, relative, without `./` and trailing `/`; `""` is the root.
        kind: `file`, `directory`, `symlink` or `hardlink`.
        mode: permission bits with setuid, setgid and sticky.
        size: bytes; 0 unless a file.
        offset: where the content starts in the spool.
        target: of a symlink as it is; of a hardlink a path like `path`.
    """

    path: str
    kind: Kind
    mode: int
    uid: int
    gid: int
    size: int
    offset: int
    target: str


@dataclass(frozen=True)
class Deb:
    """A package without its data.

    Attributes:
        file: file name, for messages.
        control: text of its control file.
        scripts: the other control files by name: `conffiles`, `md5sums`, `postinst`, …, each with its mode.
    """

    file: str
    control: str
    scripts: dict[str, tuple[int, bytes]]


class DebReader:
    """Reads one package from an open file. The ar header is read on construction."""

    def __init__(self, source: IO[bytes], name: str) -> None:
        self._source = source
        self._name = name
        self._parts = self._ar()

    def control(self) -> Deb:
        """The control part. Raises IntegrityError."""
        kind, offset, size = self._parts["control"]
        data = b"".join(self._inflate(kind, offset, size, _CONTROL_LIMIT))
        files: dict[str, tuple[int, bytes]] = {}
        for member in self._members(_Bytes(data)):
            if member.kind == "directory":
                continue
            if member.kind != "file" or not member.path or "/" in member.path:
                raise self._bad("a control file is no plain file", member.path)
            files[member.path] = (member.mode, data[member.offset:member.offset + member.size])
        if "control" not in files:
            raise self._bad("no control file in it")
        try:
            text = files.pop("control")[1].decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._bad("its control file is not UTF-8") from error
        return Deb(self._name, text, files)

    def spool(self, target: IO[bytes]) -> list[Member]:
        """Append the decompressed data part to `target`; returns its members.

        `target` is an unbuffered file, open for reading and writing, at its end.
        """
        kind, offset, size = self._parts["data"]
        start = target.seek(0, os.SEEK_END)
        for chunk in self._inflate(kind, offset, size, None):
            write_all(target.fileno(), [chunk])
        return list(self._members(_Range(target.fileno(), start, target.tell())))

    # -- ar -------------------------------------------------------------------------------------

    def _ar(self) -> dict[str, tuple[str, int, int]]:
        source = self._source
        if source.read(8) != b"!<arch>\n":
            raise self._bad("not a Debian package: no ar archive")
        found: dict[str, tuple[str, int, int]] = {}
        first = True
        while header := source.read(60):
            if len(header) != 60 or header[58:] != b"`\n":
                raise self._bad("malformed ar header")
            name = header[:16].decode("ascii", "replace").rstrip().rstrip("/")
            try:
                size = int(header[48:58].decode("ascii"))
            except ValueError as error:
                raise self._bad("malformed ar header", name) from error
            offset = source.tell()
            if first and (name != "debian-binary" or not source.read(min(size, 16)).startswith(b"2.")):
                raise self._bad("not a Debian package of format 2", name)
            first = False
            part, _, kind = name.partition(".tar")
            if part in ("control", "data") and name != part:
                if part in found:
                    raise self._bad("a part is there twice", name)
                found[part] = (kind, offset, size)
            end = source.seek(0, os.SEEK_END)
            if size < 0 or offset + size > end:
                raise self._bad("truncated", name)
            source.seek(offset + size + size % 2)
        for part in ("control", "data"):
            if part not in found:
                raise self._bad(f"no {part} part in it")
        return found

    def _inflate(self, kind: str, offset: int, size: int, limit: int | None) -> Iterator[bytes]:
        inflate = engine(kind)
        if inflate is None:
            raise self._bad(f"compressed in a way we do not read: {kind}")
        self._source.seek(offset)
        left, done = size, 0

        def read(count: int) -> bytes:
            nonlocal left
            data = self._source.read(min(count, left))
            left -= len(data)
            return data

        try:
            for chunk in inflate(read):
                done += len(chunk)
                if limit is not None and done > limit:
                    raise self._bad(f"a part of it is larger than {limit} bytes")
                yield chunk
        except ValueError as error:
            raise self._bad(f"its compressed data is damaged: {error}") from error

    # -- tar ------------------------------------------------------------------------------------

    def _members(self, data: _Data) -> Iterator[Member]:
        position, name, target = 0, b"", b""
        while True:
            header = data.read(position, _BLOCK)
            if len(header) < _BLOCK:
                raise self._bad("its tar ends without an end mark")
            if header == bytes(_BLOCK):
                return
            position += _BLOCK
            kind, size = header[156:157], self._number(header[124:136])
            if int(self._number(header[148:156])) != sum(header[:148]) + 256 + sum(header[156:]):
                raise self._bad("a tar header has a wrong checksum", _text(name or header[:100]))
            if size > data.size - position:
                raise self._bad("its tar is truncated", _text(name or header[:100]))
            if kind in b"LK" and kind:  # GNU: the next member's name or target is long
                if size > _NAME_LIMIT:
                    raise self._bad("a member's name is too long")
                text = data.read(position, size).rstrip(b"\0")
                name, target = (text, target) if kind == b"L" else (name, text)
            else:
                prefix = header[345:500].rstrip(b"\0") if header[257:263] == b"ustar\0" else b""
                short = header[:100].split(b"\0", 1)[0]
                yield self._member(
                    header, kind, size, data.start + position,
                    name or (prefix + b"/" + short if prefix else short), target or header[157:257].split(b"\0", 1)[0])
                name, target = b"", b""
                if kind not in (b"0", b"\0", b"7"):
                    size = 0
            position += size + -size % _BLOCK

    def _member(self, header: bytes, kind: bytes, size: int, offset: int, name: bytes, target: bytes) -> Member:
        path = self._path(name)
        mode, uid, gid = (self._number(header[at:at + 8]) for at in (100, 108, 116))
        if not (0 <= uid < 1 << 32 and 0 <= gid < 1 << 32):
            raise self._bad("a member's owner is out of range", path)
        where: dict[str, Any] = {"path": path, "mode": mode & 0o7777, "uid": uid, "gid": gid}
        if kind in (b"0", b"\0", b"7") and not name.endswith(b"/"):
            if not path:
                raise self._bad("a file has no name")
            return Member(kind="file", size=size, offset=offset, target="", **where)
        if kind == b"5" or (kind in (b"0", b"\0") and name.endswith(b"/")):
            return Member(kind="directory", size=0, offset=0, target="", **where)
        if kind == b"2" and path:
            text = _text(target)
            if not text or "\0" in text:
                raise self._bad("a symlink has no target", path)
            return Member(kind="symlink", size=0, offset=0, target=text, **where)
        if kind == b"1" and path:
            return Member(kind="hardlink", size=0, offset=0, target=self._path(target), **where)
        devices = {b"3": "a character device", b"4": "a block device", b"6": "a FIFO"}
        raise self._bad(f"a member is {devices.get(kind, f'of the unknown kind {kind!r}')}", path)

    def _path(self, raw: bytes) -> str:
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._bad("a member's name is not UTF-8", _text(raw)) from error
        if text.startswith("/"):
            raise self._bad("a member has an absolute path", text)
        parts = [part for part in text.split("/") if part not in ("", ".")]
        if ".." in parts or any(ord(character) < 32 for character in text):
            raise self._bad("a member's path leads out of the package", text)
        return "/".join(parts)

    def _number(self, field: bytes) -> int:
        if field[0] & 0x80:
            return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
        try:
            return int(field.strip(b" \0") or b"0", 8)
        except ValueError as error:
            raise self._bad("a tar header is malformed", repr(field)) from error

    def _bad(self, message: str, member: str = "") -> IntegrityError:
        where = f"{self._name}: {member}" if member else self._name
        return IntegrityError(message, where=where, cure="take another version of this package")


class _Data(ABC):
    """Random access to tar bytes: `start` is added to the offsets of members."""

    start = 0
    size = 0

    @abstractmethod
    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`, fewer at the end."""


class _Bytes(_Data):
    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    def read(self, offset: int, size: int) -> bytes:
        return self._data[offset:offset + size]


class _Range(_Data):
    """The part of a file from `start` to `end`; headers are read ahead a little."""

    _AHEAD = 16 << 10

    def __init__(self, fd: int, start: int, end: int) -> None:
        self._fd = fd
        self.start = start
        self.size = end - start
        self._from, self._buffer = 0, b""

    def read(self, offset: int, size: int) -> bytes:
        at = offset - self._from
        if at < 0 or at + size > len(self._buffer):
            count = min(max(size, self._AHEAD), self.size - offset)
            self._from, self._buffer = offset, os.pread(self._fd, max(count, 0), self.start + offset)
            at = 0
        return self._buffer[at:at + size]


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode("utf-8", "backslashreplace")
