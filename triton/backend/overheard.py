"""Why a load failed: vLLM's engine core says it in its own process, on standard output, and nowhere else.

While a model loads, what this process and its children write goes through a pipe to where it went before, and the last
lines are kept. Children keep the pipe, so the thread that copies goes on until the last of them has ended.
"""

from __future__ import annotations

import collections
import os
import re
import sys
import threading

#: `(EngineCore pid=12) ERROR 11-21 20:14:33 [core.py:99] ValueError: text`, or a bare last line of a traceback.
_ERROR = re.compile(r"(?:^|\s|\.)((?:[A-Z]\w*)(?:Error|Exception|Interrupt|Exit)): (\S.*)")
#: Said by whoever waits for the one that failed.
_SECOND_HAND = ("Engine core initialization failed", "WorkerProc initialization failed", "EngineCore failed to start",
                "Failed core proc", "leaked")
_KEPT = 400


class Overheard:
    """Listens from its making to `end`."""

    def __init__(self) -> None:
        self._lines: collections.deque[str] = collections.deque(maxlen=_KEPT)
        sys.stdout.flush()
        sys.stderr.flush()
        self._before = [os.dup(fd) for fd in (1, 2)]
        self._threads = []
        for fd, before in zip((1, 2), self._before, strict=True):
            reading, writing = os.pipe()
            os.dup2(writing, fd)
            os.close(writing)
            thread = threading.Thread(target=self._copy, args=(reading, before), name=f"copy-{fd}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def end(self) -> None:
        """This process writes as before again; its children still through the pipe."""
        sys.stdout.flush()
        sys.stderr.flush()
        for fd, before in zip((1, 2), self._before, strict=True):
            os.dup2(before, fd)

    def cause(self) -> str:
        """The line that says why; "" if none does."""
        for thread in self._threads:
            thread.join(timeout=0.5)  # children that have ended may have said more than was copied yet
        return cause(list(self._lines))

    def _copy(self, reading: int, to: int) -> None:
        rest = b""
        while True:
            try:
                data = os.read(reading, 1 << 16)
            except OSError:
                data = b""
            if not data:
                break
            view = memoryview(data)
            try:
                while view:
                    view = view[os.write(to, view):]
            except OSError:
                pass  # nobody listens; who writes into the pipe must not be stopped by that
            *lines, rest = (rest + data[-65536:]).split(b"\n")
            self._lines.extend(line.decode("utf-8", "replace") for line in lines)
        os.close(reading)


def cause(lines: list[str]) -> str:
    """`ValueError: text` out of a log with tracebacks: the last that is not said at second hand; or ""."""
    for line in reversed(lines):
        found = _ERROR.search(line)
        if found and not any(text in line for text in _SECOND_HAND):
            return f"{found[1]}: {found[2].strip()}"
    return ""
