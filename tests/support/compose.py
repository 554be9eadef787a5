"""docker-compose (Debian's, 1.29, which reads the compose specification) on files of ours."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import yaml


def configured(file: Path, **variables: str) -> Any:
    """The file as docker-compose understands it, after its schema and its variables."""
    done = compose(file, "config", **variables)
    assert done.returncode == 0, done.stderr
    return yaml.safe_load(done.stdout)


def compose(file: Path, *arguments: str, over: Path | None = None,
            **variables: str) -> subprocess.CompletedProcess[str]:
    # Of the system, not of a docker CLI that has a plugin of that name; not with this environment's Python modules.
    environment = {"PATH": "/usr/bin:/bin", "HOME": os.environ.get("HOME", "/"), **variables}
    return subprocess.run(["/usr/bin/docker-compose", "--file", str(file), *(["--file", str(over)] if over else []),
                           "--project-name", "stagecraft-test",
                           *arguments], capture_output=True, text=True, check=False, env=environment, timeout=300)
