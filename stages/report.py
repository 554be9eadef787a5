"""What the user sees while stages run: one line per stage, a progress line, a JSON event stream.

Human text and progress go to standard error; a command's result goes to standard output. On a terminal the last line
shows what is going on now; in a pipe a plain line says so every ten seconds. Thread-safe.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
import threading
import time
from collections.abc import Iterable
from typing import IO, Any

PLAIN_EVERY = 10.0  # seconds between progress lines in a pipe
_COLUMNS = 79
_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")


def size_text(nbytes: int) -> str:
    """`1.2 GB`, `431 MB`, `12 kB`, `17 B`: decimal units."""
    value = float(nbytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5 or unit == "GB":
            return f"{value:.0f} {unit}" if value >= 10 or unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    raise AssertionError


def time_text(ms: int) -> str:
    """`0.3 s`, `12 s`, `3 min 20 s`, `2 h 10 min`."""
    seconds = ms / 1000
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
    return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"


def _plain(line: str) -> str:
    """A program's line without colours and other control characters."""
    return "".join(sign for sign in _ESCAPE.sub("", line) if sign.isprintable()).strip()


class Report:
    """Prints for one run. Counts what happened, so that the end can say it in one line."""

    def __init__(self, err: IO[str] | None = None, events: str | None = None) -> None:
        self._err = sys.stderr if err is None else err
        self._terminal = self._err.isatty()
        self._events = open(events, "a", encoding="utf-8") if events else None  # noqa: SIM115 - lives as long as the run
        self._lock = threading.Lock()
        self._active: dict[str, tuple[str, int, int, float, int]] = {}
        self._said: dict[str, str] = {}
        self._targets: set[str] = set()
        self._shown = 0.0
        self._width = 0
        self._column = 11
        self.built: set[tuple[str, str]] = set()
        self.waiting_hits: list[str] = []

    def fit(self, names: Iterable[str]) -> None:
        """Make room for these names of stages: all lines behind have one column for them."""
        self._column = max(self._column, *map(len, names))

    # -- the engine's observer --------------------------------------------------------------------

    def event(self, kind: str, stage: str, *, target: str = "", **details: Any) -> None:
        """See `stages.engine.Observer`; also `hit` and `gate` from the tasks."""
        self._emit(kind, stage, {**({"target": target} if target else {}), **details})
        name = self._name(stage, target)
        if kind == "hit":
            with self._lock:
                self.waiting_hits.append(name)
            return
        if kind == "log":
            with self._lock:
                self._said[name] = _plain(str(details.get("line", ""))) or self._said.get(name, "")
        if kind in ("log", "fetched"):
            return
        text = self._text(kind, details)
        if kind in ("built", "reused", "failed", "rebuilt", "gate"):
            with self._lock:
                self._active.pop(name, None)
                self._said.pop(name, None)
                if kind == "built":
                    self.built.add((target, stage))
        if text:
            self.line(f"  {kind:<7} {name:<{self._column}} {text}")

    def _name(self, stage: str, target: str) -> str:
        """`torch`; once a run concerns several targets, `torch:thor`."""
        with self._lock:
            if target:
                self._targets.add(target)
            return f"{stage}:{target}" if len(self._targets) > 1 and target else stage

    def _text(self, kind: str, details: dict[str, Any]) -> str:
        if kind == "wait":
            return "another build makes it; waiting"
        if kind == "reused":
            return "built by another process"
        if kind == "fetch":
            return f"{details['files']} files, {size_text(details['bytes'])}"
        if kind == "built":
            fetched = f", fetched {size_text(details['fetched'])}" if details["fetched"] else ""
            odd = "; NOT THE SAME BYTES as an earlier build, see store:info" if details["nondeterministic"] else ""
            return f"{size_text(details['size'])} in {time_text(details['ms'])}{fetched}{odd}"
        if kind in ("gate", "rebuilt"):
            return str(details["text"])
        if kind == "damaged":
            return f"{', '.join(details['files'])} in the store; fetched again"
        if kind == "failed":
            return str(details["error"]["message"])
        return ""

    def progress(self, stage: str, what: str, done: int, total: int, target: str = "") -> None:
        stage = self._name(stage, target)
        now = time.monotonic()
        with self._lock:
            if self._active.get(stage, ("",))[0] != what:
                self._active[stage] = (what, done, total, now, done)
            _, _, _, since, first = self._active[stage]
            self._active[stage] = (what, done, total, since, first)
            if now - self._shown < (0.1 if self._terminal else PLAIN_EVERY):
                return
            if not self._terminal and self._shown == 0.0:
                self._shown = now
                return
            self._shown = now
            with contextlib.suppress(OSError):
                self._show(now)

    def _show(self, now: float) -> None:
        parts = []
        for stage, (what, done, total, since, first) in self._active.items():
            if not total:  # a program that runs: what it said last
                said = self._said.get(stage, "")
                parts.append(f"{stage} {time_text(int(1000 * (now - since)))}{f': {said}' if said else ''}")
                continue
            rate = (done - first) / (now - since) if now > since else 0
            share = f" {100 * done // total}%" if total else ""
            left = f" {time_text(int(1000 * (total - done) / rate))} left" if rate and total > done else ""
            parts.append(f"{stage} {what}{share} {size_text(done)} {size_text(int(rate))}/s{left}")
        if self._terminal:
            text = " | ".join(parts)[:78]
            self._err.write("\r" + text.ljust(self._width))
            self._width = len(text)
        else:
            for part in parts:
                self._err.write(f"  ...     {part}"[:_COLUMNS] + "\n")
        self._err.flush()

    # -- lines ------------------------------------------------------------------------------------

    def line(self, text: str) -> None:
        """One line on standard error; stages found in the store are named before the first other line."""
        with self._lock:
            hits, self.waiting_hits = self.waiting_hits, []
            with contextlib.suppress(OSError):  # whoever read standard error has gone away: the build goes on
                self._clear()
                if hits:
                    self._err.write(f"  {'hit':<7} {', '.join(hits)}\n")
                self._err.write(text + "\n")
                self._err.flush()

    def line_break(self) -> None:
        """Take the progress line away before something is written to standard output."""
        with self._lock, contextlib.suppress(OSError):
            self._clear()
            self._err.flush()

    def _clear(self) -> None:
        if self._width:
            self._err.write("\r" + " " * self._width + "\r")
            self._width = 0

    def _emit(self, kind: str, stage: str, details: dict[str, Any]) -> None:
        if self._events is not None:
            with self._lock:
                json.dump({"event": kind, "stage": stage, "time": time.time(), **details}, self._events)
                self._events.write("\n")
                self._events.flush()

    def close(self) -> None:
        with self._lock:
            with contextlib.suppress(OSError):
                self._clear()
            if self._events is not None:
                self._events.close()
                self._events = None


class OfTarget:
    """The observer of one target's engine: passes everything on with the target's name."""

    def __init__(self, report: Report, target: str) -> None:
        self._report, self._target = report, target

    def event(self, kind: str, stage: str, **details: Any) -> None:
        self._report.event(kind, stage, target=self._target, **details)

    def progress(self, stage: str, what: str, done: int, total: int) -> None:
        self._report.progress(stage, what, done, total, self._target)
