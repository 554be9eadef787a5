"""The command line: what is refused before doit sees it, and exit codes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cache import errors
from cache.errors import InputError, StagecraftError
from stages import commands, main
from stages.engine import CancelledError
from tests.support.front import HERE, MINI, command, environment, make_project
from tests.support.project import write_target


@pytest.mark.parametrize(("line", "cure"), [
    ("build:thro", "./doit build:thor"),
    ("pln:thor", "'plan:thor'"),
    ("docter", "'doctor'"),
    ("thor", "./doit build:thor"),
    ("build:thor pln:thor", "'plan:thor'"),
    ("-n 4 plan:thor build:thro", "./doit build:thor"),
    ("store:verfy", "./doit store:verify"),
    ("store:gc --keep-days 3 store:inof", "./doit store:info"),
    ("store:gc --keep 3 --dry-run sotre:info", "'store:info'"),
    ("log:thro:base", "./doit log:thor:base"),
    ("build:thor:base", "./doit build:thor"),
    ("plan:thor -n 4", "./doit -n … plan:thor"),
    ("plan:thor --jsn", "./doit help plan:thor"),
    ("lint:x", "./doit lint"),
    ("plan:thor list", "it stands first"),
    ("bulid*", "./doit list"),
    ("check:thor:load", "./doit gate:thor:load"),
    ("check --json", "./doit check:<target> --json"),
    ("lock --upgrade", "./doit lock:<target> --upgrade"),
    ("plan -n 4", "./doit -n … plan"),
    ("doctor --jsn", "./doit help doctor"),
    ("help chekc", "'check'"),
    ("help check:thro", "./doit check:thor"),
    ("-f dodo.py build:thor", "./doit help run"),
])
def test_wrong_words_name_the_right_ones(tmp_path: Path, line: str, cure: str) -> None:
    write_target(tmp_path, "thor")
    with pytest.raises(InputError) as caught:
        main.known(line.split(), tmp_path)
    assert cure in str(caught.value.cure)


@pytest.mark.parametrize("line", [
    "build:thor", "-n 4 build:thor", "-n4 -c build:thor", "--process 4 build:thor", "-P thread build:thor",
    "--parallel-type=thread build:thor", "-v 0 build:thor", "run -a build:thor", "list", "help check",
    "help check:thor", "help run", "help task", "help", "build:*", "",
    "store:gc --dry-run --keep-days 3 --max-size 10", "store:gc --keep-days 3 plan:thor --json", "--version", "doctor",
    "lock:thor --upgrade numpy nonsense", "export:thor out.tar", "push:thor registry.example/a:1", "test -k nonsense",
    "test-long -k fuzz tests/long", "check:thor --json --junit j.xml --sarif=s.sarif --strict", "check",
    "coverage:thor", "coverage:thor --json", "coverage:thor vllm/_C.abi3.so torch/lib/libtorch_cuda.so --json",
    "log:thor:base", "base:thor plan:thor", "plan", "x=1 build:thor",
])
def test_right_words_pass(tmp_path: Path, line: str) -> None:
    write_target(tmp_path, "thor")
    main.known(line.split(), tmp_path)


@pytest.mark.parametrize(("line", "reason"), [
    ("-P process build:thor", "process cannot work"),
    ("-Pprocess build:thor", "process cannot work"),
    ("-cP process build:thor", "process cannot work"),
    ("--parallel-type=process build:thor", "process cannot work"),
    ("run --parallel process build:thor", "process cannot work"),
    ("-s build:thor", "without them it has no inputs"),
    ("--single build:thor", "without them it has no inputs"),
    ("-cs build:thor", "without them it has no inputs"),
    ("--backend dbm build:thor", "the store is the only memory"),
    ("-r json build:thor", "own reporter"),
    ("-o build:thor plan:thor", "own reporter"),
    *((f"{word} build:thor", "the store is the only memory") for word in main.MEMORY_COMMANDS),
])
def test_what_cannot_work_here_is_refused_with_the_reason(tmp_path: Path, line: str, reason: str) -> None:
    write_target(tmp_path, "thor")
    with pytest.raises(InputError, match=reason):
        main.known(line.split(), tmp_path)


def test_empty_word_and_whole_store_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="empty"):
        main.known(["", "build:thor"], tmp_path)
    with pytest.raises(InputError) as caught:
        main.known(["store"], tmp_path)  # doit would verify, and collect too
    assert caught.value.expected == "one of store:verify, store:gc, store:info"


def test_options_are_those_of_doit_and_of_the_tasks() -> None:
    from doit.cmd_run import Run

    options = [option for option in Run.cmd_options if option.get("long")]
    known = {name.rstrip("="): name.endswith("=") for name in main.LONG}
    for option in options:
        assert known[option["long"]] == (option["type"] is not bool), option
        assert not option["short"] or (option["short"] + ":" in main.SHORT) == (option["type"] is not bool), option


def test_stage_or_gate_that_a_target_lacks_is_named() -> None:
    for line, expected in (("log:thor:bsae", "log:thor:base"), ("gate:thor", "gate:thor:torch-cuda"),
                           ("gate:thor:torhc-cuda", "gate:thor:torch-cuda"), ("shell:thor:bsae", "shell:thor:base"),
                           ("shell:thor:lod", "shell:thor:load"), ("rebuild:thor:bsae", "rebuild:thor:base"),
                           ("base-facts:thor", "attest")):
        with pytest.raises(InputError) as caught:
            main.known([line], HERE)
        assert expected in str(caught.value.expected)
    main.known(["log:thor:base", "gate:thor:torch-cuda", "base:thor", "shell:thor", "shell:thor:load"], HERE)
    main.known(["build:thor", "--keep-failed", "--json", "gate:thor:load", "--keep-failed", "shell:thor:torch"], HERE)


@pytest.mark.parametrize(("events", "found"), [("no/such/events", "no such directory"), (".", "a directory"),
                                               # not writable, not even for root
                                               ("/proc/sys/kernel/ostype", "it may not be written")])
def test_events_that_cannot_be_written_are_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str],
                                                   monkeypatch: pytest.MonkeyPatch, events: str, found: str) -> None:
    monkeypatch.setenv("STAGECRAFT_CWD", str(tmp_path))
    monkeypatch.setenv("STAGECRAFT_EVENTS", "")
    assert main.main(["--events", events, "targets"], tmp_path) == 110
    err = capfd.readouterr().err
    assert "--events" in err
    assert found in err


@pytest.fixture
def small(tmp_path: Path) -> tuple[Path, Path]:
    """A project of which `plan` works, with so many targets that what `list` writes exceeds all buffers."""
    root = make_project(tmp_path / "project")
    text = MINI[:MINI.index("wheels:")] + MINI[MINI.index("image:"):]
    for name in ("small", *(f"target-with-a-rather-long-name-{number}" for number in range(400))):
        (root / "targets" / f"{name}.yaml").write_text(text)
    return root, tmp_path / "store"


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("line", ["targets", "list --all", "help store:gc", "-h", "store:info --json"])
def test_reader_that_went_away_is_no_error(small: tuple[Path, Path], line: str, unbuffered: str) -> None:
    root, store = small
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command(root, *line.split()), cwd=root, stdout=writer, stderr=subprocess.PIPE, text=True,
                          env=environment(store, PYTHONUNBUFFERED=unbuffered), check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("line", ["targets", "list --all", "help store:gc", "-h", "store:info --json"])
def test_full_disk_behind_standard_output_is_said(small: tuple[Path, Path], line: str, unbuffered: str) -> None:
    root, store = small
    with open("/dev/full", "w") as full:
        done = subprocess.run(command(root, *line.split()), cwd=root, stdout=full, stderr=subprocess.PIPE, text=True,
                              env=environment(store, PYTHONUNBUFFERED=unbuffered), check=False)
    assert done.returncode == 113
    assert done.stderr.startswith("error: standard output cannot be written\n  found:    No space left on device\n")
    assert done.stderr.count("\n") == 3


SLOW = """
import signal, sys, threading, time
from pathlib import Path
from stages import commands, main
class Stuck:
    def __call__(self, *_):
        print("running", flush=True)
        time.sleep(600)
