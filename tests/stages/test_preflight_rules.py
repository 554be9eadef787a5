"""The rules of preflight over what is known of wheels, as literals: each bad candidate, and its good twin."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from checks import torch_abi, vllm_wheels
from checks.torch_cuda import LIBRARY
from stages.candidate import Candidate, CandidateWheel, Library
from stages.lockfile import LockedFile
from stages.preflight_rules import Foreseen, judge

MACHINE = "aarch64"
SITE = "usr/local/lib/python3.11/dist-packages"
CUDA = b"cuda: Optional[str] = '13.0'\n"
NVIDIA = "nvidia-cublas==13.1; platform_system == 'Linux'"
FOR_X86 = "nvidia-cublas-cu12==12.8; platform_machine == 'x86_64'"
MESSAGE_LOGGER = "_ZN3c1013MessageLoggerC1EPKciib"


def target(capability: str = "11.0", cuda: str = "13.0", **more: Any) -> dict[str, Any]:
    return {"platform": "linux/arm64", "device": {"cuda": cuda, "compute_capability": capability, "memory": "discrete"},
            "python": {"version": "3.11", "glibc": "2.36"}, "image": {"environment": {}},
            "wheels": {"requirements": [], "overrides": []}, **more}


def wheel(name: str, version: str, requires: Iterable[str] = (), *, tag: str = "py3-none-any", sha256: str = "",
          file: str = "", **more: Any) -> CandidateWheel:
    file = file or f"{name.replace('-', '_')}-{version}-{tag}.whl"
    package = {"name": name, "version": version, "requires_dist": list(requires), "requires_python": "",
               "stage": "lock", "file": file}
    return CandidateWheel(LockedFile(name, version, file, 1, sha256 or "0" * 64, "default"), package, **more)


def torch(version: str = "2.13.0", requires: Iterable[str] = (NVIDIA,), members: Mapping[str, int] | None = None,
          **more: Any) -> CandidateWheel:
    """As a CUDA build; of a known version with the sha256 that this version is known by."""
    build = torch_abi.known(MACHINE).build(version)
    more.setdefault("sha256", next(iter(build.wheels)) if build else "")
    more.setdefault("version_py", CUDA)
    return wheel("torch", version, requires, tag="cp311-cp311-manylinux_2_28_aarch64",
                 members={LIBRARY: 1} if members is None else members, **more)


def vllm(version: str = "0.32.0", requires: Iterable[str] = (), **more: Any) -> CandidateWheel:
    """One of the known wheels, as it is."""
    known = next(item for item in vllm_wheels.known(MACHINE).values() if item.version == version)
    more.setdefault("members", dict.fromkeys(known.extensions, 1))
    more.setdefault("libraries", {path: Library(MACHINE, item.undefined) for path, item in known.extensions.items()})
    more.setdefault("sha256", known.sha256)
    return wheel("vllm", version, requires, file=known.file, **more)


def judged(*wheels: CandidateWheel, given: dict[str, Any] | None = None,
           strange: tuple[LockedFile, ...] = (), **more: Any) -> list[Foreseen]:
    listed = sorted(wheels, key=lambda item: item.locked.name)
    lock = {"python": {"version": "3.11", "glibc": "2.36", "site": SITE, "executable": "/usr/bin/python3.11"},
            "base": {"kind": "debian"}, "files": [], "wheels": [item.locked.to_json() for item in listed], **more}
    installed = [*listed, *(wheel(name, "13.1") for name in ("nvidia-cublas", "nvidia-cublas-cu12"))]
    return judge(Candidate(MACHINE, {item.locked.name: item for item in installed}, strange), given or target(), lock)


def errors(found: Iterable[Foreseen], *checks: str) -> dict[str, str]:
    """Subject to message of the errors of these checks; of all but advisories without any."""
    return {one.finding.subject: one.finding.message for one in found if one.finding.severity == "error"
            and (one.check in checks if checks else one.check != "advisories")}


def moves(found: Iterable[Foreseen], check: str) -> set[str]:
    return {f"{move.name} {move.old} -> {move.new}" for one in found if one.check == check for move in one.moves}


def test_the_shipped_pair_is_let_pass() -> None:
    found = judged(vllm(requires=["torch==2.13.0"]), torch())
    assert errors(found) == {}
    assert {one.check for one in found} == {"device-code"}  # FlashAttention 2 as PTX: told, not refused


# -- torch ----------------------------------------------------------------------------------------


def test_cpu_torch_is_found_as_such_and_not_as_missing_symbols() -> None:
    """PyPI's torch 2.10.0 for aarch64: no sign in its name, no libtorch_cuda.so, NVIDIA's packages for x86-64 only."""
    found = judged(vllm("0.26.0", ["torch==2.11.0"]), torch("2.10.0", [FOR_X86], {}, version_py=b"cuda = None\n"))
    cpu = errors(found, "torch-cuda")
    assert set(cpu) == {"torch: libtorch_cuda.so", "torch: requirements", "torch: version.py"}
    assert cpu["torch: libtorch_cuda.so"] == "torch 2.10.0 for aarch64 is a CPU build: it has no libtorch_cuda.so"
    assert errors(found, "abi") == {}
    assert moves(found, "torch-cuda") == {"torch 2.10.0 -> 2.11.0"}
    why = next(move.why for one in found for move in one.moves if one.check == "torch-cuda")
    assert why == "vllm 0.26.0 requires torch==2.11.0"


def test_cpu_torch_of_a_local_version() -> None:
    assert "torch: version" in errors(judged(torch("2.13.0+cpu", [FOR_X86], {}, version_py=b"cuda = None\n")))


def test_cpu_torch_is_right_where_there_is_no_gpu() -> None:
    found = judged(torch("2.10.0", [FOR_X86], {}, version_py=b"cuda = None\n"), given=target("none", "none"))
    assert errors(found) == {}


@pytest.mark.parametrize(("cuda", "subject"), [("13.2", "torch: CUDA 13.2"), ("12.9", "torch: CUDA 12.9")])
def test_torch_for_another_cuda(cuda: str, subject: str) -> None:
    found = judged(torch(version_py=f"cuda = '{cuda}'\n".encode()))
    assert list(errors(found, "torch-cuda")) == [subject]
    assert moves(found, "torch-cuda") == {"torch 2.13.0 -> a build for CUDA 13.0"}


# -- abi ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "other", "count"), [
    ("0.19.1", "2.11.0", 2), ("0.20.0", "2.11.0", 0), ("0.20.0", "2.13.0", 7), ("0.26.0", "2.11.0", 0),
    ("0.26.0", "2.13.0", 8), ("0.32.0", "2.11.0", 2), ("0.32.0", "2.13.0", 0)])
def test_real_pairs(version: str, other: str, count: int) -> None:
    assert len(errors(judged(vllm(version), torch(other)), "abi")) == count


def test_the_torch_that_lost_its_message_logger() -> None:
    found = judged(vllm("0.19.1", ["torch==2.10.0"]), torch("2.11.0"))
    assert errors(found, "abi")["vllm/_C.abi3.so"] == (
        f"undefined symbol: {MESSAGE_LOGGER}: compiled against another torch than 2.11.0")
    # torch 2.10.0 would satisfy it and is a CPU build for this machine: never advised.
    assert moves(found, "abi") == {"vllm 0.19.1 -> 0.26.0", "vllm 0.19.1 -> 0.20.0"}


def test_the_pin_to_move_is_what_vllm_requires_else_what_has_its_symbols() -> None:
    assert "torch 2.11.0 -> 2.13.0" in moves(judged(vllm(requires=["torch==2.13.0"]), torch("2.11.0")), "abi")
    found = judged(vllm(requires=["torch>=2"]), torch("2.11.0"))
    assert moves(found, "abi") == {"torch 2.11.0 -> 2.13.0", "vllm 0.32.0 -> 0.26.0", "vllm 0.32.0 -> 0.20.0"}


def other(undefined: tuple[str, ...] | None, name: str = "torchaudio") -> CandidateWheel:
    return wheel(name, "1", tag="cp311-cp311-manylinux_2_28_aarch64", libraries={f"{name}/_C.so": Library(
        MACHINE, undefined)})


def test_whatever_is_compiled_against_torch_is_judged() -> None:
    found = judged(other((MESSAGE_LOGGER, "cudaMalloc")), torch("2.11.0"))
    assert list(errors(found)) == ["torchaudio/_C.so"]
    assert moves(found, "abi") == {"torchaudio 1 -> the one for torch 2.11.0"}
    has = sorted(torch_abi.known(MACHINE).of("2.11.0") or ())[:5]
    assert errors(judged(other((*has, "cudaMalloc")), torch("2.11.0"))) == {}


def test_a_torch_that_is_not_known_is_judged_by_its_small_libraries() -> None:
    lacks = torch("2.99.0", homes=frozenset({"_ZN3c104FailEv"}))
    found = judged(other((MESSAGE_LOGGER, "_ZN2at9elsewhereEv")), lacks)
    assert errors(found) == {"torchaudio/_C.so": f"undefined symbol: {MESSAGE_LOGGER}: compiled against another torch "
                                                  "than 2.99.0"}
    has = torch("2.99.0", homes=frozenset({MESSAGE_LOGGER}))
    assert errors(judged(other((MESSAGE_LOGGER, "_ZN2at9elsewhereEv")), has)) == {}


def test_another_build_of_a_known_version_is_judged_with_care() -> None:
    """A mirror's own build: what its small libraries lack is sure, the rest is only likely."""
    names = (MESSAGE_LOGGER, "_ZN2at9elsewhereEv")
    found = judged(other(names), torch("2.11.0", sha256="1" * 64, homes=frozenset({MESSAGE_LOGGER})))
    found = [one for one in found if one.check == "abi"]
    assert [one.finding.severity for one in found] == ["warning"]
    assert "may be wrong" in found[0].finding.message
    assert list(errors(judged(other(names), torch("2.11.0", sha256="1" * 64, homes=frozenset())))) == [
        "torchaudio/_C.so"]


