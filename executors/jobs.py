"""Which processes of a tree are large, and what they work on: to name who was killed for memory, and who ran beside it.

Read from `/proc`, some milliseconds a look. A killed process can no longer be asked, so the looks before are kept.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

#: Bytes from which a process is told of, and how many are.
_LARGE, _MOST = 32 << 20, 8
#: What tools say when one of their processes was killed: shells, gcc's driver, nvcc, ninja and Python. Every line of a
#: build is searched: each alternative begins with a letter, by which `re` finds its places fast.
KILLED = re.compile(r"Killed\b|Kill signal\b|SIGKILL\b|signal 9\b")
_SOURCE = re.compile(r".+\.(?:cu|cc|cpp|cxx|c|f90|f|rs|s|S)")
#: Files that compilers make for themselves.
_MADE = re.compile(r"tmpxft_|\.cudafe1\.|\.stub\.c|/cc\w{6}\.s")
#: Options whose value is no source.
_OUTPUTS = frozenset({"-o", "-MF", "-MT", "-MQ", "-dumpbase", "-auxbase", "--output-file"})


@dataclass(frozen=True)
class Job:
    """One process: its program, the source file that it works on (or ""), its private bytes."""

    program: str
    source: str
    memory: int

    def __str__(self) -> str:
        size = f"{self.memory / (1 << 30):.1f} GiB" if self.memory >= 1 << 30 else f"{self.memory >> 20} MiB"
        return f"{self.program} {self.source} ({size})" if self.source else f"{self.program} ({size})"


class Jobs:
    """The tree below a process, look by look.

    Attributes:
        running: its large processes as they were seen last, largest first.
        killed: the same when one of them was killed; empty if none was.
        kernel_kills: processes of this machine that the kernel killed for memory since the first look.
    """

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._seen: dict[int, Job] = {}
        self._before: dict[int, Job] = {}
        self._kills = -1
        self.kernel_kills = 0
        self.killed: tuple[Job, ...] = ()

    @property
    def running(self) -> tuple[Job, ...]:
        return _largest(self._seen)

    def look(self, pid: int) -> tuple[int, int]:
        """Private bytes and number of threads of the processes below `pid`, itself left out."""
        kills = _kernel_kills(self._proc)
        self._kills = kills if self._kills < 0 else self._kills
        if kills - self._kills > self.kernel_kills:
            self.kernel_kills = kills - self._kills
            self.note_killed()  # by what was seen before: who was killed is gone
        found = tree(pid, self._proc)
        large = {one: process for one, process in found.items() if process.memory >= _LARGE}
        self._before = self._seen
        self._seen = {one: Job(*self._work(one, found), process.memory) for one, process in large.items()}
        return sum(process.memory for process in found.values()), sum(process.threads for process in found.values())

    def note_killed(self) -> None:
        """One was killed a moment ago: keep who ran then, in the last two looks."""
        if not self.killed:
            self.killed = _largest(self._before | self._seen)

    def _work(self, pid: int, found: Mapping[int, Process]) -> tuple[str, str]:
        """Program and source file; a source that none of its arguments names is that of who started it."""
        words = _words(pid, self._proc)
        program, source, above = os.path.basename(words[0]) if words else "?", _source(words), pid
        while not source and above in found:
            above = found[above].parent
            source = _source(_words(above, self._proc)) if above in found else ""
        return program, source.removeprefix("/build/")


@dataclass(frozen=True)
class Process:
    """What `/proc` says of one process: its parent, number of threads, private bytes."""

    parent: int
    threads: int
    memory: int


def tree(pid: int, proc: Path = Path("/proc")) -> dict[int, Process]:
    """The processes below `pid`, itself left out."""
    children: dict[int, list[int]] = {}
    threads: dict[int, int] = {}
    for name in os.listdir(proc):
        if name.isdigit():
            try:
                fields = (proc / name / "stat").read_bytes().rpartition(b")")[2].split()
            except OSError:
                continue
            children.setdefault(int(fields[1]), []).append(int(name))
            threads[int(name)] = int(fields[17])
    found: dict[int, Process] = {}
    waiting = [(pid, child) for child in children.get(pid, ())]
    page = os.sysconf("SC_PAGE_SIZE")
    while waiting:
        parent, one = waiting.pop()
        waiting += [(one, child) for child in children.get(one, ())]
        memory = 0
        with contextlib.suppress(OSError, ValueError):
            resident, shared = (proc / str(one) / "statm").read_text().split()[1:3]
            memory = (int(resident) - int(shared)) * page
        found[one] = Process(parent, threads[one], memory)
    return found


def _largest(jobs: Mapping[int, Job]) -> tuple[Job, ...]:
    return tuple(sorted(jobs.values(), key=lambda job: (-job.memory, job.program, job.source))[:_MOST])


def _words(pid: int, proc: Path) -> list[str]:
    """Program and arguments; those of an emulated program stand behind the emulator's."""
    try:
        data = (proc / str(pid) / "cmdline").read_bytes()
    except OSError:
        return []
    words = data.decode("utf-8", "replace").rstrip("\0").split("\0")
    return words[1:] if len(words) > 1 and os.path.basename(words[0]).startswith(("emulator", "qemu-")) else words


def _source(words: list[str]) -> str:
    """The source file that arguments name."""
    for before, word in itertools.pairwise(words):
        if before not in _OUTPUTS and not word.startswith("-") and _SOURCE.fullmatch(word) and not _MADE.search(word):
            return word
    return ""


def _kernel_kills(proc: Path) -> int:
    """How many processes this machine's kernel has killed for memory (Linux 4.13); 0 if it does not say."""
    try:
        text = (proc / "vmstat").read_text(encoding="ascii")
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("oom_kill ")), 0)
