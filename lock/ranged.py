"""One file of an index, read by HTTP ranges where it lies.

Nothing is kept on disk. What comes this way is not held to the file's sha256: that needs all of its bytes. Every answer
is held to what was asked: status 206, the first byte, the length of the whole, and as many bytes as were asked for.
"""

from __future__ import annotations

import time

import requests
import urllib3

from lock.sources import Location, Source, Wanted
from lock.transfer import NOT_THERE, TRY_AGAIN, Policy, Told, TryAgain, content_range, open_response, seconds_of

_READ = 1 << 16
#: Bytes that are kept in memory, so that what was fetched ahead is not asked for again.
_KEPT = 32 << 20


class NoRangesError(Exception):
    """The server has no ranges, or wrong ones: only the whole file can be had."""


class RemoteFile(Told):
    """The bytes of a file by offset (a `cache.zip_reader.Ranged`). For one thread.

    Args:
        wanted: the file; its `size` must be known.
        session: the thread's connections.

    Attributes:
        fetched: bytes that came over the network.
    """

    def __init__(self, wanted: Wanted, source: Source, session: requests.Session, policy: Policy | None = None) -> None:
        self.wanted, self.policy = wanted, policy or Policy()
        self.fetched = 0
        self._source, self._session = source, session
        self._location: Location | None = None
        self._place = 0
        self._renewed = False
        self._pieces: list[tuple[int, bytes]] = []

    @property
    def size(self) -> int:
        return self.wanted.size

    def close(self) -> None:
        self._pieces.clear()

    def pread(self, count: int, offset: int) -> bytes:
        """`count` bytes at `offset`; fewer only where the file ends.

        Raises:
            NoRangesError: the server does not give them.
            FetchError: it does not answer, or lets nobody in.
        """
        count = min(count, self.size - offset)
        if count <= 0:
            return b""
        for start, data in self._pieces:
            if start <= offset and offset + count <= start + len(data):
                return data[offset - start : offset - start + count]
        data = self._get(offset, count)
        self._pieces.append((offset, data))
        while len(self._pieces) > 1 and sum(len(piece) for _, piece in self._pieces) > _KEPT:
            del self._pieces[0]
        return data

    # -- the network ------------------------------------------------------------------------------

    def _get(self, offset: int, count: int) -> bytes:
        failures = 0
        while True:
            location = self._location = self._location or self._source.locate(self.wanted)
            if self._place >= len(location.urls):
                raise self._absent(location)
            url = location.urls[self._place]
            try:
                return self._once(url, location, offset, count)
            except _Elsewhere:
                continue
            except (TryAgain, requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
                self._fatal(error, url)
                failures += 1
                if failures >= self.policy.attempts:
                    raise self._given_up(error, url, self.fetched) from error
                after = error.after if isinstance(error, TryAgain) else 0.0
                time.sleep(min(self.policy.longest, max(after, self.policy.backoff * 2 ** (failures - 1))))

    def _once(self, url: str, location: Location, offset: int, count: int) -> bytes:
        headers = {"Accept-Encoding": "identity", **location.headers, "Range": f"bytes={offset}-{offset + count - 1}"}
        with open_response(self._session, url, location, headers, self.policy.stall) as response:
            self._judge(response, url, offset)
            return self._body(response, count)

    def _judge(self, response: requests.Response, url: str, offset: int) -> None:
        """Decide by status and headers whether the body is what was asked for."""
        status = response.status_code
        if status in NOT_THERE:
            self._place += 1
            raise _Elsewhere
        if status == 401 and not self._renewed:
            self._location, self._renewed = None, True
            raise _Elsewhere
        if status >= 500 or status in TRY_AGAIN:
            raise TryAgain(f"status {status} {response.reason}", seconds_of(response.headers.get("Retry-After")))
        if status in (200, 416):  # 416: it is of another length there, which a whole download tells in words
            raise NoRangesError(f"status {status}")
        if status != 206:
            raise self._denied(url, status)
        told = response.headers.get("Content-Range", "")
        if content_range(told) != (offset, self.size) or "Content-Encoding" in response.headers:
            raise NoRangesError(f"asked for the bytes from {offset} of {self.size}, got {told!r}")

    def _body(self, response: requests.Response, count: int) -> bytes:
        data = bytearray()
        since, seen = time.monotonic(), 0
        while len(data) < count:
            chunk = response.raw.read1(min(_READ, count - len(data)), decode_content=False)
            if not chunk:
                raise TryAgain(f"the body ended after {len(data)} bytes of {count}")
            data += chunk
            self.fetched += len(chunk)
            passed = time.monotonic() - since
            if passed >= self.policy.window:
                if len(data) - seen < self.policy.rate * passed:
                    raise TryAgain(f"{len(data) - seen} bytes in {passed:.0f} s")
                since, seen = time.monotonic(), len(data)
        return bytes(data)


class _Elsewhere(Exception):
    """Ask again at once: another address, or a renewed one."""
