"""Counting a tree, and a cgroup where the kernel gives one."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from executors.jobs import Jobs
from executors.limits import Cgroup, Counted, Exceeded, holder
from executors.process import Limits


def test_usage_counts_descendants_only() -> None:
    child = "import subprocess, sys; b = b'x' * (60 << 20); print('up', flush=True); sys.stdin.read()"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        memory, pids = Jobs().look(process.pid)
        assert 60 << 20 < memory < 100 << 20
        assert pids == 1
    finally:
        process.communicate()


def test_counting_names_the_limit() -> None:
    code = "import sys, threading; b = b'x' * (30 << 20); print('up', flush=True); sys.stdin.read()"
    inner = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}])"
    process = subprocess.Popen([sys.executable, "-c", inner], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        assert Counted(Limits(memory=10 << 20)).poll(process.pid) == Exceeded("out of memory (limit 10 MiB)")
        assert Counted(Limits(memory=1 << 30, pids=10)).poll(process.pid) is None
    finally:
        process.communicate()
    assert Counted(Limits()).how == ""


def test_no_cgroup_where_none_is_offered(tmp_path: Path) -> None:
    limits = Limits(memory=1 << 20, pids=5)
    assert isinstance(holder(limits, "x", root=tmp_path / "none", membership=tmp_path / "none"), Counted)
    assert isinstance(holder(Limits(seconds=1), "x"), Counted)


def test_events_of_a_cgroup_are_named(tmp_path: Path) -> None:
    (tmp_path / "memory.events").write_text("low 0\nmax 12\noom 1\noom_kill 1\n")
    assert Cgroup(tmp_path, Limits(memory=4 << 30)).ended() == Exceeded("out of memory (limit 4 GiB)")
    (tmp_path / "memory.events").write_text("low 0\nmax 12\noom 0\noom_kill 0\n")
    assert Cgroup(tmp_path, Limits(memory=4 << 30)).ended() is None
    (tmp_path / "pids.events").write_text("max 3\n")
    assert Cgroup(tmp_path, Limits(pids=20)).ended() == Exceeded("too many processes (limit 20)")


def test_real_cgroup_kills_what_is_in_it() -> None:
    """Placement and killing on the real file system; its memory controller may belong to version 1 here."""
    root = next((path for path in (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))
                 if (path / "cgroup.controllers").exists()), None)
    if root is None:
        pytest.skip("no cgroup 2 file system here")
    path = root / f"stagecraft-test-{time.monotonic_ns()}"
    try:
        path.mkdir()
    except OSError:
        pytest.skip("no cgroup can be made here")
    group = Cgroup(path, Limits(pids=5))
    process = subprocess.Popen(["sleep", "100"])
    try:
        (path / "cgroup.procs").write_text(str(process.pid))
        group.kill()
        assert process.wait(10) == -9
    finally:
        process.kill()
        process.wait()
        group.close()
    assert not path.exists()
