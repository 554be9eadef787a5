"""What vLLM's own CMake says of its modules, told without a compiler, against what published wheels hold.

The trees that vLLM pins are empty here, but for the part of CUTLASS that its generator of Machete kernels imports: that
is out of a wheel, of another release than the pinned one, and gives the same list of files.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from assemble.wheels import build as build_wheels
from cache.build import BuildContext
from cache.layer import LayerReader
from cache.store import Store
from checks.contents import counts, run
from checks.kernels import headers
from checks.verdict import CheckInputs
from lock.cmake_pins import pins
from lock.fetch import Wanted, fetch
from stages.fetching import source
from stages.recipe import load
from tests.long.test_vllm_pins import SDISTS
from tests.support.expected import Mock, mock
from tests.support.front import HERE
from tests.support.gates import SITE
from tests.support.images import make_layer

TORCH = {"0.20.0": "2.11.0", "0.33.0": "2.14.0"}
CUTLASS = Wanted("wheel", "nvidia-cutlass", "4.2.0.0", "nvidia_cutlass-4.2.0.0-py3-none-any.whl", 0,
                 "f9599ada45c7bcb6bf53f7d3f0a7d154183e53451c01bfa59eecd37dd4a693f6", "default")
WHEEL = Wanted("wheel", "vllm", "0.20.0", "vllm-0.20.0-cp38-abi3-manylinux_2_35_aarch64.whl", 235776358,
               "29a135ca0d70650f057f15c7c0b560d24659524c771f70fbddc24597c861c118", "default")

#: What vLLM is released for, as its wheel shows.
RELEASED = "8.0 8.7 8.9 9.0 10.0 11.0 12.0"
UNKNOWN = {"_vllm_fa2_C", "_vllm_fa3_C"}
HOSTS = {"0.20.0": {"vllm/cumem_allocator"}, "0.33.0": {"vllm/cumem_allocator", "vllm/fs_io_C", "vllm/spinloop"}}

#: Version and list to sources with device code, those for each architecture, and those with PTX.
Counts = Mapping[str, tuple[int, Mapping[str, int], Mapping[str, int]]]
KNOWN: dict[tuple[str, str], Counts] = {
    ("0.20.0", "11.0a"): {
        "vllm/_C": (51, {"80": 11, "90": 8, "110a": 32}, {"80": 11, "90": 8}),
        "vllm/_C_stable_libtorch": (20, {"89": 1, "110a": 19}, {"89": 1}),
        "vllm/_moe_C": (26, {"80": 15, "110a": 11}, {"80": 15})},
    ("0.20.0", "12.1a"): {
        "vllm/_C": (59, {"80": 11, "90": 8, "120": 32, "120f": 8}, {"80": 11, "90": 8}),
        "vllm/_C_stable_libtorch": (17, {"89": 1, "120": 7, "120f": 9}, {"89": 1}),
        "vllm/_moe_C": (28, {"80": 15, "120": 13}, {"80": 15})},
    ("0.33.0", "11.0a"): {
        "vllm/_C_stable_libtorch": (79, {"80": 11, "89": 1, "90": 8, "110a": 59}, {"80": 11, "89": 1, "90": 8}),
        "vllm/_moe_C_stable_libtorch": (23, {"80": 15, "110a": 8}, {"80": 15})},
    ("0.33.0", "12.1a"): {
        "vllm/_C_stable_libtorch": (80, {"80": 4, "89": 1, "90": 1, "120": 39, "120f": 35},
                                    {"80": 4, "89": 1, "90": 1}),
        "vllm/_flashkda_C": (1, {"120f": 1}, {}),
        "vllm/_moe_C_stable_libtorch": (28, {"80": 1, "120": 8, "120f": 19}, {"80": 1}),
        "vllm/_qutlass_C": (6, {"120f": 6}, {})},
    ("0.20.0", RELEASED): {
        "vllm/_C": (75, {"75": 1, "80": 48, "87": 29, "89": 34, "90": 35, "90a": 11, "100": 27, "100f": 11, "110": 27,
                         "110f": 5, "120": 32, "120f": 8}, {"75": 1, "80": 19, "90": 8}),
        "vllm/_C_stable_libtorch": (33, {"80": 8, "87": 8, "89": 8, "90": 7, "90a": 10, "100": 7, "100f": 12, "110": 7,
                                         "110f": 12, "120": 7, "120f": 9}, {"89": 1}),
        "vllm/_flashmla_C": (22, {"90a": 22, "100f": 22}, {}),
        "vllm/_flashmla_extension_C": (2, {"90a": 2, "100f": 2}, {}),
        "vllm/_moe_C": (31, {"80": 23, "87": 8, "89": 13, "90": 8, "90a": 3, "100": 8, "100f": 3, "110": 8, "110f": 3,
                             "120": 13}, {"80": 15})},
}

#: FlashAttention in small: vLLM's functions, its own request for 8.0+PTX, and a second module for Hopper.
FLASH_ATTENTION = b"""\
project(vllm_flash_attn LANGUAGES CXX CUDA)
file(GLOB sources csrc/flash_fwd_*.cu)
foreach(name _vllm_fa2_C _vllm_fa3_C)
  set(asked "8.0+PTX")
  if(name STREQUAL _vllm_fa3_C)
    set(sources hopper/one.cu)
    set(asked "9.0a")
  endif()
  cuda_archs_loose_intersection(archs "${asked}" "${CUDA_ARCHS}")
  set_gencode_flags_for_srcs(SRCS "${sources}" CUDA_ARCHS "${archs}")
  define_extension_target(${name} DESTINATION vllm_flash_attn LANGUAGE CUDA SOURCES ${sources} USE_SABI 3 WITH_SOABI)
