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
from executors import compiler_cache, run_stage
from executors.docker import Docker
from tests.support.images import make_layer
from tests.support.roots import BUSYBOX, NOBODY, PYTHON, as_nobody, busybox, python_for_all


class Stage:
    """A store, and the lines of the last run."""

    def __init__(self, directory: Path) -> None:
        self.store = Store.open(directory / "store")
        self.said: list[str] = []

    def run(self, script: str, inputs: Mapping[str, str] | None = None, notes: list[str] | None = None,
            fresh: bool = False, **params: Any) -> dict[str, str]:
        given = {f"root/{number:02}-part": layer for number, layer in enumerate(busybox(self.store))}
        made = {"machine": os.uname().machine, "environment": {"COLOUR": "blue"}, "emulators": [], "collect": "out",
                "command": [BUSYBOX, "sh", "-euc", script], "into": "", **params}
        self.said.clear()
        context = BuildContext(self.store, made, {**given, **(inputs or {})}, log=self.said.append,
                               note=([] if notes is None else notes).append, fresh=fresh)
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
    assert run_stage._room().jobs == 1
    monkeypatch.setenv("STAGECRAFT_JOB_MEMORY", "1")
    assert 1 <= run_stage._room().jobs <= len(os.sched_getaffinity(0))


def test_another_machine_than_the_target_names_is_refused(stage: Stage) -> None:
    other = {"x86_64": "aarch64"}.get(os.uname().machine, "x86_64")
    with pytest.raises(ToolError, match="another machine") as caught:
        stage.run("exit 0", execution=other)
    assert caught.value.expected == other
    stage.run(MKDIR + "echo 1 > out/file", execution=os.uname().machine)


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


ARCHS = {"pattern": "Not building (.*) as no compatible archs", "allow": ["Machete"],
         "reason": "a kernel would be missing"}


def test_line_that_ends_a_build_ends_all_of_it_at_once(stage: Stage) -> None:
    """Without waiting for the end, and whatever goes on beside it."""
    with pytest.raises(StageError, match="a kernel would be missing") as caught:
        stage.run("(/bin/busybox sleep 600 &); echo 'Not building Machete as no compatible archs';"
                  "echo 'Not building Marlin as no compatible archs'; echo >&2 after; /bin/busybox sleep 600",
                  refuse=[ARCHS])
    assert "Not building Marlin" in str(caught.value.found)
    assert [path.name for path in (stage.store.root / "tmp").iterdir() if path.name.startswith("run-")] == []


def test_allowed_line_ends_nothing(stage: Stage) -> None:
    stage.run(MKDIR + "echo 'Not building Machete as no compatible archs'; echo x > out/x", refuse=[ARCHS])


def test_report_is_a_second_layer(stage: Stage) -> None:
    found = stage.run(MKDIR + "mkdir -p report/deep; echo x > out/x; echo log > report/deep/configure.log",
                      report="report", into="usr")
    assert set(found) == {"layer", "index", "report", "report-index"}
    assert set(stage.entries(found["index"])) == {"usr", "usr/x"}
    with LayerReader(stage.store, found["report-index"]) as layer:
        assert layer.read("deep/configure.log") == b"log\n"
    with pytest.raises(StageError, match="left no result"):
        stage.run(MKDIR + "echo x > out/x", report="report")


def test_wish_for_the_network_is_named_in_the_error(stage: Stage) -> None:
    with pytest.raises(StageError, match="it wanted the network, which a build does not have") as caught:
        stage.run("/bin/busybox nc -w 2 192.0.2.1 80 || "
                  "{ for n in 1 2 3 4 5 6 7 8 9; do echo a; echo b; echo c; done; exit 3; }")
    assert "exit 3" in caught.value.message
    assert "unreachable" in str(caught.value.found)
    assert "lock what it would download" in str(caught.value.cure)


#: Two "compilers", the first small (dd has a buffer as large as its block), and how to wait until the last one
#: has so many pages and was looked at.
COMPILERS = """
small() { exec /bin/busybox dd if=/dev/zero of=/dev/null bs=50M count=1000000 2> /dev/null; }
large() { exec /bin/busybox dd if=/dev/zero of=/dev/null bs=300M count=1000000 2> /dev/null; }
grown() {
    while [ "$(/bin/busybox awk '{ print $2 }' /proc/$!/statm)" -lt $1 ]; do /bin/busybox sleep 0.1; done
    /bin/busybox sleep 1
}
small &
grown 12000
large &
"""


