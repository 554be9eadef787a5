"""The emulator as a locked input: refused versions, the program out of its package, the registration's line."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from cache.errors import IntegrityError, ToolError
from cache.store import Store
from executors import emulator
from executors.emulator import Emulator, locked, refused, row_for, unpacked
from tests.support.deb_factory import ar
from tests.support.front import HERE
from tests.support.tarballs import make_tar

ROW = row_for("aarch64", "x86_64")


@pytest.mark.parametrize(("version", "why"), [
    ("1:7.2+dfsg-7+deb12u18", "qemu-user 1:7.2+dfsg-7+deb12u18 is older than 10.0: qemu-user 7.2"),
    ("9.2.4", "older than 10.0"), ("1:10.0.13+ds-0+deb13u1", ""), ("10.1.0", ""), ("1:11.0~rc1", ""), ("", "older"),
])
def test_old_versions_are_refused_with_the_reason(version: str, why: str) -> None:
    assert ROW is not None
    found = refused(ROW, version)
    assert why in found
    assert bool(found) == bool(why)


def deb(version: str, content: bytes = b"") -> dict[str, str]:
    from cache.canonical import sha256

    return {"name": "qemu-user", "version": version, "architecture": "amd64", "sha256": sha256(content)[7:]}


def test_lock_without_a_fitting_emulator_says_how_to_get_one(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    for debs in ([], [{**deb("1:10.0"), "architecture": "arm64"}], [{**deb("1:10.0"), "name": "other"}]):
        with pytest.raises(ToolError, match="the lock has no emulator") as caught:
            locked(store, "aarch64", "x86_64", debs)
        assert caught.value.cure == "./doit lock:<target> --only emulator"
    with pytest.raises(ToolError, match="refused") as caught:
        locked(store, "aarch64", "x86_64", [deb("1:7.2+dfsg-7")])
    assert "torch 2.13" in str(caught.value.found)
    with pytest.raises(ToolError, match="no emulator is known that runs riscv64"):
        locked(store, "riscv64", "x86_64", [deb("1:10.0")])


def test_program_is_taken_out_of_its_package(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    data = make_tar([("usr", None), ("usr/bin", None), ("usr/bin/qemu-aarch64", b"the program"),
                     ("usr/bin/qemu-arm", b"another")])
    package = ar([("debian-binary", b"2.0\n"), ("control.tar", make_tar([("control", b"x")])),
                          ("data.tar", data)])
    store.put(package)
    found = locked(store, "aarch64", "x86_64", [deb("1:10.0.13", package)])
    assert found.path.read_bytes() == b"the program"
    assert found.path.stat().st_mode & 0o111
    assert len(list(found.path.parent.iterdir())) == 1
    with pytest.raises(IntegrityError, match="lacks the emulator"):
        unpacked(store, store.put(package).digest, "usr/bin/qemu-none")


@pytest.mark.parametrize("content", [b"", b"!<arch>\n", b"!<arch>\n" + b"x" * 70, b"PK\3\4"])
def test_what_is_no_package_is_refused(tmp_path: Path, content: bytes) -> None:
    store = Store.open(tmp_path / "store")
    store.put(content)
    with pytest.raises(IntegrityError):
        locked(store, "aarch64", "x86_64", [deb("1:10.0.13", content)])


def test_line_is_for_programs_of_the_machine_only() -> None:
    text = emulator.line("name", Emulator("aarch64", Path("/tmp/emulator"), "10"))
    _, name, kind, offset, magic, mask, path, flags = text.split(":")
    assert (name, kind, offset, path, flags) == ("name", "M", "", "/tmp/emulator", "PFO")
    magic_bytes, mask_bytes = (bytes.fromhex(part.replace("\\x", "")) for part in (magic, mask))
    assert len(magic_bytes) == len(mask_bytes) == 20

    def matches(machine: int, kind: int) -> bool:
        head = b"\x7fELF\x02\x01\x01" + bytes(9) + kind.to_bytes(2, "little") + machine.to_bytes(2, "little")
        return all(a & m == b & m for a, b, m in zip(head, magic_bytes, mask_bytes, strict=True))

    assert matches(183, 2)
    assert matches(183, 3)
    assert not matches(62, 2)
    assert not matches(183, 1)


def test_table_keeps_its_format() -> None:
    schema = json.loads((HERE / "docs/formats/emulators.schema.json").read_text())
    jsonschema.validate(yaml.safe_load((HERE / "executors/emulators.yaml").read_text()), schema)
