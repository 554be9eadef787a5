"""torch's C++ and C interfaces by name: what is torch's, what is missing, which known torch has it. Pure over names.

The table `checks/data/torch-exports.<machine>.xz` has every name of c10, at, caffe2, torch and of the C shims
(`aoti_torch_*`, `torch_*`) that the libraries of the known torch wheels export. `bench/tools/torch_abi.py` made it out
of whole wheels, held to their sha256. It is text: a line `stagecraft.torch-exports.v1 <machine>`; for each build a line
`build <version> cuda|cpu`, in the order of bits; for each wheel of it `wheel <version> <sha256> <file>`; an empty line;
then `<bits, hexadecimal><home> <name>`. Home is `c` for libc10.so, `g` for libc10_cuda.so, `t` for the others.
"""

from __future__ import annotations

import functools
import lzma
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

DATA = Path(__file__).resolve().parent / "data"
FORMAT = "stagecraft.torch-exports.v1"

#: Mangled names of torch's namespaces: plain, of members, of tables and guards (Itanium C++ ABI, 5.1).
_NAMESPACE = re.compile(r"_Z(?:T[A-Z])?(?:GV)?N[KVrRO]*(?:3c10|2at|5torch|6caffe2)")
_PREFIXES = ("aoti_torch_", "torch_", "THP")
#: Library to its home.
HOMES = {"libc10.so": "c", "libc10_cuda.so": "g"}


@dataclass(frozen=True)
class Build:
    """One known torch: `cuda` is False for a CPU build; `wheels` maps sha256 to file name."""

    version: str
    cuda: bool
    wheels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Exports:
    """What the known builds of torch for one machine export.

    Attributes:
        builds: in the order of bits.
        names: name to (bits of the builds that export it, its home).
    """

    builds: tuple[Build, ...]
    names: Mapping[str, tuple[int, str]]

    def of(self, version: str) -> frozenset[str] | None:
        """All names that a version exports; None if it is not known. `2.11.0+cu130` is 2.11.0."""
        for number, build in enumerate(self.builds):
            if build.version == public(version):
                return frozenset(name for name, (bits, _) in self.names.items() if bits >> number & 1)
        return None

    def build(self, version: str) -> Build | None:
        return next((build for build in self.builds if build.version == public(version)), None)

    def satisfying(self, undefined: Iterable[str], *, cuda: bool = True) -> list[str]:
        """Versions that export all torch names of `undefined`; with `cuda` without the CPU builds."""
        wanted = [name for name in undefined if is_torch(name)]
        return [build.version for number, build in enumerate(self.builds) if (build.cuda or not cuda)
                and all(name in self.names and self.names[name][0] >> number & 1 for name in wanted)]

    def at_home(self, undefined: Iterable[str], homes: Collection[str]) -> list[str]:
        """Those of `undefined` that a known torch has in libraries of these homes."""
        return [name for name in undefined if name in self.names and self.names[name][1] in homes]


def is_torch(name: str) -> bool:
    """True for a symbol of torch's C++ or C interface."""
    return name.startswith(_PREFIXES) or _NAMESPACE.match(name) is not None


def missing(undefined: Iterable[str], exports: Collection[str]) -> list[str]:
    """The torch names of `undefined` that are not among `exports`, in their order."""
    return [name for name in undefined if is_torch(name) and name not in exports]


def satisfying(undefined: Iterable[str], machine: str = "aarch64") -> list[str]:
    """Known CUDA builds of torch that have all torch names of `undefined`; none without a table for the machine."""
    return known(machine).satisfying(undefined)


def public(version: str) -> str:
    """A version without its local part."""
    return version.partition("+")[0]


@functools.cache
def known(machine: str) -> Exports:
    """The table for a machine; empty if there is none."""
    path = DATA / f"torch-exports.{machine}.xz"
    return parse(lzma.decompress(path.read_bytes()).decode()) if path.exists() else Exports((), {})


def parse(text: str) -> Exports:
    """Read a table. Raises ValueError."""
    head, _, body = text.partition("\n\n")
    first, *lines = head.splitlines()
    if first.split()[0] != FORMAT:
        raise ValueError(f"not {FORMAT}: {first[:60]!r}")
    builds: dict[str, tuple[bool, dict[str, str]]] = {}
    for line in lines:
        kind, version, *rest = line.split()
        if kind == "build":
            builds[version] = (rest[0] == "cuda", {})
        else:
            builds[version][1][rest[0]] = rest[1]
    names = {}
    for line in body.splitlines():
        bits, _, name = line.partition(" ")
        names[name] = (int(bits[:-1], 16), bits[-1])
    return Exports(tuple(Build(version, cuda, wheels) for version, (cuda, wheels) in builds.items()), names)


def dump(exports: Exports, machine: str) -> str:
    """The table's text; the reverse of `parse`."""
    lines = [f"{FORMAT} {machine}"]
    for build in exports.builds:
        lines.append(f"build {build.version} {'cuda' if build.cuda else 'cpu'}")
        lines += [f"wheel {build.version} {sha256} {file}" for sha256, file in sorted(build.wheels.items())]
    lines.append("")
    lines += [f"{bits:x}{home} {name}" for name, (bits, home) in sorted(exports.names.items())]
    return "\n".join(lines) + "\n"
