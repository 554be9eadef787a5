"""Reading a tar that comes from outside: entries one after the other, nothing written anywhere.

For packages and image layers whose *bytes* are the promised ones but whose makers are not trusted.
A tar that could lead an extractor out of its tree, or that says two things, is refused with the member's
name: absolute names and `..`, duplicate names, an entry below a link or a file, links that leave the
tree, devices (unless allowed), depth, number and total size over the limits, sparse files, truncation.
Python's `tarfile` is not used: it takes damage for the end, reads headers of any size into memory, and its
own guard was bypassed (CVE-2025-4517, -4138, -4330).

Whiteouts of OCI layers are ordinary files here. Absolute targets of symlinks are ordinary too: the root of
the tree is the root of an image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from cache.decompress import decompressed
from cache.errors import IntegrityError

BLOCK = 512

_KINDS = {b"0": "file", b"\0": "file", b"7": "file", b"1": "hardlink", b"2": "symlink", b"3": "device",
          b"4": "device", b"5": "directory", b"6": "fifo"}
_EXTENSION = 1 << 20  # bytes of one pax header or long name
_TRAILER = 16 << 20  # zeros after the end; tapes have records of a few KiB


@dataclass(frozen=True)
class Limits:
    """What is still a plausible archive.

    Attributes:
        entries: number of members.
        total: bytes of content of all members.
        depth: components of a path.
        devices: let device nodes and fifos through (as entries; base images may have some).
        climbing: let symlinks through that have more `..` than they are deep: in a root they end at the root.
    """

    entries: int = 1_000_000
    total: int = 64 << 30
    depth: int = 64
    devices: bool = False
    climbing: bool = False


@dataclass(frozen=True)
class Entry:
    """One member.

    Attributes:
        path: relative, UTF-8, with no `.`, `..` or empty component.
        type: `file`, `directory`, `symlink`, `hardlink`; `device` or `fifo` if the limits allow them.
        mode: permission bits, with setuid, setgid and sticky.
        size: bytes of content; 0 for anything but a file.
        target: of a symlink as it is; of a hard link the path of an earlier file.
        mtime: seconds.
        user, group: names as the archive gives them, perhaps empty.
        xattrs: extended attributes (`SCHILY.xattr.*` of pax).
    """

    path: str
    type: str
    mode: int
    uid: int
    gid: int
    size: int
    target: str = ""
    mtime: int = 0
    user: str = ""
    group: str = ""
    xattrs: dict[str, bytes] = field(default_factory=dict)
    _content: _Content | None = field(default=None, repr=False, compare=False)

    def chunks(self, size: int = 1 << 20) -> Iterator[bytes]:
        """The content in pieces of at most `size` bytes; only before the next entry is asked for."""
        while self._content is not None and (data := self._content.read(size)):
            yield data

    def read(self, limit: int = 64 << 20) -> bytes:
        """The rest of the content. Raises IntegrityError if the member is larger than `limit` bytes."""
        if self.size > limit:
            raise IntegrityError(f"a member larger than {limit} bytes", where=self.path, found=f"{self.size} bytes")
        return b"".join(self.chunks())


def entries(fileobj: BinaryIO, *, where: str = "archive", limits: Limits | None = None) -> Iterator[Entry]:
    """The members of a tar, plain or compressed by gzip, xz, bzip2 or zstd, in its order.

    Streams: memory does not grow with the content. The root directory itself (`./`) is left out.
    GNU and pax extensions for names and sizes are understood.

    Args:
        fileobj: read from where it stands; need not be seekable.
        where: what to call the archive in errors.

    Raises:
        IntegrityError: anything in the module text, or no tar at all; names the archive and the member.
    """
    limits = limits or Limits()
    stream = _Stream(decompressed(fileobj, where), where)
    tree = _Tree(where, limits)
    common: dict[str, bytes] = {}
    extended: dict[str, bytes] = {}
    while (block := stream.header()) is not None:
        kind = block[156:157]
        if kind in (b"x", b"X", b"g", b"L", b"K"):
            data = stream.extension(_number(block, 124, 12, where))
            if kind in (b"L", b"K"):
                extended["path" if kind == b"L" else "linkpath"] = data.rstrip(b"\0")
            elif kind == b"g":
                common.update(_pax(data, where))
            else:
                extended.update(_pax(data, where))
            continue
        entry = _entry(block, {**common, **extended}, tree, stream)
        extended = {}
        if entry is not None:
            yield entry
        stream.skip_content()
    stream.end()


class _Content:
    """What is left of the current member."""

    def __init__(self, stream: _Stream, size: int, path: str) -> None:
        self._stream, self.left, self.path = stream, size, path

    def read(self, size: int) -> bytes:
        data = self._stream.exactly(min(size, self.left, 1 << 20), self.path) if self.left else b""
        self.left -= len(data)
        return data


class _Stream:
    """Blocks of a decompressed tar."""

    def __init__(self, source: BinaryIO, where: str) -> None:
        self._source, self._where = source, where
        self._content: _Content | None = None
        self._padding = 0

    def header(self) -> bytes | None:
        """The next header block; None at the end marker."""
        block = self.exactly(BLOCK, "")
        if block == bytes(BLOCK):
            return None
        said = _number(block, 148, 8, self._where)
        if said != sum(block[:148]) + 8 * 32 + sum(block[156:]):
            raise IntegrityError("not a tar archive, or a damaged one: wrong header checksum", where=self._where)
        return block

    def end(self) -> None:
        """Read what follows the end marker: only zeros, and the checksum of what is compressed."""
        left = _TRAILER
        while data := self._source.read(1 << 16):
            left -= len(data)
            if data.strip(b"\0") or left < 0:
                raise IntegrityError("an archive with something after its end", where=self._where)

    def extension(self, size: int) -> bytes:
        if size > _EXTENSION:
            raise IntegrityError("a header extension of absurd size", where=self._where, found=f"{size} bytes")
        data = self.exactly(size, "")
        self.exactly(-size % BLOCK, "")
        return data

    def content(self, size: int, path: str) -> _Content:
        self._content, self._padding = _Content(self, size, path), -size % BLOCK
        return self._content

    def skip_content(self) -> None:
        if self._content is not None:
            while self._content.read(1 << 20):
                pass
            self.exactly(self._padding, self._content.path)
            self._content = None

    def exactly(self, size: int, path: str) -> bytes:
        data = self._source.read(size) if size else b""
        if len(data) < size:  # a raw stream may give less than was asked for
            pieces = [data]
            left = size - len(data)
            while left and (piece := self._source.read(left)):
                pieces.append(piece)
                left -= len(piece)
            if left:
                raise IntegrityError("an archive that ends too early", where=_in(self._where, path))
            data = b"".join(pieces)
        return data


class _Tree:
    """What members there were: decides whether one more fits."""

    def __init__(self, where: str, limits: Limits) -> None:
        self.where, self._limits = where, limits
        self._leaves: dict[str, bool] = {}  # path of what is no directory: is it a file
        self._directories: dict[str, bool] = {}  # path: had it an entry of its own
        self._total = 0

    def refuse(self, message: str, member: str, found: str = "") -> IntegrityError:
        return IntegrityError(message, where=_in(self.where, member), found=found or None)

    def path(self, raw: bytes) -> str:
        """The plain path that a member's name means; empty for the root."""
        name = self.text(raw, raw)
        if name.startswith("/"):
            raise self.refuse("a member with an absolute name", name)
        name = name[2:] if name.startswith("./") else name
        name = name.rstrip("/") if name != "." else ""
        parts = name.split("/") if name else []
        if ".." in parts:
            raise self.refuse("a member outside of the tree", name)
        if "" in parts or "." in parts or "\0" in name:
            raise self.refuse("a member without a plain name", name)
        if len(parts) > self._limits.depth:
            raise self.refuse(f"a member deeper than {self._limits.depth}", name[:200])
        return name

    def text(self, raw: bytes, member: bytes) -> str:
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.refuse("a name that is not UTF-8", ascii(member), ascii(raw)) from error

    def add(self, path: str, kind: str, size: int, target: str) -> None:
        if kind in ("device", "fifo") and not self._limits.devices:
            raise self.refuse(f"a {kind} in an archive", path)
        if path in self._leaves or (path in self._directories and (kind != "directory" or self._directories[path])):
            raise self.refuse("two members with one name", path)
        parents = _parents(path)
        for parent in parents:
            if parent in self._leaves:
                raise self.refuse("a member below what is no directory", path, parent)
        if kind == "hardlink" and not self._leaves.get(target):
            raise self.refuse("a hard link to what is no earlier file of the archive", path, target)
        if kind == "symlink" and not self._limits.climbing and _leaves_tree(path, target):
            raise self.refuse("a symlink that leaves the tree", path, target)
        self._total += size
        if self._total > self._limits.total:
            raise self.refuse(f"an archive with more than {self._limits.total} bytes of content", path)
        if len(self._leaves) + len(self._directories) >= self._limits.entries:
            raise self.refuse(f"an archive with more than {self._limits.entries} members", path)
        for parent in parents:
            self._directories.setdefault(parent, False)
        if kind == "directory":
            self._directories[path] = True
        else:
            self._leaves[path] = kind in ("file", "hardlink")


