"""Reading indexes: project pages (PEP 503 HTML, PEP 691 JSON), links, directories; and the source of wheels.

Parsing is pure; `Pages` reads each page once and is safe to use from several threads. Nothing is written.
Not here: choosing versions (uv does), and choosing among a version's wheels (`lock.tags`).
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

import requests
import urllib3
from packaging.utils import canonicalize_name

from cache.errors import FetchError, IntegrityError
from lock.indexes import Indexes, WheelIndex, variable, without_credentials
from lock.sources import Location, Wanted, bare
from lock.transfer import cure_of, in_words, open_response

ACCEPT = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"
_LARGEST = 256 << 20
_TRIES = 4
_KEPT = 8


@dataclass(frozen=True, slots=True)
class IndexFile:
    """One file that an index offers; what the index does not say is empty, 0 or None.

    Attributes:
        file: file name.
        url: address, without credentials.
        sha256: 64 hex digits.
        size: bytes.
        requires_python: version specifier.
        yanked: None: not yanked; else the reason, perhaps empty.
        uploaded: RFC 3339 time.
        metadata: None: its METADATA is not served apart; else `sha256` of it, perhaps empty (PEP 658).
    """

    file: str
    url: str
    sha256: str = ""
    size: int = 0
    requires_python: str = ""
    yanked: str | None = None
    uploaded: str = ""
    metadata: str | None = None


# -- parsing --------------------------------------------------------------------------------------


class _Anchors(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.base = ""
        self.found: list[dict[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        if tag == "base" and not self.base:
            self.base = known.get("href") or ""
        if tag == "a" and known.get("href"):
            self.found.append(known)


def parse_html(text: str, url: str) -> list[IndexFile]:
    """Files named by the links of a page at `url` (PEP 503, with the attributes of PEP 592, 658 and 714)."""
    parser = _Anchors()
    parser.feed(text)
    parser.close()
    base = urljoin(url, parser.base)
    files = []
    for anchor in parser.found:
        target, _, fragment = (anchor["href"] or "").partition("#")
        target = _absolute(base, target)
        path = target if "?" not in target and target.count("/") > 2 else urlsplit(target).path
        file = unquote(path.rpartition("/")[2])
        if not _plain(file):
            continue
        digest = fragment.removeprefix("sha256=") if fragment.startswith("sha256=") else ""
        told = anchor.get("data-core-metadata", anchor.get("data-dist-info-metadata", "none"))
        yanked = (anchor["data-yanked"] or "") if "data-yanked" in anchor else None
        files.append(IndexFile(file, target, digest.lower(), 0,
                               anchor.get("data-requires-python") or "", yanked,
                               anchor.get("data-upload-time") or "", _metadata(told)))
    return files


def _metadata(told: str | None) -> str | None:
    if told in ("none", "false"):
        return None
    return told.removeprefix("sha256=") if told and told.startswith("sha256=") else ""


def parse_json(data: Any, url: str) -> list[IndexFile]:
    """Files of a PEP 691 project page at `url`.

    Raises:
        ValueError: it is something else.
    """
    try:
        files = []
        for item in data["files"]:
            file, hashes = item["filename"], item.get("hashes", {})
            if not _plain(file):
                raise ValueError(f"not a file name: {file!r}")
            told = item.get("core-metadata", item.get("dist-info-metadata", False))
            metadata = None if not told else told.get("sha256", "") if isinstance(told, dict) else ""
            yanked = item.get("yanked", False)
            files.append(IndexFile(
                file, _absolute(url, item["url"]), str(hashes.get("sha256", "")).lower(),
                int(item.get("size") or 0), item.get("requires-python") or "",
                None if yanked is False else yanked if isinstance(yanked, str) else "",
                item.get("upload-time") or "", metadata))
        return files
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a project page: {error!r}") from error


def _absolute(page: str, url: str) -> str:
    # A large project lists thousands of files; nearly all addresses are whole and clean already.
    if url.startswith("https://") and "@" not in url:
        return url
    return without_credentials(urljoin(page, url))


def _plain(file: object) -> bool:
    return isinstance(file, str) and file not in ("", ".", "..") and not set(file) & set("/\\\0")


def project_of(file: str) -> str:
    """Normalised project name out of the name of a wheel or sdist; empty if it is neither."""
    if file.endswith(".whl"):
        return canonicalize_name(file.split("-", 1)[0])
    for suffix in (".tar.gz", ".zip", ".tar.bz2"):
        if file.endswith(suffix):
            return canonicalize_name(file.removesuffix(suffix).rpartition("-")[0])
    return ""


# -- reading --------------------------------------------------------------------------------------


class Pages:
    """What indexes offer. Safe for several threads.

    Pages are kept while they are likely to be asked for again: those of links always, those of projects until `_KEPT`
    others were read (a page of a large project is megabytes, and a lock names hundreds of projects).
    """

    def __init__(self, indexes: Indexes) -> None:
        self._indexes = indexes
        self._mutex = threading.Lock()
        self._read: dict[tuple[str, str], Future[tuple[IndexFile, ...]]] = {}
        self._local = threading.local()

    def files(self, index: str, project: str) -> tuple[IndexFile, ...]:
        """All files of a project on an index, in the order of its pages; empty if it has no such project.

        Raises:
            FetchError: a page cannot be read.
            InputError: no such index.
        """
        entry = self._indexes.wheels(index)
        return tuple(item for place in (*entry.pages, *entry.links) for item in self.on(entry, place, project))

    def on(self, entry: WheelIndex, place: str, project: str) -> list[IndexFile]:
        """The files of a project on one of an index's pages or links. Raises FetchError."""
        name = canonicalize_name(project)
        if place in entry.links:
            return [item for item in self._once(entry, place, self._links) if project_of(item.file) == name]
        return list(self._once(entry, place.rstrip("/") + f"/{name}/", self._page))

    def _once(self, entry: WheelIndex, url: str,
              read: Callable[[WheelIndex, str], Iterable[IndexFile]]) -> tuple[IndexFile, ...]:
        with self._mutex:
            future = self._read.get((entry.name, url))
            mine = future is None
            if future is None:
                future = self._read[(entry.name, url)] = Future()
                projects = [key for key, other in self._read.items() if other.done() and key[1] not in entry.links]
                for key in projects[:-_KEPT]:
                    del self._read[key]
        if mine:
            try:
                future.set_result(tuple(read(entry, url)))
            except BaseException as error:
                future.set_exception(error)
                with self._mutex:
                    self._read.pop((entry.name, url), None)  # the next call may try again
        return future.result()

    def _page(self, entry: WheelIndex, url: str) -> list[IndexFile]:
        location = self._indexes.location(url, entry)
        if location.path is None:
            return self._get(entry, location)
        root = location.path.parent
        if not root.is_dir():
            raise self._failed(entry, str(root), "no such directory")
        page = location.path / "index.html"
        return parse_html(page.read_text("utf-8"), page.as_uri()) if page.is_file() else []

    def _links(self, entry: WheelIndex, url: str) -> list[IndexFile]:
        location = self._indexes.location(url, entry)
        if location.path is None:
            return self._get(entry, location)
        path = location.path
        if path.is_dir():
            return [IndexFile(item.name, item.resolve().as_uri(), "", item.stat().st_size)
                    for item in sorted(path.iterdir()) if item.is_file()]
        if path.is_file():
            return parse_html(path.read_text("utf-8"), path.resolve().as_uri())
        raise self._failed(entry, str(path), "no such file or directory")

    def _get(self, entry: WheelIndex, location: Location) -> list[IndexFile]:
        url, last = location.urls[0], ""
        for number in range(_TRIES):
            if number:
                time.sleep(0.2 * 3 ** (number - 1))
            try:
                with open_response(self.session(), url, location, {"Accept": ACCEPT}, location.timeout) as response:
                    if response.status_code in (404, 410):
                        return []
                    if response.status_code == 200:
                        return self._parse(entry, response)
                    last = f"status {response.status_code} {response.reason}"
                    if response.status_code in (401, 403):
                        raise self._failed(entry, bare(url), last, "credentials go into netrc, or into the index's "
                                                                   "address in pip's or uv's configuration")
                    if response.status_code < 500 and response.status_code not in (408, 425, 429):
                        break
            except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
                last = in_words(error)
                if cure_of(error):
                    raise self._failed(entry, bare(url), last, cure_of(error)) from error
        raise self._failed(entry, bare(url), last)

    def _parse(self, entry: WheelIndex, response: requests.Response) -> list[IndexFile]:
        body = response.raw.read(_LARGEST, decode_content=True)
        kind = response.headers.get("Content-Type", "")
        try:
            if "json" in kind:
                return parse_json(json.loads(body), response.url)
            return parse_html(body.decode("utf-8", "replace"), response.url)
        except ValueError as error:
            raise self._failed(entry, bare(response.url), str(error)) from error

    def session(self) -> requests.Session:
        """This thread's connections: a new one costs a handshake and the reading of all certificate authorities."""
        session = getattr(self._local, "session", None)
        if session is None:
            session = self._local.session = requests.Session()
        return session

    @staticmethod
    def _failed(entry: WheelIndex, where: str, found: str, cure: str = "") -> FetchError:
        return FetchError(f"index {entry.name} cannot be read", where=f"{where} ({entry.place})", found=found,
                          cure=cure or f"try again when it answers, or name a mirror: {variable(entry.name)}=URL")


