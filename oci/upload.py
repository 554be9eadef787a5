"""One blob from the store into a registry: asked for first, mounted if a sibling has it, else sent in pieces.

A broken piece is sent again from where the registry says it is, so that a large layer survives a bad line.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urljoin

import requests

from cache.errors import FetchError
from cache.store import Blob
from oci.registry import PULL, PUSH, Registry, registry_words

_READ = 1 << 20
#: Bytes of one request. Large, because each costs a round trip; not larger, because proxies have limits.
PIECE = 64 << 20
_ATTEMPTS = 5


@dataclass(frozen=True)
class _Window:
    """A piece of a file as the body of a request: gives its bytes anew each time it is iterated."""

    path: Path
    start: int
    size: int
    report: Callable[[int], None]

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[bytes]:
        left = self.size
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.start)
            while left and (chunk := file.read(min(_READ, left))):
                left -= len(chunk)
                yield chunk
                self.report(self.start + self.size - left)


def has_blob(registry: Registry, repository: str, blob: Blob) -> bool:
    """True if the repository has the blob already."""
    response = registry.request("HEAD", f"{repository}/blobs/{blob.digest}", PUSH.format(repository),
                                headers={"Accept-Encoding": "identity"}, allow_redirects=True)
    response.close()
    if response.status_code == 404:
        return False
    registry.expect(response, f"{registry.host}/{repository}", 200)
    told = response.headers.get("Content-Length", "")
    if told.isdigit() and int(told) != blob.size:
        raise FetchError("the registry has a blob of that name with another size",
                         where=f"{registry.host}/{repository}@{blob.digest}", expected=f"{blob.size} bytes",
                         found=f"{told} bytes")
    return True


def upload(registry: Registry, repository: str, blob: Blob, path: Path, *, mount_from: str = "",
           report: Callable[[int], None] = lambda done: None, piece: int = PIECE) -> str:
    """Bring a blob into a repository.

    Args:
        path: where its bytes lie.
        mount_from: a repository of the same registry that may have it.
        report: takes the bytes done.

    Returns:
        How it came there: "there", "mounted" or "sent".

    Raises:
        FetchError: not allowed, the registry does not take it or does not answer.
    """
    if has_blob(registry, repository, blob):
        return "there"
    scope = PUSH.format(repository) + (f" {PULL.format(mount_from)}" if mount_from else "")
    query = urlencode({"mount": blob.digest, "from": mount_from}) if mount_from else ""
    where = f"{registry.host}/{repository}@{blob.digest}"
    response = registry.request("POST", f"{repository}/blobs/uploads/" + (f"?{query}" if query else ""), scope)
    response.close()
    if response.status_code == 201 and query:
        return "mounted"
    registry.expect(response, where, 202)
    least = response.headers.get("OCI-Chunk-Min-Length", "")
    piece = max(piece, int(least) if least.isdigit() else 0)
    location, done = _location(registry, response, where), 0
    while blob.size - done > piece:
        location, done = _send_piece(registry, scope, location, _Window(path, done, piece, report), where)
    _finish(registry, repository, scope, location, _Window(path, done, blob.size - done, report), blob, where)
    report(blob.size)
    return "sent"


def _send_piece(registry: Registry, scope: str, location: str, window: _Window, where: str) -> tuple[str, int]:
    """PATCH one piece; returns the next location and the bytes that the registry has."""
    end = window.start + window.size
    failures = 0
    while True:
        try:
            response = registry.request("PATCH", location, scope, attempts=1, data=window, headers=_headers(window))
            with response:
                _take(response, where, 201, 202, 204)
            return _location(registry, response, where), end
        except FetchError as error:
            failures += 1
            if not error.retryable or failures >= _ATTEMPTS:
                raise
            _pause(registry, failures)
            location, window = _rest(registry, scope, location, window, where, error)
            if not window.size:
                return location, end


def _finish(registry: Registry, repository: str, scope: str, location: str, window: _Window, blob: Blob,
            where: str) -> None:
    """PUT the last piece with the digest of the whole."""
    failures = 0
    while True:
        url = location + ("&" if "?" in location else "?") + urlencode({"digest": blob.digest})
        data: Any = window if window.size else b""
        headers = _headers(window) if window.start and window.size else {"Content-Type": "application/octet-stream"}
        try:
            with registry.request("PUT", url, scope, attempts=1, data=data, headers=headers) as response:
                _take(response, where, 201)
            return
        except FetchError as error:
            failures += 1
            if not error.retryable or failures >= _ATTEMPTS:
                raise
            _pause(registry, failures)
            if has_blob(registry, repository, blob):
                return  # only the answer was lost
            location, window = _rest(registry, scope, location, window, where, error)


def _pause(registry: Registry, failures: int) -> None:
    time.sleep(registry.patience.backoff * 2 ** (failures - 1))


def _headers(window: _Window) -> dict[str, str]:
    return {"Content-Type": "application/octet-stream",
            "Content-Range": f"{window.start}-{window.start + window.size - 1}"}


def _take(response: requests.Response, where: str, *statuses: int) -> None:
    """Raises FetchError unless the registry took what was sent; retryable if it may take it the next time."""
    status = response.status_code
    if status in statuses:
        return
    words = registry_words(response)
    if "DIGEST_INVALID" in words:
        error = FetchError("what the registry received is not what was sent", where=where, found=words,
                           cure="./doit store:verify, then push again")
    else:
        error = FetchError("the registry does not take a piece of a blob", where=where,
                           found=f"status {status} {words}".rstrip())
    error.retryable = status >= 500 or status in (408, 416, 425, 429)
    raise error


def _rest(registry: Registry, scope: str, location: str, window: _Window, where: str,
          error: FetchError) -> tuple[str, _Window]:
    """Where to go on after a piece broke off, and what of it is left."""
    end = window.start + window.size
    location, there = _state(registry, scope, location, where)
    if not window.start <= there <= end:
        raise error  # the registry lost what it had confirmed: this upload cannot go on
    return location, _Window(window.path, there, end - there, window.report)


def _state(registry: Registry, scope: str, location: str, where: str) -> tuple[str, int]:
    """Ask how many bytes of an upload are there."""
    response = registry.request("GET", location, scope)
    response.close()
    registry.expect(response, where, 204)
    match = re.fullmatch(r"(?:bytes=)?0-(\d+)", response.headers.get("Range", ""))
    last = int(match[1]) if match else -1
    # `0-0` is written for nothing and for one byte alike; nothing is the safe reading only if we resend from 0.
    return _location(registry, response, where, location), last + 1 if last > 0 else 0


def _location(registry: Registry, response: requests.Response, where: str, before: str = "") -> str:
    location = response.headers.get("Location", "") or before
    if not location:
        raise FetchError("the registry does not say where to send a blob", where=where, expected="a Location header")
    return urljoin(response.url or registry.base, location)
