"""Where locked Debian packages lie: the archive, then its snapshots.

An archive drops a package when a newer one supersedes it. If a snapshot of the archive is configured,
such a file is tried there, as of the days on which the target was locked.
"""

from __future__ import annotations

import netrc
import re
import subprocess
import threading
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol
from urllib.parse import quote, urlsplit

from cache.errors import FetchError
from lock.apt_archive import Archive, address
from lock.client import credentials_in
from lock.sources import Location, Wanted

_FORM = "%Y%m%dT%H%M%SZ"
#: A snapshot is taken some hours after the Release that it holds.
_LATER = (timedelta(hours=6), timedelta(days=1), timedelta())


class Dated(Protocol):
    """What is read of a locked suite (`lock.debs.SuiteState`)."""

    @property
    def index(self) -> str: ...
    @property
    def date(self) -> str: ...
    @property
    def snapshot(self) -> str: ...


class DebSource:
    """The source of kind `deb` for `lock.fetch`.

    Args:
        archives: by name.
        suites: what the lock was resolved from; their dates are where superseded files are looked for.
    """

    def __init__(self, archives: Mapping[str, Archive], suites: Sequence[Dated] = ()) -> None:
        self._archives = archives
        self._dates: dict[str, list[str]] = {}
        for suite in suites:
            dates = [suite.snapshot] if suite.snapshot else later(suite.date)
            known = self._dates.setdefault(suite.index, [])
            known += [date for date in dates if date not in known]
        self._frozen = {suite.index for suite in suites if suite.snapshot}
        self._addresses: dict[tuple[str, str], str] = {}
        self._proxies: dict[str, str] | None = None
        self._lock = threading.Lock()

    def locate(self, wanted: Wanted) -> Location:
        """See `lock.sources.Source`.

        Raises:
            FetchError: no archive of that name is configured.
            InputError: nothing says where it is.
        """
        security = wanted.index not in self._archives and wanted.index.endswith("-security")
        archive = self._archives.get(wanted.index.removesuffix("-security") if security else wanted.index)
        if archive is None:
            raise FetchError(f"no archive {wanted.index} is configured", where=wanted.file,
                             cure="name it in targets/indexes.yaml, or lock again")
        architecture = wanted.file.removesuffix(".deb").rpartition("_")[2]
        if architecture == "all":
            architecture = "amd64"  # where a distribution has two archives, both have these
        snapshots = [url for date in self._dates.get(wanted.index, ())
                     if (url := archive.dated(wanted.index, date)) is not None]
        places = snapshots
        if wanted.index not in self._frozen or not snapshots:
            places = [self._address(archive, wanted.index, architecture, security=security), *snapshots]
        with self._lock:
            if self._proxies is None:
                self._proxies = apt_proxies()
        return Location(urls=tuple(_bare(place) + quote(wanted.file, safe="/~") for place in places),
                        auth=credentials_in(places[0]) or _auth_conf(places[0]), proxies=self._proxies)

    def _address(self, archive: Archive, index: str, architecture: str, *, security: bool) -> str:
        with self._lock:
            key = (index, architecture)
            if key not in self._addresses:
                self._addresses[key] = address(archive, "", architecture, security=security)
            return self._addresses[key]


def later(date: str) -> list[str]:
    """The dates at which to look for what a Release of `date` named."""
    try:
        return [(datetime.strptime(date, _FORM) + step).strftime(_FORM) for step in _LATER]
    except ValueError:
        return []


def apt_proxies(dump: str | None = None) -> dict[str, str]:
    """The host's proxies for apt, as `requests` wants them; empty without apt."""
    if dump is None:
        try:
            dump = subprocess.run(["apt-config", "dump", "Acquire"], capture_output=True, text=True, check=False,
                                  stdin=subprocess.DEVNULL).stdout
        except OSError:
            return {}
    found = {}
    for scheme, host, value in re.findall(r'^Acquire::(https?)::Proxy(?:::([^ ]+))? "(.*)";$', dump, re.MULTILINE):
        if value and value != "DIRECT":
            found[f"{scheme}://{host}" if host else scheme] = value
        elif value == "DIRECT" and host:
            found[f"{scheme}://{host}"] = ""
    if "http" in found:
        found.setdefault("https", found["http"])  # apt's own rule
    return found


def _auth_conf(url: str) -> tuple[str, str] | None:
    """Credentials for an archive in apt's own files, which have the form of netrc."""
    host = urlsplit(url).hostname or ""
    directory = Path("/etc/apt/auth.conf.d")
    for path in [Path("/etc/apt/auth.conf"), *(sorted(directory.glob("*.conf")) if directory.is_dir() else ())]:
        try:
            found = netrc.netrc(str(path)).authenticators(host)
        except (OSError, netrc.NetrcParseError):
            continue
        if found and found[0]:
            return found[0], found[2] or ""
    return None


def _bare(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
