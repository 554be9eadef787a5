"""Real pairs of vLLM and torch for aarch64, offline: classified out of the tables that were made of their wheels.

tests/long/test_torch_abi_wheels.py makes the tables' rows anew out of the wheels and compares.
"""

from __future__ import annotations

import pytest

from checks import torch_abi, vllm_wheels
from checks.torch_abi import Build, Exports, dump, is_torch, missing, parse, satisfying

MESSAGE_LOGGER = "_ZN3c1013MessageLoggerC1EPKciib"
MACHINE = "aarch64"


def undefined(version: str) -> dict[str, tuple[str, ...]]:
    """Extension to its undefined names of torch."""
    wheel = next(wheel for wheel in vllm_wheels.known(MACHINE).values() if wheel.version == version)
    return {name: extension.undefined for name, extension in wheel.extensions.items()}


def lacking(vllm: str, torch: str) -> dict[str, list[str]]:
    """Extension to what this torch lacks of it, of those that lack something."""
    exports = torch_abi.known(MACHINE).of(torch)
    assert exports is not None
    found = {name.removeprefix("vllm/").split(".")[0]: missing(names, exports)
             for name, names in undefined(vllm).items()}
    return {name: names for name, names in found.items() if names}


FA2, FA3, DEEP_GEMM = "vllm_flash_attn/_vllm_fa2_C", "vllm_flash_attn/_vllm_fa3_C", "third_party/deep_gemm/_C"


@pytest.mark.parametrize(("vllm", "torch", "expected"), [
    ("0.20.0", "2.10.0", {"_C": 20, "_C_stable_libtorch": 1, "_flashmla_C": 17, "_flashmla_extension_C": 16,
                          "_moe_C": 18, FA2: 15, FA3: 16, DEEP_GEMM: 3}),
    ("0.20.0", "2.11.0", {}),
    ("0.20.0", "2.13.0", {"_C": 4, "_flashmla_C": 2, "_flashmla_extension_C": 2, "_moe_C": 3, FA2: 3, FA3: 2,
                          DEEP_GEMM: 1}),
    ("0.26.0", "2.10.0", {"_C_stable_libtorch": 7, "_flashmla_C": 3, "_flashmla_extension_C": 3,
                          "_moe_C_stable_libtorch": 5, "_qutlass_C": 15, FA2: 15, FA3: 16, DEEP_GEMM: 3}),
    ("0.26.0", "2.11.0", {}),
    ("0.26.0", "2.13.0", {"_qutlass_C": 2, FA2: 3, FA3: 2, DEEP_GEMM: 1}),
    ("0.32.0", "2.10.0", {"_C_stable_libtorch": 7, "_deepselect_C": 1, "_flashkda_C": 3, "_flashmla_C": 3,
                          "_flashmla_extension_C": 3, "_moe_C_stable_libtorch": 5, "_qutlass_C": 6, FA2: 3, FA3: 1,
                          f"{DEEP_GEMM}_extension": 10}),
    ("0.32.0", "2.11.0", {"_qutlass_C": 3, f"{DEEP_GEMM}_extension": 5}),
    ("0.32.0", "2.13.0", {}),
])
def test_real_pairs(vllm: str, torch: str, expected: dict[str, int]) -> None:
    assert {name: len(names) for name, names in lacking(vllm, torch).items()} == expected


def test_the_torch_that_lost_its_message_logger() -> None:
    """vLLM 0.19.1 was built for torch 2.10; 2.11 takes a source location instead (LocalAI pull request 9950)."""
    found = lacking("0.19.1", "2.11.0")
    assert found == {"_C": [MESSAGE_LOGGER], "_flashmla_C": [MESSAGE_LOGGER]}
    assert MESSAGE_LOGGER in (torch_abi.known(MACHINE).of("2.10.0") or ())
    assert torch_abi.known(MACHINE).names[MESSAGE_LOGGER][1] == "c"  # so libc10.so alone, half a megabyte, tells


