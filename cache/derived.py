"""Facts derived from content, kept by the content's digest: a library's symbols, a wheel's metadata.

What is kept here can always be made again from the blob, so nothing waits for the disk: an entry checks itself when
it is read, and a damaged or half-written one counts as missing. Format of a file `derived/<kind>-<version>/<aa>/<hex>`:
the SHA-256 of the rest (32 bytes), then the fact as zstd. Collection drops what was not used for a month.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import zstandard

from cache import durable
from cache.errors import StoreError
from cache.record import hex_of

if TYPE_CHECKING:
    from cache.store import Store

#: Seconds after which an entry that is used says so by its time of change.
_REFRESH = 86400
_KIND = re.compile(r"[a-z][a-z0-9-]*")


def derived(store: Store, kind: str, version: int, digest: str, make: Callable[[], bytes]) -> bytes:
    """The fact of that kind about the content `digest`: as it was kept, else as `make` gives it, and then kept.

    Args:
        kind: what it is ("elf-symbols"); letters, digits and `-`.
        version: raised when `make` would give something else for the same content.
        digest: `sha256:…` of what the fact is about.
        make: computes the fact; called at most once.

    A store that cannot be written (another user's, a full disk) is no obstacle: the fact is computed then.
    """
    path = _path(store, kind, version, digest)
    found = _load(path)
    if found is not None:
        return found
    fact = make()
    with contextlib.suppress(StoreError, OSError):
        _keep(store, path, fact)
    return fact


def known(store: Store, kind: str, version: int, digest: str) -> bytes | None:
    """The fact if it is kept."""
    return _load(_path(store, kind, version, digest))


def _path(store: Store, kind: str, version: int, digest: str) -> str:
    if not _KIND.fullmatch(kind):
        raise ValueError(f"not a kind: {kind!r}")
    value = hex_of(digest)
    return f"{store.root}/derived/{kind}-{version}/{value[:2]}/{value}"


def _load(path: str) -> bytes | None:
    data = durable.contents(path)
    if data is None or len(data) < 32 or hashlib.sha256(data[32:]).digest() != data[:32]:
        return None
    with contextlib.suppress(OSError):
        if time.time() - os.stat(path).st_mtime > _REFRESH:
            os.utime(path)
    return zstandard.ZstdDecompressor().decompressobj().decompress(data[32:])


def _keep(store: Store, path: str, fact: bytes) -> None:
    packed = zstandard.ZstdCompressor(level=1).compress(fact)
    temporary, fd = durable.temporary(str(store.root / "tmp"))
    try:
        durable.write_all(fd, [hashlib.sha256(packed).digest(), packed])
        os.fchmod(fd, 0o444)
        durable.make_directory(os.path.dirname(path), str(store.root / "tmp"))
        os.replace(temporary, path)
    finally:
        os.close(fd)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
