"""preflight as a whole: small wheels on a real index, read in parts, judged, and told; and in `lock`."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from cache.errors import FetchError
from stages.lockfile import Lock, LockedFile, request_digests
from stages.preflight import Preflight, preflight
from stages.project import Project
from tests.support.front import HERE, doit, make_project
from tests.support.index_server import IndexServer
from tests.support.shared_objects import Compiler
from tests.support.wheel_factory import make_wheel

MESSAGE_LOGGER = "_ZN3c1013MessageLoggerC1EPKciib"
CORE = ("vllm/_C_stable_libtorch.abi3.so", "vllm/_moe_C_stable_libtorch.abi3.so",
        "vllm/vllm_flash_attn/_vllm_fa2_C.abi3.so", "vllm/cumem_allocator.abi3.so", "vllm/spinloop.abi3.so",
        "vllm/fs_io_C.abi3.so")
TAG = "cp311-cp311-manylinux_2_28_aarch64"
TARGET = (HERE / "targets" / "thor.yaml").read_text().split("waivers:")[0]


class Place:
    """A project with a target `thor`, an index, and a store of its own."""

    def __init__(self, root: Path, server: IndexServer) -> None:
        self.root, self.server = make_project(root / "project", thor=TARGET), server
        self.wheels, self.compiler = root / "wheels", Compiler(root / "objects")
        self.log: list[str] = []

    def library(self, name: str, undefined: Iterable[str] = (), exports: Iterable[str] = ("PyInit_x",)) -> bytes:
        """A library for aarch64 with 400 kB of device code that does not deflate."""
        code = self.compiler.directory / "code.bin"
        code.write_bytes(random.Random(name).randbytes(400_000))
        source = "".join(f"extern int {one}(void); int use_{one}(void) {{ return {one}(); }}\n" for one in undefined)
        source += "".join(f"int {one}(void) {{ return 1; }}\n" for one in exports)
        source += f'__asm__(".section .nv_fatbin,\\"a\\"\\n.incbin \\"{code}\\"\\n.text");'
        data = bytearray(self.compiler.library(name, source))
        data[18:20] = (183).to_bytes(2, "little")
        return bytes(data)

    def torch(self, version: str = "2.99.0", exports: Iterable[str] = (MESSAGE_LOGGER,), cuda: str | None = "13.0",
              files: Mapping[str, bytes] | None = None) -> Path:
        members = {"torch/version.py": f"cuda = {cuda!r}\n".encode(), "torch/lib/libc10.so": self.library(
            "libc10.so", (), exports), "torch/lib/libtorch_cuda.so": random.Random(1).randbytes(3_000_000)}
        return make_wheel(self.wheels, "torch", version, tag=TAG, requires=["nvidia-cublas"],
                          files=members if files is None else files)

    def vllm(self, undefined: Iterable[str] = (), without: str = "", requires: Iterable[str] = ("torch",)) -> Path:
        members = {path: self.library("lib.so", undefined) for path in CORE if path != without}
        return make_wheel(self.wheels, "vllm", "0.32.0", tag="cp38-abi3-manylinux_2_28_aarch64", files=members,
                          requires=requires)

    def lock(self) -> Lock:
        """A lock of all wheels of the index."""
        make_wheel(self.wheels, "nvidia-cublas", "13.1")
        make_wheel(self.wheels, "numpy", "1.26.4")
        found = []
        for path in sorted(self.wheels.iterdir()):
            data = path.read_bytes()
            found.append(LockedFile(path.name.split("-")[0].replace("_", "-"), path.name.split("-")[1], path.name,
                                    len(data), hashlib.sha256(data).hexdigest(), "default"))
        base = Project(HERE).lock("thor")
        target = Project(self.root).target("thor")
        return replace(base, request=request_digests(target), debs=(), files=(), wheels=tuple(found))

    def judge(self, lock: Lock | None = None) -> Preflight:
        project = Project(self.root)
        return preflight(project, project.target("thor"), lock or self.lock(), self.log.append)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setenv("STAGECRAFT_STORE", str(tmp_path / "store"))
    (tmp_path / "wheels").mkdir()
    with IndexServer(tmp_path / "wheels") as server:
        for name, value in (("PIP_INDEX_URL", server.url), ("UV_INDEX_URL", server.url),
                            ("PIP_CONFIG_FILE", "/dev/null"), ("UV_NO_CONFIG", "1")):
            monkeypatch.setenv(name, value)
        for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS", "UV_INDEX"):
            monkeypatch.delenv(name, raising=False)
        yield Place(tmp_path, server)


def blocking(found: Preflight) -> dict[str, str]:
    return {one.weighed.finding.subject: one.check for one in found.blocking}


def test_a_good_set_passes_and_little_of_it_is_read(place: Place) -> None:
    place.torch()
    place.vllm([MESSAGE_LOGGER])
    found = place.judge()
    assert blocking(found) == {}
    assert found.error("no") is None
    assert 0 < found.fetched < found.size / 5
    assert "preflight passes" in found.summary()
    libraries = [path for path in place.wheels.iterdir() if path.name.startswith("vllm")]
    assert libraries[0].stat().st_size > 2_000_000


def test_the_second_time_nothing_is_asked_of_anybody(place: Place) -> None:
    place.torch()
    place.vllm([MESSAGE_LOGGER])
    lock = place.lock()
    first = place.judge(lock)
    place.server.requests.clear()
    second = place.judge(lock)
    assert place.server.requests == []
    assert second.fetched == 0
    assert [one.to_json() for one in second.found] == [one.to_json() for one in first.found]


def test_a_vllm_for_another_torch(place: Place) -> None:
    place.torch(exports=["_ZN3c1013MessageLoggerC1ENS_14SourceLocationEib"])
    place.vllm([MESSAGE_LOGGER])
    found = place.judge()
    assert blocking(found) == dict.fromkeys(CORE, "abi")
    assert f"undefined symbol: {MESSAGE_LOGGER}" in found.text()


def test_a_cpu_torch(place: Place) -> None:
    place.torch(cuda=None, files={"torch/version.py": b"cuda = None\n"})
    place.vllm([MESSAGE_LOGGER])
    assert set(blocking(place.judge())) == {"torch: libtorch_cuda.so", "torch: version.py"}


def test_an_extension_that_is_not_in_the_wheel(place: Place) -> None:
    place.torch()
    place.vllm(without="vllm/spinloop.abi3.so")
    assert blocking(place.judge()) == {"vllm/spinloop.abi3.so": "extensions"}


def test_a_server_without_ranges_gives_the_same_answer(place: Place) -> None:
    place.torch(exports=())
    place.vllm([MESSAGE_LOGGER])
    lock = place.lock()
    for wheel in lock.wheels:
        place.server.fault(wheel.file, "no-range")
    found = place.judge(lock)
    assert blocking(found) == dict.fromkeys(CORE, "abi")
    assert found.fetched == found.size
    assert any("the whole wheel is fetched" in line for line in place.log)
    place.server.requests.clear()
    assert place.judge(lock).fetched == 0
    assert place.server.requests == []


def test_waivers_cover_here_what_they_cover_in_the_gates(place: Place) -> None:
    place.torch()
    place.vllm(without="vllm/spinloop.abi3.so")
    (place.root / "targets" / "thor.yaml").write_text(
        TARGET + "waivers:\n  - check: extensions\n    subject: vllm/spinloop.*\n    reason: nothing here waits\n")
    found = place.judge()
    assert blocking(found) == {}
    assert "nothing here waits" in found.text()
    assert max(map(len, found.text().splitlines())) <= 80


def test_the_report_as_data_is_what_its_schema_says(place: Place) -> None:
    place.torch()
    place.vllm(requires=["torch==2.13.0"])
    found = place.judge().to_json()
    schema = json.loads((HERE / "docs/formats/preflight.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(schema).validate(found)
    assert not found["passes"]
    moved = [move for one in found["findings"] for move in one["moves"]]
    assert {"name": "torch", "from": "2.99.0", "to": "2.13.0", "why": "vllm 0.32.0 requires torch==2.13.0"} in moved


def test_the_error_names_the_pin_and_where_it_stands(place: Place) -> None:
    place.torch()
    place.vllm(requires=["torch==2.13.0", "click>=9"])
    make_wheel(place.wheels, "click", "8.1")
    error = place.judge().error("does not pass")
    assert error is not None
    assert error.exit_code == 114
    cure = str(error.cure)
    assert "move torch 2.99.0 -> 2.13.0: vllm 0.32.0 requires torch==2.13.0" in cure
    assert "(torch.version in targets/thor.yaml)" in cure
    assert "move click 8.1 -> >=9" in cure
    assert "./doit lock:thor --upgrade click" in cure


def test_what_follows_from_another_pin_is_not_named(place: Place) -> None:
    place.torch()
    place.vllm(requires=["torch==2.13.0"])
    make_wheel(place.wheels, "torchvision", "0.28.0", tag=TAG, requires=["torch==2.13.0"])
    found = place.judge()
    assert {"vllm: torch==2.13.0", "torchvision: torch==2.13.0"} == set(blocking(found))
    error = found.error("does not pass")
    assert error is not None
    assert "torch 2.99.0 -> 2.13.0" in str(error.cure)
    assert "torchvision" not in str(error.cure)
    make_wheel(place.wheels, "vllm", "0.32.0", tag="cp38-abi3-manylinux_2_28_aarch64", requires=["torch"], files={
        path: place.library("lib.so") for path in CORE})
    error = place.judge().error("does not pass")
    assert error is not None
    assert "move torchvision 0.28.0 -> the one for torch 2.99.0" in str(error.cure)


def test_an_index_that_is_away_is_no_verdict(place: Place) -> None:
    place.torch()
    lock = place.lock()
    place.server.stop()
    with pytest.raises(FetchError) as caught:
        place.judge(lock)
    assert "try again" in str(caught.value.cure)


# -- the commands ---------------------------------------------------------------------------------


def test_command(place: Place, tmp_path: Path) -> None:
    place.torch()
    place.vllm([MESSAGE_LOGGER])
    path = place.root / "targets" / "thor.lock.json"
    path.write_text(place.lock().dumps())
    done = doit(place.root, tmp_path / "store", "preflight:thor", "--json")
    said: dict[str, Any] = json.loads(done.stdout)
    assert (said["passes"], said["target"]) == (True, "thor")
    place.vllm([MESSAGE_LOGGER], without="vllm/fs_io_C.abi3.so")
    path.write_text(place.lock().dumps())
    done = doit(place.root, tmp_path / "store", "preflight:thor", rc=114)
    assert "error    extensions  vllm/fs_io_C.abi3.so" in done.stdout
    assert "preflight does not let thor pass" in done.stderr
    place.server.stop()
    done = doit(place.root, tmp_path / "other-store", "preflight:thor", rc=112)
    assert "index default cannot be read" in done.stderr
    assert "Traceback" not in done.stderr
