"""The fuzz harness of the fatbin reader for ten minutes, with a seed of its own each time."""

from __future__ import annotations

import subprocess
import sys

from tests.support.front import HERE


def test_no_crash_no_hang_no_unbounded_memory() -> None:
    done = subprocess.run([sys.executable, "tests/fuzz/fatbin_fuzz.py", "--seconds", "600"], cwd=HERE, check=False,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    assert " rounds, " in done.stdout
