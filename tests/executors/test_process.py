"""What executors take and give: refused values, reasons in words, outputs that are no plain files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cache.errors import StageError
from executors.process import ENVIRONMENT, Limits, Process, collect, reason_of, size_text


def process(**more: object) -> Process:
    return Process(("sha256:" + "0" * 64,), ("/bin/true",), "x86_64", **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(("status", "reason"), [
    (0, "exit 0"), (3, "exit 3"), (128, "exit 128"), (139, "killed by SIGSEGV"), (137, "killed by SIGKILL"),
    (134, "killed by SIGABRT"), (255, "exit 255"),
])
def test_exit_status_in_words(status: int, reason: str) -> None:
    assert reason_of(status) == reason


@pytest.mark.parametrize(("size", "text"), [(4 << 30, "4 GiB"), (3 << 29, "1.5 GiB"), (100 << 20, "100 MiB"),
                                            (1234, "1234 bytes")])
def test_size_as_a_limit_is_written(size: int, text: str) -> None:
    assert size_text(size) == text


def test_values_that_make_no_sense_are_refused() -> None:
    for limits in ({"memory": 0}, {"seconds": -1.0}, {"pids": 0}):
        with pytest.raises(ValueError, match="limit of nothing"):
            Limits(**limits)  # type: ignore[arg-type]
    for name in ("..", "a/b", "", "x y"):
        with pytest.raises(ValueError, match="not a plain name"):
            process(inputs={name: Path("/")})
    for name in ("../x", "/etc/passwd", "a//b", "a/./b"):
        with pytest.raises(ValueError, match="not a path below"):
            process(outputs=(name,))


def test_environment_is_constant_but_for_what_is_named() -> None:
    assert process().variables() == ENVIRONMENT
    assert process(environment={"LANG": "C", "X": "1"}).variables() == {**ENVIRONMENT, "LANG": "C", "X": "1"}


def test_outputs_are_plain_files_or_refused(tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir" / "good").write_text("x")
    (tmp_path / "link").symlink_to("/etc/passwd")
    (tmp_path / "up").symlink_to("/etc")
    os.mkfifo(tmp_path / "pipe")
    assert collect(process(outputs=("dir/good", "missing", "no/such")), tmp_path) == {
        "dir/good": tmp_path / "dir" / "good"}
    for name in ("link", "up/passwd", "pipe", "dir"):
        with pytest.raises(StageError, match="no plain file"):
            collect(process(outputs=(name,)), tmp_path)
