"""A package other than vLLM from source, by the front door: msgpack, compiled natively for Debian bookworm.

Target, recipe and script are those of docs/howto-source-package.md, word for word. The sdist comes from the index, the
compilers from Debian's archive; the Git repository is a local one with the same files, reached as a mirror.
"""

from __future__ import annotations

import json
import os
import shutil
import tarfile
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cache.store import Store
from executors.choose import executor
from executors.process import Process
from tests.support.front import HERE, doit, make_project
from tests.support.git_server import Repository

PAGE = HERE / "docs/howto-source-package.md"
UPSTREAM = "https://github.com/msgpack/msgpack-python"
STAGES = {"msgpack-source", "msgpack-compiler", "msgpack-requires", "msgpack-extensions", "msgpack-wheel"}
#: What the extension says if a list is too long; compiled.
OURS = """\
--- a/msgpack/unpack.h
+++ b/msgpack/unpack.h
@@ -132 +132 @@
-        PyErr_Format(PyExc_ValueError, "%u exceeds max_array_len(%zd)", n, u->max_array_len);
+        PyErr_Format(PyExc_ValueError, "%u is more than we take (%zd)", n, u->max_array_len);
"""
#: Python alone.
HOUSE = """\
--- a/msgpack/exceptions.py
+++ b/msgpack/exceptions.py
@@ -1,2 +1,3 @@
+HOUSE = "ours"
 class UnpackException(Exception):
     \"\"\"Base class for some exceptions raised while unpacking.
"""
USE = """\
import json, msgpack
from msgpack import _cmsgpack
try:
    msgpack.unpackb(msgpack.packb([1, 2]), max_array_len=1)
except ValueError as error:
    said = str(error)
print(json.dumps([msgpack.unpackb(msgpack.packb({"a": [1.5, None]})), msgpack.Packer is _cmsgpack.Packer, said,
                  getattr(msgpack.exceptions, "HOUSE", "")]))
"""


def block(before: str) -> str:
    """The indented lines of the page that follow the line which begins with `before`."""
    lines = PAGE.read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(before)) + 1
    found: list[str] = []
    for line in lines[start:]:
        if line and not line.startswith("    "):
            break
        found.append(line)
    return textwrap.dedent("\n".join(found)).strip() + "\n"


@dataclass(frozen=True)
class Place:
    """A project with a store of its own."""

    root: Path
    store: Path

    def run(self, *arguments: str, rc: int | None = 0) -> tuple[str, str]:
        done = doit(self.root, self.store, *arguments, rc=rc)
        return done.stdout, done.stderr

    def write(self, path: str, text: str) -> None:
        (self.root / path).parent.mkdir(exist_ok=True)
        (self.root / path).write_text(text)

    def source(self, target: str) -> dict[str, Any]:
        package, = json.loads((self.root / f"targets/{target}.lock.json").read_text())["sources"]
        found: dict[str, Any] = package
        return found

    def built(self, *arguments: str) -> set[str]:
        """Run it; the stages that it built."""
        events = self.root / "events.jsonl"
        events.unlink(missing_ok=True)
        self.run("--events", str(events), *arguments)
        told = [json.loads(line) for line in events.read_text().splitlines()]
        return {event["stage"] for event in told if event["event"] == "built"}

    def layers(self, target: str) -> tuple[str, ...]:
        """Of the image, lowest first."""
        layout = self.root / f"result-{target}"
        manifest = json.loads((layout / "index.json").read_text())["manifests"][0]["digest"][7:]
        return tuple(layer["digest"] for layer in
                     json.loads((layout / "blobs/sha256" / manifest).read_text())["layers"])

    def use(self, target: str, scratch: Path) -> list[Any]:
        """What msgpack says in the image's root, run by the executor."""
        said: list[str] = []
        process = Process(self.layers(target), ("/usr/bin/python3", "-c", USE), os.uname().machine)
        scratch.mkdir()
        outcome = executor(Store.open(self.store), process.machine, []).run(process, scratch, log=said.append)
        assert outcome.ok, (outcome, said)
        found: list[Any] = json.loads(said[-1])
        return found


def from_git(text: str, mirror: Path) -> str:
    """The page's target, with the same package out of Git."""
    where = f'git: {{repository: "{UPSTREAM}", tag: v1.2.4}}\n      recipe:'
    return text.replace("recipe:", where).replace(
        "sources:\n", f'sources:\n  mirrors: {{"https://github.com/": ["file://{mirror}/"]}}\n')


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    scratch = tmp_path_factory.mktemp("source-package")
    root = make_project(scratch / "project", small=block("`targets/small.yaml`"))
    found = Place(root, scratch / "store")
    found.write("recipes/msgpack.yaml", block("`recipes/msgpack.yaml`"))
    found.write("recipes/msgpack.sh", block("`recipes/msgpack.sh`"))
    found.write("recipes/ours.patch", OURS)
    found.run("lock:small")
    found.run("build:small")
    yield found
    shutil.rmtree(scratch, ignore_errors=True)