def _entry(block: bytes, pax: dict[str, bytes], tree: _Tree, stream: _Stream) -> Entry | None:
    raw = pax.get("path") or _name(block)
    path = tree.path(raw)
    flag = block[156:157]
    kind = _KINDS.get(flag)
    if kind == "file" and flag == b"\0" and raw.endswith(b"/"):
        kind = "directory"  # tars from before ustar
    if kind is None or any(key.startswith("GNU.sparse") for key in pax):
        raise tree.refuse("a kind of member that is not supported", path or ".", f"type {flag!r}")
    where = _in(tree.where, path or ".")
    size = _pax_number(pax, "size", _number(block, 124, 12, where), where) if kind == "file" else 0
    target = ""
    if kind in ("symlink", "hardlink"):
        raw_target = pax.get("linkpath") or _string(block, 157, 100)
        target = tree.path(raw_target) if kind == "hardlink" else tree.text(raw_target, raw)
        if not target or "\0" in target:
            raise tree.refuse("a link to nothing", path)
    if not path:
        if kind != "directory":
            raise tree.refuse("a member without a name", path)
        return None
    tree.add(path, kind, size, target)
    prefix = "SCHILY.xattr."
    return Entry(
        path, kind, _number(block, 100, 8, where) & 0o7777,
        _pax_number(pax, "uid", _number(block, 108, 8, where), where),
        _pax_number(pax, "gid", _number(block, 116, 8, where), where),
        size, target, max(0, _pax_number(pax, "mtime", _number(block, 136, 12, where), where)),
        _string(block, 265, 32).decode("utf-8", "replace"), _string(block, 297, 32).decode("utf-8", "replace"),
        {key[len(prefix):]: value for key, value in pax.items() if key.startswith(prefix)},
        stream.content(size, path),
    )


