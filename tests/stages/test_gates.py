"""Gates on real layers: which checks concern a target, and what a gate that runs tells."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from cache.canonical import sha256
from cache.errors import GateError, InputError
from checks.registry import check
from stages import gates
from stages.lockfile import Lock, LockedFile, path_of, request_digests
from stages.project import graph
from stages.report import Report
from stages.target import load
from stages.tasks import Session
from tests.support.front import make_project
from tests.support.project import TARGET
from tests.support.wheel_factory import make_wheel

PYTHON = {"version": "3.11", "executable": "/usr/bin/python3.11", "glibc": "2.36",
          "site": "usr/local/lib/python3.11/dist-packages", "scripts": "usr/local/bin", "data": "usr/local"}
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
    assert {one.id for one in gates.checks_for(found)} == expected
    assert set(found.stage("image").gates) == expected
    for one in gates.checks_for(found):
        assert gates.reads(one, found)


def test_torch_that_no_section_asks_for_is_refused(tmp_path: Path) -> None:
    """As the requirement of another wheel it would lie in `deps`, where no check looks for its CUDA."""
    root = make_project(tmp_path / "project", small=TARGET)
    with pytest.raises(InputError, match="the wheel torch would lie in the layer deps") as caught:
        graph(load(root, "small"), lock_of("six", "torch"), root)
    assert "add a section torch" in caught.value.diagnostics()


def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waivers: str) -> tuple[Session, io.StringIO]:
    """A session in which `deps` of a target is built: a wheel that lacks what it requires, one with an odd rule."""
    monkeypatch.setenv("STAGECRAFT_STORE", str(tmp_path / "store"))
    root = make_project(tmp_path / "project", small=TARGET + waivers)
    session = Session(root)
    out = io.StringIO()
    session.report = Report(err=out)
    wheels = [make_wheel(tmp_path, "wants", "1", files={"wants.py": b""}, requires=["missing>=2"]),
              make_wheel(tmp_path, "odd", "1", files={"odd.py": b""}, requires_python="three")]
    locked = [LockedFile(wheel.name.partition("-")[0], "1", wheel.name, wheel.stat().st_size,
                         sha256(wheel.read_bytes())[7:], "default") for wheel in wheels]
    for wheel in wheels:
        session.project.store.put(wheel.read_bytes())
    target = load(root, "small")
    path_of(root, "small").write_text(Lock("small", request_digests(target), {"kind": "debian", "suites": []}, PYTHON,
                                           wheels=tuple(locked)).dumps())
    session.realise("small", session.project.graph("small").stage("deps"))
    return session, out


WAIVER = "waivers:\n  - {check: wheel-set, subject: 'wants: missing>=2', reason: nothing here needs it}\n"
UNUSED = "  - {check: wheel-set, subject: 'wants: missing>=1', reason: what was needed once}\n"


def test_gate_that_runs_tells_of_warnings_and_of_waivers_that_cover_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, out = gate(tmp_path, monkeypatch, WAIVER + UNUSED)
    gates.run(session, "small", check("wheel-set"))
    lines = out.getvalue().splitlines()
    assert [line for line in lines if "odd: pythonthree: its Requires-Python cannot be read" in line]
    assert [line for line in lines if "the waiver of 'wants: missing>=1' covers nothing" in line]
    assert not [line for line in lines if "'wants: missing>=2'" in line]
    assert "passed, 1 waived" in lines[-1]
    assert gates.passed(session, "small", check("wheel-set"))


def test_gate_that_fails_tells_of_a_misspelt_waiver_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session, out = gate(tmp_path, monkeypatch, "waivers:\n" + UNUSED)
    with pytest.raises(GateError, match="wheel-set"):
        gates.run(session, "small", check("wheel-set"))
    assert "the waiver of 'wants: missing>=1' covers nothing" in out.getvalue()
