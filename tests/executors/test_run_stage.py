"""Builder `run-script`: real scripts in a real sandbox, with busybox as the only program."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cache.archive import read_index
from cache.build import BuildContext
from cache.errors import InputError, StageError, ToolError
from cache.layer import LayerReader
from cache.store import Store
from executors import run_stage
from executors.docker import Docker
from tests.support.images import make_layer
from tests.support.roots import BUSYBOX, PYTHON, as_nobody, busybox, python_for_all


class Stage:
    """A store, and the lines of the last run."""

    def __init__(self, directory: Path) -> None:
        self.store = Store.open(directory / "store")
        self.said: list[str] = []

    def run(self, script: str, inputs: Mapping[str, str] | None = None, **params: Any) -> dict[str, str]:
        given = {f"root/{number:02}-part": layer for number, layer in enumerate(busybox(self.store))}
        made = {"machine": os.uname().machine, "environment": {"COLOUR": "blue"}, "emulators": [], "collect": "out",
                "command": [BUSYBOX, "sh", "-euc", script], "into": "", **params}
        self.said.clear()
        context = BuildContext(self.store, made, {**given, **(inputs or {})}, log=self.said.append)
        return {name: blob.digest for name, blob in run_stage.build(context).items()}

    def entries(self, index: str) -> dict[str, dict[str, Any]]:
        return {entry["path"]: entry for entry in read_index(self.store, index)}


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


MKDIR = "mkdir() { /bin/busybox mkdir \"$@\"; }; chmod() { /bin/busybox chmod \"$@\"; }; mkdir out; "


def test_what_it_leaves_is_a_layer(stage: Stage) -> None:
    found = stage.run(MKDIR + "mkdir -p out/a/empty; echo text > out/a/file; echo tool > out/tool; chmod 700 out/tool;"
                              "/bin/busybox ln -s a/file out/link; echo said", into="usr/local")
    entries = stage.entries(found["index"])
    assert {path: entry["type"] for path, entry in entries.items()} == {
        "usr": "directory", "usr/local": "directory", "usr/local/a": "directory", "usr/local/a/empty": "directory",
        "usr/local/a/file": "file", "usr/local/link": "symlink", "usr/local/tool": "file"}
    assert (entries["usr/local/tool"]["mode"], entries["usr/local/a/file"]["mode"]) == (0o755, 0o644)
    assert "uid" not in entries["usr/local/tool"]
    with LayerReader(stage.store, found["index"]) as layer:
        assert layer.read("usr/local/a/file") == b"text\n"
    assert "said" in stage.said


def test_same_bytes_again(stage: Stage) -> None:
    script = MKDIR + "for name in c a b; do echo $name > out/$name; done"
    assert stage.run(script) == stage.run(script)


def test_inputs_are_trees_and_files_that_it_cannot_write(stage: Stage) -> None:
    tree = make_layer(stage.store, {"src/a.txt": b"source\n"})
    file = stage.store.put(b"a file\n").digest
    found = stage.run(MKDIR + "/bin/busybox cp /inputs/csrc/src/a.txt /inputs/files/script out/;"
                              "! echo x 2>/dev/null > /inputs/csrc/src/a.txt;"
                              "! echo x 2>/dev/null > /inputs/files/script",
                      {"tree/csrc": tree, "file/script": file})
    with LayerReader(stage.store, found["index"]) as layer:
        assert (layer.read("a.txt"), layer.read("script")) == (b"source\n", b"a file\n")


def test_environment_and_jobs(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAGECRAFT_JOBS", "3")
    monkeypatch.setenv("SECRET", "hush")
    found = stage.run(MKDIR + 'echo "$COLOUR $STAGECRAFT_JOBS ${SECRET:-none}" > out/it')
    with LayerReader(stage.store, found["index"]) as layer:
        assert layer.read("it") == b"blue 3 none\n"


@pytest.mark.parametrize(("name", "value"), [("STAGECRAFT_JOBS", "many"), ("STAGECRAFT_JOBS", "0"),
                                             ("STAGECRAFT_JOB_MEMORY", "-1")])
def test_settings_that_are_no_numbers(stage: Stage, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=f"{name} is no number"):
        stage.run(MKDIR + "echo x > out/x")


def test_jobs_follow_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STAGECRAFT_JOBS", raising=False)
    monkeypatch.setenv("STAGECRAFT_JOB_MEMORY", "100000")
    assert run_stage._room()[1] == 1
    monkeypatch.setenv("STAGECRAFT_JOB_MEMORY", "1")
    assert 1 <= run_stage._room()[1] <= len(os.sched_getaffinity(0))


def test_no_network(stage: Stage) -> None:
    found = stage.run(MKDIR + "! /bin/busybox nc -w 2 192.0.2.1 80 2> out/net")
    with LayerReader(stage.store, found["index"]) as layer:
        assert b"nreachable" in layer.read("net")


def test_script_that_fails_is_shown_by_its_last_lines(stage: Stage) -> None:
    with pytest.raises(StageError, match="its script ended: exit 7") as caught:
        stage.run("for n in 1 2 3 4 5 6 7 8 9; do echo line $n; echo line $n; echo line $n; echo line $n; done;"
                  "echo 'fatal error: cuda.h: No such file'; exit 7")
    text = caught.value.diagnostics()
    assert "fatal error: cuda.h" in text
    assert "line 1\n" not in text
    assert "./doit log:" in text
    assert "fatal error: cuda.h: No such file" in stage.said


def test_compiler_that_was_killed_for_memory_is_named_with_what_to_set(stage: Stage) -> None:
    """As gcc's driver reports a cc1plus that the kernel took away."""
    with pytest.raises(StageError) as caught:
        stage.run("echo 'g++: fatal error: Killed signal terminated program cc1plus'; exit 1")
    assert "set STAGECRAFT_JOBS=" in caught.value.diagnostics()


