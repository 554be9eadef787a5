"""Deterministic layers, written: a tar in the store, and an index of what is in it.

A layer is an uncompressed pax tar: entries in byte order of their paths, owner 0:0 (or the ids
given), one mtime, no names of users. Its digest is its OCI diff id.

The index (format `stagecraft.layer-index.v1`, docs/formats/layer-index.md) is one JSON object a line,
first a header, then one per entry in the order of the tar::

    {"format":"stagecraft.layer-index.v1","layer":"sha256:…","size":123}
    {"mode":493,"path":"usr/bin","type":"directory"}
    {"digest":"sha256:…","mode":420,"offset":1536,"path":"usr/bin/x","size":12,"type":"file"}
    {"path":"usr/bin/y","target":"x","type":"symlink"}
    {"path":"usr/bin/z","target":"usr/bin/x","type":"hardlink"}

`offset` is where the content of a file starts in the tar, so that a check reads any file straight
from the blob. `uid` and `gid` are there when they are not 0.

Reading is `cache.layer` (`read_index`, `read_file` and `LayerReader` may be imported from here too).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from cache import tar
from cache.errors import IntegrityError
from cache.layer import INDEX_FORMAT, LayerReader, read_file, read_index
from cache.store import Blob, Store

__all__ = ["SOURCE_DATE_EPOCH", "Layer", "LayerReader", "LayerWriter", "read_file", "read_index"]

#: All times in archives and images: 1980-01-01 00:00:00 UTC, the earliest a zip file can hold.
SOURCE_DATE_EPOCH = 315532800

_MAX_PATH = 4095
_MAX_NAME = 255


@dataclass(frozen=True)
class Layer:
    """A finished layer: its tar and its index."""

    layer: Blob
    index: Blob


class LayerWriter:
    """Writes a layer into the store, entry by entry, in ascending byte order of paths.

    Use as a context manager; `finish` publishes. Paths are relative, with `/`, no `.`, no `..`.
    Nothing is held in memory but the index and the paths (about 300 bytes an entry). Content is hashed and
    written beside whoever makes it; a buffer passed in is the caller's again when `file` asks for the next.

    An entry that no extractor could place (below a file or a symlink, a hard link to what is no
    earlier file, a name longer than Linux takes) raises IntegrityError: the bytes come from
    packages. An entry out of order is a bug of the caller and raises ValueError.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._tar = store.writer()
        self._lines: list[bytes] = []
        self._last = b""
        self._files: set[str] = set()
        self._symlinks: set[str] = set()

    def __enter__(self) -> LayerWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._tar.close()

    def directory(self, path: str, mode: int = 0o755, uid: int = 0, gid: int = 0) -> None:
        self._header(path, tar.DIRECTORY, mode, uid=uid, gid=gid)
        self._line({"path": path, "type": "directory", "mode": mode}, uid, gid)

    def symlink(self, path: str, target: str) -> None:
        """`target` is kept as it is, whether or not something is there."""
        self._header(path, tar.SYMLINK, 0o777, target=target)
        self._symlinks.add(path)
        self._line({"path": path, "type": "symlink", "target": target}, 0, 0)

    def hardlink(self, path: str, target: str) -> None:
        """`target` is the path of a file (or hard link) written earlier."""
        if target not in self._files:
            raise IntegrityError("a hard link to what is no earlier file of the layer", where=path, found=target)
        self._header(path, tar.HARDLINK, 0o644, target=target)
        self._files.add(path)
        self._line({"path": path, "type": "hardlink", "target": target}, 0, 0)

    def file(
        self,
        path: str,
        size: int,
        chunks: Iterable[bytes | memoryview],
        mode: int = 0o644,
        *,
        uid: int = 0,
        gid: int = 0,
        expect: str | None = None,
    ) -> str:
        """Write a file of `size` bytes; returns its digest.

        Raises:
            IntegrityError: the chunks give another size, or content with another digest than `expect`.
        """
        self._header(path, tar.FILE, mode, size=size, uid=uid, gid=gid)
        offset = self._tar.size
        content = hashlib.sha256()
        left = size
        for chunk in chunks:
            left -= len(chunk)
            if left < 0:
                break
            content.update(chunk)
            self._tar.write(chunk)
        if left:
            raise IntegrityError("a file has another size than its archive says", where=path,
                                 expected=f"{size} bytes", found="more" if left < 0 else f"{size - left} bytes")
        digest = "sha256:" + content.hexdigest()
        if expect is not None and digest != expect:
            raise IntegrityError("wrong hash", where=path, expected=expect, found=digest)
        self._tar.write(tar.padding(size))
        self._files.add(path)
        self._line(
            {"path": path, "type": "file", "mode": mode, "size": size, "offset": offset, "digest": digest}, uid, gid)
        return digest

    def finish(self) -> Layer:
        """End the tar and publish both blobs."""
        self._tar.write(bytes(2 * tar.BLOCK))
        layer = self._tar.commit()
        header = {"format": INDEX_FORMAT, "layer": layer.digest, "size": layer.size}
        index = self._store.put(line + b"\n" for line in [_encode(header), *self._lines])
        return Layer(layer, index)

    def _header(self, path: str, kind: bytes, mode: int, *, size: int = 0, target: str = "",
                uid: int = 0, gid: int = 0) -> None:
        raw, raw_target = _utf8(path, path), _utf8(target, path)
        _check_path(path, raw)
        if not 0 <= mode <= 0o7777 or size < 0 or uid < 0 or gid < 0:
            raise IntegrityError("a mode, size or owner out of range", where=path)
        if kind == tar.SYMLINK and (not target or "\0" in target or len(raw_target) > _MAX_PATH):
            raise IntegrityError("not a possible symlink target", where=path, found=repr(target[:80]))
        if raw <= self._last:
            raise ValueError(f"entries out of order: {path!r} after {self._last!r}")
        cut = path.rfind("/")
        while cut > 0:  # ascending order has put everything above a path before it
            if path[:cut] in self._files or path[:cut] in self._symlinks:
                raise IntegrityError("an entry below what is no directory", where=path, found=path[:cut])
            cut = path.rfind("/", 0, cut)
        self._last = raw
        self._tar.write(tar.header(raw, kind, mode, size=size, target=raw_target, uid=uid, gid=gid,
                                   mtime=SOURCE_DATE_EPOCH))

    def _line(self, entry: dict[str, Any], uid: int, gid: int) -> None:
        if uid or gid:
            entry.update(uid=uid, gid=gid)
        self._lines.append(_encode(entry))


def _utf8(text: str, where: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise IntegrityError("a name that is not UTF-8", where=ascii(where), found=ascii(text)) from error


def _check_path(path: str, raw: bytes) -> None:
    parts = path.split("/")
    if "" in parts or "." in parts or ".." in parts or "\0" in path:
        raise IntegrityError("not a plain relative path", where=repr(path))
    if len(raw) > _MAX_PATH or (len(raw) > _MAX_NAME and any(len(part.encode()) > _MAX_NAME for part in parts)):
        raise IntegrityError("a path longer than Linux takes", where=path[:200],
                             expected=f"{_MAX_NAME} bytes a name, {_MAX_PATH} in all")


def _encode(entry: dict[str, Any]) -> bytes:
    return json.dumps(entry, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
