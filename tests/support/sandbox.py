"""Running a command in an image without an engine: layers extracted by GNU tar, bubblewrap around the tree."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from pathlib import Path


def extract(layout: Path, root: Path) -> None:
    """The file system of the image in an OCI layout, below `root`."""
    manifest = json.loads((layout / "index.json").read_text())["manifests"][0]["digest"][7:]
    for layer in json.loads((layout / "blobs/sha256" / manifest).read_text())["layers"]:
        blob = layout / "blobs/sha256" / layer["digest"][7:]
        subprocess.run(["tar", "-xf", str(blob), "-C", str(root), "--no-same-owner"], check=True)


def run_in_image(layout: Path, *command: str) -> str:
    """Standard output of a command in the image, as root of a namespace of its own, without network."""
    root = Path(tempfile.mkdtemp(prefix="stagecraft-image-"))
    try:
        extract(layout, root)
        done = subprocess.run(
            ["bwrap", "--unshare-all", "--die-with-parent", "--bind", str(root), "/", "--proc", "/proc",
             "--dev", "/dev",
             "--tmpfs", "/tmp", "--clearenv", "--setenv", "PATH", "/usr/local/bin:/usr/bin:/bin", "--", *command],
            capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout
    finally:
        shutil.rmtree(root, ignore_errors=True)
