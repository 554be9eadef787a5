"""Gate triton-pair, and what preflight proposes: server against Python, CUDA and glibc, backend against vLLM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cache.store import Store
from checks import triton_pair, triton_releases
from checks.verdict import Finding
from stages.preflight_rules import Foreseen
from tests.stages.test_preflight_rules import judged, moves, wheel
from tests.support.gates import Gates
from tests.support.pytriton import make_pytriton

IMAGE = "nvcr.io/nvidia/tritonserver:{}-vllm-python-py3"


def findings(triton: dict[str, Any], python: str = "3.12", cuda: str = "13.0", vllm: str = "", glibc: str = "2.39",
             floor: str = "580") -> dict[str, Finding]:
    target = {"platform": "linux/arm64", "triton": triton, "device": {
        "cuda": cuda, "compute_capability": "8.7", "driver_floor": floor}}
    lock = {"python": {"version": python, "glibc": glibc}, "files": [], "wheels": [
        {"name": "vllm", "version": vllm}] if vllm else []}
    if triton["from"] == "pytriton":
        lock["files"] = [{"name": "nvidia-pytriton", "version": triton["version"]}]
    return {one.subject: one for one in triton_pair.judge(triton_releases.pair(target, lock))}


def upstream(release: str, vllm: str) -> Finding | None:
    return findings({"from": "source", "version": release, "backend": "upstream"}, vllm=vllm).get("backend: vllm")


@pytest.mark.parametrize("triton", [
    {"from": "pytriton", "version": "0.7.0"}, {"from": "image", "version": IMAGE.format("25.08")},
    {"from": "image", "version": "25.11"}, {"from": "source", "version": "26.08"},
    {"from": "image", "version": "26.10", "python_backend": "source"}])
def test_it_fits(triton: dict[str, Any]) -> None:
    if triton["version"] == "26.10":
        assert set(findings(triton)) == {"server: cuda"}  # a stub of our own, a server that is not
    else:
        assert findings(triton) == {}


def test_a_server_for_another_python() -> None:
    found = findings({"from": "image", "version": "25.08"}, python="3.11")
    assert list(found) == ["server: python"]
    assert found["server: python"].message == (
        "the stub of Triton 25.08 runs Python 3.12, the image and its wheels have 3.11: no Python model would start")
    assert findings({"from": "image", "version": "25.08", "python_backend": "source"}, python="3.11") == {}
    assert findings({"from": "source", "version": "25.08"}, python="3.11") == {}


def test_pytriton_has_stubs_for_several_pythons() -> None:
    assert findings({"from": "pytriton", "version": "0.7.0"}, python="3.10", cuda="12.6", glibc="2.35") == {}
    found = findings({"from": "pytriton", "version": "0.7.0"}, python="3.14")
    assert "runs Python 3.8, 3.9, 3.10, 3.11, 3.12, 3.13" in found["server: python"].message


def test_the_container_of_the_orin_field_report() -> None:
    """25.04 on JetPack 6: CUDA 12.9 against a driver (540.4.0) of 12.6, Python 3.12 against 3.10."""
    found = findings({"from": "image", "version": IMAGE.format("25.04")}, "3.10", "12.6", floor="540.4.0")
    assert list(found) == ["server: python", "server: cuda"]
    assert found["server: cuda"].message == (
        "Triton 25.04 was made for CUDA 12.9.0.036 and wants driver 575.51.02; the device's driver (540.4.0) runs CUDA "
        "12.6")


@pytest.mark.parametrize(("container", "cuda", "bad"), [
    ("25.11", "13.0", False), ("25.12", "13.0", True), ("26.05", "13.2", False), ("26.06", "13.2", True),
    ("24.12", "12.6", False), ("25.01", "12.6", True), ("25.08", "12.9", True), ("25.07", "13.0", False)])
def test_cuda_of_the_server_against_the_driver(container: str, cuda: str, bad: bool) -> None:
    assert ("server: cuda" in findings({"from": "image", "version": container}, cuda=cuda)) is bad


def test_no_device_has_no_cuda() -> None:
    assert findings({"from": "image", "version": "26.08"}, cuda="none") == {}


def test_an_archive_for_jetson() -> None:
    """The last one: CUDA 12.9, Python 3.12, glibc 2.36: nothing of it is JetPack 6's."""
    found = findings({"from": "release", "version": "2.66.0"}, "3.10", "12.6", glibc="2.35")
    assert list(found) == ["server: python", "server: cuda", "server: glibc"]
    assert "version `GLIBC_2.36' not found" in found["server: glibc"].message
    assert "Triton 26.02-igpu" in found["server: cuda"].message


def test_an_archive_for_sbsa_is_no_archive_for_jetson() -> None:
    assert list(findings({"from": "release", "version": "tritonserver2.60.0-igpu.tar"})) == ["server: igpu"]
    assert findings({"from": "release", "version": "tritonserver2.60.0-agx.tar"}) == {}


def test_an_igpu_artefact_on_thor() -> None:
    """server issue 8412: 25.08-py3-igpu is CUDA 12."""
    found = findings({"from": "image", "version": "nvcr.io/nvidia/tritonserver:25.08-py3-igpu"})
    assert list(found) == ["server: igpu"]
    assert "8412" in found["server: igpu"].message


def test_a_release_that_is_not_in_the_table() -> None:
    assert list(findings({"from": "image", "version": "27.01"})) == ["server"]
    assert list(findings({"from": "pytriton", "version": "0.9.0"})) == ["server"]