def small_room(monkeypatch: pytest.MonkeyPatch, memory: int) -> None:
    monkeypatch.setattr(run_stage, "_room", lambda: run_stage.Room(memory, 4))


def test_limit_of_memory_names_who_ran_and_what_to_set(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    small_room(monkeypatch, 256 << 20)
    with pytest.raises(StageError, match=r"out of memory \(limit 256 MiB\)") as caught:
        stage.run(COMPILERS + "wait")
    first, *running = str(caught.value.found).splitlines()
    assert first == "these ran then:"
    assert [line.startswith("busybox (") for line in running[:2]] == [True, True]
    assert "set STAGECRAFT_JOBS=2" in str(caught.value.cure)


def test_compiler_that_was_killed_alone_is_named_with_who_ran_beside_it(stage: Stage) -> None:
    """As the kernel does it: one process goes, the script goes on and fails."""
    with pytest.raises(StageError, match="its script ended: exit 1") as caught:
        stage.run(COMPILERS + "grown 75000; kill -9 $!; wait $! ||"
                              "{ echo 'g++: fatal error: Killed signal terminated program cc1plus'; kill %1; exit 1; }")
    first, large, small, *rest = str(caught.value.found).splitlines()
    assert first == "these ran then:"
    assert large.startswith(("busybox (29", "busybox (30"))
    assert small.startswith(("busybox (4", "busybox (5"))
    assert any("Killed signal" in line for line in rest)


def test_cache_that_the_root_has_no_program_for_is_said(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAGECRAFT_CCACHE", "on")
    stage.run(MKDIR + 'echo "${STAGECRAFT_CCACHE:-none} ${CCACHE_DIR:-none} $CCACHE_DISABLE" | /bin/busybox tee out/x')
    assert "none none 1" in stage.said
    assert any("its root has no /cross/bin/ccache" in line for line in stage.said)


def test_what_is_kept_outlives_the_run_and_is_not_there_when_building_to_compare(
        stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a program in the place of ccache that counts in its directory, and what it tells to the record."""
    tools = make_layer(
        stage.store, {"cross/bin/ccache": b"#!/bin/busybox sh\necho x >> /tmp/ccache/n\n",
                      "bin/sh": Path(BUSYBOX).read_bytes()}, {"cross/bin/ccache": 0o755, "bin/sh": 0o755})
    script = MKDIR + ('if [ "${STAGECRAFT_CCACHE:-}" ]; then "$STAGECRAFT_CCACHE" g++; fi;'
                      "/bin/busybox cat /tmp/ccache/n 2> /dev/null || true; echo x > out/x")
    monkeypatch.setenv("STAGECRAFT_CCACHE", "on")
    notes: list[str] = []
    for expected, fresh in ((1, False), (2, False), (0, True), (3, False)):
        stage.run(script, {"root/02-tools": tools}, notes=notes, fresh=fresh,
                  refuse=[{**ARCHS, "allow": [str(expected)]}])
        assert stage.said.count("x") == expected
    assert notes == ["results of compilers were kept between builds (ccache: 0 results taken, 0 compiled)"] * 3
    monkeypatch.delenv("STAGECRAFT_CCACHE")
    stage.run(script, {"root/02-tools": tools}, notes=notes)
    assert (stage.said.count("x"), len(notes)) == (0, 3)


def test_kept_directories_are_the_users_own(stage: Stage) -> None:
    with compiler_cache.opened(stage.store, "abc") as place:
        assert place == stage.store.root / "ccache" / f"{os.geteuid()}-abc"
        assert place.stat().st_uid == (NOBODY if os.geteuid() == 0 else os.geteuid())


_KEPT_OF_NOBODY = """
import os, sys
from pathlib import Path
from tests.executors.test_run_stage import MKDIR, Stage
from tests.support.images import make_layer
stage = Stage(Path(sys.argv[1]))
os.environ["STAGECRAFT_CCACHE"] = "on"
tools = make_layer(stage.store, {"cross/bin/ccache": b"x"})
for _ in range(2):
    stage.run(MKDIR + "echo line >> /tmp/ccache/n; mkdir -p /tmp/ccache/d; echo x > out/x", {"root/02-tools": tools})
print([path.read_text() for path in (stage.store.root / "ccache").rglob("n")])
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_ordinary_user_keeps_results_too() -> None:
    with tempfile.TemporaryDirectory(prefix="run-stage-") as directory:
        os.chmod(directory, 0o777)
        done = subprocess.run(as_nobody(PYTHON, "-c", _KEPT_OF_NOBODY, directory), env=python_for_all(), cwd=directory,
                              capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "['line\\nline\\n']", done.stderr
