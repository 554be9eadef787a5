"""A project whose layer `deps` is built from small wheels, and a session over it: what tests of gates start from."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from cache.canonical import sha256
from checks.registry import check
from checks.verdict import CheckInputs, Finding, SkippedError
from stages import gates
from stages.lockfile import Lock, LockedFile, path_of, request_digests
from stages.report import Report
from stages.target import load
from stages.tasks import Session
from tests.support.front import make_project
from tests.support.project import TARGET
from tests.support.wheel_factory import make_wheel

PYTHON = {"version": "3.11", "executable": "/usr/bin/python3.11", "glibc": "2.36",
          "site": "usr/local/lib/python3.11/dist-packages", "scripts": "usr/local/bin", "data": "usr/local"}


def built_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waivers: str = "", *,
                  wheels: list[Path] | None = None) -> tuple[Session, io.StringIO]:
    """A session of the target `small`, with `deps` in the store, and what it writes on standard error.

    Of the checks only two are there, which read nothing but `deps`.

    Args:
        waivers: text at the end of the target.
        wheels: of `deps`; without them one that lacks what it requires, and one with an odd rule about Python.
    """
    monkeypatch.setattr(gates, "CHECKS", (check("wheel-set"), check("python")))
    monkeypatch.setenv("STAGECRAFT_STORE", str(tmp_path / "store"))
    root = make_project(tmp_path / "project", small=TARGET + waivers)
    session = Session(root)
    out = io.StringIO()
    session.report = Report(err=out)
    wheels = wheels or [make_wheel(tmp_path, "wants", "1", files={"wants.py": b""}, requires=["missing>=2"]),
                        make_wheel(tmp_path, "odd", "1", files={"odd.py": b""}, requires_python="three")]
    locked = [LockedFile(wheel.name.partition("-")[0], "1", wheel.name, wheel.stat().st_size,
                         sha256(wheel.read_bytes())[7:], "default") for wheel in wheels]
    for wheel in wheels:
        session.project.store.put(wheel.read_bytes())
    target = load(root, "small")
    path_of(root, "small").write_text(Lock("small", request_digests(target), {"kind": "debian", "suites": []}, PYTHON,
                                           wheels=tuple(locked)).dumps())
    session.realise("small", session.project.graph("small").stage("deps"))
    return session, out


def skips(inputs: CheckInputs) -> list[Finding]:
    """A check that no machine can make."""
    raise SkippedError("no such device here", "run it on one")


def says(inputs: CheckInputs) -> list[Finding]:
    """A check that says what it reads."""
    return [Finding("info", name, f"{len(inputs.store.read(digest))} bytes") for name, digest in inputs.outputs.items()]
