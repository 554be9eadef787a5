"""Executor `docker` with a real engine: the same contract as the sandbox's, and nothing left behind."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cache.errors import ToolError
from cache.store import Store
from executors.docker import Docker
from executors.process import Outcome, Process
from tests.support.docker_engine import Engine, running_engine
from tests.support.images import make_layer
from tests.support.roots import busybox, sh
from tests.support.tarballs import make_tar, packed


class Place:
    """An engine's executor over busybox; what the last run said."""

    def __init__(self, engine: Engine, directory: Path) -> None:
        self.engine, self.directory = engine, directory
        self.store = Store.open(directory / "store")
        self.layers: tuple[str, ...] = busybox(self.store)
        self.said: list[str] = []
        self._runs = 0

    def run(self, script: str, **more: object) -> Outcome:
        self.said.clear()
        self._runs += 1
        scratch = self.directory / f"run{self._runs}"
        scratch.mkdir()
        process = sh(script, self.layers, **more)
        return Docker(self.store, self.engine.client).run(process, scratch, log=self.said.append)

    def output(self, script: str, **more: object) -> list[str]:
        outcome = self.run(script, **more)
        assert outcome.ok, (outcome, self.said)
        return self.said[1:]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    directory = tmp_path_factory.mktemp("docker")
    with running_engine(directory / "engine") as engine:
        yield Place(engine, directory)
        assert engine.client.images.list() == []
        assert engine.client.containers.list(all=True) == []
        assert engine.client.volumes.list() == []


def test_same_view_as_in_the_sandbox(place: Place, tmp_path: Path) -> None:
    (tmp_path / "given").write_text("given\n")
    assert place.output("cat /etc/greeting /inputs/in; hostname; id -u; pwd; echo $HOME $LANG $TZ",
                        inputs={"in": tmp_path / "given"}) == [
        "hello from above", "given", "stagecraft", "1000", "/build", "/tmp/home C.UTF-8 UTC"]


def test_only_work_and_tmp_can_be_written(place: Place, tmp_path: Path) -> None:
    (tmp_path / "given").write_text("given\n")
    script = """for path in /x /etc/greeting /inputs/in /inputs/new; do
            (echo bad > $path) 2>/dev/null && echo wrote $path; done
        mkdir d; echo text > d/o; echo tmp > /tmp/t; cat /tmp/t"""
    outcome = place.run(script, inputs={"in": tmp_path / "given"}, outputs=("d/o", "never"))
    assert place.said[1:] == ["tmp"]
    assert {name: path.read_text() for name, path in outcome.outputs.items()} == {"d/o": "text\n"}


def test_network_is_not_there(place: Place) -> None:
    assert "unreachable" in place.output("nc -w 1 192.0.2.1 80 </dev/null 2>&1; true")[0]


@pytest.mark.parametrize(("script", "exit_", "reason"), [("exit 3", 3, "exit 3"),
                                                         ("sh -c 'kill -SEGV $$'; exit $?", 139,
                                                          "killed by SIGSEGV")])
def test_ends_are_named(place: Place, script: str, exit_: int, reason: str) -> None:
    outcome = place.run(script)
    assert (outcome.exit, outcome.reason) == (exit_, reason)


def test_limits_are_named(place: Place) -> None:
    outcome = place.run("sleep 4714 & sleep 4714", seconds=1)
    assert (outcome.exit, outcome.reason) == (None, "time limit (1 s)")
    outcome = place.run("tail -c 2000000000 /dev/zero | wc -c", memory=100 << 20)
    assert outcome.reason in ("out of memory (limit 100 MiB)",)


def test_lines_come_while_it_runs(place: Place, tmp_path: Path) -> None:
    seen: list[float] = []
    Docker(place.store, place.engine.client).run(sh("echo one; sleep 2; echo two", place.layers), tmp_path,
                                                 log=lambda line: seen.append(time.monotonic()))
    assert seen[-1] - seen[-2] > 1


def test_program_that_is_not_there_is_said(place: Place, tmp_path: Path) -> None:
    outcome = Docker(place.store, place.engine.client).run(
        Process(place.layers, ("/no/such",), os.uname().machine), tmp_path)
    assert outcome.reason.startswith("cannot start: ")
    assert "/no/such" in outcome.reason


def test_compressed_layers_and_whiteouts(place: Place, tmp_path: Path) -> None:
    above = packed(make_tar([("etc/.wh.greeting", b""), ("etc/new", b"x")]), "gzip")[0]
    layers = (*place.layers, place.store.put(above).digest, make_layer(place.store, {"top": b"y"}))
    said: list[str] = []
    Docker(place.store, place.engine.client).run(sh("ls /etc | grep -v host | grep -v mtab | grep -v resolv; cat /top",
                                                    layers), tmp_path, log=said.append)
    assert said[1:] == ["new", "y"]


def test_foreign_layers_without_an_emulator_are_refused(place: Place, tmp_path: Path) -> None:
    foreign = "aarch64" if os.uname().machine == "x86_64" else "x86_64"
    with pytest.raises(ToolError, match=f"cannot run {foreign}"):
        Docker(place.store, place.engine.client).run(Process(place.layers, ("/bin/busybox",), foreign), tmp_path)


def test_no_engine_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none")
    with pytest.raises(ToolError, match="no Docker engine"):
        Docker.connected(Store.open(tmp_path / "store"))
