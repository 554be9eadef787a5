"""Gate triton-stub: the stub's Python and numpy are the image's."""

from pathlib import Path

import pytest

from cache.store import Store
from tests.support.elf_factory import make_elf
from tests.support.gates import Gates
from tests.support.pytriton import make_pytriton, stub_of
from tests.support.wheel_factory import make_wheel

_STUBS = "pytriton/tritonserver/python_backend_stubs"


@pytest.fixture
def gates(tmp_path: Path) -> Gates:
    found = Gates(Store.open(tmp_path / "store"))
    found.layer("deps", make_wheel(tmp_path, "numpy", "1.26.4"))
    return found


def test_it_fits(gates: Gates, tmp_path: Path) -> None:
    gates.triton(make_pytriton(tmp_path))
    assert gates.judge("triton-stub").findings == ()


def test_the_library_of_a_bundled_python_counts_as_that_python(gates: Gates, tmp_path: Path) -> None:
    gates.triton(make_pytriton(tmp_path), "3.13")
    gates.lock["python"]["version"] = "3.13"
    assert gates.errors("triton-stub") == {}


def test_a_stub_for_another_python(gates: Gates, tmp_path: Path) -> None:
    gates.triton(make_pytriton(tmp_path), "3.10")
    assert gates.errors("triton-stub") == {"stub: libpython": "links Python 3.10, the image has 3.11"}


def test_a_stub_in_the_wrong_directory_of_the_wheel(gates: Gates, tmp_path: Path) -> None:
    """Evidence is what it links, not where it lay."""
    wrong = {f"{_STUBS}/3.11/triton_python_backend_stub": stub_of("3.12")}
    gates.triton(make_pytriton(tmp_path, files=wrong))
    assert gates.errors("triton-stub") == {"stub: libpython": "links Python 3.12, the image has 3.11"}


@pytest.mark.parametrize(("content", "subjects"), [
    (b"#!/bin/sh\n", ["stub"]), (stub_of("3.11")[:200], ["stub"]), (make_elf("x86_64"), ["stub", "stub: libpython"]),
    (make_elf("aarch64"), ["stub: libpython"])])
def test_a_stub_that_cannot_run(gates: Gates, tmp_path: Path, content: bytes, subjects: list[str]) -> None:
    gates.triton(make_pytriton(tmp_path, files={f"{_STUBS}/3.11/triton_python_backend_stub": content}))
    assert list(gates.errors("triton-stub")) == subjects


def test_numpy_2_with_a_stub_made_for_numpy_1(gates: Gates, tmp_path: Path) -> None:
    gates.triton(make_pytriton(tmp_path))
    gates.layer("deps", make_wheel(tmp_path, "numpy", "2.3.5"))
    assert list(gates.errors("triton-stub")) == ["numpy"]


def test_no_numpy_is_a_warning(gates: Gates, tmp_path: Path) -> None:
    gates.triton(make_pytriton(tmp_path))
    gates.layer("deps", make_wheel(tmp_path, "other", "1"))
    findings = gates.judge("triton-stub").findings
    assert [(finding.severity, finding.subject) for finding in findings] == [("warning", "numpy")]


def test_a_server_that_is_not_in_the_table(gates: Gates, tmp_path: Path) -> None:
    gates.triton(make_pytriton(tmp_path))
    gates.lock["files"] = [{"name": "nvidia-pytriton", "version": "0.9.0"}]
    assert "not known" in gates.errors("triton-stub")["numpy"]
