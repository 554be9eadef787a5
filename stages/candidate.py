"""What the wheels of a candidate lock are, learnt from their index without downloading them.

For each wheel its METADATA; of torch, vLLM and what else is compiled against torch also the members, and what their
libraries ask of torch, out of the first part of each library. What was learnt is kept in the store by the wheel's
sha256 (`cache.derived`), so it is asked for once. What came by ranges, which nothing holds to that sha256, is kept
apart (`remote-…`) from what was read out of a wheel in the store (`wheel-…`). Reads; judges nothing.
"""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

from installer.utils import parse_metadata_file
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion, Version

from assemble.wheel_metadata import package_of
from cache.derived import derived
from cache.errors import IntegrityError
from cache.store import Store
from checks import torch_abi, vllm_wheels
from checks.elf import DamagedElfError
from checks.elf_head import Head, NoTablesError, machine, read_head
from checks.symbols import read_library
from checks.torch_cuda import VERSION as TORCH_VERSION
from lock.remote_wheel import RemoteWheel
from lock.simple import Pages, WheelSource
from lock.sources import Wanted
from stages.lockfile import LockedFile

#: Raised when the same wheel would give another fact of that kind.
VERSIONS = {"metadata": 1, "members": 1, "text": 1, "torch-needs": 1, "torch-homes": 1}
#: Libraries of torch that are small enough to be read, and hold what most often breaks.
HOMES = {f"torch/lib/{name}": home for name, home in torch_abi.HOMES.items()}
#: Bytes of a library that are read to find its symbols; those of vLLM's are within the first 4 MiB.
_BEGINNING = 8 << 20
#: A library of this size is read whole if its beginning does not tell.
_SMALL = 2 << 20


@dataclass(frozen=True)
class Library:
    """A library of a wheel: its machine, and what it asks of torch; None: that is not to be had in part."""

    machine: str
    undefined: tuple[str, ...] | None


@dataclass(frozen=True)
class CandidateWheel:
    """One wheel of the candidate.

    Attributes:
        locked: as the lock names it.
        package: an entry as in `stagecraft.packages.v1`.
        members: member to its size; empty where nobody asks.
        libraries: path below the site directory to what it asks of torch.
        version_py: of torch, its torch/version.py; else None.
        homes: of a torch that is not known by its sha256, what its libraries of `HOMES` export; else None.
        fetched: bytes that came over the network now.
    """

    locked: LockedFile
    package: Mapping[str, Any]
    members: Mapping[str, int] = field(default_factory=dict)
    libraries: Mapping[str, Library] = field(default_factory=dict)
    version_py: bytes | None = None
    homes: frozenset[str] | None = None
    fetched: int = 0

    def read_version(self) -> bytes:
        """torch/version.py. Raises FileNotFoundError."""
        if self.version_py is None:
            raise FileNotFoundError(TORCH_VERSION)
        return self.version_py


@dataclass(frozen=True)
class Candidate:
    """The wheels by name, for a machine as `uname -m` says it; `strange`: files that are no wheels."""

    machine: str
    wheels: Mapping[str, CandidateWheel]
    strange: tuple[LockedFile, ...] = ()

    @property
    def fetched(self) -> int:
        return sum(wheel.fetched for wheel in self.wheels.values())


