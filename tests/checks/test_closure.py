"""Checks `closure`, `abi` and `cuda-set` on real libraries: each fault, and the same image without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cache.build import BuildContext
from cache.store import Store
from checks.verdict import Finding
from oci.base import build as build_base
from tests.support.elf_factory import make_elf
from tests.support.gates import SITE, Gates
from tests.support.shared_objects import MACHINE, PLATFORM, Compiler
from tests.support.tarballs import Member, make_tar, packed

LIB = f"usr/lib/{MACHINE}-linux-gnu"
EXTENSION = f"{SITE}/vllm/_C_stable_libtorch.abi3.so"
TORCH = f"{SITE}/torch/lib"
MESSAGE_LOGGER = "_ZN3c1013MessageLoggerC1EPKciib"


@pytest.fixture
def compiler(tmp_path: Path) -> Compiler:
    return Compiler(tmp_path / "objects")


@pytest.fixture
def gates(tmp_path: Path) -> Gates:
    found = Gates(Store.open(tmp_path / "store"))
    found.target["platform"] = PLATFORM
    return found


def torch_files(compiler: Compiler) -> dict[str, bytes | str]:
    """A torch that loads as the real one does: `_C` by RUNPATH, its libraries by theirs."""
    near = "-Wl,--enable-new-dtags,-rpath,$ORIGIN"
    cudart = compiler.library("libcudart.so.13", "int cudaMalloc(void) { return 0; }")
    c10 = compiler.library("libc10.so", f"int {MESSAGE_LOGGER}(void) {{ return 0; }}")
    cpu = compiler.library("libtorch_cpu.so", "int aoti_torch_delete(void) { return 0; }", against=["libc10.so"],
                           flags=[near])
    deps = compiler.library("libtorch_global_deps.so", against=["libcudart.so.13"],
                            flags=["-Wl,--enable-new-dtags,-rpath,$ORIGIN/../../nvidia/cu13/lib"])
    module = compiler.library("_C.so", "int PyInit__C(void) { return 0; }", against=["libtorch_cpu.so"],
                              flags=["-Wl,--enable-new-dtags,-rpath,$ORIGIN/lib"])
    return {f"{TORCH}/libc10.so": c10, f"{TORCH}/libtorch_cpu.so": cpu, f"{TORCH}/libtorch_global_deps.so": deps,
            f"{SITE}/torch/_C.so": module, f"{SITE}/nvidia/cu13/lib/libcudart.so.13": cudart}


def base_files(compiler: Compiler) -> dict[str, bytes | str]:
    libc = compiler.library("libc.so.6", "int puts(void) { return 0; }",
                            versions="GLIBC_2.2.5 { global: puts; local: *; }; GLIBC_2.34 { } GLIBC_2.2.5;")
    python = compiler.program("python3.11", "int PyModule_Create2(void) { return 0; } void _start(void) {}",
                              against=["libc.so.6"])
    return {f"{LIB}/libc.so.6": libc, "usr/bin/python3.11": python, "lib": "usr/lib", "etc/ld.so.conf":
            b"include /etc/ld.so.conf.d/*.conf\n", "etc/ld.so.conf.d/a.conf": f"# ours\n/opt/lib\n/{LIB}\n".encode()}


def vllm(compiler: Compiler, source: str = "", **options: Any) -> bytes:
    """An extension that names torch's libraries without a path to them, as vLLM's wheels do."""
    source = source or f"int {MESSAGE_LOGGER}(void); int aoti_torch_delete(void); int PyModule_Create2(void);" \
                       f"int f(void) {{ return {MESSAGE_LOGGER}() + aoti_torch_delete() + PyModule_Create2(); }}"
    return compiler.library("_C_stable_libtorch.abi3.so", source,
                            **{"against": ["libtorch_cpu.so", "libcudart.so.13", "libc.so.6"], **options})


@pytest.fixture
def image(gates: Gates, compiler: Compiler) -> Gates:
    """A good image."""
    gates.files("base", base_files(compiler))
    gates.files("torch", torch_files(compiler), {"torch": "2.13.0"})
    gates.files("vllm", {EXTENSION: vllm(compiler)}, {"vllm": "0.32.0"})
    return gates


def findings(gates: Gates, check: str) -> dict[str, Finding]:
    return {finding.subject: finding for finding in gates.judge(check).findings if finding.severity != "info"}


ALL = ("closure", "abi", "cuda-set")


@pytest.mark.parametrize("check", ALL)
def test_good_image_is_passed_in_silence(image: Gates, check: str) -> None:
    found = gates_without_dlopen(image, check)
    assert found == {}


def gates_without_dlopen(gates: Gates, check: str) -> dict[str, Finding]:
    return {subject: finding for subject, finding in findings(gates, check).items() if not subject.startswith("dlopen")}


# -- closure ----------------------------------------------------------------------------------------


def test_missing_library(image: Gates, compiler: Compiler) -> None:
    compiler.library("libcudart.so.12")
    image.files("vllm", {EXTENSION: vllm(compiler, against=["libtorch_cpu.so", "libcudart.so.12"])},
                {"vllm": "0.32.0"})
    found = gates_without_dlopen(image, "closure")
    assert list(found) == ["vllm/_C_stable_libtorch.abi3.so: libcudart.so.12"]
    finding, = found.values()
    assert "cannot open shared object file: nothing in the image answers libcudart.so.12" in finding.message
    assert finding.severity == "error"


def test_library_that_lies_off_the_search_path_fails_a_required_extension(image: Gates, compiler: Compiler) -> None:
    twelve = compiler.library("libcudart.so.12")
    files = {EXTENSION: vllm(compiler, against=["libtorch_cpu.so", "libcudart.so.12"]),
             f"{SITE}/nvidia/cuda_runtime/lib/libcudart.so.12": twelve}
    image.files("vllm", files, {"vllm": "0.32.0"})
    assert "off the search path" in gates_without_dlopen(image, "closure")[
        "vllm/_C_stable_libtorch.abi3.so: libcudart.so.12"].message
    image.files("vllm", {**files, "opt/lib/libcudart.so.12": twelve}, {"vllm": "0.32.0"})  # /etc/ld.so.conf.d
    assert gates_without_dlopen(image, "closure") == {}


def test_other_files_are_only_told_about_it(image: Gates, compiler: Compiler) -> None:
    ffi = compiler.library("libtvm_ffi.so")
    image.files("deps", {f"{SITE}/xgrammar/bindings.so": compiler.library("bindings.so", against=["libtvm_ffi.so"]),
                         f"{SITE}/tvm_ffi/lib/libtvm_ffi.so": ffi})
    assert gates_without_dlopen(image, "closure") == {}
    notes = [finding.subject for finding in image.judge("closure").findings if finding.severity == "info"]
    assert notes == ["xgrammar/bindings.so: libtvm_ffi.so"]


def test_search_path_of_the_image(image: Gates, compiler: Compiler) -> None:
    twelve = compiler.library("libother.so")
    image.files("deps", {f"{SITE}/a/a.so": compiler.library("a.so", against=["libother.so"]),
                         "opt/private/libother.so": twelve})
    assert [finding.subject for finding in image.judge("closure").findings if finding.severity == "info"] == [
        "a/a.so: libother.so"]
    image.target["image"]["environment"] = {"LD_LIBRARY_PATH": "/opt/private:{site}/x"}
    assert [finding.subject for finding in image.judge("closure").findings if finding.severity == "info"] == []


RPATH = "-Wl,--disable-new-dtags,-rpath,$ORIGIN/../x.libs"
RUNPATH = "-Wl,--enable-new-dtags,-rpath,$ORIGIN/../x.libs"


@pytest.mark.parametrize(("flag", "found"), [
    (RPATH, True), (RUNPATH, True),
    ("-Wl,--enable-new-dtags,-rpath,/x.libs", False), ("-Wl,--enable-new-dtags,-rpath,../x.libs", False)])
def test_rpath_and_runpath(image: Gates, compiler: Compiler, flag: str, found: bool) -> None:
    """A relative entry counts from the working directory, which nobody knows."""
    image.files("deps", {f"{SITE}/x.libs/libinner-0123abcd.so": compiler.library("libinner-0123abcd.so"),
                         f"{SITE}/x/m.so": compiler.library("m.so", against=["libinner-0123abcd.so"], flags=[flag])})
    notes = [finding.subject for finding in image.judge("closure").findings if finding.severity == "info"]
    assert (notes == []) is found


def test_vendored_libraries_find_each_other_through_who_loads_them(image: Gates, compiler: Compiler) -> None:
    """As auditwheel leaves them: only the module has an RPATH, the libraries beside each other have none."""
    inner = compiler.library("libinner-0123abcd.so", "int inner(void) { return 0; }")
    outer = compiler.library("libouter-0123abcd.so", "int inner(void); int outer(void) { return inner(); }",
                             against=["libinner-0123abcd.so"])
    module = compiler.library("m.so", "int outer(void); int f(void) { return outer(); }",
                              against=["libouter-0123abcd.so"], flags=[RPATH])
    files = {f"{SITE}/x.libs/libinner-0123abcd.so": inner, f"{SITE}/x.libs/libouter-0123abcd.so": outer}
    image.files("deps", {**files, f"{SITE}/x/m.so": module})
    assert [image.judge(check).findings for check in ("closure", "abi")][1] == ()
    assert gates_without_dlopen(image, "closure") == {}
    # A RUNPATH does not reach the libraries of libraries: the same tree then fails on the device.
    module = compiler.library("m.so", "int outer(void); int f(void) { return outer(); }",
                              against=["libouter-0123abcd.so"], flags=[RUNPATH])
    image.files("deps", {**files, f"{SITE}/x/m.so": module})
    assert [finding.subject for finding in image.judge("closure").findings if finding.severity == "info"] == [
        "x.libs/libouter-0123abcd.so: libinner-0123abcd.so"]


def test_driver_libraries_come_from_the_device(image: Gates, compiler: Compiler) -> None:
    compiler.library("libcuda.so.1", "int cuInit(void) { return 0; }")
    compiler.library("libvendor.so.2")
    own = vllm(compiler, "int cuInit(void); int f(void) { return cuInit(); }",
               against=["libcuda.so.1", "libvendor.so.2"])
    image.files("vllm", {EXTENSION: own}, {"vllm": "0.32.0"})
    assert list(gates_without_dlopen(image, "closure")) == ["vllm/_C_stable_libtorch.abi3.so: libvendor.so.2"]
    image.target["device"]["driver_libraries"] = ["libvendor.so.*"]
    assert gates_without_dlopen(image, "closure") == {}
    assert findings(image, "abi") == {}


def test_wrong_machine_answers_nothing(image: Gates, compiler: Compiler) -> None:
    """The loader passes over a library for another machine and goes on."""
    other = "aarch64" if MACHINE == "x86_64" else "x86_64"
    own = compiler.library("a.so", against=["libc.so.6"])
    image.files("deps", {f"{SITE}/a.so": own, "opt/lib/libc.so.6": make_elf(other, soname="libc.so.6")})
    assert gates_without_dlopen(image, "closure") == {}
    compiler.library("libfar.so.1")
    image.files("deps", {f"{SITE}/a.so": compiler.library("a.so", against=["libfar.so.1"]),
                         "opt/lib/libfar.so.1": make_elf(other, soname="libfar.so.1")})
    assert sorted(gates_without_dlopen(image, "closure")) == ["/opt/lib/libfar.so.1: machine", "a.so: libfar.so.1"]


def test_library_for_another_machine_is_a_fault(image: Gates, compiler: Compiler) -> None:
    """Unless one for this machine is there too, as in a wheel for several."""
    other = make_elf("aarch64" if MACHINE == "x86_64" else "x86_64", soname="libdual.so")
    image.files("deps", {f"{SITE}/foo/_c.abi3.so": other})
    found, = gates_without_dlopen(image, "closure").values()
    assert found.subject == "foo/_c.abi3.so: machine"
    assert found.severity == "error"
    image.files("deps", {f"{SITE}/foo/other/libdual.so": other, f"{SITE}/foo/this/libdual.so":
                         compiler.library("libdual.so")})
    assert gates_without_dlopen(image, "closure") == {}


def test_newer_glibc_than_the_base_has(image: Gates, compiler: Compiler) -> None:
    """LocalAI 11059: libnuma bundled from a newer base."""
    compiler.library("libc.so.6", "int strlcpy(void) { return 0; }",
                     versions="GLIBC_2.2.5 { local: *; }; GLIBC_2.38 { global: strlcpy; } GLIBC_2.2.5;")
    numa = compiler.library("libnuma.so.1", "int strlcpy(void); int f(void) { return strlcpy(); }",
                            against=["libc.so.6"])
    image.files("deps", {f"{LIB}/libnuma.so.1": numa})
    found = findings(image, "closure")[f"/{LIB}/libnuma.so.1: GLIBC_2.38"]
    assert f"/{LIB}/libc.so.6: version `GLIBC_2.38' not found" in found.message
    assert found.severity == "error"


def test_library_that_is_opened_by_name(image: Gates, compiler: Compiler) -> None:
    found = findings(image, "closure")["dlopen: libnuma.so.1"]
    assert "init_cpu_threads_env" in found.message
    assert "libnuma1" in found.cure
    image.files("deps", {f"{LIB}/libnuma.so.1.0.0": compiler.library("libnuma.so.1"),
                         f"{LIB}/libnuma.so.1": "libnuma.so.1.0.0"})
    assert "dlopen: libnuma.so.1" not in findings(image, "closure")


def test_stub_of_the_driver_on_the_search_path(image: Gates, compiler: Compiler) -> None:
    stub = compiler.library("libcuda.so.1", "int cuInit(void) { return 34; }")
    image.files("deps", {"usr/local/cuda/lib64/stubs/libcuda.so.1": stub})
    assert gates_without_dlopen(image, "closure") == {}  # for the linker, off the loader's path
    image.target["image"]["environment"] = {"LD_LIBRARY_PATH": "/usr/local/cuda/lib64/stubs"}
    assert list(gates_without_dlopen(image, "closure")) == ["search path: usr/local/cuda/lib64/stubs"]
    image.target["image"]["environment"] = {}
    image.files("deps", {f"{LIB}/libcuda.so.1": stub})
    assert list(gates_without_dlopen(image, "closure")) == [f"stub: /{LIB}/libcuda.so.1"]


def test_driver_for_forward_compatibility(image: Gates, compiler: Compiler) -> None:
    """NVIDIA's base images bring one, off the search path."""
    driver = compiler.library("libcuda.so.1", "int cuInit(void) { return 0; }")
    image.files("deps", {"usr/local/cuda": "cuda-13.0", "usr/local/cuda-13.0/compat/libcuda.so.580.95.05": driver,
                         "usr/local/cuda-13.0/compat/libcuda.so.1": "libcuda.so.580.95.05"})
    assert gates_without_dlopen(image, "closure") == {}
    image.target["image"]["environment"] = {"LD_LIBRARY_PATH": "/usr/local/cuda/compat"}
    found, = gates_without_dlopen(image, "closure").values()
    assert found.subject == "stub: /usr/local/cuda-13.0/compat/libcuda.so.580.95.05"
    assert "error 804" in found.message
    assert "LD_LIBRARY_PATH" in found.cure


