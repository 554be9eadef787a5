"""Gates on real layers: which checks concern a target, and what a gate that runs tells."""

from __future__ import annotations

from pathlib import Path

import pytest

from cache.errors import GateError, InputError
from checks.registry import check
from checks.verdict import CheckInputs, Finding, SkippedError
from stages import gates
from stages.lockfile import Lock, LockedFile
from stages.project import graph
from stages.target import load
from tests.support.built import PYTHON, built_session
from tests.support.front import make_project
from tests.support.project import TARGET

TORCH = "torch: {version: '2'}\n"
VLLM = "vllm: {version: '2'}\n"


def lock_of(*wheels: str) -> Lock:
    files = [LockedFile(name, "2", f"{name}-2-py3-none-any.whl", 1, "a" * 64, "default") for name in wheels]
    return Lock("small", {}, {"kind": "debian", "suites": []}, PYTHON, wheels=tuple(files))


@pytest.mark.parametrize(("text", "wheels", "expected"), [
    ("", ["six"], {"wheel-set", "python"}),
    (TORCH, ["torch"], {"torch-cuda", "wheel-set", "python"}),
    (TORCH + VLLM, ["torch", "vllm", "six"], {"torch-cuda", "wheel-set", "python", "extensions"}),
    ("layers: {cuda: ['*']}\n", ["six"], {"wheel-set", "python"}),
    ("", [], set()),
])
def test_every_check_that_concerns_a_target_gates_its_image(tmp_path: Path, text: str, wheels: list[str],
                                                            expected: set[str]) -> None:
    root = make_project(tmp_path / "project", small=TARGET + text)
    found = graph(load(root, "small"), lock_of(*wheels), root)
    concerned = {one.id for one in gates.checks_for(found)}
    assert expected <= concerned
    assert bool(concerned - {"image"}) is bool(expected)
    assert not concerned & ({"torch-cuda", "extensions", "triton-stub"} - expected)
    before = {one.id for one in gates.checks_for(found) if "image" not in one.after}
    assert set(found.stage("image").gates) == before
    assert set(found.stage("attest").gates) == concerned - before == {"image"}
    for one in gates.checks_for(found):
        assert gates.reads(one, found)


def test_torch_that_no_section_asks_for_is_refused(tmp_path: Path) -> None:
    """As the requirement of another wheel it would lie in `deps`, where no check looks for its CUDA."""
    root = make_project(tmp_path / "project", small=TARGET)
    with pytest.raises(InputError, match="the wheel torch would lie in the layer deps") as caught:
        graph(load(root, "small"), lock_of("six", "torch"), root)
    assert "add a section torch" in caught.value.diagnostics()


WAIVER = "waivers:\n  - {check: wheel-set, subject: 'wants: missing>=2', reason: nothing here needs it}\n"
UNUSED = "  - {check: wheel-set, subject: 'wants: missing>=1', reason: what was needed once}\n"


def test_gate_that_runs_tells_of_warnings_and_of_waivers_that_cover_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, out = built_session(tmp_path, monkeypatch, WAIVER + UNUSED)
    gates.run(session, "small", check("wheel-set"))
    lines = out.getvalue().splitlines()
    assert [line for line in lines if "odd: pythonthree: its Requires-Python cannot be read" in line]
    assert [line for line in lines if "the waiver of 'wants: missing>=1' covers nothing" in line]
    assert not [line for line in lines if "'wants: missing>=2'" in line]
    assert "passed, 1 waived" in lines[-1]
    assert gates.passed(session, "small", check("wheel-set"))


def test_gate_that_fails_tells_of_a_misspelt_waiver_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session, out = built_session(tmp_path, monkeypatch, "waivers:\n" + UNUSED)
    with pytest.raises(GateError, match="wheel-set"):
        gates.run(session, "small", check("wheel-set"))
    assert "the waiver of 'wants: missing>=1' covers nothing" in out.getvalue()


def test_gate_that_cannot_be_judged_here_is_said_and_neither_passes_nor_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def skip(inputs: CheckInputs) -> list[Finding]:
        raise SkippedError("bubblewrap is not installed", "sudo apt-get install bubblewrap")

    monkeypatch.setattr("checks.wheel_set.run", skip)
    session, out = built_session(tmp_path, monkeypatch)
    gates.run(session, "small", check("wheel-set"))
    lines = out.getvalue().splitlines()
    assert [line for line in lines if line.split()[:2] == ["warning", "wheel-set"] and "bubblewrap is not" in line]
    assert "skipped, which is not passed" in lines[-1]
    assert not gates.passed(session, "small", check("wheel-set"))
    assert session.skipped == {"small": {"wheel-set": "bubblewrap is not installed"}}


def test_plan_says_what_the_last_build_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session, _ = built_session(tmp_path, monkeypatch)
    project = session.project
    project.store.set_root(project.root_name("small"), {"keys": [], "skipped": {"wheel-set": "no bubblewrap"}})
    known = {"deps": session.records["small", "deps"]}
    assert gates.plan_lines(project, "small", known)[0] == {
        "check": "wheel-set", "state": "would run", "skipped": "no bubblewrap"}
    with pytest.raises(GateError):
        gates.run(session, "small", check("wheel-set"))
    assert gates.plan_lines(project, "small", known)[0] == {"check": "wheel-set", "state": "failed"}
