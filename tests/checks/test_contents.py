"""Check contents, on modules that nvcc 13.0 compiled, against what their CMake is said to have asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from cache.store import Store
from checks.contents import compare, judge
from checks.kernels import Headers
from tests.support.cuda import toolkit
from tests.support.extensions import extensions, without_sections
from tests.support.gates import SITE, Gates

#: Name to what each of its sources is compiled for.
SAMPLES: dict[str, tuple[tuple[str, ...], ...]] = {
    "whole": (("sm_110a",), ("sm_80", "compute_80")),
    "fewer": (("sm_110a",),),
    "other": (("sm_110",), ("sm_80", "compute_80")),
    "no_ptx": (("sm_110a",), ("sm_80",)),
    "regrouped": (("sm_110a", "compute_80"), ("sm_80",)),
    "host": (),
}
HOST = "vllm/cumem_allocator.abi3.so"
MAIN = "vllm/_C_stable_libtorch.abi3.so"
FA2 = "vllm/vllm_flash_attn/_vllm_fa2_C.abi3.so"


def module(*sources: Sequence[str]) -> dict[str, Any]:
    """An entry of `modules`, from what each source is compiled for."""
    made = [target for source in sources for target in source]
    return {"units": len(sources), "missing": 0,
            "sass": {target[3:]: made.count(target) for target in made if target.startswith("sm_")},
            "ptx": {target[8:]: made.count(target) for target in made if target.startswith("compute_")},
            "sources": {f"csrc/{number}.cu": " ".join(source) for number, source in enumerate(sources)}}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    scratch = tmp_path_factory.mktemp("extensions")
    found = extensions(toolkit(), scratch, dict(SAMPLES))
    found["stripped"] = without_sections(scratch / "stripped", found["whole"], ".nv_fatbin", ".nvFatBinSegment")
    found["unregistered"] = without_sections(scratch / "unregistered", found["whole"], ".nvFatBinSegment")
    return found


@pytest.fixture
def gates(tmp_path: Path) -> Gates:
    gates = Gates(Store.open(tmp_path / "store"))
    gates.target["device"]["arch_list"] = "11.0a"
    return gates


def put(gates: Gates, made: Mapping[str, bytes], files: Mapping[str, str], **expected: Any) -> None:
    """A vLLM layer of these files, each a sample; `expected` replaces parts of what fits the samples of `whole`."""
    told = {"format": "stagecraft.expected.v1", "arch_list": "11.0a", "cuda": "13.0",
            "modules": {"vllm/_C_stable_libtorch": module(*SAMPLES["whole"])}, "host": ["vllm/cumem_allocator"],
            "unknown": {}, "unasked": [], "left_out": [], **expected}
    gates.files("vllm-expected", {"expected.json": json.dumps(told).encode()})
    gates.files("vllm", {f"{SITE}/{file}": made[sample] for file, sample in files.items()}, {"vllm": "0.32.0"})


def test_what_cmake_asks_for_passes(gates: Gates, made: dict[str, bytes]) -> None:
    put(gates, made, {MAIN: "whole", HOST: "host"})
    verdict = gates.judge("contents")
    assert [(one.severity, one.subject, one.message) for one in verdict.findings] == [
        ("info", "vllm/_C_stable_libtorch", "2 sources: compute_80 1, sm_110a 1, sm_80 1")]


@pytest.mark.parametrize(("sample", "errors"), [
    ("fewer", {
        "vllm/_C_stable_libtorch": "expected device code of 2 sources, found that of 1",
        "vllm/_C_stable_libtorch: compute_80": "expected 1 of 2 sources compiled for compute_80, found 0",
        "vllm/_C_stable_libtorch: sm_80": "expected 1 of 2 sources compiled for sm_80, found 0"}),
    ("other", {
        "vllm/_C_stable_libtorch: sm_110": "expected 0 of 2 sources compiled for sm_110, found 1",
        "vllm/_C_stable_libtorch: sm_110a": "expected 1 of 2 sources compiled for sm_110a, found 0"}),
    ("no_ptx", {
        "vllm/_C_stable_libtorch: compute_80": "expected 1 of 2 sources compiled for compute_80, found 0"}),
    ("regrouped", {
        "vllm/_C_stable_libtorch: sources":
            "as many sources as expected for each architecture, but together with others"}),
    ("stripped", {
        "vllm/_C_stable_libtorch": "expected device code of 2 sources, found none: it was stripped of it"}),
    ("unregistered", {
        "vllm/_C_stable_libtorch": "2 pieces of device code, but 0 are registered: code was cut out, or added, after "
                                   "it was linked"}),
])
def test_what_was_built_otherwise(gates: Gates, made: dict[str, bytes], sample: str, errors: dict[str, str]) -> None:
    put(gates, made, {MAIN: sample, HOST: "host"})
    assert gates.errors("contents") == errors


def test_modules_that_are_missing(gates: Gates, made: dict[str, bytes]) -> None:
    put(gates, made, {"vllm/__init__.py": "host"})
    assert gates.errors("contents") == {
        "vllm/_C_stable_libtorch": "missing, and the package's CMake makes it: 2 sources with device code are compiled "
                                   "for it",
        "vllm/cumem_allocator": "missing, and the package's CMake makes it"}


def test_a_module_that_nobody_expects(gates: Gates, made: dict[str, bytes]) -> None:
    """A library without device code may come from elsewhere: vLLM's own Rust program, DeepGEMM's own build."""
    put(gates, made, {MAIN: "whole", HOST: "host", "vllm/_C.abi3.so": "fewer", "vllm/_other.abi3.so": "host"})
    assert gates.errors("contents") == {
        "vllm/_C": "1 pieces of device code in a library that the package's CMake does not make"}


def test_device_code_in_a_module_of_the_host(gates: Gates, made: dict[str, bytes]) -> None:
    put(gates, made, {MAIN: "whole", HOST: "fewer"})
    assert gates.errors("contents") == {
        "vllm/cumem_allocator": "it has device code, and none of its sources has any"}


def test_a_module_below_the_directory_that_setup_py_puts_before_it(gates: Gates, made: dict[str, bytes]) -> None:
    """FlashAttention's CMake installs into vllm_flash_attn, and vLLM's moves the prefix to vllm/."""
    both = {"vllm/_C_stable_libtorch": module(*SAMPLES["whole"]),
            "vllm_flash_attn/_vllm_fa2_C": module(*SAMPLES["fewer"])}
    put(gates, made, {MAIN: "whole", HOST: "host", FA2: "fewer"}, modules=both)
    assert gates.errors("contents") == {}
    put(gates, made, {MAIN: "whole", HOST: "host", FA2: "other"}, modules=both)
    assert "vllm_flash_attn/_vllm_fa2_C: sm_110a" in gates.errors("contents")


def test_a_module_of_a_tree_that_was_not_there_is_told_and_not_judged(gates: Gates, made: dict[str, bytes]) -> None:
    put(gates, made, {MAIN: "whole", HOST: "host", FA2: "fewer"}, unknown={"_vllm_fa2_C": "an empty tree"})
    verdict = gates.judge("contents")
    assert not verdict.errors
    assert [(one.subject, one.message) for one in verdict.findings if one.severity == "warning"] == [
        ("_vllm_fa2_C", "whether it holds what it should is not known: an empty tree")]


def test_what_was_told_for_another_device_is_no_measure(gates: Gates, made: dict[str, bytes]) -> None:
    put(gates, made, {MAIN: "whole", HOST: "host"}, arch_list="12.1a")
    assert gates.errors("contents") == {
        "vllm": "what is expected was told for 12.1a, the target is for 11.0a"}


def test_two_modules_of_one_name() -> None:
    """DeepGEMM's module is called _C too: each is found by its whole path."""
    code = Headers(((("sm_110a",), 1),), 1)
    expected = {"modules": {"vllm/_C": module(("sm_110a",))}, "host": ["vllm/third_party/deep_gemm/_C"], "unknown": {}}
    files = {"vllm/_C.abi3.so": code, "vllm/third_party/deep_gemm/_C.cpython-312-aarch64-linux-gnu.so": None}
    assert [one.severity for one in judge(expected, files)] == ["info"]
    turned = dict(zip(files, reversed(files.values()), strict=True))
    assert [one.severity for one in judge(expected, turned)] == ["error", "error"]


def test_code_that_cannot_be_read() -> None:
    found = list(compare("vllm/_C", "vllm/_C.so", module(("sm_110a",)), Headers((), 0, "cut off")))
    assert [one.message for one in found] == ["expected device code of 1 sources, found what cannot be read: cut off"]
