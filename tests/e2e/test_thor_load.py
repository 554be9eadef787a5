"""The check `load` on real input: thor and spark under the locked emulator, a doctored twin, each way to register.

Uses the store named by STAGECRAFT_TEST_STORE if it is set, as tests/e2e/test_thor.py does.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from cache.layer import LayerReader
from cache.record import Record
from checks.load import run
from checks.registry import check
from checks.verdict import CheckInputs
from executors import emulator
from executors.process import Process
from executors.sandbox import Sandbox
from stages import gates
from stages.plan import evaluate
from stages.project import Project
from tests.e2e.test_load import layer
from tests.support.front import committed_project, doit


@pytest.fixture(scope="module")
def store(thor_store: Path) -> Path:
    return thor_store


@pytest.fixture(scope="module")
def project(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project in a directory of its own with the committed targets and locks; thor's and spark's load judged."""
    root = committed_project(tmp_path_factory.mktemp("thor") / "project")
    doit(root, store, "gate:thor:load", "gate:spark:load")
    os.environ["STAGECRAFT_STORE"] = str(store)
    return Project(root)


@pytest.fixture(autouse=True)
def _store(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAGECRAFT_STORE", str(store))


def records(project: Project, target: str) -> dict[str, Record | None]:
    return {name: found for name, (_, found) in evaluate(project.graph(target), project.store).items()}


@pytest.mark.parametrize("target", ["thor", "spark"])
def test_load_passed_for_every_required_extension(project: Project, target: str) -> None:
    verdict = gates.stored(project, target, check("load"), records(project, target))
    assert verdict is not None
    assert (verdict.findings, verdict.skipped) == ((), "")
    facts = gates.facts_of(check("load"), project, target)
    required = gates.facts_of(check("extensions"), project, target)["rows"]
    assert [row["file"] for row in facts["rows"]] == [row["file"] for row in required]
    assert len(required) == {"thor": 6, "spark": 9}[target]
    doit_plan = doit(project.root, project.store.root, f"plan:{target}", "--json")
    states = {gate["check"]: gate["state"] for gate in json.loads(doit_plan.stdout)["gates"]}
    assert states["load"] == "passed"


def test_doctored_extension_is_found_with_the_loaders_message(project: Project) -> None:
    """The real file with one letter of one symbol changed: everything else loads, that one is named."""
    outputs = gates.outputs_of(check("load"), project.graph("thor"), records(project, "thor"))
    assert outputs is not None
    facts = gates.facts_of(check("load"), project, "thor")
    path = f"{facts['site']}/vllm/spinloop.abi3.so"
    with LayerReader(project.store, outputs["vllm/index"]) as reader:
        content = reader.read(path)
    assert b"\0PyModule_Create2\0" in content
    twin = content.replace(b"\0PyModule_Create2\0", b"\0PyModule_Cre8te2\0")
    outputs = {**outputs, "serve/index": layer(project.store, {path: twin})}
    found = run(CheckInputs(project.store, outputs, facts))
    assert [finding.subject for finding in found] == ["vllm.spinloop"]
    assert found[0].message == f"ImportError: /{path}: undefined symbol: PyModule_Cre8te2"


CHILD = ("import platform, subprocess, sys; "
         "print(platform.machine(), subprocess.run([sys.executable, '-c', 'print(6 * 7)'], stdout=-1).stdout)")


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="thor's programs need no emulator here")
@pytest.mark.parametrize("registration", ["own", "host", "none"])
def test_each_way_to_register_the_emulator(project: Project, tmp_path: Path, registration: str) -> None:
    if registration == "host" and not emulator.host_registers():
        pytest.skip("only root can register with the host")
    store = project.store
    base = records(project, "thor")["base"]
    assert base is not None
    lock = project.lock_data("thor")
    before = sorted(path.name for path in emulator.BINFMT.iterdir())
    chosen = emulator.locked(store, "aarch64", "x86_64", lock["emulator"]["debs"])
    said: list[str] = []
    outcome = Sandbox(store, chosen, registration).run(
        Process((base.outputs["layer"].digest,), ("python3", "-c", CHILD), "aarch64"), tmp_path, log=said.append)
    assert sorted(path.name for path in emulator.BINFMT.iterdir()) == before
    if registration == "none":
        assert not outcome.whole
        assert outcome.exit == 1  # the child cannot be started, and that is an error of Python
        assert "child processes cannot run" in " ".join(outcome.how)
        said.clear()
        Sandbox(store, chosen, registration).run(
            Process((base.outputs["layer"].digest,), ("python3", "-c", "import platform; print(platform.machine())"),
                    "aarch64"), tmp_path, log=said.append)
        assert said == ["aarch64"]
    else:
        assert outcome.whole
        assert said[-1:] == ["aarch64 b'42\\n'"], (outcome, said)
