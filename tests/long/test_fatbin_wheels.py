"""The fatbin reader on the real vLLM wheel of thor's lock (0.32.0, aarch64), against NVIDIA's cuobjdump."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import fatbin
from checks import baseline, facts
from checks.kernels import read_code
from tests.fatbin.test_referee import in_their_order, said
from tests.support import cuobjdump
from tests.support.cuda import Toolkit, toolkit
from tests.support.front import HERE
from tests.support.locked_wheels import member, wheel_of

FA2 = "vllm/vllm_flash_attn/_vllm_fa2_C.abi3.so"
MOE = "vllm/_moe_C_stable_libtorch.abi3.so"
MAIN = "vllm/_C_stable_libtorch.abi3.so"

#: What cuobjdump says too, written down so that both cannot change unseen: containers, kernels of cubins and of PTX.
KNOWN: dict[str, tuple[int, dict[str, int], dict[str, int]]] = {
    FA2: (76, {"sm_80": 2904}, {"compute_80": 2904}),
    MOE: (27, {"sm_80": 2246, "sm_87": 1573, "sm_89": 1777, "sm_90": 1573, "sm_100": 1573, "sm_110": 1573,
               "sm_120": 1573, "sm_120f": 876}, {"compute_80": 673}),
    MAIN: (107, {"sm_80": 2625, "sm_86": 20, "sm_87": 1860, "sm_89": 2084, "sm_90": 2065, "sm_90a": 560, "sm_100": 1576,
                 "sm_100f": 594, "sm_110": 1576, "sm_110f": 439, "sm_120": 1652, "sm_120f": 1309},
           {"compute_80": 745, "compute_89": 208, "compute_90": 413}),
}


@pytest.fixture(scope="module")
def cuda() -> Toolkit:
    return toolkit()


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    scratch = tmp_path_factory.mktemp("wheels")
    wheel = wheel_of("thor", "vllm", scratch)
    return {name: member(wheel, name, scratch) for name in KNOWN}


@pytest.mark.parametrize("name", KNOWN)
def test_entries_and_kernels_are_those_of_cuobjdump(cuda: Toolkit, libraries: dict[str, Path], name: str) -> None:
    with libraries[name].open("rb") as file:
        found = fatbin.read(file)
        assert (found.machine, found.consistent) == ("aarch64", True)
        assert [said(entry) for entry in in_their_order(found)] == cuobjdump.entries(cuda, libraries[name])


@pytest.mark.parametrize("name", KNOWN)
def test_kernels_by_architecture(libraries: dict[str, Path], name: str) -> None:
    cubins: Counter[str] = Counter()
    texts: Counter[str] = Counter()
    with libraries[name].open("rb") as file:
        found = fatbin.read(file)
        for entry in found.entries:
            (cubins if entry.kind is fatbin.Kind.CUBIN else texts)[entry.target] += len(fatbin.kernels(entry) or ())
    assert (len(found.containers), +cubins, +texts) == KNOWN[name]


@pytest.mark.parametrize("name", KNOWN)
def test_checks_count_the_same(libraries: dict[str, Path], name: str) -> None:
    with libraries[name].open("rb") as file:
        found = read_code(file).targets
    _, cubins, texts = KNOWN[name]
    assert found == {**cubins, **{f"{target}@9.0": number for target, number in texts.items()}}


def test_what_is_noted_of_the_wheel_is_what_it_lacks(tmp_path: Path) -> None:
    """vllm/kernels-without-code/0.32.0.yaml can be made again, to the byte."""
    wheel = wheel_of("thor", "vllm", tmp_path)
    named = tmp_path / "vllm-0.32.0-cp38-abi3-manylinux_2_28_aarch64.whl"
    named.symlink_to(wheel)
    made = baseline.text(baseline.without_code(named, baseline.CAPABILITIES))
    assert made == facts.baseline_of("0.32.0").read_text(encoding="utf-8")


def test_payloads_are_those_of_cuobjdump(cuda: Toolkit, libraries: dict[str, Path]) -> None:
    theirs = cuobjdump.payloads(cuda, libraries[MOE])
    with libraries[MOE].open("rb") as file:
        found = in_their_order(fatbin.read(file))
        assert [entry.payload() for entry in found if entry.kind is fatbin.Kind.CUBIN] == theirs["elf"]
        assert [entry.payload() for entry in found if entry.kind is fatbin.Kind.PTX] == theirs["ptx"]


def test_the_bench_finds_the_same_kernels_on_both_sides(libraries: dict[str, Path]) -> None:
    done = subprocess.run([sys.executable, "bench/fatbin.py", libraries[FA2], "--runs", "1"], cwd=HERE, check=True,
                          capture_output=True, text=True)
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["kernels"] == {"sm_80": 2904}
    assert report["same_kernels"] is True
