"""Real pieces of vLLM 0.32.0, compiled by its recipe for aarch64 on this machine, from the sdist of the index.

Configured for both devices; for Thor (11.0a) two extensions are built, linked and loaded, and single files of the
others are compiled. What the index does not have stands in: CUTLASS 4.5.0 out of flashinfer for the pinned 4.7.1, the
kernels of `flash-attn` below a CMakeLists.txt of our own for vllm-project/flash-attention, triton_kernels out of the
published wheel; and empty files for what is configured only.
"""

from __future__ import annotations

import io
import re
import tarfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

import fatbin
from assemble.patch import apply, parse
from assemble.source_tree import build as build_source
from cache.build import BuildContext
from cache.errors import StageError
from cache.layer import LayerReader
from cache.store import Store
from checks import load
from checks.kernels import DeviceCode, read_code
from checks.registry import check
from checks.symbols import read_library
from checks.verdict import CheckInputs
from executors.said import Refusal, Said
from lock.fetch import Wanted, fetch
from stages import gates, recipe
from stages.fetching import source
from stages.project import Project
from tests.support.front import HERE
from tests.support.source_build import Machine, Run, cross_compiler, cuda_layer, requires_layer, run, thor
from tests.support.tarballs import make_tar

VERSION = "0.32.0"
RECIPE = recipe.load(HERE, "vllm/recipe.yaml")
SOURCES = "/inputs/csrc/sources"

