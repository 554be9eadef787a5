"""Executor `sandbox`: bubblewrap around a root that is joined in a user and mount namespace of its own.

No daemon, no root, nothing left behind: all mounts go with the last process. What a command sees is in
docs/executors.md. It writes into `scratch` only, and unpacks layers into the store.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import selectors
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cache.errors import ToolError
from cache.store import Store
from executors import emulator as emulation
from executors import limits, probe, terminal, trees
from executors.emulator import Emulator
from executors.jobs import KILLED, Job
from executors.process import HOSTNAME, NOBODY, USER, Limits, Outcome, Process, collect, reason_of

_TICK = 0.1
_PATIENCE = 20  # seconds that a killed tree may take to go
_LINE = 64 << 10  # a longer line is cut into several
_INSIDE = "/inputs/emulator"


@dataclass(frozen=True)
class Sandbox:
    """Runs processes on this machine.

    Attributes:
        emulator: for layers of a foreign machine.
        registration: how the emulator is made known to the kernel: `own`, `host` or `none`; by default the first of
            these that works.
        overlay: False joins layers by merged trees even where an overlay works.
    """

    store: Store
    emulator: Emulator | None = None
    registration: str = ""
    overlay: bool = True

    def abilities(self) -> probe.Abilities:
        """What this machine lets it do.

        Raises:
            ToolError: no sandbox works here; with what is missing and the cure.
        """
        return probe.require(str(self.store.directory("tmp")))

    def run(self, process: Process, scratch: Path, *, log: Callable[[str], None] = lambda line: None,
            check: Callable[[], None] = lambda: None) -> Outcome:
        """See `executors.process.Executor`."""
        holder = limits.holder(process.limits, f"stagecraft-{os.getpid()}-{os.urandom(4).hex()}")
        try:
            return self._run(process, scratch, holder, log, check)
        except ToolError as error:
            if error.where != "cgroup":
                raise
        # One could be made, but this process may not move there.
        return self._run(process, scratch, limits.Counted(process.limits), log, check)

    def _run(self, process: Process, scratch: Path, holder: limits.Counted | limits.Cgroup,
             log: Callable[[str], None], check: Callable[[], None]) -> Outcome:
        with contextlib.closing(holder), self._held(scratch), \
                self._prepared(process, scratch, log, check) as prepared:
            how = [*prepared.how, *([holder.how] if holder.how else [])]
            if process.limits.cpus:
                how.append(f"{process.limits.cpus} CPUs by affinity")
            work = prepared.work | {"cgroup": holder.path, "cpus": process.limits.cpus, "pids": process.limits.pids}
            started = time.monotonic()
            told, teller = os.pipe()
            try:
                work["command"][1:1] = ["--info-fd", str(teller)]
                running, answers = probe.launch(work, teller, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                                stderr=subprocess.STDOUT, start_new_session=True)
            except BaseException:
                os.close(told)
                raise
            finally:
                os.close(teller)
            watch = _Watch(running, answers, told, holder, process.limits, log, check)
            try:
                status, stopped = watch.wait()
            finally:
                watch.end()
            reason = stopped or _exit_reason(status, watch.last)
            return Outcome(None if stopped else status, reason, time.monotonic() - started, tuple(how),
                           collect(process, scratch / "build"), watch.last, prepared.whole,
                           watch.killed(), holder.jobs.kernel_kills)

    def shell(self, process: Process, scratch: Path, log: Callable[[str], None] = lambda line: None) -> int:
        """Run it on this terminal; its exit code. No limit holds."""
        with self._held(scratch), \
                self._prepared(process, scratch, log, lambda: None, interactive=True) as prepared:
            filtered = terminal.filter_file(os.uname().machine)
            try:
                if filtered >= 0:
                    prepared.work["command"][1:1] = ["--seccomp", str(filtered)]
                running, answers = probe.launch(prepared.work | {"terminal": os.isatty(0)},
                                                *([filtered] if filtered >= 0 else []))
            finally:
                if filtered >= 0:
                    os.close(filtered)
            try:
                failure = probe.said(answers)
                status = running.wait()
            finally:
                running.kill()
                running.wait()
                if os.isatty(0):  # it is ours again; a process in the background must block this signal to say so
                    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTTOU])
                    os.tcsetpgrp(0, os.getpgrp())
            if failure is not None:
                raise _failed(failure)
            return status

    @contextlib.contextmanager
    def _held(self, scratch: Path) -> Iterator[None]:
        """Lock the directory of the store's `tmp` that `scratch` is in: gc leaves it alone, however long we run."""
        temporary = self.store.directory("tmp")
        if not scratch.is_relative_to(temporary):
            yield
            return
        scratch.mkdir(parents=True, exist_ok=True)
        fd = os.open(temporary / scratch.relative_to(temporary).parts[0], os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(fd, fcntl.LOCK_SH)
            yield
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def _prepared(self, process: Process, scratch: Path, log: Callable[[str], None], check: Callable[[], None], *,
                  interactive: bool = False) -> Iterator[_Prepared]:
        able = self.abilities()
        for name in ("build", "tmp/home", "place", "lower"):
            (scratch / name).mkdir(parents=True, exist_ok=True)
        if os.geteuid() == 0:
            _give_away(scratch / "build", scratch / "tmp")
        how: list[str] = []
        work, parts = self._root(process, scratch, able, how, log, check)
        binds = work["binds"] | {"build": str(scratch / "build"), "tmp": str(scratch / "tmp")}
        inputs, command = dict(process.inputs), list(process.command)
        registration = ""
        with contextlib.ExitStack() as stack:
            if process.machine != os.uname().machine:
                registration = self._registration(process, able)
                assert self.emulator is not None  # noqa: S101 - _registration has seen it
                how.append(_REGISTERED[registration].format(self.emulator.version))
                if registration == "own":
                    binds["emulator"] = str(self.emulator.path)
                    inside = replace(self.emulator, path=Path("/tmp/emulator"))  # noqa: S108
                    work["binfmt"] = {"line": emulation.line("stagecraft", inside)}
                elif registration == "host":
                    stack.enter_context(emulation.registered(self.emulator))
                else:
                    inputs["emulator"] = self.emulator.path
                    command = [_INSIDE, "-0", command[0], _program(parts, process), *command[1:]]
            binds |= {f"inputs/{name}": str(path) for name, path in inputs.items()}
            binds |= {f"kept/{name}": str(path) for name, path in process.kept.items()}
            wrapped = _bubblewrap(able.bubblewrap, sorted(inputs), process, command, interactive)
            work |= {"place": str(scratch / "place"), "binds": binds, "command": wrapped}
            yield _Prepared(work, tuple(how), registration != "none")

    def _root(self, process: Process, scratch: Path, able: probe.Abilities, how: list[str],
              log: Callable[[str], None], check: Callable[[], None]) -> tuple[dict[str, Any], list[trees.Tree]]:
        """What joins the layers, and their trees."""
        parts = [trees.places(self.store)]
        parts += [trees.layer(self.store, digest, log, check) for digest in process.layers]
        if self.overlay and able.overlay and not any(tree.hides for tree in parts):
            # By short relative names: the options of a mount fit into a page.
            for number, tree in enumerate(parts):
                link = scratch / "lower" / str(number)
                link.unlink(missing_ok=True)
                link.symlink_to(tree.root)
            names = ":".join(str(number) for number in reversed(range(len(parts))))
            how.append("root joined by an overlay")
            return {"binds": {}, "overlay": {"in": str(scratch / "lower"), "lower": names}}, parts
        how.append("root merged into one tree")
        tree = trees.merged(self.store, parts, process.layers, log, check)
        return {"binds": {"root": str(tree.root)}}, [tree]

    def _registration(self, process: Process, able: probe.Abilities) -> str:
        if self.emulator is None or self.emulator.machine != process.machine:
            raise ToolError(f"no emulator that runs {process.machine} programs on {os.uname().machine}",
                            cure="./doit lock:<target> --only emulator")
        return self.registration or (
            "own" if able.binfmt else "host" if emulation.host_registers() else "none")


_REGISTERED = {
    "own": "emulator {} registered in the own namespace",
    "host": "emulator {} registered with the host for the time of the run",
    "none": "emulator {} without registration: child processes cannot run",
}


@dataclass(frozen=True)
class _Prepared:
    work: dict[str, Any]
    how: tuple[str, ...]
    whole: bool


def _give_away(*directories: Path) -> None:
    """To the user that root becomes in the sandbox."""
    for directory in directories:
        for top, below, files in os.walk(directory):
            for name in (".", *below, *files):
                os.chown(f"{top}/{name}", NOBODY, NOBODY, follow_symlinks=False)


def _bubblewrap(program: str, inputs: Sequence[str], process: Process, command: Sequence[str],
                interactive: bool) -> list[str]:
    """The command line; what is not on it the command does not have. Sources are where `namespace.py` gathers them."""
    line = [program, "--unshare-user", "--uid", str(USER), "--gid", str(USER), "--unshare-ipc", "--unshare-pid",
            "--unshare-net", "--unshare-uts", "--unshare-cgroup-try", "--hostname", HOSTNAME, "--die-with-parent",
            "--ro-bind", "/tmp/root", "/", "--proc", "/proc", "--dev", "/dev", "--bind", "/tmp/tmp", "/tmp",  # noqa: S108
            "--bind", "/tmp/build", "/build", "--tmpfs", "/inputs"]  # noqa: S108
    for name in inputs:
        line += ["--ro-bind", f"/tmp/inputs/{name}", f"/inputs/{name}"]  # noqa: S108
    for name in sorted(process.kept):
        line += ["--bind", f"/tmp/kept/{name}", f"/tmp/{name}"]  # noqa: S108
    line += ["--remount-ro", "/inputs", "--chdir", "/build", "--clearenv"]
    for name, value in sorted(process.variables().items()):
        line += ["--setenv", name, value]
    if interactive:
        line += ["--setenv", "TERM", os.environ.get("TERM", "dumb")]
    else:
        line += ["--new-session"]
    return [*line, "--", *command]


def _program(parts: Sequence[trees.Tree], process: Process) -> str:
    """The path in the root of the program that a command names: the emulator searches no PATH."""
    name = process.command[0]
    if "/" in name:
        return name
    for directory in process.variables()["PATH"].split(":"):
        if any(os.path.lexists(f"{tree.root}/{directory}/{name}") for tree in parts):
            return f"{directory}/{name}"
    return name


class _Watch:
    """A run, until it ends or is ended."""

    def __init__(self, running: subprocess.Popen[bytes], answers: socket.socket, told: int,
                 holder: limits.Counted | limits.Cgroup, bounds: Limits, log: Callable[[str], None],
                 check: Callable[[], None]) -> None:
        self._running, self._answers, self._holder, self._bounds = running, answers, holder, bounds
        self._log, self._check = log, check
        self._rest = b""
        self._over = False
        self.last = ""
        self._told, self._first = told, -1
        os.set_blocking(told, False)

    def wait(self) -> tuple[int, str]:
        """Exit status, and why it was ended if it was."""
        deadline = time.monotonic() + self._bounds.seconds if self._bounds.seconds else None
        assert self._running.stdout is not None  # noqa: S101 - it was made with a pipe
        os.set_blocking(self._running.stdout.fileno(), False)
        open_ = True
        stopped = ""
        with selectors.DefaultSelector() as selector:
            selector.register(self._running.stdout, selectors.EVENT_READ)
            while not stopped:
                if open_ and selector.select(_TICK):
                    open_ = self._read()
                elif not open_:
                    time.sleep(_TICK / 10)
                self._note_first()
                if self._running.poll() is not None:
                    break
                self._check()
                over = self._holder.poll(self._running.pid)
                if over is not None:
                    stopped, self._over = over.reason, True
                elif deadline is not None and time.monotonic() > deadline:
                    stopped = f"time limit ({self._bounds.seconds:g} s)"
        if stopped:
            self._kill()
        status = self._running.wait()
        self._drain()
        if not stopped:
            failure = probe.said(self._answers)
            if failure is not None:
                raise _failed(failure)
            over = self._holder.ended()
            stopped, self._over = (over.reason, True) if over is not None else ("", False)
        return status, stopped

    def end(self) -> None:
        """Kill what is left, whatever happened, and wait until it is gone."""
        self._note_first()
        self._kill()
        self._running.wait()
        if self._first >= 0:
            # The first process of a pid namespace is gone only after all others there are.
            select.select([self._first], [], [], _PATIENCE)
            os.close(self._first)
        os.close(self._told)
        self._answers.close()
        if self._running.stdout is not None:
            self._running.stdout.close()

    def _kill(self) -> None:
        # bubblewrap's first process in the namespace dies with it, and with that one every process there.
        self._holder.kill()
        if self._running.poll() is None:
            self._running.kill()

    def _note_first(self) -> None:
        """Hold on to the first process of the namespace, once bubblewrap has told which one it is."""
        if self._first < 0:
            with contextlib.suppress(BlockingIOError, ValueError, KeyError, ProcessLookupError):
                data = os.read(self._told, 1 << 16)
                self._first = os.pidfd_open(int(json.loads(data)["child-pid"]))

    def _read(self) -> bool:
        assert self._running.stdout is not None  # noqa: S101 - as above
        data = self._running.stdout.read(1 << 16)
        if data is None:
            return True
        if not data:
            return False
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _LINE:
            lines.append(self._rest)
            self._rest = b""
        for line in lines:
            self._line(line)
        return True

    def _line(self, line: bytes) -> None:
        self.last = line.decode("utf-8", "replace").rstrip("\r")
        if KILLED.search(self.last):
            self._holder.jobs.note_killed()
        self._log(self.last)

    def killed(self) -> tuple[Job, ...]:
        """Who ran when memory ran out; by the last look, if it was the whole tree that was killed."""
        jobs = self._holder.jobs
        return jobs.killed or (jobs.running if self._over else ())

    def _drain(self) -> None:
        """What was written before the end. All writers are gone or going."""
        end = time.monotonic() + 5
        assert self._running.stdout is not None  # noqa: S101 - as above
        with selectors.DefaultSelector() as selector:
            selector.register(self._running.stdout, selectors.EVENT_READ)
            while time.monotonic() < end and (not selector.select(_TICK) or self._read()):
                pass
        if self._rest:
            self._line(self._rest)
            self._rest = b""


def _exit_reason(status: int, last: str) -> str:
    if status < 0:  # bubblewrap itself: nobody but the kernel, or a person, kills that
        status = 128 - status
    if status == 1 and last.startswith("bwrap: "):
        return f"cannot start: {last[7:]}"
    reason = reason_of(status)
    if reason == "killed by SIGKILL":
        return f"{reason} (by the machine, which may be out of memory, or by the command itself)"
    return reason


def _failed(failure: dict[str, Any]) -> ToolError:
    return ToolError("the sandbox cannot be made", where=str(failure["step"]), found=str(failure["text"]),
                     cure="./doit doctor says what this machine allows")
