"""Triton's real Python backend, locked from github.com and compiled; skips where that is not reached."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.e2e.test_python_backend import TARGET
from tests.support.front import doit, make_project

REPOSITORY = "https://github.com/triton-inference-server/python_backend.git"


@pytest.mark.parametrize("version", ["25.07", "26.02"])
def test_it_is_locked_compiled_and_fits(tmp_path: Path, version: str) -> None:
    asked = subprocess.run(["git", "ls-remote", REPOSITORY, "HEAD"], capture_output=True, text=True, check=False,
                           timeout=60, env={"GIT_TERMINAL_PROMPT": "0", "PATH": "/usr/bin:/bin"})
    if asked.returncode:
        pytest.skip(f"github.com is not reached: {asked.stderr.strip()}")
    text = TARGET.replace("@ARCHITECTURE@", "amd64").replace(
        "  mirrors: @MIRRORS@\n", f'  packages: {{python-backend: {{version: "{version}"}}}}\n')
    root = make_project(tmp_path / "project", real=text)
    store = tmp_path / "store"
    doit(root, store, "lock:real")
    doit(root, store, "build:real")
    assert json.loads(doit(root, store, "check:real", "--json").stdout)["passes"]
    told = json.loads(doit(root, store, "rebuild:real:python-backend", "--json").stdout)
    assert [entry["same"] for entry in told["stages"]] == [True]
