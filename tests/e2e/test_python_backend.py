"""`triton.python_backend: source`, the whole way by the front door: lock, compile, layer, gates, the same bytes twice.

Real pytriton server, real compilers, real Python; Triton's repositories are small ones with the same CMake interface
(tests/support/small_triton.py), reached as mirrors of their real addresses, and the recipe is the shipped one but for
their revisions.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cache.layer import LayerReader, read_index
from cache.store import Store
from checks.elf import read_elf
from executors.choose import executor
from executors.process import Process
from stages.plan import state_of
from stages.project import Project
from tests.support import small_triton
from tests.support.front import HERE, doit, make_project
from tests.support.project import without_gpu

PLACE = "opt/tritonserver/backends/python"
STUB = f"{PLACE}/triton_python_backend_stub"
TARGET = without_gpu("a server with a Python backend from source", platform="linux/@ARCHITECTURE@") + """\
packages:
  python3: the interpreter that the stub embeds
  libpython3.11: the Triton stub links it
  libarchive13: the Triton stub and libtriton_python link it
  libstdc++6: the Triton server links it
  libnuma1: the Triton server links it
triton:
  version: "0.7.0"
  python_backend: source
sources:
  mirrors: @MIRRORS@
wheels:
  requirements: [numpy==2.3.5]
waivers:
  - check: advisories
    subject: "triton-inference-server 2.51.0: *"
    reason: a test, which serves nobody
"""

FAR = """\
format: stagecraft.target.v1
extends: thor
description: thor with a Python backend from source
triton:
  python_backend: source
sources:
  mirrors: @MIRRORS@
"""


@dataclass
class Place:
    """A project with a store."""

    root: Path
    store: Path
    origin: small_triton.Origin

    def run(self, *arguments: str, rc: int | None = 0) -> tuple[str, str]:
        done = doit(self.root, self.store, *arguments, rc=rc)
        return done.stdout, done.stderr

    def target(self, name: str, text: str = TARGET, architecture: str = "amd64") -> None:
        made = text.replace("@MIRRORS@", self.origin.mirrors()).replace("@ARCHITECTURE@", architecture)
        (self.root / f"targets/{name}.yaml").write_text(made)

    def lock(self, name: str = "served") -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.root / f"targets/{name}.lock.json").read_text())
        return found

    def outputs(self, target: str, stage: str) -> dict[str, str]:
        """Digests of a stage's outputs; it is built."""
        project, store = Project(self.root), Store.open(self.store)
        records: dict[str, Any] = {}
        for one in project.graph(target).closure(stage):
            records[one.name] = state_of(one, {need: records[need] for need in one.dependencies()}, store)[1]
        return {name: blob.digest for name, blob in records[stage].outputs.items()}

    def files(self, target: str, stage: str) -> dict[str, int]:
        """Paths of a layer with their modes, directories left out."""
        index = self.outputs(target, stage)["index"]
        return {entry["path"]: entry.get("mode", 0) for entry in read_index(Store.open(self.store), index)
                if entry["type"] != "directory"}


