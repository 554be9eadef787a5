"""A small package with device code, from its source to a loaded module, for an aarch64 image on this machine.

The parts that a build of vLLM is made of, with real tools: pins read out of CMake, a tree from a git server, a cross
compiler laid over the emulated root, nvcc at native speed, no network, the same bytes twice, device code for exactly
one architecture. The root is thor's base and CUDA layers.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import fatbin
from assemble.source_tree import build as build_source
from assemble.tools import build as build_tools
from assemble.wheels import build as build_wheels
from cache.build import BuildContext
from cache.errors import StageError
from cache.layer import LayerReader
from cache.store import Store
from checks.symbols import read_library
from executors.choose import executor
from executors.process import Process
from executors.run_stage import build as run_script
from lock.apt_archive import Archive
from lock.cmake_pins import pins
from lock.debs import DebRequest, DebSource, lock_debs
from lock.fetch import Wanted, fetch
from lock.git_tree import fetch_tree, resolve
from stages.fetching import source
from stages.plan import state_of
from stages.project import Project
from tests.support.cuda import toolkit
from tests.support.front import HERE, committed_project, doit
from tests.support.git_server import Repository, git_server
from tests.support.images import make_layer
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


@dataclass
class Machine:
    """A store with thor's layers in it, and the compilers as layers."""

    store: Store
    base: str
    cuda: str
    tools: tuple[str, ...]
    emulators: list[Mapping[str, Any]]
    site: str


