"""skopeo, the referee for images."""

from __future__ import annotations

import subprocess


def skopeo(*arguments: str) -> str:
    """Run it; what it wrote on standard output."""
    done = subprocess.run(["skopeo", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
