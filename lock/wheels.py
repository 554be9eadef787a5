"""Locking wheels: a request in, exact files out.

uv resolves (`lock.uv`); here the one best wheel of each version is chosen, pins are kept, what the index did not say is
asked for, and a request without an answer is put into words (`lock.diagnose`). The result depends on the request, the
previous lock and what the indexes offer, not on this host. Nothing is written.
"""

from __future__ import annotations

import contextlib
import datetime
import difflib
import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import requests
from packaging.requirements import InvalidRequirement, Requirement
from packaging.tags import Tag
from packaging.utils import canonicalize_name
from packaging.version import Version

from cache.errors import FetchError, InputError, LockError
from lock.diagnose import explain
from lock.indexes import Indexes
from lock.simple import Pages
from lock.sources import Location, bare
from lock.tags import build_of, rank, supported, version_of
from lock.transfer import in_words, open_response
from lock.uv import Chosen, Offer, Question, UvError, resolve

_PLAIN = {"Accept-Encoding": "identity"}
_CHUNK = 1 << 20


@dataclass(frozen=True)
class WheelRequest:
    """What is wanted.

    Attributes:
        requirements: PEP 508, without addresses.
        overrides: count instead of what packages ask for (`numpy==1.26.4`).
        constraints: bounds on what is taken if it is needed.
        python: `3.11`.
        machine: `aarch64` or `x86_64`.
        glibc: `2.36`.
        index_of: package to the index that it is taken from, and from no other; the rest is from `default`.
        alone: requirements that are taken as a file, without what they require.
    """

    requirements: tuple[str, ...]
    python: str
    machine: str
    glibc: str
    overrides: tuple[str, ...] = ()
    constraints: tuple[str, ...] = ()
    index_of: Mapping[str, str] | None = None
    alone: tuple[str, ...] = ()


@dataclass(frozen=True, order=True)
class LockedWheel:
    """One wheel of a lock; `sha256` is 64 hex digits, `size` in bytes, `index` a name in `targets/indexes.yaml`."""

    name: str
    version: str
    file: str
    size: int
    sha256: str
    index: str


@dataclass(frozen=True)
class WheelLock:
    """The answer, each part sorted by name."""

    wheels: tuple[LockedWheel, ...]
    alone: tuple[LockedWheel, ...]


def lock_wheels(
    request: WheelRequest,
    indexes: Indexes,
    *,
    previous: Sequence[LockedWheel] = (),
    upgrade: bool | Collection[str] = (),
    exclude_newer: str | None = None,
    log: Callable[[str], None],
) -> WheelLock:
    """Resolve a request to exact wheels.

    Args:
        previous: an earlier lock's wheels (and those taken alone): kept where they still satisfy.
        upgrade: True: keep none of them; names: keep all but these.
        exclude_newer: only files uploaded up to the end of this day (`2026-11-01`, UTC) or before this RFC 3339 time.
        log: takes one line.

    Raises:
        InputError: the request is malformed; no such index; an unknown name in `upgrade`.
        LockError: no set of wheels satisfies it, or an index replaced a locked file.
        FetchError: an index cannot be read.
        ToolError: uv is missing.
    """
    return _Locker(request, indexes, _kept(previous, upgrade), bound(exclude_newer), log).lock()


