"""Locks: round trip, fit to the target, comparison."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from cache.errors import LockError
from stages import lockfile, target
from stages.image import materials, pins
from stages.lockfile import Lock, LockedFile
from tests.support.project import TARGET, write_target

HERE = Path(__file__).resolve().parents[2]
PYTHON = {"version": "3.11", "executable": "/usr/bin/python3.11", "glibc": "2.36",
          "site": "usr/local/lib/python3.11/dist-packages", "scripts": "usr/local/bin", "data": "usr/local"}


def entry(name: str, version: str, digit: str = "a") -> LockedFile:
    return LockedFile(name, version, f"{name}-{version}-py3-none-any.whl", 10, digit * 64, "default")


REQUEST = dict.fromkeys(("base", "wheels"), "sha256:" + "0" * 64)
IMAGE: dict[str, Any] = {
    "kind": "image", "reference": "r.example/a:1@sha256:" + "1" * 64, "repository": "r.example/a",
    "digest": "sha256:" + "1" * 64, "config": {"digest": "sha256:" + "2" * 64, "environment": {"A": ""}},
    "layers": [{"digest": "sha256:" + "3" * 64, "size": 1, "media_type": "x", "diff_id": "sha256:" + "4" * 64}],
    "suites": [{"index": "debian", "suite": "s", "date": "20260101T000000Z", "release": "sha256:5", "snapshot": ""}],
}


def lock(request: dict[str, str], *wheels: LockedFile) -> Lock:
    return Lock("small", request, {"kind": "debian", "suites": []}, PYTHON, wheels=wheels)


def test_text_reads_back_and_has_one_entry_a_line(tmp_path: Path) -> None:
    made = lock(REQUEST, entry("a", "1"), entry("b", "2"))
    text = made.dumps()
    assert lockfile.parse(text, "x") == made
    assert sum(1 for line in text.splitlines() if '"name"' in line) == 2
    schema = json.loads((HERE / "docs/formats/lock.schema.json").read_text())
    jsonschema.validate(json.loads(text), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(json.loads(text) | {"host": "example"}, schema)


@pytest.mark.parametrize(("changed", "cures", "others"), [
    (TARGET.replace("suite: bookworm", "suite: trixie"), ["--only debs"], ["--only wheels", "wheels for what"]),
    (TARGET + "wheels: {requirements: [click]}\n", ["--only wheels"], ["--only debs", "base and"]),
    (TARGET.replace("amd64", "arm64"), ["base and Debian packages and wheels"], ["--only"]),
])
def test_stale_part_of_a_lock_is_named_with_the_command(tmp_path: Path, changed: str, cures: list[str],
                                                        others: list[str]) -> None:
    write_target(tmp_path)
    small = target.load(tmp_path, "small")
    path = lockfile.path_of(tmp_path, "small")
    path.write_text(lock(lockfile.request_digests(small)).dumps())
    assert lockfile.load(tmp_path, small).target == "small"
    write_target(tmp_path, text=changed)
    with pytest.raises(LockError) as caught:
        lockfile.load(tmp_path, target.load(tmp_path, "small"))
    shown = caught.value.diagnostics()
    assert all(word in shown for word in ["./doit lock:small", *cures])
    assert not any(word in shown for word in others)


def test_missing_and_broken_locks_are_named(tmp_path: Path) -> None:
    write_target(tmp_path)
    small = target.load(tmp_path, "small")
    with pytest.raises(LockError, match="is not locked"):
        lockfile.load(tmp_path, small)
    path = lockfile.path_of(tmp_path, "small")
    path.write_bytes(b'{"format": "\xff"}')
    with pytest.raises(LockError, match="not UTF-8"):
        lockfile.load(tmp_path, small)
    path.unlink()
    path.mkdir()
    with pytest.raises(LockError, match="cannot be read"):
        lockfile.load(tmp_path, small)


@pytest.mark.parametrize("text", [
    "", "{}", "[]", "7", "null", '{"format": "stagecraft.lock.v9"}', "[" * 100_000,
    '{"format": "stagecraft.lock.v1", "format": "stagecraft.lock.v1"}', "<<<<<<< ours\n{}\n=======\n",
])
def test_what_is_no_lock_is_refused(text: str) -> None:
    with pytest.raises(LockError) as caught:
        lockfile.parse(text, "x.json")
    assert str(caught.value.where).startswith("x.json")
    assert caught.value.cure


def test_marks_of_a_merge_are_called_that() -> None:
    text = lock(REQUEST, entry("a", "1")).dumps()
    line = next(line for line in text.splitlines() if '"name"' in line)
    torn = text.replace(line, f"<<<<<<< ours\n{line}\n=======\n{line}\n>>>>>>> theirs")
    with pytest.raises(LockError) as caught:
        lockfile.parse(torn, "x.json")
    assert "the marks of a merge" in caught.value.diagnostics()
    assert str(caught.value.where).startswith("x.json:")


def drop(*path: str | int) -> Callable[[Any], None]:
    def change(data: Any) -> None:
        for step in path[:-1]:
            data = data[step]
        del data[path[-1]]
    return change


def put(*path: Any) -> Callable[[Any], None]:
    """All but the last say where, the last what."""
    def change(data: Any) -> None:
        for step in path[:-2]:
            data = data[step]
        data[path[-2]] = path[-1]
    return change


def twice(data: Any) -> None:
    data["wheels"].append(data["wheels"][0])


def same_file(data: Any) -> None:
    data["wheels"].append({**data["wheels"][0], "name": "other"})


@pytest.mark.parametrize(("change", "where"), [
    (put("base", {}), "base"), (put("base", []), "base"), (drop("base", "suites"), "base"),
    (put("base", "suites", [{"index": "x"}]), "base.suites[0]"), (put("base", "suites", 0, "more", "x"), "base.suites"),
    (put("base", {**IMAGE, "layers": [{}]}), "base.layers[0]"), (put("base", {**IMAGE, "config": {}}), "base.config"),
    (put("base", {**IMAGE, "digest": "sha256:zz"}), "base.digest"),
    (put("base", {**IMAGE, "suites": 7}), "base.suites"),
    (put("base", {**IMAGE, "config": {**IMAGE["config"], "cmd": "sh"}}), "base.config.cmd"),
    (put("base", {**IMAGE, "config": {**IMAGE["config"], "labels": {"a": 1.5}}}), "base.config.labels"),
    (drop("python", "site"), "python"), (put("python", "site", "/abs"), "python.site"),
    (put("python", "site", "a/../../b"), "python.site"), (put("python", 7), "python"),
    (put("python", "version", "3"), "python.version"), (put("python", "executable", "python3"), "python.executable"),
    (put("request", "sha256:" + "0" * 64), "request"), (drop("request", "wheels"), "request"),
    (put("request", "base", "x"), "request.base"), (put("target", 7), "target"), (put("more", 7), "the file"),
    (drop("wheels"), "the file"), (put("wheels", {}), "wheels"), (put("wheels", 0, "x"), "wheels[0]"),
    (put("wheels", 0, "file", 7), "wheels: a.file"), (put("wheels", 0, "file", "../x.whl"), "wheels: a.file"),
    (put("wheels", 0, "sha256", "g" * 64), "wheels: a.sha256"),
    (put("wheels", 0, "sha256", "a" * 63), "wheels: a.sha256"),
    (put("wheels", 0, "size", "10"), "wheels: a.size"), (put("wheels", 0, "size", -1), "wheels: a.size"),
    (put("wheels", 0, "size", True), "wheels: a.size"), (put("wheels", 0, "size", 1.5), "wheels: a.size"),
    (put("wheels", 0, "version", "\ud800"), "wheels: a.version"), (drop("wheels", 0, "index"), "wheels[0]"),
    (put("wheels", 0, "url", "x"), "wheels[0]"), (twice, "wheels"), (same_file, "wheels"),
])
def test_anything_wrong_in_a_lock_is_named_with_its_place(change: Callable[[Any], None], where: str) -> None:
    data = json.loads(lock(REQUEST, entry("a", "1")).dumps())
    data["base"]["suites"] = copy.deepcopy(IMAGE["suites"])
    assert lockfile.parse(json.dumps(data), "x.json").wheels[0].name == "a"
    assert lockfile.parse(json.dumps({**data, "base": IMAGE}), "x.json").base == IMAGE
    change(data)
    with pytest.raises(LockError) as caught:
        lockfile.parse(json.dumps(data), "x.json")
    assert str(caught.value.where).startswith(f"x.json: {where}")


def test_shipped_locks_answer_their_targets() -> None:
    unlocked = {name for name in target.names(HERE) if not lockfile.path_of(HERE, name).exists()}
    # Their sources and, for orin, its mirror are where no lock of ours was made.
    assert unlocked == {"thor-source", "spark-source", "orin"}
    for name in set(target.names(HERE)) - unlocked:
        lockfile.load(HERE, target.load(HERE, name))
    for name in unlocked - {"orin"}:
        assert target.load(HERE, name).data["device_code"] == {"policy": "native"}


def test_comparison_shows_moved_added_removed_and_rehashed() -> None:
    old = lock(REQUEST, entry("gone", "1"), entry("moved", "1"), entry("same", "1"), entry("rehashed", "1", "b"))
    new = lock(REQUEST, entry("come", "1"), entry("moved", "2", "d"), entry("same", "1"), entry("rehashed", "1", "c"))
    found = {(c.name, c.old, c.new) for c in lockfile.compare(old, new)}
    assert found == {("gone", "1", ""), ("come", "", "1"), ("moved", "1", "2"),
                     ("rehashed", "1 sha256:" + "b" * 12, "1 sha256:" + "c" * 12)}
    assert lockfile.compare(new, new) == []


def with_emulator() -> Lock:
    suite = {"index": "debian", "suite": "s", "date": "20260101T000000Z", "release": "sha256:5", "snapshot": ""}
    emulator = LockedFile("qemu-user", "1:10.0", "pool/q/qemu-user_10.0_amd64.deb", 10, "c" * 64, "debian", "amd64")
    return dataclasses.replace(lock(REQUEST, entry("a", "1")), emulator=(emulator,), emulator_suites=(suite,))


def test_emulator_reads_back_and_is_one_entry_a_line() -> None:
    made = with_emulator()
    text = made.dumps()
    assert lockfile.parse(text, "x") == made
    assert sum(1 for line in text.splitlines() if '"qemu-user"' in line and line.endswith("}")) == 1
    jsonschema.validate(json.loads(text), json.loads((HERE / "docs/formats/lock.schema.json").read_text()))
    changes = lockfile.compare(lock(REQUEST, entry("a", "1")), made)
    assert [(change.section, change.name, change.new) for change in changes] == [("emulator", "qemu-user", "1:10.0")]


def test_emulator_is_no_part_of_the_image() -> None:
    assert pins(with_emulator()) == pins(lock(REQUEST, entry("a", "1")))
    assert materials(with_emulator()) == materials(lock(REQUEST, entry("a", "1")))


@pytest.mark.parametrize("value", [[], {"debs": []}, {"suites": [], "debs": [{"name": "x"}]},
                                   {"suites": [{"index": "x"}], "debs": []}])
def test_malformed_emulator_is_refused(value: object) -> None:
    data = json.loads(lock(REQUEST).dumps()) | {"emulator": value}
    with pytest.raises(LockError, match="malformed"):
        lockfile.parse(json.dumps(data), "x")
