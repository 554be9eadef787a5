"""The tables of torch's ABI and of vLLM's wheels, made anew out of the wheels of the index (2.2 GB)."""

from __future__ import annotations

import lzma
import subprocess
import sys
from pathlib import Path

from tests.support.front import HERE


def test_the_tables_are_what_the_wheels_say(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "bench/tools/torch_abi.py", "--store", tmp_path / "store", "--data", tmp_path],
                   cwd=HERE, check=True, capture_output=True)
    for name in ("torch-exports.aarch64.xz", "vllm-wheels.aarch64.xz"):
        assert lzma.decompress((tmp_path / name).read_bytes()) == lzma.decompress(
            (HERE / "checks" / "data" / name).read_bytes()), name
