"""`lock` of one set of wheels: what was locked before is kept where it still satisfies, unless it is to move."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from cache.errors import LockError, StagecraftError
from stages.lockfile import LockedFile
from stages.wheel_hints import hinted

if TYPE_CHECKING:
    from lock.wheels import WheelRequest

Wheels = tuple[LockedFile, ...]


def locked_wheels(root: Path, request: WheelRequest, before: Iterable[LockedFile], upgrade: bool | Collection[str],
                  exclude_newer: str, where: str, log: Callable[[str], None]) -> tuple[Wheels, Wheels]:
    """The wheels of a request, and those that it takes alone.

    Args:
        root: the project.
        before: of the lock that there was.
        upgrade: True moves all of them, names those of them that are there.
        where: what an error names if it says nothing better.

    Raises:
        LockError, FetchError, InputError, ToolError: as `lock.wheels.lock_wheels`.
    """
    from lock.indexes import load_indexes
    from lock.wheels import LockedWheel, lock_wheels

    previous = [LockedWheel(w.name, w.version, w.file, w.size, w.sha256, w.index) for w in before]
    moving = upgrade if isinstance(upgrade, bool) else {*upgrade} & {one.name for one in previous}
    try:
        found = lock_wheels(request, load_indexes(root / "targets" / "indexes.yaml"), previous=previous, upgrade=moving,
                            exclude_newer=exclude_newer or None, log=log)
    except StagecraftError as error:
        error.where = error.where or where
        if isinstance(error, LockError):
            hinted(error, (*request.overrides, *request.requirements), request.machine)
        raise
    wheels, alone = (tuple(LockedFile(w.name, w.version, w.file, w.size, w.sha256, w.index) for w in part)
                     for part in (found.wheels, found.alone))
    return wheels, alone