class _Locker:
    """One run of `lock_wheels`."""

    def __init__(self, request: WheelRequest, indexes: Indexes, kept: Mapping[str, LockedWheel], newest: str,
                 log: Callable[[str], None]) -> None:
        self._request, self._indexes, self._kept, self._newest, self._log = request, indexes, kept, newest, log
        self._pages = Pages(indexes)
        self._ranks = supported(request.python, request.machine, request.glibc)
        self._index_of = {str(canonicalize_name(name)): index for name, index in (request.index_of or {}).items()
                          if index != "default"}
        for index in self._index_of.values():
            indexes.wheels(index)  # a name that nobody knows is said before uv runs
        for line in (*request.requirements, *request.overrides, *request.constraints, *request.alone):
            named(line)

    def lock(self) -> WheelLock:
        request = self._request
        alone = {named(line) for line in request.alone} - {named(line) for line in request.requirements}
        main = {name: index for name, index in self._index_of.items() if name not in alone}
        apart = {name: index for name, index in self._index_of.items() if name in alone}
        wheels = self._part(request.requirements, request.overrides, request.constraints, main, True)
        return WheelLock(wheels, self._part(request.alone, (), (), apart, False))

    def _part(self, requirements: tuple[str, ...], overrides: tuple[str, ...], constraints: tuple[str, ...],
              index_of: Mapping[str, str], dependencies: bool) -> tuple[LockedWheel, ...]:
        if not requirements:
            return ()
        request = self._request
        pins = {name: item.version for name, item in self._kept.items()}
        question = Question(requirements, overrides, constraints, request.python, request.machine, request.glibc,
                            index_of, pins, dependencies, self._newest)
        try:
            chosen = self._resolved(replace(question, overrides=self._addressed(question)))
        except UvError as error:
            raise explain(question, self._pages, str(error)) from error
        self._log(f"uv: {len(chosen)} packages for CPython {request.python}, {request.machine}, glibc {request.glibc}")
        with ThreadPoolExecutor(16) as pool:
            found = list(pool.map(lambda item: self._locked(item, index_of.get(item.name, "default")), chosen))
        for item in found:
            if Version(item.version).is_prerelease:
                self._log(f"{item.name} {item.version} is a pre-release")
        return tuple(sorted(found))

    def _resolved(self, question: Question) -> list[Chosen]:
        """Ask uv, working around what it does with preferences when several places have one version.

        It takes a preferred version from the first place that has it, and gives up if no wheel there fits, though
        another place has one that does. Such pins are made constraints, and let go if they make the request unsolvable.
        """
        hidden = self._hidden(question)
        if hidden:
            soft = {name: version for name, version in question.pins.items() if name not in hidden}
            question = replace(question, pins=soft)
            hard = tuple(f"{name}=={version}" for name, version in hidden.items())
            try:
                return resolve(replace(question, constraints=(*question.constraints, *hard)), self._indexes)
            except UvError:
                chosen = resolve(question, self._indexes)
            now = {found.name: found.version for found in chosen}
            moved = [f"{name} {version}" for name, version in hidden.items() if now.get(name, version) != version]
            if moved:
                self._log(f"these pins could not be kept: {', '.join(moved)}")
            return chosen
        return resolve(question, self._indexes)

    def _hidden(self, question: Question) -> dict[str, str]:
        """Pins of the default index of which a further page or link has the version, but no wheel that fits."""
        entry = self._indexes.wheels("default")
        further = [*entry.pages[:-1], *entry.links]
        pins = {name: version for name, version in question.pins.items() if name not in question.index_of}

        def hides(pin: tuple[str, str]) -> bool:
            name, version = pin[0], Version(pin[1])
            for place in further:
                offers = [item.file for item in self._pages.on(entry, place, name) if version_of(item.file) == version]
                if offers and all(rank(file, self._ranks) is None for file in offers):
                    return True
            return False

        with ThreadPoolExecutor(16) as pool:
            return {pin[0]: pin[1] for pin, yes in zip(pins.items(), pool.map(hides, pins.items()), strict=True) if yes}

    def _addressed(self, question: Question) -> tuple[str, ...]:
        """The overrides; uv forgets the index of an overridden package, so such a one names its file."""
        lines = []
        for line in question.overrides:
            name = named(line)
            if name not in question.index_of:
                lines.append(line)
                continue
            index = question.index_of[name]
            fitting = [(Version(offer[0]), offer[1]) for offer in self._fitting(name, index)
                       if Requirement(line).specifier.contains(offer[0], prereleases=True)]
            pinned = [item for item in fitting if str(item[0]) == question.pins.get(name)]
            if not fitting:
                raise explain(question, self._pages, f"no wheel of {line} on index {index} fits")
            url = max(pinned or fitting, key=lambda item: item[0])[1]
            lines.append(f"{Requirement(line).name} @ {url}")
        return tuple(lines)

    def _fitting(self, name: str, index: str) -> list[tuple[str, str]]:
        """(version, address) of the wheels of a package on an index that fit and are not yanked."""
        found = []
        for item in self._pages.files(index, name):
            if item.yanked is None and rank(item.file, self._ranks) is not None:
                found.append((item.file.split("-")[1], item.url))
        return found

    def _locked(self, chosen: Chosen, index: str) -> LockedWheel:
        offers = list(chosen.offers)
        if index != "default":
            there = {(item.file, item.sha256) for item in self._pages.files(index, chosen.name)}
            offers = [item for item in offers if {(item.file, item.sha256), (item.file, "")} & there]
            if not offers:
                places = ", ".join(bare(item.url) for item in chosen.offers)
                raise LockError(f"{chosen.name} {chosen.version} did not come from index {index}",
                                where=self._indexes.wheels(index).place, found=places,
                                cure=f"make {chosen.name} a requirement of its own in the target")
        kept = self._kept.get(chosen.name)
        if kept is not None and kept.version == chosen.version and kept.index == index:
            offer = self._same(kept, offers)
            if offer is not None:
                return kept
        offer = best(offers, self._ranks)
        if offer is None:
            raise LockError(f"no wheel of {chosen.name} {chosen.version} fits", where=f"index {index}",
                            expected=f"CPython {self._request.python}, {self._request.machine}",
                            found=", ".join(item.file for item in offers))
        found = LockedWheel(chosen.name, chosen.version, offer.file, offer.size, offer.sha256, index)
        return self._measured(found, offer)

    def _same(self, kept: LockedWheel, offers: Sequence[Offer]) -> Offer | None:
        """The locked file among the offers; None if it is gone. A replaced file is never taken in silence."""
        named_so = [item for item in offers if item.file == kept.file]
        for item in named_so:
            if item.sha256 in (kept.sha256, ""):
                return item
        if named_so:
            raise LockError(f"index {kept.index} replaced {kept.file}", where=bare(named_so[0].url),
                            expected=f"sha256:{kept.sha256}", found=f"sha256:{named_so[0].sha256}",
                            cure=f"look at the new file; to take it: --upgrade {kept.name}")
        return None

    # -- what the index did not say ---------------------------------------------------------------

    def _measured(self, wheel: LockedWheel, offer: Offer) -> LockedWheel:
        if wheel.size and wheel.sha256:
            return wheel
        location = self._indexes.location(offer.url, self._indexes.wheels(wheel.index))
        try:
            if wheel.sha256:
                return replace(wheel, size=size_of(location, self._pages.session()))
            self._log(f"{wheel.file}: index {wheel.index} gives no sha256; reading the whole file")
            size, sha256 = digest_of(location, self._pages.session())
            return replace(wheel, size=size, sha256=sha256)
        except (requests.RequestException, OSError) as error:
            raise FetchError(f"{wheel.file} cannot be read", where=f"index {wheel.index}: {bare(offer.url)}",
                             found=in_words(error), cure="try again when the index answers") from error


