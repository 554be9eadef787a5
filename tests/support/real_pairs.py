"""Candidate locks of real wheels: thor's lock with another vLLM and torch, as the index `default` has them."""

from __future__ import annotations

from dataclasses import replace

from lock.indexes import load_indexes
from lock.simple import Pages, WheelSource
from lock.sources import Wanted
from lock.tags import rank, supported, version_of
from lock.wheels import size_of
from stages.lockfile import Lock, LockedFile
from stages.project import Project
from tests.support.front import HERE


def locked(pages: Pages, name: str, version: str, python: str = "3.11", machine: str = "aarch64",
           glibc: str = "2.36") -> LockedFile:
    """The wheel that fits best of a version on the index `default`."""
    indexes = load_indexes(HERE / "targets" / "indexes.yaml")
    ranks = supported(python, machine, glibc)
    fitting = [item for item in pages.files("default", name)
               if str(version_of(item.file)) == version and rank(item.file, ranks) is not None]
    best = min(fitting, key=lambda item: (rank(item.file, ranks), item.file))
    wanted = Wanted("wheel", name, version, best.file, 0, best.sha256, "default")
    size = best.size or size_of(WheelSource(indexes, pages).locate(wanted), pages.session())
    return LockedFile(name, version, best.file, size, best.sha256, "default")


def candidate(pages: Pages, **versions: str) -> Lock:
    """thor's lock with only these wheels, each of that version."""
    lock = Project(HERE).lock("thor")
    return replace(lock, wheels=tuple(locked(pages, name, version) for name, version in sorted(versions.items())))
