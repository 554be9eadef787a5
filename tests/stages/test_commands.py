"""Tasks that only tell: for several targets, and for one whose lock does not fit it any more."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from cache.log import StageLog
from cache.store import Store
from stages import commands
from stages.tasks import Session, guarded
from tests.support.built import built_session
from tests.support.front import doit
from tests.support.project import TARGET, write_target


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    """`small` with its layer `deps` built, as its last build left it."""
    found, _ = built_session(tmp_path, monkeypatch)
    project = found.project
    project.store.set_root(project.root_name("small"), {
        "format": "stagecraft.root.v1", "target": "small", "manifest": "", "blobs": [],
        "stages": {"deps": found.records["small", "deps"].key}, "keys": [found.records["small", "deps"].key]})
    return found


@pytest.mark.parametrize(("verb", "told"), [("plan", "small: 1 of 3 stages cached"), ("why", "image")])
def test_target_that_cannot_be_read_hides_no_other(session: Session, tmp_path: Path, verb: str, told: str) -> None:
    root = session.project.root
    for name in ("a-bad", "z-bad"):
        write_target(root, name, TARGET.replace("memory", "memroy"))
    done = doit(root, tmp_path / "store", "-n", "1", verb, rc=110)
    assert told in done.stdout
    for name in ("a-bad", "z-bad"):
        assert f"targets/{name}.yaml:10" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("below", "cure"), [("tmp/probe-a", "STAGECRAFT_STORE"), ("../elsewhere", "")])
def test_denied_file_of_the_store_comes_with_its_cure(session: Session, below: str, cure: str) -> None:
    path = os.path.normpath(session.project.store.root / below)

    def deny() -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    guarded(session, "shell:small", deny)()
    problem = session.errors[-1]
    assert (problem.exit_code, problem.where) == (113, path)
    assert cure in (problem.cure or "")
    assert bool(problem.cure) == bool(cure)


@pytest.mark.parametrize("task", ["log:small", "log:small:deps"])
def test_log_needs_no_lock_that_fits(session: Session, tmp_path: Path, task: str) -> None:
    root = session.project.root
    before = doit(root, tmp_path / "store", task)
    assert "warning" not in before.stderr
    write_target(root, text=TARGET + "wheels: {requirements: [six]}\n")
    doit(root, tmp_path / "store", "plan:small", rc=111)
    after = doit(root, tmp_path / "store", task)
    assert after.stdout == before.stdout
    assert "of the last build" in after.stderr
    assert json.loads(doit(root, tmp_path / "store", task, "--json").stdout)


def test_log_of_a_stage_that_was_never_built_is_named(session: Session, tmp_path: Path) -> None:
    root = session.project.root
    write_target(root, text=TARGET + "wheels: {requirements: [six]}\n")
    done = doit(root, tmp_path / "store", "log:small:dpes", rc=110)
    assert "did you mean ./doit log:small:deps?" in done.stderr
    assert "no log of torch" in doit(root, tmp_path / "store", "log:small:torch", rc=110).stderr


def test_long_log_is_shown_by_its_end(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    with StageLog(store) as written:
        for number in range(200_000):
            written.line(f"line {number}")
        path = store.path_of(written.publish().digest)
    log = commands._Log("vllm", "built", "sha256:" + "1" * 64, path, ("a note",))
    log.print(whole=False)
    first, *rest = capsys.readouterr().out.splitlines()
    before = int(first.split()[3])
    assert rest == [f"line {number}" for number in range(before, 200_000)]
    assert 0 < before < 200_000
    log.print(whole=True)
    assert capsys.readouterr().out.splitlines() == [f"line {number}" for number in range(200_000)]
    found = log.as_json(whole=False)
    assert (found["lines_before"], found["notes"]) == (before, ["a note"])
    assert found["log"].splitlines() == rest
    assert "lines_before" not in log.as_json(whole=True)
