"""vllm/expected in thor's base layer: what a source's own CMake says of its modules, as the stage `P-expected` does."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assemble.source_tree import build as build_source
from assemble.wheels import build as build_wheels
from cache.build import BuildContext
from cache.errors import StageError
from cache.layer import LayerReader
from cache.store import Store
from executors.run_stage import build as run_script
from lock.apt_archive import Archive
from lock.debs import DebSource
from lock.fetch import Wanted, fetch
from stages.fetching import source
from stages.plan import state_of
from stages.project import Project
from tests.support.front import HERE, committed_project, doit

FILES = HERE / "vllm" / "expected"

#: What runs in the root: project, version, end of the wheel's name, sha256. The others are in thor's lock.
WHEELS = (
    ("cmake", "4.4.4", "py3-none-manylinux2014_aarch64.manylinux_2_17_aarch64",
     "b3029f586853e01ddf2824c1ff124a1c5284f8ae897994758e9c4eeb45903b58"),
    ("setuptools", "80.9.0", "py3-none-any", "062d34222ad13e0cc312a4c02d73f059e86a4acbfbdea8f8f76b28c99f306922"),
    ("setuptools-scm", "9.2.2", "py3-none-any", "30e8f84d2ab1ba7cb0e653429b179395d0c33775d54807fc5f1dd6671801aef7"),
    ("setuptools-rust", "1.12.0", "py3-none-any", "7e7db90547f224a835b45f5ad90c983340828a345554a9a660bdb2de8605dcdd"),
    ("packaging", "25.0", "py3-none-any", "29572ef2b1f17581046b3a2227d5c611fb25ec70ca1ba8554b24b0e69331a484"),
    ("semantic-version", "2.10.0", "py2.py3-none-any",
     "de78a3b8e0feda74cabc54aab2da702113e33ac9d9eb9d2389bcf1f58b7d9177"),
    ("typing-extensions", "4.15.0", "py3-none-any", "f0fa19c6845758ab08074a0cfa8b7aecb71c999ca73d62883bc25cc018c4e548"),
)
LOCKED = ("ninja", "jinja2", "markupsafe")


@dataclass(frozen=True)
class Mock:
    """A store with a root that has Python, cmake, ninja and jinja2, and the emulators for it."""

    store: Store
    root: tuple[str, ...]
    emulators: Sequence[Mapping[str, Any]]

    def source(self, archive: bytes, *, strip: int = 1, stubs: Sequence[str] = (),
               trees: Mapping[str, str] | None = None, patches: Sequence[Path] = (),
               csrc: Sequence[str] = ("CMakeLists.txt", "cmake/*", "csrc/*")) -> str:
        """The `csrc` layer of a source archive."""
        inputs = {"source": self.store.put(archive).digest}
        inputs |= {f"tree/{name}": digest for name, digest in (trees or {}).items()}
        inputs |= {f"patch/{number:02}-{path.name}": self.store.put(path.read_bytes()).digest
                   for number, path in enumerate(patches)}
        found = build_source(BuildContext(self.store, {"strip": strip, "csrc": list(csrc), "stubs": list(stubs)},
                                          inputs))
        return found["csrc"].digest

    def outputs(self, csrc: str, arch_list: str, environment: Mapping[str, str] | None = None, *,
                project: bool = True, lines: list[str] | None = None) -> dict[str, str]:
        """The stage: `layer` and `index`."""
        params = {
            "machine": "aarch64", "command": ["/usr/bin/python3.11", "/inputs/files/expected.py"], "collect": "out",
            "into": "", "emulators": self.emulators,
            "environment": {"TORCH_CUDA_ARCH_LIST": arch_list, "CUDA_VERSION": "13.0", "TORCH_VERSION": "2.13.0",
                            "LC_ALL": "C", **(environment or {})},
        }
        inputs = {f"root/{number:02}": layer for number, layer in enumerate(self.root)} | {"tree/csrc": csrc}
        inputs |= {f"file/{path.name}": self.store.put(path.read_bytes()).digest for path in FILES.iterdir()
                   if path.is_file() and (project or path.name != "project.json")}
        said = lines if lines is not None else []
        try:
            found = run_script(BuildContext(self.store, params, inputs, log=said.append))
        except StageError:
            print(*said, sep="\n")
            raise
        return {name: blob.digest for name, blob in found.items()}

    def expected(self, csrc: str, arch_list: str, environment: Mapping[str, str] | None = None, *,
                 project: bool = True) -> dict[str, Any]:
        """What it wrote."""
        with LayerReader(self.store, self.outputs(csrc, arch_list, environment, project=project)["index"]) as layer:
            found: dict[str, Any] = json.loads(layer.read("expected.json"))
        return found


def mock(store_path: Path, scratch: Path) -> Mock:
    """Build thor's base layer if the store has none, fetch the wheels and the emulator."""
    root = committed_project(scratch / "project")
    doit(root, store_path, "base:thor")
    store, project = Store.open(store_path), Project(root)
    record = state_of(project.graph("thor").stage("base"), {}, store)[1]
    assert record is not None
    lock = project.lock_data("thor")
    debs = list(lock["emulator"]["debs"])
    fetch(store, [Wanted("deb", deb["name"], deb["version"], deb["file"], deb["size"], deb["sha256"], deb["index"])
                  for deb in debs], {"deb": DebSource({"debian": Archive("debian", "debian")})})
    wheels = [Wanted("wheel", name, version, f"{name.replace('-', '_')}-{version}-{tag}.whl", 0, sha256, "default")
              for name, version, tag, sha256 in WHEELS]
    wheels += [Wanted("wheel", item.name, item.version, item.file, item.size, item.sha256, item.index)
               for item in project.lock("thor").wheels if item.name in LOCKED]
    fetch(store, wheels, {"wheel": source("wheel", HERE)})
    scheme = {"python": "3.11", "interpreter": "/usr/bin/python3.11", "purelib": "cross/python",
              "platlib": "cross/python", "scripts": "cross/python/bin", "data": "cross/python", "glibc": "2.36",
              "headers": "cross/python/include", "collisions": [], "records": []}
    requires = build_wheels(BuildContext(store, scheme, {f"wheels/{one.file}": one.digest for one in wheels},
                                         {"os": "linux", "architecture": "arm64"}))
    return Mock(store, (record.outputs["layer"].digest, requires["layer"].digest), debs)
