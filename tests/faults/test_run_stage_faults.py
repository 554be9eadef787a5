"""Builder `run-script` where a build of hours meets a full disk, or a compiler that never stops talking."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cache import verify
from cache.build import BuildContext
from cache.errors import StoreError
from cache.log import StageLog, end_of, text_of
from cache.store import Store
from executors import run_stage
from tests.support.front import HERE
from tests.support.roots import BUSYBOX, busybox
from tests.support.small_disk import small_disk

#: The engine with one stage, in a process of its own; prints what the record says and how much memory it took.
TALKING = """
import json, os, resource, sys
from pathlib import Path
from cache.store import Store
from stages.builders import Builder
from stages.engine import Engine
from stages.graph import BlobInput, Stage
from tests.support.roots import busybox

store = Store.open(Path(sys.argv[1]))
layers = busybox(store)
params = {"machine": os.uname().machine, "environment": {}, "emulators": [], "collect": "out", "into": "",
          "command": ["/bin/busybox", "sh", "-euc", sys.argv[2]], "refuse": [{"pattern": "Not building (.*) as no"}]}
builder = Builder("run-script", 1, ("layer", "index"), "executors.run_stage:build")
stage = Stage("talking", "talking", builder, {"os": "linux", "architecture": "amd64"}, params,
              {f"root/{n}": BlobInput(digest) for n, digest in enumerate(layers)})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
record = Engine(store, Path("."), lambda *_: None).realise(stage, {})
print(json.dumps({"log": record.facts["log"], "grown": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before}))
"""

#: Of a hundred bytes each: 200 MB.
LINES = 2_000_000
TALK = f"""
/bin/busybox mkdir out
echo x > out/x
/bin/busybox awk 'BEGIN {{ for (n = 1; n <= {LINES}; n++)
    printf "[%d/370] Building CUDA object CMakeFiles/_C.dir/csrc/quantization/kernels/made_%d.cu.o and on\\n", n, n }}'
"""


def test_log_of_a_script_that_talks_without_end_takes_no_memory_and_little_disk(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", TALKING, str(tmp_path / "store"), TALK], cwd=HERE,
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["grown"] < 60 << 10  # KiB
    packed = Store.open(tmp_path / "store").path_of(told["log"])
    assert packed.stat().st_size < 20 << 20
    lines = size = 0
    with packed.open("rb") as file:
        for piece in text_of(file, "log"):
            lines, size = lines + piece.count(b"\n"), size + len(piece)
        file.seek(0)
        end, before = end_of(file, "log", 1 << 20)
    assert lines >= LINES
    assert size > 190_000_000
    assert before + end.count("\n") == lines
    assert f"made_{LINES}.cu.o" in end


def script(store: Store, text: str) -> BuildContext:
    given = {f"root/{number}": layer for number, layer in enumerate(busybox(store))}
    return BuildContext(store, {
        "machine": os.uname().machine, "environment": {}, "emulators": [], "collect": "out", "into": "",
        "command": [BUSYBOX, "sh", "-euc", "/bin/busybox mkdir out;" + text]}, given)


FILL = "/bin/busybox dd if=/dev/zero of=out/large bs=1M count=64 2> /dev/null"


@pytest.mark.parametrize("text", [
    FILL.replace(" 2> /dev/null", ""),  # the script says it
    "/bin/busybox dd if=/dev/zero of=out/large bs=1M count=9 2> /dev/null",  # room to build, none for the layer
])
def test_full_disk_is_named_and_nothing_is_left_behind(tmp_path: Path, text: str) -> None:
    with small_disk(tmp_path / "disk", "16m") as disk:
        store = Store.open(disk / "store")
        context = script(store, text)
        before = sorted(path.name for path in (disk / "store/blobs").rglob("?" * 64))
        with pytest.raises(StoreError, match="the store's disk is full") as caught:
            run_stage.build(context)
        assert "store:gc" in str(caught.value.cure)
        assert list((disk / "store/tmp").iterdir()) == []
        assert sorted(path.name for path in (disk / "store/blobs").rglob("?" * 64)) == before
        assert verify.verify(store).findings == ()
        assert set(run_stage.build(script(store, "echo x > out/x"))) == {"layer", "index"}


def test_disk_that_is_full_for_the_log_ends_the_script(tmp_path: Path) -> None:
    """At once, and with its own name: hours of a build whose log is lost would help nobody."""
    with small_disk(tmp_path / "disk", "16m") as disk:
        store = Store.open(disk / "store")
        with StageLog(store) as log:
            plain = script(store, FILL + " || true; while true; do /bin/busybox head -c 900000 /dev/urandom |"
                                         "/bin/busybox base64; done")
            context = BuildContext(store, plain.params, plain.inputs, log=log.line)
            with pytest.raises(StoreError, match="the store's disk is full"):
                run_stage.build(context)
        assert list((disk / "store/tmp").iterdir()) == []
