"""The fuzzers for a moment, and that they see what they are for: a crash, a hang, memory without bound."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.fuzz.harness import Mutator
from tests.support.front import HERE

PLANTED = """
import random, sys, time
sys.path.insert(0, {root!r})
from tests.fuzz.harness import Group, Limits, run
def read(data, rng):
    if data[4:] != b"sample":
        {what}
    return "read"
group = Group(1, {{"one": b"good" + b"sample"}}, read, {{"one": [[4]]}})
sys.exit(run("planted", [group], 20, 7, Limits(seconds=1, memory=64 << 20)))
"""


@pytest.mark.parametrize(("what", "seen"), [
    ("data[99]", "IndexError"),
    ("assert False", "AssertionError"),
    ("bytearray(1 << 30)", "MemoryError"),
    ("time.sleep(60)", "Hung: more than 1 seconds"),
    # A reader that makes one error of all does not hide that it hung.
    ("\n        try: time.sleep(60)\n        except Exception: pass", "Hung: more than 1 seconds"),
])
def test_what_must_not_be_ends_the_run_and_the_file_is_kept(tmp_path: Path, what: str, seen: str) -> None:
    done = subprocess.run([sys.executable, "-c", PLANTED.format(root=str(HERE), what=what)], capture_output=True,
                          text=True, check=False, env={"TMPDIR": str(tmp_path)})
    assert done.returncode == 1, done.stdout + done.stderr
    assert seen in done.stderr
    [kept] = tmp_path.iterdir()
    assert kept.read_bytes() != b"goodsample"
    assert f"kept as {kept}" in done.stdout


def test_reader_that_holds_passes() -> None:
    program = PLANTED.format(root=str(HERE), what="pass").replace("20, 7", "0.2, 7")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert " rounds, {'read': " in done.stdout


def test_same_seed_makes_the_same_changes() -> None:
    data = bytes(range(256)) * 4
    made = [[Mutator(random.Random(f"{seed}/{number}"), [[0, 16]]).change(data) for number in range(50)]
            for seed in (1, 1, 2)]
    assert made[0] == made[1] != made[2]
    assert sum(one != data for one in made[0]) > 40


def test_readers_of_elf_files_hold_for_a_moment() -> None:
    begun = time.monotonic()
    done = subprocess.run([sys.executable, "tests/fuzz/elf_fuzz.py", "--seconds", "3"], cwd=HERE, capture_output=True,
                          text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "'read': " in done.stdout
    assert "'damaged': " in done.stdout
    assert time.monotonic() - begun >= 3
