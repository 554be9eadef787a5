"""A real registry through the front door: push and pull back, and a target whose base is an image of that registry."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.support.docker_engine import running_engine
from tests.support.front import MINI, doit, make_project, manifest_of
from tests.support.registry import RunningRegistry

#: MINI without server and wheels, compressed as every engine can read it.
BASE = MINI
for old, new in (('triton:\n  version: "0.7.0"\n', ""), ("wheels:\n  requirements: [click==8.1.8]\n", ""),
                 ("  libpython3.13: the Triton stub links it\n", ""),
                 ("  ports: [8000]\n", "  compression: {name: gzip, level: 6}\n")):
    assert old in BASE
    BASE = BASE.replace(old, new)


@pytest.fixture(scope="module")
def built(registry: RunningRegistry, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """A project whose target `os` (Debian and Python, nothing else) is pushed to the registry."""
    base = tmp_path_factory.mktemp("os")
    root, store = make_project(base / "project", os=BASE), base / "store"
    doit(root, store, "lock:os")
    pushed = json.loads(doit(root, store, "push:os", f"{registry.host}/team/os:1", "--json").stdout)
    return root, store, pushed["manifest"]


def layers(manifest: bytes) -> list[str]:
    return [layer["digest"] for layer in json.loads(manifest)["layers"]]


def test_what_skopeo_pulls_back_is_what_was_recorded(
    built: tuple[Path, Path, str], registry: RunningRegistry, tmp_path: Path
) -> None:
    root, _, recorded = built
    source, copy = f"docker://{registry.host}/team/os:1", f"oci:{tmp_path / 'back'}:1"
    subprocess.run(["skopeo", "copy", "--preserve-digests", "--src-tls-verify=false", source, copy], check=True,
                   capture_output=True)
    index = json.loads((tmp_path / "back/index.json").read_text())
    assert index["manifests"][0]["digest"] == recorded
    pulled = json.loads((tmp_path / "back/blobs/sha256" / recorded[7:]).read_text())
    local = json.loads((root / "result-os/blobs/sha256" / manifest_of(root, "os")[7:]).read_text())
    assert pulled["config"]["digest"] == local["config"]["digest"]
    config = json.loads((tmp_path / "back/blobs/sha256" / pulled["config"]["digest"][7:]).read_text())
    assert config["rootfs"]["diff_ids"] == [layer["digest"] for layer in local["layers"]]


def test_second_push_after_a_changed_environment_sends_no_layer(
    built: tuple[Path, Path, str], registry: RunningRegistry
) -> None:
    root, store, first = built
    target = root / "targets" / "os.yaml"
    target.write_text(BASE.replace("GREETING: hello", "GREETING: good day"))
    registry.requests.clear()
    data = json.loads(doit(root, store, "push:os", f"{registry.host}/team/os:2", "--json").stdout)
    target.write_text(BASE)
    assert data["manifest"] != first
    config_size = len((root / f"result-os/blobs/sha256/{data['config'][7:]}").read_bytes())
    assert sum(request.sent for request in registry.uploads()) == config_size
    assert data["sent"] == 0


def test_debs_and_wheels_on_a_base_image_run_in_a_container(
    built: tuple[Path, Path, str], registry: RunningRegistry, tmp_path: Path
) -> None:
    root, store, pushed = built
    base = f"base:\n  image: {registry.host}/team/os:1\n"
    text = MINI.replace("base:\n  debian:\n    suite: trixie\n", base).replace("triton:\n  version: \"0.7.0\"\n", "")
    text = text.replace("  python3: the interpreter that the tests start\n  libpython3.13: the Triton stub links it\n",
                        "  file: a small package with libraries of its own\n")
    (root / "targets" / "upon.yaml").write_text(text)
    doit(root, store, "lock:upon")
    lock = json.loads((root / "targets" / "upon.lock.json").read_text())
    assert lock["base"]["digest"] == pushed
    assert {deb["name"] for deb in lock["debs"]} >= {"file", "libmagic1t64"}
    assert not {deb["name"] for deb in lock["debs"]} & {"libc6", "bash", "python3"}
    assert lock["python"]["version"] == "3.13"
    doit(root, store, "build:upon")
    local = json.loads((root / "result-upon/blobs/sha256" / manifest_of(root, "upon")[7:]).read_text())
    below = json.loads(doit(root, store, "push:os", f"{registry.host}/team/os:1", "--json").stdout)["layers"]
    assert [layer["digest"] for layer in local["layers"]][: len(below)] == [layer["digest"] for layer in below]
    with running_engine(tmp_path / "engine") as engine:
        (root / "targets" / "squeezed.yaml").write_text(text.replace("os:1", "os:zstd"))
        (root / "targets" / "os.yaml").write_text(BASE.replace("gzip, level: 6", "zstd, level: 3"))
        doit(root, store, "push:os", f"{registry.host}/team/os:zstd")
        (root / "targets" / "os.yaml").write_text(BASE)
        doit(root, store, "lock:squeezed")
        assert engine.version.startswith("20.10")
        done = doit(root, store, "load:squeezed", rc=115, DOCKER_HOST=engine.host)
        assert "cannot unpack zstd layers" in done.stderr
        doit(root, store, "load:upon", "upon:test", DOCKER_HOST=engine.host)
        program = "import click, sys; print(click.__version__ if hasattr(click, '__version__') else 'click')"
        assert engine.run("upon:test", ["python3", "-c", program]).startswith("8.1.8")
        assert engine.run("upon:test", ["file", "-b", "/bin/sh"]).startswith("symbolic link")
        packages = engine.run("upon:test", ["dpkg", "-l", "file", "bash"])
        assert packages.count("\nii ") == 2


def test_base_image_that_moved_or_vanished_is_named(
    built: tuple[Path, Path, str], registry: RunningRegistry
) -> None:
    root, store, _ = built
    (root / "targets" / "gone.yaml").write_text(
        MINI.replace("base:\n  debian:\n    suite: trixie\n", f"base:\n  image: {registry.host}/team/nothing:1\n"))
    done = doit(root, store, "lock:gone", rc=None)
    assert done.returncode in (111, 112)
    assert "team/nothing" in done.stderr
    assert not (root / "targets" / "gone.lock.json").exists()
    (root / "targets" / "gone.yaml").unlink()
