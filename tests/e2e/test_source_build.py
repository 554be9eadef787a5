"""A small package with device code, from its source to a loaded module, for an aarch64 image on this machine.

The parts that a build of vLLM is made of, with real tools: pins read out of CMake, a tree from a git server, a cross
compiler laid over the emulated root, nvcc at native speed, no network, the same bytes twice, device code for exactly
one architecture. The root is thor's base and CUDA layers.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

import fatbin
from assemble.source_tree import build as build_source
from cache.build import BuildContext
from cache.errors import StageError
from cache.layer import LayerReader
from cache.store import Store
from checks.symbols import read_library
from executors.choose import executor
from executors.process import Process
from lock.cmake_pins import pins
from lock.fetch import Wanted
from lock.git_tree import fetch_tree, resolve
from tests.support.git_server import Repository, git_server
from tests.support.source_build import Machine, Run, cross_compiler, requires_layer, run, thor, toolkit_layer
from tests.support.tarballs import make_tar

CMAKE = b"""\
cmake_minimum_required(VERSION 3.25)
project(small LANGUAGES CXX CUDA)
find_package(Python 3.11 REQUIRED COMPONENTS Interpreter Development.Module)
include(FetchContent)
set(HEADERS_TAG "v1")
FetchContent_Declare(headers GIT_REPOSITORY @ADDRESS@ GIT_TAG ${HEADERS_TAG})
FetchContent_MakeAvailable(headers)
Python_add_library(_small MODULE WITH_SOABI csrc/module.cpp csrc/one.cu csrc/two.cu)
target_include_directories(_small PRIVATE ${headers_SOURCE_DIR}/include)
install(TARGETS _small DESTINATION small)
"""
MODULE = b"""\
#include <Python.h>
#include "factor.h"
int one(); int two();
static PyObject* sum(PyObject*, PyObject*) { return PyLong_FromLong(FACTOR * (one() + two())); }
static PyMethodDef methods[] = {{"sum", sum, METH_NOARGS, ""}, {0, 0, 0, 0}};
static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_small", 0, -1, methods};
PyMODINIT_FUNC PyInit__small() { return PyModule_Create(&module); }
"""
KERNEL = """\
#include "factor.h"
static __global__ void hidden(int* p) {{ *p = FACTOR * {number}; }}
__global__ void {name}_kernel(int* p) {{ *p = {number}; }}
int {name}() {{ hidden<<<1, 1>>>(nullptr); {name}_kernel<<<1, 1>>>(nullptr); return {number}; }}
"""
SCRIPT = b"""\
set -eu
cp -a /inputs/csrc/src /build/src
# nvcc finds its parts beside itself: programs of this machine, libraries of the target.
mkdir /build/cuda
cp -a /cross/toolkit/nvidia/cu13/bin /cross/toolkit/nvidia/cu13/nvvm /cross/toolkit/nvidia/cu13/include /build/cuda/
ln -s "/$SITE/nvidia/cu13/lib" /build/cuda/lib64
export PATH=/cross/bin:/build/cuda/bin:/cross/python/cmake/data/bin:/cross/python/bin:$PATH
cmake -S /build/src -B /build/build -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_INSTALL_PREFIX=/build/out \\
    -DCMAKE_CUDA_ARCHITECTURES="$ARCHITECTURES" -DCMAKE_CUDA_COMPILER=/build/cuda/bin/nvcc \\
    -DCMAKE_CUDA_HOST_COMPILER=/cross/bin/g++ -DFETCHCONTENT_FULLY_DISCONNECTED=ON \\
    -DFETCHCONTENT_SOURCE_DIR_HEADERS=/inputs/csrc/sources/headers -DPython_EXECUTABLE=/usr/bin/python3.11
cmake --build /build/build -j "$STAGECRAFT_JOBS"
cmake --install /build/build --strip
objcopy --remove-section=.comment /build/out/small/_small*.so
"""


#: cmake and ninja for aarch64: project, version, file, sha256.
WHEELS = (
    ("cmake", "4.4.4", "cmake-4.4.4-py3-none-manylinux2014_aarch64.manylinux_2_17_aarch64.whl",
     "b3029f586853e01ddf2824c1ff124a1c5284f8ae897994758e9c4eeb45903b58"),
    ("ninja", "1.13.2", "ninja-1.13.2-py3-none-manylinux2014_aarch64.manylinux_2_17_aarch64.whl",
     "d775a5e43e9088f507a6250d57fcf5678eb31268c545feb5064ffeee33735622"),
)


@pytest.fixture(scope="module")
def machine(thor_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Machine:
    return thor(thor_store, tmp_path_factory.mktemp("project"), "base", "cuda")


@pytest.fixture(scope="module")
def tools(machine: Machine) -> tuple[str, ...]:
    """Compilers of this machine, and cmake and ninja of the target's, which run emulated."""
    builders = [Wanted("wheel", name, version, file, 0, sha256, "default") for name, version, file, sha256 in WHEELS]
    return cross_compiler(machine.store), toolkit_layer(machine.store), requires_layer(machine.store, builders)


# -- the package ------------------------------------------------------------------------------------


@dataclass
class Package:
    """Its source as the builder gives it, and what its lock would say."""

    csrc: str
    python: str


@pytest.fixture(scope="module")
def package(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Package]:
    root = tmp_path_factory.mktemp("repositories")
    headers = Repository(root / "headers")
    headers.commit({"include/factor.h": b"#define FACTOR 7\n"})
    headers.git("tag", "v1")
    headers.commit({"include/factor.h": b"#define FACTOR 8\n"})
    with git_server(root) as address:
        yield source_of(machine.store, address, {"small/__init__.py": b"from small import _small\n"})


