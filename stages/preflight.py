"""`preflight:<target>`: a candidate lock judged by its indexes' metadata and by parts of wheels, before any download.

Joins `lock` (reading wheels on an index), `checks` (the rules) and the target's waivers. `lock:<target>` runs it on
what it resolved before it writes. It is advice given early, not proof: what passes is judged again in the built layers.
Documented in docs/preflight.md; the format `stagecraft.preflight.v1` too.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cache.errors import GateError
from stages.check_text import width
from stages.checking import Weighed, weigh
from stages.lockfile import Lock
from stages.preflight_rules import Foreseen, Move, judge
from stages.project import Project
from stages.target import OWN_LAYERS, Target, distribution

if TYPE_CHECKING:
    from stages.tasks import Session

FORMAT = "stagecraft.preflight.v1"
#: Pins that are named for one finding.
_ALTERNATIVES = 3
_WORDS = {"info": "note"}


@dataclass(frozen=True)
class Foresight:
    """A finding of a check, the waiver that covers it, and the pins that would cure it."""

    check: str
    weighed: Weighed
    moves: tuple[Move, ...]

    def to_json(self) -> dict[str, Any]:
        moves = [{"name": move.name, "from": move.old, "to": move.new, "why": move.why} for move in self.moves]
        return {"check": self.check, **self.weighed.to_json(), "moves": moves}


@dataclass(frozen=True)
class Preflight:
    """What came of it.

    Attributes:
        wheels: how many were judged; `size` bytes in all.
        fetched: bytes that were read of them over the network now: nothing if all is known from an earlier run.
    """

    target: Target
    found: tuple[Foresight, ...]
    wheels: int
    size: int
    fetched: int

    @property
    def blocking(self) -> tuple[Foresight, ...]:
        return tuple(one for one in self.found if one.weighed.blocks)

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, "target": self.target.name, "passes": not self.blocking, "wheels": self.wheels,
                "size": self.size, "fetched": self.fetched, "findings": [one.to_json() for one in self.found]}

    def text(self) -> str:
        columns = width()
        lines = [line for one in self.found for line in self._lines(one, columns)]
        return "\n".join([*lines, *[""][: len(lines)], *textwrap.wrap(self.summary(), columns)])

    def notes(self) -> list[str]:
        """What blocks nothing, a line each; without what is waived, which the target says itself."""
        return [f"{_WORDS.get(finding.severity, finding.severity):<7} {one.check:<11} {finding.subject}: "
                f"{finding.message}" for one in self.found
                if (finding := one.weighed.finding).severity != "error"]

    def summary(self) -> str:
        """`thor: 197 wheels of 3991 MB judged by 16.5 MB of them: 2 waived; preflight passes`."""
        counted = [("error", len(self.blocking)), ("waived", sum(one.weighed.waiver is not None for one in self.found))]
        severities = [one.weighed.finding.severity for one in self.found]
        counted += [("warning", severities.count("warning")), ("note", severities.count("info"))]
        words = [f"{count} {word}{'s' * (count > 1 and word != 'waived')}" for word, count in counted if count]
        read = f"{self.fetched / 1e6:.1f} MB of them" if self.fetched else "what is known of them"
        return (f"{self.target.name}: {self.wheels} wheels of {self.size / 1e6:.0f} MB judged by {read}: "
                f"{', '.join(words) or 'nothing found'}; preflight {'does not pass' if self.blocking else 'passes'}")

    def error(self, what: str, cure: str = "") -> GateError | None:
        """What ends the command if something blocks."""
        if not self.blocking:
            return None
        found = "\n".join(f"{one.check}: {one.weighed.finding.subject}: {one.weighed.finding.message}"
                          for one in self.blocking)
        cures = [*self._moves()]
        cures += dict.fromkeys(one.weighed.finding.cure for one in self.blocking
                               if not one.moves and one.weighed.finding.cure)
        cures.append(f"or a waiver in {self.target.files[0]}, with its reason")
        return GateError(what, where=f"{len(self.blocking)} findings" if len(self.blocking) > 1 else "one finding",
                         found=found, cure="\n".join([*cures, *([cure] if cure else [])]))

    def _moves(self) -> Iterator[str]:
        """A line for each pin that must move, with what would do as well; without what follows from another line."""
        asked = dict.fromkeys(one.moves for one in self.blocking if one.moves)
        first = {moves[0] for moves in asked}
        torch = any(move.name == "torch" for move in first)
        for moves in asked:
            if moves[1:] == () and any(moves[0] in others for others in asked if others != moves):
                continue
            if torch and moves[0].follows:
                continue
            yield "move " + "\n  or ".join(map(self._move, moves[:_ALTERNATIVES]))

    def _lines(self, one: Foresight, columns: int) -> Iterator[str]:
        finding, waiver = one.weighed.finding, one.weighed.waiver
        word = "waived" if waiver else _WORDS.get(finding.severity, finding.severity)
        yield f"{word:<8} {one.check:<11} {finding.subject}"
        told = [("", finding.message)]
        if waiver:
            told.append(("reason", waiver["reason"]))
        else:
            told += [("where", finding.where)] if finding.where and finding.where != finding.subject else []
            told += [("move", self._move(move)) for move in one.moves] or [("cure", finding.cure)]
        for label, text in told:
            head = " " * 21 + (f"{label}: " if label else "")
            if text:
                yield from textwrap.wrap(text, columns, initial_indent=head, subsequent_indent=" " * 23,
                                         break_long_words=False, break_on_hyphens=False)

    def _move(self, move: Move) -> str:
        return f"{move.text()} ({pin(self.target, move.name)})"


def pin(target: Target, name: str) -> str:
    """Where a person moves the version of a wheel."""
    from lock.wheels import named

    data, file = target.data, target.files[0]
    if "." in name:  # a key of the target, not a wheel
        return f"{name} in {file}"
    places = [f"{section}.version" for section in OWN_LAYERS if section in data and distribution(data, section) == name]
    overrides = [entry["requirement"] for entry in data["wheels"]["overrides"]]
    parts = {"overrides": overrides, "requirements": data["wheels"]["requirements"]}
    places += [f"wheels.{part}" for part, lines in parts.items() if any(named(line) == name for line in lines)]
    if places:
        return f"{' and '.join(places)} in {file}"
    return f"./doit lock:{target.name} --upgrade {name}, or an override in {file}"


def preflight(project: Project, target: Target, lock: Lock, log: Callable[[str], None],
              proceed: Callable[[], None] = lambda: None) -> Preflight:
    """Judge a lock by its indexes.

    Args:
        log: takes one line.
        proceed: is called now and then, and may raise, to stop.

    Raises:
        FetchError: an index does not answer, or has a wheel no more.
        IntegrityError: what it answers is malformed, or is another file than the lock names.
    """
    from checks import facts
    from lock.indexes import load_indexes
    from lock.simple import Pages, WheelSource
    from stages.candidate import read_candidate

    indexes = load_indexes(project.root / "targets" / "indexes.yaml")
    pages = Pages(indexes)
    data: Mapping[str, Any] = lock.to_json()
    given = facts.abi(target.data, data)
    optional = tuple(row["files"].removeprefix(f"{given['site']}/") for row in given["optional"])
    candidate = read_candidate(project.store, WheelSource(indexes, pages), pages, lock.wheels, given["machine"],
                               optional, log, proceed)
    found = [_weighed(one, target.data["waivers"]) for one in judge(candidate, target.data, data)]
    order = {"error": 0, "warning": 2, "info": 3}
    found.sort(key=lambda one: (order[one.weighed.finding.severity] + (one.weighed.waiver is not None), one.check,
                                one.weighed.finding.subject))
    return Preflight(target, tuple(found), len(lock.wheels), sum(wheel.size for wheel in lock.wheels),
                     candidate.fetched)


def _weighed(one: Foreseen, waivers: list[Mapping[str, str]]) -> Foresight:
    of_check = [waiver for waiver in waivers if waiver["check"] == one.check]
    return Foresight(one.check, weigh([one.finding], of_check)[0], one.moves)


def run(session: Session, target: str, as_json: bool = False) -> None:
    """`preflight:<target>`.

    Raises:
        GateError: a finding that nothing waives; the report is written before.
        LockError: there is no lock, or it does not fit the target.
        FetchError: an index does not answer.
    """
    from stages.commands import show

    project = session.project
    session.busy = True
    found = preflight(project, project.target(target), project.lock(target), session.report.line,
                      session.check_cancelled)
    session.report.line_break()
    show(found.to_json(), found.text(), as_json)
    error = found.error(f"preflight does not let {target} pass")
    if error is not None:
        raise error