# -- the backend ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("release", "vllm"), [
    ("26.01", "0.13.0"), ("26.01", "0.17.1"), ("25.11", "0.18.1"), ("25.10", "0.10.2"), ("25.04", "0.8.1"),
    ("26.08", "0.27.1")])
def test_a_branch_that_goes_with_this_vllm(release: str, vllm: str) -> None:
    assert upstream(release, vllm) is None


@pytest.mark.parametrize(("release", "vllm", "what"), [
    ("25.09", "0.13.0", "vllm.engine.metrics"), ("25.10", "0.12.0", "vllm.sampling_params.GuidedDecodingParams")])
def test_a_branch_whose_imports_are_gone(release: str, vllm: str, what: str) -> None:
    found = upstream(release, vllm)
    assert found is not None
    assert found.severity == "error"
    assert f"vllm_backend r{release} does not go with vLLM {vllm}: it imports {what}" in found.message


@pytest.mark.parametrize(("vllm", "patches"), [
    ("0.19.0", ["tokens-prompt"]), ("0.20.0", ["tokens-prompt"]), ("0.29.0", ["tokens-prompt"]),
    ("0.30.0", ["tokens-prompt", "buckets"]), ("0.32.0", ["tokens-prompt", "buckets"]),
    ("0.33.0", ["tokens-prompt", "buckets"])])
def test_a_branch_that_needs_patches(vllm: str, patches: list[str], tmp_path: Path,
                                     monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_releases, "PATCHES", str(tmp_path))
    found = upstream("26.01", vllm)
    assert found is not None
    assert found.severity == "error"
    assert found.message.endswith(f"the patch{'es' if patches[1:] else ''} {', '.join(patches)}")
    for name in patches:
        (tmp_path / f"{name}.patch").touch()
    found = upstream("26.01", vllm)
    assert found is not None
    assert found.severity == "info"


def test_a_pair_that_nobody_has_looked_at() -> None:
    for release, vllm in (("26.05", "0.32.0"), ("26.01", "0.40.0"), ("26.01", "0.12.0"), ("25.04", "0.9.2")):
        found = upstream(release, vllm)
        assert found is not None
        assert (found.severity, "nobody has looked" in found.message) == ("warning", True)


def test_our_own_backend_is_not_judged_by_nvidias_branches() -> None:
    assert findings({"from": "source", "version": "26.01", "backend": "stagecraft"}, vllm="0.33.0") == {}


# -- proposals ------------------------------------------------------------------------------------


def foreseen(triton: dict[str, Any], python: str = "3.12", cuda: str = "13.0") -> list[Foreseen]:
    target = {"platform": "linux/arm64", "triton": triton, "python": {"version": python}, "wheels": {
        "requirements": [], "overrides": []}, "image": {"environment": {}}, "vllm": {"version": "0.17.1"}, "device": {
            "cuda": cuda, "compute_capability": "11.0", "driver_floor": "580", "memory": "unified"}}
    return judged(wheel("vllm", "0.33.0"), given=target, python={
        "version": python, "glibc": "2.39", "site": "usr/local", "executable": "/usr/bin/python3"})


@pytest.mark.parametrize(("container", "python", "cuda", "proposed"), [
    ("25.04", "3.10", "12.6", "24.10"), ("26.08", "3.12", "13.0", "25.11"), ("26.08", "3.12", "13.2", "26.05"),
    ("24.08", "3.12", "13.0", "24.11"), ("24.10", "3.12", "12.6", "24.11"), ("27.01", "3.12", "13.0", "")])
def test_the_nearest_release_that_fits(container: str, python: str, cuda: str, proposed: str) -> None:
    found = moves(foreseen({"from": "image", "version": container}, python, cuda), "triton-pair")
    assert {move for move in found if move.startswith("triton.version")} == (
        {f"triton.version {container} -> {proposed}"} if proposed else set())


def test_no_release_has_debians_python() -> None:
    found = moves(foreseen({"from": "image", "version": "25.08"}, "3.11"), "triton-pair")
    assert found == {"triton.from image -> pytriton 0.7.0", "triton.python_backend prebuilt -> source"}


def test_a_stub_from_source_leaves_only_cuda() -> None:
    found = moves(foreseen({"from": "image", "version": "26.08", "python_backend": "source"}, "3.11"), "triton-pair")
    assert "triton.version 26.08 -> 25.11" in found
    assert "triton.python_backend prebuilt -> source" not in found


def test_another_backend_or_another_vllm() -> None:
    found = moves(foreseen({"from": "source", "version": "25.09", "backend": "upstream"}), "triton-pair")
    assert found >= {"triton.backend upstream -> stagecraft", "vllm 0.33.0 -> 0.10.1.1"}


# -- the gate -------------------------------------------------------------------------------------


@pytest.fixture
def gates(tmp_path: Path) -> Gates:
    found = Gates(Store.open(tmp_path / "store"))
    found.target["triton"] = {"from": "pytriton", "version": "0.7.0"}
    found.triton(make_pytriton(tmp_path))
    return found


def test_the_gate_over_a_layer(gates: Gates) -> None:
    assert gates.judge("triton-pair").findings == ()
    gates.target["device"]["cuda"] = "12.4"
    assert list(gates.errors("triton-pair")) == ["server: cuda"]


def test_a_layer_of_another_server(gates: Gates) -> None:
    """The layer says 2.51.0; a target that asks for 25.08 would be judged by another row."""
    gates.target["triton"] = {"from": "source", "version": "25.08"}
    assert gates.errors("triton-pair") == {"server": "the layer holds Triton 2.51.0, its release is 2.60.0"}
