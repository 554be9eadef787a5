"""Layers, read: any file straight from the blob, found by the layer's index.

Nothing is unpacked. Content is checked against the index where it is read whole (`read_file`,
`LayerReader.read`); a stream (`LayerReader.open`) is not checked while it is read.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from cache.errors import IntegrityError

if TYPE_CHECKING:
    from cache.store import Store

INDEX_FORMAT = "stagecraft.layer-index.v1"

_MAX_LINKS = 40  # as many as Linux follows


def read_index(store: Store, digest: str) -> Iterator[dict[str, Any]]:
    """The entries of a layer index (without its header line), in the order of the tar.

    Raises:
        IntegrityError: the blob is missing or is no layer index.
    """
    with store.open_blob(digest) as file:
        _header(file.readline(), digest)
        for number, line in enumerate(file, start=2):
            try:
                entry = json.loads(line)
            except ValueError as error:
                raise IntegrityError("a layer index was altered", where=f"{digest}:{number}", found=str(error),
                                     cure="./doit store:verify --repair") from error
            yield entry


def layer_of(store: Store, digest: str) -> str:
    """The layer that a layer index describes.

    Raises:
        IntegrityError: the blob is missing or is no layer index.
    """
    with store.open_blob(digest) as file:
        return str(_header(file.readline(), digest)["layer"])


def _at_once(lines: bytes) -> list[dict[str, Any]] | None:
    """The lines of an index as one document, which is read three times as fast; None if they are none."""
    try:
        found = json.loads(b"[" + lines.rstrip(b"\n").replace(b"\n", b",") + b"]")
    except ValueError:
        return None
    return found if len(found) == lines.count(b"\n") else None


def _header(line: bytes, digest: str) -> dict[str, Any]:
    try:
        header = json.loads(line)
    except ValueError:
        header = None
    if not isinstance(header, dict) or header.get("format") != INDEX_FORMAT:
        raise IntegrityError("not a layer index", where=digest, expected=INDEX_FORMAT, found=repr(line[:60]))
    return header


def read_file(store: Store, layer: str, entry: dict[str, Any]) -> bytes:
    """Content of one file entry of a layer, checked against the entry's digest."""
    with store.open_blob(layer) as file:
        return _checked(file.fileno(), layer, entry)


def _checked(fd: int, layer: str, entry: dict[str, Any]) -> bytes:
    wanted, offset, pieces = int(entry["size"]), int(entry["offset"]), []
    while wanted and (piece := os.pread(fd, min(wanted, 1 << 30), offset)):
        pieces.append(piece)
        wanted -= len(piece)
        offset += len(piece)
    data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
    if "sha256:" + hashlib.sha256(data).hexdigest() != entry["digest"]:
        raise IntegrityError("a layer was altered", where=f"{layer}:{entry['path']}",
                             cure="./doit store:verify --repair")
    return data


def follow(entries: Mapping[str, Mapping[str, Any]], path: str) -> str | None:
    """The path that `path` leads to with all links followed, among entries as a root; None if in circles."""
    waiting = [part for part in reversed(path.split("/")) if part not in ("", ".")]
    done: list[str] = []
    links = 0
    while waiting:
        part = waiting.pop()
        if part == "..":
            del done[-1:]
            continue
        done.append(part)
        entry = entries.get("/".join(done))
        if entry is None or entry["type"] != "symlink":
            continue
        links += 1
        if links > _MAX_LINKS:
            return None
        done = [] if entry["target"].startswith("/") else done[:-1]
        waiting.extend(part for part in reversed(entry["target"].split("/")) if part not in ("", "."))
    return "/".join(done)


class LayerReader:
    """One layer, opened: a context manager. Threads may share it.

    Attributes:
        entries: path to index entry, in the order of the tar.
        layer: digest of the tar.
    """

    def __init__(self, store: Store, index: str) -> None:
        """Open the layer that the index blob `index` describes.

        Raises:
            IntegrityError: a blob is missing, or `index` is no layer index.
        """
        with store.open_blob(index) as file:
            header = _header(file.readline(), index)
            entries = _at_once(file.read())
        self.layer: str = header["layer"]
        self.entries: dict[str, dict[str, Any]] = {
            entry["path"]: entry for entry in (read_index(store, index) if entries is None else entries)}
        self._file = store.open_blob(self.layer)
        found = os.fstat(self._file.fileno()).st_size
        if found != header["size"]:
            self._file.close()
            raise IntegrityError("a layer was cut or grown", where=self.layer, expected=f"{header['size']} bytes",
                                 found=f"{found} bytes", cure="./doit store:verify --repair")

    def __enter__(self) -> LayerReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the layer; streams that are open stay readable."""
        self._file.close()

    def get(self, path: str) -> dict[str, Any] | None:
        """The entry at exactly that path, or None. No link is followed."""
        return self.entries.get(path)

    def resolve(self, path: str) -> dict[str, Any] | None:
        """The file or directory that `path` leads to, following links inside the layer.

        As the kernel would with the layer as root: absolute targets start at its top and `..` stops
        there. None if it leads to nothing, out of the layer (into another one, perhaps) or in circles.
        """
        entry = self.entries.get(follow(self.entries, path) or "")
        if entry is not None and entry["type"] == "hardlink":
            return self.entry_of(entry)
        return entry

    def entry_of(self, entry: dict[str, Any]) -> dict[str, Any] | None:
        """The file entry that holds the content of a hard link."""
        for _ in range(_MAX_LINKS):
            if entry["type"] != "hardlink":
                return entry
            found = self.entries.get(entry["target"])
            if found is None:
                return None
            entry = found
        return None

    def open(self, path: str) -> io.BufferedReader:
        """A seekable stream of one file, links followed as `resolve` does.

        Raises:
            FileNotFoundError: `path` leads to no file of this layer.
        """
        entry = self._file_at(path)
        raw = _Slice(os.dup(self._file.fileno()), int(entry["offset"]), int(entry["size"]), path)
        return io.BufferedReader(raw, 1 << 16)

    def read(self, path: str) -> bytes:
        """A file's whole content, checked against the index; links are followed.

        Raises:
            FileNotFoundError: `path` leads to no file of this layer.
            IntegrityError: the layer was altered.
        """
        return _checked(self._file.fileno(), self.layer, self._file_at(path))

    def peek(self, entry: dict[str, Any], count: int) -> bytes:
        """The first bytes of a file entry's content, at most `count`; not checked."""
        return os.pread(self._file.fileno(), min(count, int(entry["size"])), int(entry["offset"]))

    def _file_at(self, path: str) -> dict[str, Any]:
        entry = self.resolve(path)
        if entry is None or entry["type"] != "file":
            raise FileNotFoundError(2, "no such file in the layer", path)
        return entry


class _Slice(io.RawIOBase):
    """A window of a file. Reads by position, so that several may share one descriptor."""

    def __init__(self, fd: int, start: int, size: int, name: str) -> None:
        self._fd, self._start, self._size, self.name = fd, start, size, name
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError("seek before the start")
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)[:max(0, self._size - self._at)]
        count = os.preadv(self._fd, [view], self._start + self._at) if len(view) else 0
        self._at += count
        return count

    def close(self) -> None:
        if not self.closed:
            os.close(self._fd)
        super().close()
