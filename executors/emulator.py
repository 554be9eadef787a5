"""The emulator for a foreign platform: a locked Debian package, unpacked into the store, and how it is registered.

Which package, and which versions are refused and why, is data: `emulators.yaml`.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from cache import canonical
from cache.errors import IntegrityError, ToolError
from cache.store import Store
from cache.untar import entries
from executors import trees

BINFMT = Path("/proc/sys/fs/binfmt_misc")
#: `e_machine` of ELF by the name that `uname -m` gives.
MACHINES = {"aarch64": 183, "x86_64": 62}
_OURS = re.compile(r"stagecraft-\w+-(\d+)-\w+")


@dataclass(frozen=True)
class Row:
    """One row of emulators.yaml: what runs programs of `machine` on `host`.

    Attributes:
        archive, suite, component, package, architecture: where the lock gets it from.
        binary: path in the package.
        since: the first version that works; older ones are refused, for `reason`.
    """

    machine: str
    host: str
    archive: str
    suite: str
    component: str
    package: str
    architecture: str
    binary: str
    since: str
    reason: str
    source: str


@dataclass(frozen=True)
class Emulator:
    """An emulator that is there: `path` of its static binary, and what it is."""

    machine: str
    path: Path
    version: str


@functools.cache
def rows() -> tuple[Row, ...]:
    """The table."""
    import yaml

    data = yaml.safe_load((Path(__file__).parent / "emulators.yaml").read_bytes())
    return tuple(Row(**row) for row in data["emulators"])


def row_for(machine: str, host: str) -> Row | None:
    """The row for programs of `machine` on `host`, or None."""
    return next((row for row in rows() if (row.machine, row.host) == (machine, host)), None)


def refused(row: Row, version: str) -> str:
    """Why a version is not used, or empty. `version` as Debian or the program itself writes it."""
    if _numbers(version) >= _numbers(row.since):
        return ""
    return f"{row.package} {version} is older than {row.since}: {row.reason}"


def _numbers(version: str) -> tuple[int, ...]:
    """`1:10.0.13+ds-0+deb13u1` is (10, 0, 13)."""
    found = re.match(r"(?:\d+:)?(\d+(?:\.\d+)*)", version)
    return tuple(int(part) for part in found[1].split(".")) if found else ()


def locked(store: Store, machine: str, host: str, debs: Sequence[Mapping[str, Any]]) -> Emulator:
    """The emulator out of the locked packages (`name`, `version`, `sha256`), which are in the store.

    Raises:
        ToolError: the lock has none for this host, or one that is refused.
        IntegrityError: the package is not in the store, or malformed.
    """
    row = row_for(machine, host)
    deb = next((deb for deb in debs if row is not None and deb["name"] == row.package
                and deb.get("architecture") == row.architecture), None)
    if row is None:
        raise ToolError(f"no emulator is known that runs {machine} programs on {host}",
                        where="executors/emulators.yaml",
                        cure=f"run it on {machine}, or " + " or ".join(sorted({r.host for r in rows()})))
    if deb is None:
        raise ToolError(f"the lock has no emulator that runs {machine} programs on {host}", expected=row.package,
                        cure="./doit lock:<target> --only emulator")
    why = refused(row, str(deb["version"]))
    if why:
        raise ToolError("the locked emulator is refused", found=why,
                        cure="./doit lock:<target> --only emulator --upgrade")
    return Emulator(machine, unpacked(store, "sha256:" + str(deb["sha256"]), row.binary), str(deb["version"]))


def unpacked(store: Store, digest: str, member: str) -> Path:
    """One program of a Debian package, unpacked once.

    Raises:
        IntegrityError: the package is not in the store, is malformed or has no such file.
    """
    def fill(root: Path) -> dict[str, Any]:
        with store.open_blob(digest) as file:
            for entry in entries(_data_of(file, digest), where=f"package {digest[7:19]}"):
                if entry.path == member and entry.type == "file":
                    with (root / "emulator").open("wb") as out:
                        for chunk in entry.chunks():
                            out.write(chunk)
                    (root / "emulator").chmod(0o755)
                    return {}
        raise IntegrityError("the package lacks the emulator", where=digest, expected=member)

    key = canonical.digest_of("tree", {"package": digest, "member": member})
    return trees.made(store, key[7:], [digest], fill, None).root / "emulator"


def _data_of(file: BinaryIO, digest: str) -> BinaryIO:
    """The data part of a Debian package (deb(5): an ar archive), from where it starts."""
    if file.read(8) != b"!<arch>\n":
        raise IntegrityError("not a Debian package", where=digest)
    while len(head := file.read(60)) == 60:
        name, size = head[:16].rstrip(b" /"), head[48:58].strip()
        if not size.isdigit() or head[58:] != b"`\n":
            break
        if name.startswith(b"data.tar"):
            return _Part(file, int(size))  # type: ignore[return-value]
        file.seek(int(size) + int(size) % 2, os.SEEK_CUR)
    raise IntegrityError("a malformed Debian package", where=digest)


class _Part:
    """The next `size` bytes of a file."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._left = file, size

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(data)
        return data


# -- registration ---------------------------------------------------------------------------------


def line(name: str, emulator: Emulator) -> str:
    """What is written to `register`: 64-bit little-endian ELF programs of the machine.

    Flags: F, the kernel opens the emulator now, so that it works in any root; P, it learns argv[0]; O, it gets the
    program open. https://docs.kernel.org/admin-guide/binfmt-misc.html
    """
    magic = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HH", 2, MACHINES[emulator.machine])
    mask = b"\xff" * 7 + b"\x00" + b"\xff" * 8 + b"\xfe\xff\xff\xff"
    escaped = ["".join(f"\\x{byte:02x}" for byte in part) for part in (magic, mask)]
    return f":{name}:M::{escaped[0]}:{escaped[1]}:{emulator.path}:PFO"


def host_registers(binfmt: Path = BINFMT) -> bool:
    """True if we may register with the host."""
    return os.geteuid() == 0 and os.access(binfmt / "register", os.W_OK)


@contextlib.contextmanager
def registered(emulator: Emulator, binfmt: Path = BINFMT) -> Iterator[None]:
    """Register with the host for the time of the block, under a name of this process; needs root.

    Names that killed processes left are taken away first. The newest registration of a machine is the one that counts.

    Raises:
        ToolError: the kernel refuses.
    """
    for path in binfmt.iterdir():
        match = _OURS.fullmatch(path.name)
        if match and not Path(f"/proc/{match[1]}").exists():
            with contextlib.suppress(OSError):
                path.write_text("-1")
    name = f"stagecraft-{emulator.machine}-{os.getpid()}-{os.urandom(4).hex()}"
    try:
        (binfmt / "register").write_text(line(name, emulator))
    except OSError as error:
        raise ToolError("the emulator cannot be registered with the kernel", where=str(binfmt),
                        found=error.strerror) from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            (binfmt / name).write_text("-1")
