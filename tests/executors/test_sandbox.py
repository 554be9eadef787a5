"""Bubblewrap, really run: what a command sees, what it cannot reach, and how its end is named."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest

from cache.errors import ToolError
from cache.gc import collect
from cache.store import Store
from executors.limits import Cgroup
from tests.support.images import make_layer
from tests.support.roots import Bench, sh
from tests.support.tarballs import make_tar


@pytest.fixture(scope="module", params=[True, False], ids=["overlay", "merged"])
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    found = Bench(tmp_path_factory.mktemp("bench"), overlay=request.param)
    if request.param:
        assert found.sandbox.abilities().overlay
    return found


def test_root_is_the_layers_and_nothing_of_this_machine(bench: Bench) -> None:
    assert bench.output("cat /etc/greeting; ls /; ls /etc") == [
        "hello from above", "bin", "build", "dev", "etc", "inputs", "proc", "tmp", "greeting"]
    outcome = bench.run("exit 0")
    assert outcome.how == (("root joined by an overlay",) if bench.sandbox.overlay else ("root merged into one tree",))


def test_what_a_command_sees_of_itself_is_constant(bench: Bench) -> None:
    assert bench.output("hostname; id -u; id -g; pwd; env | sort | grep -v SHLVL; cat; echo end") == [
        "stagecraft", "1000", "1000", "/build", "HOME=/tmp/home", "LANG=C.UTF-8", "LOGNAME=stagecraft",
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "PWD=/build", "TMPDIR=/tmp", "TZ=UTC",
        "USER=stagecraft", "end"]
    assert bench.output("echo $LANG $OWN", environment={"LANG": "C", "OWN": "mine"}) == ["C mine"]


def test_variables_of_this_machine_are_in_no_process(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "hunter" + "2")
    lines = bench.output("cat /proc/[0-9]*/environ | tr '\\0' '\\n'; echo end")
    assert "TZ=UTC" in lines
    assert not [line for line in lines if "TOKEN" in line or line.startswith("PYTEST")]


def test_root_and_inputs_are_read_only_and_work_is_not(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "given").write_text("given\n")
    lines = bench.output("""cat /inputs/in
        for path in /x /etc/greeting /inputs/in /inputs/new /bin/busybox; do
            (echo bad > $path) 2>/dev/null && echo wrote $path; done
        rm -f /etc/greeting 2>/dev/null; chmod 777 /etc 2>/dev/null; cat /etc/greeting
        echo out > /build/o; echo tmp > /tmp/t; cat /tmp/t""", inputs={"in": tmp_path / "given"}, outputs=("o",))
    assert lines == ["given", "hello from above", "tmp"]
    assert (tmp_path / "given").read_text() == "given\n"


def test_outputs_come_back(bench: Bench) -> None:
    outcome = bench.run("mkdir d; echo text > d/o; ln -s /etc/passwd link", outputs=("d/o", "never"))
    assert {name: path.read_text() for name, path in outcome.outputs.items()} == {"d/o": "text\n"}


def test_network_is_not_there(bench: Bench) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        lines = bench.output(f"nc -w 1 127.0.0.1 {port} </dev/null 2>&1 && echo reached; "
                             "nc -w 1 192.0.2.1 80 </dev/null 2>&1; true")
    assert not any("reached" in line for line in lines)
    assert any("unreachable" in line for line in lines), lines


def test_processes_of_this_machine_are_not_there(bench: Bench) -> None:
    pids = bench.output("ls /proc | grep '^[0-9]' | wc -l; kill -9 " + str(os.getpid()) + " 2>/dev/null; echo alive")
    assert int(pids[0]) < 10
    assert pids[1] == "alive"


def test_kernel_settings_cannot_be_written(bench: Bench) -> None:
    before = Path("/proc/sys/vm/swappiness").read_text()
    assert bench.run("echo 1 > /proc/sys/vm/swappiness").exit != 0
    assert Path("/proc/sys/vm/swappiness").read_text() == before


@pytest.mark.parametrize(("script", "exit_", "reason"), [
    ("exit 3", 3, "exit 3"), ("kill -SEGV $$", 139, "killed by SIGSEGV"), ("kill -ABRT $$", 134, "killed by SIGABRT"),
    ("sh -c 'kill -ILL $$'; exit $?", 132, "killed by SIGILL"), ("true", 0, "exit 0"),
])
def test_ends_are_named(bench: Bench, script: str, exit_: int, reason: str) -> None:
    outcome = bench.run(script)
    assert (outcome.exit, outcome.reason) == (exit_, reason)


def test_program_that_is_not_there_is_said(bench: Bench) -> None:
    from executors.process import Process

    scratch = bench.directory / f"missing-{bench.sandbox.overlay}"
    scratch.mkdir()
    outcome = bench.sandbox.run(Process(bench.layers, ("/no/such",), os.uname().machine), scratch)
    assert outcome.reason == "cannot start: execvp /no/such: No such file or directory"


def test_memory_over_the_limit_is_named(bench: Bench) -> None:
    outcome = bench.run("tail -c 2000000000 /dev/zero | wc -c", memory=100 << 20)
    assert (outcome.exit, outcome.reason) == (None, "out of memory (limit 100 MiB)")
    assert any("limited by" in line for line in outcome.how)


def test_too_many_processes_are_named(bench: Bench) -> None:
    outcome = bench.run("i=0; while [ $i -lt 60 ]; do sleep 5 & i=$((i+1)); done; wait", pids=20)
    assert (outcome.exit, outcome.reason) == (None, "too many processes (limit 20)")


def test_cpus_are_limited(bench: Bench) -> None:
    assert bench.output("nproc", cpus=1) == ["1"]


def marked(marker: str) -> list[int]:
    """Processes with a word on their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if marker.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def test_time_limit_ends_grandchildren_too(bench: Bench) -> None:
    started = time.monotonic()
    outcome = bench.run("(setsid sleep 4711 &) ; sh -c 'sleep 4711' & trap '' TERM INT HUP; sleep 4711", seconds=1)
    assert (outcome.exit, outcome.reason) == (None, "time limit (1 s)")
    assert time.monotonic() - started < 20
    assert not marked("4711")


