"""The stage bytecode over thor's real base: Debian's arm64 Python, under the locked emulator on other machines.

Uses the store named by STAGECRAFT_TEST_STORE if it is set, as tests/e2e/test_thor.py does.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from cache.build import BuildContext
from cache.layer import LayerReader
from cache.store import Blob
from checks.registry import check
from checks.verdict import CheckInputs, judge
from executors.choose import executor
from executors.process import Outcome, Process
from executors.run_stage import build
from stages import bytecode
from stages.gates import facts_of
from stages.graph import FileInput, SourceInput, Stage, StageInput
from stages.project import Project
from tests.support.front import HERE
from tests.support.gates import Gates
from tests.support.source_build import Machine, thor

SMALL = b"def greeting(name):\n    return f'hello, {name}' if name in {None, 'you', 2} else name\n"
PLACE = "usr/lib/python3/dist-packages"


@dataclasses.dataclass
class Made:
    """The stage over two layers, `base` and a small package, and what it gave."""

    machine: Machine
    stage: Stage
    layers: dict[str, str]
    outputs: dict[str, Blob]
    said: list[str]

    def context(self, said: list[str]) -> BuildContext:
        inputs = {}
        for name, item in self.stage.inputs.items():
            if isinstance(item, StageInput):
                inputs[name] = self.layers[item.stage]
            elif isinstance(item, SourceInput):
                inputs[name] = self.machine.store.put((HERE / item.path).read_bytes()).digest
            elif isinstance(item, FileInput):
                inputs[name] = item.locked.digest
        return BuildContext(self.machine.store, self.stage.params, inputs, log=said.append)

    def run(self, scratch: Path, *layers: str) -> tuple[Outcome, list[str]]:
        said: list[str] = []
        chosen = executor(self.machine.store, "aarch64", self.machine.emulators, engines=False)
        process = Process((*self.layers.values(), *layers), (
            "/usr/bin/python3.11", "-v", "-c", "import small, argparse; print(small.greeting('you'))"), "aarch64")
        scratch.mkdir()
        return chosen.run(process, scratch, log=said.append), said


@pytest.fixture(scope="module")
def made(thor_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    machine = thor(thor_store, tmp_path_factory.mktemp("project"), "base")
    gates = Gates(machine.store)
    gates.files("deps", {f"{PLACE}/small.py": SMALL, f"{PLACE}/broken.py": b"print 'Python 2'\n"})
    project = Project(HERE)
    target = project.target("thor")
    target = dataclasses.replace(target, data={**target.data, "bytecode": True})
    below = [project.graph("thor").stage(name) for name in ("base", "deps")]
    stage = bytecode.stage(target, project.lock("thor"), HERE, below)
    assert stage is not None
    machine.indexes = {**machine.indexes, "deps": gates.outputs["deps/index"]}
    layers = {"base": machine.layers["base"], "deps": gates.outputs["deps/layer"]}
    found = Made(machine, stage, layers, {}, [])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STAGECRAFT_JOBS", "2")
        found.outputs = dict(build(found.context(found.said)))
    return found


def test_all_modules_that_compile_have_bytecode(made: Made) -> None:
    with LayerReader(made.machine.store, made.outputs["index"].digest) as layer, \
            LayerReader(made.machine.store, made.machine.indexes["base"]) as base:
        files = {path for path, entry in layer.entries.items() if entry["type"] == "file"}
        assert {entry["mode"] for entry in layer.entries.values() if entry["type"] == "file"} == {0o644}
        library = [path for path, entry in base.entries.items() if path.startswith("usr/lib/python3.11/")
                   and entry["type"] == "file" and path.endswith(".py")]
    made_of = {path.replace("__pycache__/", "").replace(".cpython-311.pyc", ".py") for path in files}
    assert len(library) > 400
    assert [path for path in library if path not in made_of and path.rpartition("/")[2][:-3].isidentifier()] == []
    assert f"{PLACE}/small.py" in made_of
    assert f"{PLACE}/broken.py" not in made_of
    assert f"no bytecode: /{PLACE}/broken.py" in made.said


def test_the_gate_lets_it_pass_and_not_over_another_source(made: Made) -> None:
    one = check("bytecode")
    facts = facts_of(one, Project(HERE), "thor")
    outputs = {f"{stage}/index": digest for stage, digest in made.machine.indexes.items()}
    outputs["bytecode/index"] = made.outputs["index"].digest
    assert judge(made.machine.store, one, outputs, facts).findings == ()
    gates = Gates(made.machine.store)
    gates.files("vllm", {f"{PLACE}/small.py": SMALL + b"\n"})
    found = judge(made.machine.store, one, {**outputs, "vllm/index": gates.outputs["vllm/index"]}, facts).findings
    assert [finding.subject for finding in found] == ["stale"]
    assert CheckInputs(made.machine.store, outputs, facts).facts["magic"] == 3495


def test_the_same_layer_by_another_number_of_processes(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAGECRAFT_JOBS", "1")
    again = build(made.context([]))
    assert {name: blob.digest for name, blob in again.items()} == {
        name: blob.digest for name, blob in made.outputs.items()}


def test_the_images_python_takes_it(made: Made, tmp_path: Path) -> None:
    """With the layer each import is out of __pycache__, without it none is."""
    outcome, said = made.run(tmp_path / "with", made.outputs["layer"].digest)
    assert (outcome.ok, "hello, you" in said) == (True, True)
    taken = [line for line in said if line.startswith("# code object from '")]
    assert [line for line in taken if "__pycache__/small.cpython-311.pyc" in line]
    assert [line for line in taken if "__pycache__/argparse.cpython-311.pyc" in line]
    outcome, said = made.run(tmp_path / "without")
    assert outcome.ok
    assert not [line for line in said if line.startswith("# code object from '") and "__pycache__" in line]
    assert os.uname().machine == "aarch64" or any("emulator" in line for line in outcome.how)