@pytest.fixture(scope="module")
def repository(place: Place) -> Repository:
    """The sdist's files as the project's repository, tagged, and a target that takes them from there."""
    made = Repository(place.root.parent / "git/msgpack/msgpack-python")
    sdist = place.source("small")["source"]
    with tarfile.open(Store.open(place.store).path_of(f"sha256:{sdist['sha256']}")) as tar:
        files = {member.name.partition("/")[2]: tar.extractfile(member) for member in tar if member.isfile()}
        made.commit({name: file.read() for name, file in files.items() if file is not None and name != "PKG-INFO"})
    made.git("tag", "v1.2.4")
    text = from_git(block("`targets/small.yaml`"), place.root.parent / "git")
    place.write("targets/fromgit.yaml", text)
    # The other target's lock as the one before: its pins stay.
    place.write("targets/fromgit.lock.json", (place.root / "targets/small.lock.json").read_text())
    place.run("lock:fromgit")
    return made


def test_it_is_compiled_patched_and_loaded_in_the_image(place: Place, tmp_path: Path) -> None:
    assert place.use("small", tmp_path / "run") == [
        {"a": [1.5, None]}, True, "2 is more than we take (1)", ""]
    assert len(place.layers("small")) == 2  # nothing of compilers and build requirements
    report = json.loads(place.run("check:small", "--json")[0])
    assert report["passes"]


def test_end_of_a_build_tells_of_the_images_layers(place: Place) -> None:
    told = json.loads(place.run("build:small", "--json")[0])
    assert told["layers"] == 2
    assert not told["built"]


def test_the_same_bytes_twice(place: Place) -> None:
    told = json.loads(place.run("rebuild:small:msgpack-extensions", "--json")[0])
    assert [entry["same"] for entry in told["stages"]] == [True]


def test_change_of_python_compiles_nothing_and_is_explained(place: Place, tmp_path: Path) -> None:
    before = (place.root / "targets/small.yaml").read_text()
    place.write("recipes/house.patch", HOUSE)
    place.write("targets/small.yaml", before.replace("recipes/ours.patch]", "recipes/ours.patch, recipes/house.patch]"))
    assert "input patch/01-house.patch\n    was (none)" in place.run("why:small")[0]
    assert place.built("build:small") == {"msgpack-source", "msgpack-wheel", "deps", "image", "attest"}
    assert place.use("small", tmp_path / "run")[-1] == "ours"
    place.write("targets/small.yaml", before)


def test_out_of_git_the_same_files_are_the_same_source(place: Place, repository: Repository, tmp_path: Path) -> None:
    locked = place.source("fromgit")
    assert locked["source"]["revision"] == repository.git("rev-parse", "HEAD")
    assert locked["source"]["repository"] == UPSTREAM  # the mirror is named nowhere
    assert locked["requirements"] == []  # what its pyproject.toml says
    assert "msgpack-extensions" not in place.built("build:fromgit")
    assert place.use("fromgit", tmp_path / "run")[2] == "2 is more than we take (1)"


def test_tag_that_moved_is_followed_when_asked(place: Place, repository: Repository) -> None:
    before = place.source("fromgit")["source"]["revision"]
    moved = repository.commit({"msgpack/new.py": b""})
    repository.git("tag", "--force", "v1.2.4")
    assert "is as it was" in place.run("lock:fromgit", "--only", "sources")[0]
    place.run("lock:fromgit", "--only", "sources", "--upgrade", "msgpack")
    assert (before, place.source("fromgit")["source"]["revision"]) == (before, moved)
    assert before != moved
    assert place.built("msgpack-wheel:fromgit") == {"msgpack-source", "msgpack-wheel"}


def test_mirror_that_is_away_is_named(place: Place, repository: Repository) -> None:
    text = (place.root / "targets/fromgit.yaml").read_text()
    nowhere = "https://127.0.0.1:9/msgpack/msgpack-python"
    place.write("targets/away.yaml", text.replace(UPSTREAM, nowhere).replace("https://github.com/", "https://127.0.0.1:9/")
                .replace(str(repository.directory.parent.parent), "/no/such/place"))
    place.write("targets/away.lock.json", (place.root / "targets/fromgit.lock.json").read_text())
    said = place.run("lock:away", "--only", "sources", rc=112)[1]
    assert "file:///no/such/place/msgpack/msgpack-python: fatal:" in said
    assert f"{nowhere}: fatal:" in said
    assert "sources.mirrors" in said


@pytest.mark.parametrize(("path", "before", "after", "rc", "says"), [
    ("recipes/ours.patch", "n, u->", "n, v->", 110, "a patch does not apply"),
    ("recipes/msgpack.yaml", "csrc:", "crsc:", 110, "did you mean 'csrc'?"),
    ("recipes/msgpack.yaml", "msgpack.sh", "missing.sh", 110, "recipe that names it"),
    ("recipes/msgpack.yaml", '"msgpack/*.h", ', "", 100, "fatal error: pack.h"),
    ("recipes/msgpack.sh", "setup.py build_ext", "setup.py build_exit", 100, "./doit log:small:msgpack-extensions has"),
    ("targets/small.yaml", '      version: "1.2.4"\n', "", 110, "add version"),
])
def test_mistakes_are_named(place: Place, path: str, before: str, after: str, rc: int, says: str) -> None:
    good = (place.root / path).read_text()
    assert before in good
    place.write(path, good.replace(before, after))
    try:
        said = place.run("build:small", rc=rc)[1]
    finally:
        place.write(path, good)
    assert says in said
    assert "Traceback" not in said


def test_its_stages_can_be_named(place: Place) -> None:
    assert "nothing to do" in place.run("msgpack-extensions:small")[0]
    assert "small has no stage 'pkg-extensions'" in place.run("pkg-extensions:small", rc=110)[1]
    names = {line.split()[0] for line in place.run("plan:small")[0].splitlines()}
    assert names >= STAGES