@pytest.mark.parametrize(("vllm", "expected"), [("0.20.0", ["2.11.0"]), ("0.26.0", ["2.11.0"]), ("0.32.0", ["2.13.0"]),
                                                ("0.19.1", [])])
def test_the_torch_that_would_satisfy(vllm: str, expected: list[str]) -> None:
    names = [name for found in undefined(vllm).values() for name in found]
    assert satisfying(names) == expected
    assert satisfying([*names, "_ZN3c105nobodyEv"]) == []
    assert satisfying(names, "riscv64") == []


def test_torch_2_10_for_aarch64_is_known_to_be_a_cpu_build() -> None:
    builds = {build.version: build.cuda for build in torch_abi.known(MACHINE).builds}
    assert builds == {"2.10.0": False, "2.11.0": True, "2.13.0": True}
    assert torch_abi.known(MACHINE).satisfying(["_ZN3c1013MessageLoggerC1EPKciib"], cuda=False) == ["2.10.0"]


def test_wheels_of_the_known_builds_are_known_for_each_python() -> None:
    for build in torch_abi.known(MACHINE).builds:
        assert {"cp310", "cp311", "cp312", "cp313"} <= {file.split("-")[2] for file in build.wheels.values()}
        assert all(len(sha256) == 64 for sha256 in build.wheels)


@pytest.mark.parametrize("name", [
    MESSAGE_LOGGER, "_ZNK2at10TensorBase14const_data_ptrIiLi0EEEPKT_v", "_ZTVN5torch8autograd4NodeE",
    "aoti_torch_zero_",
    "_ZNR5torch7Library4_defEON3c1014FunctionSchemaEPNS1_12OperatorNameERKSt6vectorIN2at3TagESaIS8_EENS_17_"
    "RegisterOrVerifyE", "torch_new_stable_ivalue", "THPVariable_Wrap", "_ZTIN3c105ErrorE"])
def test_names_of_torch(name: str) -> None:
    assert is_torch(name)


@pytest.mark.parametrize("name", ["cudaMalloc", "cuInit", "_ZNSt6vectorIN2at6TensorESaIS1_EE", "_Z3c10v", "PyLong_Type",
                                  "memcpy@GLIBC_2.17", "_ZN7cutlass4GemmEv", ""])
def test_names_of_others(name: str) -> None:
    assert not is_torch(name)
    assert missing([name], ()) == []


def test_a_table_reads_as_it_was_written() -> None:
    wheels = {"a" * 64: "torch-2.1.0-cp311-cp311-linux_aarch64.whl"}
    table = Exports((Build("2.1.0", False, wheels), Build("2.2.0", True)),
                    {"_ZN3c101aEv": (3, "c"), "_ZN2at1bEv": (2, "t")})
    assert parse(dump(table, MACHINE)) == table
    assert table.of("2.1.0+cpu") == {"_ZN3c101aEv"}
    assert table.of("2.3.0") is None
    assert table.at_home(["_ZN3c101aEv", "_ZN2at1bEv", "_ZN2at1cEv"], "cg") == ["_ZN3c101aEv"]
    with pytest.raises(ValueError, match="not stagecraft"):
        parse("another.format x\n\n")


def test_device_code_of_known_wheels() -> None:
    """facts of the wheels: FlashAttention 2 has code for sm_80 and PTX of ISA 9.0 only; 0.19.1 has none for Thor."""
    wheels = {wheel.version: wheel.extensions for wheel in vllm_wheels.known(MACHINE).values()}
    fa2 = "vllm/vllm_flash_attn/_vllm_fa2_C.abi3.so"
    assert wheels["0.32.0"][fa2].kernels == {"sm_80": 2904, "compute_80@9.0": 2904}
    assert wheels["0.32.0"]["vllm/_moe_C_stable_libtorch.abi3.so"].kernels["sm_110"] == 1573
    assert not any("110" in target for item in wheels["0.19.1"].values() for target in item.kernels)
