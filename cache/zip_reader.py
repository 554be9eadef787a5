"""Reads zip archives by their central directory: strict, streaming, by offset, out of a file or of a `Ranged` source.

Made for wheels from outside: whatever one reader could see otherwise than another is refused
(members that overlap, local headers that contradict the directory, data after the end, two names
for one member). Holds no knowledge of wheels. Reads only; any number of threads may read members
of one `ZipReader` at once.

Format: APPNOTE.TXT 6.3 of PKWARE, sections 4.3 and 4.5.3 (zip64).
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NoReturn, Protocol

from isal import igzip_lib, isal_zlib

from cache.errors import IntegrityError

#: Bytes of content handed on at once.
CHUNK = 256 << 10
#: Bytes of compressed data read at once from a file.
_FEED = 256 << 10
#: A central directory larger than this is no wheel of this world (vLLM's has 0.6 MB).
_DIRECTORY_LIMIT = 256 << 20

_STORED, _DEFLATED = 0, 8
_ENCRYPTED, _SIZES_FOLLOW, _UTF8 = 0x1, 0x8, 0x800
_32, _16 = 0xFFFFFFFF, 0xFFFF

_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR = struct.Struct("<4sIQI")
#: Room for the extra field of a local header, so that most members are one read.
_SLACK = 64


class Ranged(Protocol):
    """Bytes by offset: a file elsewhere."""

    @property
    def size(self) -> int:
        """Bytes in all."""
        ...

    def pread(self, count: int, offset: int) -> bytes:
        """`count` bytes at `offset`; fewer only where the file ends."""
        ...

    def close(self) -> None: ...


class Member:
    """One member: `name` as decoded, `size` in bytes when inflated, `crc` of the content, `mode` as stored by Unix."""

    __slots__ = ("compressed", "crc", "flags", "method", "mode", "name", "offset", "raw", "size")

    def __init__(self, name: str, raw: bytes, flags: int, method: int, crc: int, compressed: int, size: int,
                 offset: int, mode: int) -> None:
        self.name, self.raw, self.flags, self.method, self.crc = name, raw, flags, method, crc
        self.compressed, self.size, self.offset, self.mode = compressed, size, offset, mode

    @property
    def is_directory(self) -> bool:
        return self.name.endswith("/")

    @property
    def is_executable(self) -> bool:
        """As pip and pypa installer see it: a regular file by its Unix mode, with any x bit."""
        return stat.S_ISREG(self.mode) and bool(self.mode & 0o111)


class ZipReader:
    """An open archive; use as a context manager.

    Args:
        source: the file, or what gives its bytes by offset; it is closed with the reader.
        label: what errors call the archive, for instance a wheel's file name.
        feed: bytes of compressed data that are read at once.

    Raises:
        IntegrityError: not a zip archive, or one that two readers could read in two ways.
    """

    def __init__(self, source: Path | Ranged, label: str, *, feed: int = _FEED) -> None:
        self.label, self._feed = label, feed
        if isinstance(source, Path):
            fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
            self._pread: Callable[[int, int], bytes] = partial(os.pread, fd)
            self.close: Callable[[], None] = partial(os.close, fd)
            self._size = os.fstat(fd).st_size
        else:
            self._pread, self.close, self._size = source.pread, source.close, source.size
        try:
            self._directory = 0
            self.members = self._read_directory()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> ZipReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, member: Member, limit: int = 64 << 20) -> bytes:
        """A member's whole content, checked against its CRC.

        Raises:
            IntegrityError: larger than `limit` bytes, damaged, or not what the directory says.
        """
        if member.size > limit:
            self._wrong(member, "too large to be read whole", f"at most {limit} bytes", f"{member.size} bytes")
        data = b"".join(self.chunks(member))
        if isal_zlib.crc32(data) != member.crc:
            self._wrong(member, "wrong CRC")
        return data

    def sha256(self, member: Member) -> bytes:
        """The sha256 of a member's content, which is checked against its CRC."""
        digest, crc = hashlib.sha256(), 0
        for chunk in self.chunks(member):
            digest.update(chunk)
            crc = isal_zlib.crc32(chunk, crc)
        if crc != member.crc:
            self._wrong(member, "wrong CRC")
        return digest.digest()

    def chunks(self, member: Member) -> Iterator[bytes]:
        """The member's content in pieces of at most `CHUNK` bytes. The CRC is left to the caller.

        Raises:
            IntegrityError: a local header that differs from the directory, damaged data, content of
                another size than declared (inflating stops there, whatever a bomb holds).
        """
        head = self._pread(_LOCAL.size + len(member.raw) + _SLACK + min(member.compressed, self._feed),
                           member.offset)
        start = self._check_local(member, head)
        if member.method == _STORED:
            yield from self._stored(member, start)
            return
        first = head[start - member.offset :][: member.compressed]
        inflater = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_DEFLATE)
        if member.size < CHUNK and member.compressed == len(first):
            try:
                data = inflater.decompress(first, member.size + 1)
            except igzip_lib.IsalError as error:  # type: ignore[misc]  # its stub declares an instance
                self._wrong(member, f"damaged deflate stream: {error}")
            if len(data) != member.size or not inflater.eof:
                self._wrong(member, "content of another size than declared", f"{member.size} bytes",
                            "more" if len(data) > member.size else f"{len(data)} bytes")
            yield data
            return
        yield from self._inflated(member, inflater, first, start)

    def head(self, member: Member, count: int) -> bytes:
        """The first `count` bytes of a member's content (less if it has less)."""
        found = b""
        for chunk in self.chunks(member):
            found += chunk[:count]
            if len(found) >= count:
                break
        return found[:count]

    # -- content ----------------------------------------------------------------------------------

    def _stored(self, member: Member, start: int) -> Iterator[bytes]:
        if member.compressed != member.size:
            self._wrong(member, "stored content of another size than declared", f"{member.size} bytes",
                        f"{member.compressed} bytes")
        done = 0
        while done < member.size:
            data = self._pread(min(CHUNK, member.size - done), start + done)
            if not data:
                self._wrong(member, "the archive ends within a member")
            done += len(data)
            yield data

    def _inflated(self, member: Member, inflater: igzip_lib.IgzipDecompressor, first: bytes,
                  start: int) -> Iterator[bytes]:
        feed, fed, left = first, len(first), member.size
        while True:
            try:
                data = inflater.decompress(feed, CHUNK)
            except igzip_lib.IsalError as error:  # type: ignore[misc]  # its stub declares an instance
                self._wrong(member, f"damaged deflate stream: {error}")
            left -= len(data)
            if left < 0:
                self._wrong(member, "content of another size than declared", f"{member.size} bytes", "more")
            if data:
                yield data
            if inflater.eof:
                break
            feed = b""
            if inflater.needs_input:
                feed = self._pread(min(self._feed, member.compressed - fed), start + fed)
                fed += len(feed)
                if not feed:
                    self._wrong(member, "the deflate stream has no end")
        if left:
            self._wrong(member, "content of another size than declared", f"{member.size} bytes",
                        f"{member.size - left} bytes")

    def _check_local(self, member: Member, head: bytes) -> int:
        """Compare the local header with the directory; returns where the content starts."""
        if len(head) < _LOCAL.size:
            self._wrong(member, "the archive ends within a local header")
        magic, _, flags, method, _, _, crc, compressed, size, named, extra = _LOCAL.unpack_from(head)
        if magic != b"PK\3\4":
            self._wrong(member, "no local header where the directory says")
        body = _LOCAL.size + named + extra
        if len(head) < body:
            head = self._pread(body, member.offset)
        if head[_LOCAL.size : _LOCAL.size + named] != member.raw:
            self._wrong(member, "its local header has another name",
                        found=repr(head[_LOCAL.size : _LOCAL.size + named]))
        if method != member.method or (flags ^ member.flags) & (_ENCRYPTED | _SIZES_FOLLOW):
            self._wrong(member, "its local header has another method or other flags than the directory")
        if not flags & _SIZES_FOLLOW:
            if compressed == _32 or size == _32:
                size, compressed, _ = self._zip64(member.name, head[_LOCAL.size + named : body], size, compressed, 0)
            told = (crc, compressed, size)
            if told != (member.crc, member.compressed, member.size):
                self._wrong(member, "its local header has another size or CRC than the directory",
                            f"{member.size} bytes", f"{size} bytes")
        if member.offset + body + member.compressed > self._directory:
            self._wrong(member, "its content reaches into the directory")
        return int(member.offset + body)

    # -- directory --------------------------------------------------------------------------------

    def _read_directory(self) -> list[Member]:
        count, length, self._directory, end = self._find_end()
        if length > _DIRECTORY_LIMIT or self._directory + length != end:
            self._wrong(None, "its directory does not lie just before its end", f"offset {end - length}",
                        f"offset {self._directory}")
        data = self._pread(length, self._directory)
        members: list[Member] = []
        names: set[str] = set()
        position = 0
        while position < length:
            try:
                (magic, _, _, flags, method, _, _, crc, compressed, size, named, extra, comment, disk, _, attributes,
                 offset) = _CENTRAL.unpack_from(data, position)
            except struct.error:
                self._wrong(None, "its directory is cut off")
            if magic != b"PK\1\2":
                self._wrong(None, "its directory is damaged", found=f"entry {len(members)} of {count}")
            position += _CENTRAL.size
            raw = data[position : position + named]
            fields = data[position + named : position + named + extra]
            position += named + extra + comment
            name = self._decode(raw, flags)
            if fields:
                if _32 in (size, compressed, offset):
                    size, compressed, offset = self._zip64(name, fields, size, compressed, offset)
                self._one_name(name, fields)
            # The upper half of the attributes is a Unix mode only where the archiver says so, but pip and pypa
            # installer read it always, and so do we.
            member = Member(name, raw, flags, method, crc, compressed, size, offset, attributes >> 16)
            if flags & _ENCRYPTED or method not in (_STORED, _DEFLATED) or disk:
                self._wrong(member, "cannot be read", "stored or deflated, not encrypted", f"method {method}")
            if name in names:
                self._wrong(member, "two members have this name")
            names.add(name)
            members.append(member)
        if position != length or len(members) != count:
            self._wrong(None, "its directory has another number of entries than its end says", str(count),
                        str(len(members)))
        last = 0
        for member in sorted(members, key=lambda m: m.offset):
            if member.offset < last:
                self._wrong(member, "overlaps another member")
            last = member.offset + _LOCAL.size + len(member.raw) + member.compressed
        if last > self._directory:
            self._wrong(None, "a member overlaps the directory")
        return members

    def _find_end(self) -> tuple[int, int, int, int]:
        """(entries, length, offset of the directory, where the directory must end)."""
        tail_at = max(0, self._size - _END.size - _16)
        tail = self._pread(self._size - tail_at, tail_at)
        at = tail.rfind(b"PK\5\6")
        while at >= 0:
            if at + _END.size <= len(tail) and at + _END.size + _END.unpack_from(tail, at)[7] == len(tail):
                break
            at = tail.rfind(b"PK\5\6", 0, at)
        if at < 0:
            self._wrong(None, "not a zip archive, or cut off")
        _, disk, _, here, count, length, offset, _ = _END.unpack_from(tail, at)
        end = tail_at + at
        if _16 in (count, here) or _32 in (length, offset):
            locator = self._pread(_LOCATOR.size, max(0, end - _LOCATOR.size))
            if locator[:4] == b"PK\6\7":
                end = int(_LOCATOR.unpack(locator)[2])
                record = self._pread(_END64.size, end)
                if record[:4] != b"PK\6\6" or len(record) != _END64.size:
                    self._wrong(None, "its zip64 end record is not where its locator says")
                _, _, _, _, disk, _, here, count, length, offset = _END64.unpack(record)
        if disk or here != count:
            self._wrong(None, "is one part of several")
        return count, length, offset, end

    def _decode(self, raw: bytes, flags: int) -> str:
        try:
            name = raw.decode("utf-8" if flags & _UTF8 else "cp437")
        except UnicodeDecodeError:
            self._wrong(None, "a member's name is not UTF-8 though it says so", found=repr(raw))
        if not name or "\0" in name:
            self._wrong(None, "a member has no plain name", found=repr(raw))
        return name

    def _zip64(self, name: str, fields: bytes, size: int, compressed: int, offset: int) -> tuple[int, int, int]:
        for kind, value in self._extra(name, fields):
            if kind == 0x0001 and len(value) >= 8 * (size, compressed, offset).count(_32):
                numbers = iter(struct.unpack(f"<{len(value) // 8}Q", value[: len(value) // 8 * 8]))
                return (next(numbers) if size == _32 else size, next(numbers) if compressed == _32 else compressed,
                        next(numbers) if offset == _32 else offset)
        raise self._error(None, "a zip64 member without its sizes", found=name)

    def _one_name(self, name: str, fields: bytes) -> None:
        """Refuse Info-ZIP's second name (0x7075) where it differs: some readers take the one, some the other."""
        for kind, value in self._extra(name, fields):
            if kind == 0x7075 and value[5:].decode("utf-8", "replace") != name:
                self._wrong(None, "a member has two names", found=f"{name!r} and {value[5:]!r}")

    def _extra(self, name: str, fields: bytes) -> Iterator[tuple[int, bytes]]:
        while len(fields) >= 4:
            kind, length = struct.unpack_from("<2H", fields)
            if length > len(fields) - 4:
                self._wrong(None, "a damaged extra field", found=name)
            yield kind, fields[4 : 4 + length]
            fields = fields[4 + length :]

    def _wrong(self, member: Member | None, what: str, expected: str | None = None,
               found: str | None = None) -> NoReturn:
        raise self._error(member, what, expected, found)

    def _error(self, member: Member | None, what: str, expected: str | None = None,
               found: str | None = None) -> IntegrityError:
        where = self.label if member is None else f"{self.label}: {member.name}"
        subject = "bad archive" if member is None else "bad archive member"
        return IntegrityError(f"{subject}: {what}", where=where, expected=expected, found=found,
                              cure="do not use this file; fetch it again or take another version")
