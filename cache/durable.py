"""Files that are whole or not there: the operating-system side of the store.

Temporary files, publication by link(2), directories, flocks, and the errors of the file system in
words. Raw descriptors and single system calls, so that each step is one place where a process can be
killed (tests/faults/test_store_kill.py does it at every one of them).

Durability: what `publish` and `replace` return from is on disk, content and every directory entry
on the way to it. Concurrency: any number of threads and processes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from cache.errors import StoreError

_GROUP_WRITE = 0o020
_UNABLE = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV, errno.EMLINK}


@contextlib.contextmanager
def named_errors(root: Path | str) -> Iterator[None]:
    """Turn what the operating system says about a store into StoreError."""
    try:
        yield
    except OSError as error:
        raise _named(error, str(root)) from error


def _named(error: OSError, root: str) -> StoreError:
    where = str(error.filename or root)
    said = os.strerror(error.errno) if error.errno else str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreError("the store's disk is full", where=root, found=said,
                          cure="free space there, or ./doit store:gc")
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return StoreError("the store cannot be written", where=where, found=said,
                          cure="set STAGECRAFT_STORE to a directory that you may write (a shared one: docs/store.md)")
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return StoreError("too many open files", where=where, cure="raise the limit: ulimit -n 4096")
    if error.errno in _UNABLE:
        return StoreError("the store's file system lacks something that a store needs", where=root, found=said,
                          expected="hard links and flock",
                          cure="set STAGECRAFT_STORE to a directory on a local disk")
    return StoreError("the store cannot be used", where=where, found=said)


def fsync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_all(fd: int, pieces: Sequence[bytes | memoryview]) -> None:
    """Write all of `pieces`, however little each system call takes."""
    waiting = list(pieces)
    while waiting:
        count = os.writev(fd, waiting[:512])
        while waiting and count >= len(waiting[0]):
            count -= len(waiting.pop(0))
        if count:
            waiting[0] = memoryview(waiting[0])[count:]


# -- directories ----------------------------------------------------------------------------------


def make_directory(path: str, tmp: str) -> None:
    """Make a directory and those above it, durably; no error if it is there.

    A directory below one that its group may write gets the same permission, whatever the umask: so
    a shared store stays shared. Such a directory appears under its name with its mode already right
    (it is made in `tmp`), because another user may want to write there at once.
    """
    if os.path.isdir(path):
        return
    parent = os.path.dirname(path)
    make_directory(parent, tmp)
    mode = stat.S_IMODE(os.stat(parent).st_mode)
    if mode & _GROUP_WRITE and os.path.isdir(tmp):
        fresh = f"{tmp}/{os.getpid()}-{os.urandom(6).hex()}"
        os.mkdir(fresh)
        os.chmod(fresh, mode & ~stat.S_ISVTX)
        try:
            os.rename(fresh, path)
        except OSError as error:
            os.rmdir(fresh)
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    else:
        with contextlib.suppress(FileExistsError):
            os.mkdir(path)
            if mode & _GROUP_WRITE:
                os.chmod(path, mode & ~stat.S_ISVTX)
    fsync_directory(parent)


def make_store_directory(path: str) -> None:
    """Make a store's own directory, durably, with the modes that the user's umask gives."""
    missing = []
    while not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    for directory in reversed(missing):
        with contextlib.suppress(FileExistsError):
            os.mkdir(directory)
        with contextlib.suppress(PermissionError):  # a parent that we may write but not read
            fsync_directory(os.path.dirname(directory))


def group_writes(directory: str) -> bool:
    """True if a directory's group may write in it: then what is made there is for the group too."""
    return bool(os.stat(directory).st_mode & _GROUP_WRITE)


# -- files ----------------------------------------------------------------------------------------


def temporary(tmp: str) -> tuple[str, int]:
    """A new file in `tmp`, open for reading and writing and flocked while it is open."""
    while True:
        path = f"{tmp}/{os.getpid()}-{os.urandom(6).hex()}"
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            continue
        except FileNotFoundError:
            make_directory(tmp, tmp)
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
        except BaseException:
            os.close(fd)
            os.unlink(path)
            raise
        return path, fd


def seal(fd: int, mode: int = 0o444) -> None:
    """Content and mode of an open file are on disk when this returns."""
    os.fchmod(fd, mode)
    os.fsync(fd)