def named(line: str) -> str:
    """The normalised name that a requirement is about.

    Raises:
        InputError: it is none, or it names an address.
    """
    try:
        need = Requirement(line)
    except InvalidRequirement as error:
        raise InputError("not a requirement", expected="name==version, as in PEP 508", found=line) from error
    if need.url:
        raise InputError("a requirement with an address", found=need.name,
                         cure="name an index in targets/indexes.yaml, and that index for the package in the target")
    return canonicalize_name(need.name)


def best(offers: Sequence[Offer], ranks: Mapping[Tag, int]) -> Offer | None:
    """The wheel that fits best; of equal ones the highest build, then the first name, then the first offered."""
    fitting = [(ranked, item) for item in offers if (ranked := rank(item.file, ranks)) is not None]
    if not fitting:
        return None
    least = min(ranked for ranked, _ in fitting)
    equal = [item for ranked, item in fitting if ranked == least]
    highest = max(build_of(item.file) for item in equal)
    return min((item for item in equal if build_of(item.file) == highest), key=lambda item: item.file)


def bound(day: str | None) -> str:
    """`--exclude-newer` as uv takes it, free of this host's time zone.

    Raises:
        InputError: neither a day nor a time.
    """
    if not day:
        return ""
    try:
        if re.fullmatch(r"\d{4}-\d\d-\d\d", day):
            return (datetime.date.fromisoformat(day) + datetime.timedelta(days=1)).isoformat() + "T00:00:00Z"
        datetime.datetime.fromisoformat(day.replace("Z", "+00:00"))
        if re.search(r"(Z|[+-]\d\d:\d\d)$", day):
            return day
    except ValueError:
        pass
    raise InputError("not a date", expected="2026-11-01 or 2026-11-01T12:00:00Z", found=day)


def _kept(previous: Sequence[LockedWheel], upgrade: bool | Collection[str]) -> dict[str, LockedWheel]:
    """What is to be kept of an earlier lock, by name."""
    if upgrade is True:
        return {}
    names = {canonicalize_name(name) for name in upgrade or ()}
    known = {item.name for item in previous}
    for name in sorted(names - known):
        close = difflib.get_close_matches(name, known, 1)
        raise InputError(f"{name} is not in the lock, so it cannot be upgraded", found=name,
                         cure=f"did you mean {close[0]!r}?" if close else None)
    return {item.name: item for item in previous if item.name not in names}


def size_of(location: Location, session: requests.Session) -> int:
    """Bytes of a file, asked without reading it; 0 if the server does not say. Raises requests' errors and OSError."""
    if location.path is not None:
        return location.path.stat().st_size
    for method in ("HEAD", "GET"):  # some servers know no HEAD
        with open_response(session, location.urls[0], location, _PLAIN, location.timeout, method) as response:
            if method == "HEAD" and response.status_code != 200:
                continue
            response.raise_for_status()
            told = response.headers.get("Content-Length", "")
            if told.isdigit() and "Content-Encoding" not in response.headers:
                return int(told)
    return 0


def digest_of(location: Location, session: requests.Session) -> tuple[int, str]:
    """Size and sha256 of a file, by reading it. Raises requests' errors and OSError."""
    content, size = hashlib.sha256(), 0
    with contextlib.ExitStack() as stack:
        chunks: Iterable[bytes]
        if location.path is not None:
            file = stack.enter_context(location.path.open("rb"))
            chunks = iter(lambda: file.read(_CHUNK), b"")
        else:
            response = stack.enter_context(
                open_response(session, location.urls[0], location, _PLAIN, location.timeout))
            response.raise_for_status()
            chunks = response.iter_content(_CHUNK)
        for chunk in chunks:
            content.update(chunk)
            size += len(chunk)
    return size, content.hexdigest()
