"""A wheel where it lies: its metadata, its list of members, and single members or their beginnings.

METADATA comes apart where the index serves it so (PEP 658), else as a member. Members come by HTTP ranges: the end of
the archive, its directory, then the member. If the server answers 200 to a range, or wrongly, the wheel is downloaded
once, whole, into the store, and read there. A wheel that is in the store already is read there at once.

`verified` tells the two apart: bytes out of the store are those of the wheel's sha256; bytes that came by ranges are
what the server sent, held to the CRC of each whole member only. They are advice; nothing is built from them.
"""

from __future__ import annotations

import hashlib
import io
import re
import time
from collections.abc import Callable
from typing import TypeVar

import requests
import urllib3

from cache.errors import FetchError, IntegrityError
from cache.store import Store
from cache.zip_reader import Member, ZipReader
from lock.fetch import fetch
from lock.ranged import NoRangesError, RemoteFile
from lock.simple import IndexFile, WheelSource
from lock.sources import Wanted, bare
from lock.transfer import Policy, in_words, open_response

_T = TypeVar("_T")
#: Compressed bytes that are asked for at once: the symbols of most of vLLM's libraries are in the first 64 KiB.
_FEED = 64 << 10
#: A METADATA larger than this is none (the largest of a vLLM set has 150 kB, with its readme).
_METADATA_LIMIT = 16 << 20
_METADATA = re.compile(r"[^/]+\.dist-info/METADATA")


