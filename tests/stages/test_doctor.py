"""What `doctor` makes of the files that real devices show."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from stages.doctor import _emulator, examine, fitting, identify, kind_of
from stages.project import Project
from tests.support.index_server import IndexServer, write_indexes
from tests.support.project import write_target

THOR = {
    "proc/device-tree/model": "NVIDIA Jetson AGX Thor Developer Kit\0",
    "etc/nv_tegra_release": "# R38 (release), REVISION: 2.1, GCID: 42061081, BOARD: generic, EABI: aarch64\n",
    "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  580.00  Release Build\n",
    "etc/os-release": 'PRETTY_NAME="Ubuntu 24.04.3 LTS"\n',
}
SPARK = {
    "sys/class/dmi/id/product_name": "NVIDIA_DGX_Spark\n",
    "proc/driver/nvidia/version":
        "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  580.95.05  Release Build  (dvs-builder)\n",
}
ORIN = {
    "proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0",
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081\n",
}


def machine(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


@pytest.mark.parametrize(("files", "kind", "l4t", "driver", "target"), [
    (THOR, "jetson-thor", "38.2.1", "580.00", "thor"),
    (SPARK, "dgx-spark", "", "580.95.05", "spark"),
    (ORIN, "jetson-orin", "36.4.3", "", "orin"),
    ({"sys/class/dmi/id/product_name": "OptiPlex"}, "generic", "", "", ""),
    ({}, "generic", "", "", ""),
])
def test_devices_are_known_by_their_files(
    tmp_path: Path, files: dict[str, str], kind: str, l4t: str, driver: str, target: str
) -> None:
    found = identify(machine(tmp_path, files))
    assert (found.kind, found.l4t, found.driver, fitting(found)) == (kind, l4t, driver, target)


@pytest.mark.parametrize(("model", "kind"), [
    ("NVIDIA Jetson AGX Thor Developer Kit", "jetson-thor"),
    ("NVIDIA Jetson Thor T5000", "jetson-thor"),
    ("NVIDIA Orin Nano Developer Kit", "jetson-orin"),
    ("NVIDIA Jetson Orin NX", "jetson-orin"),
    ("NVIDIA DGX Spark", "dgx-spark"),
    ("Dell Pro Max with GB10", "dgx-spark"),
    ("ThinkPad Thorium", "generic"),
    ("NVIDIA DRIVE AGX Thor", "generic"),
    ("Orinoco", "generic"),
    ("Sparkstation 10", "generic"),
    ("AGB1000", "generic"),
])
def test_models_are_matched_by_words(model: str, kind: str) -> None:
    assert kind_of(model) == kind


ENTRY = "{state}\ninterpreter {path}\nflags: {flags}\noffset 0\nmagic 7f454c46\nmask ffffffff\n"
QEMU = "#!/bin/sh\necho 'qemu-aarch64 version {version}'\necho 'Copyright (c) 2003-2024 Fabrice Bellard'\n"


@pytest.mark.parametrize(("version", "enabled", "state", "found"), [
    ("10.0.8 (Debian 1:10.0.8+ds-0+deb13u1)", "enabled", "ok", "version 10.0.8"),
    ("7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)", "enabled", "missing", "version 7.2.22: older than 10"),
    ("9.2.4", "enabled", "missing", "version 9.2.4: older than 10"),
    ("10.0.8", "disabled", "note", "but disabled"),
    ("", "enabled", "note", "version cannot be asked"),
])
def test_emulator_by_its_registration_and_version(tmp_path: Path, version: str, enabled: str, state: str,
                                                  found: str) -> None:
    program = tmp_path / "qemu"
    if version:
        program.write_text(QEMU.format(version=version))
        program.chmod(0o755)
    foreign = "x86_64" if os.uname().machine == "aarch64" else "aarch64"
    (tmp_path / f"qemu-{foreign}").write_text(ENTRY.format(state=enabled, path=program, flags="POCF"))
    finding = _emulator(tmp_path)[0]
    assert (finding.state, finding.what) == (state, f"emulator for {foreign}")
    assert finding.found.startswith(str(program))
    assert found in finding.found
    assert bool(finding.cure) == (state != "ok")


def test_emulator_that_is_not_registered(tmp_path: Path) -> None:
    assert (_emulator(tmp_path)[0].state, _emulator(tmp_path)[0].found) == ("note", "not registered")


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a target `thor`, a store that can be made, an index that answers and one that does not."""
    monkeypatch.setenv("STAGECRAFT_STORE", str(tmp_path / "store"))
    root = tmp_path / "project"
    write_target(root, "thor")
    return root


def test_examination_names_machine_target_store_and_indexes(checkout: Path, tmp_path: Path,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "files").mkdir()
    with IndexServer(tmp_path / "files") as server:
        monkeypatch.setenv("STAGECRAFT_INDEX_DEFAULT", server.url)
        write_indexes(checkout / "targets" / "indexes.yaml",
                      {"gone": {"type": "simple", "url": "http://127.0.0.1:9/simple/"}})
        data, text = examine(Project(checkout), machine(tmp_path / "thor", THOR))
    assert data["target"] == "thor"
    findings = {finding["what"]: finding for finding in data["findings"]}
    assert {"Python", "Docker engine", "apt", "store", "index default", "index gone"} <= set(findings)
    assert (findings["store"]["state"], findings["store"]["found"]) == ("ok", str(tmp_path / "store"))
    assert findings["index default"]["state"] == "ok"
    assert findings["index gone"]["state"] == "note"
    assert json.loads(json.dumps(data)) == data
    lines = text.splitlines()
    assert lines[0].startswith("machine   NVIDIA Jetson AGX Thor Developer Kit, aarch64, Ubuntu 24.04.3 LTS")
    assert "          L4T 38.2.1 (JetPack 7.0/7.1, CUDA 13.0)" in lines
    assert "target    thor" in lines


def test_known_device_without_a_target_here_is_said(checkout: Path, tmp_path: Path) -> None:
    data, text = examine(Project(checkout), machine(tmp_path / "orin", ORIN))
    assert data["target"] == ""
    assert "target    none: this device is known, a jetson-orin, but there is no targets/orin.yaml" in text.splitlines()


def test_store_that_cannot_be_opened_is_a_finding_not_the_end(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file")
    data, _ = examine(Project(checkout), tmp_path)
    finding = next(finding for finding in data["findings"] if finding["what"] == "store")
    assert finding["state"] == "missing"
    assert str(tmp_path / "store") in finding["found"]
    assert "STAGECRAFT_STORE" in finding["cure"]
    assert [finding["what"] for finding in data["findings"]][-1] == "indexes"  # what comes after it
