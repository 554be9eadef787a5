"""vLLM's script (vllm/build.sh) refuses to compile against the wrong things, before it compiles anything.

Real compilers in thor's root; torch is a stand-in that says of itself what the script asks it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from cache.errors import StageError
from tests.support.front import HERE
from tests.support.images import make_layer
from tests.support.source_build import Machine, Run, cross_compiler, run, thor, toolkit_layer

SITE = "usr/local/lib/python3.11/dist-packages"


@pytest.fixture(scope="module")
def machine(thor_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Machine:
    return thor(thor_store, tmp_path_factory.mktemp("project"), "base")


@pytest.fixture(scope="module")
def compilers(machine: Machine) -> list[str]:
    return [cross_compiler(machine.store), toolkit_layer(machine.store)]


def refused(machine: Machine, compilers: list[str], torch: str, cuda: str, **environment: str) -> str:
    """What the script says when torch is of this version and for this CUDA ("None" for a CPU build)."""
    store = machine.store
    module = f"__version__ = {torch!r}\nclass version:\n    cuda = {cuda}\n"
    layer = make_layer(store, {f"{SITE}/torch/__init__.py": module.encode(), f"{SITE}/nvidia/cu13/lib/none": b""})
    given = Run([machine.layers["base"], *compilers, layer],
                {"csrc": make_layer(store, {"src/setup.py": b"raise SystemExit('it went on')\n"})},
                {"build.sh": (HERE / "vllm/build.sh").read_bytes()},
                {"SITE": SITE, "NAME": "vllm", "VERSION": "1", "CUDA_VERSION": "13.0", "TORCH_VERSION": "2.13.0",
                 "TORCH_CUDA_ARCH_LIST": "11.0a", **environment})
    with pytest.raises(StageError) as caught:
        run(machine, given)
    return caught.value.diagnostics()


def test_torch_without_cuda(machine: Machine, compilers: list[str]) -> None:
    said = refused(machine, compilers, "2.13.0+cpu", "None")
    assert "torch is compiled for another CUDA" in said
    assert "found: None" in said


def test_torch_for_another_release_of_cuda(machine: Machine, compilers: list[str]) -> None:
    assert "torch is compiled for another CUDA" in refused(machine, compilers, "2.13.0", "'12.9'")


def test_another_torch_than_the_targets(machine: Machine, compilers: list[str]) -> None:
    said = refused(machine, compilers, "2.11.0", "'13.0'")
    assert "another torch than the target's" in said
    assert "expected: 2.13.0" in said


def test_nvcc_of_another_cuda_than_the_driver_has(machine: Machine, compilers: list[str]) -> None:
    said = refused(machine, compilers, "2.13.0", "'13.0'", CUDA_VERSION="13.1")
    assert "another nvcc" in said
    assert "found: 13.0" in said


def test_what_is_right_goes_on(machine: Machine, compilers: list[str]) -> None:
    assert "it went on" in refused(machine, compilers, "2.13.0+cu130", "'13.0'")
