"""Check ptxas: which one Triton runs, and whether it knows the device."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from cache.store import Store
from checks import facts
from checks.ptxas import read_tool
from tests.support.cuda import toolkit
from tests.support.elf_factory import make_elf
from tests.support.front import HERE
from tests.support.gates import SITE, Gates
from tests.support.wheel_factory import make_wheel

BIN = f"{SITE}/triton/backends/nvidia/bin"
CUDA = f"{SITE}/nvidia/cu13/bin/ptxas"
#: As the wheels have them: CUDA, version, and the newest of the architectures.
OLD = ("12.8", "12.8.93", "sm_90a", "sm_120a")
OF_3_6 = ("12.9", "12.9.86", "sm_90a", "sm_103a", "sm_121a")
OF_3_7 = ("13.1", "13.1.80", "sm_90a", "sm_110a", "sm_110f", "sm_121a")
OF_13_0 = ("13.0", "13.0.88", "sm_90a", "sm_110a", "sm_121a")


def tool(release: str, version: str, *archs: str, machine: str = "aarch64") -> bytes:
    text = f"Cuda compilation tools, release {release}, V{version}\0" + "".join(f"{arch}\0" for arch in archs)
    return make_elf(machine, kind=2, extra=b"\0" + text.encode())


@pytest.fixture
def gates(tmp_path: Path) -> Gates:
    return Gates(Store.open(tmp_path / "store"))


def put(gates: Gates, version: str, *, blackwell: tuple[str, ...] | None = OF_3_7, own: tuple[str, ...] = OLD,
        odd: dict[str, bytes | str] | None = None, **environment: str) -> None:
    files: dict[str, bytes | str] = {f"{BIN}/ptxas": tool(*own)}
    if blackwell is not None:
        files[f"{BIN}/ptxas-blackwell"] = tool(*blackwell)
    gates.files("torch", {**files, **(odd or {})}, {"triton": version})
    gates.files("cuda", {CUDA: tool(*OF_13_0)}, {"nvidia-cuda-nvcc": "13.0.88"})
    gates.target["image"]["environment"] = environment


def told(gates: Gates, severity: str) -> dict[str, str]:
    return {one.subject: one.message for one in gates.judge("ptxas").findings if one.severity == severity}


def test_the_real_ptxas_says_what_its_strings_say() -> None:
    place = toolkit()
    with (place.root / "bin" / "ptxas").open("rb") as stream:
        found = read_tool(stream)
    names = set(re.findall(r"sm_\d+[af]?", place.run("ptxas", "--help", cwd=place.root)))
    assert {"sm_110a", "sm_121a"} <= names <= set(found.archs)
    assert found.version in place.run("ptxas", "--version", cwd=place.root)
    assert found.release == "13.0"


def test_a_new_triton_has_what_it_needs(gates: Gates) -> None:
    put(gates, "3.7.1")
    assert gates.errors("ptxas") == {}
    assert told(gates, "info") == {
        "triton": f"triton 3.7.1 runs /{BIN}/ptxas-blackwell (CUDA 13.1, 13.1.80), which knows sm_110a"}


@pytest.mark.parametrize(("version", "variable"), [
    ("3.5.1", "TRITON_PTXAS_PATH"), ("3.6.0", "TRITON_PTXAS_BLACKWELL_PATH"), ("3.9.0", "TRITON_PTXAS_BLACKWELL_PATH")])
def test_the_variable_of_each_version(gates: Gates, version: str, variable: str) -> None:
    put(gates, version, blackwell=OF_3_6 if version != "3.5.1" else None)
    found = gates.errors("ptxas")
    assert "Value 'sm_110a' is not defined for option 'gpu-name'" in found["triton"]
    cure = next(one.cure for one in gates.judge("ptxas").errors)
    assert variable in cure
    gates.target["image"]["environment"] = {variable: "{site}/nvidia/cu13/bin/ptxas"}
    assert gates.errors("ptxas") == {}
    assert f"/{CUDA} (CUDA 13.0, 13.0.88)" in told(gates, "info")["triton"]


def test_an_ignored_variable(gates: Gates) -> None:
    """triton-lang#10331: what helped until 3.5 does nothing on these devices since 3.6."""
    put(gates, "3.6.0", blackwell=OF_3_6, TRITON_PTXAS_PATH=f"/{CUDA}")
    assert list(gates.errors("ptxas")) == ["triton"]
    assert list(told(gates, "warning")) == ["triton: TRITON_PTXAS_PATH"]
    put(gates, "3.7.1", TRITON_PTXAS_PATH=f"/{CUDA}")  # its own would do, but is not the one that was meant
    assert gates.errors("ptxas") == {}
    assert "does not read it for sm_110a" in told(gates, "warning")["triton: TRITON_PTXAS_PATH"]
    put(gates, "3.7.1", TRITON_PTXAS_PATH=f"/{CUDA}", TRITON_PTXAS_BLACKWELL_PATH=f"/{CUDA}")
    assert told(gates, "warning") == {}


