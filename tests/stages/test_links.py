"""The layer that linkers read: names without versions, lib64, a libcuda.so that is never loaded."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from assemble.files import build
from cache.build import BuildContext
from cache.errors import InputError
from cache.store import Store
from checks.symbols import read_library
from checks.tree import ImageTree
from stages import links
from stages.graph import DataInput, Stage
from stages.lockfile import Lock, LockedFile
from stages.project import graph
from stages.target import load
from tests.support.elf_factory import make_elf
from tests.support.front import make_project
from tests.support.gates import SITE, Gates
from tests.support.project import TARGET

CUDA = TARGET.replace("linux/amd64", "linux/arm64").replace("cuda: none", 'cuda: "13.0"').replace(
    "compute_capability: none", 'compute_capability: "11.0"').replace("arch_list: none", "arch_list: 11.0a").replace(
    "driver_floor: none", 'driver_floor: "580"').replace("memory: none", "memory: unified")
WHEELS = {"nvidia-cuda-runtime": "13.0.96", "nvidia-cublas": "13.1.1.3", "nvidia-cufft": "12.0.0.61", "six": "1.17.0"}


def locked(**versions: str) -> Lock:
    wheels = tuple(LockedFile(name.replace("_", "-"), version, f"{name}-{version}-py3-none-any.whl", 500, "a" * 64,
                              "default") for name, version in versions.items())
    return Lock("small", {}, {"kind": "debian", "suites": []},
                {"version": "3.11", "executable": "/usr/bin/python3.11", "glibc": "2.36", "site": SITE,
                 "scripts": "usr/local/bin", "data": "usr/local"}, wheels=wheels)


def made(root: Path, text: str = CUDA, **versions: str) -> Stage | None:
    root = make_project(root, small=text)
    return links.stage(load(root, "small"), locked(**(versions or WHEELS)), root)


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    found = made(tmp_path / "project")
    assert found is not None
    return found


def stub_of(stage: Stage) -> bytes:
    given = stage.inputs["libcuda"]
    assert isinstance(given, DataInput)
    return given.content


def layer(store: Store, stage: Stage) -> dict[str, Any]:
    return dict(build(BuildContext(store, stage.params, {"libcuda": store.put(stub_of(stage)).digest})))


def test_names_and_versions_come_from_the_lock(stage: Stage, tmp_path: Path) -> None:
    home = f"{SITE}/nvidia/cu13"
    assert {file["path"]: file.get("link") for file in stage.params["files"]} == {
        f"{home}/lib64": "lib", f"{home}/lib/stubs/libcuda.so": None,
        f"{home}/lib/libcudart.so": "libcudart.so.13", f"{home}/lib/libcublas.so": "libcublas.so.13",
        f"{home}/lib/libcublasLt.so": "libcublasLt.so.13", f"{home}/lib/libcufft.so": "libcufft.so.12",
        f"{home}/lib/libcufftw.so": "libcufftw.so.12"}
    newer = made(tmp_path / "newer", **{**WHEELS, "nvidia-cuda-runtime": "14.1.2"})
    assert newer is not None
    assert {"path": f"{SITE}/nvidia/cu14/lib/libcudart.so", "link": "libcudart.so.14"} in newer.params["files"]


@pytest.mark.parametrize(("text", "versions"), [
    (TARGET, WHEELS), (CUDA, {"six": "1.17.0"}), (CUDA, {"nvidia-cuda-runtime-cu12": "12.9.79"})])
def test_nothing_to_link_no_layer(tmp_path: Path, text: str, versions: dict[str, str]) -> None:
    assert made(tmp_path / "project", text, **versions) is None


def test_it_is_a_layer_of_the_image(tmp_path: Path) -> None:
    text = CUDA + 'layers: {cuda: ["nvidia-*"], deps: ["*"]}\n'
    root = make_project(tmp_path / "project", small=text)
    inputs = graph(load(root, "small"), locked(**WHEELS), root).stage("image").inputs
    assert [name.partition("-")[2] for name in inputs] == ["cuda", "deps", "links"]


@pytest.mark.parametrize(("platform", "machine"), [("linux/arm64", "aarch64"), ("linux/amd64", "x86_64")])
def test_stub_has_the_driver_s_soname_and_functions(tmp_path: Path, platform: str, machine: str) -> None:
    found = made(tmp_path / "project", CUDA.replace("linux/arm64", platform))
    assert found is not None
    library = read_library(io.BytesIO(stub_of(found)))
    assert (library.elf.machine, library.elf.soname) == (machine, "libcuda.so.1")
    assert {"cuInit", "cuMemAlloc_v2", "cuTensorMapEncodeTiled", "cuLaunchKernel_ptsz"} <= set(library.exports)
    assert not any(file["path"].endswith("/libcuda.so.1") for file in found.params["files"])  # the loader looks for it


def test_comment_is_in_no_key(stage: Stage, tmp_path: Path) -> None:
    root = make_project(tmp_path / "other", small=CUDA)
    names = root / links.DRIVER
    names.write_text("# another comment\n" + names.read_text())
    again = links.stage(load(root, "small"), locked(**WHEELS), root)
    assert again == stage
    names.write_text(names.read_text() + "cuNewerFunction\n")
    newer = links.stage(load(root, "small"), locked(**WHEELS), root)
    assert newer is not None
    assert newer.inputs != stage.inputs


@pytest.mark.parametrize("text", ["cuInit\n\ncuCtxCreate\n", "cuInit cuCtxCreate\n", "cudaMalloc\n", "cuInit\xe9\n",
                                  None])
def test_list_of_functions_that_is_damaged(tmp_path: Path, text: str | None) -> None:
    root = make_project(tmp_path / "project", small=CUDA)
    (root / links.DRIVER).unlink()
    if text is not None:
        (root / links.DRIVER).write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError) as caught:
        links.stage(load(root, "small"), locked(**WHEELS), root)
    assert str(caught.value.where).startswith(links.DRIVER)
    assert caught.value.cure


# -- in an image --------------------------------------------------------------------------------------


@pytest.fixture
def gates(tmp_path: Path, stage: Stage) -> Gates:
    """An image of CUDA's wheels and these links, with a library of the driver's name nowhere but in the stub."""
    gates = Gates(Store.open(tmp_path / "store"))
    home = f"{SITE}/nvidia/cu13"
    libraries = {"cudart": 13, "cublas": 13, "cublasLt": 13, "cufft": 12, "cufftw": 12}
    gates.files("cuda", {f"{home}/lib/lib{name}.so.{number}": make_elf(soname=f"lib{name}.so.{number}")
                         for name, number in libraries.items()}, {"nvidia-cuda-runtime": "13.0.96"})
    gates.outputs |= {f"links/{name}": blob.digest for name, blob in layer(gates.store, stage).items()}
    return gates


def test_every_name_leads_to_a_library(gates: Gates, stage: Stage) -> None:
    with ImageTree(gates.store, {name: gates.outputs[f"{name}/index"] for name in ("cuda", "links")}) as tree:
        home = f"{SITE}/nvidia/cu13"
        assert tree.file(f"{home}/lib64/stubs/libcuda.so") == f"{home}/lib/stubs/libcuda.so"
        for file in stage.params["files"]:
            if file["path"] != f"{home}/lib64":
                found = tree.file(file["path"].replace("cu13/lib/", "cu13/lib64/"))
                assert found is not None, file
                assert tree.library(found).elf.soname


def test_stub_is_no_driver_for_the_checks(gates: Gates) -> None:
    """Who needs libcuda.so.1 has it of the device; and the stub hides no name that nothing defines."""
    gates.files("deps", {f"{SITE}/one.so": make_elf(needed=("libcuda.so.1",), soname="one.so")})
    assert gates.judge("closure").errors == ()
    assert gates.judge("abi").errors == ()
    gates.target["image"]["environment"] = {"LD_LIBRARY_PATH": "{site}/nvidia/cu13/lib/stubs"}
    assert any(subject.startswith("search path: ") for subject in gates.errors("closure"))