def test_what_cannot_be_read_in_part_is_said() -> None:
    found = judged(other(None), torch())
    assert [(one.check, one.finding.severity, one.finding.subject) for one in found] == [("abi", "info", "libraries")]


# -- vLLM -----------------------------------------------------------------------------------------


def test_an_extension_that_is_not_there() -> None:
    whole = vllm()
    members = {name: size for name, size in whole.members.items() if "_moe_C" not in name}
    assert list(errors(judged(vllm(members=members), torch()))) == ["vllm/_moe_C_stable_libtorch.abi3.so"]


def test_extensions_for_another_machine() -> None:
    path = "vllm/_C_stable_libtorch.abi3.so"
    libraries = {**vllm().libraries, path: Library("x86_64", ())}
    assert errors(judged(vllm(libraries=libraries), torch())) == {path: "compiled for x86_64, the target is aarch64"}


def test_a_vllm_without_code_for_the_device() -> None:
    """0.19.1 was compiled for CUDA 12.9: neither Thor nor a PTX for it in one of its parts."""
    found = judged(vllm("0.19.1"), torch("2.11.0"))
    assert list(errors(found, "device-code")) == ["vllm/_C_stable_libtorch.abi3.so"]
    message = errors(found, "device-code")["vllm/_C_stable_libtorch.abi3.so"]
    assert "no code for compute capability 11.0" in message
    assert "no kernel image is available" in message
    assert "vllm 0.19.1 -> 0.32.0" in moves(found, "device-code")
    assert errors(judged(vllm("0.20.0"), torch("2.11.0")), "device-code") == {}


