"""One file from its location into the store: resumes, retries, and knows when to give up.

Holds the HTTP of fetching. Not here: which files, how many at once (`lock.fetch`), where they lie (a `Source`).

Durability and concurrency: those of `Store.partial`. Bytes are trusted only after their sha256 was checked; a head that
an earlier run left is hashed again, and if the whole then has a wrong hash it is read once more from the first byte.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import requests
import urllib3

from cache.errors import FetchError, IntegrityError
from cache.partial import Partial
from cache.store import Store
from lock.sources import Location, Source, Wanted, bare

#: Bytes asked of a connection at once: it allocates all of them, and TLS hands out 16 KiB.
_READ = 1 << 16
#: Bytes gathered before they are hashed and written.
_FLUSH = 1 << 19
NOT_THERE = {404, 410}
TRY_AGAIN = {408, 425, 429}


@dataclass(frozen=True)
class Policy:
    """When a transfer is given up.

    Attributes:
        attempts: tries in a row that bring less than `progress` bytes.
        backoff: seconds before the second try; doubled for each further one, up to `longest`.
        longest: most seconds between two tries, whatever a server's Retry-After says.
        stall: seconds without a byte after which a connection is dead.
        window: seconds over which `rate` is measured.
        rate: bytes per second below which a connection is dead.
        progress: bytes that make a broken try count as a good one.
    """

    attempts: int = 5
    backoff: float = 0.5
    longest: float = 20.0
    stall: float = 30.0
    window: float = 30.0
    rate: float = 1024.0
    progress: int = 8 << 20


class Stopped(Exception):
    """The caller wants no more of it; what is there stays for the next run."""


class TryAgain(Exception):
    """This try failed; another may not."""

    def __init__(self, found: str, after: float = 0.0) -> None:
        super().__init__(found)
        self.after = after


class _Refused(Exception):
    """401: perhaps a token ran out."""


class _Missing(Exception):
    """This address does not have the file; another may."""


class Told:
    """What may go wrong with one file, in words. For classes with `wanted` and `policy`."""

    wanted: Wanted
    policy: Policy

    def _name(self) -> str:
        return self.wanted.file.rpartition("/")[2]

    def _where(self, place: str) -> str:
        return f"index {self.wanted.index}: {place}"

    def _wrong(self, place: str, expected: str, found: str) -> IntegrityError:
        return IntegrityError(
            f"{self._name()} is not the file that was locked", where=self._where(place), expected=expected, found=found,
            cure="if the index replaced the file, look at the new one and lock again "
                 f"(--upgrade {self.wanted.name}); if a proxy altered it, repair that")

    def _absent(self, location: Location) -> FetchError:
        return FetchError(
            f"{self._name()} is not there any more",
            where=self._where("\n".join(bare(url) for url in location.urls)), expected="the file", found="status 404",
            cure=f"lock again (--upgrade {self.wanted.name}), or name an index that keeps old files")

    def _denied(self, url: str, status: int) -> FetchError:
        return FetchError(
            f"{self._name()} is refused", where=self._where(bare(url)), expected="status 200", found=f"status {status}",
            cure="credentials go into netrc, or into the index's address in pip's or uv's configuration")

    def _given_up(self, error: Exception, url: str, there: int) -> FetchError:
        size = self.wanted.size
        expected = f"{size} bytes" if size else "the whole file"
        return FetchError(f"{self._name()} could not be fetched", where=self._where(bare(url)), expected=expected,
                          found=f"{in_words(error)} (try {self.policy.attempts}, {there} bytes so far)",
                          cure="try again when the index answers; what was fetched is kept")

    def _fatal(self, error: Exception, url: str) -> None:
        """Raise what no second try can cure."""
        cure = cure_of(error)
        if cure:
            raise FetchError(f"{self._name()} could not be fetched", where=self._where(bare(url)),
                             found=in_words(error), cure=cure) from error


@dataclass
class Transfer(Told):
    """One file on its way. Not for use by two threads.

    Attributes:
        report: takes the number of bytes that came (negative: thrown away).
        stop: when set, the transfer ends with `Stopped`.
    """

    store: Store
    wanted: Wanted
    source: Source
    session: requests.Session
    policy: Policy
    report: Callable[[int], None]
    stop: threading.Event
    _ranges: bool = True
    _resumed: bool = False
    _reported: int = 0

    def run(self) -> None:
        """Bring the file into the store.

        Raises:
            FetchError: the remote end does not give it.
            IntegrityError: what it gives is not what was locked.
            StoreError: the store cannot take it.
            Stopped: `stop` was set.
        """
        wanted = self.wanted
        while True:
            # Before the partial file is opened: an index that is down must not cost what an earlier run left.
            location = self.source.locate(wanted)
            with self.store.partial(wanted.digest) as part:
                if self.store.has(wanted.digest):
                    return  # another process had it while we waited
                try:
                    where = self._receive(part, location)
                except Stopped:
                    part.keep()
                    raise
                try:
                    part.commit()
                    return
                except IntegrityError as error:
                    if not self._resumed:
                        raise self._wrong(where, wanted.digest, str(error.found)) from error
            # The head may be torn (power cut) or the server's ranges wrong: once more, from the first byte.
            self._ranges, self._resumed = False, False
            self._tell(0)

    def _receive(self, part: Partial, location: Location) -> str:
        """Bring all bytes into `part`; returns where from, for messages."""
        if location.path is not None:
            self._copy(part, location.path)
            return str(location.path)
        if part.size:
            part.rehash()
            self._resumed = True
        renewed, failures, place = False, 0, 0
        while True:
            if place >= len(location.urls):
                raise self._absent(location)
            url, before = location.urls[place], part.size
            try:
                self._once(part, url, location)
                return bare(url)
            except _Missing:
                place += 1
            except _Refused:
                if renewed:
                    raise self._denied(url, 401) from None
                location, renewed = self.source.locate(self.wanted), True
            except (TryAgain, requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
                self._fatal(error, url)
                failures = 1 if part.size - before >= self.policy.progress else failures + 1
                if failures >= self.policy.attempts:
                    raise self._given_up(error, url, part.size) from error
                self._pause(failures, error.after if isinstance(error, TryAgain) else 0.0)

    def _once(self, part: Partial, url: str, location: Location) -> None:
        """One request, and its body into `part`."""
        size = self.wanted.size
        if size and part.size > size:
            part.restart()
        if size and part.size == size:
            return
        self._tell(part.size)
        headers = {"Accept-Encoding": "identity", **location.headers}
        if part.size and not self._ranges:
            part.restart()
        if part.size:
            headers["Range"] = f"bytes={part.size}-"
        with open_response(self.session, url, location, headers, self.policy.stall) as response:
            self._judge(response, part, url)
            self._tell(part.size)
            self._body(response, part)
        if size and part.size < size:
            raise TryAgain(f"the body ended after {part.size} bytes of {size}")

    def _judge(self, response: requests.Response, part: Partial, url: str) -> None:
        """Decide by status and headers whether the body is what comes next in `part`."""
        status, size = response.status_code, self.wanted.size
        if status in NOT_THERE:
            raise _Missing
        if status == 401:
            raise _Refused
        if status == 416:  # our head is longer than their file, or they cannot count
            self._ranges = False
            part.restart()
            raise TryAgain("status 416 for the rest of the file")
        if status >= 500 or status in TRY_AGAIN:
            raise TryAgain(f"status {status} {response.reason}", seconds_of(response.headers.get("Retry-After")))
        if status not in (200, 206):
            raise self._denied(url, status)
        if status == 206:
            begin, total = content_range(response.headers.get("Content-Range", ""))
            if not part.size or begin != part.size or (size and total not in (0, size)):
                self._ranges = False
                part.restart()
                raise TryAgain(f"asked for the bytes from {part.size}, got {response.headers.get('Content-Range')!r}")
            self._resumed = True
            return
        if part.size:
            part.restart()  # this server has no ranges
            self._resumed = False
        told = response.headers.get("Content-Length", "")
        if size and told.isdigit() and int(told) != size and "Content-Encoding" not in response.headers:
            raise self._wrong(bare(url), f"{size} bytes", f"{told} bytes")

    def _body(self, response: requests.Response, part: Partial) -> None:
        policy, size, pending = self.policy, self.wanted.size, bytearray()
        since, count = time.monotonic(), 0
        try:
            while chunk := response.raw.read1(_READ, decode_content=False):
                if self.stop.is_set():
                    raise Stopped
                pending += chunk
                count += len(chunk)
                if size and part.size + len(pending) > size:
                    raise self._wrong(bare(response.url), f"{size} bytes", "more than that")
                if len(pending) >= _FLUSH:
                    self._flush(part, pending)
                passed = time.monotonic() - since
                if passed >= policy.window:
                    if count < policy.rate * passed:
                        raise TryAgain(f"{count} bytes in {passed:.0f} s, less than {policy.rate:.0f} a second")
                    since, count = time.monotonic(), 0
        finally:
            self._flush(part, pending)

    def _flush(self, part: Partial, pending: bytearray) -> None:
        part.write(pending)
        pending.clear()
        self._tell(part.size)

    def _copy(self, part: Partial, path: Path) -> None:
        """A file of this machine: nothing to resume."""
        part.restart()
        size = self.wanted.size
        try:
            with path.open("rb", buffering=0) as file:
                found = os.fstat(file.fileno()).st_size
                if size and found != size:
                    raise self._wrong(str(path), f"{size} bytes", f"{found} bytes")
                while chunk := file.read(_FLUSH):
                    if self.stop.is_set():
                        raise Stopped
                    part.write(chunk)
                    self._tell(part.size)
        except OSError as error:
            raise FetchError(f"{self._name()} cannot be read: {error.strerror}", where=self._where(str(path)),
                             cure="put the file back, or lock again") from error

    def _tell(self, there: int) -> None:
        if there != self._reported:
            self.report(there - self._reported)
            self._reported = there

    def _pause(self, failures: int, after: float) -> None:
        policy = self.policy
        if self.stop.wait(min(policy.longest, max(after, policy.backoff * 2 ** (failures - 1)))):
            raise Stopped


def open_response(session: requests.Session, url: str, location: Location, headers: Mapping[str, str],
                  stall: float, method: str = "GET") -> requests.Response:
    """Send one request as `location` says; the body is not read yet. Close it after use.

    Raises:
        requests.RequestException: no answer.
    """
    auth: object = location.auth
    if auth is None and any(name.lower() == "authorization" for name in headers):
        auth = _as_it_is  # else requests would put netrc's entry over the header
    return session.request(
        method, url, headers=dict(headers), auth=auth, verify=location.verify, cert=location.cert,  # type: ignore[arg-type]
        stream=True, allow_redirects=True, proxies=dict(location.proxies), timeout=(location.timeout, stall))


def _as_it_is(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


def cure_of(error: BaseException) -> str:
    """What to do about a failed request that no second try can cure; empty if one may."""
    if isinstance(error, requests.exceptions.SSLError):
        return ("if a company's proxy signs with its own certificate, name its bundle: SSL_CERT_FILE, "
                "or `cert` in pip's configuration")
    if isinstance(error, (requests.exceptions.InvalidURL, requests.exceptions.MissingSchema,
                          requests.exceptions.InvalidSchema, requests.exceptions.InvalidProxyURL)):
        return "correct the address in targets/indexes.yaml or in pip's or uv's configuration"
    if isinstance(error, OSError) and not isinstance(error, requests.RequestException) and error.filename:
        return "correct the path of the certificate bundle in pip's or uv's configuration"
    return ""


def in_words(error: BaseException) -> str:
    """Why a request failed, in a line, without addresses (they may hold credentials)."""
    chain: list[BaseException] = []
    seen: object = error
    while isinstance(seen, BaseException) and seen not in chain:
        chain.append(seen)
        seen = seen.__cause__ or seen.__context__ or getattr(seen, "reason", None)
    for kind, words in _WORDS:
        if any(isinstance(item, kind) for item in chain):
            return words
    if isinstance(error, TryAgain):
        return str(error)
    return type(error).__name__


_WORDS: tuple[tuple[type[BaseException], str], ...] = (
    (requests.exceptions.ProxyError, "the proxy cannot be reached"),
    (requests.exceptions.SSLError, "its certificate is not trusted"),
    (urllib3.exceptions.NameResolutionError, "its host name cannot be resolved"),
    (ConnectionRefusedError, "connection refused"),
    (urllib3.exceptions.ConnectTimeoutError, "no answer to the connection"),
    (urllib3.exceptions.ReadTimeoutError, "no byte for too long"),
    (TimeoutError, "no byte for too long"),
    (urllib3.exceptions.IncompleteRead, "the body ended early"),
    (ConnectionResetError, "connection reset"),
)


def seconds_of(text: str | None) -> float:
    """Retry-After in seconds; the form with a date is not worth reading."""
    return float(text) if text and text.isdigit() else 0.0


def content_range(text: str) -> tuple[int, int]:
    """First byte and whole length out of `bytes 5-9/10`; (-1, 0) if it says neither."""
    unit, _, rest = text.partition(" ")
    span, _, total = rest.partition("/")
    begin = span.partition("-")[0]
    if unit != "bytes" or not begin.isdigit():
        return -1, 0
    return int(begin), int(total) if total.isdigit() else 0
