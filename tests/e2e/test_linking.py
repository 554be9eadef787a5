"""Linking against CUDA in thor's own layers, with its own gcc and nvcc, emulated: as what compiles on the device does.

flashinfer, tvm_ffi and others link `-lcudart -lcuda` below CUDA_HOME (flashinfer#5064); others name no directory.
"""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest

from cache.layer import LayerReader
from checks.symbols import Library, read_library
from checks.tree import ImageTree
from stages.image import environment
from stages.project import Project
from tests.support.front import HERE
from tests.support.source_build import Machine, Run, run, thor

MODULE = b"""\
int cuInit(unsigned), cudaGetDeviceCount(int*), nvrtcVersion(int*, int*);
int cublasCreate_v2(void**), cublasLtCreate(void**);
int all() { return cuInit(0) + cudaGetDeviceCount(0) + nvrtcVersion(0, 0) + cublasCreate_v2(0) + cublasLtCreate(0); }
"""
PROGRAM = b"""\
#include <cuda.h>
int main() { return cuInit(0) || cuMemAlloc(0, 1) || cuStreamSynchronize(0); }
"""
SCRIPT = b"""\
mkdir /build/out && cd /build/out
gcc -fPIC -c /inputs/files/module.c -o /build/module.o
all="-lcudart -lcuda -lnvrtc -lcublas -lcublasLt"
g++ -shared -Wl,-z,defs /build/module.o $all -o named-nowhere.so                # by LIBRARY_PATH
nvcc -shared /build/module.o -lcuda -lnvrtc -lcublas -lcublasLt -o nvcc.so     # libcudart_static.a, libcudadevrt.a too
gcc -I$CUDA_HOME/include /inputs/files/program.c -lcuda -o program
gcc -E -P -D__CUDA_API_VERSION_INTERNAL $CUDA_HOME/include/cuda.h > declared.txt
./program 2> loader.txt || true
unset LIBRARY_PATH
g++ -shared -Wl,-z,defs /build/module.o -L$CUDA_HOME/lib64 -L$CUDA_HOME/lib64/stubs $all -o flashinfer.so
"""
ALL = {"libcudart.so.13", "libcuda.so.1", "libnvrtc.so.13", "libcublas.so.13", "libcublasLt.so.13"}


@pytest.fixture(scope="module")
def machine(thor_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Machine:
    return thor(thor_store, tmp_path_factory.mktemp("project"), "base", "cuda", "links")


@pytest.fixture(scope="module")
def linked(machine: Machine) -> dict[str, bytes]:
    """What the script made, by file name, with the variables of the image."""
    project = Project(HERE)
    variables = environment(project.target("thor"), project.lock("thor"))
    kept = {name: variables[name] for name in ("LIBRARY_PATH", "CUDA_HOME")}
    kept["PATH"] = f"{kept['CUDA_HOME']}/bin:/usr/bin:/bin"
    files = {"build.sh": b"set -eu\n" + SCRIPT, "module.c": MODULE, "program.c": PROGRAM}
    made = run(machine, Run([machine.layers[name] for name in ("base", "cuda", "links")], {}, files, kept))
    with LayerReader(machine.store, made["index"]) as layer:
        return {path.rpartition("/")[2]: layer.read(path) for path, entry in layer.entries.items()
                if entry["type"] == "file"}


def library(linked: dict[str, bytes], name: str) -> Library:
    return read_library(io.BytesIO(linked[name]))


@pytest.mark.parametrize("name", ["named-nowhere.so", "flashinfer.so"])
def test_what_is_linked_asks_for_what_the_image_and_the_device_have(linked: dict[str, bytes], name: str) -> None:
    found = library(linked, name)
    assert found.elf.machine == "aarch64"
    assert set(found.elf.needed) >= ALL
    assert not [needed for needed in found.elf.needed if needed.startswith(("libcud", "libnv")) and needed not in ALL]


def test_nvcc_finds_the_parts_of_its_own_runtime(linked: dict[str, bytes]) -> None:
    assert {"libcuda.so.1", "libcublas.so.13"} <= set(library(linked, "nvcc.so").elf.needed)
    assert "libcudart.so.13" not in library(linked, "nvcc.so").elf.needed


def test_program_is_linked_whole_and_waits_for_the_device_s_driver(linked: dict[str, bytes]) -> None:
    assert "libcuda.so.1" in library(linked, "program").elf.needed
    assert b"libcuda.so.1: cannot open shared object file" in linked["loader.txt"]


def test_every_function_of_the_driver_can_be_linked(machine: Machine, linked: dict[str, bytes]) -> None:
    declared = set(re.findall(r"\bCUresult\s+(cu[A-Z]\w*)\s*\(", linked["declared.txt"].decode()))
    assert len(declared) > 500
    with LayerReader(machine.store, machine.indexes["links"]) as layer:
        stub = read_library(io.BytesIO(layer.read(f"{machine.site}/nvidia/cu13/lib/stubs/libcuda.so")))
    assert declared - set(stub.exports) == set()


def test_every_link_leads_to_a_library_of_its_soname(machine: Machine) -> None:
    with ImageTree(machine.store, {name: machine.indexes[name] for name in ("cuda", "links")}) as tree:
        names = [path for path, stage in tree.stages.items() if stage == "links" and path.endswith(".so")]
        assert len(names) > 10
        for name in names:
            found = tree.file(name)
            assert found is not None, name
            soname = tree.library(found).elf.soname
            assert soname.startswith(name.rpartition("/")[2] + "."), name
