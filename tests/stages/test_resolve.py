"""Locking as a whole: an image of a real registry below, wheels of a real index, packages of a signed archive."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from cache.errors import GateError, InputError, LockError
from cache.store import Store
from oci import media
from oci.reference import parse_reference
from oci.registry import PUSH, Registry
from oci.upload import upload
from stages import resolve
from stages.lockfile import LockedFile
from stages.project import Project
from tests.support.apt_repository import AptRepository, served
from tests.support.front import make_project
from tests.support.index_server import IndexServer
from tests.support.project import TARGET
from tests.support.registry import RunningRegistry
from tests.support.tarballs import UBUNTU, Member, make_tar, packed
from tests.support.wheel_factory import make_wheel

RELEASE = 'ID=debian\nVERSION_CODENAME=stable\nPRETTY_NAME="Some system"\n'


def put_image(registry: RunningRegistry, scratch: Path, name: str, *more: Member, architecture: str = "arm64",
              release: str = RELEASE) -> str:
    """Put an image with Python 3.12 under the tag 1; its digest."""
    system = [member for member in UBUNTU[0] if member[0] != "usr/lib/os-release"]
    system.insert(-3, ("usr/lib/os-release", release.encode()))
    store, client = Store.open(scratch), Registry.connect(parse_reference(f"{registry.host}/{name}"))
    listed, diff_ids = [], []
    for members in (system, [*UBUNTU[1], *more]):
        content, kind, diff_id = packed(make_tar(members), "gzip")
        blob = store.put(content)
        upload(client, name, blob, store.path_of(blob.digest))
        listed.append({"mediaType": kind, "size": blob.size, "digest": blob.digest})
        diff_ids.append(diff_id)
    config = store.put(json.dumps({"architecture": architecture, "os": "linux", "config": {},
                                   "rootfs": {"type": "layers", "diff_ids": diff_ids}}).encode())
    upload(client, name, config, store.path_of(config.digest))
    manifest = store.put(json.dumps({
        "schemaVersion": 2, "mediaType": media.DOCKER_MANIFEST, "layers": listed,
        "config": {"mediaType": media.DOCKER_CONFIG, "size": config.size, "digest": config.digest}}).encode())
    done = client.request("PUT", f"{name}/manifests/1", PUSH.format(name), data=store.read(manifest.digest),
                          headers={"Content-Type": media.DOCKER_MANIFEST})
    assert done.status_code == 201
    return manifest.digest


class Place:
    """A project with a target `small` that a test may change."""

    def __init__(self, root: Path, reference: str) -> None:
        self.root = make_project(root)
        self.text = TARGET.replace("linux/amd64", "linux/arm64").replace('"3.11"', '"3.12"').replace(
            "debian:\n    suite: bookworm", f"image: {reference}") + "wheels:\n  requirements: [one]\n"
        self.path = self.root / "targets" / "small.lock.json"
        self.log: list[str] = []

    def lock(self, old: str = "", new: str = "", **options: object) -> dict[str, object]:
        """Change the target, lock, and give the lock."""
        assert old in self.text
        self.text = self.text.replace(old, new)
        (self.root / "targets" / "small.yaml").write_text(self.text)
        self.log.clear()
        resolve.lock(Project(self.root), "small", self.log.append, **options)  # type: ignore[arg-type]
        found: dict[str, object] = json.loads(self.path.read_text())
        return found

    def refused(self) -> str:
        """How a build refuses the lock."""
        with pytest.raises(LockError) as caught:
            Project(self.root).lock("small")
        return caught.value.diagnostics()


@pytest.fixture
def place(registry: RunningRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """On an image `<name of the test's directory>:1`; the index has `one` and `two`."""
    monkeypatch.setenv("STAGECRAFT_STORE", str(tmp_path / "store"))
    (tmp_path / "wheels").mkdir()
    for name in ("one", "two"):
        make_wheel(tmp_path / "wheels", name, "1", files={f"{name}.py": b""})
    with IndexServer(tmp_path / "wheels") as server:
        for name in ("PIP_INDEX_URL", "UV_INDEX_URL"):
            monkeypatch.setenv(name, server.url)
        monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
        yield Place(tmp_path / "project", f"{registry.host}/{repository(tmp_path)}:1")


def repository(tmp_path: Path) -> str:
    return "base/" + tmp_path.name.lower().replace("_", "-").strip("-")


def test_part_that_was_left_alone_still_answers_what_it_answered(place: Place, registry: RunningRegistry,
                                                                  tmp_path: Path) -> None:
    put_image(registry, tmp_path / "scratch", repository(tmp_path))
    place.lock()
    Project(place.root).lock("small")
    place.lock("[one]", "[one, two]", only="debs")
    assert "./doit lock:small --only wheels" in place.refused()
    fresh = place.lock(only="wheels")
    Project(place.root).lock("small")
    assert [wheel["name"] for wheel in fresh["wheels"]] == ["one", "two"]  # type: ignore[attr-defined]
    other = repository(tmp_path) + "-other"
    put_image(registry, tmp_path / "scratch", other)
    place.lock(f"{repository(tmp_path)}:1", f"{other}:1", only="wheels")
    assert "./doit lock:small --only debs" in place.refused()
    place.lock(only="debs")
    Project(place.root).lock("small")


def test_wheels_for_another_glibc_are_not_kept(place: Place, registry: RunningRegistry, tmp_path: Path) -> None:
    put_image(registry, tmp_path / "scratch", repository(tmp_path))
    place.lock()
    text = place.path.read_text()
    place.path.write_text(text.replace('"glibc": "2.39"', '"glibc": "2.41"'))
    assert place.path.read_text() != text
    with pytest.raises(LockError, match="than the wheels were resolved for"):
        place.lock(only="debs")
    assert '"glibc": "2.41"' in place.path.read_text()


def test_package_of_another_index(place: Place, registry: RunningRegistry, tmp_path: Path,
                                  monkeypatch: pytest.MonkeyPatch) -> None:
    """flashinfer-jit-cache is in flashinfer's own index only; a file of the same name elsewhere does not count."""
    put_image(registry, tmp_path / "scratch", repository(tmp_path))
    (tmp_path / "other").mkdir()
    for name in ("one", "two"):
        make_wheel(tmp_path / "other", name, "1+cu130", files={f"{name}.py": b"cu130"})
    with IndexServer(tmp_path / "other") as server:
        monkeypatch.setenv("STAGECRAFT_INDEX_JETSON", server.url)
        found = place.lock("  requirements: [one]", "  requirements: [one]\n  indexes: {two: jetson}")
        wheels = [(one["name"], one["version"], one["index"]) for one in found["wheels"]]  # type: ignore[attr-defined]
        assert wheels == [("one", "1", "default"), ("two", "1+cu130", "jetson")]
        Project(place.root).lock("small")
    place.text = place.text.replace("two: jetson", "two: nowhere")
    with pytest.raises(InputError, match="nowhere"):
        place.lock()


