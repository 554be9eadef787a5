"""The sandbox as an ordinary user: the same tests, run by one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.front import HERE
from tests.support.roots import NOBODY, PYTHON, as_nobody


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user; others have just run these tests")
def test_sandbox_works_for_an_ordinary_user() -> None:
    home = Path("/var/tmp") / f"stagecraft-user-{os.getpid()}"
    site = next(path for path in sys.path if path.endswith("site-packages"))
    readable = subprocess.run(as_nobody(PYTHON, "-c", f"import os; os.listdir({site!r})"), check=False,
                              capture_output=True).returncode == 0
    if not readable:
        pytest.skip(f"another user cannot read {site}")
    try:
        shutil.copytree(HERE, home / "checkout", ignore=shutil.ignore_patterns(".venv", ".git", "result-*", ".*_cache"))
        subprocess.run(["chown", "-R", f"{NOBODY}:{NOBODY}", str(home)], check=True)
        environment = {"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONPATH": site,
                       "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            as_nobody(PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--basetemp", str(home / "tmp"),
                      "tests/executors/test_sandbox.py", "tests/executors/test_trees.py"),
            cwd=home / "checkout", env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr
        assert " passed" in done.stdout
        assert "skipped" not in done.stdout
    finally:
        shutil.rmtree(home, ignore_errors=True)
