"""`test`, `test-long` and `lint`: set up what they need on this machine, then run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from cache.errors import StageError, ToolError


def run(root: Path, arguments: list[str], directory: str = "tests") -> None:
    """Install hash-locked test requirements and the Debian packages of tests/apt.txt, then run pytest.

    Args:
        arguments: for pytest; tests or directories among them, or all of `directory`.

    Raises:
        ToolError: a package is missing and cannot be installed by this user.
        StageError: a test failed.
    """
    _requirements(root)
    missing = _missing_packages(root)
    if missing:
        _install(missing)
    bytecode = ["-X", f"pycache_prefix={sys.pycache_prefix}"] if sys.pycache_prefix else []
    named = any((root / argument.partition("::")[0]).exists() for argument in arguments)
    command = [sys.executable, *bytecode, "-m", "pytest", *arguments, *([] if named else [directory])]
    result = subprocess.run(command, cwd=root, check=False)
    if result.returncode:
        raise StageError(f"pytest ended with {result.returncode}", where=" ".join(command[1:]))


def lint(root: Path) -> None:
    """Style and types: ruff, mypy --strict.

    Raises:
        StageError: something is not as it should be.
    """
    _requirements(root)
    for command in (["ruff", "check", "."], ["mypy"]):
        if subprocess.run([sys.executable, "-m", *command], cwd=root, check=False).returncode:
            raise StageError(f"{command[0]} has complaints", where="python -m " + " ".join(command))


def _requirements(root: Path) -> None:
    wanted = (root / "requirements" / "test.txt").read_bytes()
    stamp = Path(sys.prefix) / "requirements.test.txt"
    if stamp.exists() and stamp.read_bytes() == wanted:
        return
    sys.stderr.write("installing the test requirements\n")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes",
               "--only-binary", ":all:", "-r", "requirements/test.txt"]
    if subprocess.run(command, cwd=root, check=False).returncode:
        raise ToolError("the test requirements could not be installed", where="requirements/test.txt",
                        cure="is the package index reachable, and pip configured for it?")
    stamp.write_bytes(wanted)


def _missing_packages(root: Path) -> list[str]:
    lines = (root / "tests" / "apt.txt").read_text(encoding="utf-8").splitlines()
    names = [line.partition("#")[0].strip() for line in lines]
    names = [name for name in names if name]
    query = ["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n", *names]
    try:
        listed = subprocess.run(query, capture_output=True, text=True, check=False).stdout
    except FileNotFoundError as error:
        raise ToolError("the tests need Debian's packages", found="no dpkg here",
                        cure="run ./doit test on Debian or Ubuntu, or in a container of it") from error
    installed = {line.split()[0] for line in listed.splitlines() if line.endswith(" installed")}
    return [name for name in names if name not in installed]


def _install(missing: list[str]) -> None:
    command = ["apt-get", "install", "-y", "--no-install-recommends", *missing]
    if os.geteuid() != 0:
        raise ToolError("the tests need packages that are not installed", expected=", ".join(missing),
                        cure="sudo " + " ".join(command))
    sys.stderr.write(f"installing {', '.join(missing)}\n")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(["apt-get", "update", "-qq"], check=False)
    result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            check=False)
    if result.returncode:
        raise ToolError("apt-get failed", found=result.stdout[-500:], cure=" ".join(command))
