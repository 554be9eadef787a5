"""The layer of bytecode: where it stands, what makes it compile again; the program, run by this machine's Python."""

from __future__ import annotations

import json
import marshal
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import CodeType

import pytest

from cache.errors import InputError
from stages import bytecode, shell
from stages.graph import Graph, StageInput, plan_keys
from stages.lockfile import parse
from stages.project import graph
from stages.target import load
from tests.golden.test_keys import LOCK, TARGET
from tests.support.front import make_project

HERE = Path(__file__).resolve().parents[2]
TAG = sys.implementation.cache_tag
#: How the stage starts it; then main() with directories alone, so that no test compiles this machine's library.
START = [sys.executable, "-S", "-P", "-B", "-W", "ignore", "-c",
         "import sys; sys.path.insert(0, sys.argv[1]); import compile_bytecode as p\n"
         "p.main(sys.argv[2], sys.argv[4:], int(sys.argv[3]))", str(HERE / "templates")]


def made(root: Path, more: str = "bytecode: true\n", target: str = TARGET, **lock: object) -> Graph:
    root = make_project(root, golden=target + more)
    return graph(load(root, "golden"), parse(json.dumps({**LOCK, **lock}), "golden.lock.json"), root)


def names(found: Graph) -> list[str]:
    return [stage.name for stage in found.stages]


def test_it_stands_above_all_modules_and_below_the_entrypoint(tmp_path: Path) -> None:
    found = made(tmp_path)
    assert names(found) == ["base", "cuda", "torch", "deps", "vllm", "links", "triton", "backend", "bytecode", "serve",
                            "image", "attest"]
    stage = found.stage("bytecode")
    assert stage.dependencies() == ("base", "cuda", "torch", "deps", "vllm", "triton", "backend")
    assert [name for name in stage.inputs if name.startswith("root/")] == [
        "root/000-base", "root/001-cuda", "root/002-torch", "root/003-deps", "root/004-vllm", "root/005-triton",
        "root/006-backend"]
    image = found.stage("image")
    assert image.inputs["layers/08-bytecode"] == StageInput("bytecode", "layer")
    assert "bytecode" in image.gates
    assert "packages/bytecode" not in found.stage("attest").inputs


@pytest.mark.parametrize("more", ["", "bytecode: false\n"])
def test_only_where_the_target_wants_it(tmp_path: Path, more: str) -> None:
    found = made(tmp_path, more)
    assert "bytecode" not in names(found)
    assert "bytecode" not in found.stage("image").gates


def test_without_a_server_it_is_the_last_layer(tmp_path: Path) -> None:
    found = made(tmp_path, target=TARGET.replace('triton: {version: "0.7.0"}\n', ""))
    assert names(found)[-3:] == ["bytecode", "image", "attest"]


def test_other_stages_keep_their_keys(tmp_path: Path) -> None:
    with_it, without = plan_keys(made(tmp_path / "a")), plan_keys(made(tmp_path / "b", ""))
    assert {name for name in without if with_it[name] != without[name]} == {"image", "attest"}


def test_the_program_is_in_its_key(tmp_path: Path) -> None:
    key = plan_keys(made(tmp_path))["bytecode"]
    program = tmp_path / bytecode.PROGRAM
    program.write_text(program.read_text() + "# more\n")
    again = graph(load(tmp_path, "golden"), parse(json.dumps(LOCK), "golden.lock.json"), tmp_path)
    assert plan_keys(again)["bytecode"] != key
    program.unlink()
    with pytest.raises(InputError, match="cannot be read"):
        graph(load(tmp_path, "golden"), parse(json.dumps(LOCK), "golden.lock.json"), tmp_path)


@pytest.mark.parametrize(("python", "says", "cure"), [
    ("3.10", "no bytecode is made for Python 3.10: it has no option -P", "set bytecode: false"),
    ("3.99", "no bytecode is made for Python 3.99", "set bytecode: false, or add a row to checks/data/bytecode.yaml")])
def test_a_python_without_it_is_refused_with_the_target(tmp_path: Path, python: str, says: str, cure: str) -> None:
    other = TARGET.replace('version: "3.11"', f'version: "{python}"')
    assert other != TARGET
    with pytest.raises(InputError) as caught:
        load(make_project(tmp_path / "with", golden=other + "bytecode: true\n"), "golden")
    assert (caught.value.message, caught.value.cure) == (says, cure)
    assert str(caught.value.where) == f"targets/golden.yaml:{other.count(chr(10)) + 1}"
    assert "3.11" in str(caught.value.expected)
    assert load(make_project(tmp_path / "without", golden=other), "golden").data["python"]["version"] == python


def test_layers_of_a_base_image_come_first(tmp_path: Path) -> None:
    layer = {"digest": "sha256:" + "a" * 64, "size": 10, "media_type": "application/vnd.oci.image.layer.v1.tar+gzip",
             "diff_id": "sha256:" + "b" * 64}
    base = {"kind": "image", "reference": "example.org/a:1", "repository": "example.org/a",
            "digest": "sha256:" + "c" * 64,
            "config": {"digest": "sha256:" + "d" * 64},
            "layers": [layer]}
    inputs = made(tmp_path, target=TARGET.replace("{debian: {suite: bookworm}}", '{image: "example.org/a:1"}'),
                  base=base).stage("bytecode").inputs
    assert list(inputs)[:2] == ["root/000-base-image", "root/001-base"]


