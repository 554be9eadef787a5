"""What names a directory of compilers' results, what keeps it, what is read of its counts. Real ccache: tests/e2e."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from cache import gc, verify
from cache.errors import InputError
from cache.store import Store
from executors import compiler_cache
from executors.compiler_cache import counts, name_of, opened, wanted

DAY = 86400
PARAMS = {"environment": {"ARCH": "11.0a"}, "command": ["bash"]}
INPUTS = {"root/00": "sha256:" + "1" * 64, "file/build.sh": "sha256:" + "2" * 64}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "tree/src").mkdir(parents=True)
    (tmp_path / "tree/src/a.cu").write_text("one")
    return tmp_path / "tree"


def test_settings() -> None:
    assert wanted({}) == wanted({"STAGECRAFT_CCACHE": "off", "STAGECRAFT_CCACHE_SIZE": "9"}) == 0
    assert wanted({"STAGECRAFT_CCACHE": "on"}) == compiler_cache.SIZE
    assert wanted({"STAGECRAFT_CCACHE": "on", "STAGECRAFT_CCACHE_SIZE": "9"}) == 9
    for wrong in ({"STAGECRAFT_CCACHE": "yes"}, {"STAGECRAFT_CCACHE_SIZE": "0"}, {"STAGECRAFT_CCACHE_SIZE": "1.5"}):
        with pytest.raises(InputError, match="STAGECRAFT_CCACHE"):
            wanted(wrong)


def test_content_of_sources_changes_no_name_and_all_else_does(tree: Path) -> None:
    """ccache looks at contents itself; that a file is there it would not notice (`__has_include`)."""
    name = name_of(PARAMS, INPUTS, [tree])
    (tree / "src/a.cu").write_text("two")
    assert name_of(PARAMS, INPUTS, [tree]) == name
    others = {name_of({**PARAMS, "environment": {"ARCH": "12.1a"}}, INPUTS, [tree]),
              name_of({**PARAMS, "command": ["sh"]}, INPUTS, [tree]),
              name_of(PARAMS, {**INPUTS, "root/00": "sha256:" + "3" * 64}, [tree]),
              name_of(PARAMS, {**INPUTS, "file/build.sh": "sha256:" + "3" * 64}, [tree]),
              name_of(PARAMS, INPUTS, [])}
    (tree / "src/b.h").touch()
    others.add(name_of(PARAMS, INPUTS, [tree]))
    (tree / "src/b.h").rename(tree / os.fsdecode(b"b\xff.h"))
    others.add(name_of(PARAMS, INPUTS, [tree]))
    assert len(others | {name}) == 8


def test_collection_takes_what_nobody_holds_and_nobody_used_for_a_week(store: Store) -> None:
    def kept(keep_days: int | None = None) -> bool:
        gc.collect(store, keep_days=keep_days)
        return place.exists()

    with opened(store, "abc") as place:
        (place / "0").mkdir()
        (place / "0/result").write_bytes(bytes(5000))
        os.utime(place, (0, 0))
        assert kept()
        assert verify.info(store).parts["ccache"].size == 5000
        with opened(store, "abc") as same:
            assert same == place
    assert kept()  # used a moment ago
    os.utime(place, (place.stat().st_mtime - 6.9 * DAY,) * 2)
    assert kept()
    os.utime(place, (place.stat().st_mtime - DAY,) * 2)
    assert kept(keep_days=30)
    report = gc.collect(store, dry_run=True)
    assert [(item.kind, item.name, item.size) for item in report.removed if item.kind == "ccache"] == [
        ("ccache", f"{os.geteuid()}-abc", 5000)]
    assert not kept()
    with opened(store, "abc") as place:
        assert list(place.iterdir()) == []


COUNTS = """\
# /build/src/one.cu
cache_miss
direct_cache_miss
# /build/src/two.cu
direct_cache_hit
# /build/src/three.cpp
preprocessed_cache_hit
direct_cache_miss
# /build/x.cpp
called_for_link
# /build/y.cpp
called_for_link
"""


def test_counts(tmp_path: Path) -> None:
    path = tmp_path / "counts"
    assert str(counts(path)) == "0 results taken, 0 compiled"
    path.write_text(COUNTS)
    assert str(counts(path)) == "2 results taken, 1 compiled, 2 called for link"
    (tmp_path / "link").symlink_to(path)
    assert counts(tmp_path / "link") == counts(tmp_path / "none")  # a script may have put it there
    os.mkfifo(tmp_path / "fifo")
    assert counts(tmp_path / "fifo").compiled == 0


@pytest.mark.parametrize(("line", "cached"), [
    ("/build/cuda/bin/nvcc -MD -MT a.o -MF a.d -c a.cu -o a.o", True), ("nvcc -c a.cu -o a.o", False),
    ("nvcc -DX=-MD -c a.cu", False), ("nvcc a.o -o a", False), ("/cross/bin/g++ -c a.cpp", True),
    ("/cross/bin/g++ -MMD -c a.cpp", True)])
def test_nvcc_without_the_files_of_all_its_passes_runs_alone(tmp_path: Path, line: str, cached: bool) -> None:
    program = tmp_path / "ccache"
    program.write_text('#!/bin/sh\necho cached "$@"\n')
    words = line.split()
    for name in {words[0]} - {"/cross/bin/g++"}:
        words[0] = str(tmp_path / Path(name).name)
        Path(words[0]).write_text('#!/bin/sh\necho alone "$@"\n')
        Path(words[0]).chmod(0o755)
    program.chmod(0o755)
    launcher = compiler_cache.LAUNCHER.replace("/" + compiler_cache.PROGRAM, str(program))
    said = subprocess.run(["sh", "-c", launcher, "launcher", *words], capture_output=True, text=True, check=True).stdout
    assert said.split() == (["cached", *words] if cached else ["alone", *words[1:]])
