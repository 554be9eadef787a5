"""The gate behind the image: nothing is made of an image that does not pass, and `check` judges it all the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from checks.registry import check
from stages import gates, main
from stages.commands import read_by_checks
from stages.project import Project
from tests.support.built import built_session
from tests.support.wheel_factory import make_wheel

SECRET = "image: {environment: {HF_TOKEN: hunter2}}\n"
WAIVER = "waivers:\n  - {check: image, subject: 'secret: HF_TOKEN', reason: a token of an account without rights}\n"
#: What a project without a base layer lacks.
NO_PYTHON = "waivers:\n  - {check: image, subject: 'label: io.stagecraft.python', reason: there is no base layer}\n"


def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, checks: tuple[str, ...] = ("image",),
            wheels: bool = True) -> Path:
    good = [make_wheel(tmp_path, "good", "1", files={"good.py": b""})]
    session, _ = built_session(tmp_path, monkeypatch, text, wheels=good if wheels else None)
    monkeypatch.setattr(gates, "CHECKS", tuple(check(name) for name in checks))
    monkeypatch.setattr("sys.argv", ["doit"])
    return session.project.root


def test_what_is_made_of_an_image_waits_for_its_gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                     capfd: pytest.CaptureFixture[str]) -> None:
    root = project(tmp_path, monkeypatch, SECRET + NO_PYTHON)
    assert main.main(["build:small"], root) == 114
    told = capfd.readouterr().err
    assert "secret: HF_TOKEN" in told
    assert "hunter2" not in told
    assert not (root / "result-small").exists()
    target = root / "targets/small.yaml"
    target.write_text(target.read_text().replace("hunter2", "/run/secrets/hf"))
    assert main.main(["build:small"], root) == 0
    assert (root / "result-small").exists()


def test_waiver_covers_the_image_s_findings_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = project(tmp_path, monkeypatch, SECRET + NO_PYTHON + WAIVER.removeprefix("waivers:\n"))
    assert main.main(["build:small"], root) == 0


def test_check_judges_an_image_that_no_gate_would_let_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                              capfd: pytest.CaptureFixture[str]) -> None:
    root = project(tmp_path, monkeypatch, SECRET + NO_PYTHON, ("wheel-set", "image"), wheels=False)
    assert main.main(["check:small", "--json"], root) == 114
    told = json.loads(capfd.readouterr().out)
    assert {one["check"]: one["state"] for one in told["checks"]} == {"wheel-set": "failed", "image": "failed"}
    assert not (root / "result-small").exists()
    assert main.main(["build:small"], root) == 114  # the image is in the store now, its gates stand all the same
    assert "gate wheel-set" in capfd.readouterr().err
    assert not (root / "result-small").exists()


def test_check_asks_doit_for_no_stage_behind_a_gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session, _ = built_session(tmp_path, monkeypatch)
    monkeypatch.setattr(gates, "CHECKS", (check("wheel-set"), check("image")))
    graph = Project(session.project.root).graph("small")
    assert graph.stage("image").gates == ("wheel-set",)
    assert graph.stage("attest").gates == ("image",)
    assert read_by_checks(graph) == ["deps:small"]