#: sdists: project, version, file, sha256.
SDISTS = {
    "vllm 0.20.0": ("vllm", "0.20.0", "vllm-0.20.0.tar.gz",
                    "a6d50152936ee292455af3ffbe359f7a284ac43bf3b68caccf29f368e196cc72"),
    "vllm 0.32.0": ("vllm", "0.32.0", "vllm-0.32.0.tar.gz",
                    "d2c957d5eee3d0985012151315ddc62cbe0cd368fc96a5fc3510438d9dddf2ad"),
    "vllm 0.33.0": ("vllm", "0.33.0", "vllm-0.33.0.tar.gz",
                    "f4c33c2503d52bb411146afa9618a4f48bed68912f617e6803ac8d76e4c74112"),
    "flash-attn": ("flash-attn", "2.8.3.post2", "flash_attn-2.8.3.post2.tar.gz",
                   "d0f9f0b08a986cdeadbffcf5ec8b3a8f514366c68ad1853d3ab061bc83cc340b"),
    "flashinfer": ("flashinfer-python", "0.7.2.post1", "flashinfer_python-0.7.2.post1.tar.gz",
                   "af60319898dcfd552ba12a34165b9dd46c0bbd83d48ce665b1df6bd6ae77e9f1"),
}
#: The recipe's requirements as wheels of the target's machine: project, version, file, sha256.
REQUIRES = (
    ("cmake", "3.31.10", "cmake-3.31.10-py3-none-manylinux_2_17_aarch64.manylinux2014_aarch64.whl",
     "a4a5615f31f692c9b9aa8b365704e4b76172348af6fa40e16fea3f118bb01194"),
    ("filelock", "4.2.11", "filelock-4.2.11-py3-none-any.whl",
     "020e229e4bb9d410fc799c07ddf45fa217cba970278f40b30751d94f309b69e2"),
    ("fsspec", "2026.9.0", "fsspec-2026.9.0-py3-none-any.whl",
     "8dd6e646e99ea382bd85f97a45e6b526a442d79423a7dc673f1e2756d05fcb5f"),
    ("jinja2", "3.1.6", "jinja2-3.1.6-py3-none-any.whl",
     "85ece4451f492d0c13c5dd7c13a64681a86afae63a5f347908daf103ce6d2f67"),
    ("markupsafe", "3.0.4",
     "markupsafe-3.0.4-cp311-cp311-manylinux2014_aarch64.manylinux_2_17_aarch64.manylinux_2_28_aarch64.whl",
     "849dd2bb0e5e4ab2b71c7191726a4a8d5aa8a610daa584728cbee0b710ddc4ef"),
    ("mpmath", "1.3.0", "mpmath-1.3.0-py3-none-any.whl",
     "a0b2b9fe80bbcd81a6647ff13108738cfb482d481d826cc0e02f5b35e5c88d2c"),
    ("networkx", "3.6.1", "networkx-3.6.1-py3-none-any.whl",
     "d47fbf302e7d9cbbb9e2555a0d267983d2aa476bac30e90dfbe5669bd57f3762"),
    ("ninja", "1.13.2", "ninja-1.13.2-py3-none-manylinux2014_aarch64.manylinux_2_17_aarch64.whl",
     "d775a5e43e9088f507a6250d57fcf5678eb31268c545feb5064ffeee33735622"),
    ("numpy", "1.26.4", "numpy-1.26.4-cp311-cp311-manylinux_2_17_aarch64.manylinux2014_aarch64.whl",
     "7ab55401287bfec946ced39700c053796e7cc0e3acbef09993a9ad2adba6ca6e"),
    ("packaging", "26.3", "packaging-26.3-py3-none-any.whl",
     "d7193f7c8e4e93f444fde0262bf90af30e16fa0ad0ad44cb553c87339b23cd1c"),
    ("semantic-version", "2.10.0", "semantic_version-2.10.0-py2.py3-none-any.whl",
     "de78a3b8e0feda74cabc54aab2da702113e33ac9d9eb9d2389bcf1f58b7d9177"),
    ("setuptools", "80.10.2", "setuptools-80.10.2-py3-none-any.whl",
     "95b30ddfb717250edb492926c92b5221f7ef3fbcc2b07579bcd4a27da21d0173"),
    ("setuptools-rust", "1.13.0", "setuptools_rust-1.13.0-py3-none-any.whl",
     "666439c4d90e968bb625bcf87ec0aa02b4f49e599d2f5dc255c633a04e8eca99"),
    ("setuptools-scm", "10.3.4", "setuptools_scm-10.3.4-py3-none-any.whl",
     "82f34c3e3084fc2b57d397200637cc13f2338004052d2fee47baa5f0e902464e"),
    ("sympy", "1.14.0", "sympy-1.14.0-py3-none-any.whl",
     "e091cc3e99d2141a0ba2847328f5479b05d94a6635cb96148ccb3f34671bd8f5"),
    ("typing-extensions", "4.16.0", "typing_extensions-4.16.0-py3-none-any.whl",
     "481caa481374e813c1b176ada14e97f1f67a4539ce9cfeb3f350d78d6370c2e8"),
    ("vcs-versioning", "2.6.0", "vcs_versioning-2.6.0-py3-none-any.whl",
     "f8bebd1302ebc12e67ceb30fc7dd698ec969414b6fa43b30c3f14ac9b1e72c41"),
    ("wheel", "0.48.0", "wheel-0.48.0-py3-none-any.whl",
     "3217dcc807155e45db462d7ef2431f5ddda0d7273b700d05a67b271ceb1287ab"),
)
#: Its toolkit, of this machine.
TOOLKIT = (
    ("nvidia-cuda-cccl", "13.0.85", "nvidia_cuda_cccl-13.0.85-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
     "e0da7ad981f3a8aff08241b5bfc1af868742a63e2762f53a5171c492ef242649"),
    ("nvidia-cuda-crt", "13.0.88", "nvidia_cuda_crt-13.0.88-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
     "2c8043c7c9e02492716426e9919fc78d2c5b3b2a7a768a88e952676b08aa55a4"),
    ("nvidia-cuda-nvcc", "13.0.88", "nvidia_cuda_nvcc-13.0.88-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
     "56fe502eb77625a12f25172caa3cdddb4e4c8ba2c8c17dba44b164761b380f03"),
    ("nvidia-cuda-runtime", "13.0.96",
     "nvidia_cuda_runtime-13.0.96-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
     "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548"),
    ("nvidia-nvvm", "13.0.88", "nvidia_nvvm-13.0.88-py3-none-manylinux2010_x86_64.manylinux_2_12_x86_64.whl",
     "c5f41ffeb6466944a026dfa5317d7d85355c119bbec279205d22f1869d1054e0"),
)

