"""Findings, verdicts and waivers; the runner that judges or finds the verdict in the store.

A verdict (format `stagecraft.verdict.v1`) is stored under the digest of everything that it depends on: the check's id
and version, the outputs' digests, the facts, the hardware class. It holds all findings. Waivers come after:
they decide whether a gate passes and never change a verdict.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
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


@dataclass(frozen=True)
class CheckInputs:
    """What a check may read: `outputs` maps "stage/output" to the digest of a blob in `store`."""

    store: Store
    outputs: Mapping[str, str]
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Verdict:
    """What check `check` found; `key` is where the store keeps it, `cached` tells that it was there."""

    check: str
    key: str
    findings: tuple[Finding, ...]
    cached: bool = False

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
    """

    passed: tuple[str, ...]
    waived: tuple[tuple[str, Finding, str], ...]
    failed: tuple[tuple[str, Finding], ...]
    notes: tuple[tuple[str, Finding], ...]
    unused: tuple[Mapping[str, str], ...]

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
          hardware: str = "none") -> Verdict:
    """The verdict of a check: from the store, else by running it, and then stored.

    Args:
        outputs: "stage/output" to digest; the blobs are in the store.

    Raises:
        IntegrityError: a blob is missing, or was altered.
    """
    found = stored_verdict(store, check, outputs, facts, hardware)
    if found is not None:
        return found
    import importlib

    module, _, function = check.entry.partition(":")
    run = getattr(importlib.import_module(module), function)
    findings = sorted(run(CheckInputs(store, outputs, facts)), key=lambda f: (f.severity, f.subject, f.message))
    key = verdict_key(check, outputs, facts, hardware)
    store.put_verdict(key, {
        "format": FORMAT, "key": key, "check": check.id, "version": check.version, "hardware": hardware,
        "outputs": dict(outputs), "facts": dict(facts), "findings": [vars(finding) for finding in findings],
    })
    return Verdict(check.id, key, tuple(findings))


def apply_waivers(verdicts: Iterable[Verdict], waivers: Sequence[Mapping[str, str]]) -> GateReport:
    """Weigh verdicts against waivers `{"check": id, "subject": glob, "reason": text}`.

    A waiver covers the errors of its check whose subject matches: as it is written, or as a glob. Pure.
    """
    passed, waived, failed, notes = [], [], [], []
    used: set[int] = set()
    judged = set()
    for verdict in verdicts:
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
    return GateReport(tuple(passed), tuple(waived), tuple(failed), tuple(notes), unused)


def covers(pattern: str, subject: str) -> bool:
    """True if a waiver's `subject` covers a finding's."""
    # A subject such as `x: y[extra]>=2` is no glob of itself.
    return pattern == subject or fnmatchcase(subject, pattern)