def probe(indexes: Indexes, name: str) -> str:
    """Whether each address of a wheel index answers; empty if so, else what is wrong, in a line."""
    entry = indexes.wheels(name)
    for url in (*entry.pages, *entry.links):
        location = indexes.location(url, entry)
        if location.path is not None:
            if not location.path.exists():
                return f"{location.path} does not exist"
            continue
        try:
            answer = requests.head(location.urls[0], auth=location.auth, verify=location.verify, cert=location.cert,
                                   proxies=dict(location.proxies), timeout=5, allow_redirects=True)
        except (requests.RequestException, OSError) as error:
            return in_words(error)
        if answer.status_code in (401, 403) or answer.status_code >= 500:
            return f"status {answer.status_code}"
    return ""


class WheelSource:
    """Finds the wheels of a lock on their indexes (a `lock.sources.Source`)."""

    def __init__(self, indexes: Indexes, pages: Pages | None = None) -> None:
        self._indexes = indexes
        self._pages = pages or Pages(indexes)

    def locate(self, wanted: Wanted) -> Location:
        """See `Source.locate`."""
        return self.place(wanted, self.offer(wanted))

    def place(self, wanted: Wanted, offered: IndexFile) -> Location:
        """Where an index's file is read from."""
        return self._indexes.location(offered.url, self._indexes.wheels(wanted.index))

    def offer(self, wanted: Wanted) -> IndexFile:
        """What the index says of the file. Raises: see `Source.locate`."""
        offered = self._pages.files(wanted.index, wanted.name)
        named = [item for item in offered if item.file == wanted.file]
        match = next((item for item in named if item.sha256 == wanted.sha256), None)
        match = match or next((item for item in named if not item.sha256), None)
        if match is not None:
            return match
        if named:
            raise IntegrityError(
                f"index {wanted.index} has another file under the name {wanted.file}", where=bare(named[0].url),
                expected=wanted.digest, found=f"sha256:{named[0].sha256}",
                cure=f"the index replaced it: look at the new one, then lock again (--upgrade {wanted.name})")
        raise FetchError(
            f"index {wanted.index} has no {wanted.file} any more", where=self._indexes.wheels(wanted.index).place,
            expected=wanted.file, found=", ".join(item.file for item in offered[-5:]) or f"no file of {wanted.name}",
            cure=f"lock again (--upgrade {wanted.name}), or name an index that keeps old files")
