"""Findings, verdicts and waivers; the runner that judges or finds the verdict in the store.

A verdict (format `stagecraft.verdict.v1`) is stored under the digest of everything that it depends on: the check's id
and version, the outputs' digests, the facts, the hardware class. It holds all findings. Waivers come after:
they decide whether a gate passes and never change a verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cache import canonical
from checks.registry import Check

if TYPE_CHECKING:
    from cache.store import Store

FORMAT = "stagecraft.verdict.v1"


@dataclass(frozen=True)
class Finding:
    """One thing that a check has to say.

    Attributes:
        severity: "error" blocks unless waived; "warning" and "info" never block.
        subject: stable id within the check, which waivers match: `opencv-python-headless: numpy>=2`.
        message: one line for people.
        where: path in the image, or stage.
        cure: what to do next.
    """

    severity: str
    subject: str
    message: str
    where: str = ""
    cure: str = ""


class SkippedError(Exception):
    """A check cannot be made on this machine: what is missing, and the cure. Never a verdict."""

    def __init__(self, missing: str, cure: str = "") -> None:
        super().__init__(missing)
        self.missing, self.cure = missing, cure


@dataclass(frozen=True)
class CheckInputs:
    """What a check may read: `outputs` maps "stage/output" to the digest of a blob in `store`.

    For a check that runs something also, and no part of what it judges by: `log` takes what that says, `poll` is
    called while it runs and ends it by raising, `keep` is where the directory of a failed run shall be left.
    """

    store: Store
    outputs: Mapping[str, str]
    facts: Mapping[str, Any]
    log: Callable[[str], None] = lambda line: None
    poll: Callable[[], None] = lambda: None
    keep: Path | None = None


@dataclass(frozen=True)
class Verdict:
    """What check `check` found; `key` is where the store keeps it, `cached` tells that it was there.

    `skipped` says what this machine lacks to make the check: there is then no verdict, and the one finding says so too.
    """

    check: str
    key: str
    findings: tuple[Finding, ...]
    cached: bool = False
    skipped: str = ""

    @property
    def errors(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.severity == "error")


@dataclass(frozen=True)
class GateReport:
    """Verdicts after waivers.

    Attributes:
        passed: ids of the checks without any error.
        waived: (check id, finding, reason): errors that a waiver covers.
        failed: (check id, finding): errors that nothing covers.
        notes: (check id, finding): warnings and infos.
        unused: waivers of judged checks that cover nothing: out of date, or misspelt.
        skipped: (check id, what is missing): checks that were not made. They neither pass nor fail.
    """

    passed: tuple[str, ...]
    waived: tuple[tuple[str, Finding, str], ...]
    failed: tuple[tuple[str, Finding], ...]
    notes: tuple[tuple[str, Finding], ...]
    unused: tuple[Mapping[str, str], ...]
    skipped: tuple[tuple[str, str], ...] = ()

    @property
    def passes(self) -> bool:
        return not self.failed


def verdict_key(check: Check, outputs: Mapping[str, str], facts: Mapping[str, Any], hardware: str = "none") -> str:
    """The digest under which a verdict is kept. `hardware` is a class ("none", "thor"), never one machine."""
    return canonical.digest_of("verdict", {
        "check": check.id, "version": check.version, "outputs": dict(outputs), "facts": dict(facts),
        "hardware": hardware,
    })


def stored_verdict(store: Store, check: Check, outputs: Mapping[str, str], facts: Mapping[str, Any],
                   hardware: str = "none") -> Verdict | None:
    """The verdict that the store has, or None. Runs nothing; a damaged entry is none."""
    key = verdict_key(check, outputs, facts, hardware)
    found = store.verdict(key)
    if found is None or found.get("format") != FORMAT:
        return None
    try:
        return Verdict(check.id, key, tuple(Finding(**finding) for finding in found["findings"]), cached=True)
    except (KeyError, TypeError):
        return None


def judge(store: Store, check: Check, outputs: Mapping[str, str], facts: Mapping[str, Any],
          hardware: str = "none", again: bool = False, **more: Any) -> Verdict:
    """The verdict of a check: from the store, else by running it, and then stored, unless it was skipped.

    Args:
        outputs: "stage/output" to digest; the blobs are in the store.
        again: run it even if there is a verdict, for what it leaves behind.
        more: for `CheckInputs`.

    Raises:
        IntegrityError: a blob is missing, or was altered.
    """
    found = stored_verdict(store, check, outputs, facts, hardware)
    if found is not None and not again:
        return found
    import importlib

    module, _, function = check.entry.partition(":")
    run = getattr(importlib.import_module(module), function)
    key = verdict_key(check, outputs, facts, hardware)
    try:
        findings = sorted(run(CheckInputs(store, outputs, facts, **more)),
                          key=lambda f: (f.severity, f.subject, f.message))
    except SkippedError as skipped:
        told = Finding("warning", "skipped", f"not judged on this machine: {skipped.missing}", "", skipped.cure)
        return Verdict(check.id, key, (told,), skipped=skipped.missing)
    store.put_verdict(key, {
        "format": FORMAT, "key": key, "check": check.id, "version": check.version, "hardware": hardware,
        "outputs": dict(outputs), "facts": dict(facts), "findings": [vars(finding) for finding in findings],
    })
    return Verdict(check.id, key, tuple(findings))


def apply_waivers(verdicts: Iterable[Verdict], waivers: Sequence[Mapping[str, str]]) -> GateReport:
    """Weigh verdicts against waivers `{"check": id, "subject": glob, "reason": text}`.

    A waiver covers the errors of its check whose subject matches: as it is written, or as a glob. Pure.
    """
    passed, waived, failed, notes, skipped = [], [], [], [], []
    used: set[int] = set()
    judged = set()
    for verdict in verdicts:
        if verdict.skipped:
            skipped.append((verdict.check, verdict.skipped))
            continue
        judged.add(verdict.check)
        if not verdict.errors:
            passed.append(verdict.check)
        for finding in verdict.findings:
            if finding.severity != "error":
                notes.append((verdict.check, finding))
                continue
            covering = [number for number, waiver in enumerate(waivers)
                        if waiver["check"] == verdict.check and covers(waiver["subject"], finding.subject)]
            used.update(covering)
            if covering:
                waived.append((verdict.check, finding, waivers[covering[0]]["reason"]))
            else:
                failed.append((verdict.check, finding))
    unused = tuple(waiver for number, waiver in enumerate(waivers) if number not in used and waiver["check"] in judged)
    return GateReport(tuple(passed), tuple(waived), tuple(failed), tuple(notes), unused, tuple(skipped))


def covers(pattern: str, subject: str) -> bool:
    """True if a waiver's `subject` covers a finding's."""
    # A subject such as `x: y[extra]>=2` is no glob of itself.
    return pattern == subject or fnmatchcase(subject, pattern)
