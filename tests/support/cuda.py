"""NVIDIA's compiler and cuobjdump out of their packages (requirements/toolkit.txt), no CUDA on the machine needed.

They are installed once, into a directory of the Python environment that is named by the digest of the requirements, and
used by all test runs after. Needs g++ (tests/apt.txt). Packages exist for x86-64 and aarch64.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

_REQUIREMENTS = Path(__file__).resolve().parents[2] / "requirements" / "toolkit.txt"


@dataclass(frozen=True)
class Toolkit:
    """An installed toolkit; `root` has bin, include and lib."""

    root: Path

    def nvcc(self, *arguments: str, cwd: Path) -> None:
        """Run nvcc, with nothing of this machine's toolkit or settings."""
        self.run("nvcc", *arguments, f"-L{self.root / 'lib'}", cwd=cwd)

    def cuobjdump(self, *arguments: str, cwd: Path) -> str:
        """Run cuobjdump and give what it prints."""
        return self.run("cuobjdump", *arguments, cwd=cwd)

    def run(self, program: str, *arguments: str, cwd: Path) -> str:
        """Run a program of the toolkit and give what it prints; it must succeed."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("NVCC_", "CUDA"))}
        result = subprocess.run([str(self.root / "bin" / program), *arguments], cwd=cwd, capture_output=True, text=True,
                                check=False, env=environment)
        assert result.returncode == 0, f"{program} {' '.join(arguments)}\n{result.stdout}{result.stderr}"
        return result.stdout


def toolkit() -> Toolkit:
    """The toolkit, installed if it is not yet. Any number of processes may ask at once."""
    assert shutil.which("g++"), "tests/apt.txt names g++: ./doit test installs it"
    digest = hashlib.sha256(_REQUIREMENTS.read_bytes()).hexdigest()[:16]
    place = Path(sys.prefix) / f"cuda-toolkit-{digest}"
    if not place.exists():
        with tempfile.TemporaryDirectory(dir=sys.prefix) as scratch:
            subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
                            "--require-hashes", "--no-deps", "--only-binary", ":all:", "--target", f"{scratch}/new",
                            "-r", str(_REQUIREMENTS)], check=True)
            try:
                os.rename(f"{scratch}/new", place)
            except OSError:  # another process was quicker
                assert place.exists()
    return Toolkit(place / "nvidia" / "cu13")