def test_host_has_a_newer_glibc(image: Gates) -> None:
    image.target["device"]["host"] = {"glibc": "2.39"}
    assert gates_without_dlopen(image, "closure")["glibc: host"].severity == "error"
    image.target["device"]["host"] = {"glibc": "2.36"}
    assert gates_without_dlopen(image, "closure") == {}


def test_files_that_need_not_load(image: Gates, compiler: Compiler) -> None:
    for name in ("libavutil.so.58", "libavutil.so.60"):
        compiler.library(name)
    cores = {f"{SITE}/torchcodec/libtorchcodec_core{number}.so":
             compiler.library(f"libtorchcodec_core{number}.so", "int av(void); int f(void) { return av(); }",
                              against=[f"libavutil.so.{52 + number}"]) for number in (6, 8)}
    image.files("deps", cores)
    found = gates_without_dlopen(image, "closure")
    assert list(found) == ["feature: torchcodec (audio and video input)"]
    assert found["feature: torchcodec (audio and video input)"].severity == "warning"
    assert findings(image, "abi") == {}
    avutil = compiler.library("libavutil.so.58", "int av(void) { return 0; }")
    image.files("deps", {**cores, f"{LIB}/libavutil.so.58": avutil})
    assert gates_without_dlopen(image, "closure") == {}


