"""What a package that is compiled needs, locked: its sdist or Git revision, and every tree that its CMake would fetch.

    locked = lock_source(store, request, indexes, mirrors)

The pins are read out of the package's own CMake files (`lock.cmake_pins`), tags become revisions, and each tree is
fetched once, so that the lock holds the digest of what will be compiled. Whatever cannot be had is named, all of it at
once: a lock has everything or is not written.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from cache import untar
from cache.errors import FetchError, IntegrityError, LockError, StagecraftError
from cache.store import Store
from lock.cmake_pins import Pin, pins
from lock.fetch import Wanted, fetch
from lock.git_tree import REVISION, Tree, fetch_tree, resolve

if TYPE_CHECKING:
    from lock.indexes import Indexes

_CMAKE = re.compile(r"CMakeLists\.txt|(?:.*/)?CMakeLists\.txt|.*\.cmake")
_NAME = re.compile(r"(?!\.\.?$)[\w.-]+")
_TEXT_LIMIT = 4 << 20
_LIMITS = untar.Limits(entries=500_000, total=16 << 30, climbing=True)


@dataclass(frozen=True)
class SourceRequest:
    """What is wanted.

    Attributes:
        name, version: of the distribution.
        index: that has its sdist; "" for one from Git.
        repository, tag: of one from Git; the tag may be a revision, a tag or a branch.
        submodules: of its own that are wanted, for one from Git.
        stubs: names of pinned sources that an empty tree stands for: nothing of them is fetched.
        stubs_if_pinned: the same, but nothing is wrong if this version does not pin them.
        pins: name of a pinned source to the repository ("" for the pinned one) and tag that count instead.
        variables: what CMake would know when it configures: `VLLM_TARGET_DEVICE`.
        more: name, repository and tag of sources that its CMake files do not name.
    """

    name: str
    version: str
    index: str = ""
    repository: str = ""
    tag: str = ""
    submodules: tuple[str, ...] = ()
    stubs: frozenset[str] = frozenset()
    variables: Mapping[str, str] = field(default_factory=dict)
    stubs_if_pinned: frozenset[str] = frozenset()
    pins: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    more: tuple[tuple[str, str, str], ...] = ()


@dataclass(frozen=True)
class LockedTree:
    """A tree that CMake would fetch. `variable` is the one that gives CMake a directory instead."""

    name: str
    repository: str
    pinned: str
    revision: str
    tree: str
    size: int
    variable: str
    submodules: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Its entry in a lock (docs/vllm-from-source.md)."""
        return {**vars(self), "kind": "git", "submodules": {path: list(found) for path, found in
                                                            sorted(self.submodules.items())}}


@dataclass(frozen=True)
class LockedSource:
    """A package's source.

    Attributes:
        source: of an sdist `kind`, `file`, `size`, `sha256`, `index`; of Git `kind`, `repository`, `pinned`,
            `revision`, `tree`, `size`, `submodules`.
        trees: in the order in which CMake meets them.
        stubs: those pinned sources that an empty tree stands for, each with its variable as in `LockedTree`.
        digest, strip: of the archive in the store, and how many directories stand at the front of its paths.
    """

    name: str
    version: str
    source: Mapping[str, Any]
    trees: tuple[LockedTree, ...]
    stubs: Mapping[str, str] = field(default_factory=dict)
    digest: str = ""
    strip: int = 0

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "version": self.version, "source": dict(self.source),
                "trees": [tree.to_json() for tree in self.trees], "stubs": dict(sorted(self.stubs.items()))}


