"""Locking packages from source as a whole, in parts and again: a real index, a signed archive, no network."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cache.errors import InputError, LockError
from stages import resolve
from stages.project import Project
from tests.support.apt_repository import AptRepository, served
from tests.support.front import make_project
from tests.support.index_server import IndexServer
from tests.support.project import TARGET
from tests.support.sourced import RECIPE
from tests.support.wheel_factory import make_wheel

ASKED = """\
sources:
  packages:
    pkg: {version: "1.0", recipe: recipe/recipe.yaml}
"""
VLLM = """\
torch: {version: "99.0"}
vllm: {version: "1.0", from: source}
sources: {packages: {vllm: {recipe: recipe/recipe.yaml}}}
"""
PLAIN = TARGET.replace("suite: bookworm", "suite: stable") + "packages: {python3.11: the interpreter of the image}\n"


def sdist(directory: Path, name: str, version: str = "1.0", requires: tuple[str, ...] = ("one",)) -> None:
    info = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n" + "".join(
        f"Requires-Dist: {line}\n" for line in requires)
    with tarfile.open(directory / f"{name}-{version}.tar.gz", "w:gz") as archive:
        for path, text in {"PKG-INFO": info, "CMakeLists.txt": "project(x)\n"}.items():
            member = tarfile.TarInfo(f"{name}-{version}/{path}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))


class Place:
    """A project with the target `small`, whose packages and wheels lie on this machine."""

    def __init__(self, root: Path, wheels: Path) -> None:
        self.root, self.wheels = root, wheels
        self.path = root / "targets/small.lock.json"
        self.log: list[str] = []

    def lock(self, text: str = "", **options: Any) -> dict[str, Any]:
        """Lock; with `text`, another target."""
        if text:
            (self.root / "targets/small.yaml").write_text(PLAIN + text)
        self.log.clear()
        resolve.lock(Project(self.root), "small", self.log.append, **options)
        found: dict[str, Any] = json.loads(self.path.read_text())
        return found

    def fits(self) -> bool:
        """Does a build take the lock?"""
        try:
            Project(self.root).graph("small")
        except LockError:
            return False
        return True


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setenv("STAGECRAFT_STORE", str(tmp_path / "store"))
    root, wheels = make_project(tmp_path / "project"), tmp_path / "wheels"
    (root / "recipe").mkdir()
    (root / "recipe/recipe.yaml").write_text(RECIPE)
    for name in ("build.sh", "one.patch"):
        (root / "recipe" / name).write_text("exit 1\n")
    wheels.mkdir()
    for name in ("one", "two", "cmake", "pkg"):
        make_wheel(wheels, name, "1.0", files={f"{name}.py": b""})
    make_wheel(wheels, "torch", "99.0", files={"torch/__init__.py": b""})
    make_wheel(wheels, "vllm", "1.0", files={"vllm/__init__.py": b""})
    sdist(wheels, "pkg")
    sdist(wheels, "vllm", requires=("torch==99.0", "one"))
    with AptRepository(tmp_path / "archive") as archive, IndexServer(wheels) as index:
        archive.add("base", architecture="amd64", Essential="yes")
        for name in ("python3.11", "g++-12"):
            archive.add(name, architecture="amd64")
        archive.publish(architecture="amd64")
        for variable in ("PIP_INDEX_URL", "UV_INDEX_URL"):
            monkeypatch.setenv(variable, index.url)
        monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
        with served(tmp_path / "archive") as url:
            indexes = root / "targets/indexes.yaml"
            indexes.write_text(indexes.read_text().replace(
                "type: apt\n    distribution: debian\n",
                f"type: apt\n    distribution: debian\n    url: {url}\n    keyring: {archive.keyring}\n"))
            yield Place(root, wheels)


def names(lock: dict[str, Any], section: str = "wheels") -> list[str]:
    return [entry["name"] for entry in lock[section]]


def test_whole_lock_has_source_tools_and_what_it_asks_for(place: Place) -> None:
    found = place.lock(ASKED)
    package, = found["sources"]
    assert package["requirements"] == ["one"]
    assert [entry["name"] for entry in package["tools"]["debs"]] == ["g++-12"]
    assert [entry["name"] for entry in package["tools"]["requires"]] == ["cmake"]
    assert names(found) == ["one"]
    assert place.fits()
    text = place.path.read_bytes()
    for only in ("sources", "wheels", "debs"):
        place.lock(only=only)
        assert place.path.read_bytes() == text


def test_package_that_is_no_more_compiled_becomes_a_wheel(place: Place) -> None:
    place.lock(VLLM)
    found = place.lock(VLLM.partition("sources:")[0].replace("source", "wheel"), only="wheels")
    assert "vllm" in names(found)
    assert "sources" not in found
    assert place.fits()


def test_lock_of_a_wheel_does_not_answer_a_target_that_compiles_it(place: Place) -> None:
    decided = place.lock(VLLM.replace("source}", "auto}"))
    assert decided["decisions"]["vllm"]["from"] == "wheel", decided["decisions"]
    place.lock(VLLM, only="wheels")
    assert not place.fits()
    with pytest.raises(LockError, match="vllm"):
        place.lock(only="sources")
    assert names(place.lock(), "sources") == ["vllm"]
    assert place.fits()


def test_decision_that_turns_is_not_locked_in_part(place: Place) -> None:
    """Wheels that were resolved beside a compiled vLLM have none of it."""
    auto = VLLM.replace("source}", "auto}")
    sound = place.wheels / "vllm-1.0-py3-none-any.whl"
    sound.rename(place.wheels.parent / sound.name)
    assert names(place.lock(auto), "sources") == ["vllm"]
    (place.wheels.parent / sound.name).rename(sound)
    before = place.path.read_bytes()
    with pytest.raises(LockError, match="vllm") as caught:
        place.lock(only="sources")
    assert str(caught.value.cure) == "./doit lock:small"
    assert place.path.read_bytes() == before
    assert "vllm" in names(place.lock())
    assert place.fits()


@pytest.mark.parametrize("name", ["cmake", "g++-12", "pkg", "one", "python3.11"])
def test_single_pin_of_any_part_moves(place: Place, name: str) -> None:
    place.lock(ASKED)
    place.lock(upgrade=[name])
    assert place.fits()


def test_name_that_is_in_no_part_cannot_move(place: Place) -> None:
    place.lock(ASKED)
    with pytest.raises(InputError, match="cmaek is not in the lock") as caught:
        place.lock(upgrade=["cmaek"])
    assert "'cmake'" in str(caught.value.cure)


def test_machine_that_cannot_run_the_images_programs_compiles_nothing_for_it(place: Place) -> None:
    recipe = place.root / "recipe/recipe.yaml"
    recipe.write_text(RECIPE.replace("linux/arm64: {linux/arm64:", "linux/arm64: {linux/amd64: [g++-12], linux/arm64:"))
    with pytest.raises(LockError, match="no emulator is known that runs x86_64 programs on aarch64") as caught:
        place.lock(ASKED.replace("sources:\n", "sources:\n  execution: linux/arm64\n"))
    assert str(caught.value.cure) == "set sources.execution to linux/amd64"


def test_emulator_for_a_compile_is_locked_without_torch_too(place: Place, tmp_path: Path) -> None:
    with AptRepository(tmp_path / "emulators") as archive:
        archive.add("qemu-user", "1:10.0", "amd64", suite="trixie")
        archive.publish("trixie", architecture="amd64")
        with served(tmp_path / "emulators") as url:
            (place.root / "targets/indexes.yaml").write_text(
                "format: stagecraft.indexes.v1\nindexes:\n  default:\n    type: client\n"
                "  debian:\n    type: apt\n    distribution: debian\n"
                f"    url: {url}\n    keyring: {archive.keyring}\n")
            text = PLAIN.replace("linux/amd64", "linux/arm64")
            found = {}
            for more in ("", ASKED):
                (place.root / "targets/small.yaml").write_text(text + more)
                project = Project(place.root)
                parts = resolve._Parts(project, project.target("small"), None, print, False, "")
                found[more] = [deb.name for deb in parts.emulator()[0]]
    assert found == {"": [], ASKED: ["qemu-user"]}


def test_wheel_may_require_what_is_compiled(place: Place) -> None:
    """Neither is an index asked for it, nor does preflight miss it."""
    make_wheel(place.wheels, "three", "1.0", files={"three.py": b""}, requires=["pkg>=1", "two"])
    found = place.lock(ASKED + "wheels: {requirements: [three]}\n")
    assert names(found) == ["one", "three", "two"]
    assert place.fits()


def test_other_package_from_source_is_there_for_the_decision(place: Place) -> None:
    make_wheel(place.wheels, "vllm", "1.0", files={"vllm/__init__.py": b""}, requires=["pkg==1.0"])
    found = place.lock(VLLM.replace("source}", "auto}").replace("recipe.yaml}", 'recipe.yaml}, pkg: {version: "1.0", '
                                                                "recipe: recipe/recipe.yaml}"))
    assert found["decisions"]["vllm"]["from"] == "wheel", found["decisions"]
    assert names(found, "sources") == ["pkg"]
    assert place.fits()