def test_damaged_library(image: Gates, compiler: Compiler) -> None:
    data = compiler.library("libother.so", "int f(void) { return 0; }")
    image.files("deps", {f"{SITE}/libother.so": data[:700]})
    assert list(gates_without_dlopen(image, "closure")) == ["libother.so: damaged"]


# -- abi --------------------------------------------------------------------------------------------


def test_vllm_for_another_torch(image: Gates, compiler: Compiler) -> None:
    """LocalAI PR 9950: vLLM compiled against torch 2.10, torch 2.11 in the image."""
    compiler.library("libc10.so", "int other(void) { return 0; }")
    files = torch_files(compiler)
    files[f"{TORCH}/libc10.so"] = compiler.library("libc10.so", "int other(void) { return 0; }")
    image.files("torch", files, {"torch": "2.11.0"})
    found, = findings(image, "abi").values()
    assert found.subject == "vllm/_C_stable_libtorch.abi3.so"
    assert f"undefined symbol: {MESSAGE_LOGGER}" in found.message
    assert "compiled against another torch than 2.11.0" in found.message
    assert found.severity == "error"


def test_symbol_that_the_build_forgot(image: Gates, compiler: Compiler) -> None:
    """vllm 28199: the macro is on, the file that defines it was not built."""
    image.files("vllm", {EXTENSION: vllm(compiler, "int _Z20cutlass_moe_mm_sm100RN2at6TensorE(void);"
                                                   "int f(void) { return _Z20cutlass_moe_mm_sm100RN2at6TensorE(); }")},
                {"vllm": "0.32.0"})
    found, = findings(image, "abi").values()
    assert "undefined symbol: _Z20cutlass_moe_mm_sm100RN2at6TensorE: no library of the image has it" in found.message
    assert "another torch" not in found.message


