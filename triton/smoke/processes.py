"""Processes of the container, out of /proc."""

from __future__ import annotations

import contextlib
import os


def parents() -> dict[int, int]:
    """Process to its parent, without those that only wait to be noticed."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{name}/stat") as file:
                state, parent = file.read().rpartition(")")[2].split()[:2]
                if state not in "ZX":
                    found[int(name)] = int(parent)
    return found


def below(pid: int) -> list[int]:
    """Processes below one, itself left out, nearest first."""
    tree, found, wave = parents(), [], [pid]
    while wave:
        wave = [child for child, parent in tree.items() if parent in wave]
        found += wave
    return found


def command_of(pid: int) -> str:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read().replace(b"\0", b" ").decode("utf-8", "replace").strip() or f"process {pid}"
    return f"process {pid}"


def engine_of(pid: int) -> int | None:
    """The engine's process: what vLLM or the stand-in calls so, else the first that Python spawned below the server."""
    candidates = [(one, command_of(one)) for one in below(pid)]
    for sign in ("EngineCore", "spawn_main", "sys.stdin.read()"):
        for one, command in candidates:
            if sign in command:
                return one
    return None


def others() -> list[int]:
    """Processes that are neither we, nor above us, nor the first of this container."""
    tree, above, one = parents(), {1}, os.getpid()
    while one in tree:
        above.add(one)
        one = tree[one]
    return [pid for pid in tree if pid not in above]