#: What CUTLASS's own CMakeLists.txt gives vLLM; the sdist of flashinfer leaves it out.
CUTLASS = b"""\
set(CUTLASS_INCLUDE_DIR ${CMAKE_CURRENT_SOURCE_DIR}/include CACHE PATH "")
set(CUTLASS_TOOLS_UTIL_INCLUDE_DIR ${CMAKE_CURRENT_SOURCE_DIR}/tools/util/include CACHE PATH "")
"""
#: Names devices as vllm-project/flash-attention does: by vLLM's function, 8.0+PTX whatever is asked.
FLASH_ATTENTION = b"""\
cmake_minimum_required(VERSION 3.26)
project(vllm_flash_attn LANGUAGES CXX CUDA)
include(${CMAKE_CURRENT_LIST_DIR}/cmake/utils.cmake)
file(GLOB FA2_GEN_SRCS "csrc/flash_attn/src/flash_fwd_*.cu")
cuda_archs_loose_intersection(FA2_ARCHS "8.0+PTX" "${CUDA_ARCHS}")
message(STATUS "FA2_ARCHS: ${FA2_ARCHS}")
set_gencode_flags_for_srcs(SRCS "${FA2_GEN_SRCS}" CUDA_ARCHS "${FA2_ARCHS}")
define_extension_target(_vllm_fa2_C DESTINATION vllm_flash_attn LANGUAGE CUDA SOURCES ${FA2_GEN_SRCS}
    COMPILE_FLAGS ${VLLM_GPU_FLAGS} --expt-relaxed-constexpr --expt-extended-lambda --use_fast_math
    USE_SABI 3 WITH_SOABI)
target_include_directories(_vllm_fa2_C PRIVATE csrc/flash_attn csrc/flash_attn/src csrc/cutlass/include)
target_compile_definitions(_vllm_fa2_C PRIVATE FLASHATTENTION_DISABLE_BACKWARD FLASHATTENTION_DISABLE_DROPOUT)
"""
#: Trees that are compiled for 12.1a only, and not at hand: enough to configure.
CONFIGURED_ONLY = {
    "qutlass": ("bindings.cpp", "gemm.cu", "gemm_ada.cu", "fused_quantize_mx.cu", "fused_quantize_nv.cu",
                "fused_quantize_mx_sm100.cu", "fused_quantize_nv_sm100.cu"),
    "flashkda": ("flash_kda.cpp", "smxx/fwd_launch.cu"),
}
_BELOW = {"qutlass": "qutlass/csrc/", "flashkda": "csrc/"}
#: Source to the variable that names its directory, as `lock.cmake_pins` reads them.
VARIABLES = {
    "cutlass": "VLLM_CUTLASS_SRC_DIR", "triton_kernels": "TRITON_KERNELS_SRC_DIR", "deepgemm": "DEEPGEMM_SRC_DIR",
    "deepselect": "DEEPSELECT_SRC_DIR", "flashkda": "FLASH_KDA_SRC_DIR", "flashmla": "FLASH_MLA_SRC_DIR",
    "fmha_sm100": "FMHA_SM100_SRC_DIR", "qutlass": "QUTLASS_SRC_DIR", "tml_fa4": "TML_FA4_SRC_DIR",
    "vllm-flash-attn": "VLLM_FLASH_ATTN_SRC_DIR",
}

#: Object files by architecture: without CUTLASS, with it, of FlashAttention.
MAIN = "CMakeFiles/_C_stable_libtorch.dir/csrc/"
FA2 = "vllm-flash-attn/CMakeFiles/_vllm_fa2_C.dir/csrc/flash_attn/src/"
OBJECTS = {
    "11.0a": (
        f"{MAIN}pos_encoding_kernels.cu.o", f"{MAIN}minimax_reduce_rms_kernel.cu.o",
        f"{MAIN}quantization/w8a8/cutlass/moe/moe_data.cu.o",
        f"{MAIN}quantization/w8a8/cutlass/moe/grouped_mm_c3x_sm100.cu.o",
        f"{FA2}flash_fwd_hdim32_fp16_sm80.cu.o", f"{FA2}flash_fwd_hdim64_fp16_causal_sm80.cu.o"),
    "12.1a": (
        f"{MAIN}quantization/fp4/nvfp4_quant_kernels.cu.o",
        f"{MAIN}quantization/fp4/nvfp4_scaled_mm_sm120_kernels.cu.o", f"{FA2}flash_fwd_hdim32_fp16_sm80.cu.o"),
}
NATIVE = {"11.0a": "sm_110a", "12.1a": "sm_121a"}
#: Those of Thor that are compiled a second time.
TWICE = (OBJECTS["11.0a"][1], OBJECTS["11.0a"][2], OBJECTS["11.0a"][4])
MOE, CUMEM = "vllm/_moe_C_stable_libtorch.abi3.so", "vllm/cumem_allocator.abi3.so"