def test_weak_symbols_may_be_missing(image: Gates, compiler: Compiler) -> None:
    image.files("vllm", {EXTENSION: vllm(compiler, "int maybe(void) __attribute__((weak));"
                                                   "int f(void) { return maybe ? maybe() : 0; }")}, {"vllm": "0.32.0"})
    assert findings(image, "abi") == {}


def test_symbol_in_another_version(image: Gates, compiler: Compiler) -> None:
    old = compiler.library("libssl.so.3", "int SSL_new(void) { return 0; }", versions="OPENSSL_1 { global: SSL_new; };")
    compiler.library("libssl.so.3", "int SSL_new(void) { return 0; }", versions="OPENSSL_3 { global: SSL_new; };")
    user = compiler.library("user.so", "int SSL_new(void); int f(void) { return SSL_new(); }", against=["libssl.so.3"])
    image.files("vllm", {EXTENSION: user, f"{LIB}/libssl.so.3": old}, {"vllm": "0.32.0"})
    found, = findings(image, "abi").values()
    assert "undefined symbol: SSL_new, version OPENSSL_3" in found.message
    assert "in another version" in found.message


def test_plugin_of_a_program_is_no_fault(image: Gates, compiler: Compiler) -> None:
    image.files("deps", {"usr/bin/perl": compiler.program("perl", "int Perl_croak(void) { return 0; }"
                                                                  "void _start(void) {}"),
                         f"{LIB}/perl/Cwd.so": compiler.library("Cwd.so", "int Perl_croak(void);"
                                                                          "int f(void) { return Perl_croak(); }")})
    assert findings(image, "abi") == {}
    assert [finding.subject for finding in image.judge("abi").findings] == ["inside: /usr/bin/perl"]


