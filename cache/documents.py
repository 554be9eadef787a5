"""The store's small files, read: canonical JSON objects, a record among them.

Two ways to take damage: what can be made again (a verdict, the hint in a ledger) is as good as absent; what
collection is decided by (roots) raises.
"""

from __future__ import annotations

import os
from typing import Any

from cache import canonical, durable
from cache.errors import IntegrityError
from cache.record import Record


def load(path: str) -> dict[str, Any] | None:
    """The object in a file; None if it is not there or damaged."""
    try:
        data = durable.contents(path)
        found = None if data is None else canonical.loads(data, where=path)
    except IntegrityError:
        return None
    return found if isinstance(found, dict) else None


def load_all(directory: str) -> dict[str, dict[str, Any]]:
    """All objects in a directory, by file name without `.json`.

    Raises:
        IntegrityError: one of them is damaged.
    """
    found: dict[str, dict[str, Any]] = {}
    for name in sorted(os.listdir(directory)) if os.path.isdir(directory) else []:
        path = f"{directory}/{name}"
        data = durable.contents(path) if name.endswith(".json") else None
        if data is not None:
            value = canonical.loads(data, where=path)
            if not isinstance(value, dict):
                raise IntegrityError("not an object", where=path)
            found[name.removesuffix(".json")] = value
    return found


def holds_record(path: str) -> bool:
    """True if a record is there that a strict reader takes; its name is on disk then."""
    data = durable.contents(path)
    try:
        found = data is not None and Record.parse(data, path) is not None
    except IntegrityError:
        return False
    if found:
        durable.fsync_directory(os.path.dirname(path))
    return found
