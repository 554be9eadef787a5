"""Logs of stages: written line by line into bounded memory and a bounded file, and read from their end.

A short log is plain UTF-8 text. One of more than 64 KiB is zstd of the same text, written to `tmp/` while it grows.
When that file has 64 MiB (a gigabyte of a build's text), only the last MiB of what follows is kept, behind a line that
says how much is left out. Durability is the store's: a log has a name only when it is whole. Threads may share one log.
"""

from __future__ import annotations

import collections
import contextlib
import os
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

from cache import durable
from cache.record import Blob

if TYPE_CHECKING:
    from cache.store import Store

#: Bytes of text up to which a log stays plain; of zstd after which lines are left out; of their end that stay.
PLAIN, PACKED, TAIL = 64 << 10, 64 << 20, 1 << 20
_ZSTD = b"\x28\xb5\x2f\xfd"
_READ = 1 << 20


class StageLog:
    """A log that is being written. Leaving the block removes what was neither published nor kept.

    Args:
        packed: bytes that the file may have; see the module text.
    """

    def __init__(self, store: Store, packed: int = PACKED) -> None:
        self._store, self._limit = store, packed
        self._mutex = threading.Lock()
        self._plain: list[bytes] = []
        self._size = 0
        self._path, self._fd = "", -1
        self._packer: Any = None
        self._packed = 0
        self._tail: collections.deque[bytes] = collections.deque()
        self._tailed = self._left_out = self._left_lines = 0

    def line(self, text: str) -> None:
        """Append one line; `text` has no newline.

        Raises:
            StoreError: the disk is full, or the store cannot be written.
        """
        data = text.encode("utf-8", "replace") + b"\n"
        with self._mutex:
            if self._packed >= self._limit:
                self._keep_end(data)
                return
            self._plain.append(data)
            self._size += len(data)
            if self._size > PLAIN:
                self._pack()

    def publish(self) -> Blob:
        """The whole log as a blob. Nothing may be appended after."""
        with self._mutex:
            self._finish()
            return self._store.put(self._chunks())

    def keep(self, key: str) -> None:
        """The whole log as that of a failed build of `key`. Nothing may be appended after."""
        with self._mutex:
            self._finish()
            self._store.put_log(key, self._chunks())

    def _pack(self) -> None:
        import zstandard

        if self._packer is None:
            self._path, self._fd = self._store._temporary()
            self._packer = zstandard.ZstdCompressor(level=3).compressobj()
        data, self._plain, self._size = b"".join(self._plain), [], 0
        self._write(self._packer.compress(data))

    def _write(self, data: bytes) -> None:
        self._packed += len(data)
        with durable.named_errors(self._store.root):
            durable.write_all(self._fd, [data] if data else [])

    def _keep_end(self, data: bytes) -> None:
        self._tail.append(data)
        self._tailed += len(data)
        while self._tailed > TAIL:
            gone = len(self._tail.popleft())
            self._tailed -= gone
            self._left_out += gone
            self._left_lines += 1

    def _finish(self) -> None:
        if self._packer is None:
            return
        if self._left_lines:
            self._plain.append(f"# {self._left_lines} lines are left out here, {self._left_out} bytes\n".encode())
        self._plain += self._tail
        self._pack()
        self._write(self._packer.flush())

    def _chunks(self) -> Iterator[bytes]:
        if self._packer is None:
            yield b"".join(self._plain)
            return
        at = 0
        while data := os.pread(self._fd, _READ, at):
            at += len(data)
            yield data

    def __enter__(self) -> StageLog:
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)
            os.close(self._fd)
            self._fd = -1


def text_of(file: BinaryIO, where: str) -> Iterator[bytes]:
    """The text of a log in pieces.

    Raises (while it is read):
        IntegrityError: the file is damaged.
    """
    from cache.decompress import decompressed

    head = file.read(4)
    file.seek(0)
    plain = decompressed(file, where) if head == _ZSTD else file
    while data := plain.read(_READ):
        yield data


def end_of(file: BinaryIO, where: str, limit: int) -> tuple[str, int]:
    """The last whole lines of a log that have at most `limit` bytes together, and how many lines stand before them."""
    pieces: collections.deque[bytes] = collections.deque()
    size = before = 0
    for piece in text_of(file, where):
        pieces.append(piece)
        size += len(piece)
        while size - len(pieces[0]) > limit:
            gone = pieces.popleft()
            size -= len(gone)
            before += gone.count(b"\n")
    text = b"".join(pieces)
    if len(text) > limit or before:
        cut = text.find(b"\n", max(0, len(text) - limit - 1)) + 1
        before += text.count(b"\n", 0, cut)
        text = text[cut:]
    return text.decode("utf-8", "replace"), before