def test_what_runs_on_behind_the_command_ends_with_it(bench: Bench) -> None:
    assert bench.run("(setsid sleep 4712 >/dev/null 2>&1 &); exit 0").ok
    for _ in range(100):
        if not marked("4712"):
            return
        time.sleep(0.05)
    raise AssertionError("a process outlived its command")


def test_lines_come_while_it_runs(bench: Bench) -> None:
    seen: list[tuple[str, float]] = []
    from tests.support.roots import sh

    scratch = bench.directory / f"stream-{bench.sandbox.overlay}"
    scratch.mkdir()
    bench.sandbox.run(sh("echo one; sleep 1; echo two; printf three", bench.layers), scratch,
                      log=lambda line: seen.append((line, time.monotonic())))
    assert [line for line, _ in seen][-3:] == ["one", "two", "three"]
    assert seen[-2][1] - seen[-3][1] > 0.5


def test_long_line_is_cut_and_bytes_that_are_no_text_are_taken(bench: Bench) -> None:
    lines = bench.output("head -c 300000 /dev/zero | tr '\\0' x; echo; printf '\\377\\n'")
    assert "".join(lines[:-1]) == "x" * 300000
    assert len(lines) > 2
    assert lines[-1] == "\ufffd"


def test_what_check_raises_ends_the_run(bench: Bench) -> None:
    end = time.monotonic() + 1

    def check() -> None:
        if time.monotonic() > end:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench.run("sleep 4713", check=check)
    assert not marked("4713")


def test_collection_leaves_a_long_run_alone(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    top = bench.store.root / "tmp" / "run-1"
    there: list[bool] = []

    def days_later() -> None:
        if not there and (top / "process/build/begun").exists():
            os.utime(top, (0, 0))
            collect(Store.open(bench.store.root))
            there.append((top / "process/build/begun").exists())

    outcome = bench.sandbox.run(sh("echo > begun; sleep 2", bench.layers), top / "process", check=days_later)
    assert (outcome.ok, there) == (True, [True])
    collect(Store.open(bench.store.root))
    assert not top.exists()


def test_nothing_is_left_mounted(bench: Bench) -> None:
    bench.run("true")
    assert str(bench.directory) not in Path("/proc/self/mounts").read_text()


def test_foreign_layers_without_an_emulator_are_refused(bench: Bench, tmp_path: Path) -> None:
    from executors.process import Process

    foreign = "aarch64" if os.uname().machine == "x86_64" else "x86_64"
    with pytest.raises(ToolError, match=f"no emulator that runs {foreign}"):
        bench.sandbox.run(Process(bench.layers, ("/bin/busybox", "true"), foreign), tmp_path)


def test_layers_with_whiteouts_are_merged(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    above = bench.store.put(make_tar([("etc/.wh.greeting", b""), ("etc/new", b"x")])).digest
    bench.layers = (*bench.layers, above)
    assert bench.output("ls /etc") == ["new"]
    assert bench.run("true").how == ("root merged into one tree",)


def test_many_layers_join(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    more = tuple(make_layer(bench.store, {f"many/{number:03}": b"x", "many/last": b"%d\n" % number})
                 for number in range(100))
    bench.layers += more
    assert bench.output("ls /many | wc -l; cat /many/last") == ["101", "99"]


def test_cgroup_that_may_not_be_entered_is_counted_instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(tmp_path)
    (tmp_path / "cgroup").mkdir()  # has no cgroup.procs
    monkeypatch.setattr("executors.limits.holder", lambda bounds, name: Cgroup(tmp_path / "cgroup", bounds))
    outcome = bench.run("tail -c 2000000000 /dev/zero | wc -c", memory=100 << 20)
    assert outcome.reason == "out of memory (limit 100 MiB)"
    assert "memory and processes limited by counting" in outcome.how