def test_required_extension_may_not_rely_on_what_nobody_loads(image: Gates, compiler: Compiler) -> None:
    image.files("deps", {f"{SITE}/far/libfar.so": compiler.library("libfar.so", "int far_away(void) { return 0; }")})
    image.files("vllm", {EXTENSION: vllm(compiler, "int far_away(void); int f(void) { return far_away(); }",
                                         against=[])}, {"vllm": "0.32.0"})
    found, = findings(image, "abi").values()
    assert "/usr/local/lib/python3.11/dist-packages/far/libfar.so" in found.message


# -- cuda-set ---------------------------------------------------------------------------------------


def test_two_cuda_runtimes_in_one_process(image: Gates, compiler: Compiler) -> None:
    twelve = compiler.library("libcudart.so.12")
    image.files("vllm", {EXTENSION: vllm(compiler, against=["libtorch_cpu.so", "libcudart.so.12"]),
                         "opt/lib/libcudart.so.12": twelve}, {"vllm": "0.32.0"})
    found = findings(image, "cuda-set")["libcudart"]
    assert "12 (/opt/lib/libcudart.so.12) and 13 (" in found.message


def test_private_copy_of_the_runtime_is_reported(image: Gates, compiler: Compiler) -> None:
    image.files("deps", {"opt/x.libs/libcudart-a647c843.so.12.6.77": compiler.library("libcudart-a647c843.so.12.6.77")})
    assert findings(image, "cuda-set") == {}
    assert [finding.subject for finding in image.judge("cuda-set").findings] == [
        "libcudart: /opt/x.libs/libcudart-a647c843.so.12.6.77"]


