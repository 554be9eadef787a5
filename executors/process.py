"""What an executor is given and gives back: `Process`, `Limits`, `Outcome`. Data only; nothing is run here."""

from __future__ import annotations

import os
import re
import signal
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from cache.errors import StageError
from executors.jobs import Job

#: What every command sees beside what its process names.
ENVIRONMENT: Mapping[str, str] = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/tmp/home",  # noqa: S108
    "TMPDIR": "/tmp", "LANG": "C.UTF-8", "TZ": "UTC", "USER": "stagecraft", "LOGNAME": "stagecraft",  # noqa: S108
}
HOSTNAME = "stagecraft"
USER = 1000
#: Whom root of this machine becomes before it runs anything; as in `namespace.py`.
NOBODY = 65534
#: Directories that every root has for what is mounted there.
PLACES = ("build", "dev", "inputs", "proc", "tmp")

_NAME = re.compile(r"[\w.+-]+")


@dataclass(frozen=True)
class Limits:
    """What a command may use; None: as much as there is.

    Attributes:
        memory: bytes of all its processes together.
        cpus: number of CPUs.
        seconds: wall time.
        pids: number of processes and threads.
    """

    memory: int | None = None
    cpus: int | None = None
    seconds: float | None = None
    pids: int | None = None

    def __post_init__(self) -> None:
        if any(value is not None and value <= 0 for value in vars(self).values()):
            raise ValueError(f"a limit of nothing: {self}")


@dataclass(frozen=True)
class Process:
    """One command in a root.

    Attributes:
        layers: digests of tars in the store, lowest first, plain or compressed.
        command: program and arguments; the program by its path in the root, or by a name on its PATH.
        machine: that the layers are for, as `uname -m` says it.
        environment: beside `ENVIRONMENT`, and before it.
        inputs: name to a file or directory of this machine, seen read-only as `/inputs/<name>`.
        kept: name to a directory of this machine that it may write, seen as `/tmp/<name>`: what outlives the run.
        outputs: paths of files below `/build` that are wanted.
    """

    layers: tuple[str, ...]
    command: tuple[str, ...]
    machine: str
    environment: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[str, Path] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    outputs: tuple[str, ...] = ()
    kept: Mapping[str, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.layers or not self.command:
            raise ValueError("a process needs layers and a command")
        for name in (*self.inputs, *self.kept):
            if not _NAME.fullmatch(name) or name in (".", ".."):
                raise ValueError(f"not a plain name: {name!r}")
        for name in self.outputs:
            if any(part in ("", ".", "..") for part in name.split("/")):
                raise ValueError(f"not a path below /build: {name!r}")

    def variables(self) -> dict[str, str]:
        """The whole environment of the command."""
        return {**ENVIRONMENT, **self.environment}


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Attributes:
        exit: its exit code; 128 + number for a signal; None if the executor ended it.
        reason: in words: `exit 3`, `killed by SIGSEGV`, `out of memory (limit 4 GiB)`, `time limit (60 s)` …
        how: what was done to run it so, in words.
        last: the last line that it wrote.
        whole: False where child processes could not run (an emulator without registration).
        killed: where memory ran out or one of its processes was killed: the large ones that ran then, largest first.
        kernel_kills: processes of this machine that the kernel killed for memory while it ran.
        outputs: of the outputs that were asked for, those that it wrote: path below `/build` to the file.
    """

    exit: int | None
    reason: str
    seconds: float
    how: tuple[str, ...] = ()
    outputs: Mapping[str, Path] = field(default_factory=dict)
    last: str = ""
    whole: bool = True
    killed: tuple[Job, ...] = ()
    kernel_kills: int = 0

    @property
    def ok(self) -> bool:
        return self.exit == 0


class Executor(Protocol):
    """Runs processes. `scratch` is an empty directory that the caller owns; `/build` is `scratch/build` afterwards."""

    def run(self, process: Process, scratch: Path, *, log: Callable[[str], None] = ...,
            check: Callable[[], None] = ...) -> Outcome:
        """Run it to its end.

        Args:
            log: takes each line of standard output and error, as it comes.
            check: called several times a second; what it raises ends the run, after all processes are gone.

        Raises:
            ToolError: this machine cannot run it; says what is missing.
            StageError: an output is no plain file.
        """


def reason_of(status: int) -> str:
    """An exit status in words. 128 + n is taken for signal n, as shells and bubblewrap report it."""
    if 128 < status < 128 + signal.NSIG:
        try:
            return f"killed by {signal.Signals(status - 128).name}"
        except ValueError:
            pass
    return f"exit {status}"


def size_text(size: int) -> str:
    """Bytes as a limit is written: `4 GiB`, `512 MiB`."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= unit and size * 10 % unit == 0:
            return f"{size / unit:g} {name}"
    return f"{size} bytes"


def collect(process: Process, work: Path) -> dict[str, Path]:
    """The outputs that are there. What a command leaves is not trusted: no link is followed.

    Raises:
        StageError: an output, or a directory on the way to it, is something else than that.
    """
    found = {}
    for name in process.outputs:
        path, parts = work, name.split("/")
        for number, part in enumerate(parts, start=1):
            path = path / part
            try:
                mode = os.lstat(path).st_mode
            except FileNotFoundError:
                break
            last = number == len(parts)
            if not (stat.S_ISREG(mode) if last else stat.S_ISDIR(mode)):
                raise StageError("an output is no plain file", where=f"/build/{name}", found=stat.filemode(mode))
            if last:
                found[name] = path
    return found