@pytest.fixture(scope="module")
def place(thor_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    scratch = tmp_path_factory.mktemp("python-backend")
    origin = small_triton.origin(scratch)
    root = make_project(scratch / "project")
    origin.put(root)
    found = Place(root, thor_store, origin)
    found.target("served")
    found.run("lock:served")
    yield found
    shutil.rmtree(scratch, ignore_errors=True)


@pytest.fixture(scope="module")
def built(place: Place) -> Place:
    place.run("build:served")
    return place


def test_lock_has_every_source_and_archive_by_content(place: Place) -> None:
    package, = place.lock()["sources"]
    assert (package["name"], package["version"]) == ("python-backend", "26.02")
    assert package["source"]["revision"] == place.origin.revisions["python_backend"]
    trees = {tree["name"]: tree for tree in package["trees"]}
    assert set(trees) == {"repo-common", "repo-core", "repo-backend", "pybind11", "dlpack"}
    assert trees["repo-core"]["repository"] == f"{small_triton.ORGANIZATION}/core.git"
    assert trees["dlpack"]["pinned"] == "v0.8"
    boost, = package["archives"]
    assert (boost["sha256"], boost["index"]) == (place.origin.boost_sha256,
                                                 "https://archives.boost.io/boost_1_80_0.tar.gz")
    development = {deb["name"] for deb in package["tools"]["development"]}
    assert {"libpython3.11-dev", "libarchive-dev", "rapidjson-dev"} <= development
    assert str(place.origin.root) not in (place.root / "targets/served.lock.json").read_text()
    assert "is as it was" in place.run("lock:served")[0]


def test_it_is_compiled_and_no_layer_hides_anothers_file(built: Place) -> None:
    assert built.files("served", "python-backend") == {
        f"{PLACE}/LICENSE": 0o644, f"{PLACE}/libtriton_python.so": 0o755, STUB: 0o755,
        f"{PLACE}/triton_python_backend_utils.py": 0o644}
    server = built.files("served", "triton")
    assert not [path for path in server if "backends" in path]
    assert "opt/tritonserver/lib" in server
    report = json.loads(built.run("check:served", "--json")[0])
    assert report["passes"]
    assert {check["check"] for check in report["checks"]} >= {"triton-stub", "closure"}  # with numpy 2


def test_its_sources_are_in_the_provenance_and_it_in_the_sbom(built: Place) -> None:
    store, outputs = Store.open(built.store), built.outputs("served", "attest")
    definition = json.loads(store.read(outputs["provenance"]))["predicate"]["buildDefinition"]
    named = {one.get("uri", one["name"]) for one in definition["resolvedDependencies"]}
    assert {"https://archives.boost.io/boost_1_80_0.tar.gz", "triton/python-backend.sh", "triton/cmake.sh"} <= named
    for name in ("python_backend", "common", "core", "backend"):
        assert f"git+{small_triton.ORGANIZATION}/{name}.git@{built.origin.revisions[name]}" in named
    listed = {one["name"] for one in json.loads(store.read(outputs["sbom"]))["packages"]}
    assert {"triton-python-backend", "triton-inference-server"} <= listed


def test_what_it_asks_the_loader_for(built: Place) -> None:
    with LayerReader(Store.open(built.store), built.outputs("served", "python-backend")["index"]) as layer:
        with layer.open(STUB) as stream:
            stub = read_elf(stream)
        with layer.open(f"{PLACE}/libtriton_python.so") as stream:
            library = read_elf(stream)
        with layer.open(f"{PLACE}/libtriton_python.so") as stream:
            data = stream.read()
    assert stub is not None
    assert library is not None
    assert "libpython3.11.so.1.0" in stub.needed
    assert "libtritonserver.so" in library.needed
    assert library.runpath == ("$ORIGIN/../../lib",)
    assert b"/usr/src/triton/src/src/python_be.cc" in data  # what __FILE__ says
    assert b"/build" not in data


def test_stub_runs_in_the_image(built: Place, tmp_path: Path) -> None:
    layout = built.root / "result-served"
    manifest = json.loads((layout / "index.json").read_text())["manifests"][0]["digest"][7:]
    layers = tuple(layer["digest"] for layer in
                   json.loads((layout / "blobs/sha256" / manifest).read_text())["layers"])
    said: list[str] = []
    process = Process(layers, (f"/{STUB}", "import numpy; print(numpy.__version__)"), os.uname().machine)
    outcome = executor(Store.open(built.store), process.machine, []).run(process, tmp_path / "run", log=said.append)
    assert outcome.ok, (outcome, said)
    assert said[-2].startswith("stub of Python 3.11.")
    assert "boost 108000, pybind11 2.12" in said[-2]
    assert said[-1] == "2.3.5"


def test_compiled_for_another_machine_under_the_emulator(place: Place) -> None:
    """Over thor's base, which the store has: CMake and Python emulated, the compilers native."""
    (place.root / "targets/thor.yaml").write_text((HERE / "targets/thor.yaml").read_text())
    shutil.copy(HERE / "targets/thor.lock.json", place.root / "targets/far.lock.json")
    place.target("far", FAR)
    place.run("lock:far", "--no-preflight")
    place.run("python-backend:far")
    with LayerReader(Store.open(place.store), place.outputs("far", "python-backend")["index"]) as layer, \
            layer.open(STUB) as stream:
        stub = read_elf(stream)
    assert stub is not None
    assert stub.machine == "aarch64"
    assert "libpython3.11.so.1.0" in stub.needed


def test_the_same_bytes_twice(built: Place) -> None:
    told = json.loads(built.run("rebuild:served:python-backend", "--json")[0])
    assert [entry["same"] for entry in told["stages"]] == [True]


def test_server_from_source_beside_it(place: Place, tmp_path: Path) -> None:
    """Server, core and what third_party builds: projects inside projects, which clone and download."""
    text = TARGET.replace('version: "0.7.0"\n  python_backend: source', 'version: "25.07"\n  from: source')
    place.target("whole", text)
    place.run("lock:whole")
    server = next(one for one in place.lock("whole")["sources"] if one["name"] == "triton-server")
    trees = {tree["name"]: tree for tree in server["trees"]}
    assert set(trees) == {"repo-common", "repo-core", "repo-backend", "repo-third-party", "grpc-repo", "libevent",
                          "nlohmann-json"}  # curl is not built, so nobody asked for it
    assert list(trees["grpc-repo"]["submodules"]) == ["third_party/cares"]
    place.run("triton:whole")
    place.run("python-backend:whole")
    place.run("gate:whole:triton-stub")
    assert place.files("whole", "triton") == {
        "opt/tritonserver/LICENSE": 0o644, "opt/tritonserver/TRITON_VERSION": 0o644,
        "opt/tritonserver/bin/tritonserver": 0o755, "opt/tritonserver/lib/libtritonserver.so": 0o644}
    place.run("base:whole")
    layers = tuple(place.outputs("whole", stage)["layer"] for stage in ("base", "triton"))
    said: list[str] = []
    process = Process(layers, ("/opt/tritonserver/bin/tritonserver",), os.uname().machine)
    outcome = executor(Store.open(place.store), process.machine, []).run(process, tmp_path / "run", log=said.append)
    assert outcome.ok, (outcome, said)
    assert said[-1] == "Triton 2.59.1, libevent 2112, api 111"
    packages = json.loads(Store.open(place.store).read(place.outputs("whole", "triton")["packages"]))["packages"]
    assert [(one["name"], one["version"], one["container"]) for one in packages] == [
        ("triton-inference-server", "2.59.1", "25.07")]
    told = json.loads(place.run("rebuild:whole:triton", "--json")[0])
    assert [entry["same"] for entry in told["stages"]] == [True]
