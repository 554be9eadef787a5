"""Repositories in the place of Triton's: python_backend, common, core, backend, and what they fetch.

Small CMake projects with the interface of the real ones: the same options, names of FetchContent and ExternalProject,
targets and install places, and their traps: a nested declaration of a repository that is declared already, tests that
fetch googletest without a hash, boost by an address, projects inside projects that clone. What they compile does
nothing of use, but the stub embeds the real Python, by the image's own libpython.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from dataclasses import dataclass
from pathlib import Path

from tests.support.git_server import Repository

ORGANIZATION = "https://github.com/triton-inference-server"
VERSION = "26.02"
#: The newest of which third_party's revision is known.
SERVER_VERSION = "25.07"

_FETCH = """\
include(FetchContent)
FetchContent_Declare(repo-common GIT_REPOSITORY ${TRITON_REPO_ORGANIZATION}/common.git
                     GIT_TAG ${TRITON_COMMON_REPO_TAG})
FetchContent_Declare(repo-core GIT_REPOSITORY ${TRITON_REPO_ORGANIZATION}/core.git GIT_TAG ${TRITON_CORE_REPO_TAG})
"""
_OPTIONS = """\
set(TRITON_REPO_ORGANIZATION "https://github.com/triton-inference-server" CACHE STRING "")
set(TRITON_COMMON_REPO_TAG "main" CACHE STRING "")
set(TRITON_CORE_REPO_TAG "main" CACHE STRING "")
option(TRITON_ENABLE_GPU "" ON)
option(TRITON_ENABLE_STATS "" ON)
"""

PYTHON_BACKEND = """\
cmake_minimum_required(VERSION 3.31.8)
project(tritonpythonbackend LANGUAGES C CXX)
@OPTIONS@
option(TRITON_ENABLE_NVTX "" OFF)
set(TRITON_BACKEND_REPO_TAG "main" CACHE STRING "")
set(TRITON_BOOST_URL "https://archives.boost.io/release/1.80.0/source/boost_1_80_0.tar.gz" CACHE STRING "")
@FETCH@
FetchContent_Declare(repo-backend GIT_REPOSITORY ${TRITON_REPO_ORGANIZATION}/backend.git
                     GIT_TAG ${TRITON_BACKEND_REPO_TAG})
FetchContent_MakeAvailable(repo-common repo-core repo-backend)
FetchContent_Declare(pybind11 GIT_REPOSITORY "https://github.com/pybind/pybind11"
                     GIT_TAG "@PYBIND@" GIT_SHALLOW ON)
FetchContent_MakeAvailable(pybind11)
FetchContent_Declare(dlpack GIT_REPOSITORY "https://github.com/dmlc/dlpack" GIT_TAG "v0.8" GIT_SHALLOW ON)
FetchContent_MakeAvailable(dlpack)

include(ExternalProject)
ExternalProject_Add(boostorg URL ${TRITON_BOOST_URL} URL_HASH SHA256=@BOOST@ PREFIX "boost-src"
  CONFIGURE_COMMAND ${CMAKE_COMMAND} -E copy_directory <SOURCE_DIR>/boost/ ${CMAKE_BINARY_DIR}/boost
  INSTALL_COMMAND "" BUILD_COMMAND "")

if(LINUX)
  file(STRINGS "/etc/os-release" DISTRO_ID_LIKE REGEX "ID_LIKE")
  if(${DISTRO_ID_LIKE} MATCHES "rhel|centos")
    set(LIB_DIR "lib64")
  endif(${DISTRO_ID_LIKE} MATCHES "rhel|centos")
endif(LINUX)
if(${TRITON_ENABLE_GPU})
  find_package(CUDAToolkit REQUIRED)
endif()
find_package(ZLIB REQUIRED)
find_package(Threads REQUIRED)
include_directories(${CMAKE_BINARY_DIR})
configure_file(src/libtriton_python.ldscript libtriton_python.ldscript COPYONLY)

