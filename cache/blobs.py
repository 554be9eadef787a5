"""Writing blobs: hash and write at once, publish at the end.

A large blob is hashed and written by a thread of its own, so that whoever makes the bytes (an inflate, a
download) does not wait for sha256 and write(2): both leave the interpreter free. At most a few
MiB wait between the two, whatever the size of the blob. A small blob never starts a thread.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import queue
import threading
from typing import TYPE_CHECKING, Any

from cache import durable
from cache.errors import IntegrityError
from cache.record import Blob

if TYPE_CHECKING:
    from cache.store import Store

_BATCH = 1 << 20
_WAITING = 4
#: Bytes after which the kernel is asked to begin writing, so that the last fsync has little left.
_WRITEBACK = 64 << 20


class BlobWriter:
    """Writes one blob; use as a context manager and call `commit` at the end.

    Leaving the block without `commit` removes the temporary file. Durability: after `commit`
    returns, content and name are on disk. Not for use by two threads at once.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.size = 0
        self._batch: list[bytes | memoryview] = []
        self._batched = 0
        self._sink: _Sink | None = None
        self._path, self._fd = store._temporary()
        self._hash = hashlib.sha256()

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Append `data`; the buffer is the caller's again when this returns.

        Raises:
            StoreError: the store is full or cannot be written. Large blobs may say so some MiB later.
        """
        count = len(data)
        if not count:
            return 0
        # Only bytes are sure not to change while they wait.
        self._batch.append(data if type(data) is bytes else bytes(data))
        self.size += count
        self._batched += count
        if self._batched >= _BATCH:
            self._hand_over()
        return count

    def _hand_over(self) -> None:
        if self._sink is None:
            self._sink = _Sink(self._fd, self._hash)
        batch, self._batch, self._batched = self._batch, [], 0
        with self._store._named_errors():
            self._sink.put(batch)

    def commit(self, expect: str | None = None) -> Blob:
        """Publish what was written.

        Args:
            expect: the digest that it must have.

        Raises:
            IntegrityError: the content has another digest; nothing is published.
            StoreError: the store is full or cannot be written; nothing is published.
        """
        with self._store._named_errors():
            if self._sink is not None:
                self._sink.finish()
            if self._batch:
                batch, self._batch = self._batch, []
                _consume(self._fd, self._hash, batch)
            digest = "sha256:" + self._hash.hexdigest()
            if expect is not None and digest != expect:
                raise IntegrityError("wrong hash", expected=expect, found=digest)
            durable.seal(self._fd)
            self._store._protect(digest)
            self._store._publish(self._path, digest, self.size)
        return Blob(digest, self.size)

    def close(self) -> None:
        """Remove the temporary file; what was committed stays."""
        if self._fd < 0:
            return
        if self._sink is not None:
            self._sink.abandon()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        os.close(self._fd)
        self._fd = -1

    def __enter__(self) -> BlobWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _consume(fd: int, content: Any, batch: list[bytes | memoryview]) -> None:
    for piece in batch:
        content.update(piece)
    durable.write_all(fd, batch)


class _Sink:
    """The thread behind a large blob. After an error it takes and drops what comes, and reports once."""

    def __init__(self, fd: int, content: Any) -> None:
        self._fd = fd
        self._content = content
        self._queue: queue.Queue[list[bytes | memoryview] | None] = queue.Queue(_WAITING)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="blob-writer", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        done = asked = 0
        while (batch := self._queue.get()) is not None:
            if self._error is not None:
                continue
            try:
                size = sum(map(len, batch))
                _consume(self._fd, self._content, batch)
                done += size
                if done - asked >= _WRITEBACK:
                    # On Linux this starts write-back of dirty pages and returns; it does not wait.
                    os.posix_fadvise(self._fd, asked, done - asked, os.POSIX_FADV_DONTNEED)
                    asked = done
            except BaseException as error:
                self._error = error

    def put(self, batch: list[bytes | memoryview]) -> None:
        self._raise()
        self._queue.put(batch)

    def finish(self) -> None:
        """Wait until everything is written. Raises what went wrong."""
        self.abandon()
        self._raise()

    def abandon(self) -> None:
        """End the thread."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error
