"""Gate advisories: versions within and without the ranges of the table, and on real layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.version import InvalidVersion, Version

from cache.store import Store
from checks import facts
from checks.advisories import concerns, judge
from tests.support.gates import Gates
from tests.support.pytriton import make_pytriton
from tests.support.wheel_factory import make_wheel

HERE = Path(__file__).resolve().parents[2]
TABLE = yaml.safe_load((HERE / "checks/data/advisories.yaml").read_text(encoding="utf-8"))
ROW: dict[str, Any] = {"part": "vllm", "id": "CVE-1", "severity": "high", "what": "a hole", "since": "0.10.1",
                       "fixed": "0.14.0", "aliases": ["GHSA-1"]}


@pytest.mark.parametrize(("version", "answer"), [
    ("0.10.0", False), ("0.10.1", True), ("0.13.9.post1", True), ("0.14.0rc1", True), ("0.14.0", False),
    ("0.13.0+cu130", True), ("0.14.0+cu130", False), ("1.0", False)])
def test_range(version: str, answer: bool) -> None:
    assert concerns(version, ROW) is answer


def test_last_known_version_and_no_first_one() -> None:
    row = {"last": "2.10.0"}
    assert [concerns(version, row) for version in ("1.0", "2.10.0+cpu", "2.10.1")] == [True, True, False]


def test_message_says_what_it_is_and_where_it_is_fixed() -> None:
    [finding] = judge([{"name": "vllm", "version": "0.12.0", "file": "vllm.whl"}], [ROW])
    assert (finding.severity, finding.subject) == ("error", "vllm 0.12.0: CVE-1")
    assert finding.message == "high: a hole; fixed in 0.14.0 (GHSA-1)"
    assert finding.cure == "take vllm 0.14.0 or newer"
    assert judge([{"name": "vllm", "version": "0.14.0"}, {"name": "other", "version": "0.12.0"}], [ROW]) == []


def test_low_ones_are_told() -> None:
    [finding] = judge([{"name": "vllm", "version": "0.12.0"}], [{**ROW, "severity": "low"}])
    assert finding.severity == "warning"


def test_server_counts_by_its_container_and_must_name_it() -> None:
    row = {"part": "triton-inference-server", "by": "container", "id": "N", "severity": "high", "what": "holes",
           "fixed": "25.07"}
    server = {"name": "triton-inference-server", "version": "2.51.0"}
    assert judge([{**server, "container": "25.07"}], [row]) == []
    assert [one.subject for one in judge([{**server, "container": "24.10"}], [row])] == [
        "triton-inference-server 2.51.0: N"]
    [finding] = judge([server], [row])
    assert (finding.severity, finding.message) == ("error", "cannot be judged: its release is not said")


def test_every_row_can_be_judged_and_says_where_it_is_from() -> None:
    assert TABLE["format"] == "stagecraft.advisories.v1"
    seen = set()
    for row in [*TABLE["advisories"], *TABLE["faults"]]:
        assert row["source"], row
        assert row["severity"] in ("critical", "high", "medium", "low"), row
        assert ("fixed" in row) != ("last" in row), row
        for key in ("since", "fixed", "last"):
            if key in row:
                assert Version(row[key])
        assert isinstance(row.get("aliases", []), list)
        assert (row["part"], row["id"]) not in seen
        seen.add((row["part"], row["id"]))
    with pytest.raises(InvalidVersion):
        concerns("", ROW)


# -- on layers ------------------------------------------------------------------------------------


@pytest.fixture
def gates(tmp_path: Path) -> Gates:
    return Gates(Store.open(tmp_path / "store"))


def test_prebuilt_server_has_the_holes_of_its_release_and_those_found_since(gates: Gates, tmp_path: Path) -> None:
    gates.target["triton"] = {"version": "0.7.0"}
    gates.triton(make_pytriton(tmp_path))
    found = gates.errors("advisories")
    assert "CVE-2025-23310" in found["triton-inference-server 2.51.0: before 25.07"]
    assert "fixed in 26.07" in found["triton-inference-server 2.51.0: NVIDIA-5875"]


def test_good_and_bad_wheels(gates: Gates, tmp_path: Path) -> None:
    gates.layer("vllm", make_wheel(tmp_path, "vllm", "0.32.0"))
    gates.layer("torch", make_wheel(tmp_path, "torch", "2.13.0"))
    assert gates.errors("advisories") == {}
    gates.layer("vllm", make_wheel(tmp_path, "vllm", "0.13.0"))
    assert "vllm 0.13.0: CVE-2026-22807" in gates.errors("advisories")


@pytest.mark.parametrize(("memory", "version", "expected"), [
    ("unified", "0.23.0", True), ("unified", "0.24.0", False), ("discrete", "0.23.0", False)])
def test_fault_of_unified_memory(gates: Gates, tmp_path: Path, memory: str, version: str, expected: bool) -> None:
    gates.target["device"]["memory"] = memory
    gates.layer("vllm", make_wheel(tmp_path, "vllm", version))
    found = gates.errors("advisories")
    assert (f"vllm {version}: vllm-45179" in found) is expected
    if expected:
        assert "Engine core initialization failed" in found[f"vllm {version}: vllm-45179"]


def test_row_for_another_package_leaves_the_verdict_alone(gates: Gates, tmp_path: Path) -> None:
    gates.layer("deps", make_wheel(tmp_path, "six", "1"))
    assert facts.advisories(gates.target, gates.lock) == {"rows": []}
