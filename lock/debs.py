"""Resolve Debian packages to exact files, by apt's own solver.

apt runs against a private root: its own sources, lists, cache and status, one architecture, no
Recommends. It verifies the archive's signature with the archive's keyring. The host's packages,
sources and lists play no part and are not touched; of its configuration only how to reach the
network is taken over (`Acquire::http` and the like: proxies, certificates, retries). Works as an
ordinary user.

Needs apt and gpgv to lock; a build needs neither.

Writes a temporary directory and removes it. Not here: apt itself (`lock/apt_root.py`), where archives
are (`lock/apt_archive.py`), fetching the packages (`lock/deb_source.py`), what is in them (`assemble/`).
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from urllib.parse import unquote

from cache.errors import InputError, LockError
from lock.apt_archive import Archive, address, keyring
from lock.apt_root import PrivateApt, Suite
from lock.deb_source import DebSource

__all__ = ["DebLock", "DebRequest", "DebSource", "LockedDeb", "SuiteState", "lock_debs"]


@dataclass(frozen=True)
class DebRequest:
    """What is wanted.

    Attributes:
        distribution: name of an archive in `archives`, for instance `debian`.
        suite: for instance `bookworm`.
        components: for instance `("main",)`.
        architecture: Debian's name, for instance `arm64`.
        packages: package names; apt's `name=version` works too.
        essential: take the suite's Essential packages too. False on a base image, which has its own.
        security, updates: use the suites `<suite>-security`, `<suite>-updates` too.
        snapshot: resolve against the archive as it was at this date (`2025-05-20`, or
            `20250520T000000Z`); the archive must have `snapshot` configured.
        installed_status: dpkg's status of a base image, which the packages are solved against.
    """

    distribution: str
    suite: str
    components: tuple[str, ...]
    architecture: str
    packages: tuple[str, ...]
    essential: bool = True
    security: bool = False
    updates: bool = False
    snapshot: str | None = None
    installed_status: bytes | None = None


@dataclass(frozen=True)
class LockedDeb:
    """An exact file: `file` is its path below the archive, `index` the archive's name."""

    name: str
    version: str
    architecture: str
    file: str
    size: int
    sha256: str
    index: str


@dataclass(frozen=True)
class SuiteState:
    """A suite as it was when it was resolved.

    Attributes:
        index: the archive's name.
        suite: for instance `bookworm-security`.
        date: of its signed Release, `20250520T101530Z`.
        release: `sha256:<hex>` of that file (`InRelease`).
        snapshot: the date of the snapshot that it was read from; `""`: from the archive itself.
    """

    index: str
    suite: str
    date: str
    release: str
    snapshot: str = ""


@dataclass(frozen=True)
class DebLock:
    """The answer: exact files by name, and what they were resolved from."""

    debs: tuple[LockedDeb, ...]
    suites: tuple[SuiteState, ...]


def lock_debs(
    request: DebRequest,
    archives: Mapping[str, Archive],
    *,
    previous: Sequence[LockedDeb] = (),
    upgrade: bool | frozenset[str] = False,
    log: Callable[[str], None] = lambda line: None,
) -> DebLock:
    """Resolve `request` and its dependencies.

    Args:
        archives: by name.
        previous: files locked earlier; each is kept if the archive still has it and it still fits.
        upgrade: True: keep none of them; a set: keep all but these packages.
        log: takes lines of text for people.

    Raises:
        InputError: an unknown archive, or nothing says where it is.
        ToolError: apt or the archive's keyring is missing.
        FetchError: the archive cannot be reached.
        IntegrityError: the archive's signature does not verify.
        LockError: there is no solution; the text is apt's.
    """
    if request.distribution not in archives:
        raise InputError("no archive of this name is configured", where="targets/indexes.yaml",
                         found=request.distribution, expected=", ".join(sorted(archives)) or "an entry of type apt")
    sources = suites_of(request, archives[request.distribution])
    keys = keyring(archives[request.distribution])
    with tempfile.TemporaryDirectory(prefix="stagecraft-apt-") as directory:
        apt = PrivateApt(Path(directory), sources, architecture=request.architecture, components=request.components,
                         keys=keys, dated=request.snapshot is not None, status=request.installed_status or b"")
        apt.update()
        wanted = list(request.packages)
        if request.essential:
            wanted.append("?essential")
            # Our layers have one /usr. This package states that; the alternative that apt would choose
            # (usrmerge) brings perl to do it.
            wanted += [name for name in ("usr-is-merged",) if name in apt.names()]
        pins = {} if upgrade is True else {
            deb.name: deb.version for deb in previous if not upgrade or deb.name not in upgrade}
        debs = _solve(apt, wanted, pins, sources, log)
        dated = snapshot_date(request.snapshot) if request.snapshot is not None else ""
        return DebLock(tuple(sorted(debs, key=lambda deb: deb.name)), tuple(
            SuiteState(source.index, source.suite, *apt.release(source), dated) for source in sources))