add_library(triton-python-backend SHARED src/python_be.cc)
add_executable(triton-python-backend-stub src/pb_stub.cc)
add_dependencies(triton-python-backend boostorg)
add_dependencies(triton-python-backend-stub boostorg)
set_property(TARGET triton-python-backend-stub PROPERTY OUTPUT_NAME triton_python_backend_stub)
foreach(target triton-python-backend triton-python-backend-stub)
  target_compile_options(${target} PRIVATE -Wall -Wextra -Wno-unused-parameter -Werror)
endforeach()
target_compile_definitions(triton-python-backend-stub PRIVATE TRITON_PB_STUB)
target_link_libraries(triton-python-backend PRIVATE dlpack Threads::Threads triton-backend-utils ${CMAKE_DL_LIBS} -lrt
                      triton-core-serverstub ZLIB::ZLIB -larchive)
target_link_libraries(triton-python-backend-stub PRIVATE dlpack Threads::Threads triton-backend-utils ${CMAKE_DL_LIBS}
                      pybind11::embed -lrt -larchive)
set_target_properties(triton-python-backend PROPERTIES POSITION_INDEPENDENT_CODE ON OUTPUT_NAME triton_python
  LINK_DEPENDS ${CMAKE_CURRENT_BINARY_DIR}/libtriton_python.ldscript
  LINK_FLAGS "-Wl,--version-script libtriton_python.ldscript")
"""

_MAIN = {
    "CMakeLists.txt": "", "LICENSE": "Three clauses.\n",
    "src/libtriton_python.ldscript": "{\n  global: TRITONBACKEND_*;\n  local: *;\n};\n",
    "src/python_be.cc": """\
#include <archive.h>
#include <zlib.h>
#include "boost/version.hpp"
#include "dlpack/dlpack.h"
#include "triton/backend/backend_common.h"
#include "triton/core/tritonserver.h"
extern "C" const char* TRITONBACKEND_Initialize(const char* what) {
  if (TRITONSERVER_ApiVersion() < 1 || !archive_version_number() || !zlibVersion()) return __FILE__;
  return triton::backend::told(what);
}
""",
    "src/pb_stub.cc": """\
#include <archive.h>
#include <cstdio>
#include "boost/version.hpp"
#include "pybind11/embed.h"
#include "triton/backend/backend_common.h"
int main(int count, char** words) {
  Py_Initialize();
  int archive = archive_version_number() / 1000000;
  std::printf("stub of Python %s, boost %d, %s, libarchive %d\\n", PY_VERSION, BOOST_VERSION, PYBIND11, archive);
  std::fflush(stdout);
  int result = count > 1 ? PyRun_SimpleString(words[1]) : 0;
  return Py_FinalizeEx() + result;
}
""",
    "src/resources/triton_python_backend_utils.py": "class InferenceResponse:\n    pass\n",
}
_COMMON = {
    "CMakeLists.txt": """\
cmake_minimum_required(VERSION 3.17)
project(tritoncommon LANGUAGES C CXX)
find_package(RapidJSON CONFIG REQUIRED)
add_library(triton-common-json INTERFACE)
target_include_directories(triton-common-json INTERFACE $<BUILD_INTERFACE:${CMAKE_CURRENT_SOURCE_DIR}/include>
                           $<BUILD_INTERFACE:${RAPIDJSON_INCLUDE_DIRS}>)
add_subdirectory(src)
""",
    "src/CMakeLists.txt": "add_library(triton-common-error error.cc)\nadd_subdirectory(test)\n",
    "src/error.cc": "int triton_common_error() { return 1; }\n",
    "src/test/CMakeLists.txt": """\