def source_of(store: Store, address: str, python: Mapping[str, bytes]) -> Package:
    """Lock and unpack: pins out of its CMake file, the tag resolved, the tree fetched."""
    text = CMAKE.replace(b"@ADDRESS@", address.encode() + b"headers").decode()
    pin, = pins({"CMakeLists.txt": text}.get, {})
    tree = fetch_tree(store, pin.repository, resolve(pin.repository, pin.tag))
    files: dict[str, bytes] = {"small-1/CMakeLists.txt": CMAKE.replace(b"@ADDRESS@", b"git://away.invalid/headers"),
                               "small-1/csrc/module.cpp": MODULE,
                               **{f"small-1/{name}": content for name, content in python.items()}}
    for number, name in enumerate(("one", "two"), start=1):
        files[f"small-1/csrc/{name}.cu"] = KERNEL.format(name=name, number=number).encode()
    found = build_source(BuildContext(store, {"strip": 1, "csrc": ["CMakeLists.txt", "csrc/*"], "stubs": []}, {
        "source": store.put(make_tar(sorted(files.items()))).digest, "tree/headers": tree.digest}))
    return Package(found["csrc"].digest, found["python"].digest)


def compiled(machine: Machine, tools: Sequence[str], package: Package, architectures: str,
             lines: list[str] | None = None, script: bytes = SCRIPT) -> dict[str, str]:
    """The stage that runs code: compile for one device."""
    environment = {"ARCHITECTURES": architectures, "SITE": machine.site, "SOURCE_DATE_EPOCH": "315532800",
                   "LC_ALL": "C", "NVCC_APPEND_FLAGS": "-frandom-seed=small -objtemp"}
    layers = [machine.layers["base"], machine.layers["cuda"], *tools]
    return run(machine, Run(layers, {"csrc": package.csrc}, {"build.sh": script}, environment,
                            lines if lines is not None else []))


MODULE_NAME = "small/_small.cpython-311-aarch64-linux-gnu.so"


@pytest.fixture(scope="module")
def of_thor(machine: Machine, tools: tuple[str, ...], package: Package) -> dict[str, str]:
    return compiled(machine, tools, package, "110a-real")


def module_of(machine: Machine, outputs: Mapping[str, str]) -> bytes:
    with LayerReader(machine.store, outputs["index"]) as layer:
        return layer.read(f"{machine.site}/{MODULE_NAME}")


def test_code_for_exactly_one_device(machine: Machine, tools: tuple[str, ...], package: Package,
                                     of_thor: dict[str, str]) -> None:
    spark = compiled(machine, tools, package, "121a-real")
    for outputs, arch in ((of_thor, "sm_110a"), (spark, "sm_121a")):
        data = module_of(machine, outputs)
        library = read_library(io.BytesIO(data))
        assert library.elf.machine == "aarch64"
        assert "PyInit__small" in library.exports
        entries = fatbin.read(data).entries
        assert {entry.target for entry in entries} == {arch}
        assert {kernel for entry in entries for kernel in fatbin.kernels(entry) or ()} >= {"_Z10one_kernelPi",
                                                                                          "_Z10two_kernelPi"}


def test_same_bytes_twice(machine: Machine, tools: tuple[str, ...], package: Package,
                          of_thor: dict[str, str]) -> None:
    assert compiled(machine, tools, package, "110a-real") == of_thor


def test_module_loads_under_the_emulator(machine: Machine, of_thor: dict[str, str]) -> None:
    chosen = executor(machine.store, "aarch64", machine.emulators)
    said: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        outcome = chosen.run(Process(
            (machine.layers["base"], machine.layers["cuda"], of_thor["layer"]),
            ("python3.11", "-c", "from small import _small; print(_small.sum())"), "aarch64",
            {"LD_LIBRARY_PATH": f"/{machine.site}/nvidia/cu13/lib"}), Path(scratch), log=said.append)
    assert outcome.ok, said
    assert said[-1] == "21"  # 7 * (1 + 2): the tag's header, not the newer one


def test_python_change_leaves_the_compile_alone(machine: Machine, package: Package,
                                                tmp_path: Path) -> None:
    headers = Repository(tmp_path / "headers")
    headers.commit({"include/factor.h": b"#define FACTOR 7\n"})
    headers.git("tag", "v1")
    with git_server(tmp_path) as address:
        other = source_of(machine.store, address, {"small/__init__.py": b"print('new')\n"})
    assert other.csrc == package.csrc
    assert other.python != package.python


def test_source_that_was_forgotten_is_an_error_and_no_download(machine: Machine, tools: tuple[str, ...],
                                                               package: Package) -> None:
    script = SCRIPT.replace(b"-DFETCHCONTENT_SOURCE_DIR_HEADERS=/inputs/csrc/sources/headers ", b"")
    lines: list[str] = []
    with pytest.raises(StageError) as caught:
        compiled(machine, tools, package, "110a-real", lines, script)
    assert "its script ended: exit 1" in caught.value.message
    assert any("FULLY_DISCONNECTED" in line or "headers" in line for line in lines)


def test_network_attempt_is_refused_and_named(machine: Machine, tools: tuple[str, ...], package: Package) -> None:
    script = b"python3.11 -c 'import urllib.request as u; u.urlopen(\"http://192.0.2.1/\")'\n"
    with pytest.raises(StageError) as caught:
        compiled(machine, tools, package, "110a-real", script=script)
    assert "it wanted the network, which a build does not have" in caught.value.message
    assert "Network is unreachable" in caught.value.diagnostics()
