"""Wheels of the committed locks, fetched by the project's own code into a store.

The store is the one named by STAGECRAFT_TEST_STORE if it is set (where they may already be), else one of the test run.
"""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

from cache.store import Store
from lock.fetch import Wanted, fetch
from stages.fetching import source
from stages.lockfile import LockedFile
from stages.project import Project
from tests.support.front import HERE


def wheel_of(target: str, name: str, scratch: Path) -> Path:
    """The wheel of this project that the target's lock names; `scratch` is where a store is made if none is given."""
    item = next(item for item in Project(HERE).lock(target).wheels if item.name == name)
    store = Store.open(Path(os.environ.get("STAGECRAFT_TEST_STORE") or scratch / "store"))
    fetch(store, [_wanted(item)], {"wheel": source("wheel", HERE)})
    return store.path_of(item.digest)


def member(wheel: Path, name: str, directory: Path) -> Path:
    """One file of a wheel, unpacked into `directory`."""
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(name, directory))


def _wanted(item: LockedFile) -> Wanted:
    return Wanted("wheel", item.name, item.version, item.file, item.size, item.sha256, item.index)
