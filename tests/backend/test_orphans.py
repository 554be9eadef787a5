"""What is left of a stub goes when its server has gone, and what is left of an engine when its stub has."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.support.vllm_backend import BACKEND, backend

orphans = backend("orphans")

#: A server with a stub with an engine; the stub says the two numbers. The stub starts the real watch.
STUB = f"""
import importlib, os, subprocess, sys, types
package = types.ModuleType("p"); package.__path__ = [{str(BACKEND)!r}]; sys.modules["p"] = package
importlib.import_module("p.orphans").watch()
engine = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
print(os.getpid(), engine.pid, flush=True)
import signal; signal.pause()
"""
SERVER = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {STUB!r}])"


class Family:
    """Server, stub and engine."""

    def __init__(self) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.stub, self.engine = map(int, self.process.stdout.readline().split())
        time.sleep(1.5)  # the watch has looked once

    def left(self) -> list[int]:
        return [pid for pid in (self.stub, self.engine) if orphans.process(pid)]


@pytest.fixture
def family() -> Iterator[Family]:
    found = Family()
    yield found
    for pid in (*found.left(), found.process.pid):
        os.kill(pid, signal.SIGKILL)
    found.process.wait()


@pytest.mark.parametrize("killed", ["server", "stub"])
def test_nothing_is_left(family: Family, killed: str) -> None:
    assert family.left() == [family.stub, family.engine]
    os.kill(family.process.pid if killed == "server" else family.stub, signal.SIGKILL)
    end = time.monotonic() + 10
    while family.left() and time.monotonic() < end:
        time.sleep(0.05)
    assert family.left() == []


def test_another_process_of_the_same_number_is_left_alone() -> None:
    other = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    try:
        orphans.main(2**22 + 1, 2**22 + 2)  # neither is there
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_below(family: Family) -> None:
    assert {family.stub, family.engine} < set(orphans.below(family.process.pid))
    assert family.stub not in orphans.below(family.stub)
    assert orphans.below(family.engine) == {}