def lock_source(store: Store, request: SourceRequest, indexes: Indexes,
                mirrors: Mapping[str, Sequence[str]] | None = None, *, known: Collection[LockedTree] = (),
                log: Callable[[str], None] = lambda line: None) -> LockedSource:
    """Resolve and fetch everything that compiling the package reads.

    Args:
        mirrors: see `lock.git_tree.addresses`.
        known: trees of the lock before, the package's own among them: a tag that still is pinned there keeps its
            revision.

    Raises:
        FetchError: something cannot be had: all of it is named, with every address that was tried.
        LockError: the index has no such sdist; a tag or a submodule does not exist; a stub that nothing pins.
        InputError: a CMake file that cannot be read.
        IntegrityError: a file or a tree is not what was promised.
    """
    mirrors = mirrors or {}
    before = {(tree.repository, tree.pinned): tree for tree in known}
    source, digest, strip = _source(store, request, indexes, mirrors, before, log)
    texts = _texts(store, digest, f"{request.name} {request.version}", strip)
    named = pins(texts.get, request.variables, told=request.pins)
    named += [Pin(name, repository, tag, None, "", "") for name, repository, tag in request.more
              if name not in {pin.name for pin in named}]
    found = list(dict.fromkeys(replace(_moved(pin, request.pins), where="") for pin in named))
    _one_each(request, found)
    there = {pin.name for pin in found}
    unpinned = sorted((request.stubs | request.pins.keys()) - there)
    if unpinned:
        raise LockError(f"nothing pins {unpinned[0]}, which the target names under stubs or pins",
                        where=f"{request.name} {request.version}",
                        expected=", ".join(pin.name for pin in found) or "no pinned source at all",
                        cure="leave it out")
    stubs = request.stubs | (request.stubs_if_pinned & there - request.pins.keys())
    trees: list[LockedTree] = []
    missing: list[FetchError] = []
    for pin in found:
        if pin.name in stubs:
            continue
        try:
            trees.append(_tree(store, pin, mirrors, before.get((pin.repository, pin.tag)), log))
        except FetchError as error:
            missing.append(error)
    if missing:
        raise _away(request, missing)
    return LockedSource(request.name, request.version, source, tuple(trees),
                        {pin.name: pin.override for pin in found if pin.name in stubs}, digest, strip)


def _one_each(request: SourceRequest, found: Sequence[Pin]) -> None:
    """Refuse names that are no directory's, and two sources of one name: which of them CMake takes cannot be told."""
    where = f"{request.name} {request.version}"
    odd = next((pin.name for pin in found if not _NAME.fullmatch(pin.name)), None)
    if odd is not None:
        raise LockError("a pinned source has a name that no directory can have", where=where, found=repr(odd),
                        expected="letters, digits, - . _", cure="correct the CMake file, in a repository of your own")
    nowhere = next((pin.name for pin in found if not pin.repository), None)
    if nowhere is not None:
        raise LockError(f"where {nowhere} comes from cannot be told", where=where, expected="a repository, too",
                        cure=f"name it under sources.packages.{request.name}.pins of the target")
    for name in dict.fromkeys(pin.name for pin in found):
        several = [f"{pin.repository} {pin.tag}" for pin in found if pin.name == name]
        if len(several) > 1 and name not in request.stubs | request.stubs_if_pinned:
            raise LockError(f"{name} is pinned {len(several)} times, and which of them counts cannot be told",
                            where=where, found="\n".join(several),
                            cure=f"name repository and tag under sources.packages.{request.name}.pins of the target")


def _moved(pin: Pin, pins: Mapping[str, tuple[str, str]]) -> Pin:
    """A pin with what the target says instead."""
    repository, tag = pins.get(pin.name, ("", ""))
    return replace(pin, repository=repository or pin.repository, tag=tag) if tag else pin


def texts_of(store: Store, digest: str, strip: int, names: Collection[str] | None, where: str) -> dict[str, str]:
    """Some small files of a source by their paths, or all text files (`.txt`) for None; what is not there is left out.

    Raises:
        IntegrityError: the archive is malformed.
    """
    if names is None:
        return _texts(store, digest, where, strip, lambda path: path.endswith(".txt"))
    return _texts(store, digest, where, strip, frozenset(names).__contains__)


