"""A check report for people: one line for each check, then what they found. Pure.

As wide as the terminal, between 60 and 100 columns; 80 in a pipe. Words that are longer, such as paths, stay whole so
that they can be copied.
"""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterator

from stages.checking import CheckReport, Judged, Weighed

PIPE = 80
#: Of a note, which asks nobody to do anything; whatever is worse is shown whole.
NOTE_LINES = 4
#: Of one check; if it has more, the rest is counted. Fifty notes would push an error off the screen.
NOTES = 5


def width() -> int:
    """Columns to fill on standard output."""
    return max(60, min(100, shutil.get_terminal_size().columns)) if sys.stdout.isatty() else PIPE


def text(report: CheckReport, columns: int = 0) -> str:
    """The whole report; `columns` 0 asks the terminal."""
    columns = columns or width()
    widest = max((len(judged.check.id) for judged in report.checks), default=0)
    lines = [f"{judged.check.id:<{widest}}  {judged.state:<7}  {'stored' if judged.cached else '':<6}  "
             f"{_counted(judged)}".rstrip() for judged in report.checks]
    for judged in sorted(report.checks, key=lambda one: one in report.blocking):
        found = list(_findings(judged, columns))
        if found:
            lines += ["", *_wrapped(f"{judged.check.id}: {judged.check.title}", "", columns), *found]
    return "\n".join([*lines, "", *textwrap.wrap(summary(report), columns)])


def summary(report: CheckReport) -> str:
    """`thor: 5 checks: 4 passed, 1 waived`; what was skipped is named."""
    counts = ", ".join(f"{count} {state}" for state, count in report.counts().items() if count)
    line = f"{report.target}: {len(report.checks)} checks" + (f": {counts}" if counts else "")
    if report.of("skipped"):
        line += "; skipped is not passed: " + ", ".join(judged.check.id for judged in report.of("skipped"))
    return line


def _counted(judged: Judged) -> str:
    words = [(judged.count("error"), "error"), (judged.count("warning"), "warning"), (judged.count("info"), "note")]
    shown = [f"{count} {word}{'s' * (count > 1)}" for count, word in words if count]
    return ", ".join(shown + ([f"{judged.waived} waived"] if judged.waived else []))


def _findings(judged: Judged, columns: int) -> Iterator[str]:
    if judged.problem is not None:
        yield from _wrapped("could not judge: " + judged.problem.message, "  ", columns)
        for label in ("where", "expected", "found", "cure"):
            yield from _labelled(label, str(getattr(judged.problem, label) or ""), columns)
    order = {"error": 0, "warning": 2, "info": 3}
    shown = sorted(judged.findings, key=lambda one: order[one.finding.severity] + (one.waiver is not None))
    more = max(0, judged.count("info") - NOTES)
    more = more if more > 1 else 0  # a line that says "1 more" helps nobody
    for one in shown[:len(shown) - more]:
        yield from _finding(one, columns)
    if more:
        yield f"  … and {more} more notes (all of them with --json)"
    for waiver in judged.unused:
        line = f"warning  the waiver of {waiver['subject']!r} covers nothing: out of date, or misspelt"
        yield from _wrapped(line, "  ", columns)


def _finding(one: Weighed, columns: int) -> Iterator[str]:
    finding = one.finding
    word = "waived" if one.waiver else {"info": "note"}.get(finding.severity, finding.severity)
    yield from _wrapped(f"{word:<7}  {finding.subject}", "  ", columns)
    lines = _wrapped(finding.message, " " * 11, columns)
    if finding.severity == "info" and len(lines) > NOTE_LINES:
        lines[NOTE_LINES - 1:] = [" " * 11 + "… (all of it with --json)"]
    yield from lines
    if one.waiver:
        until = f" (until {one.waiver['expires']})" if "expires" in one.waiver else ""
        yield from _labelled("reason", one.waiver["reason"] + until, columns)
        return
    # A subject that is the path already need not be said twice.
    if finding.where.strip("/") != finding.subject.strip("/"):
        yield from _labelled("where", finding.where, columns)
    yield from _labelled("cure", finding.cure, columns)


def _labelled(label: str, value: str, columns: int) -> Iterator[str]:
    first = True
    for line in value.splitlines():
        head = f"{' ' * 11}{label + ':' if first else '':<8}"
        yield from _wrapped(line, head, columns)
        first = False


def _wrapped(line: str, indent: str, columns: int) -> list[str]:
    return textwrap.wrap(line, columns, initial_indent=indent, subsequent_indent=" " * max(len(indent), 11),
                         break_long_words=False, break_on_hyphens=False)
