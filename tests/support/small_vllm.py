"""A small project in the shape of vLLM: setup.py that drives CMake, sources that CMake fetches, the same extensions.

Its kernels do nothing of use. Its extensions carry the names of vLLM 0.32.0's, so that the gates judge it as they judge
that one, and it is compiled by vLLM's own script (vllm/build.sh).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support.git_server import Repository

VERSION = "0.32.0"

#: Extension below vllm/ to its number of `.cu` files.
DEVICE = {"_C_stable_libtorch": 3, "_moe_C_stable_libtorch": 2}
HOST = ("cumem_allocator", "spinloop", "fs_io_C")
#: Those that only GB10 has; the last has no device code and lies elsewhere.
SPARK = {"_flashkda_C": 1, "_qutlass_C": 1, "_C_extension": 0}
PLACES = {"_C_extension": "vllm/third_party/deep_gemm"}

SETUP = """\
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
VERSION = os.environ["VLLM_VERSION_OVERRIDE"]
(ROOT / "vllm" / "_version.py").write_text(f"__version__ = {VERSION!r}\\n")


class CMakeExtension(Extension):
    def __init__(self, name):
        super().__init__(name, sources=[], py_limited_api=True)


class cmake_build_ext(build_ext):
    def build_extensions(self):
        build = Path(self.build_temp)
        build.mkdir(parents=True, exist_ok=True)
        torch = Path(find_spec("torch").origin).parent
        subprocess.check_call(["cmake", str(ROOT), "-G", "Ninja", f"-DTORCH={torch}",
                               f"-DPython_EXECUTABLE={sys.executable}", "-DCMAKE_BUILD_TYPE=Release",
                               *os.environ["CMAKE_ARGS"].split()], cwd=build)
        names = [extension.name.rpartition(".")[2] for extension in self.extensions]
        subprocess.check_call(["cmake", "--build", ".", f"-j={os.environ['MAX_JOBS']}",
                               *(f"--target={name}" for name in names)], cwd=build)
        for name in names:
            subprocess.check_call(["cmake", "--install", ".", "--prefix", str(Path(self.build_lib).absolute()),
                                   "--component", name], cwd=build)


def names():
    listed = subprocess.check_output([sys.executable, str(ROOT / "csrc" / "extensions.py")], text=True)
    return listed.split()