def _source(store: Store, request: SourceRequest, indexes: Indexes, mirrors: Mapping[str, Sequence[str]],
            before: Mapping[tuple[str, str], LockedTree],
            log: Callable[[str], None]) -> tuple[dict[str, Any], str, int]:
    """Its entry, the digest of the archive, and how many directories to strip."""
    if not request.index:
        kept = before.get((request.repository, request.tag))
        revision = kept.revision if kept else resolve(request.repository, request.tag, mirrors)
        tree = fetch_tree(store, request.repository, revision, mirrors=mirrors, submodules=request.submodules, log=log)
        return {"kind": "git", "repository": request.repository, "pinned": request.tag, "revision": revision,
                "tree": tree.digest, "size": tree.size, "submodules": _plain(tree)}, tree.digest, 0
    from lock.simple import Pages, WheelSource

    pages = Pages(indexes)
    project = "[-_.]+".join(re.escape(part) for part in re.split("[-_.]+", request.name))
    name = re.compile(rf"{project}-{re.escape(request.version)}\.tar\.gz", re.IGNORECASE)
    offered = pages.files(request.index, request.name)
    file = next((file for file in offered if name.fullmatch(file.file)), None)
    if file is None:
        raise LockError(f"index {request.index} has no sdist of {request.name} {request.version}",
                        expected=f"{request.name}-{request.version}.tar.gz",
                        found=", ".join([one.file for one in offered if one.file.endswith(".gz")][-12:]) or "no sdist",
                        cure="take a version that has one, or its Git repository")
    if not file.sha256:
        raise LockError(f"index {request.index} gives no hash of {file.file}", cure="take an index that gives hashes")
    wanted = Wanted("sdist", request.name, request.version, file.file, file.size, file.sha256, request.index)
    log(f"{file.file}")
    fetch(store, [wanted], {"sdist": WheelSource(indexes, pages)})
    size = store.path_of(wanted.digest).stat().st_size
    return {"kind": "sdist", "file": file.file, "size": size, "sha256": file.sha256,
            "index": request.index}, wanted.digest, 1


def _cmake(path: str) -> bool:
    return _CMAKE.fullmatch(path) is not None


def _texts(store: Store, digest: str, where: str, strip: int,
           wanted: Callable[[str], bool] = _cmake) -> dict[str, str]:
    """Files of an archive by their paths: its CMake files, if nothing else is wanted."""
    found: dict[str, str] = {}
    with store.open_blob(digest) as file:
        for entry in untar.entries(file, where=where, limits=_LIMITS):
            path = "/".join(entry.path.split("/")[strip:])
            if entry.type == "file" and wanted(path) and entry.size <= _TEXT_LIMIT:
                found[path] = entry.read(_TEXT_LIMIT).decode("utf-8", "replace")
    return found


def _tree(store: Store, pin: Pin, mirrors: Mapping[str, Sequence[str]], before: LockedTree | None,
          log: Callable[[str], None]) -> LockedTree:
    """Fetch what a pin names; with `before`, the revision that was locked for it."""
    kept = before is not None and not REVISION.fullmatch(pin.tag)
    revision = before.revision if before is not None and kept else resolve(pin.repository, pin.tag, mirrors)
    tree = fetch_tree(store, pin.repository, revision, mirrors=mirrors, submodules=pin.submodules, log=log)
    same = before is not None and (before.revision, {*before.submodules}) == (revision, {*tree.submodules})
    if before is not None and same and before.tree != tree.digest:
        raise IntegrityError("a source holds other files than were locked", where=f"{pin.repository} at {revision}",
                             expected=before.tree, found=tree.digest,
                             cure="a revision cannot change: was the lock edited?")
    return LockedTree(pin.name, pin.repository, pin.tag, revision, tree.digest, tree.size, pin.override, _plain(tree))


def _plain(tree: Tree) -> dict[str, tuple[str, str]]:
    return {path: tree.submodules[path] for path in sorted(tree.submodules)}


def _away(request: SourceRequest, missing: Sequence[StagecraftError]) -> FetchError:
    """One error for all that cannot be had."""
    said = [f"{error.where}: {line}" for error in missing for line in (error.found or error.message).splitlines()]
    return FetchError(f"{len(missing)} of the sources of {request.name} {request.version} cannot be had",
                      where=", ".join(dict.fromkeys(str(error.where) for error in missing)), found="\n".join(said),
                      cure="name a copy of each under sources.mirrors of the target, or, if the device needs no code "
                           f"of it, name it under sources.packages.{request.name}.stubs; nothing was locked")