PARTS = ("", "_adv", "_cnn", "_ops", "_graph", "_heuristic", "_engines_precompiled", "_engines_runtime_compiled")


def cudnn(compiler: Compiler, directory: str = f"{SITE}/nvidia/cudnn/lib",
          flags: tuple[str, ...] = ()) -> dict[str, bytes | str]:
    return {f"{directory}/libcudnn{part}.so.9":
            compiler.library(f"libcudnn{part}.so.9", f"int v{len(directory)};", flags=flags) for part in PARTS}


def test_whole_cudnn(image: Gates, compiler: Compiler) -> None:
    image.files("cuda", cudnn(compiler))
    assert findings(image, "cuda-set") == {}


@pytest.mark.parametrize("part", PARTS[1:])
def test_cudnn_without_a_part(image: Gates, compiler: Compiler, part: str) -> None:
    files = cudnn(compiler)
    del files[f"{SITE}/nvidia/cudnn/lib/libcudnn{part}.so.9"]
    image.files("cuda", files)
    found, = findings(image, "cuda-set").values()
    assert found.subject == f"libcudnn: libcudnn{part}"
    assert "CUDNN_STATUS_SUBLIBRARY_VERSION_MISMATCH" in found.message


def test_second_cudnn(image: Gates, compiler: Compiler) -> None:
    """LocalAI 10905: one part from the wheel, the others from the system."""
    other = compiler.library("libcudnn_ops.so.9", "int other;")
    image.files("cuda", {**cudnn(compiler), f"{LIB}/libcudnn_ops.so.9": other})
    assert list(findings(image, "cuda-set")) == ["libcudnn: libcudnn_ops"]


def test_two_whole_cudnns(image: Gates, compiler: Compiler) -> None:
    """A base image's beside that of the wheels, which look for their parts beside themselves first."""
    near = ("-Wl,--enable-new-dtags,-rpath,$ORIGIN",)
    files = {**cudnn(compiler, flags=near), **cudnn(compiler, LIB)}
    image.files("cuda", files)
    assert {name: found.severity for name, found in findings(image, "cuda-set").items()} == {"libcudnn": "warning"}
    image.target["image"]["environment"]["LD_LIBRARY_PATH"] = f"/{LIB}"  # goes before RUNPATH
    assert {name: found.severity for name, found in findings(image, "cuda-set").items()} == {
        f"libcudnn: libcudnn{part}": "error" for part in PARTS[1:]}
    image.target["image"]["environment"] = {}
    image.files("cuda", {**cudnn(compiler), **cudnn(compiler, LIB)})  # these do not
    assert "libcudnn: libcudnn_ops" in findings(image, "cuda-set")


def test_cuda_minors(image: Gates) -> None:
    tools = {"nvidia-cuda-nvcc": "13.0.88", "nvidia-cuda-runtime": "13.0.96", "nvidia-nvvm": "13.0.88"}
    image.files("cuda", {}, tools)
    assert findings(image, "cuda-set") == {}
    image.files("cuda", {}, {**tools, "nvidia-cuda-nvcc": "13.5.37"})
    found, = findings(image, "cuda-set").values()
    assert found.subject == "nvidia-cuda-nvcc 13.5.37"
    assert "cudaErrorUnsupportedPtxVersion" in found.message
    assert "13.0.*" in found.cure


def test_cuda_12_names_its_wheels_by_the_major(image: Gates) -> None:
    image.target["device"]["cuda"] = "12.8"
    tools = {"nvidia-cuda-nvcc-cu12": "12.8.93", "nvidia-cuda-runtime-cu12": "12.8.90"}
    image.files("cuda", {}, tools)
    assert findings(image, "cuda-set") == {}
    image.files("cuda", {}, {**tools, "nvidia-cuda-nvcc-cu12": "12.9.86"})
    assert "12.8.*" in findings(image, "cuda-set")["nvidia-cuda-nvcc-cu12 12.9.86"].cure
    image.files("cuda", {}, {"nvidia-cuda-runtime-cu12": "12.9.79"})
    assert list(findings(image, "cuda-set")) == ["nvidia-cuda-runtime-cu12 12.9.79"]
    image.target["device"]["cuda"] = "13.0"  # beside a set for 13, each by itself
    image.files("cuda", {}, {**tools, "nvidia-cuda-nvcc": "13.0.88", "nvidia-cuda-nvrtc-cu12": "12.8.93"})
    assert findings(image, "cuda-set") == {}


