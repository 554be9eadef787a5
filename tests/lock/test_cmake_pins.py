"""Pins read out of CMake files; the real ones of vLLM are in tests/long."""

from __future__ import annotations

import pytest

from cache.errors import InputError
from lock.cmake_pins import Pin, calls, pins

CUDA = {"VLLM_TARGET_DEVICE": "cuda"}


def found(text: str, more: dict[str, str] | None = None, variables: dict[str, str] = CUDA) -> list[Pin]:
    files = {"CMakeLists.txt": text, **(more or {})}
    return pins(files.get, variables)


def names(text: str, **variables: str) -> list[str]:
    return [pin.name for pin in found(text, variables={**CUDA, **variables})]


def declare(name: str, tag: str = "v1") -> str:
    return f"FetchContent_Declare({name} GIT_REPOSITORY https://example.org/{name}.git GIT_TAG {tag})\n"


def test_as_vllm_writes_it() -> None:
    pin, = found("""
        # Set CUTLASS_REVISION. Used for FetchContent.
        set(CUTLASS_REVISION "v4.7.1")
        if (DEFINED ENV{VLLM_CUTLASS_SRC_DIR})
          set(VLLM_CUTLASS_SRC_DIR $ENV{VLLM_CUTLASS_SRC_DIR})
        endif()
        if(VLLM_CUTLASS_SRC_DIR)
          FetchContent_Declare(cutlass SOURCE_DIR ${VLLM_CUTLASS_SRC_DIR})
        else()
          FetchContent_Declare(
              cutlass
              GIT_REPOSITORY https://github.com/nvidia/cutlass.git
              # keep in sync (with "the line" above)
              GIT_TAG ${CUTLASS_REVISION}
              GIT_PROGRESS TRUE
              GIT_SHALLOW TRUE
          )
        endif()
        FetchContent_MakeAvailable(cutlass)
    """)
    assert pin == Pin("cutlass", "https://github.com/nvidia/cutlass.git", "v4.7.1", None, "VLLM_CUTLASS_SRC_DIR",
                      "CMakeLists.txt:10")


def test_population_with_all_arguments_and_submodules() -> None:
    pin, = found("""
        set(_REPO "https://example.org/DeepGEMM.git")
        FetchContent_Populate(deepgemm SUBBUILD_DIR "${_sub}" SOURCE_DIR "${_src}"
          GIT_REPOSITORY "${_REPO}" GIT_TAG "0820"
          GIT_SUBMODULES "third-party/cutlass" "third-party/fmt" GIT_PROGRESS TRUE)
    """)
    assert pin.submodules == ("third-party/cutlass", "third-party/fmt")
    assert pin.tag == "0820"
    none, = found('FetchContent_Declare(x GIT_REPOSITORY r GIT_TAG t GIT_SUBMODULES "")')
    assert none.submodules == ()


def test_includes_are_followed_with_their_variables() -> None:
    found_ = found('set(TAG v3)\ninclude(cmake/a.cmake)\ninclude(FetchContent)\n',
                   {"cmake/a.cmake": 'set(GIT "https://example.org/a.git")\ninclude(${CMAKE_SOURCE_DIR}/cmake/b.cmake)',
                    "cmake/b.cmake": "FetchContent_Declare(a GIT_REPOSITORY ${GIT} GIT_TAG ${TAG})"})
    assert [(pin.repository, pin.tag, pin.where) for pin in found_] == [
        ("https://example.org/a.git", "v3", "cmake/b.cmake:1")]


def test_file_that_includes_itself_ends() -> None:
    assert found("include(CMakeLists.txt)\n" + declare("a"))[0].name == "a"


@pytest.mark.parametrize(("condition", "expected"), [
    ('VLLM_TARGET_DEVICE STREQUAL "cuda"', ["yes"]), ('VLLM_TARGET_DEVICE STREQUAL "rocm"', ["no"]),
    ('"${VLLM_TARGET_DEVICE}" STREQUAL "cuda"', ["yes"]), ('NOT VLLM_TARGET_DEVICE STREQUAL "cuda"', ["no"]),
    ('VLLM_TARGET_DEVICE STREQUAL "rocm" OR VLLM_TARGET_DEVICE STREQUAL "cuda"', ["yes"]),
    ('NOT (VLLM_TARGET_DEVICE STREQUAL "rocm" AND X)', ["yes"]),
    ("UNSET", ["no"]), ("NOT UNSET", ["yes"]), ("ON", ["yes"]), ("0", ["no"]), ("DEFINED ENV{X}", ["no"]),
    ("CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER 13.0", ["yes", "no"]), ('EXISTS "${x}/y"', ["yes", "no"]),
    ("VLLM_TARGET_DEVICE STREQUAL \"rocm\" AND CMAKE_VERSION VERSION_LESS 3", ["no"]),
    ("${CMAKE_CUDA_COMPILER_VERSION} VERSION_GREATER_EQUAL 12.9", ["yes", "no"]),
])
def test_conditions(condition: str, expected: list[str]) -> None:
    """What cannot be told takes both branches: better one source too many than one forgotten."""
    assert names(f"if({condition})\n{declare('yes')}else()\n{declare('no')}endif()\n") == expected


def test_elseif_chain() -> None:
    text = f"""if(A)\n{declare('a')}elseif(VLLM_TARGET_DEVICE STREQUAL "cuda")\n{declare('b')}
        elseif(ON)\n{declare('c')}else()\n{declare('d')}endif()\n{declare('e')}"""
    assert names(text) == ["b", "e"]
    assert names(text, A="ON") == ["a", "e"]


def test_functions_are_not_entered() -> None:
    text = f"function(f)\nif(X)\n{declare('a')}endfunction()\nmacro(m)\n{declare('b')}endmacro()\n{declare('c')}"
    assert names(text) == ["c"]


def test_same_source_twice_counts_once() -> None:
    assert names(declare("a") * 2 + declare("a", "v2")) == ["a", "a"]


def test_what_is_written_in_brackets_and_comments() -> None:
    assert names('#[[ FetchContent_Declare(no GIT_REPOSITORY a GIT_TAG b) ]]\nmessage([==[ ) " ]==])\n'
                 f'message("a \\" ) \\\n b")\n# (\n{declare("yes")}') == ["yes"]


@pytest.mark.parametrize("tag", ["${CMAKE_SOMETHING}", "${UNSET}"])
def test_pin_that_cannot_be_told_is_an_error(tag: str) -> None:
    with pytest.raises(InputError, match="cannot be told") as caught:
        found(declare("a", tag))
    assert "CMakeLists.txt:1" in caught.value.diagnostics()


@pytest.mark.parametrize("text", ["set(", "set a)", 'set("', "+", "message(a\\"])
def test_what_is_no_cmake(text: str) -> None:
    with pytest.raises(InputError, match="cannot be read as CMake"):
        list(calls(text, "CMakeLists.txt"))


def test_text_that_grows_without_end_is_not_known() -> None:
    grows = 'set(A "xxxxxxxxxx")\n' + 'set(A "${A}${A}")\n' * 22
    assert names(grows + declare("a")) == ["a"]
    with pytest.raises(InputError, match="cannot be told"):
        found(grows + declare("a", "${A}"))


@pytest.mark.parametrize("nested", ["NOT " * 20_000, "(" * 20_000])
def test_condition_without_a_bottom_is_an_error(nested: str) -> None:
    with pytest.raises(InputError, match="nested deeper"):
        found(f"if({nested}A{')' * nested.count('(')})\nendif()\n")
