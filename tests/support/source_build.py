"""What tests of packages from source share: a store with thor's layers in it, and the compilers as layers.

Thor's layers come out of the store that the tests use; the compilers are Debian's cross g++ and NVIDIA's packages, both
of this machine; what runs emulated are wheels of the target's. Everything goes through the project's own builders.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from assemble.tools import build as build_tools
from assemble.wheels import build as build_wheels
from cache.build import BuildContext
from cache.errors import StageError
from cache.store import Store
from executors.run_stage import build as run_script
from lock.apt_archive import Archive
from lock.debs import DebRequest, DebSource, lock_debs
from lock.fetch import Wanted, fetch
from stages.fetching import source
from stages.plan import state_of
from stages.project import Project
from tests.support.cuda import toolkit
from tests.support.front import HERE, committed_project, doit
from tests.support.images import make_layer

#: As stages/sources.py says: without it CMake's listings of directories may come back empty.
EMULATED = {"MALLOC_TOP_PAD_": str(512 << 20)}
#: Of Debian's packages: what nobody compiles with.
_SKIP = ["usr/share/doc/*", "usr/share/man/*", "usr/share/locale/*", "usr/share/info/*"]
_IN_PLACE = ["lib64/*", "lib/x86_64-linux-gnu/*", "usr/lib/x86_64-linux-gnu/*"]


@dataclass
class Machine:
    """A store with thor's layers and their indexes in it, by stage, and where in them packages lie."""

    store: Store
    layers: Mapping[str, str]
    indexes: Mapping[str, str]
    emulators: list[Mapping[str, Any]]
    site: str


@dataclass
class Run:
    """What a script is run with: layers from the lowest, trees (layers below `/inputs`), files and variables."""

    layers: Sequence[str]
    trees: Mapping[str, str]
    files: Mapping[str, bytes]
    environment: Mapping[str, str]
    lines: list[str] = field(default_factory=list)


def thor(store_path: Path, scratch: Path, *stages: str) -> Machine:
    """Thor's layers of these stages, out of the store or into it, and the emulator for this machine."""
    root = committed_project(scratch / "project")
    doit(root, store_path, *(f"{name}:thor" for name in stages))
    store = Store.open(store_path)
    project = Project(root)
    records = {name: state_of(project.graph("thor").stage(name), {}, store)[1] for name in stages}
    lock = project.lock_data("thor")
    debs = list(lock["emulator"]["debs"])
    fetch(store, [Wanted("deb", deb["name"], deb["version"], deb["file"], deb["size"], deb["sha256"], deb["index"])
                  for deb in debs], {"deb": DebSource(archives())})
    made = {name: record.outputs for name, record in records.items() if record is not None}
    return Machine(store, {name: outputs["layer"].digest for name, outputs in made.items()},
                   {name: outputs["index"].digest for name, outputs in made.items()}, debs, lock["python"]["site"])


def archives() -> dict[str, Archive]:
    return {"debian": Archive("debian", "debian")}


def cross_compiler(store: Store) -> str:
    """Debian's g++ for arm64 on amd64, below /cross, under the names that builds ask for."""
    lock = lock_debs(DebRequest("debian", "bookworm", ("main",), "amd64", ("g++-12-aarch64-linux-gnu", "patch"),
                                essential=False), archives())
    # The target's own C library is in the root: the copies for cross compilers would hide it.
    wanted = [deb for deb in lock.debs if not (deb.name.startswith(("libc6-", "linux-libc-dev-")))]
    fetch(store, [Wanted("deb", deb.name, deb.version, deb.file, deb.size, deb.sha256, deb.index) for deb in wanted],
          {"deb": DebSource(archives(), lock.suites)})
    names = {"gcc": "gcc-12", "cc": "gcc-12", "g++": "g++-12", "c++": "g++-12"}
    names |= {name: name for name in ("ar", "as", "ld", "nm", "objcopy", "ranlib", "strip")}
    links = {f"cross/bin/{name}": f"../usr/bin/aarch64-linux-gnu-{program}" for name, program in names.items()}
    found = build_tools(BuildContext(store, {"prefix": "cross", "architecture": "amd64", "links": links,
                                             "in_place": _IN_PLACE, "skip": _SKIP},
                                     {f"debs/{deb.file.rpartition('/')[2]}": "sha256:" + deb.sha256 for deb in wanted}))
    return found["layer"].digest


def toolkit_layer(store: Store) -> str:
    """nvcc of this machine, as a layer."""
    place = toolkit().root
    files, modes = {}, {}
    for path in sorted(place.rglob("*")):
        if path.is_file() and not path.is_symlink() and path.relative_to(place).parts[0] in ("bin", "nvvm", "include"):
            name = f"cross/toolkit/nvidia/cu13/{path.relative_to(place)}"
            files[name], modes[name] = path.read_bytes(), 0o755 if os.access(path, os.X_OK) else 0o644
    return make_layer(store, files, modes)


def requires_layer(store: Store, wheels: Iterable[Wanted]) -> str:
    """Wheels of the target's machine below /cross/python: they run emulated, unchanged."""
    return _wheels_layer(store, wheels, "cross/python", "arm64")


def cuda_layer(store: Store, wheels: Iterable[Wanted]) -> str:
    """CUDA wheels of this machine below /cross/toolkit."""
    return _wheels_layer(store, wheels, "cross/toolkit", "amd64")


def _wheels_layer(store: Store, wheels: Iterable[Wanted], prefix: str, architecture: str) -> str:
    listed = list(wheels)
    fetch(store, listed, {"wheel": source("wheel", HERE)})
    scheme = {"python": "3.11", "interpreter": "/usr/bin/python3.11", "purelib": prefix, "platlib": prefix,
              "scripts": f"{prefix}/bin", "data": prefix, "glibc": "2.36", "headers": f"{prefix}/include",
              "collisions": [], "records": []}
    found = build_wheels(BuildContext(store, scheme, {f"wheels/{one.file}": one.digest for one in listed},
                                      {"os": "linux", "architecture": architecture}))
    return found["layer"].digest


def run(machine: Machine, given: Run) -> dict[str, str]:
    """The stage that runs code: `build.sh` of the files. Outputs by name; the lines it wrote are in `given.lines`."""
    store = machine.store
    params = {"machine": "aarch64", "command": ["bash", "/inputs/files/build.sh"], "collect": "out",
              "into": machine.site, "emulators": machine.emulators, "environment": {**EMULATED, **given.environment}}
    inputs = {f"root/{number:02}": layer for number, layer in enumerate(given.layers)}
    inputs |= {f"tree/{name}": tree for name, tree in given.trees.items()}
    inputs |= {f"file/{name}": store.put(content).digest for name, content in given.files.items()}
    try:
        outputs = run_script(BuildContext(store, params, inputs, log=given.lines.append))
    except StageError:
        print(*given.lines, sep="\n")
        raise
    return {name: blob.digest for name, blob in outputs.items()}