def test_ptx_that_is_newer_than_the_driver() -> None:
    """FlashAttention 2 is PTX of ISA 9.0 for every device without sm_80: a driver of CUDA 12.9 takes 8.8."""
    found = judged(vllm(), torch(), given=target(cuda="12.9"))
    message = errors(found, "ptx-floor")["vllm/vllm_flash_attn/_vllm_fa2_C.abi3.so"]
    assert "only PTX for this device, newer than ISA 8.8 of its driver" in message
    assert "unsupported toolchain" in message


def test_what_can_hold_no_code_for_the_device_is_not_asked_for_it() -> None:
    """QuTLASS of the published wheels is for sm_100f only, which the table of extensions says."""
    found = [one.finding for one in judged(vllm(), torch(), given=target("12.1")) if one.check == "device-code"]
    assert [(one.severity, one.subject) for one in found] == [("info", "vllm/vllm_flash_attn/_vllm_fa2_C.abi3.so")]


def test_machine_code_where_the_target_wants_it() -> None:
    given = target(device_code={"policy": "native"})
    assert list(errors(judged(vllm(), torch(), given=given), "device-code")) == [
        "vllm/vllm_flash_attn/_vllm_fa2_C.abi3.so"]


def test_a_wheel_that_is_not_known_is_not_judged_by_its_device_code() -> None:
    found = judged(vllm(sha256="1" * 64), torch())
    assert [(one.check, one.finding.severity) for one in found] == [("device-code", "info")]
    assert "after the download" in found[0].finding.message


# -- the set --------------------------------------------------------------------------------------


