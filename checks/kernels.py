"""Device code of an image's libraries as checks need it: pieces of code, what they were compiled for, their kernels.

Two depths. `device_code` reads all code of one library with the names of its kernels, and keeps what it found in the
store by the library's digest. `headers` looks at every library of a layer, at headers only: of 4 GB of CUDA libraries
it reads a few MB; kept by the digest of the layer's index.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, BinaryIO

import fatbin
from cache.derived import derived
from cache.layer import LayerReader
from checks.elf import MAGIC
from checks.loadability import Device, Way, best, way

if TYPE_CHECKING:
    from cache.store import Store

#: Raised when `read_code` gives something else for the same file.
VERSION = 1
#: The same of `read_headers`.
_HEADERS_VERSION = 1


#: The same of `cubins`.
_CUBINS_VERSION = 1

_EM_CUDA = 190


class DamagedCodeError(Exception):
    """The device code of a library cannot be read."""


@dataclass(frozen=True)
class Piece:
    """One entry of a fat binary.

    Attributes:
        target: what it is compiled for: `sm_110f`, `compute_80@9.0` (PTX with its ISA); for what no driver loads as it
            is, another word before: `relocatable sm_80`, `ir compute_90`.
        kernels: places of its kernels' names in `DeviceCode.names`.
    """

    target: str
    kernels: tuple[int, ...] = ()

    @property
    def loads(self) -> bool:
        """False for what is no code for a driver: parts for the device linker, IR, 32-bit code."""
        return " " not in self.target


@dataclass(frozen=True)
class DeviceCode:
    """All device code of a library.

    Attributes:
        containers: the pieces of each, which nvcc made from one source file.
        wrappers: the structures that register a container each with the CUDA runtime.
        names: mangled names of kernels, each once.
    """

    containers: tuple[tuple[Piece, ...], ...]
    wrappers: int
    names: tuple[str, ...] = ()

    @property
    def consistent(self) -> bool:
        """False if code was cut out of the library, or put in, after it was linked."""
        return self.wrappers == len(self.containers)

    @cached_property
    def pieces(self) -> tuple[Piece, ...]:
        """What a driver may load."""
        return tuple(piece for container in self.containers for piece in container if piece.loads)

    @cached_property
    def targets(self) -> Mapping[str, int]:
        """Target to number of kernels, not 0; a name counts once for each piece that has it, as cuobjdump counts."""
        found: Counter[str] = Counter()
        for piece in self.pieces:
            found[piece.target] += len(piece.kernels)
        return dict(+found)

    def ways(self, device: Device) -> dict[str, Way]:
        """Kernel to the best way in which one of its pieces serves a device."""
        known: dict[str, Way] = {}
        found = [Way.NONE] * len(self.names)
        for piece in self.pieces:
            if piece.target not in known:
                known[piece.target] = way(piece.target, device)
            serves = known[piece.target]
            for number in piece.kernels:
                if serves > found[number]:
                    found[number] = serves
        return dict(zip(self.names, found, strict=True))

    def targets_of(self, kernel: str) -> tuple[str, ...]:
        """What a kernel is compiled for."""
        number = self.names.index(kernel)
        return tuple(sorted({piece.target for piece in self.pieces if number in piece.kernels}))


def device_code(store: Store, digest: str, open_: Callable[[], BinaryIO]) -> DeviceCode:
    """The device code of the library whose content has that digest; read only if the store does not know it.

    Raises:
        DamagedCodeError: it cannot be read.
    """
    return unpack(json.loads(derived(store, "device-code", VERSION, digest, lambda: _packed(open_))))


def device_codes(store: Store, layer: LayerReader, paths: Sequence[str]) -> dict[str, DeviceCode | DamagedCodeError]:
    """The same for those of several paths that lead to files of a layer, two at a time; no content is read twice."""
    def one(path: str, entry: Mapping[str, Any]) -> DeviceCode | DamagedCodeError:
        try:
            return device_code(store, str(entry["digest"]), lambda: layer.open(path))
        except DamagedCodeError as error:
            return error

    entries = {path: entry for path in paths if (entry := layer.resolve(path)) is not None and entry["type"] == "file"}
    first = {str(entry["digest"]): (path, entry) for path, entry in entries.items()}
    with ThreadPoolExecutor(2) as pool:  # zstd does most of the work, outside Python's lock
        found = dict(zip(first, pool.map(lambda item: one(*item), first.values()), strict=True))
    return {path: found[str(entry["digest"])] for path, entry in entries.items()}


def read_code(stream: BinaryIO) -> DeviceCode:
    """Read a seekable stream, with the names of all kernels.

    Raises:
        DamagedCodeError: neither an ELF file nor a fat binary, damaged, or larger than any real one.
    """
    places: dict[str, int] = {}
    try:
        found = fatbin.read(stream)
        containers = tuple(tuple(
            Piece(_target(container, entry), tuple(places.setdefault(name, len(places))
                                                   for name in fatbin.kernels(entry) or ()))
            for entry in container.entries) for container in found.containers)
    except fatbin.FatbinError as error:
        raise DamagedCodeError(str(error)) from error
    return DeviceCode(containers, _wrappers(found), tuple(places))


def _target(container: fatbin.Container, entry: fatbin.Entry) -> str:
    name = f"{entry.target}@{entry.isa}" if entry.isa else entry.target
    if entry.kind not in (fatbin.Kind.CUBIN, fatbin.Kind.PTX):
        return f"{entry.kind.name.lower()} {name}"
    if container.relocatable:
        return f"relocatable {name}"
    return name if entry.is_64bit else f"32-bit {name}"


def _wrappers(found: fatbin.Fatbin) -> int:
    return len(found.containers) if found.wrappers is None else found.wrappers


def _packed(open_: Callable[[], BinaryIO]) -> bytes:
    try:
        with open_() as stream:
            return json.dumps(pack(read_code(stream)), separators=(",", ":")).encode()
    except DamagedCodeError as error:
        return json.dumps({"damaged": str(error)}).encode()


def pack(code: DeviceCode) -> dict[str, Any]:
    """As JSON values."""
    return {"containers": [[[piece.target, piece.kernels] for piece in container] for container in code.containers],
            "wrappers": code.wrappers, "names": code.names}


def unpack(found: Mapping[str, Any]) -> DeviceCode:
    """The reverse of `pack`. Raises DamagedCodeError for a file that was found damaged."""
    if "damaged" in found:
        raise DamagedCodeError(found["damaged"])
    return DeviceCode(tuple(tuple(Piece(target, tuple(kernels)) for target, kernels in container)
                            for container in found["containers"]), found["wrappers"], tuple(found["names"]))


# -- headers of a whole layer ---------------------------------------------------------------------


@dataclass(frozen=True)
class Headers:
    """The device code of a library by its headers: `containers` are kinds of them, their targets and how many."""

    containers: tuple[tuple[tuple[str, ...], int], ...]
    wrappers: int = 0
    damaged: str = ""

    @property
    def count(self) -> int:
        return sum(number for _, number in self.containers)

    @property
    def targets(self) -> tuple[str, ...]:
        """What a driver may load is compiled for."""
        return tuple(sorted({target for targets, _ in self.containers for target in targets if " " not in target}))

    def ways(self, device: Device) -> Counter[Way]:
        """In how many containers the best piece serves a device how. Those that hold parts for the linker only are
        left out: what was linked is a container too."""
        found: Counter[Way] = Counter()
        for targets, number in self.containers:
            code = [target for target in targets if " " not in target]
            if code:
                found[best(code, device)] += number
        return found


def headers(store: Store, layer: LayerReader, index: str) -> dict[str, Headers]:
    """Path to device code, of every library of a layer that has any.

    Args:
        index: digest of the layer's index.
    """
    fact = derived(store, "device-headers", _HEADERS_VERSION, index,
                   lambda: json.dumps(dict(_read_headers(layer)), separators=(",", ":")).encode())
    return {path: Headers(tuple((tuple(targets), number) for targets, number in found["containers"]),
                          found["wrappers"], found["damaged"]) for path, found in json.loads(fact).items()}


def _read_headers(layer: LayerReader) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, entry in layer.entries.items():
        if entry["type"] != "file" or not is_library(path) or layer.peek(entry, len(MAGIC)) != MAGIC:
            continue
        try:
            with layer.open(path) as stream:
                found = fatbin.read(stream)
        except fatbin.FatbinError as error:
            yield path, {"containers": [], "wrappers": 0, "damaged": str(error)}
            continue
        kinds = Counter(tuple(sorted({_target(container, entry) for entry in container.entries}))
                        for container in found.containers)
        if kinds:
            yield path, {"containers": sorted(kinds.items()), "wrappers": _wrappers(found), "damaged": ""}


# -- cubins that are files of their own ------------------------------------------------------------


def cubins(store: Store, layer: LayerReader, index: str, site: str) -> dict[str, dict[int, int]]:
    """Package (directory below the site directory) to architecture to number of the `.cubin` files that it brings.

    Args:
        index: digest of the layer's index.
    """
    def read() -> bytes:
        found = Counter((path.rpartition("/")[0], arch) for path, entry in layer.entries.items()
                        if entry["type"] == "file" and path.endswith(".cubin")
                        and (arch := cubin_arch(layer.peek(entry, 64))) is not None)
        return json.dumps([[*key, number] for key, number in found.items()], separators=(",", ":")).encode()

    packages: dict[str, dict[int, int]] = {}
    for directory, arch, number in json.loads(derived(store, "device-cubins", _CUBINS_VERSION, index, read)):
        package = packages.setdefault(directory.removeprefix(f"{site}/").partition("/")[0], {})
        package[arch] = package.get(arch, 0) + number
    return packages


def cubin_arch(header: bytes) -> int | None:
    """The architecture of a cubin by its first 64 bytes, without suffix, which these do not have; None if it is none.

    `e_flags` has it in the low byte (ABI 7, toolkits before CUDA 12.9 and older architectures), or above it (ABI 8).
    """
    if len(header) < 64 or header[:4] != MAGIC or int.from_bytes(header[18:20], "little") != _EM_CUDA:
        return None
    flags = int.from_bytes(header[48:52], "little")
    return flags >> 8 & 0xFFFF if header[8] >= 8 else flags & 0xFF


def is_library(path: str) -> bool:
    """True for the names that shared libraries have."""
    name = path.rpartition("/")[2]
    return name.endswith(".so") or ".so." in name