# -- sources ----------------------------------------------------------------------------------------


def sdist(store: Store, name: str) -> str:
    """The digest of an sdist, fetched from the index if the store does not have it."""
    project, version, file, sha256 = SDISTS[name]
    wanted = Wanted("sdist", project, version, file, 0, sha256, "default")
    fetch(store, [wanted], {"sdist": source("sdist", HERE)})
    return wanted.digest


def files_of(store: Store, name: str, keep: Callable[[str], str | None]) -> dict[str, bytes]:
    """Files of an sdist: `keep` gives a path its new one, or None."""
    files = {}
    with store.open_blob(sdist(store, name)) as blob, tarfile.open(fileobj=blob) as archive:
        for member in archive:
            path = keep(member.name.partition("/")[2])
            stream = archive.extractfile(member) if member.isfile() and path is not None else None
            if stream is not None and path is not None:
                files[path] = stream.read()
    return files


def flash_attention(path: str) -> str | None:
    wanted = path.startswith(("csrc/cutlass/include/", "csrc/flash_attn/src/")) and "_bwd_" not in path
    return path if wanted else None


def published(store: Store) -> Path:
    """The wheel of vLLM that thor's lock names."""
    item = next(item for item in Project(HERE).lock("thor").wheels if item.name == "vllm")
    fetch(store, [Wanted("wheel", item.name, item.version, item.file, item.size, item.sha256, item.index)],
          {"wheel": source("wheel", HERE)})
    return store.path_of(item.digest)


def trees_of(store: Store, stubs: Mapping[str, str]) -> dict[str, str]:
    """What stands in for the pinned trees, by their names in CMake."""
    utils = files_of(store, f"vllm {VERSION}", lambda path: path if path == "cmake/utils.cmake" else None)
    prefix = "vllm/third_party/triton_kernels/"
    with zipfile.ZipFile(published(store)) as wheel:
        kernels = {"python/triton_kernels/triton_kernels/" + name.removeprefix(prefix): wheel.read(name)
                   for name in wheel.namelist() if name.startswith(prefix) and not name.endswith("/")}
    cutlass = "3rdparty/cutlass/"
    trees = {
        "cutlass": {"CMakeLists.txt": CUTLASS, **files_of(
            store, "flashinfer", lambda path: path.removeprefix(cutlass) if path.startswith(cutlass) else None)},
        "vllm-flash-attn": {"CMakeLists.txt": FLASH_ATTENTION, **utils,
                            **files_of(store, "flash-attn", flash_attention)},
        "triton_kernels": kernels,
        "tml_fa4": {"flash_attn/cute/__init__.py": b""},
        **{name: {_BELOW[name] + file: b"" for file in files} for name, files in CONFIGURED_ONLY.items()},
    }
    return {name: store.put(make_tar(sorted(files.items()))).digest for name, files in trees.items()
            if name not in stubs}


def prepared(machine: Machine, arch: str) -> tuple[str, dict[str, str]]:
    """The source as the recipe wants it for a device, and the environment of its script."""
    store = machine.store
    stubs = RECIPE.stubs(VERSION, arch)
    trees = trees_of(store, stubs)
    inputs = {"source": sdist(store, f"vllm {VERSION}"), **{f"tree/{name}": tree for name, tree in trees.items()}}
    inputs |= {f"patch/{number:02}-{Path(file).name}": store.put((HERE / file).read_bytes()).digest
               for number, file in enumerate(RECIPE.patches(VERSION))}
    found = build_source(BuildContext(
        store, {"strip": 1, "csrc": RECIPE.data["csrc"], "stubs": sorted(stubs)}, inputs))
    places = {name: f"{SOURCES}/{name}" for name in (*trees, *stubs)}
    arguments = [f"-DFETCHCONTENT_SOURCE_DIR_{name.upper()}={place}" for name, place in sorted(places.items())]
    return found["csrc"].digest, {
        "NAME": "vllm", "VERSION": VERSION, "SITE": machine.site, "TORCH_CUDA_ARCH_LIST": arch, "CUDA_VERSION": "13.0",
        "TORCH_VERSION": "2.13.0", "SOURCE_DATE_EPOCH": "315532800", "LC_ALL": "C",
        "CMAKE_ARGS": " ".join(["-DFETCHCONTENT_FULLY_DISCONNECTED=ON", *arguments]),
        **{VARIABLES[name]: place for name, place in places.items()
           if VARIABLES[name] not in RECIPE.data["pins"]["keep_back"]}}