def suites_of(request: DebRequest, archive: Archive) -> list[Suite]:
    """The suites that a request names, with their addresses.

    Raises:
        InputError: an address is not known, the date is malformed or no snapshot is configured.
    """
    def place(index: str, *, security: bool) -> str:
        if request.snapshot is None:
            return address(archive, request.suite, request.architecture, security=security)
        url = archive.dated(index, snapshot_date(request.snapshot))
        if url is None:
            raise InputError("the target wants a dated archive, and none is configured", found=request.snapshot,
                             where=f"targets/indexes.yaml, {archive.name}", expected="`snapshot` there")
        return url

    url = place(archive.name, security=False)
    found = [Suite(archive.name, url, request.suite)]
    if request.updates:
        found.append(Suite(archive.name, url, f"{request.suite}-updates"))
    if request.security:
        found.append(Suite(archive.security_index, place(archive.security_index, security=True),
                           f"{request.suite}-security"))
    return found


def snapshot_date(text: str) -> str:
    """`2025-05-20` or `20250520T000000Z` as the latter. Raises InputError for anything else."""
    for form in ("%Y-%m-%d", "%Y%m%dT%H%M%SZ"):
        try:
            return datetime.strptime(text, form).strftime("%Y%m%dT%H%M%SZ")
        except ValueError:
            pass
    raise InputError("not a date", found=text, expected="2025-05-20 or 20250520T000000Z")


def _solve(apt: PrivateApt, wanted: list[str], pins: dict[str, str], sources: Sequence[Suite],
           log: Callable[[str], None]) -> list[LockedDeb]:
    while True:
        try:
            return parse_uris(apt.solve(wanted, pins), sources)
        except LockError as error:
            blocking = pins.keys() & blamed(error.found or "")
            if not pins:
                raise
            if blocking:
                log(f"packages that no longer fit with what is wanted, free to move: {', '.join(sorted(blocking))}")
                pins = {name: version for name, version in pins.items() if name not in blocking}
            else:
                log("what was locked no longer fits together: all packages free to move")
                pins = {}


def blamed(text: str) -> set[str]:
    """The packages that apt's "unmet dependencies" text names, on either side."""
    found = set()
    for line in text.splitlines():
        match = re.match(r"^ (?:(\S+) : |\s+)(?:Pre-)?(?:Depends|Breaks|Conflicts): (\S+)", line)
        if match:
            found |= {name.partition(":")[0] for name in match.groups() if name}
    return found


def parse_uris(text: str, sources: Sequence[Suite]) -> list[LockedDeb]:
    """Read the output of `apt-get --print-uris`: one `'URL' name_version_arch.deb size SHA256:hex` a line.

    Raises:
        LockError: a line that is not like that, or a file from an archive that was not given.
    """
    found = []
    for line in text.splitlines():
        if not line.startswith("'"):
            continue
        match = re.fullmatch(r"'([^']+)' ([^_ ]+)_([^_ ]+)_([^_ ]+)\.deb (\d+) SHA256:([0-9a-f]{64})", line.strip())
        if match is None:
            raise LockError("apt named a file without its sha256", found=line)
        url, name, version, architecture, size, sha256 = match.groups()
        for source in sources:
            if url.startswith(source.url):
                found.append(LockedDeb(name, unquote(version), architecture, unquote(url[len(source.url):]),
                                       int(size), sha256, source.index))
                break
        else:
            raise LockError("apt named a file of another archive", found=url)
    return found
