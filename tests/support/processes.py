"""Processes for fault tests: forked children that are killed at a chosen system call, or are other users.

A fork starts in milliseconds where an interpreter needs a tenth of a second, so that *every* step can be tried.
"""

from __future__ import annotations

import fcntl
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

#: Calls that change or read the file system; the store makes no others (it uses no buffered files to write).
CALLS = ("open", "close", "writev", "write", "fsync", "link", "replace", "rename", "unlink", "mkdir", "rmdir", "chmod",
         "fchmod", "ftruncate", "pread", "posix_fadvise")


@dataclass(frozen=True)
class Ended:
    """How a child ended: the signal that killed it (0: none), what its function returned or raised."""

    signal: int
    value: Any = None
    error: BaseException | None = None


class Child:
    """A forked child that runs one function."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._reader, writer = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            status = 0
            try:
                os.close(self._reader)
                try:
                    answer: tuple[Any, BaseException | None] = (function(), None)
                except BaseException as error:
                    error.__traceback__ = None
                    answer = (None, error)
                data = pickle.dumps(answer)
                while data:
                    data = data[os.write(writer, data):]
            except BaseException:
                traceback.print_exc()
                status = 1
            finally:
                os._exit(status)
        os.close(writer)

    def wait(self) -> Ended:
        """Wait for the end."""
        with os.fdopen(self._reader, "rb") as file:
            data = file.read()
        _, status = os.waitpid(self.pid, 0)
        if os.WIFSIGNALED(status):
            return Ended(os.WTERMSIG(status))
        assert (status, bool(data)) == (0, True), f"the child ended with {status}"
        value, error = pickle.loads(data)
        return Ended(0, value, error)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


def run(function: Callable[[], Any]) -> Any:
    """What `function` returns in a child; raises what it raises."""
    ended = Child(function).wait()
    assert not ended.signal, f"killed by {ended.signal}"
    if ended.error is not None:
        raise ended.error
    return ended.value


def killed_at(step: int, function: Callable[[], Any], *, torn: bool = False) -> Callable[[], Any]:
    """`function`, killed by SIGKILL just before the system call number `step` (from 0).

    With `torn`, a write at that step is done by half first.
    """
    def wrapped() -> Any:
        count = -1

        def counting(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
            def counted(*args: Any, **more: Any) -> Any:
                nonlocal count
                count += 1
                if count == step:
                    if torn and name == "writev":
                        data = b"".join(bytes(piece) for piece in args[1])
                        write(args[0], data[:len(data) // 2])
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*args, **more)
            return counted

        write = os.write
        for name in CALLS:
            setattr(os, name, counting(name, getattr(os, name)))
        fcntl.flock = counting("flock", fcntl.flock)
        function()
        return count

    return wrapped


def as_user(uid: int, gid: int, umask: int, function: Callable[[], Any]) -> Callable[[], Any]:
    """`function` with the rights of another user, who is in the group `gid` only."""
    def wrapped() -> Any:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
        os.umask(umask)
        return function()

    return wrapped