# -- the machine ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def machine(thor_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Machine:
    return thor(thor_store, tmp_path_factory.mktemp("project"), "base", "cuda", "torch", "deps")


@pytest.fixture(scope="module")
def layers(machine: Machine) -> list[str]:
    """The root of the build, lowest first."""
    def wanted(rows: Sequence[tuple[str, str, str, str]]) -> list[Wanted]:
        return [Wanted("wheel", name, version, file, 0, sha256, "default") for name, version, file, sha256 in rows]

    return [*(machine.layers[name] for name in ("base", "cuda", "torch")), cross_compiler(machine.store),
            cuda_layer(machine.store, wanted(TOOLKIT)), requires_layer(machine.store, wanted(REQUIRES))]


def ran(machine: Machine, layers: Sequence[str], arch: str, lines: list[str] | None = None,
        **more: str) -> dict[str, str]:
    """The recipe's script, as the stage runs it."""
    csrc, environment = prepared(machine, arch)
    files = {Path(file).name: (HERE / file).read_bytes()
             for file in (RECIPE.data["script"], *RECIPE.data["files"])}
    return run(machine, Run(layers, {"csrc": csrc}, files, environment | more, lines if lines is not None else []))


# -- patches ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "count"), [("0.20.0", 4), ("0.32.0", 6), ("0.33.0", 6)])
def test_patches_apply_once_to_the_real_source(machine: Machine, version: str, count: int) -> None:
    files = files_of(machine.store, f"vllm {version}", lambda path: path)
    patches = RECIPE.patches(version)
    assert len(patches) == count
    for name in patches:
        changed = apply(files, parse((HERE / name).read_bytes(), name), name)
        assert changed
        files |= {path: content for path, content in changed.items() if content is not None}


# -- configured, and single files compiled ------------------------------------------------------------


@dataclass
class Part:
    """What a run left that compiled single files: object files, CMake's plan, the lines that were written."""

    arch: str
    objects: dict[str, bytes]
    ninja: str
    lines: list[str]


def compiled(machine: Machine, layers: list[str], arch: str, names: Sequence[str]) -> Part:
    lines: list[str] = []
    outputs = ran(machine, layers, arch, lines, OBJECTS=" ".join(names))
    with LayerReader(machine.store, outputs["index"]) as layer:
        place = f"{machine.site}/objects"
        return Part(arch, {name: layer.read(f"{place}/{name}") for name in names},
                    layer.read(f"{place}/build.ninja").decode(), lines)


@pytest.fixture(scope="module", params=OBJECTS)
def part(request: pytest.FixtureRequest, machine: Machine, layers: list[str]) -> Part:
    return compiled(machine, layers, request.param, OBJECTS[request.param])


def told(ninja: str, target: str) -> dict[str, set[str]]:
    """Object files of a target to the devices that their compiler is told."""
    found = {}
    for statement in re.split(r"\n(?=build )", ninja):
        name = statement.removeprefix("build ").partition(":")[0]
        if f"CMakeFiles/{target}.dir/" in name and name.endswith(".cu.o"):
            found[name] = set(re.findall(r"-gencode[ =]arch=compute_\w+,code=(\w+)", statement))
    return found


def test_no_line_that_ends_a_build(part: Part) -> None:
    said = Said(lambda line: None, map(Refusal.of, RECIPE.refuse(part.arch)))
    for line in part.lines:
        said.line(line)
    assert any("FlashAttention 2: 48 files" in line for line in part.lines)


def test_configured_for_exactly_one_device(part: Part) -> None:
    native = NATIVE[part.arch]
    fa2 = told(part.ninja, "_vllm_fa2_C")
    assert len(fa2) == 48
    assert set(map(frozenset, fa2.values())) == {frozenset({native})}
    others = told(part.ninja, "_C_stable_libtorch") | told(part.ninja, "_moe_C_stable_libtorch")
    # Besides, PTX of Marlin and its like, which have no code of their own for these devices.
    assert set().union(*others.values()) == {native, "sm_80", "compute_80", "sm_89", "compute_89", "sm_90",
                                             "compute_90"}
    assert sum(native in codes for codes in others.values()) == {"11.0a": 63, "12.1a": 97}[part.arch]


