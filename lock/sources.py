"""What is wanted, and where it lies: the words that fetching and its sources share.

A source turns a `Wanted` (names and a hash, as a lock holds them) into a `Location` (an address and how to be let in).
Hosts and credentials exist only in a `Location`, never in a lock, a key or an argument list.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit, urlunsplit


@dataclass(frozen=True)
class Wanted:
    """One file of a lock.

    Attributes:
        kind: `wheel`, `deb` or `oci`: which source knows where it lies.
        name: project or package.
        version: of the package; only for messages.
        file: file name (wheels) or path below the archive (debs).
        size: bytes; 0 if the index did not say.
        sha256: 64 hex digits.
        index: name in `targets/indexes.yaml`.
    """

    kind: str
    name: str
    version: str
    file: str
    size: int
    sha256: str
    index: str

    @property
    def digest(self) -> str:
        return "sha256:" + self.sha256


@dataclass(frozen=True)
class Location:
    """Where one file is read from.

    Attributes:
        urls: http(s) addresses; a later one is tried only when an earlier one does not have the file.
        path: a file of this machine; then `urls` is not read.
        headers: sent with each request. With an `Authorization` header `auth` and netrc are left out.
        auth: user and password; None leaves it to netrc.
        verify: True for the usual certificate authorities, or a bundle (file or directory), or False.
        cert: client certificate with its key, one PEM file.
        proxies: scheme to proxy; empty leaves it to the environment.
        timeout: seconds for connecting.
    """

    urls: tuple[str, ...] = ()
    path: Path | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    auth: tuple[str, str] | None = None
    verify: bool | str = True
    cert: str | None = None
    proxies: Mapping[str, str] = field(default_factory=dict)
    timeout: float = 15.0


class Source(Protocol):
    """Knows where the files of one kind lie. Called from several threads."""

    def locate(self, wanted: Wanted) -> Location:
        """Where `wanted` lies now. Asked again when a server answers 401, so that a token can be renewed.

        Raises:
            FetchError: its index cannot be read, or has it no more.
            IntegrityError: its index has another file of that name.
        """
        ...


class Progress(Protocol):
    """Is told how a fetch goes. Called from several threads.

    It may raise KeyboardInterrupt, to stop the fetch and keep what is begun.
    """

    def begin(self, name: str, size: int) -> None:
        """A file is taken up; `size` in bytes, 0 if unknown."""

    def advance(self, name: str, nbytes: int) -> None:
        """`nbytes` more are there (at once, what an earlier run left); negative when a file is begun anew; 0 as a sign
        of life, twice a second."""

    def end(self, name: str) -> None:
        """The file is in the store, or given up."""


def bare(url: str) -> str:
    """`url` without user, password, query and fragment: what may be shown and logged."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))
