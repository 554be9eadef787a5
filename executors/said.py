"""What a script says while it runs: its last lines, what they tell of why it fails, and lines that end it."""

from __future__ import annotations

import collections
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from cache.errors import InputError, StageError
from executors.jobs import KILLED

_LAST_LINES = 25
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\^_])")
#: What tells why a script fails, as C's library, resolvers, curl, git, Python and CMake say it.
_TELLING = re.compile(
    r"(?P<disk>No space left on device|Disk quota exceeded)"
    r"|(?P<network>Network is unreachable|Could not resolve host|Temporary failure in name resolution"
    r"|Name or service not known|FETCHCONTENT_FULLY_DISCONNECTED is set to true)"
    rf"|(?P<killed>{KILLED.pattern})")
#: How all of these begin; six times as fast for the lines that are none.
_HINT = re.compile("No space|Disk quota|Network is|Could not|Temporary|Name or|FETCHCONTENT_|Kill|SIGKILL|signal 9")


@dataclass(frozen=True)
class Refusal:
    """A line that ends a build, unless what its first group matched (without groups: the line) fits one of `allow`."""

    pattern: re.Pattern[str]
    allow: tuple[str, ...]
    reason: str

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Refusal:
        """From a param `{"pattern", "allow": […], "reason"}`; the last two may be missing.

        Raises:
            InputError: the pattern is no regular expression.
        """
        try:
            pattern = re.compile(data["pattern"])
        except re.error as error:
            raise InputError("a pattern of `refuse` is no regular expression", where=data["pattern"],
                             found=str(error), cure="correct it in the recipe") from error
        return cls(pattern, tuple(data.get("allow", ())), data.get("reason", ""))

    def judge(self, line: str) -> None:
        """Raise StageError if the line ends the build."""
        match = self.pattern.search(line)
        if match is None:
            return
        named = next((group for group in match.groups()[:1] if group), line).strip()
        if any(fnmatchcase(named, allowed) for allowed in self.allow):
            return
        raise StageError(
            "a line of its output ends the build" + (f": {self.reason}" if self.reason else ""), found=line,
            expected=f"no line like {self.pattern.pattern!r}" + (f", but for {', '.join(self.allow)}" if self.allow
                                                                  else ""),
            cure=f"correct what it is compiled for, or add {named!r} to `allow` of this line in the recipe")


class Said:
    """Takes the lines of a script.

    Attributes:
        last: its last lines.
        told: first line that tells why it may fail, by what it tells: `disk`, `network`, `killed`.
    """

    def __init__(self, log: Callable[[str], None], refusals: Iterable[Refusal] = ()) -> None:
        self._log, self._refusals = log, tuple(refusals)
        self.last: collections.deque[str] = collections.deque(maxlen=_LAST_LINES)
        self.told: dict[str, str] = {}

    def line(self, line: str) -> None:
        """One line, as it comes. Raises StageError if it ends the build."""
        self._log(line)
        plain = _ESCAPES.sub("", line) if "\x1b" in line else line
        self.last.append(plain)
        telling = _TELLING.search(plain) if _HINT.search(plain) else None
        if telling is not None and telling.lastgroup:
            self.told.setdefault(telling.lastgroup, plain.strip())
        for refusal in self._refusals:
            refusal.judge(plain.strip())

    def text(self, *first: str) -> str:
        """The last lines, and before them those of `first` that are not among them."""
        lines = [line for line in first if line not in self.last and line not in map(str.strip, self.last)]
        return "\n".join([*lines, *self.last]) or "(it wrote nothing)"