def test_single_files_have_code_for_it_alone(part: Part) -> None:
    for name in OBJECTS[part.arch]:
        entries = fatbin.read(part.objects[name]).entries
        assert {entry.target for entry in entries} == {NATIVE[part.arch]}, name
        assert any(fatbin.kernels(entry) for entry in entries), name


def test_same_bytes_twice(machine: Machine, layers: list[str], part: Part) -> None:
    if part.arch == "11.0a":
        again = compiled(machine, layers, part.arch, TWICE)
        assert [name for name in TWICE if again.objects[name] != part.objects[name]] == []


# -- built ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(machine: Machine, layers: list[str]) -> dict[str, str]:
    return ran(machine, layers, "11.0a", EXTENSIONS="_moe_C_stable_libtorch cumem_allocator")


def of_arch(code: DeviceCode, number: str) -> set[str]:
    """Kernels that it has for an architecture. CUB has all architectures of a compile in its names: cut out."""
    return {without_cub(code.names[kernel]) for piece in code.pieces for kernel in piece.kernels
            if re.fullmatch(rf"\w+_{number}[af]?(@.*)?", piece.target)}


def without_cub(name: str) -> str:
    while (found := re.search(r"(\d+)CUB_", name)) is not None:
        name = name[:found.start()] + name[found.end(1) + int(found[1]):]
    return name


def test_same_kernels_as_the_published_wheel(machine: Machine, built: dict[str, str]) -> None:
    with LayerReader(machine.store, built["index"]) as layer:
        ours = read_code(io.BytesIO(layer.read(f"{machine.site}/{MOE}")))
    with zipfile.ZipFile(published(machine.store)) as wheel:
        theirs = read_code(io.BytesIO(wheel.read(MOE)))
    assert ours.consistent
    assert set(ours.targets) == {"sm_110a", "sm_80", "compute_80@9.0"}
    assert ours.targets["sm_110a"] == theirs.targets["sm_110"] == 1573
    assert of_arch(ours, "110") == of_arch(theirs, "110")
    assert of_arch(ours, "80") < of_arch(theirs, "80")  # theirs has code for sm_80 of every kernel, ours of Marlin's


def test_what_the_build_leaves(machine: Machine, built: dict[str, str]) -> None:
    with LayerReader(machine.store, built["index"]) as layer:
        files = {path.removeprefix(f"{machine.site}/"): layer.read(path) for path, entry in layer.entries.items()
                 if entry["type"] == "file"}
    info = "vllm-0.32.0.dist-info/"
    assert set(files) == {MOE, CUMEM, "vllm/_version.py", f"{info}METADATA", f"{info}WHEEL", f"{info}entry_points.txt",
                          f"{info}top_level.txt", f"{info}licenses/LICENSE"}
    with zipfile.ZipFile(published(machine.store)) as wheel:
        for name in ("METADATA", "entry_points.txt", "top_level.txt", "licenses/LICENSE"):
            assert files[info + name] == wheel.read(info + name)
    for name in (MOE, CUMEM):
        library = read_library(io.BytesIO(files[name]))
        assert library.elf.machine == "aarch64"
        assert "libcuda.so.1" in library.elf.needed
        assert not library.elf.runpath
        assert b".comment\0" not in files[name]
        assert b"tmpxft" not in files[name]


def test_it_loads_under_the_emulator(machine: Machine, built: dict[str, str]) -> None:
    project = Project(HERE)
    facts = {**gates.facts_of(check("load"), project, "thor"), "wheels": ["torch"],
             "rows": [{"module": file.partition(".")[0].replace("/", "."), "file": file} for file in (MOE, CUMEM)]}
    outputs = {f"{name}/index": digest for name, digest in machine.indexes.items()} | {"vllm/index": built["index"]}
    assert load.run(CheckInputs(machine.store, outputs, facts)) == []


def test_torch_of_another_cuda_ends_the_build(machine: Machine, layers: list[str]) -> None:
    lines: list[str] = []
    with pytest.raises(StageError, match="its script ended: exit 1"):
        ran(machine, layers, "11.0a", lines, CUDA_VERSION="12.9")
    assert lines[lines.index("build.sh: torch is compiled for another CUDA"):][:3] == [
        "build.sh: torch is compiled for another CUDA", "  expected: CUDA 12, as CUDA_VERSION 12.9 says",
        "  found: 13.0"]
