"""Check flashinfer: prebuilt kernels for the device, or all that compiling them on it takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cache.store import Store
from tests.support.cuda import toolkit
from tests.support.elf_factory import make_elf
from tests.support.extensions import extensions
from tests.support.gates import SITE, Gates
from tests.support.wheel_factory import make_wheel

HOME = f"{SITE}/nvidia/cu13"
HEADERS = ("cuda.h", "cuda_runtime.h", "cuda_fp16.h", "cuda_bf16.h", "cuda_fp8.h", "cuda_fp4.h", "cooperative_groups.h",
           "cudaTypedefs.h", "cuda_pipeline.h", "cublas_v2.h", "cublasLt.h", "curand_kernel.h", "nvrtc.h",
           "crt/host_config.h")
LIBRARIES = ("cudart", "cuda", "nvrtc", "cublas", "cublasLt")
EVERY_KERNEL = ("cudart", "cuda")
ENVIRONMENT = {"CUDA_HOME": "{site}/nvidia/cu13", "FLASHINFER_CUDA_ARCH_LIST": "{arch_list}"}


def tool(release: str = "13.0", *archs: str, machine: str = "aarch64") -> bytes:
    text = f"Cuda compilation tools, release {release}, V{release}.88\0" + "".join(
        f"{arch}\0" for arch in archs or ("sm_110a", "sm_121a"))
    return make_elf(machine, kind=2, extra=b"\0" + text.encode())


def whole(machine: str = "aarch64", **odd: bytes) -> dict[str, bytes | str]:
    """A toolkit with link names, ninja and compilers."""
    files: dict[str, bytes | str] = {f"{HOME}/include/{name}": b"" for name in HEADERS}
    files |= {f"{HOME}/{name}": b"x" for name in ("bin/cudafe++", "bin/fatbinary", "nvvm/bin/cicc",
                                                 "nvvm/libdevice/libdevice.10.bc")}
    files |= {f"{HOME}/bin/{name}": odd.get(name, tool(machine=machine)) for name in ("nvcc", "ptxas")}
    files |= {f"{HOME}/lib/lib{name}.so.13": b"x" for name in LIBRARIES}
    files |= {f"{HOME}/lib64/lib{name}.so": f"../lib/lib{name}.so.13" for name in LIBRARIES}
    return files | {"usr/local/bin/ninja": b"x", "usr/bin/gcc": b"x", "usr/bin/c++": "gcc"}


@pytest.fixture
def gates(tmp_path: Path) -> Gates:
    gates = Gates(Store.open(tmp_path / "store"))
    gates.target["device"]["arch_list"] = "11.0a"
    gates.target["image"]["environment"] = dict(ENVIRONMENT)
    gates.files("cuda", whole(), {"nvidia-cuda-nvcc": "13.0.88"})
    gates.files("deps", {f"{SITE}/flashinfer/__init__.py": b""}, {"flashinfer-python": "0.7.0.post1"})
    return gates


def without(gates: Gates, *paths: str, **more: bytes | str) -> None:
    files = {path: content for path, content in whole().items() if path not in paths}
    gates.files("cuda", {**files, **more}, {"nvidia-cuda-nvcc": "13.0.88"})


def environment(gates: Gates, **values: str) -> None:
    gates.target["image"]["environment"] = {**ENVIRONMENT, **values}


def told(gates: Gates, severity: str) -> dict[str, str]:
    return {one.subject: one.message for one in gates.judge("flashinfer").findings if one.severity == severity}


def nothing_wrong(gates: Gates) -> bool:
    return not told(gates, "error") and not told(gates, "warning")


# -- compiling on the device --------------------------------------------------------------------------


@pytest.mark.parametrize(("capability", "arch"), [("11.0", "11.0a"), ("12.1", "12.1a")])
def test_an_image_that_can_compile(gates: Gates, capability: str, arch: str) -> None:
    gates.target["device"] |= {"compute_capability": capability, "arch_list": arch}
    assert nothing_wrong(gates)
    assert told(gates, "info") == {"flashinfer-python": f"the image can compile its kernels, with /{HOME}"}


@pytest.mark.parametrize(("path", "subject"), [
    (f"{HOME}/bin/nvcc", "nvcc"), (f"{HOME}/nvvm/bin/cicc", "nvvm/bin/cicc"), (f"{HOME}/bin/ptxas", "bin/ptxas"),
    (f"{HOME}/include/cublasLt.h", "headers"), ("usr/local/bin/ninja", "ninja"), ("usr/bin/c++", "c++")])
def test_what_is_missing(gates: Gates, path: str, subject: str) -> None:
    without(gates, path)
    error, = gates.judge("flashinfer").errors
    assert error.subject == f"flashinfer-python: {subject}"
    assert path.rpartition("/")[2] in error.message
    assert error.cure


def test_nvcc_looks_for_gcc(gates: Gates) -> None:
    without(gates, "usr/bin/gcc", "usr/bin/c++", **{"usr/bin/c++": b"x"})
    assert list(gates.errors("flashinfer")) == ["flashinfer-python: gcc"]
    environment(gates, CC="/usr/bin/c++")
    assert nothing_wrong(gates)


@pytest.mark.parametrize("library", LIBRARIES)
def test_wheels_of_cuda_have_no_link_names(gates: Gates, library: str) -> None:
    """flashinfer#5064: they have lib/libcudart.so.13, the linker is sent to lib64 and wants libcudart.so."""
    severity = "error" if library in EVERY_KERNEL else "warning"
    without(gates, f"{HOME}/lib64/lib{library}.so")
    message, = (told(gates, "error") | told(gates, "warning")).values()
    assert f"ld: cannot find -l{library} " in message
    without(gates, f"{HOME}/lib64/lib{library}.so", **{f"opt/links/lib{library}.so": f"/{HOME}/lib/lib{library}.so.13"})
    assert list(told(gates, severity)) == [f"flashinfer-python: -l{library}"]
    environment(gates, LIBRARY_PATH="/opt/links")
    assert nothing_wrong(gates)
    environment(gates)
    without(gates, f"{HOME}/lib64/lib{library}.so", **{f"usr/lib/aarch64-linux-gnu/lib{library}.a": b"x"})
    assert nothing_wrong(gates)