def test_runtime_newer_than_the_driver(image: Gates) -> None:
    image.files("cuda", {}, {"nvidia-cuda-runtime": "13.3.1"})
    assert list(findings(image, "cuda-set")) == ["nvidia-cuda-runtime 13.3.1"]
    image.target["device"]["cuda"] = "13.3"
    assert findings(image, "cuda-set") == {}


# -- on a base image from a registry ------------------------------------------------------------------


def on_base(gates: Gates, *layers: tuple[list[Member], str]) -> None:
    """The lower layers as a registry holds them: compressed."""
    listed, inputs = [], {}
    for number, (members, how) in enumerate(layers):
        data, kind, diff_id = packed(make_tar(members, executable=True), how)
        digest = gates.store.put(data).digest
        inputs[f"base/{number:02}"] = digest
        listed.append({"media_type": kind, "diff_id": diff_id, "digest": digest})
    outputs = build_base(BuildContext(gates.store, {"layers": listed}, inputs, {"os": "linux"}))
    gates.outputs = {name: digest for name, digest in gates.outputs.items() if not name.startswith("base/")}
    gates.outputs.update({f"base-facts/{name}": blob.digest for name, blob in outputs.items()})
    gates.lock["base"] = {"kind": "image", "layers": listed, "config": {"environment": {}}}


def test_libraries_of_a_base_image(image: Gates, compiler: Compiler) -> None:
    files = base_files(compiler)
    libc, python = files[f"{LIB}/libc.so.6"], files["usr/bin/python3.11"]
    assert isinstance(libc, bytes)
    assert isinstance(python, bytes)
    lower: list[Member] = [("lib", "usr/lib"), ("etc/ld.so.conf", b"/opt/lib\n"),
                           ("opt/lib/libcudart.so.12", b"not yet"),
                           ("opt/lib/libgone.so.1", compiler.library("libgone.so.1"))]
    upper: list[Member] = [(f"lib/{MACHINE}-linux-gnu/libc.so.6", libc), ("usr/bin/python3.11", python),
                           ("opt/lib/.wh.libgone.so.1", b""),
                           ("opt/lib/libcudart.so.12", compiler.library("libcudart.so.12"))]
    on_base(image, (lower, "gzip"), (upper, "zstd"))
    for check in ALL:
        assert gates_without_dlopen(image, check) == {}, check
    # What only the base has counts, with its versions; what an upper layer of it hid does not.
    image.files("vllm", {EXTENSION: vllm(compiler, against=["libtorch_cpu.so", "libcudart.so.12", "libgone.so.1"])},
                {"vllm": "0.32.0"})
    assert list(gates_without_dlopen(image, "closure")) == ["vllm/_C_stable_libtorch.abi3.so: libgone.so.1"]
    compiler.library("libc.so.6", "int strlcpy(void) { return 0; }",
                     versions="GLIBC_2.2.5 { local: *; }; GLIBC_2.38 { global: strlcpy; } GLIBC_2.2.5;")
    newer = vllm(compiler, "int strlcpy(void); int f(void) { return strlcpy(); }", against=["libc.so.6"])
    image.files("vllm", {EXTENSION: newer}, {"vllm": "0.32.0"})
    assert "GLIBC_2.38" in next(iter(gates_without_dlopen(image, "closure")))
    assert "strlcpy, version GLIBC_2.38" in next(iter(findings(image, "abi").values())).message


def test_environment_of_a_base_image_is_inherited(image: Gates, compiler: Compiler) -> None:
    files = base_files(compiler)
    members: list[Member] = [(path, content) for path, content in files.items() if path != "lib"]
    on_base(image, (members, "gzip"))
    stub: dict[str, bytes | str] = {"usr/local/cuda/stubs/libcuda.so.1": compiler.library("libcuda.so.1")}
    image.files("deps", stub)
    assert gates_without_dlopen(image, "closure") == {}
    image.lock["base"]["config"]["environment"] = {"LD_LIBRARY_PATH": "/usr/local/cuda/stubs"}
    assert list(gates_without_dlopen(image, "closure")) == ["search path: usr/local/cuda/stubs"]
