"""Real pairs of vLLM and torch for aarch64, online: judged by what can be read of their wheels where they lie.

What the offline tests take from the tables is read here from the wheels themselves, as if none of them were known.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from cache.store import Store
from checks import torch_abi, vllm_wheels
from checks.torch_abi import Exports
from lock.indexes import load_indexes
from lock.simple import Pages, WheelSource
from stages.candidate import read_candidate
from stages.preflight import Preflight, preflight
from stages.preflight_rules import Foreseen, judge
from stages.project import Project
from tests.support.front import HERE
from tests.support.real_pairs import candidate

MACHINE = "aarch64"
MESSAGE_LOGGER = "_ZN3c1013MessageLoggerC1EPKciib"


@pytest.fixture(scope="module")
def pages() -> Pages:
    return Pages(load_indexes(HERE / "targets" / "indexes.yaml"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


def look(pages: Pages, store: Store, vllm: str, torch: str) -> tuple[list[Foreseen], float]:
    """Findings about the pair itself, and the part of the wheels' bytes that was read for them."""
    lock = candidate(pages, vllm=vllm, torch=torch)
    source = WheelSource(load_indexes(HERE / "targets" / "indexes.yaml"), pages)
    read = read_candidate(store, source, pages, lock.wheels, MACHINE)
    found = judge(read, Project(HERE).target("thor").data, lock.to_json())
    return [one for one in found if one.check in ("abi", "torch-cuda", "device-code")], \
        read.fetched / sum(wheel.size for wheel in lock.wheels)


def errors(found: list[Foreseen], check: str) -> dict[str, str]:
    return {one.finding.subject.rpartition("/")[2].split(".")[0]: one.finding.message for one in found
            if one.check == check and one.finding.severity == "error"}


PAIRS = [
    ("0.20.0", "2.11.0", set()), ("0.26.0", "2.11.0", set()), ("0.32.0", "2.13.0", set()),
    ("0.20.0", "2.13.0", {"_C", "_flashmla_C", "_flashmla_extension_C", "_moe_C", "_vllm_fa2_C", "_vllm_fa3_C"}),
    ("0.26.0", "2.13.0", {"_C", "_qutlass_C", "_vllm_fa2_C", "_vllm_fa3_C"}),
    ("0.32.0", "2.11.0", {"_qutlass_C", "_C_extension"}),
]


@pytest.fixture(params=[True, False], ids=["known", "unknown"])
def known(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """With vLLM's wheels in the table, and as if they were not: then their libraries are read in part."""
    if not request.param:
        monkeypatch.setattr(vllm_wheels, "known", lambda machine: {})
    return bool(request.param)


@pytest.mark.parametrize(("vllm", "torch", "expected"), PAIRS)
def test_pairs(pages: Pages, store: Store, known: bool, vllm: str, torch: str, expected: set[str]) -> None:
    found, part = look(pages, store, vllm, torch)
    assert set(errors(found, "abi")) == expected
    assert errors(found, "torch-cuda") == {}
    assert part <= 0.01


@pytest.mark.parametrize("vllm", ["0.20.0", "0.26.0", "0.32.0"])
def test_torch_2_10_is_found_to_be_a_cpu_build(pages: Pages, store: Store, known: bool, vllm: str) -> None:
    found, part = look(pages, store, vllm, "2.10.0")
    assert "torch 2.10.0 for aarch64 is a CPU build" in errors(found, "torch-cuda")["torch: libtorch_cuda"]
    assert errors(found, "abi") == {}
    assert part <= 0.01
    moves = {(move.name, move.new) for one in found for move in one.moves if one.check == "torch-cuda"}
    assert moves == {("torch", "2.13.0" if vllm == "0.32.0" else "2.11.0")}


def test_the_torch_that_lost_its_message_logger(pages: Pages, store: Store, known: bool) -> None:
    found, part = look(pages, store, "0.19.1", "2.11.0")
    message = f"undefined symbol: {MESSAGE_LOGGER}: compiled against another torch than 2.11.0"
    assert errors(found, "abi") == {"_C": message, "_flashmla_C": message}
    assert part <= 0.01


def test_the_same_without_knowing_torch(pages: Pages, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a torch that nobody has seen the small libraries are read; where each name is at home is known of others."""
    table = torch_abi.known(MACHINE)
    unseen = Exports(tuple(type(build)(f"{build.version}.99", build.cuda) for build in table.builds), table.names)
    monkeypatch.setattr(torch_abi, "known", lambda machine: unseen)
    found, part = look(pages, store, "0.19.1", "2.11.0")
    assert set(errors(found, "abi")) == {"_C", "_flashmla_C"}
    assert MESSAGE_LOGGER in errors(found, "abi")["_C"]
    assert part <= 0.01
    assert errors(look(pages, store, "0.20.0", "2.11.0")[0], "abi") == {}


@pytest.mark.parametrize("target", ["thor", "spark"])
def test_the_shipped_locks_pass(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, target: str) -> None:
    monkeypatch.setenv("STAGECRAFT_STORE", str(tmp_path / "store"))
    project = Project(HERE)
    found: Preflight = preflight(project, project.target(target), project.lock(target), print)
    assert found.blocking == ()
    assert found.fetched <= 0.01 * found.size
