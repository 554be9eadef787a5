"""qemu-user 10 out of Debian trixie's package, locked and fetched by our own code (7.2 crashes on torch 2.13)."""

from __future__ import annotations

import subprocess
from pathlib import Path

from cache.store import Store
from lock.apt_archive import Archive
from lock.debs import DebRequest, DebSource, lock_debs
from lock.fetch import Wanted, fetch


def trixie_package(name: str, architecture: str, directory: Path) -> Path:
    """A package of trixie, unpacked below `directory`; the root of what it holds."""
    archives = {"debian": Archive("debian", "debian")}
    store = Store.open(directory / "store")
    lock = lock_debs(DebRequest("debian", "trixie", ("main",), architecture, (name,), essential=False), archives)
    deb = next(deb for deb in lock.debs if deb.name == name)
    fetch(store, [Wanted("deb", deb.name, deb.version, deb.file, deb.size, deb.sha256, deb.index)],
          {"deb": DebSource(archives, lock.suites)})
    subprocess.run(["dpkg-deb", "-x", str(store.path_of("sha256:" + deb.sha256)), str(directory / "root")], check=True)
    return directory / "root"


def qemu_aarch64(directory: Path) -> Path:
    """The static emulator binary, unpacked below `directory`."""
    return trixie_package("qemu-user", "amd64", directory) / "usr/bin/qemu-aarch64"