def test_tag_that_moved_is_followed_when_asked_to(place: Place, registry: RunningRegistry, tmp_path: Path) -> None:
    name = repository(tmp_path)
    first = put_image(registry, tmp_path / "scratch", name)
    before = place.lock()
    second = put_image(registry, tmp_path / "scratch", name, ("new", b"file"))
    assert second != first
    assert place.lock("[one]", "[one, two]")["base"] == before["base"]
    assert place.lock(upgrade=["two"])["base"] == before["base"]
    assert f"@{first}" in place.log[0]
    moved = place.lock(upgrade=True)["base"]
    assert moved["digest"] == second  # type: ignore[index]
    assert moved["reference"] == f"{registry.host}/{name}:1@{second}"  # type: ignore[index]


def test_digest_that_does_not_serve_any_more_is_looked_up_again(place: Place, registry: RunningRegistry,
                                                                 tmp_path: Path) -> None:
    name = repository(tmp_path)
    put_image(registry, tmp_path / "scratch", name)
    place.lock()
    second = put_image(registry, tmp_path / "scratch", name, architecture="amd64")
    assert place.lock("linux/arm64", "linux/amd64")["base"]["digest"] == second  # type: ignore[index]
    assert any("for another platform" in line for line in place.log)


@pytest.mark.parametrize("how", ["merge", "old", "bytes"])
def test_malformed_lock_is_resolved_anew_with_a_warning(place: Place, registry: RunningRegistry, tmp_path: Path,
                                                        how: str) -> None:
    put_image(registry, tmp_path / "scratch", repository(tmp_path))
    place.lock()
    text = place.path.read_text()
    place.path.write_bytes({
        "merge": text.replace('  "python"', '<<<<<<< ours\n  "python"').encode(),
        "old": json.dumps({**json.loads(text), "request": "sha256:" + "0" * 64}).encode(),
        "bytes": b"\xff\xfe" + text.encode()}[how])
    assert "malformed" in place.refused()
    with pytest.raises(LockError, match="no sound lock to keep the rest of"):
        place.lock(only="wheels")
    place.lock()
    assert any("warning: the lock is malformed" in line for line in place.log)
    assert place.path.read_text() == text


