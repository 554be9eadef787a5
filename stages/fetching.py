"""Joins locked files with the sources that know where they lie: what the engine's `fetch` is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cache.errors import LockError
from cache.store import Store
from stages.engine import Fetch, FetchProgress
from stages.graph import FileInput

if TYPE_CHECKING:
    from lock.apt_archive import Archive
    from lock.source_lock import LockedTree
    from lock.sources import Source


Trees = Mapping[str, tuple["LockedTree", Mapping[str, Sequence[str]]]]


def fetcher(root: Path, suites: Callable[[], Sequence[Mapping[str, str]]] = tuple,
            trees: Callable[[], Trees] = dict,
            mirrors: Callable[[], Mapping[str, Sequence[str]]] = dict) -> Fetch:
    """A fetch for the project in `root`; reads the index configuration on first use.

    Args:
        suites: gives the suites that the locks in use were resolved from: their dates are where superseded packages
            are looked for.
        trees: gives the Git trees of these locks by digest, each with the mirrors to ask first.
        mirrors: gives those for files that are locked by their address.
    """
    sources: dict[str, Source] = {}

    def get(store: Store, wanted: Sequence[FileInput], progress: FetchProgress) -> None:
        from lock.fetch import Wanted, fetch

        _trees(store, [item for item in wanted if item.kind == "git"], trees, progress)
        wanted = [item for item in wanted if item.kind != "git"]
        for kind in {item.kind for item in wanted} - set(sources):
            sources[kind] = source(kind, root, suites(), mirrors() if kind == "url" else {})
        listed = [Wanted(item.kind, item.locked.name, item.locked.version, item.locked.file, item.locked.size,
                         item.locked.sha256, item.locked.index) for item in wanted]
        fetch(store, listed, sources, progress=progress)

    return get


def _trees(store: Store, wanted: Sequence[FileInput], trees: Callable[[], Trees], progress: FetchProgress) -> None:
    """Bring Git trees into the store, one after the other."""
    from lock.git_tree import fetch_tree

    known = trees() if wanted else {}
    for item in wanted:
        locked = item.locked
        progress.begin(locked.name, locked.size)
        tree, mirrors = known[locked.digest]
        # Those of a submodule come with it.
        wanted_too = [path for path in tree.submodules
                      if not any(path.startswith(f"{above}/") for above in tree.submodules)]
        found = fetch_tree(store, tree.repository, tree.revision, mirrors=mirrors, submodules=wanted_too,
                           expect=tree.tree)
        if found.size != tree.size:
            raise LockError(f"the source {locked.name} has another size than the lock says",
                            expected=f"{tree.size} bytes", found=f"{found.size} bytes",
                            cure="restore the lock from version control, or lock again")
        progress.advance(locked.name, locked.size)
        progress.end(locked.name)


def source(kind: str, root: Path, suites: Sequence[Mapping[str, str]] = (),
           mirrors: Mapping[str, Sequence[str]] | None = None) -> Source:
    """What knows where files of this kind lie."""
    if kind == "url":
        from lock.url_source import UrlSource

        return UrlSource(mirrors)
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