def test_old_devices_have_the_old_variable(gates: Gates) -> None:
    put(gates, "3.6.0", blackwell=OF_3_6, TRITON_PTXAS_PATH=f"/{CUDA}")
    gates.target["device"]["compute_capability"] = "9.0"
    assert (gates.errors("ptxas"), told(gates, "warning")) == ({}, {})
    put(gates, "3.9.0", TRITON_PTXAS_PATH=f"/{CUDA}")  # where 9.0 is a new one already
    assert list(told(gates, "warning")) == ["triton: TRITON_PTXAS_PATH"]


def test_thor_and_spark_differ(gates: Gates) -> None:
    put(gates, "3.6.0", blackwell=OF_3_6)
    assert list(gates.errors("ptxas")) == ["triton"]
    gates.target["device"]["compute_capability"] = "12.1"
    assert gates.errors("ptxas") == {}


def test_a_path_that_is_not_there_is_passed_over(gates: Gates) -> None:
    put(gates, "3.7.1", TRITON_PTXAS_BLACKWELL_PATH="/usr/local/cuda/bin/ptxas")
    assert gates.errors("ptxas") == {}
    assert "passes over it without a word" in told(gates, "warning")["triton: TRITON_PTXAS_BLACKWELL_PATH"]


def test_links_lead_across_layers(gates: Gates) -> None:
    put(gates, "3.6.0", blackwell=OF_3_6, odd={"usr/local/cuda": f"/{SITE}/nvidia/cu13"},
        TRITON_PTXAS_BLACKWELL_PATH="/usr/local/cuda/bin/ptxas")
    assert gates.errors("ptxas") == {}
    assert "/usr/local/cuda/bin/ptxas (CUDA 13.0" in told(gates, "info")["triton"]


@pytest.mark.parametrize(("content", "message"), [
    (b"#!/bin/sh\n", "is for no machine"), (make_elf(kind=2), "is no ptxas"),
    (tool(*OF_13_0, machine="x86_64"), "is for x86_64"),
    (tool("14.0", "14.0.1", "sm_110a"), "does not load machine code of a later major")])
def test_what_is_no_ptxas_for_this_image(gates: Gates, content: bytes, message: str) -> None:
    put(gates, "3.7.1", odd={"opt/ptxas": content}, TRITON_PTXAS_BLACKWELL_PATH="/opt/ptxas")
    assert message in gates.errors("ptxas")["triton"]


def test_a_name_that_only_contains_the_architecture(gates: Gates) -> None:
    put(gates, "3.7.1", blackwell=("13.1", "13.1.80", "compute_sm_110a", "sm_110ab", "sm_1100"))
    assert list(gates.errors("ptxas")) == ["triton"]


def test_one_that_may_not_be_run(gates: Gates, tmp_path: Path) -> None:
    """A wheel that was zipped without modes: the installer gives its files 0644."""
    gates.layer("torch", make_wheel(tmp_path, "triton", "3.7.1", tag="cp311-cp311-manylinux_2_28_aarch64", files={
        "triton/backends/nvidia/bin/ptxas-blackwell": tool(*OF_3_7)}))
    assert "Permission denied" in gates.errors("ptxas")["triton"]


def test_no_ptxas_at_all(gates: Gates) -> None:
    gates.files("torch", {f"{BIN}/other": b""}, {"triton": "3.7.1"})
    assert "has no ptxas" in gates.errors("ptxas")["triton"]


def test_a_version_that_is_not_known(gates: Gates) -> None:
    put(gates, "3.10.0")
    assert "is not known" in gates.errors("ptxas")["triton"]


def test_another_triton_by_its_own_rule(gates: Gates) -> None:
    put(gates, "3.7.1")
    gates.files("deps", {f"{SITE}/tokenspeed_triton/backends/nvidia/bin/ptxas": tool(*OLD)},
                {"tokenspeed-triton": "3.9.10.post20261028"})
    assert list(gates.errors("ptxas")) == ["tokenspeed-triton"]
    gates.target["image"]["environment"] = {"TRITON_PTXAS_PATH": f"/{CUDA}"}
    assert gates.errors("ptxas") == {}


def test_without_a_gpu_or_triton_nothing_is_asked(gates: Gates) -> None:
    gates.files("torch", {f"{SITE}/torch/version.py": b""}, {"torch": "2.13.0"})
    assert gates.judge("ptxas").findings == ()
    put(gates, "3.10.0")
    gates.target["device"]["compute_capability"] = "none"
    assert gates.judge("ptxas").findings == ()


def test_the_table() -> None:
    table = yaml.safe_load((HERE / "checks" / "data" / "ptxas.yaml").read_text(encoding="utf-8"))
    for package in table["packages"]:
        ranges = [(facts.release(row["since"]), facts.release(row["before"])) for row in package["releases"]]
        assert ranges == sorted(ranges)
        for row in package["releases"]:
            starts = [pick["from"] for pick in row["picks"]]
            assert row["source"]
            assert starts == sorted(starts, reverse=True)
            assert starts[-1] == 0
