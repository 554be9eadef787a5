"""What a running process needs from the store: the temporary roots of garbage collection.

`sessions/<id>` holds one name a line: a digest (of a blob or an action key), or `roots/<name>`. It is
flocked while its process lives, so that it counts for exactly as long; an unlocked one is garbage.

The protocol with `cache.gc` (Nix has the same): a name is entered under a *shared* flock of `locks/gc`,
**before** its owner looks whether the thing is there. Collection marks and sweeps under the exclusive
one. So either collection sees the name, or its owner sees that the thing is gone.

Threads of one process share one session. A forked child makes its own; its parent's names stay
protected as long as either lives. A store that this process cannot write has no session: who may write
it must not collect it meanwhile (docs/store.md).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
import weakref
from collections.abc import Iterable, Iterator

from cache import durable

_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


class Session:
    """The session of one `Store` object; made on first use, ended with the object or the process."""

    def __init__(self, root: str, tmp: str) -> None:
        self._root = root
        self._tmp = tmp
        self._mutex = threading.Lock()
        self._pid = 0
        self._known: set[str] = set()
        self._gate = -1
        self._fd = -1

    def protect(self, names: Iterable[str]) -> None:
        """Enter names, so that collection leaves them alone. Raises OSError."""
        with self._mutex:
            if self._pid != os.getpid():
                self._pid, self._known, self._gate, self._fd = os.getpid(), set(), -1, -1
            new = [name for name in names if name not in self._known]
            if not new:
                return
            try:
                with self._shared():
                    if self._fd < 0:
                        self._open()
                    durable.write_all(self._fd, ["".join(f"{name}\n" for name in new).encode()])
            except OSError as error:
                if error.errno not in _READ_ONLY:
                    raise
            self._known.update(new)

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """Keep collection from sweeping while the block runs: for a step that looks like garbage midway."""
        with self._mutex:
            if self._pid != os.getpid():
                self._pid, self._known, self._gate, self._fd = os.getpid(), set(), -1, -1
            with self._shared():
                yield

    @contextlib.contextmanager
    def _shared(self) -> Iterator[None]:
        if self._gate < 0:
            durable.make_directory(f"{self._root}/locks", self._tmp)
            self._gate = durable.open_shared(f"{self._root}/locks/gc", self._tmp)
            weakref.finalize(self, _close, self._gate, self._pid, None)
        fcntl.flock(self._gate, fcntl.LOCK_SH)
        try:
            yield
        finally:
            fcntl.flock(self._gate, fcntl.LOCK_UN)

    def _open(self) -> None:
        directory = f"{self._root}/sessions"
        durable.make_directory(directory, self._tmp)
        path, fd = durable.temporary(directory)
        os.fchmod(fd, 0o644)  # whoever collects must be able to read it
        self._fd = fd
        weakref.finalize(self, _close, fd, self._pid, path)


def _close(fd: int, pid: int, path: str | None) -> None:
    if pid != os.getpid():
        return  # a forked child: the file is its parent's
    if path is not None:
        with contextlib.suppress(OSError):
            os.unlink(path)
    with contextlib.suppress(OSError):
        os.close(fd)