class RemoteWheel:
    """One wheel of an index; use as a context manager. For one thread.

    Args:
        wanted: the wheel, as a lock names it.
        log: takes one line.

    Attributes:
        fetched: bytes that came over the network.
        verified: True once bytes come out of the store, where they were held to the sha256.
    """

    def __init__(self, store: Store, wanted: Wanted, source: WheelSource, session: requests.Session, *,
                 policy: Policy | None = None, log: Callable[[str], None] = lambda line: None) -> None:
        self._store, self.wanted, self._source, self._session = store, wanted, source, session
        self._policy, self._log = policy or Policy(), log
        self._remote: RemoteFile | None = None
        self._reader: ZipReader | None = None
        self._apart = 0
        self.verified = store.has(wanted.digest)

    def __enter__(self) -> RemoteWheel:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    @property
    def fetched(self) -> int:
        return self._apart + (self._remote.fetched if self._remote is not None else 0)

    def metadata(self) -> bytes:
        """METADATA, from beside the wheel if the index has it there, else out of the wheel.

        Raises:
            FetchError: the index does not answer, or has the wheel no more.
            IntegrityError: METADATA beside the wheel is not what the index says; no wheel; a malformed archive.
        """
        if not self.verified and self._reader is None:
            offered = self._source.offer(self.wanted)
            if offered.metadata is not None:
                found = self._beside(offered)
                if found is not None:
                    return found
        return self._with(self._metadata_member)

    def members(self) -> dict[str, int]:
        """Name of each member to its size in bytes. Raises: see `metadata`."""
        return self._with(lambda reader: {member.name: member.size for member in reader.members})

    def read(self, name: str, limit: int = 64 << 20) -> bytes | None:
        """A whole member, checked against its CRC; None if there is none.

        Raises:
            IntegrityError: larger than `limit`, or damaged.
            FetchError: the index does not answer.
        """
        def whole(reader: ZipReader) -> bytes | None:
            member = _named(reader, name)
            if member is None:
                return None
            if self._remote is not None and not self.verified and member.compressed <= limit:
                # One request instead of one for each piece.
                self._remote.pread(member.compressed + len(member.raw) + 512, member.offset)
            return reader.read(member, limit)

        return self._with(whole)

    def beginning(self, name: str, found: Callable[[bytes], _T | None], limit: int = 8 << 20) -> _T | None:
        """What `found` sees in the beginning of a member: it is given more and more, until it gives something.

        Args:
            limit: most bytes of content that are read; then, and where the member ends, the answer may be None.

        Raises: see `read`; the CRC is not looked at.
        """
        def grow(reader: ZipReader) -> _T | None:
            member = _named(reader, name)
            if member is None:
                return None
            data, tried = bytearray(), 0
            for chunk in reader.chunks(member):
                data += chunk
                # Trying costs as much as there is: each time there is a quarter more.
                if len(data) >= tried * 5 // 4:
                    seen, tried = found(bytes(data)), len(data)
                    if seen is not None:
                        return seen
                if len(data) >= limit:
                    break
            return found(bytes(data)) if len(data) > tried else None

        return self._with(grow)

    # -- how it is read ---------------------------------------------------------------------------

    def _with(self, action: Callable[[ZipReader], _T]) -> _T:
        """Do it with the archive as it can be had: in the store, in place, or downloaded because there is no way."""
        try:
            return action(self._open())
        except NoRangesError as error:
            self._log(f"{self.wanted.file}: index {self.wanted.index} gives no single parts ({error}); "
                      "the whole wheel is fetched")
        self._close()
        fetch(self._store, [self.wanted], {self.wanted.kind: self._source}, policy=self._policy)
        self._apart += self.wanted.size
        self.verified = True
        return action(self._open())

    def _open(self) -> ZipReader:
        if self._reader is None:
            wanted = self.wanted
            if self.verified:
                self._reader = ZipReader(self._store.use(wanted.digest), wanted.file)
                return self._reader
            location = self._source.locate(wanted)
            if location.path is not None:
                self._reader = ZipReader(location.path, wanted.file)
                return self._reader
            if not wanted.size:
                raise NoRangesError("its size is not known")
            if self._remote is None:
                self._remote = RemoteFile(wanted, self._source, self._session, self._policy)
            self._reader = ZipReader(self._remote, wanted.file, feed=_FEED)
        return self._reader

    def _close(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _metadata_member(self, reader: ZipReader) -> bytes:
        found = [member for member in reader.members if _METADATA.fullmatch(member.name)]
        if len(found) != 1:
            raise IntegrityError("a wheel must have one METADATA", where=self.wanted.file,
                                 found=", ".join(member.name for member in found) or "none",
                                 cure="take another version, or another index")
        return reader.read(found[0], _METADATA_LIMIT)

    # -- PEP 658 ----------------------------------------------------------------------------------

    def _beside(self, offered: IndexFile) -> bytes | None:
        """The file `<wheel>.metadata`; None if it is not there though the index says so: some mirror pages only."""
        location = self._source.place(self.wanted, offered)
        if location.path is not None:
            return None
        url, last = location.urls[0] + ".metadata", ""
        for number in range(self._policy.attempts):
            if number:
                time.sleep(min(self._policy.longest, self._policy.backoff * 2 ** (number - 1)))
            try:
                with open_response(self._session, url, location, {"Accept-Encoding": "identity"},
                                   self._policy.stall) as response:
                    if response.status_code in (403, 404, 410):
                        return None
                    last = f"status {response.status_code} {response.reason}"
                    if response.status_code == 200:
                        return self._held(self._body(response), offered, url)
            except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
                last = in_words(error)
        raise FetchError(f"the metadata of {self.wanted.file} could not be fetched",
                         where=f"index {self.wanted.index}: {bare(url)}", expected="status 200", found=last,
                         cure="try again when the index answers")

    def _body(self, response: requests.Response) -> bytes:
        data = io.BytesIO()
        while chunk := response.raw.read(1 << 16, decode_content=True):
            data.write(chunk)
            self._apart += len(chunk)
            if data.tell() > _METADATA_LIMIT:
                raise IntegrityError("METADATA beside the wheel has no end", where=bare(response.url),
                                     expected=f"at most {_METADATA_LIMIT} bytes", cure="take another index")
        told = response.headers.get("Content-Length", "")
        if told.isdigit() and "Content-Encoding" not in response.headers and data.tell() != int(told):
            raise urllib3.exceptions.IncompleteRead(data.tell(), int(told) - data.tell())
        return data.getvalue()

    def _held(self, data: bytes, offered: IndexFile, url: str) -> bytes:
        digest = hashlib.sha256(data).hexdigest()
        if offered.metadata and digest != offered.metadata:
            raise IntegrityError(
                f"the metadata of {self.wanted.file} is not what its index says",
                where=f"index {self.wanted.index}: {bare(url)}", expected=f"sha256:{offered.metadata}",
                found=f"sha256:{digest}", cure="the index is inconsistent: try again later, or name another")
        return data


def _named(reader: ZipReader, name: str) -> Member | None:
    return next((member for member in reader.members if member.name == name), None)