def test_a_shell_in_its_root_is_offered_once(tmp_path: Path) -> None:
    found = made(tmp_path)
    assert shell.roots(found).count("bytecode") == 1
    assert shell.needs(found, "bytecode") == list(found.stage("bytecode").dependencies())


# -- the program ------------------------------------------------------------------------------------------------------


def compile_all(out: Path, *directories: Path, jobs: int = 1, seed: str = "0") -> str:
    done = subprocess.run([*START, str(out), str(jobs), *map(str, directories)], capture_output=True, text=True,
                          env={**os.environ, "PYTHONHASHSEED": seed}, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def files(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real modules, a few hundred, and constants that have no order of their own."""
    root = tmp_path_factory.mktemp("site")
    library = Path(os.__file__).parent
    for name in ("asyncio", "email", "json", "logging", "unittest", "xml", "importlib", "concurrent", "encodings"):
        shutil.copytree(library / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    (root / "sets.py").write_text("def f(x):\n    return x in {None, 'a', 'b', 1, 2.5, b'c', (None, 'd'), ...}\n")
    (root / "accent.py").write_text("é = 1\n")  # a name, which stays known to its process as one
    (root / "xml" / "accent.py").write_text("A = 'é'\n")
    return root


def test_same_bytes_whoever_works_in_whatever_order(modules: Path, tmp_path: Path) -> None:
    """Another number of processes, another hash seed, fewer files before: each file is the same."""
    compile_all(tmp_path / "one", modules)
    compile_all(tmp_path / "three", modules, jobs=3, seed="12345")
    first = files(tmp_path / "one")
    assert len(first) > 250
    assert files(tmp_path / "three") == first
    compile_all(tmp_path / "part", modules / "xml", modules / "asyncio")
    part = files(tmp_path / "part")
    assert part == {path: first[path] for path in part}
    assert part


def test_a_listing_in_another_order(modules: Path, tmp_path: Path) -> None:
    """The same modules, made in another order in another directory, so that the file system lists them otherwise."""
    site = tmp_path / "site"
    compile_all(tmp_path / "one", shutil.copytree(modules / "email", site))
    shutil.rmtree(site)
    site.mkdir()
    for path in sorted((modules / "email").rglob("*.py"), reverse=True):
        (site / path.relative_to(modules / "email")).parent.mkdir(exist_ok=True)
        shutil.copy(path, site / path.relative_to(modules / "email"))
    compile_all(tmp_path / "two", site)
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_python_takes_it_without_the_source(tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "small.py").write_text("print('as it was')\n")
    compile_all(tmp_path / "out", site)
    made = tmp_path / "out" / site.relative_to("/") / "__pycache__"
    code = marshal.loads((made / f"small.{TAG}.pyc").read_bytes()[16:])
    assert isinstance(code, CodeType)
    assert code.co_filename == f"{site}/small.py"
    shutil.copytree(made, site / "__pycache__")
    (site / "small.py").write_text("print('changed')\n")
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run([sys.executable, "-c", "import small"], cwd=site, env=env, capture_output=True, text=True,
                          check=True)
    assert done.stdout == "as it was\n"


def test_what_gets_none(tmp_path: Path) -> None:
    site = tmp_path / "site"
    for name in ("pack/ok.py", "pack/two.py", "pack/jinja.py", "pack/nul.py", "pack/latin.py",
                 "pack-1.0.dist-info/x.py", "pack/not-a-name.py", "pack/text.txt", "pack/has.py",
                 f"pack/__pycache__/has.{TAG}.pyc"):
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text("A = 1\n")
    (site / "pack/two.py").write_text("print 'Python 2'\n")
    (site / "pack/jinja.py").write_text("{% if x %}\nA = {{ x }}\n")
    (site / "pack/nul.py").write_bytes(b"A = '\0'\n")
    (site / "pack/latin.py").write_bytes(b"A = '\xe9'\n")
    (site / "pack/link.py").symlink_to("ok.py")
    (site / "linked").symlink_to("pack")
    said = compile_all(tmp_path / "out", site, tmp_path / "none")
    place = site.relative_to("/").as_posix()
    assert list(files(tmp_path / "out")) == [f"{place}/pack/__pycache__/ok.{TAG}.pyc"]
    assert said.splitlines()[-1] == f"5 modules: 1 with bytecode, 4 that {TAG} does not compile"
    assert [line for line in said.splitlines() if "jinja" in line] == [f"no bytecode: {site}/pack/jinja.py"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_cannot_be_read_ends_it(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site/secret.py").write_text("A = 1\n")
    (tmp_path / "site/secret.py").chmod(0)
    done = subprocess.run([*START, str(tmp_path / "out"), "1", str(tmp_path / "site")], capture_output=True, text=True,
                          check=False)
    assert done.returncode == 1
    assert "secret.py: its compile ended with 2" in done.stderr


def test_a_file_that_is_there_already_ends_it(tmp_path: Path) -> None:
    """Nothing in the result may be what this program did not write."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site/one.py").write_text("A = 1\n")
    place = tmp_path / "out" / tmp_path.relative_to("/") / "site/__pycache__"
    place.mkdir(parents=True)
    (place / f"one.{TAG}.pyc").write_bytes(b"before")
    done = subprocess.run([*START, str(tmp_path / "out"), "1", str(tmp_path / "site")], capture_output=True, text=True,
                          check=False)
    assert done.returncode == 1
    assert "one.py: its compile ended with 2" in done.stderr
