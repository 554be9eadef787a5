"""The rules of SARIF 2.1.0 for what Stagecraft writes, as a JSON Schema of our own; the numbers are the standard's.

https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html. Only the objects that we write are here, and no other
property is let through: one that is misspelt fails. What spans several objects is in `problems`.
"""

from __future__ import annotations

from typing import Any

from jsonschema import Draft202012Validator

_TEXT = {"type": "string", "minLength": 1}


def _object(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": required, "additionalProperties": False,
            "properties": {**properties, "properties": {"type": "object"}}}


_MESSAGE = _object(["text"], text=_TEXT)  # 3.11
_MULTIFORMAT = _object(["text"], text=_TEXT, markdown=_TEXT)  # 3.12
_ARTIFACT = _object(["uri"], uri={"type": "string", "pattern": r"^[A-Za-z0-9._~!$&'()*+,;=:@%/-]+$"},  # 3.4, RFC 3986
                    uriBaseId=_TEXT)
_LOGICAL = _object([], name=_TEXT, fullyQualifiedName=_TEXT, kind=_TEXT)  # 3.33
_LOCATION = _object([], physicalLocation=_object(["artifactLocation"], artifactLocation=_ARTIFACT),  # 3.28, 3.29
                    logicalLocations={"type": "array", "items": _LOGICAL})
_SUPPRESSION = _object(["kind"], kind={"enum": ["inSource", "external"]}, justification=_TEXT, location=_LOCATION,
                       status={"enum": ["accepted", "underReview", "rejected"]})  # 3.35
_LEVEL = {"enum": ["none", "note", "warning", "error"]}  # 3.27.10, 3.50.3, 3.58.6
_RESULT = _object(["message"], ruleId=_TEXT, ruleIndex={"type": "integer", "minimum": -1}, level=_LEVEL,  # 3.27
                  message=_MESSAGE, locations={"type": "array", "items": _LOCATION},
                  partialFingerprints={"type": "object", "additionalProperties": {"type": "string"}},
                  suppressions={"type": "array", "items": _SUPPRESSION, "uniqueItems": True})
_RULE = _object(["id"], id=_TEXT, name=_TEXT, shortDescription=_MULTIFORMAT, help=_MULTIFORMAT,  # 3.49
                defaultConfiguration=_object([], level=_LEVEL))
_NOTE = _object(["message"], message=_MESSAGE, level=_LEVEL, associatedRule=_object([], id=_TEXT))  # 3.58
_RUN = _object(  # 3.14
    ["tool"], tool=_object(["driver"], driver=_object(["name"], name=_TEXT,  # 3.18, 3.19
                                                      rules={"type": "array", "items": _RULE, "uniqueItems": True})),
    automationDetails=_object([], id=_TEXT),  # 3.17
    invocations={"type": "array", "items": _object(  # 3.20
        ["executionSuccessful"], executionSuccessful={"type": "boolean"},
        toolExecutionNotifications={"type": "array", "items": _NOTE})},
    originalUriBaseIds={"type": "object", "additionalProperties": _object([], description=_MESSAGE)},  # 3.14.14
    results={"type": "array", "items": _RESULT})
LOG = _object(["version", "runs"], version={"const": "2.1.0"}, runs={"type": "array", "items": _RUN},  # 3.13
              **{"$schema": {"type": "string", "pattern": r"^https://\S+/sarif-schema-2\.1\.0\.json$"}})


def problems(log: Any) -> list[str]:
    """What the standard forbids in a log; empty if nothing."""
    found = [f"{error.json_path}: {error.message}" for error in Draft202012Validator(LOG).iter_errors(log)]
    if found:
        return found
    for run in log["runs"]:
        rules = [rule["id"] for rule in run["tool"]["driver"].get("rules", ())]
        bases = set(run.get("originalUriBaseIds", ()))
        if len(set(rules)) < len(rules):
            found.append("two rules have one id")  # 3.49.3
        for result in run.get("results", ()):
            index = result.get("ruleIndex", -1)
            if "ruleId" not in result or (index >= 0 and rules[index:index + 1] != [result["ruleId"]]):
                found.append(f"ruleId and ruleIndex disagree: {result}")  # 3.27.5, 3.27.6
            for location in result.get("locations", ()):
                artifact = location["physicalLocation"]["artifactLocation"]
                if artifact.get("uriBaseId") not in bases:
                    found.append(f"a base that is not declared: {artifact}")  # 3.4.4
                if artifact["uri"].startswith("/"):
                    found.append(f"relative to a base, and absolute: {artifact}")  # 3.4.3
        for invocation in run.get("invocations", ()):
            for note in invocation.get("toolExecutionNotifications", ()):
                if note.get("associatedRule", {"id": rules[0]})["id"] not in rules:
                    found.append(f"no such rule: {note}")  # 3.58.3
    return found
