"""vllm/expected/expected.py: flags of torch and of nvcc as architectures. What it makes of CMake: tests/e2e."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def expected() -> Any:
    spec = importlib.util.spec_from_file_location("expected", HERE / "vllm" / "expected" / "expected.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("archs", "flags"), [
    ("11.0a", ["arch=compute_110a,code=sm_110a"]),
    ("8.0;9.0a", ["arch=compute_80,code=sm_80", "arch=compute_90a,code=sm_90a"]),
    (" 12.1+PTX  12.1 ", ["arch=compute_121,code=sm_121", "arch=compute_121,code=compute_121"]),
])
def test_list_of_torch(expected: Any, archs: str, flags: list[str]) -> None:
    assert expected.gencode(archs) == [f"-gencode {flag}" for flag in flags]


@pytest.mark.parametrize("archs", ["", "Hopper", '"12.0"', "12", "All"])
def test_a_list_that_means_what_torch_makes_of_it(expected: Any, archs: str) -> None:
    with pytest.raises(expected.ExpectedError):
        expected.gencode(archs)


@pytest.mark.parametrize(("line", "found"), [
    ("-O3 -gencode arch=compute_110a,code=sm_110a", "sm_110a"),
    ("-gencode=arch=compute_80,code=[sm_80,compute_80]", "compute_80 sm_80"),
    ("--generate-code=arch=compute_90,code=compute_90 -gencode arch=compute_80,code=sm_80", "compute_90 sm_80"),
    ("-gencode arch=compute_80", "compute_80"),
    ("-arch=sm_87", "compute_87 sm_87"),
    ("-arch sm_87", "compute_87 sm_87"),
    ("--gpu-architecture=compute_80 -code=sm_80,sm_86", "sm_80 sm_86"),
    ("-arch=compute_80", "compute_80"),
    ("-std=c++17 --threads=1", "compute_75 sm_75"),
])
def test_flags_of_nvcc(expected: Any, line: str, found: str) -> None:
    assert " ".join(sorted(expected.targets(line.split(), "75"))) == found


@pytest.mark.parametrize("arch", ["native", "all", "all-major"])
def test_an_architecture_that_depends_on_the_machine(expected: Any, arch: str) -> None:
    with pytest.raises(expected.ExpectedError):
        expected.targets([f"-arch={arch}"], "75")


def test_what_is_said_of_vllm_has_reasons() -> None:
    project = json.loads((HERE / "vllm" / "expected" / "project.json").read_text(encoding="utf-8"))
    assert set(project) == {"arguments", "environment", "setup", "headers", "empty"}
    assert all(len(reason) > 9 for part in ("headers", "empty") for reason in project[part].values())
