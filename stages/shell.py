"""`shell:<target>[:<stage>]`: a shell in the root of a target: its layers up to and including a stage, or all of them.

`shell:<target>:load` opens what the check `load` runs in, and what `--keep-failed` kept of it; a stage that runs a
script (`shell:<target>:vllm-extensions`) what that script is started in.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cache.layer import layer_of
from checks.facts import environment, machine
from checks.registry import LAYER_STAGES, check
from executors import trees
from executors.process import Limits, Process
from stages import gates
from stages.graph import Graph

if TYPE_CHECKING:
    from stages.tasks import Session

_SHELL = ("/bin/sh", "-c", "command -v bash >/dev/null && exec bash; exec sh")


def layer_stages(graph: Graph, stage: str = "") -> list[str]:
    """The stages that make layers, lowest first, up to and including `stage`."""
    names = [found.name for found in graph.stages if found.name in LAYER_STAGES]
    return names[: names.index(stage) + 1] if stage else names


def roots(graph: Graph) -> list[str]:
    """What `shell:<target>:` takes."""
    judged = [found.id for found in gates.checks_for(graph) if found.runs]
    ran = [stage.name for stage in graph.stages if stage.kind == "run"]
    return [*(name for name in layer_stages(graph) if name not in ran), *ran, *judged]


def needs(graph: Graph, name: str = "") -> list[str]:
    """The stages that must be built before."""
    if _runs(graph, name):
        return list(graph.stage(name).dependencies())
    if name and name not in LAYER_STAGES:
        return gates.stages_of(check(name), graph)
    below = ["base-facts"] if any(stage.name == "base-facts" for stage in graph.stages) else []
    return [*below, *layer_stages(graph, name)]


def _runs(graph: Graph, name: str) -> bool:
    return any(stage.name == name and stage.kind == "run" for stage in graph.stages)


def run(session: Session, target: str, name: str = "") -> None:
    """Open the shell; returns when it ends, whatever its exit code.

    Raises:
        ToolError: no sandbox works here.
    """
    from executors import emulator
    from executors.sandbox import Sandbox

    project = session.project
    store = project.store
    session.busy = True
    wanted = machine(project.target(target).data)
    host = os.uname().machine
    chosen = None
    if wanted != host:
        gates.fetch_emulator(session, target, "shell", wanted)
        debs = project.lock_data(target).get("emulator", {}).get("debs", [])
        chosen = emulator.locked(store, wanted, host, debs)
    sandbox = Sandbox(store, chosen)
    sandbox.abilities()
    graph = project.graph(target)
    judged = name and name not in LAYER_STAGES and not _runs(graph, name)
    kept = gates.kept(project, target, name) if judged else None
    scratch = kept if kept is not None and kept.exists() else \
        Path(tempfile.mkdtemp(prefix="shell-", dir=store.directory("tmp")))
    try:
        process = _of_script(session, target, name, scratch) if _runs(graph, name) else \
            _process(session, target, name, scratch)
        session.report.line_break()
        sandbox.shell(replace(process, command=_SHELL, limits=Limits(), outputs=()), scratch, session.report.line)
    finally:
        if scratch != kept:
            with contextlib.suppress(OSError):
                trees.discard(scratch)


def _of_script(session: Session, target: str, name: str, scratch: Path) -> Process:
    """What a stage's script is run as, without what is kept between builds."""
    from cache.build import BuildContext
    from executors.run_stage import process_of

    graph = session.project.graph(target)
    stage = graph.stage(name)
    inputs = session.engine(target).prepare(stage, session.known(target, stage))
    given = scratch / "given"
    given.mkdir()
    context = BuildContext(session.project.store, stage.params, inputs, stage.platform, session.report.line,
                           lambda done, total: session.check_cancelled(), fresh=True)
    return process_of(context, given, contextlib.ExitStack())


def _process(session: Session, target: str, name: str, scratch: Path) -> Process:
    project = session.project
    data, lock, graph = project.target(target).data, project.lock_data(target), project.graph(target)
    if name and name not in LAYER_STAGES:
        from checks.load import planned, process_of
        from checks.verdict import CheckInputs

        one = check(name)
        records = {stage: session.records.get((target, stage)) for stage in gates.stages_of(one, graph)}
        facts = gates.facts_of(one, project, target)
        return process_of(CheckInputs(project.store, gates.outputs_of(one, graph, records) or {}, facts), scratch,
                          planned(facts))
    base = [layer["digest"] for layer in lock["base"]["layers"]] if lock["base"]["kind"] == "image" else []
    own = [layer_of(project.store, session.records[target, stage].outputs["index"].digest)
           for stage in layer_stages(graph, name)]
    variables = {key: value for key, value in environment(data, lock).items() if key not in ("HOME", "TMPDIR")}
    return Process((*base, *own), _SHELL, machine(data), variables)