def _name(block: bytes) -> bytes:
    name = _string(block, 0, 100)
    prefix = _string(block, 345, 155) if block[257:263] == b"ustar\0" else b""  # GNU keeps times there
    return prefix + b"/" + name if prefix else name


def _string(block: bytes, start: int, size: int) -> bytes:
    return block[start:start + size].split(b"\0", 1)[0]


def _number(block: bytes, start: int, size: int, where: str) -> int:
    """A number field: octal digits, or GNU's big-endian binary."""
    field_ = block[start:start + size]
    if field_[0] in (0x80, 0xff):
        value = int.from_bytes(field_[1:], "big", signed=field_[0] == 0xff)
    else:
        text = field_.strip(b" \0")
        try:
            value = int(text, 8) if text else 0
        except ValueError as error:
            raise IntegrityError("not a tar archive, or a damaged one: not a number", where=where,
                                 found=repr(field_)) from error
    if value < 0 and start != 136:  # a time before 1970 is possible, anything else is not
        raise IntegrityError("a negative number in a tar header", where=where)
    return value


def _pax_number(pax: dict[str, bytes], key: str, default: int, where: str) -> int:
    if key not in pax:
        return default
    text = pax[key]
    whole = text.split(b".")[0] if key == "mtime" else text
    digits = whole.removeprefix(b"-") if key == "mtime" else whole
    if not digits.isdigit() or len(digits) > 19:
        raise IntegrityError(f"a pax header whose {key} is no number", where=where, found=repr(text))
    return int(whole)


def _pax(data: bytes, where: str) -> dict[str, bytes]:
    found = {}
    at = 0
    while at < len(data):
        digits, space, _ = data[at:at + 20].partition(b" ")
        length = int(digits) if space and digits.isdigit() else 0
        record = data[at:at + length]
        key, equals, value = record[len(digits) + 1:-1].partition(b"=")
        if not record.endswith(b"\n") or len(record) != length or not equals:
            raise IntegrityError("a malformed pax header", where=where, found=repr(data[at:at + 40]))
        found[key.decode("utf-8", "replace")] = value
        at += length
    return found


def _parents(path: str) -> list[str]:
    found = []
    cut = path.rfind("/")
    while cut > 0:
        found.append(path[:cut])
        cut = path.rfind("/", 0, cut)
    return found


def _leaves_tree(path: str, target: str) -> bool:
    if target.startswith("/"):
        return ".." in target.split("/") and _climbs([], target)
    return _climbs(path.split("/")[:-1], target)


def _climbs(start: list[str], target: str) -> bool:
    depth = len(start)
    for part in target.split("/"):
        depth += -1 if part == ".." else 0 if part in ("", ".") else 1
        if depth < 0:
            return True
    return False


def _in(where: str, member: str) -> str:
    return f"{where}: {member}" if member else where
