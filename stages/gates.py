"""Gates: the checks of `checks/` as edges of the graph. A gate blocks an edge, never a blob.

A verdict is looked up by (check, outputs, facts); the check runs only when there is none. Waivers of the target are
applied after the verdict, so that a waiver never hides a finding from another target.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cache.errors import GateError
from cache.store import Record
from checks.registry import CHECKS, Check
from stages.graph import FileInput, Graph, Stage

if TYPE_CHECKING:
    from checks.verdict import GateReport, Verdict
    from stages.project import Project
    from stages.tasks import Session


def checks_of(stages: Sequence[Stage]) -> tuple[Check, ...]:
    """The checks that concern these stages: those that stand behind one of them."""
    names = {stage.name for stage in stages}
    return tuple(check for check in CHECKS if not names.isdisjoint(check.after))


def checks_for(graph: Graph) -> tuple[Check, ...]:
    return checks_of(graph.stages)


def reads(check: Check, graph: Graph) -> list[tuple[str, str]]:
    """`(stage, output)` that a check reads in this graph: of what it names, what there is."""
    outputs = {(stage.name, output) for stage in graph.stages for output in stage.builder.outputs}
    return [pair for pair in check.outputs if pair in outputs]


def stages_of(check: Check, graph: Graph) -> list[str]:
    return list(dict.fromkeys(stage for stage, _ in reads(check, graph)))


def outputs_of(check: Check, graph: Graph, records: Mapping[str, Record | None]) -> dict[str, str] | None:
    """"stage/output" to digest; None while one of the stages is not built."""
    found: dict[str, str] = {}
    for stage, output in reads(check, graph):
        record = records.get(stage)
        if record is None:
            return None
        found[f"{stage}/{output}"] = record.outputs[output].digest
    return found


def facts_of(check: Check, project: Project, target: str) -> Mapping[str, Any]:
    return check.facts(project.target(target).data, project.lock_data(target))


def stored(project: Project, target: str, check: Check, records: Mapping[str, Record | None]) -> Verdict | None:
    """The verdict that the store has, or None."""
    from checks.verdict import stored_verdict

    outputs = outputs_of(check, project.graph(target), records)
    if outputs is None:
        return None
    return stored_verdict(project.store, check, outputs, facts_of(check, project, target))


def passed(session: Session, target: str, check: Check) -> bool:
    """True if a stored verdict lets the edge through."""
    verdict = stored(session.project, target, check, _records(session, target, check))
    return verdict is not None and _report(session.project, target, verdict).passes


def run(session: Session, target: str, check: Check, keep_failed: bool = False) -> None:
    """Judge, and let pass or not. What cannot be judged here passes nothing and stops nothing: that is said.

    Raises:
        GateError: with every finding that no waiver covers.
    """
    session.busy = True
    verdict, report = judged(session, target, check)
    _tell(session, check, report)
    if report.skipped:
        for finding in verdict.findings:
            cure = f" -> {finding.cure}" if finding.cure else ""
            session.report.line(f"  {'warning':<7} {check.id:<11} {finding.message}{cure}")
        session.skipped.setdefault(target, {})[check.id] = report.skipped[0][1]
        session.report.event("gate", check.id, text="skipped, which is not passed")
        return
    failed = report.failed
    if failed:
        lines = "\n".join(f"{finding.subject}: {finding.message}" for _, finding in failed)
        cures = "\n".join(dict.fromkeys(finding.cure for _, finding in failed if finding.cure))
        if check.runs and session.keep_failed and kept(session.project, target, check.id).exists():
            cures += f"\nlook into what it ran in: ./doit shell:{target}:{check.id}"
        raise GateError(f"gate {check.id} does not let {target} pass", where=check.title, found=lines,
                        cure=(cures + "\n" if cures else "") + f"or a waiver in targets/{target}.yaml, with its reason")
    told = [f"{len(report.waived)} waived"] if report.waived else []
    notes = sum(finding.severity == "info" for _, finding in report.notes)
    told += [f"{notes} note{'s' * (notes > 1)} (./doit check:{target})"] if notes else []
    session.report.event("gate", check.id, text=", ".join(["passed", *told]))


def judged(session: Session, target: str, check: Check) -> tuple[Verdict, GateReport]:
    """The verdict of a check, from the store or made now, and what the target's waivers make of it.

    The stages that the check reads are built: doit ran them first.
    """
    from checks.verdict import judge

    project = session.project
    outputs = outputs_of(check, project.graph(target), _records(session, target, check))
    assert outputs is not None  # noqa: S101 - see above
    facts = facts_of(check, project, target)
    known = stored(project, target, check, _records(session, target, check))
    again = session.keep_failed and check.runs and known is not None and bool(known.errors)
    if check.runs and (known is None or again):
        fetch_emulator(session, target, check.id, str(facts["machine"]))
        session.report.line(f"  {'run':<7} {check.id:<11} {check.title}")
    verdict = judge(
        project.store, check, outputs, facts, again=again, poll=session.check_cancelled,
        log=lambda line: session.report.event("log", check.id, line=line),
        keep=kept(project, target, check.id) if session.keep_failed else None)
    return verdict, _report(project, target, verdict)


def kept(project: Project, target: str, check: str) -> Path:
    """Where `--keep-failed` leaves the directory of a failed check: its /build and /tmp."""
    return project.store.root / "failed" / f"{project.root_name(target)}-{check}"


def fetch_emulator(session: Session, target: str, name: str, machine: str) -> None:
    """The locked emulator for this host into the store, if `machine` is another one; `name` is what wants it."""
    from executors.emulator import row_for
    from stages.engine import FetchProgress

    store = session.project.store
    row = row_for(machine, os.uname().machine)
    if row is None:
        return
    wanted = [FileInput("deb", file) for file in session.project.lock(target).emulator
              if (file.name, file.architecture) == (row.package, row.architecture)]
    missing = [item for item in wanted if not store.has(item.locked.digest, item.locked.size)]
    store.protect(*(item.locked.digest for item in wanted))
    if missing:
        engine = session.engine(target)
        total = sum(item.locked.size for item in missing)
        engine.observer.event("fetch", name, files=len(missing), bytes=total)
        engine.fetch(store, missing, FetchProgress(engine, name, total))


def _tell(session: Session, check: Check, report: GateReport) -> None:
    """What blocks nothing and must be seen all the same: warnings, waivers that are out of date or misspelt."""
    for _, finding in report.notes:
        if finding.severity == "info":
            continue
        session.report.line(f"  {finding.severity:<7} {check.id:<11} {finding.subject}: {finding.message}")
    for waiver in report.unused:
        session.report.line(f"  {'warning':<7} {check.id:<11} the waiver of {waiver['subject']!r} covers nothing")


def plan_lines(project: Project, target: str, records: Mapping[str, Record | None]) -> list[dict[str, str]]:
    """For `plan`: every gate with `passed`, `failed` or `would run`; `skipped` says why the last build skipped it."""
    found = []
    skipped: Mapping[str, str] = project.last(target).get("skipped", {})
    for check in checks_for(project.graph(target)):
        verdict = stored(project, target, check, records)
        state = "would run" if verdict is None else \
            "passed" if _report(project, target, verdict).passes else "failed"
        why = skipped.get(check.id, "") if verdict is None else ""
        found.append({"check": check.id, "state": state, **({"skipped": why} if why else {})})
    return found


def _records(session: Session, target: str, check: Check) -> dict[str, Record | None]:
    return {name: session.records.get((target, name)) for name in stages_of(check, session.project.graph(target))}


def _report(project: Project, target: str, verdict: Verdict) -> GateReport:
    from checks.verdict import apply_waivers

    return apply_waivers([verdict], [w for w in project.target(target).data["waivers"] if w["check"] == verdict.check])
