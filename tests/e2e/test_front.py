"""The front door on a small real target: Debian trixie, Python 3.13, a wheel, a Triton server.

Real archives, real index; locks, builds and explains as a user sees it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest

from tests.support.front import HERE, MINI, command, doit, environment, make_project, manifest_of
from tests.support.sandbox import run_in_image


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """A project with `mini` locked and built, and its store."""
    base = tmp_path_factory.mktemp("mini")
    root, store = make_project(base / "project", mini=MINI), base / "store"
    doit(root, store, "lock:mini")
    doit(root, store, "-n", "1", "build:mini")
    yield root, store
    shutil.rmtree(base, ignore_errors=True)


@pytest.fixture
def copied(mini: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """The same project elsewhere, with a copy of the store by hard links: free to be damaged by removal."""
    root, store = mini
    shutil.copytree(root, tmp_path / "project", symlinks=True)
    shutil.copytree(store, tmp_path / "store", symlinks=True, copy_function=os.link)
    doit(tmp_path / "project", tmp_path / "store", "build:mini")
    return tmp_path / "project", tmp_path / "store"


def test_second_run_says_so_in_one_line_and_does_nothing(mini: tuple[Path, Path]) -> None:
    root, store = mini
    before = sorted((str(p), p.lstat().st_mtime_ns) for p in store.rglob("*") if "sessions" not in str(p))
    done = doit(root, store, "build:mini")
    assert done.stdout == f"mini: nothing to do; result-mini is {manifest_of(root, 'mini')}\n"
    assert done.stderr == ""
    assert sorted((str(p), p.lstat().st_mtime_ns) for p in store.rglob("*") if "sessions" not in str(p)) == before


def test_json_is_one_document_on_standard_output(mini: tuple[Path, Path]) -> None:
    root, store = mini
    for task in ("build:mini", "plan:mini", "why:mini", "log:mini", "log:mini:base", "store:info", "targets"):
        assert json.loads(doit(root, store, task, "--json").stdout), task


def test_python_of_the_image_imports_the_wheel(mini: tuple[Path, Path]) -> None:
    root, _ = mini
    program = "import sys, click; print(sys.version_info[:2], click.__file__)"
    found = run_in_image(root / "result-mini", "python3", "-c", program)
    assert found == "(3, 13) /usr/local/lib/python3.13/dist-packages/click/__init__.py\n"


def test_other_directory_and_four_jobs_give_the_same_digest(mini: tuple[Path, Path], tmp_path: Path) -> None:
    root, _ = mini
    other = make_project(tmp_path / "quite" / "another", mini=MINI)
    shutil.copy(root / "targets" / "mini.lock.json", other / "targets")
    doit(other, tmp_path / "store", "-n", "4", "build:mini")
    assert manifest_of(other, "mini") == manifest_of(root, "mini")


def test_other_user_gives_the_same_digest_with_its_own_environment(mini: tuple[Path, Path], tmp_path: Path) -> None:
    root, _ = mini
    home = Path("/var/tmp") / f"stagecraft-test-{os.getpid()}"
    home.mkdir(mode=0o755)
    try:
        shutil.copytree(HERE, home / "checkout", ignore=shutil.ignore_patterns(".venv", ".git", "result-*", ".*_cache"))
        shutil.copy(root / "targets" / "mini.lock.json", home / "checkout" / "targets")
        (home / "checkout" / "targets" / "mini.yaml").write_text(MINI)
        subprocess.run(["chown", "-R", "65534:65534", str(home)], check=True)
        env = environment(home / "store", HOME=str(home), STAGECRAFT_PYTHON="/usr/bin/python3", UMASK="077")
        env.pop("PYTHONPATH")
        done = subprocess.run(
            ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c",
             "umask 077; exec ./doit build:mini"],
            cwd=home / "checkout", env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert manifest_of(home / "checkout", "mini") == manifest_of(root, "mini")
    finally:
        shutil.rmtree(home)


def test_plan_and_why_of_nothing_changed(mini: tuple[Path, Path]) -> None:
    root, store = mini
    assert doit(root, store, "why:mini").stdout == "nothing changed: mini is as it was built\n"
    data = json.loads(doit(root, store, "plan:mini", "--json").stdout)
    assert {stage["state"] for stage in data["stages"]} == {"cached"}
    assert {gate["state"] for gate in data["gates"]} == {"passed"}


def roots(root: Path, store: Path) -> dict[str, list[tuple[str, str, str]]]:
    data = json.loads(doit(root, store, "why:mini", "--json").stdout)
    return {r["stage"]: [(c["what"], c["old"], c["new"]) for c in r["changes"]] for r in data["roots"]}


def test_why_names_a_changed_environment_variable(copied: tuple[Path, Path]) -> None:
    root, store = copied
    target = root / "targets" / "mini.yaml"
    target.write_text(MINI.replace("GREETING: hello", "GREETING: good day"))
    assert roots(root, store) == {"image": [("environment.GREETING", "hello", "good day")]}
    plan = doit(root, store, "plan:mini").stdout
    assert "attest      build" in plan
    assert "follows from image" in plan
    target.write_text(MINI)


def test_why_names_an_edited_template_even_with_its_old_time(copied: tuple[Path, Path]) -> None:
    root, store = copied
    template = root / "templates" / "entrypoint.sh.j2"
    there = template.stat()
    text = template.read_text()
    template.write_text(text.replace("set -eu", "set -ue"))
    os.utime(template, ns=(there.st_atime_ns, there.st_mtime_ns))
    assert template.stat().st_size == there.st_size
    found = roots(root, store)
    assert [(stage, change[0]) for stage, changes in found.items() for change in changes] == [
        ("serve", "input entrypoint")]
    before = manifest_of(root, "mini")
    doit(root, store, "build:mini")
    assert manifest_of(root, "mini") != before


def test_why_names_a_bumped_wheel(copied: tuple[Path, Path]) -> None:
    root, store = copied
    target = root / "targets" / "mini.yaml"
    target.write_text(MINI.replace("click==8.1.8", "click==8.1.7"))
    done = doit(root, store, "plan:mini", rc=111)
    assert "./doit lock:mini" in done.stderr
    changed = doit(root, store, "lock:mini").stdout
    assert "8.1.8 -> 8.1.7" in changed
    assert roots(root, store) == {
        "deps": [("input wheels/click", "click-8.1.8-py3-none-any.whl", "click-8.1.7-py3-none-any.whl")]}


def test_lock_again_changes_nothing(mini: tuple[Path, Path], tmp_path: Path) -> None:
    root, store = mini
    copy = shutil.copytree(root, tmp_path / "project", symlinks=True)
    before = (copy / "targets" / "mini.lock.json").read_text()
    assert "the lock is as it was" in doit(copy, store, "lock:mini").stdout
    assert (copy / "targets" / "mini.lock.json").read_text() == before


def test_deleted_blob_is_rebuilt(copied: tuple[Path, Path]) -> None:
    root, store = copied
    data = json.loads(doit(root, store, "plan:mini", "--json").stdout)
    record = next((store / "records").glob(f"*/{next(s['key'] for s in data['stages'] if s['stage'] == 'deps')[7:]}/*"))
    layer = json.loads(record.read_text())["outputs"]["layer"]["digest"][7:]
    (store / "blobs" / "sha256" / layer[:2] / layer).unlink()
    before = manifest_of(root, "mini")
    assert "its output is gone from the store" in doit(root, store, "plan:mini").stdout
    assert "built   deps" in doit(root, store, "build:mini").stderr
    assert manifest_of(root, "mini") == before


def test_flipped_blob_is_found_named_and_rebuilt(copied: tuple[Path, Path]) -> None:
    root, store = copied
    index = json.loads((root / "result-mini" / "index.json").read_text())
    manifest = index["manifests"][0]["digest"][7:]
    layers = json.loads((root / "result-mini/blobs/sha256" / manifest).read_text())["layers"]
    digest = layers[-1]["digest"][7:]
    path = store / "blobs" / "sha256" / digest[:2] / digest
    content = bytearray(path.read_bytes())
    content[700] ^= 1
    path.unlink()  # the copy shares its inode with the other store
    path.write_bytes(content)
    done = doit(root, store, "store:verify", rc=102)
    assert digest in done.stdout
    assert "serve" in done.stdout
    doit(root, store, "store:verify", "--repair")
    assert "built   serve" in doit(root, store, "build:mini").stderr
    assert "all as they should be" in doit(root, store, "store:verify").stdout


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_damaged_package_in_the_store_is_fetched_again(copied: tuple[Path, Path], damage: str) -> None:
    root, store = copied
    lock = json.loads((root / "targets" / "mini.lock.json").read_text())
    digest = next(wheel["sha256"] for wheel in lock["wheels"] if wheel["name"] == "click")
    path = store / "blobs" / "sha256" / digest[:2] / digest
    content = bytearray(path.read_bytes())
    path.unlink()  # the copy shares its inode with the other store
    content[len(content) // 2] ^= 1
    path.write_bytes(content if damage == "flipped" else content[:-100])
    shutil.rmtree(store / "records")
    before = manifest_of(root, "mini")
    done = doit(root, store, "build:mini")
    assert "damaged" in done.stderr
    assert "fetched again" in done.stderr
    assert manifest_of(root, "mini") == before


def test_store_that_is_none_is_named_without_a_traceback(mini: tuple[Path, Path], tmp_path: Path) -> None:
    root, _ = mini
    (tmp_path / "file").write_text("x")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "mine").write_text("x")
    for store in (tmp_path / "file", foreign):
        done = doit(root, store, "build:mini", rc=113)
        assert "Traceback" not in done.stderr
        assert str(store) in done.stderr
        assert done.stderr.count("error:") == 1
    assert (foreign / "mine").exists()


def test_two_targets_in_one_run_and_one_that_fails(copied: tuple[Path, Path]) -> None:
    root, store = copied
    text = MINI.replace("GREETING: hello", "GREETING: again")
    (root / "targets" / "other.yaml").write_text(text)
    (root / "targets" / "mini.yaml").write_text(text.replace("again", "more"))
    shutil.copy(root / "targets" / "mini.lock.json", root / "targets" / "other.lock.json")
    shutil.rmtree(store / "records")
    done = doit(root, store, "build:mini", "build:other")
    assert "another build" not in done.stderr
    assert done.stderr.count("  built   deps") == 1
    assert "6 stages built, 0 from the store" in done.stdout
    assert "2 stages built, 4 from the store" in done.stdout
    template = root / "templates" / "entrypoint.sh.j2"
    template.write_text("{{ nothing_like_this }}")
    done = doit(root, store, "--continue", "build:mini", rc=110)
    assert "failed  serve" in done.stderr
    assert "internal error" not in done.stderr
    assert done.stderr.count("error:") == 1


def test_two_terminals_one_builds_the_other_waits(mini: tuple[Path, Path], tmp_path: Path) -> None:
    root, store = mini
    shutil.copytree(store, tmp_path / "store", symlinks=True, copy_function=os.link,
                    ignore=shutil.ignore_patterns("records", "verdicts", "roots", "sessions"))
    projects = [shutil.copytree(root, tmp_path / name, symlinks=True) for name in ("one", "two")]
    running = [subprocess.Popen(command(project, "build:mini"), cwd=project, env=environment(tmp_path / "store"),
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for project in projects]
    output = [process.communicate() for process in running]
    assert [process.returncode for process in running] == [0, 0], output
    both = output[0][1] + output[1][1]
    for stage in ("base", "deps", "triton", "serve", "image", "attest"):
        assert both.count(f"  built   {stage:<11}") == 1, both
    assert manifest_of(projects[0], "mini") == manifest_of(projects[1], "mini") == manifest_of(root, "mini")


def test_ctrl_c_stops_and_the_next_run_goes_on(mini: tuple[Path, Path], tmp_path: Path) -> None:
    root, _ = mini
    project = shutil.copytree(root, tmp_path / "project", symlinks=True)
    process = subprocess.Popen(command(project, "build:mini"), cwd=project, env=environment(tmp_path / "store"),
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    line = process.stderr.readline()
    assert line.startswith("  fetch")
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "stopped" in err
    assert "Traceback" not in err
    assert list((tmp_path / "store" / "tmp").iterdir()) == []
    doit(project, tmp_path / "store", "build:mini")
    assert manifest_of(project, "mini") == manifest_of(root, "mini")


def test_read_only_store_still_answers_and_says_why_it_cannot_build(mini: tuple[Path, Path], tmp_path: Path) -> None:
    root, store = mini
    project = shutil.copytree(root, tmp_path / "project", symlinks=True)
    frozen = tmp_path / "frozen"
    frozen.mkdir()
    subprocess.run(["mount", "--bind", str(store), str(frozen)], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(frozen)], check=True)
        assert "6 of 6 stages cached" in doit(project, frozen, "plan:mini").stdout
        (project / "targets" / "mini.yaml").write_text(MINI.replace("GREETING: hello", "GREETING: good day"))
        done = doit(project, frozen, "build:mini", rc=113)
        assert "cannot be written" in done.stderr
        assert "STAGECRAFT_STORE" in done.stderr
    finally:
        subprocess.run(["umount", str(frozen)], check=True)


def test_build_that_cannot_fit_says_so_before_it_starts(mini: tuple[Path, Path], tmp_path: Path) -> None:
    root, _ = mini
    project = shutil.copytree(root, tmp_path / "project", symlinks=True)
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "none", str(small)], check=True)
    try:
        done = doit(project, small / "store", "build:mini", rc=113)
        assert "does not fit" in done.stderr
        assert "fetch" not in done.stderr
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_unknown_target_and_task_name_the_nearest(mini: tuple[Path, Path]) -> None:
    root, store = mini
    assert "did you mean ./doit build:mini?" in doit(root, store, "build:mani", rc=110).stderr
    assert "did you mean 'build:mini'?" in doit(root, store, "biuld:mini", rc=110).stderr
    assert "traceback" not in doit(root, store, "build:", rc=None).stderr.lower()


def test_list_and_bare_command_read_well(mini: tuple[Path, Path]) -> None:
    root, store = mini
    assert "./doit build:mini" in doit(root, store).stdout
    listed = doit(root, store, "list").stdout
    for word in ("build", "plan", "why", "log", "lock", "load", "export", "push", "store", "doctor"):
        assert any(line.split()[:1] == [word] and len(line.split()) > 2 for line in listed.splitlines()), word


def test_events_are_json_lines(copied: tuple[Path, Path], tmp_path: Path) -> None:
    root, store = copied
    (root / "targets" / "mini.yaml").write_text(MINI.replace("GREETING: hello", "GREETING: events"))
    doit(root, store, "--events", str(tmp_path / "events"), "build:mini")
    events = [json.loads(line) for line in (tmp_path / "events").read_text().splitlines()]
    assert {"hit", "build", "built"} <= {event["event"] for event in events}
    schema = json.loads((HERE / "docs/formats/events.schema.json").read_text())
    for event in events:
        jsonschema.validate(event, schema)
    assert [event["stage"] for event in events if event["event"] == "built"] == ["image", "attest"]