def test_link_name_that_leads_to_nothing(gates: Gates) -> None:
    without(gates, f"{HOME}/lib/libcudart.so.13")
    assert list(gates.errors("flashinfer")) == ["flashinfer-python: -lcudart"]


def test_ptxas_that_does_not_know_the_device(gates: Gates) -> None:
    gates.files("cuda", whole(ptxas=tool("12.9", "sm_103a", "sm_121a"), nvcc=tool("12.9")), {})
    found = gates.errors("flashinfer")
    assert "does not know sm_110a" in found["flashinfer-python: ptxas"]
    assert "of CUDA 12.9, the driver's is 13.0" in found["flashinfer-python: nvcc"]


def test_newer_minor_than_the_driver(gates: Gates) -> None:
    gates.files("cuda", whole(nvcc=tool("13.3"), ptxas=tool("13.3")), {})
    assert gates.errors("flashinfer") == {}
    assert set(told(gates, "warning")) == {"flashinfer-python: nvcc", "flashinfer-python: ptxas"}
    gates.target["device"]["cuda"] = "13.3"
    assert nothing_wrong(gates)


def test_nvcc_of_another_machine(gates: Gates) -> None:
    """The compiler of the machine that builds, in the image."""
    gates.files("cuda", whole("x86_64"), {})
    assert "is no nvcc for aarch64" in gates.errors("flashinfer")["flashinfer-python: nvcc"]


def test_nvcc_that_may_not_be_run(gates: Gates, tmp_path: Path) -> None:
    without(gates, f"{HOME}/bin/nvcc")
    gates.layer("torch", make_wheel(tmp_path, "nvcc", "1", files={"nvidia/cu13/bin/nvcc": tool()}))
    assert list(gates.errors("flashinfer")) == ["flashinfer-python: nvcc"]
    gates.layer("torch", make_wheel(tmp_path, "nvcc", "1", files={"nvidia/cu13/bin/nvcc": tool()},
                                    modes={"nvidia/cu13/bin/nvcc": 0o755}))
    assert nothing_wrong(gates)


def test_where_cuda_is(gates: Gates) -> None:
    gates.target["image"]["environment"].pop("CUDA_HOME")
    assert "no nvcc at /usr/local/cuda/bin/nvcc" in gates.errors("flashinfer")["flashinfer-python: nvcc"]
    environment(gates, CUDA_HOME="", CUDA_PATH=f"/{HOME}")
    assert nothing_wrong(gates)
    environment(gates, CUDA_HOME="", PATH=f"/usr/bin:/usr/local/bin:/{HOME}/bin")
    assert nothing_wrong(gates)
    environment(gates, CUDA_HOME="/usr/local/cuda", FLASHINFER_NVCC=f"/{HOME}/bin/nvcc")
    assert "flashinfer-python: headers" in gates.errors("flashinfer")


def test_compiling_is_forbidden(gates: Gates) -> None:
    environment(gates, FLASHINFER_DISABLE_JIT="1")
    assert list(gates.errors("flashinfer")) == ["flashinfer-python: FLASHINFER_DISABLE_JIT"]


def test_older_release_takes_cccl_of_the_toolkit(gates: Gates) -> None:
    gates.files("deps", {f"{SITE}/flashinfer/__init__.py": b""}, {"flashinfer-python": "0.6.8.post1"})
    assert "include lacks cccl/cub/cub.cuh" in gates.errors("flashinfer")["flashinfer-python: headers"]


def test_release_that_nobody_has_looked_at(gates: Gates) -> None:
    gates.files("deps", {f"{SITE}/flashinfer/__init__.py": b""}, {"flashinfer-python": "0.9.0"})
    assert "is not known" in gates.errors("flashinfer")["flashinfer-python"]


