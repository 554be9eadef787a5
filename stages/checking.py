"""`check:<target>`: every gate of a target judged, and all of it told: a table, JSON, JUnit XML, SARIF.

The stages that the checks read are realised, nothing is published as a result. Unlike a build nothing ends at the first
check that fails, nor at one that cannot judge. Format `stagecraft.check-report.v1`: docs/formats/check-report.md.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cache.errors import GateError, InputError, StagecraftError
from checks.registry import Check
from checks.verdict import Finding, covers

if TYPE_CHECKING:
    from stages.tasks import Session

FORMAT = "stagecraft.check-report.v1"

#: What a check may come to, the worst last.
STATES = ("passed", "waived", "skipped", "failed", "error")


@dataclass(frozen=True)
class Weighed:
    """A finding and the waiver of the target that covers it, if one does."""

    finding: Finding
    waiver: Mapping[str, str] | None = None

    @property
    def blocks(self) -> bool:
        return self.finding.severity == "error" and self.waiver is None

    def to_json(self) -> dict[str, Any]:
        return {**vars(self.finding), "waiver": dict(self.waiver) if self.waiver else None}


@dataclass(frozen=True)
class Judged:
    """What a check came to.

    Attributes:
        state: "passed"; "waived": passed thanks to waivers; "failed"; "skipped": this machine cannot judge it, the one
            finding says why; "error": it could not judge, see `problem`.
        cached: the verdict was in the store.
        key: of the verdict; empty if there is none: skipped, or an error.
        unused: waivers of this check that cover nothing.
        seconds: that it took now.
    """

    check: Check
    state: str
    cached: bool = False
    key: str = ""
    findings: tuple[Weighed, ...] = ()
    unused: tuple[Mapping[str, str], ...] = ()
    problem: StagecraftError | None = None
    seconds: float = 0.0

    def count(self, severity: str) -> int:
        """Findings of a severity that no waiver covers."""
        return sum(one.finding.severity == severity and one.waiver is None for one in self.findings)

    @property
    def waived(self) -> int:
        return sum(one.waiver is not None for one in self.findings)

    def to_json(self) -> dict[str, Any]:
        return {
            "check": self.check.id, "version": self.check.version, "title": self.check.title, "state": self.state,
            "cached": self.cached, "key": self.key, "findings": [one.to_json() for one in self.findings],
            "unused_waivers": [dict(waiver) for waiver in self.unused],
            "problem": self.problem.as_json() if self.problem else None,
        }


@dataclass(frozen=True)
class CheckReport:
    """All checks of a target; `strict` makes a skipped one count as failed."""

    target: str
    checks: tuple[Judged, ...]
    strict: bool = False

    def of(self, *states: str) -> tuple[Judged, ...]:
        return tuple(judged for judged in self.checks if judged.state in states)

    @property
    def blocking(self) -> tuple[Judged, ...]:
        """The checks that do not let the target pass."""
        return self.of("failed", "error", *(["skipped"] if self.strict else []))

    def counts(self) -> dict[str, int]:
        found = Counter(judged.state for judged in self.checks)
        return {state: found[state] for state in STATES}

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, "target": self.target, "passes": not self.blocking, "strict": self.strict,
                "counts": self.counts(), "checks": [judged.to_json() for judged in self.checks]}

    def error(self) -> GateError | None:
        """What ends the command when a check failed, or was skipped and must not be."""
        failed = self.of("failed", *(["skipped"] if self.strict else []))
        if not failed:
            return None
        cures = ["the findings say what to do", f"or a waiver in targets/{self.target}.yaml, with its reason"]
        if self.strict and self.of("skipped"):
            cures.append("or leave out --strict: what was skipped then counts neither way")
        return GateError(f"{len(failed)} of {len(self.checks)} checks do not let {self.target} pass",
                         found=", ".join(f"{judged.check.id} {judged.state}" for judged in failed),
                         cure="\n".join(cures))


def judge_all(session: Session, target: str, *, strict: bool = False) -> CheckReport:
    """Judge every check that concerns a target, one after the other; its stages are built.

    Raises:
        CancelledError: the user stopped the run.
    """
    from stages import gates

    found = []
    for check in gates.checks_for(session.project.graph(target)):
        session.check_cancelled()
        judged = _judge(session, target, check)
        if not judged.cached:
            session.report.event("gate", check.id, target=target, text=judged.state)
        found.append(judged)
    return CheckReport(target, tuple(found), strict)


def _judge(session: Session, target: str, check: Check) -> Judged:
    from stages import gates

    started = time.monotonic()
    try:
        _realise_behind_gates(session, target, check)
        verdict, report = gates.judged(session, target, check)
    except (StagecraftError, OSError) as error:
        session.check_cancelled()  # the reason of an error then is the cancelling
        if isinstance(error, OSError):
            error = StagecraftError(error.strerror or str(error), where=str(error.filename or check.id))
        error.where = error.where or f"check {check.id}"
        return Judged(check, "error", problem=error, seconds=time.monotonic() - started)
    waivers = [waiver for waiver in session.project.target(target).data["waivers"] if waiver["check"] == check.id]
    if verdict.skipped:
        return Judged(check, "skipped", findings=weigh(verdict.findings, ()), seconds=time.monotonic() - started)
    state = "failed" if report.failed else "waived" if report.waived else "passed"
    return Judged(check, state, verdict.cached, verdict.key, weigh(verdict.findings, waivers), report.unused,
                  seconds=0.0 if verdict.cached else time.monotonic() - started)


def _realise_behind_gates(session: Session, target: str, check: Check) -> None:
    """What a check reads of stages behind gates, such as the image: a gate blocks the edge, never the blob."""
    from stages import gates

    graph = session.project.graph(target)
    for name in gates.stages_of(check, graph):
        for stage in graph.closure(name):
            if stage.gates and (target, stage.name) not in session.records and not session.uptodate(target, stage):
                session.realise(target, stage)


def weigh(findings: Sequence[Finding], waivers: Sequence[Mapping[str, str]]) -> tuple[Weighed, ...]:
    """Each finding with the first waiver that covers it. Only errors are waived."""
    def waiver(finding: Finding) -> Mapping[str, str] | None:
        return next((one for one in waivers if covers(one["subject"], finding.subject)), None)

    return tuple(Weighed(one, waiver(one) if one.severity == "error" else None) for one in findings)


# -- the command ------------------------------------------------------------------------------------------------------


def place(name: str) -> Path:
    """A file that the user names, relative to where the user stands: ./doit itself works in the project."""
    return Path(os.environ.get("STAGECRAFT_CWD", ""), name)


def refuse_files(*names: str) -> None:
    """Refuse files for reports that cannot be written, before anything is built for them.

    Raises:
        InputError: no such directory, a directory, or one file for two reports.
    """
    paths = [place(name) for name in names if name]
    for path in paths:
        if path.is_dir() or not path.parent.is_dir():
            raise InputError("the report cannot be written there", where=str(path),
                             found="a directory" if path.is_dir() else f"no directory {path.parent}")
    if len({path.absolute() for path in paths}) < len(paths):
        raise InputError("two reports into one file", where=str(paths[0]), cure="give each its own")


def run(session: Session, target: str, as_json: bool = False, junit: str = "", sarif: str = "",
        strict: bool = False) -> None:
    """`check:<target>`.

    Raises:
        GateError: a check failed, or with `strict` was skipped. The reports are written before.
        StagecraftError: of the first check that could not judge.
    """
    from stages.check_text import text
    from stages.commands import show

    refuse_files(junit, sarif)
    report = judge_all(session, target, strict=strict)
    if junit:
        from stages.junit import junit_xml

        write(place(junit), junit_xml(report))
    if sarif:
        from stages.sarif import sarif_json

        write(place(sarif), sarif_json(report))
    session.report.line_break()
    show(report.to_json(), text(report), as_json)
    problems = [judged.problem for judged in report.of("error") if judged.problem is not None]
    error = report.error()
    if error is not None:
        problems.append(error)
    for problem in problems[:-1]:
        session.failed(problem)
    if problems:
        raise problems[-1]


def write(path: Path, content: str) -> None:
    """A report, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(content, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InputError("a report cannot be written", where=str(path), found=error.strerror or str(error)) from error
