"""Gate python: scripts and extension modules for the image's interpreter."""

from pathlib import Path

import pytest

from cache.store import Store
from checks.python import modules, script
from tests.support.gates import Gates
from tests.support.wheel_factory import make_wheel


def found(paths: list[str]) -> list[str]:
    return [finding.subject for finding in modules([f"s/{path}" for path in paths], "3.11", "aarch64", "s")]


@pytest.mark.parametrize("paths", [
    ["a/_c.cpython-311-aarch64-linux-gnu.so"], ["a/_c.abi3.so"], ["a/lib.so.1"], ["a/_c.cpython-311.so"],
    ["a/_c.cpython-312-aarch64-linux-gnu.so", "a/_c.cpython-311-aarch64-linux-gnu.so"],
    ["a/_c.cpython-312-aarch64-linux-gnu.so", "a/_c.abi3.so"],
])
def test_modules_that_are_imported(paths: list[str]) -> None:
    assert found(paths) == []


@pytest.mark.parametrize("path", [
    "vllm/third_party/deep_gemm/_C.cpython-312-aarch64-linux-gnu.so", "a/_c.cpython-311-x86_64-linux-gnu.so",
    "a/_c.cpython-311t-aarch64-linux-gnu.so", "a/_c.cpython-310.so"])
def test_modules_that_never_are(path: str) -> None:
    assert found([path, "a/other.cpython-311-aarch64-linux-gnu.so"]) == [path]


@pytest.mark.parametrize("line", [
    b"#!/usr/bin/python3.11\n", b"#!/usr/bin/env python3\n", b"#!/usr/bin/env -S python3.11 -E\n", b"#!/bin/sh\n",
    b"#!/usr/bin/env bash\n", b"\x7fELF", b"", b"#!\n", b"print('no line')"])
def test_scripts_that_start(line: bytes) -> None:
    assert script("usr/local/bin/x", line, "/usr/bin/python3.11", "3.11") == []


@pytest.mark.parametrize("line", [
    b"#!/usr/bin/python\n", b"#!/home/builder/venv/bin/python3.11 -E\n", b"#!/usr/bin/env python\n", b"#!python\n",
    b"#! /usr/bin/python3.12\n", b"#!/usr/bin/env python3.12\n", b"#!/usr/bin/pypy3\n"])
def test_scripts_that_start_another_python_or_none(line: bytes) -> None:
    assert [finding.severity for finding in script("usr/local/bin/x", line, "/usr/bin/python3.11", "3.11")] == ["error"]


@pytest.fixture
def gates(tmp_path: Path) -> Gates:
    return Gates(Store.open(tmp_path / "store"))


def test_on_layers(gates: Gates, tmp_path: Path) -> None:
    good = make_wheel(tmp_path, "good", "1", entry_points={"good": "good:main"}, data={"scripts/other": b"#!python\n"},
                      files={"good/_c.cpython-311-aarch64-linux-gnu.so": b"",
                             "good/not-a-script": b"#!/usr/bin/python9\n"})
    gates.layer("vllm", good)
    assert gates.judge("python").findings == ()
    gates.layer("deps", make_wheel(
        tmp_path, "bad", "1", data={"scripts/bad": b"#!/opt/conda/bin/python\n", "data/bin/stray": b"#!python\n"},
        files={"bad/_c.cpython-312-aarch64-linux-gnu.so": b""}))
    assert set(gates.errors("python")) == {
        "/usr/local/bin/bad", "/usr/local/bin/stray", "bad/_c.cpython-312-aarch64-linux-gnu.so"}


def test_an_image_of_another_python(gates: Gates, tmp_path: Path) -> None:
    """The same layer judged for another interpreter: another verdict."""
    gates.layer("deps", make_wheel(tmp_path, "good", "1", entry_points={"good": "good:main"}))
    assert gates.errors("python") == {}
    gates.lock["python"] |= {"version": "3.13", "executable": "/usr/bin/python3.13"}
    assert list(gates.errors("python")) == ["/usr/local/bin/good"]
