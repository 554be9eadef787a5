"""An interrupted download that can go on: one flocked file per digest.

`partial/<hex>` holds the first bytes of a blob that is not there yet. One process at a time has it;
a second one waits. It survives kill -9 and Ctrl-C, so that a download resumes; `Partial.commit`
checks the whole content against the digest and publishes it like any blob.

Durability: what is in a partial file is not promised to survive a power cut; a torn tail gives a
wrong hash in `commit`, which removes the file. After `commit` returns, the blob is on disk.

Not here: where bytes come from, and whether a server can resume (`lock/fetch.py`).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cache import durable
from cache.errors import IntegrityError
from cache.record import Blob

if TYPE_CHECKING:
    from cache.store import Store

_CHUNK = 1 << 20


class Partial:
    """Open one with `Store.partial`. Not for use by two threads at once.

    Another process may have published the blob while this one waited for the file: ask
    `Store.has` after entering the block, and `discard` if it did.
    """

    def __init__(self, store: Store, digest: str, path: Path, fd: int) -> None:
        self._store = store
        self._digest = digest
        self._path = path
        self._fd = fd
        self._size = os.fstat(fd).st_size
        self._hash: Any = hashlib.sha256() if self._size == 0 else None  # None: not known for what is there
        self._keep = False
        self._gone = False

    @property
    def size(self) -> int:
        """Bytes that are there already."""
        return self._size

    def rehash(self) -> Any:
        """Hash what is there, reading it once; returns a hash object that the caller may go on with."""
        if self._hash is None:
            content = hashlib.sha256()
            with self._store._named_errors():
                offset = 0
                while chunk := os.pread(self._fd, _CHUNK, offset):
                    content.update(chunk)
                    offset += len(chunk)
            self._hash = content
        return self._hash.copy()

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Append `data`.

        Raises:
            StoreError: the store is full or cannot be written; what was there stays whole.
        """
        view = memoryview(data)
        done = 0
        with self._store._named_errors():
            while done < len(view):
                count = os.write(self._fd, view[done:])
                if self._hash is not None:
                    self._hash.update(view[done:done + count])
                done += count
                self._size += count
        return done

    def restart(self) -> None:
        """Throw away what is there and begin again."""
        with self._store._named_errors():
            os.ftruncate(self._fd, 0)
        self._size, self._hash = 0, hashlib.sha256()

    def commit(self) -> Blob:
        """Publish the blob and remove the partial file.

        Raises:
            IntegrityError: what is there has another hash; the file is removed. After a resumed
                download this may mean a torn or foreign head: one try from the first byte is right.
            StoreError: the store is full or cannot be written.
        """
        found = "sha256:" + self.rehash().hexdigest()
        if found != self._digest:
            self.discard()
            raise IntegrityError("wrong hash", expected=self._digest, found=found)
        blob = self._publish()
        self.discard()
        return blob

    def _publish(self) -> Blob:
        if os.fstat(self._fd).st_uid != os.geteuid():
            # Another user of a shared store began it: only the owner may make it read-only, and
            # link(2) refuses files of others (fs.protected_hardlinks). A copy of our own then.
            with self._store.writer() as writer:
                offset = 0
                while chunk := os.pread(self._fd, _CHUNK, offset):
                    writer.write(chunk)
                    offset += len(chunk)
                return writer.commit(self._digest)
        with self._store._named_errors():
            durable.seal(self._fd)
            self._store._protect(self._digest)
            self._store._publish(str(self._path), self._digest, self._size)
        return Blob(self._digest, self._size)

    def discard(self) -> None:
        """Remove the partial file."""
        if not self._gone:
            with self._store._named_errors(), contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)
            self._gone = True

    def keep(self) -> None:
        """Leave the file for a later run, however the block ends."""
        self._keep = True


@contextlib.contextmanager
def opened(store: Store, digest: str, path: Path, on_wait: Callable[[], None] | None) -> Iterator[Partial]:
    """See `Store.partial`."""
    with store._named_errors():
        directory = str(path.parent)
        durable.make_directory(directory, store._tmp)
        fd = durable.open_locked(str(path), store._tmp, os.O_RDWR | os.O_APPEND, on_wait)
        part = Partial(store, digest, path, fd)
    try:
        yield part
    except Exception:
        if not part._keep:
            part.discard()
        raise
    except BaseException:
        raise  # Ctrl-C: the file stays, the next run goes on with it
    else:
        if not part._keep:
            part.discard()
    finally:
        os.close(fd)
