"""Fetches that are killed, interrupted or run twice: nothing finished is lost, and one process downloads."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cache.store import Store
from lock.fetch import Location, Policy, Wanted, fetch
from tests.support.index_server import IndexServer
from tests.support.index_server import locked_file as make

ROOT = Path(__file__).resolve().parents[2]
#: A process that fetches one file from the command line: store, address, file, size, sha256.
SCRIPT = """
import signal, sys
from pathlib import Path
from cache.store import Store
from lock.fetch import Location, Wanted, fetch

class Here:
    def locate(self, wanted):
        return Location(urls=(sys.argv[2],))

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
name, size, sha256 = sys.argv[3], int(sys.argv[4]), sys.argv[5]
fetch(Store.open(Path(sys.argv[1])), [Wanted("wheel", "x", "1", name, size, sha256, "default")], {"wheel": Here()})
"""


class Direct:
    def __init__(self, server: IndexServer) -> None:
        self.server = server

    def locate(self, wanted: Wanted) -> Location:
        return Location(urls=(f"{self.server.root}files/{wanted.file}",))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[IndexServer]:
    with IndexServer(tmp_path / "served") as server:
        yield server


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


def start(store: Store, server: IndexServer, wanted: Wanted) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", SCRIPT, str(store.root), f"{server.root}files/{wanted.file}", wanted.file,
               str(wanted.size), wanted.sha256]
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE)


def wait_for(condition: object) -> None:
    until = time.monotonic() + 30
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < until, "it never happened"
        time.sleep(0.01)


def partial_size(store: Store, wanted: Wanted) -> int:
    try:
        return (store.root / "partial" / wanted.sha256).stat().st_size
    except FileNotFoundError:
        return 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_fetch_is_resumed(store: Store, server: IndexServer, tmp_path: Path, number: signal.Signals) -> None:
    wanted = make(tmp_path / "served", "big", 8 << 20)
    server.fault(wanted.file, "slow", times=1, value=0.02)
    process = start(store, server, wanted)
    wait_for(lambda: partial_size(store, wanted) > 1 << 20)
    process.send_signal(number)
    _, text = process.communicate(timeout=30)
    assert process.returncode in (-signal.SIGKILL, -signal.SIGINT, 130), text
    there = partial_size(store, wanted)
    assert there > 1 << 20
    fetch(store, [wanted], {"wheel": Direct(server)})
    assert server.requests[-1].headers["range"] == f"bytes={there}-"
    assert store.has(wanted.digest, wanted.size)
    assert list((store.root / "partial").iterdir()) == []


def test_two_processes_one_download(store: Store, server: IndexServer, tmp_path: Path) -> None:
    wanted = make(tmp_path / "served", "big", 4 << 20)
    server.fault(wanted.file, "slow", times=1, value=0.01)
    processes = [start(store, server, wanted) for _ in range(3)]
    for process in processes:
        _, text = process.communicate(timeout=60)
        assert process.returncode == 0, text
    assert server.count(wanted.file) == 1
    assert store.has(wanted.digest, wanted.size)


def test_the_one_that_waits_goes_on_when_the_other_is_killed(store: Store, server: IndexServer, tmp_path: Path) -> None:
    wanted = make(tmp_path / "served", "big", 8 << 20)
    server.fault(wanted.file, "slow", times=1, value=0.05)
    first = start(store, server, wanted)
    wait_for(lambda: partial_size(store, wanted) > 1 << 20)
    second = start(store, server, wanted)
    time.sleep(0.5)
    first.kill()
    first.communicate(timeout=30)
    _, text = second.communicate(timeout=60)
    assert second.returncode == 0, text
    assert "range" in server.requests[-1].headers
    assert store.has(wanted.digest, wanted.size)


def test_a_progress_that_says_stop_keeps_what_is_begun(store: Store, server: IndexServer, tmp_path: Path) -> None:
    """Even while nothing comes: the sign of life asks it."""
    wanted = make(tmp_path / "served", "big", 2 << 20)
    server.fault(wanted.file, "stall", times=1, value=3)

    class Stopping:
        def begin(self, name: str, size: int) -> None: ...

        def advance(self, name: str, nbytes: int) -> None:
            if nbytes == 0 and partial_size(store, wanted) >= 1 << 19:
                raise KeyboardInterrupt

        def end(self, name: str) -> None: ...

    with pytest.raises(KeyboardInterrupt):
        fetch(store, [wanted], {"wheel": Direct(server)}, progress=Stopping(), policy=Policy(stall=20))
    assert partial_size(store, wanted) >= 1 << 19
    assert not store.has(wanted.digest)
