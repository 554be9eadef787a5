"""The layers of an image from outside, laid over each other: what its root file system holds, and a few files of it.

Reads, writes nothing. Whiteouts as in the OCI image specification (`.wh.<name>`, `.wh..wh..opq`); a member below a
symlink goes where the link points, as it does when an engine unpacks. Memory: the list of paths, about 400 bytes each.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from cache import untar
from cache.decompress import decompressed
from cache.errors import IntegrityError
from cache.layer import INDEX_FORMAT

_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"
_MAX_LINKS = 40
_KEEP_LIMIT = 64 << 20


@dataclass(frozen=True)
class Item:
    """One path: `target` of a symlink, or the path of the file that a hard link shares."""

    type: str
    mode: int
    uid: int
    gid: int
    size: int
    target: str = ""

    def line(self, path: str) -> bytes:
        """Its line in an index (docs/formats/image.md)."""
        entry: dict[str, Any] = {"path": path, "type": self.type}
        if self.type in ("symlink", "hardlink"):
            entry["target"] = self.target
        else:
            entry["mode"] = self.mode
        if self.type == "file":
            entry["size"] = self.size
        if self.uid or self.gid:
            entry.update(uid=self.uid, gid=self.gid)
        return json.dumps(entry, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


@dataclass
class Merged:
    """A root file system: `items` by path, `content` of the files that were asked for.

    Args:
        keep: which files' content to hold; they must be small.
    """

    keep: Callable[[str], bool]
    items: dict[str, Item] = field(default_factory=dict)
    content: dict[str, bytes] = field(default_factory=dict)
    _children: dict[str, set[str]] = field(default_factory=dict)

    def add_layer(self, layer: BinaryIO, diff_id: str, where: str) -> None:
        """Lay one more layer on top, plain or compressed.

        Args:
            diff_id: of its uncompressed bytes; "" where nobody has named one.

        Raises:
            IntegrityError: malformed, or its uncompressed bytes have another digest than `diff_id`.
        """
        hashing = _Hashing(decompressed(layer, where))
        limits = untar.Limits(entries=4_000_000, total=256 << 30, depth=256, devices=True, climbing=True)
        below = set(self.items)
        for entry in untar.entries(io.BufferedReader(hashing, 1 << 20), where=where, limits=limits):
            self._add(entry, below)
        if diff_id and hashing.digest() != diff_id:
            raise IntegrityError("a layer of the base image does not hold what its configuration says", where=where,
                                 expected=diff_id, found=hashing.digest())

    def _add(self, entry: untar.Entry, below: set[str]) -> None:
        parent, _, name = entry.path.rpartition("/")
        parent = self.real(parent)
        path = f"{parent}/{name}" if parent else name
        if name == _OPAQUE:
            for child in sorted(self._children.get(parent, ())):
                self._remove(f"{parent}/{child}" if parent else child, below)
            return
        if name.startswith(_WHITEOUT):
            hidden = name[len(_WHITEOUT):]
            self._remove(f"{parent}/{hidden}" if parent else hidden, below)
            return
        target = entry.target
        if entry.type == "hardlink":
            directory, _, file = target.rpartition("/")
            directory = self.real(directory)
            target = f"{directory}/{file}" if directory else file
        old = self.items.get(path)
        if old is not None and not (old.type == entry.type == "directory"):
            self._remove(path, None)
        self._link(path)
        self.items[path] = Item(entry.type, entry.mode, entry.uid, entry.gid, entry.size, target)
        below.discard(path)
        if entry.type == "file" and self.keep(path) and entry.size <= _KEEP_LIMIT:
            self.content[path] = entry.read(_KEEP_LIMIT)

    def _link(self, path: str) -> None:
        """Enter a path with its parents in the tree of names."""
        while path:
            parent, _, name = path.rpartition("/")
            children = self._children.setdefault(parent, set())
            if name in children:
                return
            children.add(name)
            path = parent

    def _remove(self, path: str, only: set[str] | None) -> None:
        """Take a path and all below it away; with `only`, just what lower layers brought."""
        for child in sorted(self._children.get(path, ())):
            self._remove(f"{path}/{child}", only)
        if only is not None and path in self.items and path not in only:
            return
        self.items.pop(path, None)
        self.content.pop(path, None)
        if not self._children.get(path):
            self._children.pop(path, None)
            parent, _, name = path.rpartition("/")
            self._children.get(parent, set()).discard(name)

    def real(self, path: str) -> str:
        """The path with all symlinks followed, those that point nowhere included; `/`-less, empty for the root.

        Raises:
            IntegrityError: links in a circle.
        """
        done: list[str] = []
        left = path.split("/")[::-1]
        links = 0
        while left:
            part = left.pop()
            if part in ("", "."):
                continue
            if part == "..":
                del done[-1:]
                continue
            item = self.items.get("/".join([*done, part]))
            if item is None or item.type != "symlink":
                done.append(part)
                continue
            links += 1
            if links > _MAX_LINKS:
                raise IntegrityError("symlinks in a circle", where=path)
            if item.target.startswith("/"):
                done = []
            left.extend(item.target.split("/")[::-1])
        return "/".join(done)

    def read(self, path: str) -> bytes | None:
        """Content of a file that was kept, symlinks and hard links followed; None if it is not there."""
        found = self.real(path)
        item = self.items.get(found)
        if item is not None and item.type == "hardlink":
            found = item.target
        return self.content.get(found)

    def exists(self, path: str) -> bool:
        """True if the path, with symlinks followed, is a file."""
        item = self.items.get(self.real(path))
        return item is not None and item.type in ("file", "hardlink")

    def index(self) -> Iterator[bytes]:
        """The lines of an index over all layers: format `stagecraft.layer-index.v1` without offsets and digests."""
        yield json.dumps({"format": INDEX_FORMAT, "merged": True}, separators=(",", ":")).encode() + b"\n"
        for path in sorted(self.items):
            yield self.items[path].line(path)


class _Hashing(io.RawIOBase):
    """Hashes what is read through it."""

    def __init__(self, source: BinaryIO) -> None:
        self._source, self._hash = source, hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._source.read(len(buffer))
        self._hash.update(data)
        buffer[:len(data)] = data
        return len(data)

    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"