@pytest.mark.parametrize("device", [{"compute_capability": "none"}, {}])
def test_nothing_is_asked_without_a_gpu_or_without_flashinfer(gates: Gates, device: dict[str, Any]) -> None:
    without(gates, f"{HOME}/bin/nvcc")
    if not device:
        gates.lock["wheels"] = []
    gates.target["device"] |= device
    assert gates.judge("flashinfer").findings == ()


# -- FLASHINFER_CUDA_ARCH_LIST ------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "severity"), [
    ("11.0a", None), ("11.0", None), ("11.0f", "warning"), ("11.0a 12.1a", "warning"), ("11.0a;12.1a", "error"),
    ("11.0a,12.1a", "error"), ("11.0a  12.1a", "error"), ("11.0a ", "error"), ("", "error"), ("sm_110a", "error"),
    ("11.0+PTX", "error"), ('"11.0a"', "error")])
def test_spelling_of_the_list(gates: Gates, value: str, severity: str | None) -> None:
    environment(gates, FLASHINFER_CUDA_ARCH_LIST=value)
    found = {one.severity for one in gates.judge("flashinfer").findings if one.subject == "FLASHINFER_CUDA_ARCH_LIST"}
    assert found == ({severity} if severity else set())


def test_family_on_12(gates: Gates) -> None:
    gates.target["device"] |= {"compute_capability": "12.1", "arch_list": "12.1a"}
    environment(gates, FLASHINFER_CUDA_ARCH_LIST="12.0")  # which becomes 12.0f
    assert "kernels are compiled for 12.0f" in told(gates, "warning")["FLASHINFER_CUDA_ARCH_LIST"]


def test_list_that_is_not_set(gates: Gates) -> None:
    gates.target["image"]["environment"].pop("FLASHINFER_CUDA_ARCH_LIST")
    assert list(told(gates, "warning")) == ["FLASHINFER_CUDA_ARCH_LIST"]


# -- flashinfer-jit-cache -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return extensions(toolkit(), tmp_path_factory.mktemp("modules"),
                      {"thor": (("sm_110a",), ("sm_110",)), "gb10": (("sm_120f",), ("sm_120f",))})


def cached(gates: Gates, module: bytes, **versions: str) -> None:
    names = {name.replace("_", "-"): version for name, version in versions.items()} or {
        "flashinfer-jit-cache": "0.7.0.post1+cu130"}
    gates.files("vllm", {f"{SITE}/flashinfer_jit_cache/jit_cache/page/page.so": module}, names)


def test_prebuilt_for_the_device(gates: Gates, modules: dict[str, bytes]) -> None:
    """What it lacks is compiled all the same: that the image cannot is told."""
    cached(gates, modules["thor"])
    without(gates, f"{HOME}/bin/nvcc")
    assert gates.errors("flashinfer") == {}
    assert told(gates, "info")["flashinfer-jit-cache"].startswith("1 of 1 prebuilt modules have code")
    assert "only kernels of flashinfer-jit-cache will run" in told(gates, "warning")["flashinfer-python: nvcc"]


def test_prebuilt_for_another_device(gates: Gates, modules: dict[str, bytes]) -> None:
    cached(gates, modules["gb10"])
    assert gates.errors("flashinfer") == {}
    assert "0 of 1 prebuilt modules have code for compute capability 11.0, all are for sm_120f" in told(
        gates, "warning")["flashinfer-jit-cache"]
    without(gates, f"{HOME}/bin/nvcc")
    assert list(gates.errors("flashinfer")) == ["flashinfer-python: nvcc"]
    gates.target["device"] |= {"compute_capability": "12.1", "arch_list": "12.1a"}
    assert gates.errors("flashinfer") == {}


def test_shim_without_a_provider(gates: Gates) -> None:
    gates.files("vllm", {f"{SITE}/flashinfer_jit_cache/__init__.py": b""},
                {"flashinfer-jit-cache": "0.7.0.post1+cu130"})
    assert "0 of 0 prebuilt modules" in told(gates, "warning")["flashinfer-jit-cache"]


@pytest.mark.parametrize(("version", "severity"), [("0.7.0.post1+cu130", None), ("0.7.0.post1+cu129", "error"),
                                                   ("0.7.0.post1+cu134", "warning"), ("0.7.0.post1", None)])
def test_cuda_of_the_cache(gates: Gates, modules: dict[str, bytes], version: str, severity: str | None) -> None:
    cached(gates, modules["thor"], flashinfer_jit_cache=version)
    found = {one.severity for one in gates.judge("flashinfer").findings if one.subject == "flashinfer-jit-cache: CUDA"}
    assert found == ({severity} if severity else set())


def test_provider_of_another_build(gates: Gates, modules: dict[str, bytes]) -> None:
    cached(gates, modules["thor"], flashinfer_jit_cache="0.7.0.post1+cu130",
           flashinfer_jit_cache_sm110a="0.7.0.post1+cu129")
    assert set(gates.errors("flashinfer")) == {"flashinfer-jit-cache-sm110a: CUDA",
                                               "flashinfer-jit-cache-sm110a: version"}
