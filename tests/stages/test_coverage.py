"""coverage:<target>: the table of device code, over layers with extensions that nvcc 13.0 compiled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from cache.errors import InputError
from cache.store import Store
from stages import coverage
from tests.support import cuobjdump
from tests.support.cuda import toolkit
from tests.support.extensions import extensions
from tests.support.front import HERE, MINI, doit, make_project
from tests.support.gates import SITE, Gates

MAIN = f"{SITE}/vllm/_C_stable_libtorch.abi3.so"
FA3 = f"{SITE}/vllm/vllm_flash_attn/_vllm_fa3_C.abi3.so"
TORCH = f"{SITE}/torch/lib/libtorch_cuda.so"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return extensions(toolkit(), tmp_path_factory.mktemp("extensions"), {
        "main": (("sm_80", "sm_110", "sm_120f", "compute_80"), ("sm_110f", "sm_90")),
        "hopper": (("sm_90a",), ("sm_90a",))})


@pytest.fixture
def gates(tmp_path: Path, made: dict[str, bytes]) -> Gates:
    found = Gates(Store.open(tmp_path / "store"))
    found.files("vllm", {MAIN: made["main"], FA3: made["hopper"], f"{SITE}/vllm/a.py": b""}, {"vllm": "0.32.0"})
    found.files("torch", {TORCH: made["main"], f"{SITE}/torch/lib/libcut.so": made["main"][:9000]}, {"torch": "2.13.0"})
    return found


def report(gates: Gates, *names: str) -> tuple[dict[str, Any], str]:
    indexes = {stage: gates.outputs[f"{stage}/index"] for stage in ("torch", "vllm")}
    data, text = coverage.report(gates.store, "thor", gates.target, gates.lock, indexes, names)
    schema = json.loads((HERE / "docs" / "formats" / "coverage.schema.json").read_text(encoding="utf-8"))
    jsonschema.validate(data, schema, jsonschema.Draft202012Validator)
    assert max(map(len, text.splitlines())) <= 80
    return data, text


def library(data: dict[str, Any], path: str) -> dict[str, Any]:
    return next(one for one in data["libraries"] if one["path"] == path)


def test_kernels_of_vllm_and_parts_of_others(gates: Gates) -> None:
    data, text = report(gates)
    main = library(data, MAIN)
    assert (main["unit"], main["loads"]) == ("kernels", {"native": 2})
    assert [(row["target"], row["isa"], row["count"], row["loads"]) for row in main["code"]] == [
        ("sm_110", "", 1, "native"), ("sm_110f", "", 1, "native"), ("compute_80", "9.0", 1, "ptx"),
        ("sm_80", "", 1, "none"), ("sm_90", "", 1, "none"), ("sm_120f", "", 1, "none")]
    assert "for Hopper" in library(data, FA3)["unneeded"]
    assert (library(data, TORCH)["unit"], library(data, TORCH)["loads"]) == ("parts", {"native": 2})
    assert library(data, f"{SITE}/torch/lib/libcut.so")["damaged"]
    assert "  compute_80     PTX 9.0        1  ptx" in text.splitlines()
    assert "  for others:   sm_80 1, sm_90 1, sm_120f 1" in text.splitlines()
    assert "torch/lib/libtorch_cuda.so                         2 of 2     2 native" in text.splitlines()


def test_another_device(gates: Gates) -> None:
    gates.target["device"]["compute_capability"] = "12.1"
    data, text = report(gates)
    assert library(data, MAIN)["loads"] == {"family": 1, "none": 1}
    assert "  2 kernels: 1 family, 1 none" in text.splitlines()


def test_named_libraries_are_read_whole(gates: Gates) -> None:
    for name in ("torch/lib/libtorch_cuda.so", f"/{TORCH}"):
        data, _ = report(gates, name)
        assert [(one["path"], one["unit"], one["loads"]) for one in data["libraries"]] == [
            (TORCH, "kernels", {"native": 2})]
    with pytest.raises(InputError, match="no such file in the layers of the wheels: torch/lib"):
        report(gates, "torch/lib")
    with pytest.raises(InputError) as caught:
        report(gates, "vllm/_C.abi3.so")
    assert caught.value.cure == "did you mean vllm/_C_stable_libtorch.abi3.so?"


def test_a_target_without_a_gpu(gates: Gates) -> None:
    gates.target["device"]["compute_capability"] = "none"
    with pytest.raises(InputError, match="has no GPU"):
        report(gates)


def test_the_command_asks_for_a_gpu_before_anything_is_built(tmp_path: Path) -> None:
    root = make_project(tmp_path / "project", mini=MINI)
    done = doit(root, tmp_path / "store", "coverage:mini", "vllm/_C.abi3.so", "--json", rc=None)
    assert (done.returncode, done.stdout) == (110, "")
    assert "mini has no GPU" in done.stderr


def test_kernels_by_architecture_are_those_of_cuobjdump(gates: Gates, made: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "main.so").write_bytes(made["main"])
    theirs: dict[str, int] = {}
    for entry in cuobjdump.entries(toolkit(), tmp_path / "main.so"):
        if entry.kind == "CUBIN":
            theirs[entry.arch] = theirs.get(entry.arch, 0) + len(entry.kernels)
    ours = {row["target"]: row["count"] for row in library(report(gates)[0], MAIN)["code"] if not row["isa"]}
    assert ours == theirs