def read_candidate(store: Store, source: WheelSource, pages: Pages, wheels: tuple[LockedFile, ...], target_machine: str,
                   optional: tuple[str, ...] = (), log: Callable[[str], None] = lambda line: None,
                   proceed: Callable[[], None] = lambda: None, jobs: int = 16) -> Candidate:
    """Learn what can be learnt of `wheels` for little.

    Args:
        pages: gives each thread its connections.
        optional: globs of members that need not load, and are not looked at.
        log: takes one line; called from several threads, one at a time.
        proceed: is called between two wheels, and may raise, to stop.

    Raises:
        FetchError: an index does not answer, or has a wheel no more.
        IntegrityError: what it answers is malformed.
    """
    reader = _Reader(store, source, pages, target_machine, optional, log)
    strange = tuple(wheel for wheel in wheels if not _is_wheel(wheel.file))
    regular = [wheel for wheel in wheels if _is_wheel(wheel.file)]
    # Largest first: they take longest.
    regular.sort(key=lambda wheel: (-wheel.size, wheel.file))
    with ThreadPoolExecutor(jobs, thread_name_prefix="preflight") as pool:
        futures = [pool.submit(reader.one, wheel) for wheel in regular]
        try:
            found = []
            for future in futures:
                proceed()
                found.append(future.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return Candidate(target_machine, {wheel.locked.name: wheel for wheel in sorted(found, key=lambda w: w.locked.name)},
                     strange)


def requires_torch(package: Mapping[str, Any]) -> bool:
    """True if a package cannot be without torch: what needs it for an extra only is not compiled against it."""
    for text in package["requires_dist"]:
        try:
            need = Requirement(text)
        except InvalidRequirement:
            continue
        if canonicalize_name(need.name) == "torch" and "extra ==" not in str(need.marker or ""):
            return True
    return False


def below_site(member: str) -> str:
    """Where a member comes to lie below the site directory."""
    head, _, rest = member.partition("/")
    part, _, path = rest.partition("/")
    return path if head.endswith(".data") and part in ("purelib", "platlib") else member


def _is_wheel(file: str) -> bool:
    try:
        return bool(parse_wheel_filename(file))
    except (InvalidWheelFilename, InvalidVersion):
        return False


class _Reader:
    """Reads wheels one by one; used by several threads."""

    def __init__(self, store: Store, source: WheelSource, pages: Pages, target_machine: str, optional: tuple[str, ...],
                 log: Callable[[str], None]) -> None:
        self._store, self._source, self._pages, self._machine = store, source, pages, target_machine
        self._optional, self._log, self._mutex = optional, log, threading.Lock()

    def one(self, locked: LockedFile) -> CandidateWheel:
        wanted = Wanted("wheel", locked.name, locked.version, locked.file, locked.size, locked.sha256, locked.index)
        with RemoteWheel(self._store, wanted, self._source, self._pages.session(), log=self._say) as wheel:
            facts = _Facts(self._store, wheel)
            found = CandidateWheel(locked, package_entry(facts.metadata(), locked))
            if locked.name == "torch":
                known = torch_abi.known(self._machine).build(locked.version)
                homes = None if known and locked.sha256 in known.wheels else frozenset(facts.torch_homes())
                found = replace(found, members=facts.members(), version_py=facts.text(TORCH_VERSION), homes=homes)
            elif locked.name == "vllm" or (not locked.file.endswith("-any.whl") and requires_torch(found.package)):
                found = replace(found, members=facts.members(), libraries=self._libraries(locked, facts))
            return replace(found, fetched=wheel.fetched)

    def _libraries(self, locked: LockedFile, facts: _Facts) -> dict[str, Library]:
        known = vllm_wheels.known(self._machine).get(locked.sha256)
        if known is not None:
            return {name: Library(self._machine, item.undefined) for name, item in known.extensions.items()}
        return {name: library for name, library in facts.torch_needs().items()
                if not any(fnmatchcase(name, pattern) for pattern in self._optional)}

    def _say(self, line: str) -> None:
        with self._mutex:
            self._log(line)


class _Facts:
    """Facts about one wheel, each kept under the wheel's digest."""

    def __init__(self, store: Store, wheel: RemoteWheel) -> None:
        self._store, self._wheel = store, wheel
        self._from = "wheel" if wheel.verified else "remote"

    def metadata(self) -> bytes:
        return self._kept("metadata", self._wheel.metadata)

    def members(self) -> dict[str, int]:
        found: dict[str, int] = json.loads(self._kept("members", lambda: _json(self._wheel.members())))
        return {below_site(name): size for name, size in found.items()}

    def text(self, name: str) -> bytes | None:
        """A small member; None if there is none, or it is empty."""
        return self._kept("text", lambda: self._wheel.read(name, 1 << 20) or b"") or None

    def torch_homes(self) -> list[str]:
        """What the libraries of `HOMES` export to torch's users."""
        found: list[str] = json.loads(self._kept("torch-homes", self._torch_homes))
        return found

    def torch_needs(self) -> dict[str, Library]:
        """What each library of the wheel asks of torch."""
        found = json.loads(self._kept("torch-needs", self._torch_needs))
        return {below_site(name): Library(said["machine"], said["undefined"] and tuple(said["undefined"]))
                for name, said in found.items()}

    def _kept(self, kind: str, make: Callable[[], bytes]) -> bytes:
        return derived(self._store, f"{self._from}-{kind}", VERSIONS[kind], self._wheel.wanted.digest, make)

    def _torch_homes(self) -> bytes:
        names: set[str] = set()
        for name in HOMES:
            content = self._wheel.read(name)
            if content is not None:
                names.update(filter(torch_abi.is_torch, _whole(content).exports))
        return _json(sorted(names))

    def _torch_needs(self) -> bytes:
        found: dict[str, Any] = {}
        for name, size in self._wheel.members().items():
            file = name.rpartition("/")[2]
            # What auditwheel put beside a package is no part of torch's world.
            if not (file.endswith(".so") or ".so." in file) or not size or name.split("/")[0].endswith(".libs"):
                continue
            try:
                head = self._wheel.beginning(name, read_head, _BEGINNING)
            except NoTablesError:
                head = _whole(self._wheel.read(name) or b"") if size <= _SMALL else None
            if head is None:
                what = self._wheel.beginning(name, machine, 64)
                found[name] = {"machine": what or "", "undefined": None}
            else:
                found[name] = {"machine": head.machine, "undefined": [*filter(torch_abi.is_torch, head.undefined)]}
        return _json(found)


def _whole(content: bytes) -> Head:
    """The symbols of a whole library; none of one that is damaged, which its own check tells after the download."""
    try:
        library = read_library(io.BytesIO(content))
    except DamagedElfError:
        return Head(machine(content) or "", (), ())
    return Head(library.elf.machine, tuple(item.name for item in library.undefined if not item.weak),
                tuple(library.exports))


def package_entry(metadata: bytes, locked: LockedFile) -> dict[str, Any]:
    """METADATA as an entry of `stagecraft.packages.v1`, the `stage` being the lock.

    Raises:
        IntegrityError: it is not the METADATA of that wheel.
    """
    name, version, _, tags = parse_wheel_filename(locked.file)
    message = parse_metadata_file(metadata.decode("utf-8", "replace"))
    try:
        same = (canonicalize_name(message["Name"]), Version(message["Version"])) == (name, version)
    except (TypeError, InvalidVersion):
        same = False
    if not same:
        raise IntegrityError("a wheel's METADATA contradicts its file name", where=f"{locked.index}: {locked.file}",
                             expected=f"{name} {version}", found=f"{message['Name']} {message['Version']}",
                             cure="take another version, or another index")
    return {**package_of(message, file=locked.file, digest=locked.digest, architecture="", tags=tags,
                         entry_points=""), "stage": "lock"}


def _json(data: Any) -> bytes:
    return json.dumps(data, separators=(",", ":")).encode()
