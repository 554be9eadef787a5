"""A check report as SARIF 2.1.0, for code scanning: rules are the checks, results their findings. Pure.

https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html; section numbers below are of that. Deterministic: no
times, no host, no user, so two runs that found the same give the same bytes.

A finding in the image has its path below the base `IMAGE`; one about a file of the project, or about a stage as a
whole, has that file or the target below `PROJECT`, for a viewer that shows only results with a file.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from cache import canonical
from stages.checking import CheckReport, Judged, Weighed

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
DOCUMENT = "docs/checks.md"

#: 3.27.10: a level for each severity.
_LEVELS = {"error": "error", "warning": "warning", "info": "note"}


def sarif_json(report: CheckReport) -> str:
    """The log, with one run; ends with a newline."""
    seen: Counter[str] = Counter()
    notes = [note for judged in report.checks for note in _notes(judged, report.strict)]
    run = {
        "tool": {"driver": {"name": "Stagecraft", "rules": [_rule(judged) for judged in report.checks]}},
        # 3.17.3: ends with a slash: it names the category, which keeps the results of targets apart.
        "automationDetails": {"id": f"stagecraft/check/{report.target}/"},
        "invocations": [{"executionSuccessful": not report.of("error"), "toolExecutionNotifications": notes}],
        "originalUriBaseIds": {
            "IMAGE": {"description": {"text": f"the root of the image {report.target}"}},
            "PROJECT": {"description": {"text": "the directory of dodo.py"}}},
        "results": [_result(report.target, index, judged, one, seen) for index, judged in enumerate(report.checks)
                    if judged.state != "skipped" for one in judged.findings],
        "properties": {"target": report.target, "passes": not report.blocking, "counts": report.counts()},
    }
    return json.dumps({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}, indent=1, ensure_ascii=False) + "\n"


def _rule(judged: Judged) -> dict[str, Any]:
    """3.49. `helpUri` must be absolute, and where this project is published is not known here: `help` has the place."""
    check = judged.check
    where = f"{DOCUMENT}#{check.id}"
    return {"id": check.id, "name": "".join(word.capitalize() for word in check.id.split("-")),
            "shortDescription": {"text": check.title},
            "help": {"text": f"{check.title}. See {where}", "markdown": f"{check.title}. See [{where}]({where})."},
            "defaultConfiguration": {"level": "error"}, "properties": {"version": check.version}}


def _result(target: str, index: int, judged: Judged, one: Weighed, seen: Counter[str]) -> dict[str, Any]:
    finding = one.finding
    found: dict[str, Any] = {
        "ruleId": judged.check.id, "ruleIndex": index, "level": _LEVELS[finding.severity],
        "message": {"text": f"{finding.subject}: {finding.message}" + (f"\n{finding.cure}" if finding.cure else "")},
        "locations": [_location(target, finding.where)],
        "partialFingerprints": {"stagecraftFinding/v1": _fingerprint(target, judged.check.id, finding.subject, seen)},
        "properties": {"subject": finding.subject, "cure": finding.cure},
    }
    if one.waiver:
        found["suppressions"] = [_suppression(target, one.waiver)]
    return found


def _location(target: str, where: str) -> dict[str, Any]:
    path, base = f"targets/{target}.yaml", "PROJECT"
    logical = {}
    if where.startswith("/"):
        path, base = where.lstrip("/"), "IMAGE"
    elif "/" in where:
        path = where
    elif where:
        logical = {"logicalLocations": [{"name": where, "kind": "stage"}]}
    return {"physicalLocation": {"artifactLocation": {"uri": quote(path), "uriBaseId": base}}, **logical}


def _fingerprint(target: str, check: str, subject: str, seen: Counter[str]) -> str:
    """Of what a finding is about, not of its words; a check's second finding on one subject counts on."""
    key = json.dumps([target, check, subject])
    seen[key] += 1
    return canonical.sha256(json.dumps([key, seen[key]]).encode())[7:39]


def _suppression(target: str, waiver: Mapping[str, str]) -> dict[str, Any]:
    """3.35: outside the code, decided by a person."""
    found: dict[str, Any] = {
        "kind": "external", "status": "accepted", "justification": waiver["reason"],
        "location": {"physicalLocation": {"artifactLocation": {"uri": quote(f"targets/{target}.yaml"),
                                                               "uriBaseId": "PROJECT"}}}}
    if "expires" in waiver:
        found["properties"] = {"expires": waiver["expires"]}
    return found


def _notes(judged: Judged, strict: bool) -> list[dict[str, Any]]:
    """3.58: what is no finding: a check that was skipped or could not judge, a waiver that covers nothing."""
    def note(level: str, text: str) -> dict[str, Any]:
        return {"level": level, "message": {"text": text}, "associatedRule": {"id": judged.check.id}}

    found = [note("error", judged.problem.diagnostics())] if judged.problem else []
    if judged.state == "skipped":
        found += [note("error" if strict else "warning", one.finding.message + f"\n{one.finding.cure}".rstrip())
                  for one in judged.findings]
    return found + [note("warning", f"the waiver of {waiver['subject']!r} covers nothing") for waiver in judged.unused]