@pytest.fixture(scope="module")
def machine(thor_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Machine:
    root = committed_project(tmp_path_factory.mktemp("project") / "project")
    doit(root, thor_store, "cuda:thor", "base:thor")
    store = Store.open(thor_store)
    project = Project(root)
    records = {name: state_of(project.graph("thor").stage(name), {}, store)[1] for name in ("base", "cuda")}
    lock = project.lock_data("thor")
    layers = {name: record.outputs["layer"].digest for name, record in records.items() if record is not None}
    debs = list(lock["emulator"]["debs"])
    archives = {"debian": Archive("debian", "debian")}
    fetch(store, [Wanted("deb", deb["name"], deb["version"], deb["file"], deb["size"], deb["sha256"], deb["index"])
                  for deb in debs], {"deb": DebSource(archives)})
    return Machine(store, layers["base"], layers["cuda"],
                   (cross_compiler(store, archives), toolkit_layer(store), builders_layer(store)), debs,
                   lock["python"]["site"])


def cross_compiler(store: Store, archives: Mapping[str, Archive]) -> str:
    """Debian's g++ for arm64 on amd64, cmake and ninja of the target's own machine beside it."""
    lock = lock_debs(DebRequest("debian", "bookworm", ("main",), "amd64", ("g++-12-aarch64-linux-gnu",),
                                essential=False), archives)
    # The target's own C library is in the root: the copies for cross compilers would hide it.
    wanted = [deb for deb in lock.debs if not (deb.name.startswith(("libc6-", "linux-libc-dev-")))]
    fetch(store, [Wanted("deb", deb.name, deb.version, deb.file, deb.size, deb.sha256, deb.index) for deb in wanted],
          {"deb": DebSource(archives, lock.suites)})
    names = {"gcc": "gcc-12", "cc": "gcc-12", "g++": "g++-12", "c++": "g++-12"}
    names |= {name: name for name in ("ar", "as", "ld", "nm", "objcopy", "ranlib", "strip")}
    links = {f"cross/bin/{name}": f"../usr/bin/aarch64-linux-gnu-{program}" for name, program in names.items()}
    found = build_tools(BuildContext(store, {
        "prefix": "cross", "architecture": "amd64", "links": links,
        "in_place": ["lib64/*", "lib/x86_64-linux-gnu/*", "usr/lib/x86_64-linux-gnu/*"],
        "skip": ["usr/share/doc/*", "usr/share/man/*", "usr/share/locale/*", "usr/share/info/*"]},
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


def builders_layer(store: Store) -> str:
    """cmake and ninja of the target's machine: they run emulated, unchanged."""
    listed = [Wanted("wheel", *parts, 0, sha256, "default") for *parts, sha256 in WHEELS]
    fetch(store, listed, {"wheel": source("wheel", HERE)})
    scheme = {"python": "3.11", "interpreter": "/usr/bin/python3.11", "purelib": "cross/python",
              "platlib": "cross/python", "scripts": "cross/python/bin", "data": "cross/python", "glibc": "2.36",
              "headers": "cross/python/include", "collisions": [], "records": []}
    found = build_wheels(BuildContext(store, scheme, {f"wheels/{one.file}": one.digest for one in listed},
                                      {"os": "linux", "architecture": "arm64"}))
    return found["layer"].digest


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


def compiled(machine: Machine, package: Package, architectures: str, lines: list[str] | None = None,
             script: bytes = SCRIPT) -> dict[str, str]:
    """The stage that runs code: compile for one device."""
    store = machine.store
    layers = [machine.base, machine.cuda, *machine.tools]
    params = {
        "machine": "aarch64", "command": ["bash", "/inputs/files/build.sh"], "collect": "out", "into": machine.site,
        "emulators": machine.emulators,
        "environment": {"ARCHITECTURES": architectures, "SITE": machine.site, "SOURCE_DATE_EPOCH": "315532800",
                        "LC_ALL": "C", "NVCC_APPEND_FLAGS": "-frandom-seed=small -objtemp"},
    }
    inputs = {f"root/{number:02}": layer for number, layer in enumerate(layers)}
    inputs |= {"tree/csrc": package.csrc, "file/build.sh": store.put(script).digest}
    said = lines if lines is not None else []
    try:
        outputs = run_script(BuildContext(store, params, inputs, log=said.append))
    except StageError:
        print(*said, sep="\n")
        raise
    return {name: blob.digest for name, blob in outputs.items()}


MODULE_NAME = "small/_small.cpython-311-aarch64-linux-gnu.so"


@pytest.fixture(scope="module")
def thor(machine: Machine, package: Package) -> dict[str, str]:
    return compiled(machine, package, "110a-real")


def module_of(machine: Machine, outputs: Mapping[str, str]) -> bytes:
    with LayerReader(machine.store, outputs["index"]) as layer:
        return layer.read(f"{machine.site}/{MODULE_NAME}")


def test_code_for_exactly_one_device(machine: Machine, package: Package, thor: dict[str, str]) -> None:
    spark = compiled(machine, package, "121a-real")
    for outputs, arch in ((thor, "sm_110a"), (spark, "sm_121a")):
        data = module_of(machine, outputs)
        library = read_library(io.BytesIO(data))
        assert library.elf.machine == "aarch64"
        assert "PyInit__small" in library.exports
        entries = fatbin.read(data).entries
        assert {entry.target for entry in entries} == {arch}
        assert {kernel for entry in entries for kernel in fatbin.kernels(entry) or ()} >= {"_Z10one_kernelPi",
                                                                                          "_Z10two_kernelPi"}


def test_same_bytes_twice(machine: Machine, package: Package, thor: dict[str, str]) -> None:
    assert compiled(machine, package, "110a-real") == thor


def test_module_loads_under_the_emulator(machine: Machine, thor: dict[str, str]) -> None:
    chosen = executor(machine.store, "aarch64", machine.emulators)
    said: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        outcome = chosen.run(Process(
            (machine.base, machine.cuda, thor["layer"]),
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


def test_source_that_was_forgotten_is_an_error_and_no_download(machine: Machine, package: Package) -> None:
    script = SCRIPT.replace(b"-DFETCHCONTENT_SOURCE_DIR_HEADERS=/inputs/csrc/sources/headers ", b"")
    lines: list[str] = []
    with pytest.raises(StageError) as caught:
        compiled(machine, package, "110a-real", lines, script)
    assert "its script ended: exit 1" in caught.value.message
    assert any("FULLY_DISCONNECTED" in line or "headers" in line for line in lines)


def test_network_attempt_is_refused_and_named(machine: Machine, package: Package) -> None:
    script = b"python3.11 -c 'import urllib.request as u; u.urlopen(\"http://192.0.2.1/\")'\n"
    with pytest.raises(StageError) as caught:
        compiled(machine, package, "110a-real", script=script)
    assert "Network is unreachable" in caught.value.diagnostics()
