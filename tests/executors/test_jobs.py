"""Who runs in a tree, what it works on, and who ran when one was killed: real processes."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from executors.jobs import KILLED, Job, Jobs

#: A process that fills as many MiB as its first argument says.
FILL = "import sys; b = b'x' * (int(sys.argv[1]) << 20); print('up', flush=True); sys.stdin.read()"


@contextlib.contextmanager
def filling(*arguments: str, code: str = FILL) -> Iterator[int]:
    """A child with arguments; the process id of its parent."""
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}, *sys.argv[1:]])"
    process = subprocess.Popen([sys.executable, "-c", outer, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        yield process.pid
    finally:
        process.communicate()


@pytest.mark.parametrize(("arguments", "source"), [
    (("-o", "/build/b/one.cu.o", "-c", "/build/src/one.cu"), "src/one.cu"),
    (("-quiet", "-dumpbase", "two.cpp", "/build/src/two.cpp", "-o", "/tmp/ccAbCdEf.s"), "src/two.cpp"),
    (("--orig_src_path_name", "/build/src/three.cu", "x.cudafe1.gpu"), "src/three.cu"),
    (("tmpxft_000001_00000000-6_four.cudafe1.cpp",), ""), (("-I/usr/include",), "")])
def test_large_process_is_named_with_its_source(arguments: tuple[str, ...], source: str) -> None:
    jobs = Jobs()
    with filling("60", *arguments) as pid:
        memory, _ = jobs.look(pid)
    job, = jobs.running
    assert (job.program, job.source) == (Path(sys.executable).name, source)
    assert 60 << 20 < job.memory <= memory
    assert jobs.killed == ()


def test_source_of_who_started_it(tmp_path: Path) -> None:
    """As ptxas, which is given a file that nvcc made."""
    inner = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {FILL!r}, '60', 'tmpxft_1.ptx'])"
    jobs = Jobs()
    with filling("-c", "/build/src/deep.cu", code=inner) as pid:
        jobs.look(pid)
    assert [job.source for job in jobs.running] == ["src/deep.cu"]


def test_who_ran_when_one_was_killed_is_kept() -> None:
    jobs = Jobs()
    with filling("80", "big.cu") as pid:
        jobs.look(pid)
    jobs.look(os.getpid())  # gone
    jobs.note_killed()
    assert [job.source for job in jobs.killed] == ["big.cu"]
    jobs.look(os.getpid())
    jobs.note_killed()
    assert [job.source for job in jobs.killed] == ["big.cu"]


def test_kill_by_the_kernel_is_seen_in_its_counter(tmp_path: Path) -> None:
    """A `/proc` with one process whose numbers the test writes."""
    for pid, parent in (("10", "1"), ("11", "10")):
        (tmp_path / pid).mkdir()
        (tmp_path / pid / "stat").write_text(f"{pid} (c c) S {parent} " + "0 " * 15 + "1 0 0\n")
        (tmp_path / pid / "statm").write_text(f"0 {(3 << 30) // os.sysconf('SC_PAGE_SIZE')} 0 0 0 0 0\n")
        (tmp_path / pid / "cmdline").write_bytes(b"/cross/libexec/cicc\0--x\0/build/src/a.cu\0")
    (tmp_path / "vmstat").write_text("pgfault 1\noom_kill 7\n")
    jobs = Jobs(tmp_path)
    assert jobs.look(10) == (3 << 30, 1)
    assert (jobs.kernel_kills, jobs.killed) == (0, ())
    shutil.rmtree(tmp_path / "11")
    (tmp_path / "vmstat").write_text("pgfault 1\noom_kill 9\n")
    jobs.look(10)
    assert jobs.kernel_kills == 2
    assert [str(job) for job in jobs.killed] == ["cicc src/a.cu (3.0 GiB)"]


def test_emulated_program_is_named_by_itself(tmp_path: Path) -> None:
    for pid, parent in (("10", "1"), ("11", "10")):
        (tmp_path / pid).mkdir()
        (tmp_path / pid / "stat").write_text(f"{pid} (x) S {parent} " + "0 " * 15 + "1 0 0\n")
        (tmp_path / pid / "statm").write_text("0 100000 0 0 0 0 0\n")
        (tmp_path / pid / "cmdline").write_bytes(b"/tmp/emulator\0/usr/bin/python3.11\0setup.py\0")
    jobs = Jobs(tmp_path)
    jobs.look(10)
    assert [job.program for job in jobs.running] == ["python3.11"]


@pytest.mark.parametrize("line", [
    "g++: fatal error: Killed signal terminated program cc1plus",
    "nvcc error   : 'cicc' died due to signal 9 (Kill signal)",
    "build.sh: line 3:  4711 Killed                  g++ -c a.cpp", "Command died with <Signals.SIGKILL: 9>."])
def test_words_of_a_kill(line: str) -> None:
    assert KILLED.search(line)


def test_text() -> None:
    assert str(Job("cc1plus", "", 700 << 20)) == "cc1plus (700 MiB)"