@pytest.mark.parametrize(("script", "message"), [
    ("true", "left no result"), ("/bin/busybox mkdir out", "left no file"),
    ("echo x > out", "left no result"), ("/bin/busybox ln -s /etc out", "left no result"),
    ("/bin/busybox mkdir out; /bin/busybox mkfifo out/p; echo x > out/x", "no file, directory or link")])
def test_results_that_are_none(stage: Stage, script: str, message: str) -> None:
    with pytest.raises(StageError, match=message):
        stage.run(script)


def test_nothing_is_left_behind(stage: Stage) -> None:
    stage.run(MKDIR + "echo x > out/x; mkdir -p deep/er; chmod 000 deep")
    with pytest.raises(StageError):
        stage.run("mkdir() { /bin/busybox mkdir $@; }; mkdir -p a/b; /bin/busybox chmod 0 a; exit 1")
    assert [path.name for path in (stage.store.root / "tmp").iterdir() if path.name.startswith("run-")] == []


def test_stopping_ends_it(stage: Stage) -> None:
    class StopError(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if "begun" in stage.said:
            raise StopError

    given = {f"root/{number:02}-part": layer for number, layer in enumerate(busybox(stage.store))}
    context = BuildContext(stage.store, {
        "machine": os.uname().machine, "environment": {}, "emulators": [], "collect": "out", "into": "",
        "command": [BUSYBOX, "sh", "-c", "echo begun; /bin/busybox sleep 600"]}, given, log=stage.said.append,
        progress=stop)
    with pytest.raises(StopError):
        run_stage.build(context)


def test_umask_of_the_user_changes_nothing(stage: Stage) -> None:
    given = stage.store.put(b"a file\n").digest
    script = MKDIR + "/bin/busybox cp /inputs/files/script out/; umask > out/umask"
    usual = stage.run(script, {"file/script": given})
    before = os.umask(0o077)
    try:
        assert stage.run(script, {"file/script": given}) == usual
    finally:
        os.umask(before)


def test_name_that_is_no_text_is_named(stage: Stage) -> None:
    with pytest.raises(StageError) as found:
        stage.run(MKDIR + "echo x > out/$(printf 'a\\377b')")
    assert "not UTF-8" in found.value.diagnostics()


def test_link_on_the_way_to_the_result_leads_nowhere(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "private").mkdir()
    (tmp_path / "private/key").write_text("of this machine")
    with pytest.raises(StageError, match="left no result"):
        stage.run(f"/bin/busybox ln -s {tmp_path} out", collect="out/private")


_AS_NOBODY = """
import sys
from pathlib import Path
from tests.executors.test_run_stage import MKDIR, Stage
stage = Stage(Path(sys.argv[1]))
found = stage.run(MKDIR + "mkdir -p out/d left/e; echo x > out/d/f; echo y > out/g; echo z > left/e/f;"
                          "chmod 0 out/g out/d left/e left out /build")
print(sorted(stage.entries(found["index"])), sorted(path.name for path in (stage.store.root / "tmp").glob("run-*")))
"""


def test_engine_that_brings_no_directory_is_not_asked(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(Docker, "connected", lambda *_: pytest.fail("its result would be lost after hours"))
    with pytest.raises(ToolError, match="bubblewrap is not installed"):
        stage.run(MKDIR + "echo x > out/x")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_rights_that_a_script_took_away_hold_no_ordinary_user_up() -> None:
    with tempfile.TemporaryDirectory(prefix="run-stage-") as directory:  # tmp_path is for its owner only
        os.chmod(directory, 0o777)
        done = subprocess.run(as_nobody(PYTHON, "-c", _AS_NOBODY, directory), env=python_for_all(), cwd=directory,
                              capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "['d', 'd/f', 'g'] []", done.stderr