def test_suites_of_the_packages_on_an_image_are_in_the_lock(place: Place, registry: RunningRegistry,
                                                            tmp_path: Path) -> None:
    put_image(registry, tmp_path / "scratch", repository(tmp_path))
    with AptRepository(tmp_path / "archive") as archive:
        archive.add("app")
        for suite in ("stable", "stable-updates", "stable-security"):
            archive.publish(suite)
        with served(tmp_path / "archive") as url:
            indexes = place.root / "targets" / "indexes.yaml"
            indexes.write_text(indexes.read_text().replace(
                "type: apt\n    distribution: debian\n",
                f"type: apt\n    distribution: debian\n    url: {url}\n    security: {url}\n"
                f"    keyring: {archive.keyring}\n"))
            found = place.lock("wheels:", "packages:\n  app: a package of the test's archive\nwheels:")
    assert [deb["name"] for deb in found["debs"]] == ["app"]  # type: ignore[attr-defined]
    suites = found["base"]["suites"]  # type: ignore[index]
    assert {(suite["index"], suite["suite"]) for suite in suites} == {
        ("debian", "stable"), ("debian", "stable-updates"), ("debian-security", "stable-security")}
    project = Project(place.root)
    assert isinstance(project.lock("small").debs[0], LockedFile)
    assert project.suites() == suites


@pytest.mark.parametrize(("release", "lacking"), [("ID=rolling\nPRETTY_NAME=Rolling\n", "VERSION_CODENAME"),
                                                  ("VERSION_CODENAME=x\n", "ID")])
def test_system_without_a_release_takes_no_packages(place: Place, registry: RunningRegistry, tmp_path: Path,
                                                    release: str, lacking: str) -> None:
    put_image(registry, tmp_path / "scratch", repository(tmp_path), release=release)
    place.lock()
    with pytest.raises(LockError, match=f"no {lacking} in its os-release") as caught:
        place.lock("wheels:", "packages:\n  app: a package of the test's archive\nwheels:")
    assert caught.value.cure


BROKEN = """wheels:
  requirements: [one]
  overrides:
    - requirement: two==1
      reason: to have a set that contradicts itself
"""


def test_lock_that_preflight_refuses_is_not_written(place: Place, registry: RunningRegistry, tmp_path: Path) -> None:
    put_image(registry, tmp_path / "scratch", repository(tmp_path))
    place.lock()
    before = place.path.read_bytes()
    make_wheel(tmp_path / "wheels", "one", "2", files={"one.py": b""}, requires=["two>=2"])
    broken = ("wheels:\n  requirements: [one]\n", BROKEN)
    with pytest.raises(GateError) as caught:
        place.lock(*broken, upgrade=True)
    assert place.path.read_bytes() == before
    assert "wheel-set: one: two>=2" in str(caught.value.found)
    assert "move two 1 -> >=2" in str(caught.value.cure)
    assert "--no-preflight" in str(caught.value.cure)
    with pytest.raises(GateError):  # nor is it found good because the debs alone are asked for, and wheels then
        place.lock(only="wheels", upgrade=True)
    place.lock(only="debs")
    waived = "waivers:\n  - check: wheel-set\n    subject: \"one: two>=2\"\n    reason: known to work together\n"
    fresh = place.lock(BROKEN, BROKEN + waived, upgrade=True)
    assert [wheel["version"] for wheel in fresh["wheels"]] == ["2", "1"]  # type: ignore[attr-defined]
    assert any("preflight passes" in line for line in place.log)


def test_lock_without_preflight(place: Place, registry: RunningRegistry, tmp_path: Path) -> None:
    put_image(registry, tmp_path / "scratch", repository(tmp_path))
    make_wheel(tmp_path / "wheels", "one", "2", files={"one.py": b""}, requires=["two>=2"])
    fresh = place.lock("wheels:\n  requirements: [one]\n", BROKEN, judged=False)
    assert [wheel["version"] for wheel in fresh["wheels"]] == ["2", "1"]  # type: ignore[attr-defined]
    assert not any("preflight passes" in line for line in place.log)
    assert any("not judged" in line for line in place.log)
