"""The ELF reader."""

import io
import shutil
import sys

import pytest

from checks.elf import DamagedElfError, Elf, read_elf
from tests.support.elf_factory import make_elf


def test_reads_what_matters_to_a_loader() -> None:
    data = make_elf("aarch64", needed=["liba.so.1", "libc.so.6"], soname="libx.so.2", rpath="$ORIGIN/../lib::/opt/x",
                    interpreter="/lib/ld-linux-aarch64.so.1")
    assert read_elf(io.BytesIO(data)) == Elf(
        "aarch64", "shared", "libx.so.2", ("liba.so.1", "libc.so.6"), ("$ORIGIN/../lib", "/opt/x"), (),
        "/lib/ld-linux-aarch64.so.1")
    assert read_elf(io.BytesIO(make_elf("x86_64", kind=1, runpath="/r"))) == Elf("x86_64", "object", runpath=("/r",))


def test_reads_a_real_program() -> None:
    """The interpreter that runs this test, or a shell if that is a script."""
    for path in (sys.executable, shutil.which("ls") or ""):
        with open(path, "rb") as file:
            found = read_elf(file)
        assert found is not None
        assert found.interpreter.startswith("/lib")
        assert any(name.startswith("libc.so") for name in found.needed)


@pytest.mark.parametrize("data", [b"", b"\x7fEL", b"#!/bin/sh\n", b"!<arch>\n"])
def test_what_is_no_elf(data: bytes) -> None:
    assert read_elf(io.BytesIO(data)) is None


def test_a_damaged_file_is_an_error_or_read_and_never_a_crash() -> None:
    good = make_elf(needed=["liba.so.1"], soname="s", interpreter="/l")
    for cut in range(4, len(good)):
        with pytest.raises(DamagedElfError):
            read_elf(io.BytesIO(good[:cut]))
    for position in range(4, len(good)):
        bad = bytearray(good)
        bad[position] ^= 0xFF
        try:
            read_elf(io.BytesIO(bytes(bad)))
        except DamagedElfError:
            pass
