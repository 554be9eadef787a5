"""`./doit` itself: a real environment from the hash-locked requirements, damaged as systems damage it; early Ctrl-C."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.front import HERE, MINI, doit, environment, make_project

PARTS = ("doit", "doit.cfg", "dodo.py", "requirements", "targets", "stages", "cache", "lock", "assemble", "oci",
         "checks", "executors", "templates", "triton", "vllm")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A checkout whose environment `./doit` has made."""
    root = tmp_path_factory.mktemp("bootstrap") / "checkout"
    root.mkdir()
    for part in PARTS:
        if (HERE / part).is_dir():
            shutil.copytree(HERE / part, root / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(HERE / part, root / part)
    assert "making the Python environment" in run(root, "targets").stderr
    yield root
    shutil.rmtree(root)


def run(root: Path, *arguments: str, rc: int = 0, cwd: Path | None = None,
        **more: str) -> subprocess.CompletedProcess[str]:
    env = environment(root.parent / "store", **more)
    env.pop("PYTHONPATH")
    done = subprocess.run([str(root / "doit"), *arguments], cwd=cwd or root, env=env, capture_output=True, text=True,
                          check=False)
    assert done.returncode == rc, done.stdout + done.stderr
    return done


def test_second_run_makes_no_environment(checkout: Path) -> None:
    assert run(checkout, "targets").stderr == ""


def test_environment_whose_interpreter_is_gone_is_made_again(checkout: Path) -> None:
    python = checkout / ".venv" / "bin" / "python"
    versioned = python.resolve().name
    for name in ("python", "python3", versioned):
        link = checkout / ".venv" / "bin" / name
        link.unlink(missing_ok=True)
        link.symlink_to("/usr/bin/python3.999")
    (checkout / ".venv" / "requirements.test.txt").write_text("installed\n")
    done = run(checkout, "targets")
    assert "./doit build:thor" in done.stdout
    assert "making the Python environment" in done.stderr
    assert python.exists()
    assert not (checkout / ".venv" / "requirements.test.txt").exists()


def test_environment_names_its_interpreter_by_version(checkout: Path, tmp_path: Path) -> None:
    # /usr/bin/python3 is another Python after an upgrade, /usr/bin/python3.11 is gone.
    run(checkout, "targets", STAGECRAFT_VENV=str(tmp_path / "venv"), STAGECRAFT_PYTHON="/usr/bin/python3")
    links = [os.readlink(link) for link in (tmp_path / "venv" / "bin").glob("python*")]
    assert [link for link in links if os.path.isabs(link)] == [os.path.realpath("/usr/bin/python3")]


def test_environment_of_another_python_says_so(checkout: Path) -> None:
    library = next((checkout / ".venv" / "lib").glob("python3*"))
    library.rename(library.with_name("python3.999"))
    try:
        done = run(checkout, "targets", rc=115)
    finally:
        library.with_name("python3.999").rename(library)
    assert "Traceback" not in done.stderr
    assert f"rm -r {checkout / '.venv'}" in done.stderr


def test_directory_that_is_no_environment_keeps_its_files(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "mine").write_text("x")
    run(checkout, "targets", STAGECRAFT_VENV=str(tmp_path))
    assert (tmp_path / "lib" / "mine").exists()


@pytest.mark.parametrize("python", ["/nowhere/python3", "/bin/false"])
def test_unusable_python_that_the_user_named_is_not_passed_over(checkout: Path, tmp_path: Path, python: str) -> None:
    done = run(checkout, "targets", rc=115, STAGECRAFT_VENV=str(tmp_path / "venv"), STAGECRAFT_PYTHON=python)
    assert f"STAGECRAFT_PYTHON is {python}" in done.stderr


def test_events_file_is_where_the_user_stands(checkout: Path, tmp_path: Path) -> None:
    run(checkout, "--events", "events.jsonl", "targets", cwd=tmp_path)
    assert (tmp_path / "events.jsonl").exists()
    assert not (checkout / "events.jsonl").exists()


@pytest.mark.parametrize("modules", [*range(0, 30, 5), 60, 90])
def test_ctrl_c_while_modules_load_is_no_traceback(checkout: Path, modules: int) -> None:
    """Python tells each module that it has loaded; Ctrl-C comes so many after our first own one."""
    env = environment(checkout.parent / "store")
    env["PYTHONPYCACHEPREFIX"] = str(checkout / ".venv" / "pycache")
    command = [str(checkout / ".venv/bin/python"), "-X", "importtime", "-m", "stages.main", "plan:thor"]
    process = subprocess.Popen(command, cwd=checkout, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                               bufsize=0)
    assert process.stderr is not None
    fcntl.fcntl(process.stderr, fcntl.F_SETPIPE_SZ, 4096)  # it cannot run far ahead of who reads
    lines = iter(process.stderr.readline, b"")
    assert any(line.endswith(b" cache.errors\n") for line in lines)
    for _ in range(modules):
        next(lines)
    process.send_signal(signal.SIGINT)
    rest = [line for line in lines if not line.startswith(b"import time:")]
    assert process.wait() == 130, rest
    assert [line for line in rest if not line.startswith(b"stopped;")] == []


def test_directory_in_the_place_of_the_result_link_is_named_and_kept(tmp_path: Path) -> None:
    root, store = make_project(tmp_path / "project", mini=MINI), tmp_path / "store"
    doit(root, store, "lock:mini")
    doit(root, store, "build:mini")
    link = root / "result-mini"
    layout = link.resolve()
    link.unlink()
    link.mkdir()
    shutil.copy(layout / "index.json", link)
    done = doit(root, store, "build:mini", rc=110)
    assert "something else is in the way" in done.stderr
    assert (link / "index.json").exists()
    shutil.rmtree(link)
    doit(root, store, "build:mini")
    assert link.resolve() == layout


def test_plain_doit_of_the_environment_works_too(checkout: Path) -> None:
    env = environment(checkout.parent / "store")
    env.pop("PYTHONPATH")
    done = subprocess.run([str(checkout / ".venv" / "bin" / "doit"), "plan:thor", "--json"], cwd=checkout, env=env,
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["target"] == "thor"


@pytest.mark.parametrize(("words", "rc", "says"), [
    (["push:thor"], 110, "push needs one reference"),
    (["push:thor", ""], 110, "an empty argument"),
    (["push:thor", "Bad/Ref:1"], 110, "names no registry"),
    (["export:thor", "a.tar", "b.tar"], 110, "writes one file"),
    (["export:thor", "/nowhere/x.tar"], 110, "cannot write there"),
    (["load:thor"], 115, "no Docker engine"),
])
def test_deliveries_that_cannot_work_are_refused_before_anything_is_built(
    checkout: Path, words: list[str], rc: int, says: str
) -> None:
    done = run(checkout, *words, rc=rc, DOCKER_HOST="unix:///nowhere/docker.sock")
    assert says in done.stderr
    assert "  fetch " not in done.stderr


def test_ascii_terminal_gets_no_traceback(checkout: Path) -> None:
    done = run(checkout, "--help", LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert "./doit build:TARGET" in done.stdout