def test_requirements_and_the_pin_that_satisfies_them() -> None:
    found = judged(wheel("one", "1", ["two==2", "three>=3,<4", "four"]), wheel("two", "1"), wheel("three", "4"))
    assert set(errors(found)) == {"one: two==2", "one: three<4,>=3", "one: four"}
    assert moves(found, "wheel-set") == {"two 1 -> 2", "three 4 -> <4,>=3"}
    assert errors(judged(wheel("one", "1", ["two==2"]), wheel("two", "2"))) == {}


def test_what_is_compiled_is_there_for_those_that_require_it() -> None:
    sources = [{"name": "two", "version": "2"}]
    assert errors(judged(wheel("one", "1", ["two==2"]), sources=sources)) == {}
    assert set(errors(judged(wheel("one", "1", ["two<2"]), sources=sources))) == {"one: two<2"}
    assert set(errors(judged(given={**target(), "wheels": {**target()["wheels"], "requirements": ["two<2"]}},
                             sources=sources))) == {"target: two<2"}


def test_torchvision_follows_torch_not_the_reverse() -> None:
    found = judged(wheel("torchvision", "0.26.0", ["torch==2.11.0"]), torch("2.13.0"))
    assert list(errors(found)) == ["torchvision: torch==2.11.0"]
    assert "torchvision::nms" in errors(found)["torchvision: torch==2.11.0"]
    assert moves(found, "wheel-set") == {"torchvision 0.26.0 -> the one for torch 2.13.0"}


def test_parts_of_one_release() -> None:
    found = judged(wheel("flashinfer-python", "0.7.0.post1"), wheel("flashinfer-cubin", "0.6.13"))
    assert list(errors(found)) == ["flashinfer-cubin: version"]
    assert moves(found, "wheel-set") == {"flashinfer-cubin 0.6.13 -> 0.7.0.post1"}
    assert errors(judged(wheel("flashinfer-python", "0.7.0"), wheel("flashinfer-jit-cache", "0.7.0+cu130"))) == {}


def test_prereleases_that_nobody_asks_for() -> None:
    assert list(errors(judged(wheel("cuda-tile", "1.6.0rc3")))) == ["cuda-tile: pre-release 1.6.0rc3"]
    assert errors(judged(wheel("one", "1", ["beta==0.66b2"]), wheel("beta", "0.66b2"))) == {}


def test_files_that_are_no_wheels_or_for_another_interpreter() -> None:
    sdist = LockedFile("xatlas", "1.0", "xatlas-1.0.tar.gz", 1, "0" * 64, "default")
    found = judged(wheel("one", "1", tag="cp312-cp312-manylinux_2_28_aarch64"), strange=(sdist,))
    assert errors(found) == {
        "xatlas: sdist": "xatlas-1.0.tar.gz is no wheel: it would be compiled",
        "one-1-cp312-cp312-manylinux_2_28_aarch64.whl": "is not for CPython 3.11, aarch64, glibc 2.36"}
    assert errors(judged(wheel("one", "1", tag="cp311-cp311-manylinux_2_36_aarch64"))) == {}
    assert len(errors(judged(wheel("one", "1", tag="cp311-cp311-manylinux_2_39_aarch64")))) == 1


def test_a_cuda_compiler_of_another_minor() -> None:
    runtime = wheel("nvidia-cuda-runtime", "13.0.96")
    found = judged(runtime, wheel("nvidia-cuda-nvcc", "13.5.37"))
    assert list(errors(found)) == ["nvidia-cuda-nvcc 13.5.37"]
    assert moves(found, "cuda-set") == {"nvidia-cuda-nvcc 13.5.37 -> 13.0.*"}
    assert errors(judged(runtime, wheel("nvidia-cuda-nvcc", "13.0.88"))) == {}
    assert list(errors(judged(wheel("nvidia-cuda-runtime", "13.2.1")))) == ["nvidia-cuda-runtime 13.2.1"]
    found = judged(wheel("nvidia-cuda-runtime-cu12", "12.8.90"), wheel("nvidia-cuda-nvcc-cu12", "12.9.86"),
                   given=target("9.0", "12.8"))
    assert moves(found, "cuda-set") == {"nvidia-cuda-nvcc-cu12 12.9.86 -> 12.8.*"}


def test_a_target_with_cuda_and_no_compute_capability() -> None:
    assert errors(judged(vllm(), torch(), given=target("none")), "device-code", "ptx-floor") == {}


def test_known_holes() -> None:
    found = judged(vllm("0.20.0"), torch("2.11.0"))
    assert any(subject.startswith("vllm 0.20.0: ") for subject in errors(found, "advisories"))
    assert errors(judged(vllm(), torch()), "advisories") == {}
