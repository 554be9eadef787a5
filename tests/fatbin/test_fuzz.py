"""The fuzzer of device code for a moment; tests/long has it for ten minutes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.front import HERE


def test_reader_of_device_code_holds_for_a_moment(samples: dict[str, Path], tmp_path: Path) -> None:
    for name in ("many.so", "size.so", "relocatable.o", "bare.ptx"):
        shutil.copy(samples[name], tmp_path)
    done = subprocess.run([sys.executable, "tests/fuzz/fatbin_fuzz.py", "--seconds", "3", "--samples", str(tmp_path)],
                          cwd=HERE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for outcome in ("read", "refused", "as parts"):
        assert f"'{outcome}': " in done.stdout
