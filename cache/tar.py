"""Tar headers, written: 512-byte ustar blocks with pax records where ustar has no room.

Written here and not by `tarfile`, whose bytes differ between versions of Python (which fields of a header
are left empty, for instance): a layer's digest must not. Reading is `cache.untar`.

Format: POSIX.1-2017 pax interchange, https://pubs.opengroup.org/onlinepubs/9699919799/utilities/pax.html
"""

from __future__ import annotations

BLOCK = 512
FILE, HARDLINK, SYMLINK, DIRECTORY = b"0", b"1", b"2", b"5"
_PAX = b"x"


def header(path: bytes, kind: bytes, mode: int, *, size: int = 0, target: bytes = b"", uid: int = 0, gid: int = 0,
           mtime: int = 0) -> bytes:
    """The blocks before an entry's content; a pax header first if ustar cannot say it all.

    Args:
        path, target: UTF-8.
        size: bytes of content; 0 for anything but a file.
        mtime: seconds, 0 or more.
    """
    name = path + b"/" if kind == DIRECTORY else path
    records = b""
    if len(name) > 100 or not name.isascii():
        records += _record(b"path", name)
    if len(target) > 100 or not target.isascii():
        records += _record(b"linkpath", target)
    if size >= 8 ** 11:
        records += _record(b"size", b"%d" % size)
    if uid >= 8 ** 7:
        records += _record(b"uid", b"%d" % uid)
    if gid >= 8 ** 7:
        records += _record(b"gid", b"%d" % gid)
    block = _block(name, kind, mode, size, target, uid, gid, mtime)
    if not records:
        return block
    first = _block(b"././@PaxHeader", _PAX, 0o644, len(records), b"", 0, 0, mtime)
    return first + records + padding(len(records)) + block


def padding(size: int) -> bytes:
    """What follows `size` bytes of content up to the next block."""
    return bytes(-size % BLOCK)


def _record(key: bytes, value: bytes) -> bytes:
    """`<length> <key>=<value>\\n`, where the length counts itself."""
    rest = len(key) + len(value) + 3
    length = rest + len(b"%d" % rest)
    length = rest + len(b"%d" % length)
    return b"%d %s=%s\n" % (length, key, value)


def _block(name: bytes, kind: bytes, mode: int, size: int, target: bytes, uid: int, gid: int, mtime: int) -> bytes:
    block = b"".join((
        name[:100].ljust(100, b"\0"),
        b"%07o\0" % mode,
        _octal(uid, 7),
        _octal(gid, 7),
        _octal(size, 11),
        _octal(mtime, 11),
        b" " * 8,
        kind,
        target[:100].ljust(100, b"\0"),
        b"ustar\x0000",
        bytes(32 + 32 + 8 + 8 + 155 + 12),
    ))
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def _octal(value: int, digits: int) -> bytes:
    """A number, or 0 where a pax record has it because it does not fit."""
    return b"%0*o\0" % (digits, value if value < 8 ** digits else 0)