include(FetchContent)
FetchContent_Declare(googletest
  URL https://github.com/google/googletest/archive/9406a60c7839052e4944ea4dbc8344762a89f9bd.zip)
FetchContent_MakeAvailable(googletest)
add_executable(triton_json_test test.cc)
target_link_libraries(triton_json_test PRIVATE GTest::gtest gtest_main)
""",
    "src/test/test.cc": "#include <gtest/gtest.h>\n",
    "include/triton/common/triton_json.h": "#pragma once\n#include <rapidjson/document.h>\n",
}
_INSIDE = """\
  CMAKE_CACHE_ARGS -DCMAKE_TOOLCHAIN_FILE:PATH=${CMAKE_TOOLCHAIN_FILE} -DTHIRD:PATH=${TRITON_THIRD_PARTY_INSTALL_PREFIX}
    -DTRITON_REPO_ORGANIZATION:STRING=${TRITON_REPO_ORGANIZATION} -DTRITON_VERSION:STRING=${TRITON_VERSION}
    -DTRITON_COMMON_REPO_TAG:STRING=${TRITON_COMMON_REPO_TAG} -DCMAKE_BUILD_TYPE:STRING=${CMAKE_BUILD_TYPE}
    -DCMAKE_INSTALL_PREFIX:PATH=${CMAKE_INSTALL_PREFIX}
"""
_CORE = {
    "CMakeLists.txt": """\
cmake_minimum_required(VERSION 3.17)
project(tritoncore LANGUAGES C CXX)
option(TRITON_CORE_HEADERS_ONLY "" ON)
add_library(triton-core-serverapi INTERFACE)
target_include_directories(triton-core-serverapi INTERFACE $<BUILD_INTERFACE:${CMAKE_CURRENT_SOURCE_DIR}/include>)
add_library(triton-core-backendapi INTERFACE)
target_include_directories(triton-core-backendapi INTERFACE $<BUILD_INTERFACE:${CMAKE_CURRENT_SOURCE_DIR}/include>)
add_library(triton-core-serverstub SHARED src/tritonserver_stub.cc)
set_target_properties(triton-core-serverstub PROPERTIES POSITION_INDEPENDENT_CODE ON OUTPUT_NAME tritonserver)
if(NOT TRITON_CORE_HEADERS_ONLY)
  include(ExternalProject)
  ExternalProject_Add(triton-core PREFIX triton-core SOURCE_DIR "${CMAKE_CURRENT_SOURCE_DIR}/src"
    BINARY_DIR "${CMAKE_CURRENT_BINARY_DIR}/triton-core"
@INSIDE@    DEPENDS prometheus-cpp grpc)
endif()
""".replace("@INSIDE@", _INSIDE),
    "src/CMakeLists.txt": f"""\
cmake_minimum_required(VERSION 3.17)
project(tritoncorelib LANGUAGES C CXX)
{_FETCH}FetchContent_MakeAvailable(repo-common)
add_library(triton-core SHARED server.cc)
target_include_directories(triton-core PRIVATE ${{THIRD}}/prometheus-cpp/include ${{THIRD}}/grpc/include)
set_target_properties(triton-core PROPERTIES OUTPUT_NAME tritonserver INSTALL_RPATH "$ORIGIN")
install(TARGETS triton-core LIBRARY DESTINATION lib)
""",
    "src/server.cc": """\
#include <cares.h>
#include <grpc.h>
#include <prometheus.h>
extern "C" int TRITONSERVER_ApiVersion() { return GRPC + CARES + PROMETHEUS; }
""",
    "src/tritonserver_stub.cc": 'extern "C" int TRITONSERVER_ApiVersion() { return 0; }\n',
    "include/triton/core/tritonserver.h": '#pragma once\nextern "C" int TRITONSERVER_ApiVersion();\n',
}
_SERVER = {
    "CMakeLists.txt": f"""\
cmake_minimum_required(VERSION 3.18)
project(tritonserver LANGUAGES C CXX)
{_OPTIONS}set(TRITON_THIRD_PARTY_REPO_TAG "main" CACHE STRING "")
set(TRITON_VERSION "0.0.0" CACHE STRING "")
set(TRITON_THIRD_PARTY_INSTALL_PREFIX "${{CMAKE_CURRENT_BINARY_DIR}}/third-party" CACHE STRING "")
include(FetchContent)
FetchContent_Declare(repo-core GIT_REPOSITORY ${{TRITON_REPO_ORGANIZATION}}/core.git GIT_TAG ${{TRITON_CORE_REPO_TAG}})
FetchContent_Declare(repo-third-party GIT_REPOSITORY ${{TRITON_REPO_ORGANIZATION}}/third_party.git
                     GIT_TAG ${{TRITON_THIRD_PARTY_REPO_TAG}})
set(LINUX ON)
if(LINUX)
  file(STRINGS "/etc/os-release" DISTRO_ID_LIKE REGEX "ID_LIKE")
  if(${{DISTRO_ID_LIKE}} MATCHES "rhel|centos")
    set(LIB_DIR "lib64")
  endif(${{DISTRO_ID_LIKE}} MATCHES "rhel|centos")
endif(LINUX)
set(TRITON_CORE_HEADERS_ONLY OFF)
FetchContent_MakeAvailable(repo-third-party repo-core)
include(ExternalProject)
ExternalProject_Add(triton-server PREFIX triton-server SOURCE_DIR "${{CMAKE_CURRENT_SOURCE_DIR}}/src"
  BINARY_DIR "${{CMAKE_CURRENT_BINARY_DIR}}/triton-server"
{_INSIDE}  DEPENDS triton-core libevent nlohmann-json)
""",
    "src/CMakeLists.txt": f"""\
cmake_minimum_required(VERSION 3.18)
project(tritonserverexe LANGUAGES C CXX)
{_FETCH}FetchContent_Declare(repo-backend GIT_REPOSITORY ${{TRITON_REPO_ORGANIZATION}}/backend.git
                     GIT_TAG ${{TRITON_BACKEND_REPO_TAG}})
FetchContent_MakeAvailable(repo-common repo-core repo-backend)
add_executable(main main.cc)
target_compile_definitions(main PRIVATE VERSION="${{TRITON_VERSION}}")
target_include_directories(main PRIVATE ${{THIRD}}/libevent/include)
target_link_libraries(main PRIVATE ${{CMAKE_INSTALL_PREFIX}}/lib/libtritonserver.so triton-core-serverapi)
set_target_properties(main PROPERTIES OUTPUT_NAME tritonserver INSTALL_RPATH "$ORIGIN/../lib")
install(TARGETS main RUNTIME DESTINATION bin)
""",
    "src/main.cc": """\
#include <cstdio>
#include <event.h>
#include "triton/core/tritonserver.h"
int main() { std::printf("Triton %s, libevent %d, api %d\\n", VERSION, LIBEVENT, TRITONSERVER_ApiVersion()); }
""",
    "LICENSE": "Three clauses.\n", "TRITON_VERSION": "2.59.0dev\n",
}
_THIRD_PARTY = {
    "CMakeLists.txt": """\
cmake_minimum_required(VERSION 3.17)
project(tritonthirdparty LANGUAGES C CXX)
include(ExternalProject)
set(COPY python3 ${CMAKE_CURRENT_SOURCE_DIR}/tools/install_src.py --src <SOURCE_DIR>)
set(ARGS CMAKE_CACHE_ARGS -DCMAKE_TOOLCHAIN_FILE:PATH=${CMAKE_TOOLCHAIN_FILE})
ExternalProject_Add(curl PREFIX curl GIT_REPOSITORY "https://github.com/curl/curl.git" GIT_TAG "curl-7_86_0"
  EXCLUDE_FROM_ALL ON)
ExternalProject_Add(grpc-repo PREFIX grpc-repo GIT_REPOSITORY "https://github.com/grpc/grpc.git" GIT_TAG "v1.54.3"
  SOURCE_DIR "${CMAKE_CURRENT_BINARY_DIR}/grpc-repo/src/grpc" EXCLUDE_FROM_ALL ON CONFIGURE_COMMAND ""
  BUILD_COMMAND "" INSTALL_COMMAND "" TEST_COMMAND "" PATCH_COMMAND ${COPY})
ExternalProject_Add(grpc PREFIX grpc SOURCE_DIR "${CMAKE_CURRENT_BINARY_DIR}/grpc-repo/src/grpc" EXCLUDE_FROM_ALL ON
  DOWNLOAD_COMMAND "" ${ARGS} -DCMAKE_INSTALL_PREFIX:PATH=${TRITON_THIRD_PARTY_INSTALL_PREFIX}/grpc DEPENDS grpc-repo)
ExternalProject_Add(libevent PREFIX libevent GIT_REPOSITORY "https://github.com/libevent/libevent.git"
  GIT_TAG "release-2.1.12-stable" EXCLUDE_FROM_ALL ON PATCH_COMMAND ${COPY}
  ${ARGS} -DCMAKE_INSTALL_PREFIX:PATH=${TRITON_THIRD_PARTY_INSTALL_PREFIX}/libevent)
ExternalProject_Add(nlohmann-json PREFIX nlohmann-json GIT_REPOSITORY "https://github.com/nlohmann/json.git"
  GIT_TAG "v3.11.3" EXCLUDE_FROM_ALL ON PATCH_COMMAND ${COPY}
  ${ARGS} -DCMAKE_INSTALL_PREFIX:PATH=${TRITON_THIRD_PARTY_INSTALL_PREFIX}/nlohmann_json)
ExternalProject_Add(prometheus-cpp PREFIX prometheus-cpp
  URL "https://github.com/jupp0r/prometheus-cpp/archive/v1.0.1.tar.gz" URL_HASH SHA256=@PROMETHEUS@
  EXCLUDE_FROM_ALL ON PATCH_COMMAND ${COPY}
  ${ARGS} -DCMAKE_INSTALL_PREFIX:PATH=${TRITON_THIRD_PARTY_INSTALL_PREFIX}/prometheus-cpp)
""",
    "tools/install_src.py": "import sys\nassert sys.argv[1] == '--src'\n",
}


def _headers(name: str, header: str, content: str, more: str = "") -> dict[str, str]:
    """A project that installs headers."""
    return {"CMakeLists.txt": f"cmake_minimum_required(VERSION 3.1...3.29)\nproject({name} LANGUAGES C CXX)\n"
                              f"install(FILES {header} {more} DESTINATION include)\n", header: content}


_BACKEND = {
    "CMakeLists.txt": f"""\
cmake_minimum_required(VERSION 3.17)
project(tritonbackend LANGUAGES C CXX)
{_OPTIONS}{_FETCH}FetchContent_MakeAvailable(repo-common repo-core)
add_library(triton-backend-utils src/backend_common.cc)
target_include_directories(triton-backend-utils PUBLIC $<BUILD_INTERFACE:${{CMAKE_CURRENT_SOURCE_DIR}}/include>)
set_target_properties(triton-backend-utils PROPERTIES POSITION_INDEPENDENT_CODE ON OUTPUT_NAME tritonbackendutils)
target_link_libraries(triton-backend-utils PUBLIC triton-core-backendapi triton-core-serverapi triton-common-json)
""",
    "src/backend_common.cc": """\
#include "triton/backend/backend_common.h"
#include "triton/common/triton_json.h"
namespace triton { namespace backend { const char* told(const char* what) { return what ? what : __FILE__; } } }
""",
    "include/triton/backend/backend_common.h":
        "#pragma once\nnamespace triton { namespace backend { const char* told(const char* what); } }\n",
}
_PYBIND = {
    "CMakeLists.txt": """\
cmake_minimum_required(VERSION 3.5...3.29)
project(pybind11 LANGUAGES CXX)
find_package(Python REQUIRED COMPONENTS Interpreter Development)
add_library(embed INTERFACE)
add_library(pybind11::embed ALIAS embed)
target_include_directories(embed INTERFACE ${CMAKE_CURRENT_SOURCE_DIR}/include)
target_link_libraries(embed INTERFACE Python::Python)
""",
    "include/pybind11/embed.h": '#pragma once\n#include <Python.h>\n#define PYBIND11 "pybind11 2.12"\n',
}
_DLPACK = {
    "CMakeLists.txt": """\
cmake_minimum_required(VERSION 3.2...3.29)
project(dlpack C CXX)
add_library(dlpack INTERFACE)
target_include_directories(dlpack INTERFACE $<BUILD_INTERFACE:${CMAKE_CURRENT_SOURCE_DIR}/include>)
""",
    "include/dlpack/dlpack.h": "#pragma once\n#define DLPACK_VERSION 80\n",
}


@dataclass
class Origin:
    """The repositories below `root`, as a mirror of github.com has them, and boost's archive beside them.

    `revisions`: of python_backend, common, core and backend.
    """

    root: Path
    revisions: dict[str, str]
    python_backend: Repository
    boost: Path
    boost_sha256: str
    prometheus_sha256: str

    def mirrors(self) -> str:
        """For a target."""
        return (f'{{"https://github.com/": ["file://{self.root}/"], '
                f'"https://archives.boost.io/": ["file://{self.boost.parent}/"]}}')

    def put(self, root: Path) -> None:
        """Into a project: the shipped recipes and table, but for these revisions and archives."""
        import yaml

        table = root / "triton/releases.yaml"
        for name, changed in (("python-backend", {"url": "https://archives.boost.io/boost_1_80_0.tar.gz",
                                                  "sha256": self.boost_sha256}),
                              ("server", {"sha256": self.prometheus_sha256})):
            recipe = root / f"triton/{name}.yaml"
            data = yaml.safe_load(recipe.read_text())
            data["archives"] = [{**archive, **changed} for archive in data["archives"]]
            recipe.write_text(yaml.safe_dump(data, sort_keys=False))
        known = yaml.safe_load(table.read_text())
        for row in known["releases"]:
            if row["container"] in (VERSION, SERVER_VERSION):
                row["revisions"] |= self.revisions
        table.write_text(yaml.safe_dump(known, sort_keys=False))


def origin(root: Path) -> Origin:
    """Make them all."""
    git = root / "git"

    def made(path: str, files: dict[str, str]) -> Repository:
        found = Repository(git / path)
        found.commit({name: text.encode() for name, text in files.items()})
        return found

    pybind, dlpack = made("pybind/pybind11", _PYBIND), made("dmlc/dlpack", _DLPACK)
    dlpack.git("tag", "v0.8")
    boost = root / "boost" / "boost_1_80_0.tar.gz"
    boost.parent.mkdir()
    boost.write_bytes(_archive({"boost_1_80_0/boost/version.hpp": b"#define BOOST_VERSION 108000\n"}))
    digest = hashlib.sha256(boost.read_bytes()).hexdigest()
    others = {name: made(f"triton-inference-server/{name}.git", files)
              for name, files in (("common", _COMMON), ("core", _CORE), ("backend", _BACKEND))}
    cmake = PYTHON_BACKEND.replace("@OPTIONS@", _OPTIONS).replace("@FETCH@", _FETCH)
    cmake = cmake.replace("@PYBIND@", pybind.git("rev-parse", "HEAD")).replace("@BOOST@", digest)
    main = made("triton-inference-server/python_backend.git", {**_MAIN, "CMakeLists.txt": cmake})
    cares = made("c-ares/c-ares", {"cares.h": "#define CARES 100\n"})
    grpc = made("grpc/grpc.git", _headers("grpc", "grpc.h", "#define GRPC 10\n", "third_party/cares/cares.h"))
    grpc.submodule("third_party/cares", "https://github.com/c-ares/c-ares", cares.git("rev-parse", "HEAD"))
    grpc.git("tag", "v1.54.3")
    made("libevent/libevent.git", _headers("libevent", "event.h", "#define LIBEVENT 2112\n")).git(
        "tag", "release-2.1.12-stable")
    made("nlohmann/json.git", _headers("json", "json.h", "#define JSON 3113\n")).git("tag", "v3.11.3")
    packed = _archive({f"prometheus-cpp-1.0.1/{name}": text.encode() for name, text in
                       _headers("prometheus", "prometheus.h", "#define PROMETHEUS 1\n").items()})
    (git / "jupp0r/prometheus-cpp/archive").mkdir(parents=True)
    (git / "jupp0r/prometheus-cpp/archive/v1.0.1.tar.gz").write_bytes(packed)
    sha256 = hashlib.sha256(packed).hexdigest()
    third = {**_THIRD_PARTY, "CMakeLists.txt": _THIRD_PARTY["CMakeLists.txt"].replace("@PROMETHEUS@", sha256)}
    others |= {"third_party": made("triton-inference-server/third_party.git", third),
               "server": made("triton-inference-server/server.git", _SERVER)}
    revisions = {name: one.git("rev-parse", "HEAD") for name, one in {**others, "python_backend": main}.items()}
    return Origin(git, revisions, main, boost, digest, sha256)


def _archive(files: dict[str, bytes]) -> bytes:
    held = io.BytesIO()
    with gzip.GzipFile(fileobj=held, mode="wb", mtime=0) as packed, tarfile.open(fileobj=packed, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return held.getvalue()
