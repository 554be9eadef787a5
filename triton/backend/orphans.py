"""An end with the server. Where it goes without a word (killed, or its exit timeout is over while a model loads or
answers), this process and all below it go too: nobody else would end them, and they hold the device's memory.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time

_EVERY = 1.0  # seconds


def watch() -> None:
    """From now on, in a thread of its own."""
    threading.Thread(target=_watch, args=(os.getppid(),), name="orphans", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_EVERY)
    for pid in below(os.getpid()):
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    os._exit(1)


def below(pid: int) -> list[int]:
    """Processes below one, itself left out, nearest first."""
    parents: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{name}/stat") as file:
                parents[int(name)] = int(file.read().rpartition(")")[2].split()[1])
    found: list[int] = []
    wave = [pid]
    while wave:
        wave = [child for child, parent in parents.items() if parent in wave]
        found += wave
    return found
