"""Files that are locked by address and sha256: what a recipe or a target names outside of every index.

In a lock such a file has its address as `index`. The source of kind `url` for `lock.fetch`; mirrors are asked first,
as for Git trees (`lock.git_tree.addresses`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from cache.errors import FetchError
from cache.store import Store
from lock.client import read_client
from lock.fetch import fetch
from lock.git_tree import addresses
from lock.sources import Location, Wanted, bare


class UrlSource:
    """Locates files by their address, with the client's certificates and proxy."""

    def __init__(self, mirrors: Mapping[str, Sequence[str]] | None = None) -> None:
        self._mirrors = mirrors or {}

    def locate(self, wanted: Wanted) -> Location:
        """The first copy on this machine, or every address in order.

        Raises:
            FetchError: none of them can be read by HTTP, and no file is there.
        """
        tried = addresses(wanted.index, self._mirrors)
        for address in tried:
            path = _path(address)
            if path is not None and path.is_file():
                return Location(path=path)
        urls = [address for address in tried if address.startswith(("http://", "https://"))]
        if not urls:
            raise FetchError("nobody has a file that is locked by its address", where=bare(wanted.index),
                             found=", ".join(map(bare, tried)), cure="name a copy under sources.mirrors of the target")
        client = read_client()
        return Location(urls=tuple(urls), verify=client.verify(urls[0]), proxies=client.proxies(),
                        timeout=client.timeout)


def _path(address: str) -> Path | None:
    """The file of this machine that an address names."""
    if address.startswith("/"):
        return Path(address)
    return Path(unquote(urlsplit(address).path)) if address.startswith("file://") else None


def lock_url(store: Store, name: str, version: str, url: str, sha256: str,
             mirrors: Mapping[str, Sequence[str]] | None = None) -> Wanted:
    """Fetch a file once, so that the lock has its size.

    Raises:
        FetchError: no address gives it.
        IntegrityError: it is another file.
    """
    file = urlsplit(url).path.rpartition("/")[2]
    wanted = Wanted("url", name, version, file, 0, sha256, url)
    fetch(store, [wanted], {"url": UrlSource(mirrors)})
    return Wanted("url", name, version, file, store.path_of(wanted.digest).stat().st_size, sha256, url)
