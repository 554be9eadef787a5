"""Executors when things die: Stagecraft itself, an unpacking; and machines that forbid what they need."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cache.store import Store
from executors import trees
from tests.support.front import HERE
from tests.support.images import make_layer
from tests.support.processes import Child, killed_at
from tests.support.roots import Bench

RUNNER = """
import sys
from pathlib import Path
from tests.support.roots import Bench
bench = Bench(Path(sys.argv[1]))
bench.run("(setsid sleep 4721 &); echo started > /build/started; sleep 4721")
"""


def alive(marker: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if marker.encode() in words:
            found.append(path.parent.name)
    return found


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_nothing_outlives_stagecraft(tmp_path: Path, how: signal.Signals) -> None:
    process = subprocess.Popen([sys.executable, "-c", RUNNER, str(tmp_path)], cwd=HERE, stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            if (tmp_path / "run1/build/started").exists():
                break
            time.sleep(0.05)
        assert len(alive("4721")) >= 2
        process.send_signal(how)
        assert process.wait(20) != 0
        for _ in range(100):
            if not alive("4721"):
                break
            time.sleep(0.05)
        assert alive("4721") == []
        assert str(tmp_path) not in Path("/proc/mounts").read_text()
    finally:
        process.kill()
        process.wait()


def test_killed_at_any_step_unpacking_publishes_nothing_wrong(tmp_path: Path) -> None:
    root = tmp_path / "store"
    digest = make_layer(Store.open(root), {"a/one": b"1" * 5000, "b/two": b"22"})

    def unpack() -> None:
        trees.layer(Store.open(root), digest)

    step = 0
    while True:
        ended = Child(killed_at(step, unpack)).wait()
        place = root / "trees" / digest[7:9] / digest[7:]
        if place.exists():
            assert {path.name: path.read_bytes() for path in (place / "root").rglob("*") if path.is_file()} == {
                "one": b"1" * 5000, "two": b"22"}
        if not ended.signal:
            assert ended.error is None, ended.error
            break
        step += 1
    assert step > 10
    assert place.exists()


FORBIDDEN = """
import sys
from pathlib import Path
from cache.errors import ToolError
from cache.store import Store
from executors.choose import executor
import os
try:
    executor(Store.open(Path(sys.argv[1])), os.uname().machine, [])
except ToolError as error:
    print(error.message, "|", error.cure)
"""


def test_machine_without_namespaces_and_engine_says_what_is_missing(tmp_path: Path) -> None:
    command = ["unshare", "--user", "--map-root-user", "sh", "-c",
               'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"', "sh", sys.executable, "-c", FORBIDDEN,
               str(tmp_path)]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=True,
                          env={"PATH": "/usr/bin:/bin:/usr/sbin", "DOCKER_HOST": f"unix://{tmp_path}/none"})
    assert done.stdout == ("user namespaces are switched off (user.max_user_namespaces = 0) | "
                           "sudo sysctl -w user.max_user_namespaces=10000\n")


def test_output_that_is_a_link_is_refused(tmp_path: Path) -> None:
    from cache.errors import StageError

    bench = Bench(tmp_path)
    with pytest.raises(StageError, match="no plain file"):
        bench.run("ln -s /etc/passwd o", outputs=("o",))