def requirements():
    lines = (ROOT / "requirements" / "cuda.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


setup(name="vllm", version=VERSION, packages=find_packages(include=["vllm", "vllm.*"]),
      install_requires=requirements(), ext_modules=[CMakeExtension("vllm." + name) for name in names()],
      cmdclass={"build_ext": cmake_build_ext})
"""

#: Which extensions there are, by the architecture that is asked for: as vLLM's CMake leaves some out.
EXTENSIONS = """\
import os

names = {names}
if not os.environ["TORCH_CUDA_ARCH_LIST"].startswith("12."):
    names = [name for name in names if name not in {spark}]
print(*names)
"""

CMAKE = """\
cmake_minimum_required(VERSION 3.26)
project(vllm_extensions LANGUAGES CXX)
set(ARCHS $ENV{TORCH_CUDA_ARCH_LIST})
if(ARCHS MATCHES "^([0-9]+)\\\\.([0-9])([af]?)$")
  set(CMAKE_CUDA_ARCHITECTURES "${CMAKE_MATCH_1}${CMAKE_MATCH_2}${CMAKE_MATCH_3}-real")
else()
  message(FATAL_ERROR "no architecture list: '${ARCHS}'")
endif()
enable_language(CUDA)
find_package(Python 3.8 REQUIRED COMPONENTS Interpreter Development.Module Development.SABIModule)
include(FetchContent)

set(CUTLASS_REVISION "v4.7.1")
if(DEFINED ENV{VLLM_CUTLASS_SRC_DIR})
  FetchContent_Declare(cutlass SOURCE_DIR $ENV{VLLM_CUTLASS_SRC_DIR})
else()
  FetchContent_Declare(cutlass GIT_REPOSITORY https://github.com/nvidia/cutlass.git GIT_TAG ${CUTLASS_REVISION})
endif()
FetchContent_MakeAvailable(cutlass)

if(DEFINED ENV{FLASH_MLA_SRC_DIR})
  FetchContent_Declare(flashmla SOURCE_DIR $ENV{FLASH_MLA_SRC_DIR})
else()
  FetchContent_Declare(flashmla GIT_REPOSITORY https://github.com/vllm-project/FlashMLA GIT_TAG @MLA@)
endif()
FetchContent_MakeAvailable(flashmla)
message(STATUS "Not building FlashMLA kernels as no compatible archs found in CUDA target architectures")

function(extension NAME DESTINATION)
  Python_add_library(${NAME} MODULE USE_SABI 3.8 WITH_SOABI ${ARGN})
  target_include_directories(${NAME} PRIVATE ${cutlass_SOURCE_DIR}/include)
  install(TARGETS ${NAME} LIBRARY DESTINATION ${DESTINATION} COMPONENT ${NAME})
endfunction()

@EXTENSIONS@
target_include_directories(_C_stable_libtorch PRIVATE ${TORCH}/include ${TORCH}/include/torch/csrc/api/include)
target_link_libraries(_C_stable_libtorch PRIVATE ${TORCH}/lib/libtorch.so ${TORCH}/lib/libtorch_cpu.so
                      ${TORCH}/lib/libc10.so)

if(DEFINED ENV{VLLM_FLASH_ATTN_SRC_DIR})
  FetchContent_Declare(vllm-flash-attn SOURCE_DIR $ENV{VLLM_FLASH_ATTN_SRC_DIR})
else()
  FetchContent_Declare(vllm-flash-attn GIT_REPOSITORY https://github.com/vllm-project/flash-attention.git
                       GIT_TAG @FLASH@ GIT_SUBMODULES csrc/cutlass)
endif()
FetchContent_MakeAvailable(vllm-flash-attn)
"""

FLASH_CMAKE = """\
Python_add_library(_vllm_fa2_C MODULE USE_SABI 3.8 WITH_SOABI csrc/flash.cpp csrc/flash_0.cu csrc/flash_1.cu)
target_include_directories(_vllm_fa2_C PRIVATE csrc/cutlass/include)
install(TARGETS _vllm_fa2_C LIBRARY DESTINATION vllm/vllm_flash_attn COMPONENT _vllm_fa2_C)
install(FILES flash_attn_interface.py DESTINATION vllm/vllm_flash_attn COMPONENT _vllm_fa2_C)
"""

MODULE = """\
#include <Python.h>
static PyModuleDef module = {PyModuleDef_HEAD_INIT, "@NAME@", 0, -1, nullptr};
PyMODINIT_FUNC PyInit_@NAME@() { return PyModule_Create(&module); }
"""
TORCH = """\
#include <torch/library.h>
TORCH_LIBRARY(small, operators) { operators.def("answer() -> int", [] { return int64_t(42); }); }
"""
KERNEL = """\
#include "factor.h"
static __global__ void hidden_@NUMBER@(int* p) { *p = FACTOR * @NUMBER@; }
__global__ void @NAME@_kernel_@NUMBER@(int* p) { *p = FACTOR; }
void launch_@NAME@_@NUMBER@(int* p) { hidden_@NUMBER@<<<1, 1>>>(p); @NAME@_kernel_@NUMBER@<<<1, 1>>>(p); }
"""

RECIPE = """\
format: stagecraft.recipe.v1
csrc: [CMakeLists.txt, cmake/*, csrc/*, setup.py, requirements/*, vllm/envs.py]
python: ["vllm/*"]
without: [vllm/_version.py]
variables: {VLLM_TARGET_DEVICE: cuda}
requirements: [requirements/cuda.txt]
pins: {keep_back: [VLLM_FLASH_ATTN_SRC_DIR]}
script: vllm/build.sh
files: [vllm/setup_in_part.py]
expected: small/project.json
tools:
  compilers:
    linux/amd64: {linux/arm64: [g++-12-aarch64-linux-gnu, ccache]}
  toolkit: [nvidia-cuda-nvcc, nvidia-cuda-crt, nvidia-nvvm, nvidia-cuda-runtime, nvidia-cuda-cccl]
  requires: ["cmake>=3.26.1,<5", ninja, "setuptools<81", wheel, packaging, jinja2, filelock, fsspec, networkx,
             "numpy<2", sympy, typing-extensions]
stubs:
  - {sources: [flashmla], archs: ["11.0a", "12.1a"], reason: it has no code for these devices}
refuse:
  - pattern: Not building (.*) as no compatible archs
    allow: {"any": [FlashMLA kernels]}
    reason: an extension would lack what the device needs
"""


#: What vllm/expected must know of it.
PROJECT = {"arguments": ["-DTORCH=/torch"], "setup": True,
           "environment": {"VLLM_TARGET_DEVICE": "cuda", "VLLM_VERSION_OVERRIDE": VERSION}}


@dataclass
class Origin:
    """The repositories that the project comes from, below one directory as a mirror of GitHub has them."""

    vllm: Repository
    cutlass: Repository
    flash: Repository

    def tag(self, name: str = f"v{VERSION}") -> None:
        self.vllm.git("tag", "--force", name)


def origin(root: Path, requirements: list[str]) -> Origin:
    """Make them: what CMake pins of others is there, FlashMLA is not."""
    cutlass = Repository(root / "nvidia" / "cutlass.git")
    cutlass.commit({"include/factor.h": b"#define FACTOR 7\n"})
    cutlass.git("tag", "v4.7.1")
    newer = cutlass.commit({"include/factor.h": b"#define FACTOR 9\n"})
    flash = Repository(root / "vllm-project" / "flash-attention.git")
    flash.commit(_flash())
    revision = flash.submodule("csrc/cutlass", "https://github.com/nvidia/cutlass.git", newer)
    vllm = Repository(root / "vllm-project" / "vllm.git")
    vllm.commit(project(revision, requirements))
    found = Origin(vllm, cutlass, flash)
    found.tag()
    return found


def project(flash: str, requirements: list[str]) -> dict[str, bytes]:
    """The files of the project itself."""
    lines, names = [], [*DEVICE, *SPARK, "_vllm_fa2_C", *HOST]
    files = {}
    for name, count in {**DEVICE, **SPARK, **dict.fromkeys(HOST, 0)}.items():
        units = [f"csrc/{name}/unit_{number}.cu" for number in range(count)]
        lines.append(f"extension({name} {PLACES.get(name, 'vllm')} csrc/{name}/module.cpp {' '.join(units)})")
        files[f"csrc/{name}/module.cpp"] = _module(name, TORCH if name == "_C_stable_libtorch" else "")
        files |= {unit: _kernel(name.strip("_"), number) for number, unit in enumerate(units)}
    cmake = CMAKE.replace("@EXTENSIONS@", "\n".join(lines)).replace("@FLASH@", flash).replace("@MLA@", "f" * 40)
    python = {"__init__.py": b"from vllm._version import __version__\n", "envs.py": b"TARGET = 'cuda'\n",
              "_custom_ops.py": b"import vllm._C_stable_libtorch\n", "models.py": b"ANSWER = 42\n",
              "vllm_flash_attn/__init__.py": b"from vllm.vllm_flash_attn.flash_attn_interface import KIND\n"}
    return {
        "CMakeLists.txt": cmake.encode(), "setup.py": SETUP.encode(), "README.md": b"A small project.\n",
        "requirements/cuda.txt": "\n".join(["# a comment", *requirements, ""]).encode(),
        "csrc/extensions.py": EXTENSIONS.format(names=names, spark=list(SPARK)).encode(), **files,
        **{f"vllm/{name}": content for name, content in python.items()}}


def _flash() -> dict[str, bytes]:
    return {"CMakeLists.txt": FLASH_CMAKE.encode(), "flash_attn_interface.py": b"KIND = 'fa2'\n",
            "csrc/flash.cpp": _module("_vllm_fa2_C", ""),
            **{f"csrc/flash_{number}.cu": _kernel("flash", number) for number in range(2)}}


def _module(name: str, more: str) -> bytes:
    return (more + MODULE).replace("@NAME@", name).encode()


def _kernel(name: str, number: int) -> bytes:
    return KERNEL.replace("@NAME@", name).replace("@NUMBER@", str(number)).encode()


def target(mirror: str, pins: Mapping[str, str], *, policy: str = "native", extends: str = "thor") -> str:
    """A target that extends thor or spark and takes this project from source.

    Args:
        mirror: what takes the place of https://github.com/.
        pins: all wheels of the image by version, so that its other layers are those of thor.
    """
    listed = "\n".join(f"    - {name}=={version}" for name, version in sorted(pins.items()))
    return f"""\
format: stagecraft.target.v1
extends: {extends}
description: a small project in the place of vLLM
vllm:
  version: "{VERSION}"
  from: source
triton:
  backend: none             # ours imports the real vLLM, and its gate sees that this is none
sources:
  mirrors: {{"https://github.com/": ["{mirror}"]}}
  packages:
    vllm:
      recipe: small/recipe.yaml
      git: {{repository: "https://github.com/vllm-project/vllm.git", tag: v{VERSION}}}
device_code: {{policy: {policy}}}
wheels:
  requirements:
{listed}
"""
