"""A Triton server out of a release's archive and out of an image, by the front door: real HTTP, a real registry.

The archive and the image are made here, with real ELF headers: NVIDIA's are not to be had in a test.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cache.layer import read_index
from cache.store import Store
from stages.plan import state_of
from stages.project import Project
from tests.e2e.test_registry_base import put_base
from tests.support.elf_factory import make_elf
from tests.support.front import doit, make_project
from tests.support.index_server import IndexServer
from tests.support.project import without_gpu
from tests.support.registry import RunningRegistry
from tests.support.tarballs import Member

ROOT = "opt/tritonserver"
TARGET = without_gpu("a server that others built", platform="linux/arm64") + """\
packages:
  python3: the interpreter of Python models
triton:
"""


def tree(top: str, python: str = "3.11", machine: str = "aarch64") -> list[Member]:
    """What a release's archive holds, below a directory."""
    stub = make_elf(machine=machine, needed=(f"libpython{python}.so.1.0",))
    files: dict[str, bytes] = {
        "bin/tritonserver": make_elf(machine=machine), "lib/libtritonserver.so": make_elf(machine=machine),
        "lib/stubs/libtritonserver.so": b"stub", "include/triton/core/tritonserver.h": b"header",
        "backends/python/libtriton_python.so": make_elf(machine=machine),
        "backends/python/triton_python_backend_stub": stub,
        "backends/python/triton_python_backend_utils.py": b"X = 1\n",
        "backends/tensorrt/libtriton_tensorrt.so": b"another backend", "backends/vllm/model.py": b"theirs",
        "clients/python/tritonclient.whl": b"a client", "LICENSE": b"BSD\n", "TRITON_VERSION": b"2.66.0\n"}
    return [(f"{top}/{path}", content) for path, content in files.items()]


KEPT = {f"{ROOT}/{path}" for path in (
    "bin/tritonserver", "lib/libtritonserver.so", "backends/python/libtriton_python.so",
    "backends/python/triton_python_backend_stub", "backends/python/triton_python_backend_utils.py", "LICENSE",
    "TRITON_VERSION")}


@dataclass
class Place:
    root: Path
    store: Path

    def run(self, *arguments: str, rc: int | None = 0) -> tuple[str, str]:
        done = doit(self.root, self.store, *arguments, rc=rc)
        return done.stdout, done.stderr

    def target(self, name: str, triton: str) -> None:
        (self.root / f"targets/{name}.yaml").write_text(
            TARGET + "".join(f"  {line}\n" for line in triton.splitlines()))

    def server(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.root / f"targets/{name}.lock.json").read_text())["server"]
        return found

    def files(self, name: str) -> dict[str, int]:
        store = Store.open(self.store)
        _, record = state_of(Project(self.root).graph(name).stage("triton"), {}, store)
        assert record is not None
        return {entry["path"]: entry["mode"] for entry in read_index(store, record.outputs["index"].digest)
                if entry["type"] == "file"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    scratch = tmp_path_factory.mktemp("origins")
    return Place(make_project(scratch / "project"), scratch / "store")


def archive(path: Path, members: list[Member]) -> str:
    """Write it, executables as such; its sha256."""
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as tar:
        for name, content in members:
            assert isinstance(content, bytes)
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), 0o755 if "/bin/" in name or name.endswith("_stub") else 0o644
            tar.addfile(info, io.BytesIO(content))
    path.write_bytes(held.getvalue())
    return hashlib.sha256(held.getvalue()).hexdigest()


def test_release_by_its_hash(place: Place, tmp_path: Path) -> None:
    sha = archive(tmp_path / "tritonserver2.66.0-igpu.tar", tree("tritonserver"))
    with IndexServer(tmp_path) as server:
        url = server.url.replace("/simple/", "/files/") + "tritonserver{version}-igpu.tar"
        place.target("released", f'version: "2.66.0"\nfrom: release\nurl: "{url}"\nsha256: "{sha}"')
        place.run("lock:released")
        place.run("triton:released")
        assert server.count("tritonserver2.66.0-igpu.tar") == 1  # the lock's fetch; the build takes it from the store
    locked = place.server("released")
    assert (locked["kind"], locked["sha256"], locked["index"]) == ("archive", sha, url.replace("{version}", "2.66.0"))
    found = place.files("released")
    assert found.keys() == KEPT
    assert found[f"{ROOT}/bin/tritonserver"] == 0o755
    place.run("gate:released:triton-stub")
    told = json.loads(place.run("rebuild:released:triton", "--json")[0])
    assert [entry["same"] for entry in told["stages"]] == [True]


def test_stub_for_another_python_does_not_pass(place: Place, tmp_path: Path) -> None:
    sha = archive(tmp_path / "tritonserver2.66.0-igpu.tar", tree("tritonserver", python="3.12"))
    with IndexServer(tmp_path) as server:
        url = server.url.replace("/simple/", "/files/") + "tritonserver2.66.0-igpu.tar"
        place.target("other", f'version: "2.66.0"\nfrom: release\nurl: "{url}"\nsha256: "{sha}"')
        place.run("lock:other")
        said = place.run("gate:other:triton-stub", rc=114)[1]
    assert "links Python 3.12, the image has 3.11" in said


def test_another_archive_than_the_hash_says_is_refused(place: Place, tmp_path: Path) -> None:
    archive(tmp_path / "tritonserver2.66.0-igpu.tar", tree("tritonserver"))
    with IndexServer(tmp_path) as server:
        url = server.url.replace("/simple/", "/files/") + "tritonserver2.66.0-igpu.tar"
        place.target("wrong", f'version: "2.66.0"\nfrom: release\nurl: "{url}"\nsha256: "{"0" * 64}"')
        said = place.run("lock:wrong", rc=102)[1]
    assert "0" * 64 in said
    assert not (place.root / "targets/wrong.lock.json").exists()


def test_image_by_its_digest(place: Place, registry: RunningRegistry, tmp_path: Path) -> None:
    upper: list[Member] = [(f"{ROOT}/LICENSE", b"newer\n"), (f"{ROOT}/lib/.wh.libold.so", b"")]
    lower: list[Member] = [*tree(ROOT), (f"{ROOT}/lib/libold.so", b"old"), ("usr/bin/python3", b"python")]
    digest, manifest = put_base(registry, tmp_path / "scratch", "nvidia/tritonserver", [lower, upper])
    place.target("imaged", f'version: "26.02"\nfrom: image\nimage: "{registry.host}/nvidia/tritonserver:1"')
    place.run("lock:imaged")
    locked = place.server("imaged")
    assert locked["digest"] == digest
    assert locked["reference"] == f"{registry.host}/nvidia/tritonserver:1@{digest}"
    assert [layer["digest"] for layer in locked["layers"]] == [layer["digest"] for layer in manifest["layers"]]
    place.run("triton:imaged")
    assert place.files("imaged").keys() == KEPT
    place.run("gate:imaged:triton-stub")
    # A tag that moved changes nothing until it is asked for.
    moved, _ = put_base(registry, tmp_path / "again", "nvidia/tritonserver", [lower])
    place.run("lock:imaged")
    assert place.server("imaged")["digest"] == digest
    said = place.run("lock:imaged", "--upgrade", "tritonserver")[0]
    assert place.server("imaged")["digest"] == moved
    assert "server tritonserver" in said
