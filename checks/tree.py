"""The file system of an image as its layers make it, read in place: what a process in it would see.

An upper layer's file hides a lower one's; links lead across layers. Nothing is unpacked.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from cache.derived import derived
from cache.layer import LayerReader, follow, read_index
from checks.base_image import contents
from checks.elf import MAGIC, DamagedElfError
from checks.symbols import Library, library, unpack

if TYPE_CHECKING:
    from cache.store import Store

#: Raised when another set of files of the same layer counts as ELF.
_ELF_VERSION = 1

#: The stage whose index is that of a base image's layers together.
BASE = "base-facts"


class ImageTree:
    """Layers, lowest first, as one tree: a context manager.

    Attributes:
        entries: path to index entry of what is visible; `type`, `size`, `digest`, `target` as in the layer index.
        stages: path to the stage whose layer has it.
    """

    def __init__(self, store: Store, indexes: Mapping[str, str], base: Sequence[str] = ()) -> None:
        """Open the layers that stage name to index digest names, in that order.

        Args:
            base: digests of a base image's layers, if the stage `base-facts` is among the indexes.

        Raises:
            IntegrityError: a blob is missing, or is no layer index.
        """
        self.store = store
        self.entries: dict[str, dict[str, Any]] = {}
        self.stages: dict[str, str] = {}
        self._stack = ExitStack()
        self._layers: dict[str, LayerReader] = {}
        self._indexes = dict(indexes)
        self._base: dict[str, dict[str, Any]] = {}
        with ExitStack() as stack:
            for stage, digest in indexes.items():
                if stage == BASE:
                    self.entries = {entry["path"]: entry for entry in read_index(store, digest)}
                    self.stages = dict.fromkeys(self.entries, BASE)
                    self._base = contents(store, base, self.entries)
                    continue
                layer = stack.enter_context(LayerReader(store, digest))
                self._layers[stage] = layer
                self.entries.update(layer.entries)
                self.stages.update(dict.fromkeys(layer.entries, stage))
            self._stack = stack.pop_all()

    def __enter__(self) -> ImageTree:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def resolve(self, path: str) -> str | None:
        """The path that `path` leads to with all links followed, in the image as root; None if to nothing."""
        found = follow(self.entries, path)
        return found if found in self.entries else None

    def file(self, path: str) -> str | None:
        """As `resolve`, for a regular file: None for a directory too. A hard link stays the name that it is."""
        found = self.resolve(path)
        return found if found is not None and self.entries[found]["type"] in ("file", "hardlink") else None

    def library(self, path: str) -> Library:
        """The ELF file at a path that `elf_files` gave.

        Raises:
            DamagedElfError: it is not well-formed.
        """
        if self.stages[path] == BASE:
            found = self._base[path]
            if "damaged" in found:
                raise DamagedElfError(found["damaged"])
            return unpack(found["elf"])
        return library(self.store, str(self._content(path)["digest"]), lambda: self.open(path))

    def digest(self, path: str) -> str:
        """Digest of the content of a file of an own layer; `path` as `file` gives it."""
        return str(self._content(path)["digest"])

    def readable(self, path: str) -> bool:
        """True if `open` works: the file is not in the compressed layers of a base image."""
        return self.stages[path] != BASE

    def open(self, path: str) -> io.BufferedReader:
        """A seekable stream of a file of an own layer; `path` as `file` gives it. Not checked while it is read."""
        return self._layers[self.stages[path]].open(path)

    def read(self, path: str) -> bytes:
        """A file's content, checked against the index.

        Raises:
            FileNotFoundError: `path` leads to no file, or to one of the base image that is not among its `contents`.
        """
        found = self.file(path)
        if found is not None and self.stages[found] == BASE and "text" in self._base.get(found, {}):
            return str(self._base[found]["text"]).encode()
        if found is None or self.stages[found] == BASE:
            raise FileNotFoundError(2, "no such file in the image", path)
        return self._layers[self.stages[found]].read(found)

    def elf_files(self) -> Iterator[str]:
        """Paths of the visible regular files that begin like an ELF file, each content under each of its names."""
        yield from (path for path, found in self._base.items() if "text" not in found and self.stages[path] == BASE)
        for stage, layer in self._layers.items():
            def find(layer: LayerReader = layer) -> bytes:
                return json.dumps([path for path in layer.entries if _is_elf(layer, path)]).encode()

            for path in json.loads(derived(self.store, "elf-files", _ELF_VERSION, self._indexes[stage], find)):
                if self.stages[path] == stage:
                    yield path

    def _content(self, path: str) -> dict[str, Any]:
        entry = self._layers[self.stages[path]].entry_of(self.entries[path])
        if entry is None:
            raise FileNotFoundError(2, "a hard link to nothing", path)
        return entry


def _is_elf(layer: LayerReader, path: str) -> bool:
    entry = layer.entries[path]
    if entry["type"] == "hardlink":
        entry = layer.entry_of(entry) or entry
    if entry["type"] != "file" or entry["size"] < 64:
        return False
    return layer.peek(entry, len(MAGIC)) == MAGIC


def indexes(outputs: Mapping[str, str], order: tuple[str, ...]) -> dict[str, str]:
    """Stage to index digest out of the outputs ("stage/output") that a check reads, in the order of an image."""
    return {stage: outputs[f"{stage}/index"] for stage in order if f"{stage}/index" in outputs}

