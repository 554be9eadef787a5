"""The libraries of a base image from a registry, whose layers stay compressed: read in one pass, and then kept."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cache import canonical, untar
from cache.derived import derived
from checks.elf import MAGIC, DamagedElfError
from checks.symbols import VERSION, pack, read_library

if TYPE_CHECKING:
    from cache.store import Store

_IN_MEMORY = 64 << 20
_TEXT_LIMIT = 1 << 20
_LINKS = 40


def contents(store: Store, layers: Sequence[str],
             entries: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """What checks read of a base image, by path.

    `{"elf": …}` as `checks.symbols.pack` makes it, `{"damaged": why}` or `{"text": …}`.

    Args:
        layers: digests of the layers as the registry holds them, lowest first; the blobs are in the store.
        entries: the index of all layers together: what is not in it is hidden by an upper layer.

    Texts are those that say where the loader searches (`etc/ld.so.conf*`).
    """
    key = canonical.digest_of("base-libraries", {"layers": list(layers)})
    found: dict[str, dict[str, Any]] = json.loads(
        derived(store, "base-libraries", VERSION, key, lambda: _read(store, layers, entries)))
    return found


def _read(store: Store, layers: Sequence[str], entries: Mapping[str, Mapping[str, Any]]) -> bytes:
    found: dict[str, dict[str, Any]] = {}
    limits = untar.Limits(entries=4_000_000, total=256 << 30, depth=256, devices=True, climbing=True)
    for number, digest in enumerate(layers):
        where = f"layer {number} of the base image"
        with store.open_blob(digest) as file:
            for entry in untar.entries(file, where=where, limits=limits):
                if entry.type != "file":
                    continue
                path = _real(entry.path, entries)
                known = entries.get(path)
                if known is None or known["type"] != "file" or known["size"] != entry.size:
                    continue
                found.pop(path, None)
                if path.startswith("etc/ld.so.conf") and entry.size <= _TEXT_LIMIT:
                    found[path] = {"text": entry.read(_TEXT_LIMIT).decode("utf-8", "replace")}
                elif entry.size >= 64 and _may_be_library(path, entry.mode):
                    library = _library(entry)
                    if library is not None:
                        found[path] = library
    return json.dumps(found).encode()


def _may_be_library(path: str, mode: int) -> bool:
    name = path.rpartition("/")[2]
    return ".so" in name or bool(mode & 0o111)


def _library(entry: untar.Entry) -> dict[str, Any] | None:
    """What a member says of itself as a library; None if it is no ELF file. Large ones wait on disk."""
    pieces = entry.chunks()
    first = next(pieces, b"")
    if first[:4] != MAGIC:
        return None
    with tempfile.SpooledTemporaryFile(_IN_MEMORY) as file:
        file.write(first)
        for piece in pieces:
            file.write(piece)
        try:
            return {"elf": json.loads(pack(read_library(file)))}  # type: ignore[arg-type]
        except DamagedElfError as error:
            return {"damaged": str(error)}


def _real(path: str, entries: Mapping[str, Mapping[str, Any]]) -> str:
    """The path with the links among its directories followed."""
    directory, _, name = path.rpartition("/")
    done: list[str] = []
    waiting = directory.split("/")[::-1]
    for _ in range(_LINKS * 64):
        if not waiting:
            break
        part = waiting.pop()
        if part in ("", "."):
            continue
        if part == "..":
            del done[-1:]
            continue
        entry = entries.get("/".join([*done, part]))
        if entry is None or entry["type"] != "symlink":
            done.append(part)
            continue
        if entry["target"].startswith("/"):
            done = []
        waiting.extend(entry["target"].split("/")[::-1])
    return "/".join([*done, name])
