"""vllm/expected over small projects in thor's own root: real CMake under the emulator, no compiler anywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from cache.errors import StageError
from tests.support.expected import Mock, mock
from tests.support.front import HERE
from tests.support.images import make_layer
from tests.support.tarballs import make_tar

#: Modules of every kind: flags by CMake, by hand, none; of C++ alone; what cannot be told; of a tree beside it.
PLAIN = b"""\
cmake_minimum_required(VERSION 3.25)
project(plain LANGUAGES CXX CUDA)
find_package(Python 3.11 REQUIRED COMPONENTS Interpreter Development.Module)
include(FetchContent)
Python_add_library(_plain MODULE WITH_SOABI module.cpp one.cu two.cu one.cu)
set_target_properties(_plain PROPERTIES CUDA_ARCHITECTURES "110a-real;90")
set_source_files_properties(two.cu PROPERTIES COMPILE_OPTIONS "-gencode=arch=compute_80,code=[sm_80,compute_80]")
install(TARGETS _plain DESTINATION plain)
add_library(flags MODULE one.cu)
set_target_properties(flags PROPERTIES CUDA_ARCHITECTURES OFF)
target_compile_options(flags PRIVATE -arch=sm_87)
add_library(default MODULE one.cu)
set_target_properties(default PROPERTIES CUDA_ARCHITECTURES OFF)
add_library(host MODULE module.cpp)
add_library(inside STATIC one.cu)
add_library(whole MODULE module.cpp)
target_link_libraries(whole PRIVATE inside)
add_library(apart MODULE one.cu)
set_target_properties(apart PROPERTIES CUDA_SEPARABLE_COMPILATION ON CUDA_ARCHITECTURES 90)
add_library(elsewhere MODULE ${CMAKE_CURRENT_SOURCE_DIR}/../absent/none.cu)
set_target_properties(elsewhere PROPERTIES CUDA_ARCHITECTURES 120f-real)
FetchContent_Declare(other GIT_REPOSITORY https://away.invalid/other GIT_TAG v1)
FetchContent_MakeAvailable(other)
message(STATUS "Not building the third as no compatible archs found")
"""
OTHER = b"""\
project(other LANGUAGES CXX CUDA)
file(GLOB sources src/*.cu)
add_library(_other MODULE ${sources})
set_target_properties(_other PROPERTIES CUDA_ARCHITECTURES 80-virtual)
install(TARGETS _other DESTINATION below)
"""
TORCH = b"""\
cmake_minimum_required(VERSION 3.25)
project(small LANGUAGES CXX)
find_package(Torch REQUIRED)
add_library(_small MODULE module.cpp one.cu)
target_link_libraries(_small PRIVATE ${TORCH_LIBRARIES} CUDA::cudart)
install(TARGETS _small DESTINATION small)
"""
FILES = {"module.cpp": b"", "one.cu": b"", "two.cu": b""}


@pytest.fixture(scope="module")
def machine(thor_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Mock:
    return mock(thor_store, tmp_path_factory.mktemp("project"))


def source(machine: Mock, cmake: bytes, **more: Any) -> str:
    files = {"CMakeLists.txt": cmake, **FILES}
    return machine.source(make_tar([(f"small-1/{name}", content) for name, content in files.items()]), csrc=["*"],
                          **more)


@pytest.fixture(scope="module")
def plain(machine: Mock) -> dict[str, Any]:
    tree = make_layer(machine.store, {"CMakeLists.txt": OTHER, "src/a.cu": b"", "src/b.cu": b""})
    return machine.expected(source(machine, PLAIN, trees={"other": tree}), "11.0a",
                            {"CMAKE_ARGS": "-DFETCHCONTENT_SOURCE_DIR_OTHER=/inputs/csrc/sources/other"}, project=False)


def test_flags_become_architectures(plain: dict[str, Any]) -> None:
    """A source that is listed twice is compiled once; one without flags gets nvcc's default."""
    assert plain["modules"] == {
        "plain/_plain": {"units": 2, "missing": 0, "sass": {"80": 1, "90": 2, "110a": 2}, "ptx": {"80": 1, "90": 2},
                         "sources": {"one.cu": "compute_90 sm_110a sm_90",
                                     "two.cu": "compute_80 compute_90 sm_110a sm_80 sm_90"}},
        "libflags": {"units": 1, "missing": 0, "sass": {"87": 1}, "ptx": {"87": 1},
                     "sources": {"one.cu": "compute_87 sm_87"}},
        "libdefault": {"units": 1, "missing": 0, "sass": {"75": 1}, "ptx": {"75": 1},
                       "sources": {"one.cu": "compute_75 sm_75"}},
        "libelsewhere": {"units": 1, "missing": 1, "sass": {"120f": 1}, "ptx": {},
                         "sources": {"absent/none.cu": "sm_120f"}},
        "below/lib_other": {"units": 2, "missing": 0, "sass": {}, "ptx": {"80": 2},
                            "sources": {"sources/other/src/a.cu": "compute_80",
                                        "sources/other/src/b.cu": "compute_80"}},
    }


def test_format(plain: dict[str, Any]) -> None:
    schema = json.loads((HERE / "docs/formats/expected.schema.json").read_text())
    jsonschema.validate(plain, schema, jsonschema.Draft202012Validator)


def test_what_cannot_be_told_is_said(plain: dict[str, Any]) -> None:
    assert plain["host"] == ["libhost"]
    assert plain["unknown"] == {"libapart": "its device code is linked apart",
                                "libwhole": "the library inside with device code is linked into it"}
    assert plain["left_out"] == ["Not building the third as no compatible archs found"]


def test_list_of_torch(machine: Mock) -> None:
    csrc = source(machine, TORCH)
    found = machine.expected(csrc, "11.0a 8.0+PTX", project=False)
    assert found["modules"]["small/lib_small"]["sources"] == {"one.cu": "compute_80 sm_110a sm_80"}
    assert (found["arch_list"], found["cuda"]) == ("11.0a 8.0+PTX", "13.0")


@pytest.mark.parametrize(("arch_list", "cmake", "said"), [
    ("Blackwell", TORCH, "expected numbers such as 11.0a"),
    ("11.0a", TORCH.replace(b"REQUIRED", b"REQUIRED)\nmessage(FATAL_ERROR \"no\""), "CMake ended with 1"),
    ("", TORCH, "TORCH_CUDA_ARCH_LIST is not set"),
    ("11.0a", TORCH + b"target_compile_options(_small PRIVATE -arch=native)\n", None),
])
def test_no_guess(machine: Mock, arch_list: str, cmake: bytes, said: str | None) -> None:
    csrc = source(machine, cmake)
    if said is None:
        assert list(machine.expected(csrc, arch_list, project=False)["unknown"]) == ["small/lib_small"]
        return
    lines: list[str] = []
    with pytest.raises(StageError):
        machine.outputs(csrc, arch_list, project=False, lines=lines)
    assert any(said in line for line in lines)