endforeach()
"""


class Told:
    """What was told of each version and list, once; and the index of the layer that says it."""

    def __init__(self, machine: Mock) -> None:
        self.machine = machine
        self._known: dict[tuple[str, str, bool], str] = {}

    def index(self, version: str, arch_list: str, *, ours: bool = False) -> str:
        """Digest of the index of the stage's layer; `ours`: with the recipe's patches, over a small FlashAttention."""
        key = (version, arch_list, ours)
        if key not in self._known:
            csrc, variables = self._source(version, ours)
            self._known[key] = self.machine.outputs(
                csrc, arch_list, {**variables, "TORCH_VERSION": TORCH[version], "VERSION": version})["index"]
        return self._known[key]

    def expected(self, version: str, arch_list: str, *, ours: bool = False) -> dict[str, Any]:
        with LayerReader(self.machine.store, self.index(version, arch_list, ours=ours)) as layer:
            found: dict[str, Any] = json.loads(layer.read("expected.json"))
        return found

    def _source(self, version: str, ours: bool) -> tuple[str, dict[str, str]]:
        """The layer `csrc` of an sdist, and the variables of its pins."""
        described = load(HERE, "vllm/recipe.yaml")
        store, recipe = self.machine.store, described.data
        sdist = Wanted("sdist", "vllm", version, f"vllm-{version}.tar.gz", 0, SDISTS[version].partition(":")[2],
                       "default")
        fetch(store, [sdist], {"sdist": source("wheel", HERE)})
        data = store.read(sdist.digest)
        found = pins(_texts(data).get, recipe["variables"])
        cutlass = store.path_of(CUTLASS.digest)
        fetch(store, [CUTLASS], {"wheel": source("wheel", HERE)})
        with zipfile.ZipFile(cutlass) as wheel:
            library = {f"python/{name}": wheel.read(name) for name in wheel.namelist()
                       if name.startswith("cutlass_library/") and name.count("/") == 1}
        trees = {"cutlass": make_layer(store, {**library, "include/cutlass/cutlass.h": b""})}
        if ours:
            trees["vllm-flash-attn"] = make_layer(store, {
                "CMakeLists.txt": FLASH_ATTENTION, "csrc/flash_fwd_a.cu": b"", "csrc/flash_fwd_b.cu": b"",
                "hopper/one.cu": b""})
        csrc = self.machine.source(data, csrc=recipe["csrc"], trees=trees,
                                   stubs=[pin.name for pin in found if pin.name not in trees],
                                   patches=[HERE / path for path in described.patches(version)] if ours else [])
        places = {pin.name: f"/inputs/csrc/sources/{pin.name}" for pin in found}
        below = recipe["pins"]["below"]
        variables = {pin.override: "/".join((places[pin.name], *([below[pin.name]] if pin.name in below else ())))
                     for pin in found if pin.override and pin.override not in recipe["pins"]["keep_back"]}
        return csrc, {**variables, "CMAKE_ARGS": " ".join(
            f"-DFETCHCONTENT_SOURCE_DIR_{name.upper()}={place}" for name, place in places.items())}


def _texts(data: bytes) -> dict[str, str]:
    found = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for member in archive:
            path = member.name.partition("/")[2]
            stream = archive.extractfile(member) if path == "CMakeLists.txt" or path.startswith("cmake/") else None
            if stream is not None:
                found[path] = stream.read().decode()
    return found


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    scratch = tmp_path_factory.mktemp("project")
    return Told(mock(Path(os.environ.get("STAGECRAFT_TEST_STORE") or scratch / "store"), scratch))


@pytest.mark.parametrize(("version", "arch_list"), KNOWN)
def test_sources_by_architecture(told: Told, version: str, arch_list: str) -> None:
    found = told.expected(version, arch_list)
    assert {name: (one["units"], one["sass"], one["ptx"]) for name, one in found["modules"].items()} \
        == KNOWN[version, arch_list]
    assert set(found["unknown"]) == UNKNOWN
    more = {"vllm/third_party/deep_gemm/_C"} if arch_list == RELEASED else set()
    assert set(found["host"]) == HOSTS[version] | more


@pytest.mark.parametrize(("version", "arch_list", "code"), [("0.33.0", "11.0a", "110a"), ("0.33.0", "12.1a", "121a")])
def test_with_the_recipe_s_patches(told: Told, version: str, arch_list: str, code: str) -> None:
    """Native FlashAttention 2, no third one that setup.py does not ask for, and 12.1 as it is."""
    found = told.expected(version, arch_list, ours=True)
    fa2 = found["modules"]["vllm_flash_attn/_vllm_fa2_C"]
    assert (fa2["units"], fa2["sass"], fa2["ptx"]) == (2, {code: 2}, {})
    assert found["unasked"] == ["vllm_flash_attn/_vllm_fa3_C"]
    assert found["unknown"] == {}
    native = {arch for one in found["modules"].values() for arch in one["sass"] if int(arch.rstrip("af")) >= 100}
    assert native == {code}


def test_a_published_wheel_is_what_its_source_says(told: Told) -> None:
    """The check itself, over the layer that the wheel makes: not one container more or less, for any architecture."""
    store = told.machine.store
    made = _layer(store)
    inputs = CheckInputs(store, {"vllm-expected/index": told.index("0.20.0", RELEASED), "vllm/index": made},
                         {"site": SITE, "arch_list": RELEASED})
    found = run(inputs)
    assert [one for one in found if one.severity == "error"] == []
    assert {one.subject for one in found if one.severity == "info"} == set(KNOWN["0.20.0", RELEASED])
    assert {one.subject for one in found if one.severity == "warning"} == UNKNOWN


def test_a_published_wheel_is_not_what_one_device_asks_for(told: Told) -> None:
    store = told.machine.store
    inputs = CheckInputs(store, {"vllm-expected/index": told.index("0.20.0", "11.0a"), "vllm/index": _layer(store)},
                         {"site": SITE, "arch_list": "11.0a"})
    found = {one.subject: one.message for one in run(inputs) if one.severity == "error"}
    assert found["vllm/_C: sm_110a"] == "expected 32 of 51 sources compiled for sm_110a, found 0"
    assert found["vllm/_C"] == "expected device code of 51 sources, found that of 75"
    assert "does not make" in found["vllm/_flashmla_C"]


def test_what_the_other_reader_of_the_wheel_counts(told: Told) -> None:
    """FlashAttention's modules, whose sources nobody has said here, are counted as they were by hand."""
    index = _layer(told.machine.store)
    with LayerReader(told.machine.store, index) as layer:
        found = {path.rpartition("/")[2].partition(".")[0]: counts(code)
                 for path, code in headers(told.machine.store, layer, index).items()}
    assert found["_vllm_fa2_C"] == Counter({"sm_80": 52, "compute_80": 52})
    assert found["_vllm_fa3_C"] == Counter({"sm_90a": 192})


def _layer(store: Store) -> str:
    """Digest of the index of the wheel's layer."""
    fetch(store, [WHEEL], {"wheel": source("wheel", HERE)})
    scheme = {"python": "3.11", "interpreter": "/usr/bin/python3.11", "purelib": SITE, "platlib": SITE,
              "scripts": "usr/local/bin", "data": "usr/local", "glibc": "2.36", "headers": "usr/local/include",
              "collisions": [], "records": []}
    found = build_wheels(BuildContext(store, scheme, {f"wheels/{WHEEL.file}": WHEEL.digest},
                                      {"os": "linux", "architecture": "arm64"}))
    return found["index"].digest
