"""An end with the server: `python orphans.py SERVER STUB` waits, then kills what is left of the stub and all below it.

Where the server goes without a word (killed, or its exit timeout is over while a model loads or answers), nobody would
end the stub and the engine, which hold the device's memory; where the stub is killed, nobody would end the engine. It
is a process of its own, for the stub may hang with the interpreter's lock held when its server is gone. Standard
library only.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time

#: Seconds between two looks at the two, and between two at all that runs.
_EVERY, _ALL = 0.5, 5.0


def watch() -> None:
    """Start it for this process, the stub, and its parent, the server."""
    # The interpreter that Triton embeds need not know its own program.
    program = sys.executable or shutil.which("python3")
    if program:
        subprocess.Popen([program, "-I", "-S", __file__, str(os.getppid()), str(os.getpid())],
                         stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def process(pid: int) -> tuple[int, str] | None:
    """Its parent, and the time of its start, which tells it from another of the same number later; None: it is gone."""
    with contextlib.suppress(OSError, IndexError), open(f"/proc/{pid}/stat", errors="replace") as file:
        fields = file.read().rpartition(")")[2].split()
        if fields[0] not in "ZX":
            return int(fields[1]), fields[19]
    return None


def below(pid: int) -> dict[int, str]:
    """Processes below one, and when they started."""
    tree = {int(name): process(int(name)) for name in os.listdir("/proc") if name.isdigit()}
    found: dict[int, str] = {}
    wave = {pid}
    while wave:
        wave = {child for child, known in tree.items() if known and known[0] in wave and child not in found}
        found |= {child: known[1] for child in wave if (known := tree[child])}
    return found


def main(server: int, stub: int) -> None:
    watched = {pid: process(pid) for pid in (server, stub)}
    known: dict[int, str] = {}
    looked = 0.0
    while all(watched.values()) and all(_started(pid) == was[1] for pid, was in watched.items() if was):
        if time.monotonic() >= looked + _ALL:
            known, looked = known | below(stub), time.monotonic()
        time.sleep(_EVERY)
    known |= below(stub)
    if was := watched[stub]:
        known[stub] = was[1]
    for pid, started in known.items():
        if pid != os.getpid() and _started(pid) == started:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)


def _started(pid: int) -> str:
    found = process(pid)
    return found[1] if found else ""


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
