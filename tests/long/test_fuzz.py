"""The fuzzers for ten minutes, one on each of two cores, each with a seed of its own every time."""

from __future__ import annotations

import subprocess
import sys

from tests.support.front import HERE

SECONDS = 600


def test_no_crash_no_hang_no_unbounded_memory() -> None:
    runs = {name: subprocess.Popen([sys.executable, f"tests/fuzz/{name}.py", "--seconds", str(SECONDS)], cwd=HERE,
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            for name in ("fatbin_fuzz", "elf_fuzz")}
    try:
        for name, process in runs.items():
            said = process.communicate(timeout=2 * SECONDS)[0]
            print(said)  # the seed, how many rounds, the slowest: shown by pytest -s, and with a failure
            assert process.returncode == 0, f"{name}:\n{said}"
            assert " rounds, " in said
    finally:
        for process in runs.values():
            process.kill()
            process.wait()