def publish(temporary_path: str, target: str, size: int, tmp: str) -> None:
    """Give a sealed file its final name, unless the same content is there already.

    What is there with another size was cut or grown behind our back: it is replaced, in one step.
    The temporary name may stay; the caller removes it.
    """
    for _ in range(64):
        try:
            os.link(temporary_path, target)
        except FileNotFoundError:
            # The directory is new, or collection took it while it was empty.
            make_directory(os.path.dirname(target), tmp)
            continue
        except FileExistsError:
            try:
                there = os.lstat(target)
            except FileNotFoundError:
                continue
            if not stat.S_ISREG(there.st_mode) or there.st_size != size:
                os.replace(temporary_path, target)
        except OSError as error:
            # vfat, exFAT and some FUSE file systems say EPERM to link(2).
            if error.errno == errno.EPERM:
                raise OSError(errno.EOPNOTSUPP, "no hard links", target) from error
            raise
        fsync_directory(os.path.dirname(target))
        return
    raise OSError(errno.ENOENT, "a temporary file disappeared", temporary_path)


def replace(temporary_path: str, target: str, tmp: str) -> None:
    """Give a sealed file its final name, whatever had it."""
    for _ in range(64):
        try:
            os.replace(temporary_path, target)
        except FileNotFoundError:
            make_directory(os.path.dirname(target), tmp)
            continue
        fsync_directory(os.path.dirname(target))
        return
    raise OSError(errno.ENOENT, "a temporary file disappeared", temporary_path)


def contents(path: str) -> bytes | None:
    """A small file's content, or None if it is not there."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        size = os.fstat(fd).st_size
        data = os.read(fd, size + 1)
        while len(data) < size and (more := os.read(fd, size + 1 - len(data))):
            data += more
        return data
    finally:
        os.close(fd)


def mtime(path: str) -> int:
    """When a file was written, in ns; 0 if it is not there."""
    try:
        return os.stat(path).st_mtime_ns
    except FileNotFoundError:
        return 0


# -- locks ----------------------------------------------------------------------------------------


def open_shared(path: str, tmp: str, flags: int = os.O_RDONLY) -> int:
    """Open a file, making it empty if it is not there; in a shared store its group may write it.

    `O_RDONLY` is enough for flock, and lets several users lock one file.
    """
    while True:
        try:
            return os.open(path, flags | os.O_CLOEXEC)
        except FileNotFoundError:
            if not group_writes(os.path.dirname(path)):
                return os.open(path, flags | os.O_CREAT | os.O_CLOEXEC, 0o644)
            fresh, fd = temporary(tmp)  # it appears with its mode: another user may open it at once
            try:
                os.fchmod(fd, 0o664)
                os.close(fd)
                with contextlib.suppress(FileExistsError):
                    os.link(fresh, path)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(fresh)


def open_locked(
    path: str,
    tmp: str,
    flags: int = os.O_RDONLY,
    on_wait: Callable[[], None] | None = None,
    poll: Callable[[], None] | None = None,
) -> int:
    """Open (making it if needed) and lock a file exclusively; returns its descriptor.

    The file that is locked is the one that has the name: who held it before may have removed it,
    so the name is looked at again under the lock.

    Args:
        on_wait: called once if another holder makes us wait.
        poll: called some times a second while waiting; what it raises ends the wait.
    """
    while True:
        fd = open_shared(path, tmp, flags)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if on_wait is not None:
                    on_wait()
                    on_wait = None
                _wait(fd, poll)
            if same_file(fd, path):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _wait(fd: int, poll: Callable[[], None] | None) -> None:
    if poll is None:
        fcntl.flock(fd, fcntl.LOCK_EX)
        return
    import time

    while True:
        poll()
        time.sleep(0.1)
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return


def same_file(fd: int, path: str) -> bool:
    """True if `path` names the open file `fd`."""
    try:
        named = os.stat(path)
    except FileNotFoundError:
        return False
    ours = os.fstat(fd)
    return (named.st_dev, named.st_ino) == (ours.st_dev, ours.st_ino)


def locked_elsewhere(path: str) -> bool:
    """True if somebody holds the flock of an existing file; a file that is gone is not held."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def lock_if_free(path: str) -> int:
    """Lock an existing file that nobody holds; its descriptor, or -1 if somebody holds it or it is gone."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return -1
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if same_file(fd, path):
            return fd
    except BlockingIOError:
        pass
    os.close(fd)
    return -1


def probe(tmp: str) -> None:
    """Try what a store needs of its file system: hard links, and flocks that exclude each other.

    Raises:
        OSError: EOPNOTSUPP or ENOLCK if something is lacking.
    """
    path, fd = temporary(tmp)
    other = f"{path}-link"
    try:
        os.link(path, other)
        if not locked_elsewhere(other):
            raise OSError(errno.ENOLCK, "flock does not exclude", path)
    except PermissionError as error:
        raise OSError(errno.EOPNOTSUPP, "no hard links", path) from error
    finally:
        for name in (path, other):
            with contextlib.suppress(OSError):
                os.unlink(name)
        os.close(fd)
