"""How much disk a build needs, before it starts: an estimate from the lock, which knows packed sizes only."""

from __future__ import annotations

import os
from pathlib import Path

from cache.errors import StoreError
from cache.store import Store
from stages.gates import checks_for
from stages.graph import FileInput, Graph
from stages.plan import evaluate
from stages.project import Project

#: Layer bytes per byte of package, measured on thor's 2026-11 lock (wheels 2.3, debs 4.4), rounded up. A check that
#: runs the image wants the layers unpacked too: as much again.
#: Sources are unpacked and split, and what is compiled from them is about as large.
GROWTH = {"wheel": 2.5, "deb": 5.0, "oci": 0.0, "sdist": 8.0, "git": 3.0, "url": 8.0}


def free(path: Path) -> int:
    """Bytes that this user may still write at `path` or its nearest existing parent."""
    while not path.exists() and path != path.parent:
        path = path.parent
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


def needed_by(graph: Graph, store: Store) -> int:
    """Bytes that building what is not cached will add: downloads, and layers."""
    total = 0.0
    times = 2 if any(check.runs for check in checks_for(graph)) else 1
    missing: dict[str, int] = {}  # by digest: the layers of a base image are inputs of two stages
    for name, (_, record) in evaluate(graph, store).items():
        if record is not None:
            continue
        for item in graph.stage(name).inputs.values():
            if isinstance(item, FileInput):
                total += item.locked.size * GROWTH[item.kind] * times
                if not store.has(item.locked.digest):
                    missing[item.locked.digest] = item.locked.size
    return int(total) + sum(missing.values())


def needed(project: Project, target: str) -> int:
    return needed_by(project.graph(target), project.store)


def ensure(graph: Graph, store: Store) -> None:
    """Refuse a build that cannot fit.

    Raises:
        StoreError: with what is needed and what is free.
    """
    from stages.report import size_text

    wanted, available = needed_by(graph, store), free(store.root)
    if wanted > available:
        raise StoreError("the build does not fit on the store's disk", where=str(store.root),
                         expected=f"about {size_text(wanted)} free", found=f"{size_text(available)} free",
                         cure="./doit store:gc, free space, or set STAGECRAFT_STORE to a larger disk")
