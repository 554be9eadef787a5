"""Small roots for executors: Debian's static busybox as the only program, and a sandbox over it."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cache.store import Store
from executors.process import Limits, Outcome, Process
from executors.sandbox import Sandbox
from tests.support.front import HERE
from tests.support.images import make_layer

BUSYBOX = "/bin/busybox"

#: A user of no account, and the interpreter that any user may start.
NOBODY, PYTHON = 65534, "/usr/bin/python3"


def busybox(store: Store) -> tuple[str, str]:
    """Two layers: the program, and a text above it."""
    return (make_layer(store, {"bin/busybox": Path(BUSYBOX).read_bytes()}, {"bin/busybox": 0o755}),
            make_layer(store, {"etc/greeting": b"hello from above\n"}))


def sh(script: str, layers: tuple[str, ...], **more: Any) -> Process:
    """A process that runs a script of busybox's shell. `more` of `Limits` are its limits."""
    limits = Limits(**{name: more.pop(name) for name in ("memory", "cpus", "seconds", "pids") if name in more})
    return Process(layers, (BUSYBOX, "sh", "-c", script), os.uname().machine, limits=limits, **more)


class Bench:
    """A sandbox, the layers of `busybox`, and what the last run said."""

    def __init__(self, directory: Path, **sandbox: Any) -> None:
        self.directory = directory
        self.store = Store.open(directory / "store")
        self.sandbox = Sandbox(self.store, **sandbox)
        self.layers: tuple[str, ...] = busybox(self.store)
        self.said: list[str] = []
        self._runs = 0

    def run(self, script: str, **more: Any) -> Outcome:
        self.said.clear()
        self._runs += 1
        scratch = self.directory / f"run{self._runs}"
        scratch.mkdir()
        check = more.pop("check", lambda: None)
        return self.sandbox.run(sh(script, self.layers, **more), scratch, log=self.said.append, check=check)

    def output(self, script: str, **more: Any) -> list[str]:
        """Lines of a run that must succeed, without what unpacking says."""
        outcome = self.run(script, **more)
        lines = [line for line in self.said if not line.startswith(("unpacking ", "joining "))]
        assert outcome.ok, (outcome, lines)
        return lines


def as_nobody(*arguments: str) -> list[str]:
    """The command line that runs a program of the tests as a user without rights."""
    return ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *arguments]


def python_for_all() -> dict[str, str]:
    """The environment in which any user's Python has the project's modules and those that it needs."""
    site = next(path for path in sys.path if path.endswith("site-packages"))
    kept: Mapping[str, str] = {"PATH": os.environ["PATH"]}
    return {**kept, "PYTHONPATH": f"{HERE}:{site}", "PYTHONDONTWRITEBYTECODE": "1"}