commands.targets = lambda session: lambda as_json=False: Stuck()()
sys.exit(main.main(["-n", "2", "targets"], Path(sys.argv[1])))
"""


def test_second_interrupt_ends_even_what_does_not_stop(tmp_path: Path) -> None:
    write_target(tmp_path, "thor")
    process = subprocess.Popen([sys.executable, "-c", SLOW, str(tmp_path)], env=environment(tmp_path / "store"),
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "running\n"
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):  # it waits for the action to clean up
        process.wait(timeout=1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err


def test_options_behind_names_are_understood_or_refused() -> None:
    assert commands.trailing(["a", "--json"], False) == (["a"], True)
    assert commands.trailing(["a"], True) == (["a"], True)
    with pytest.raises(InputError, match="unknown option --jsn"):
        commands.trailing(["a", "--jsn"], False)


def test_every_error_has_its_own_exit_code_and_the_docs_list_it() -> None:
    def below(kind: type[StagecraftError]) -> list[type[StagecraftError]]:
        return [each for sub in kind.__subclasses__() for each in (sub, *below(sub))]

    listed = (Path(__file__).resolve().parents[2] / "docs" / "exit-codes.md").read_text()
    kinds = [kind for kind in below(StagecraftError) if kind.__module__ in (errors.__name__, CancelledError.__module__)]
    assert len(kinds) == 10
    for kind in kinds:
        assert f"| {kind.exit_code} | `{kind.__name__}` |" in listed
    assert len({kind.exit_code for kind in kinds}) == len(kinds)


def test_bad_input_gives_its_code_and_no_traceback(tmp_path: Path, capfd: pytest.CaptureFixture[str],
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAGECRAFT_STORE", str(tmp_path / "store"))
    write_target(tmp_path, "small", "nonsense: [")
    assert main.main(["build:small"], tmp_path) == 110
    err = capfd.readouterr().err
    assert "targets/small.yaml" in err
    assert "Traceback" not in err
    assert main.main(["--events"], tmp_path) == 110
