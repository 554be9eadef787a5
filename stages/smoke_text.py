"""The report of a smoke test for people, and as JUnit XML. Pure."""

from __future__ import annotations

import textwrap
from xml.etree import ElementTree as Xml

from stages.check_text import width
from stages.junit import clean, document, seconds
from stages.smoke import STAND_IN, SmokeReport


def text(report: SmokeReport, columns: int = 0) -> str:
    """A line for each case, then what the server said last if one failed; `columns` 0 asks the terminal."""
    columns = columns or width()
    lines = textwrap.wrap(f"smoke of {report.target}: {report.server}, engine: {report.engine}; "
                          + "; ".join(report.how), columns)
    if report.engine == STAND_IN:
        lines += textwrap.wrap("The stand-in is not vLLM: server, backend and this machine's way to them are judged, "
                               "no generation.", columns)
    widest = max(len(case.case) for case in report.cases)
    for case in report.cases:
        took = f"{case.seconds:.1f} s" if case.seconds else ""
        head = f"{case.case:<{widest}}  {case.state:<7} {took:>7}  "
        lines += _wrapped(case.message or "-", head, columns)
    if report.failed or report.limit:
        if report.last:
            lines += ["", "what the server said last:"]
            for line in report.last:
                lines += _wrapped(line, "  ", columns)
        lines += ["", f"all of it: {report.log}"]
    return "\n".join([*lines, "", *textwrap.wrap(summary(report), columns)])


def summary(report: SmokeReport) -> str:
    """`cpu: 14 cases: 14 passed`; what was skipped is named."""
    counts = ", ".join(f"{count} {state}" for state, count in report.counts().items() if count)
    line = f"{report.target}: {len(report.cases)} cases: {counts}"
    skipped = [case.case for case in report.cases if case.state == "skipped"]
    return line + (f"; skipped is not passed: {', '.join(skipped)}" if skipped else "")


def junit_xml(report: SmokeReport) -> str:
    """One test case for each case; the engine is a property of the suite."""
    counts = report.counts()
    root, suite = document(f"smoke:{report.target}", {
        "tests": str(len(report.cases)), "failures": str(counts["failed"]), "errors": "0",
        "skipped": str(counts["skipped"]), "time": seconds(sum(case.seconds for case in report.cases))})
    properties = Xml.SubElement(suite, "properties")
    for name, value in (("engine", report.engine), ("server", report.server), ("how", "; ".join(report.how)),
                        ("limit", report.limit)):
        Xml.SubElement(properties, "property", {"name": name, "value": clean(value)})
    for case in report.cases:
        element = Xml.SubElement(suite, "testcase", {"classname": f"stagecraft.{report.target}.smoke",
                                                     "name": case.case, "time": seconds(case.seconds)})
        if case.state == "failed":
            Xml.SubElement(element, "failure", {"message": clean(case.message), "type": "smoke"}).text = \
                clean("\n".join([case.message, *report.last]))
        elif case.state == "skipped":
            Xml.SubElement(element, "skipped", {"message": clean(case.message)})
        elif case.message:
            Xml.SubElement(element, "system-out").text = clean(case.message)
    Xml.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + Xml.tostring(root, encoding="unicode") + "\n"


def _wrapped(line: str, head: str, columns: int) -> list[str]:
    return textwrap.wrap(line, columns, initial_indent=head, subsequent_indent=" " * len(head),
                         break_long_words=False, break_on_hyphens=False)
