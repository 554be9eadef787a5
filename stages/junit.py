"""A check report as JUnit XML: one test case for each check, as Jenkins, GitLab and GitHub Actions read it. Pure.

There is no standard; what is written is what their readers agree on: `testsuites/testsuite/testcase` with `failure`,
`error`, `skipped`, `system-out`. A waived finding is in the `system-out` of a case that passed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from xml.etree import ElementTree as Xml

from stages.checking import CheckReport, Judged, Weighed

#: What XML 1.0 cannot hold, escaped or not.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit_xml(report: CheckReport) -> str:
    """The document, with its declaration; ends with a newline."""
    skipped = len(report.of("skipped")) if not report.strict else 0
    failures = len(report.blocking) - len(report.of("error"))
    counts = {"tests": str(len(report.checks)), "failures": str(failures), "errors": str(len(report.of("error"))),
              "skipped": str(skipped), "time": seconds(sum(judged.seconds for judged in report.checks))}
    root, suite = document(f"check:{report.target}", counts)
    for judged in report.checks:
        _case(suite, judged, report)
    Xml.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + Xml.tostring(root, encoding="unicode") + "\n"


def document(name: str, counts: Mapping[str, str]) -> tuple[Xml.Element, Xml.Element]:
    """The root of a report with one suite, and that suite."""
    root = Xml.Element("testsuites", {"name": "stagecraft", **counts})
    return root, Xml.SubElement(root, "testsuite", {"name": name, **counts})


def _case(suite: Xml.Element, judged: Judged, report: CheckReport) -> None:
    case = Xml.SubElement(suite, "testcase", {"classname": f"stagecraft.{report.target}", "name": judged.check.id,
                                              "time": seconds(judged.seconds)})
    if judged.problem is not None:
        _add(case, "error", judged.problem.message, judged.problem.diagnostics(), judged.problem.code)
    elif judged.state == "failed":
        blocking = [one for one in judged.findings if one.blocks]
        first = blocking[0].finding
        message = f"{first.subject}: {first.message}" + f" (and {len(blocking) - 1} more)" * (len(blocking) > 1)
        _add(case, "failure", message, "\n".join(map(_line, blocking)), "gate")
    elif judged.state == "skipped":
        # A viewer takes a skipped case for no trouble; who asked for --strict does not.
        why = "\n".join(map(_line, judged.findings))
        _add(case, "failure" if report.strict else "skipped", why.partition("\n")[0], why, "skipped")
    rest = [_line(one) for one in judged.findings if not one.blocks and judged.state != "skipped"]
    rest += [f"warning: the waiver of {waiver['subject']!r} covers nothing" for waiver in judged.unused]
    if rest:
        Xml.SubElement(case, "system-out").text = clean("\n".join(rest))


def _line(one: Weighed) -> str:
    finding = one.finding
    text = f"{'waived' if one.waiver else finding.severity}: {finding.subject}: {finding.message}"
    if one.waiver:
        return f"{text}\n  reason: {one.waiver['reason']}"
    return text + "".join(f"\n  {label}: {value}" for label, value in (("where", finding.where), ("cure", finding.cure))
                          if value)


def _add(case: Xml.Element, tag: str, message: str, text: str, kind: str) -> None:
    Xml.SubElement(case, tag, {"message": clean(message), "type": kind}).text = clean(text)


def clean(text: str) -> str:
    """Without what XML cannot hold."""
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)


def seconds(value: float) -> str:
    return f"{value:.3f}"
