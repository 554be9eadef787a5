"""Holding a process tree to its limits: by a cgroup where one can be made, else by counting its processes.

Either also looks four times a second which processes are large (`executors.jobs`), to name them when memory runs out.
A cgroup is version 2 (https://docs.kernel.org/admin-guide/cgroup-v2.html): below ours, or beside it where ours is a
leaf. Counting reads `/proc`: it costs a few milliseconds four times a second, and a tree may go over its limit for
that long.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from executors.jobs import Jobs
from executors.process import Limits, size_text

_INTERVAL = 0.25


@dataclass(frozen=True)
class Exceeded:
    """A limit that was reached, in words."""

    reason: str


class _Looking:
    """Looks at the tree now and then; the part that a cgroup and counting share."""

    def __init__(self, limits: Limits, proc: Path) -> None:
        self._limits, self._next = limits, 0.0
        self.jobs = Jobs(proc)

    def _look(self, pid: int) -> tuple[int, int] | None:
        """Bytes and processes of the tree; None if it was looked at a moment ago."""
        if time.monotonic() < self._next:
            return None
        found = self.jobs.look(pid)
        self._next = time.monotonic() + _INTERVAL
        return found


def memory_reason(limits: Limits) -> Exceeded:
    return Exceeded(f"out of memory (limit {size_text(limits.memory or 0)})")


def pids_reason(limits: Limits) -> Exceeded:
    return Exceeded(f"too many processes (limit {limits.pids})")


class Counted(_Looking):
    """Counts the tree below a process. `how` says what it does."""

    path: str | None = None

    def __init__(self, limits: Limits, proc: Path = Path("/proc")) -> None:
        super().__init__(limits, proc)
        self.how = "memory and processes limited by counting" if limits.memory or limits.pids else ""

    def poll(self, pid: int) -> Exceeded | None:
        """The limit that the tree below `pid` is over."""
        found = self._look(pid) if self.how else None
        if found is None:
            return None
        memory, pids = found
        if self._limits.memory and memory > self._limits.memory:
            return memory_reason(self._limits)
        if self._limits.pids and pids > self._limits.pids:
            return pids_reason(self._limits)
        return None

    def ended(self) -> Exceeded | None:
        return None

    def kill(self) -> None:
        """Nothing: the namespace ends with its first process."""

    def close(self) -> None:
        """Nothing was made."""


class Cgroup(_Looking):
    """A cgroup of our own. The kernel holds the tree to its limits; `ended` tells whether it had to."""

    def __init__(self, path: Path, limits: Limits, proc: Path = Path("/proc")) -> None:
        super().__init__(limits, proc)
        self._path = path
        self.path: str | None = str(path)
        self.how = "memory and processes limited by a cgroup"

    def poll(self, pid: int) -> Exceeded | None:
        over = self.ended()
        if over is None:
            self._look(pid)
        return over

    def ended(self) -> Exceeded | None:
        """The limit at which the kernel stopped it, or refused it another process."""
        if _event(self._path / "memory.events", "oom_kill"):
            return memory_reason(self._limits)
        if _event(self._path / "pids.events", "max"):
            return pids_reason(self._limits)
        return None

    def kill(self) -> None:
        """End everything in it (Linux 5.14)."""
        with contextlib.suppress(OSError):
            (self._path / "cgroup.kill").write_text("1")

    def close(self) -> None:
        """Remove it; the last process may take a moment to go."""
        for _ in range(50):
            try:
                os.rmdir(self._path)
                return
            except FileNotFoundError:
                return
            except OSError:
                time.sleep(0.02)


def holder(limits: Limits, name: str, *, root: Path = Path("/sys/fs/cgroup"),
           membership: Path = Path("/proc/self/cgroup")) -> Counted | Cgroup:
    """What will hold a tree to its limits.

    Args:
        name: of the cgroup, if one can be made.
    """
    if limits.memory or limits.pids:
        for base in _candidates(root, membership):
            made = _cgroup(base / name, limits)
            if made is not None:
                return made
    return Counted(limits)


def _candidates(root: Path, membership: Path) -> list[Path]:
    """Our own cgroup, then its parent: a cgroup that has processes may not hand controllers down."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return []
    own = next((line[3:].lstrip("/") for line in lines if line.startswith("0::")), None)
    if own is None or not (root / "cgroup.controllers").exists():
        return []
    place = root / own
    return [place] if place == root else [place, place.parent]


def _cgroup(path: Path, limits: Limits) -> Cgroup | None:
    try:
        wanted = ["memory"] * bool(limits.memory) + ["pids"] * bool(limits.pids)
        given = (path.parent / "cgroup.subtree_control").read_text().split()
        for controller in wanted:
            if controller not in given:
                (path.parent / "cgroup.subtree_control").write_text(f"+{controller}")
        path.mkdir()
    except OSError:
        return None
    try:
        if limits.memory:
            (path / "memory.max").write_text(str(limits.memory))
            (path / "memory.oom.group").write_text("1")
            with contextlib.suppress(FileNotFoundError):
                (path / "memory.swap.max").write_text("0")
        if limits.pids:
            (path / "pids.max").write_text(str(limits.pids))
        # Whoever moves a process needs to write the procs of the common ancestor.
        if not os.access(path.parent / "cgroup.procs", os.W_OK):
            raise PermissionError
    except OSError:
        with contextlib.suppress(OSError):
            path.rmdir()
        return None
    return Cgroup(path, limits)


def _event(path: Path, name: str) -> int:
    try:
        found: Mapping[str, str] = dict(line.split(" ", 1) for line in path.read_text().splitlines())
    except (OSError, ValueError):
        return 0
    return int(found.get(name, "0"))
