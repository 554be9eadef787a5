"""What lies in a store, read from its files: for collection, verification and sizes.

Nothing is kept beside the files that would have to agree with them (no index, no counters): every number is
derived from a walk. Files that vanish during the walk were collected or replaced; they are left out.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache import documents, durable
from cache.store import Store


@dataclass(frozen=True)
class BlobFile:
    """One blob: bytes, time of writing (ns), inode."""

    size: int
    mtime: int
    inode: int


@dataclass(frozen=True)
class RecordFile:
    """One record and the digests in it.

    Attributes:
        name: path below `records/`.
        key: the action key by the directory's name.
        outputs: digests of outputs and log.
        inputs: digests of inputs: locked files, files of the repository, outputs of other stages.
        damaged: it could not be read; the digests are unknown.
    """

    name: str
    key: str
    size: int
    mtime: int
    outputs: frozenset[str] = frozenset()
    inputs: frozenset[str] = frozenset()
    damaged: bool = False


@dataclass(frozen=True)
class Layout:
    """An image layout: bytes of its own, time, and the blobs that it links to."""

    size: int
    mtime: int
    digests: frozenset[str]


def blobs(store: Store) -> dict[str, BlobFile]:
    """All blobs by digest."""
    found = {}
    for path, name in _two_levels(store.root / "blobs" / "sha256"):
        there = _stat(path)
        if there is not None and stat.S_ISREG(there.st_mode):
            found[f"sha256:{name}"] = BlobFile(there.st_size, there.st_mtime_ns, there.st_ino)
    return found


def records(store: Store) -> list[RecordFile]:
    """All records, oldest first."""
    found = []
    base = store.root / "records"
    for directory, key in _two_levels(base):
        for name in _names(directory):
            path = f"{directory}/{name}"
            there, data = _stat(path), durable.contents(path)
            if there is not None and data is not None:
                digests = _digests(data)
                outputs, inputs = digests or (frozenset(), frozenset())
                found.append(RecordFile(os.path.relpath(path, base), f"sha256:{key}", there.st_size,
                                        there.st_mtime_ns, outputs, inputs, digests is None))
    return sorted(found, key=lambda record: (record.mtime, record.name))


def _digests(data: bytes) -> tuple[frozenset[str], frozenset[str]] | None:
    try:
        value = json.loads(data)
        outputs = {item["digest"] for item in value["outputs"].values()}
        if value["facts"].get("log"):
            outputs.add(value["facts"]["log"])
        given = value["derivation"].get("inputs", {}).values()
        inputs = {item["digest"] for item in given}
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return frozenset(outputs), frozenset(inputs)


def verdicts(store: Store) -> Iterator[tuple[str, os.stat_result, dict[str, Any] | None]]:
    """Path below `verdicts/`, stat and content of every verdict; None if it cannot be read."""
    base = store.root / "verdicts"
    for path, _ in _two_levels(base):
        there, data = _stat(path), durable.contents(path)
        if there is None or data is None:
            continue
        try:
            value = json.loads(data)
        except ValueError:
            value = None
        yield os.path.relpath(path, base), there, value if isinstance(value, dict) else None


def derived(store: Store) -> Iterator[tuple[str, os.stat_result]]:
    """Path below `derived/` and stat of every fact that `cache.derived` keeps."""
    base = store.root / "derived"
    for kind in _names(base):
        for path, _ in _two_levels(base / kind):
            there = _stat(path)
            if there is not None:
                yield os.path.relpath(path, base), there


def trees(store: Store) -> Iterator[tuple[str, os.stat_result, frozenset[str], int]]:
    """Path below `trees/`, stat, digests that it was made of and bytes of content, of every unpacked layer."""
    base = store.root / "trees"
    for path, _ in _two_levels(base):
        there, data = _stat(path), documents.load(f"{path}/tree.json") or {}
        if there is not None:
            yield os.path.relpath(path, base), there, frozenset(data.get("of", ())), int(data.get("size", 0))


def ccache(store: Store) -> Iterator[tuple[str, os.stat_result, int]]:
    """Name, stat and bytes of content of every directory of compilers' results; its time is that of its last use."""
    for name, there in files(store, "ccache"):
        size = 0
        for directory, _, below in os.walk(store.root / "ccache" / name):
            size += sum(found.st_size for file in below if (found := _stat(f"{directory}/{file}")) is not None)
        yield name, there, size


def sessions(store: Store) -> tuple[frozenset[str], list[str]]:
    """Names that running processes use, and the session files whose process is gone."""
    used: set[str] = set()
    dead = []
    for name in _names(store.root / "sessions"):
        path = f"{store.root}/sessions/{name}"
        if durable.locked_elsewhere(path):
            used.update((durable.contents(path) or b"").decode("ascii", "replace").split())
        else:
            dead.append(name)
    return frozenset(used), dead


def layouts(store: Store) -> dict[str, Layout]:
    """All image layouts by name."""
    found = {}
    for name in _names(store.root / "images"):
        base = store.root / "images" / name
        top = _stat(base)
        if top is None:
            continue
        size = 0
        digests = set()
        for directory, _, files in os.walk(base):
            for file in files:
                path = f"{directory}/{file}"
                there = _stat(path)
                if there is None or not stat.S_ISLNK(there.st_mode):
                    size += there.st_size if there else 0
                    continue
                with contextlib.suppress(OSError):
                    value = os.path.basename(os.readlink(path))
                    if len(value) == 64:
                        digests.add(f"sha256:{value}")
        found[name] = Layout(size, top.st_mtime_ns, frozenset(digests))
    return found


def files(store: Store, part: str) -> list[tuple[str, os.stat_result]]:
    """Names and stats of what lies in a flat part of the store, such as `partial`."""
    found = [(name, _stat(store.root / part / name)) for name in _names(store.root / part)]
    return [(name, there) for name, there in found if there is not None]


def _names(directory: Path | str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _two_levels(base: Path) -> Iterator[tuple[str, str]]:
    for prefix in _names(base):
        for name in _names(base / prefix):
            yield f"{base}/{prefix}/{name}", name


def _stat(path: Path | str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
