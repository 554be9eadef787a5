"""Joins locked files with the sources that know where they lie: what the engine's `fetch` is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cache.store import Store
from stages.engine import Fetch, FetchProgress
from stages.graph import FileInput

if TYPE_CHECKING:
    from lock.apt_archive import Archive
    from lock.sources import Source


def fetcher(root: Path, suites: Callable[[], Sequence[Mapping[str, str]]] = tuple) -> Fetch:
    """A fetch for the project in `root`; reads the index configuration on first use.

    Args:
        suites: gives the suites that the locks in use were resolved from: their dates are where superseded packages
            are looked for.
    """
    sources: dict[str, Source] = {}

    def get(store: Store, wanted: Sequence[FileInput], progress: FetchProgress) -> None:
        from lock.fetch import Wanted, fetch

        for kind in {item.kind for item in wanted} - set(sources):
            sources[kind] = source(kind, root, suites())
        listed = [Wanted(item.kind, item.locked.name, item.locked.version, item.locked.file, item.locked.size,
                         item.locked.sha256, item.locked.index) for item in wanted]
        fetch(store, listed, sources, progress=progress)

    return get


def source(kind: str, root: Path, suites: Sequence[Mapping[str, str]] = ()) -> Source:
    """What knows where files of this kind lie."""
    if kind == "oci":
        from oci.base import OciSource

        return OciSource()
    if kind == "deb":
        from lock.debs import DebSource, SuiteState

        return DebSource(archives(root), [SuiteState(**suite) for suite in suites])
    from lock.indexes import load_indexes
    from lock.simple import WheelSource

    return WheelSource(load_indexes(root / "targets" / "indexes.yaml"))


def archives(root: Path) -> dict[str, Archive]:
    """The apt archives of targets/indexes.yaml by name."""
    from lock.indexes import load_indexes

    indexes = load_indexes(root / "targets" / "indexes.yaml")
    return {name: indexes.apt(name) for name in indexes.names("apt")}
