"""A shell on a real terminal must not be able to type on it."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from executors.terminal import filter_for
from tests.support.front import HERE

_TYPES = r"""
#include <stdio.h>
#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>
int main(void) {
    struct winsize size;
    printf("size: %s\n", ioctl(0, TIOCGWINSZ, &size) ? strerror(errno) : "told");
    printf("typing: %s\n", ioctl(0, TIOCSTI, "x") ? strerror(errno) : "typed");
    printf("high bits: %s\n", ioctl(0, 0xabcd00005412, "x") ? strerror(errno) : "typed");
    return 0;
}
"""
_SHELL = """
import os, sys
from pathlib import Path
from executors.process import Process
from tests.support.images import make_layer
from tests.support.roots import Bench
bench = Bench(Path(sys.argv[1]) / "bench")
layer = make_layer(bench.store, {"bin/types": Path(sys.argv[2]).read_bytes()}, {"bin/types": 0o755})
scratch = Path(sys.argv[1]) / "scratch"
scratch.mkdir()
bench.sandbox.shell(Process((*bench.layers, layer), ("/bin/types",), os.uname().machine), scratch)
"""


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no compiler")
def test_shell_cannot_type_on_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "types.c").write_text(_TYPES)
    program = tmp_path / "types"
    subprocess.run(["gcc", "-static", "-w", "-o", str(program), str(tmp_path / "types.c")], check=True)
    pid, terminal = pty.fork()
    if not pid:
        os.chdir(HERE)
        os.execve(sys.executable, [sys.executable, "-c", _SHELL, str(tmp_path), str(program)],
                  {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    said = b""
    try:
        while piece := os.read(terminal, 4096):
            said += piece
    except OSError:  # what a terminal says when its last process has gone
        pass
    os.close(terminal)
    os.waitpid(pid, 0)
    assert [line for line in said.decode().splitlines() if ": " in line] == [
        "size: told", "typing: Operation not permitted", "high bits: Operation not permitted"]


def test_machine_that_is_not_known_has_no_filter() -> None:
    assert filter_for("riscv64") == b""
    assert len(filter_for("aarch64")) == len(filter_for("x86_64")) == 11 * 8
