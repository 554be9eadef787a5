"""Bench: what compiling from source costs beside the compile itself, as ratios in one run. Needs the network.

    ./doit build:thor
    .venv/bin/python bench/source.py [--store DIRECTORY] [--units 24]

1. The same device code, compiled in thor's emulated root by compilers of this machine and by emulated ones.
2. The small project of the tests in the place of vLLM (tests/support/small_vllm.py), with more units so that it
   compiles for more than a minute: the whole stage against `cmake --build` alone, and what the gates of its image take.
3. A change of a Python file alone: the whole build, against what of it comes after the source was unpacked: packing the
   wheel and its layer, and judging the image again.

The project is made in a temporary directory; the store is the one that thor is in.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from cache.build import BuildContext  # noqa: E402
from cache.store import Store  # noqa: E402
from executors.run_stage import build as run_script  # noqa: E402
from stages.plan import state_of  # noqa: E402
from stages.project import Project  # noqa: E402
from tests.support import small_vllm  # noqa: E402
from tests.support.front import committed_project, doit  # noqa: E402

TARGET = "small-thor"
UNIT = """\
#include <cub/cub.cuh>
template <int N> __global__ void sum(const float* in, float* out) {
  using Reduce = cub::BlockReduce<float, N>;
  __shared__ typename Reduce::TempStorage storage;
  float total = Reduce(storage).Sum(in[threadIdx.x + blockIdx.x * N]);
  if (threadIdx.x == 0) out[blockIdx.x] = total;
}
void launch(const float* in, float* out) {
  sum<64><<<1, 64>>>(in, out); sum<128><<<1, 128>>>(in, out); sum<256><<<1, 256>>>(in, out);
}
"""
SCRIPT = """\
set -eu
mkdir -p /build/out /build/cuda
cp -a /cross/toolkit/nvidia/cu13/bin /cross/toolkit/nvidia/cu13/nvvm /cross/toolkit/nvidia/cu13/include /build/cuda/
ln -s "/$SITE/nvidia/cu13/lib" /build/cuda/lib64
took() { start=$(date +%s%N); "$@"; echo "took $(( ($(date +%s%N) - start) / 1000000 )) $what"; }
include=/cross/toolkit/nvidia/cu13/include
what=native
PATH=/cross/bin:$PATH took /build/cuda/bin/nvcc -ccbin /cross/bin/g++ -arch=sm_110a -I$include/cccl \\
    -c /inputs/files/unit.cu -o /build/native.o
what=emulated
took "/$SITE/nvidia/cu13/bin/nvcc" -ccbin /usr/bin/g++ -arch=sm_110a -I$include/cccl -I$include \\
    -c /inputs/files/unit.cu -o /build/emulated.o
cuda=$(cmp /build/native.o /build/emulated.o > /dev/null && echo same || echo other)
echo "objects $cuda" > /build/out/said
"""


def emulation(store: Store, project: Project) -> dict[str, float]:
    """Seconds for one translation unit by each kind of compiler, in one root."""
    graph = project.graph(TARGET)
    records: dict[str, Any] = {}
    for stage in graph.stages:
        known = {name: records[name] for name in stage.dependencies() if name in records}
        if len(known) == len(stage.dependencies()):
            record = state_of(stage, known, store)[1]
            if record is not None:
                records[stage.name] = record
    layers = ["base", "cuda", "vllm-compiler", "vllm-toolkit"]
    emulators = project.lock_data(TARGET)["emulator"]["debs"]
    said: list[str] = []
    params = {"machine": "aarch64", "command": ["bash", "/inputs/files/run.sh"], "collect": "out", "into": "",
              "environment": {"SITE": project.lock(TARGET).python["site"], "LC_ALL": "C"},
              "emulators": [{key: deb[key] for key in ("name", "version", "architecture", "sha256")}
                            for deb in emulators]}
    inputs = {f"root/{number:02}": records[name].outputs["layer"].digest for number, name in enumerate(layers)}
    inputs |= {"file/run.sh": store.put(SCRIPT.encode()).digest, "file/unit.cu": store.put(UNIT.encode()).digest}
    run_script(BuildContext(store, params, inputs, log=said.append))
    found = {name: int(ms) / 1000 for line in said for ms, name in re.findall(r"^took (\d+) (\w+)$", line)}
    return {**found, "ratio": found["emulated"] / found["native"]}


def prepared(scratch: Path, units: int) -> tuple[Path, small_vllm.Origin]:
    """A project with the small one in the place of vLLM, of so many more translation units."""
    root = committed_project(scratch / "project")
    wheels = json.loads((ROOT / "targets/thor.lock.json").read_text())["wheels"]
    pins = {wheel["name"]: wheel["version"] for wheel in wheels if wheel["name"] != "vllm"}
    small_vllm.DEVICE["_moe_C_stable_libtorch"] = units
    origin = small_vllm.origin(scratch / "git", [f"torch=={pins['torch']}", "regex"])
    extra = {f"csrc/_moe_C_stable_libtorch/unit_{number}.cu":
             (UNIT.replace("launch(", f"launch_{number}(") + "".join(f"// {number}\n")).encode()
             for number in range(2, units)}
    origin.vllm.commit(extra)
    origin.tag()
    (root / "small").mkdir()
    (root / "small/recipe.yaml").write_text(small_vllm.RECIPE)
    (root / "small/project.json").write_text(json.dumps(small_vllm.PROJECT))
    script = root / "vllm/build.sh"
    script.write_text(script.read_text().replace(
        "setup build_ext", 'echo "compile starts"\nsetup build_ext', 1))
    (root / f"targets/{TARGET}.yaml").write_text(small_vllm.target(f"file://{scratch}/git/", pins))
    (root / f"targets/{TARGET}.lock.json").write_text((root / "targets/thor.lock.json").read_text())
    return root, origin


def events(path: Path) -> Iterator[dict[str, object]]:
    for line in path.read_text().splitlines():
        yield json.loads(line)


def build(root: Path, store: Path, name: str) -> tuple[float, dict[str, float], list[dict[str, object]]]:
    """Seconds of the whole, of each stage, and all events."""
    log = root / f"{name}.jsonl"
    started = time.monotonic()
    doit(root, store, "--events", str(log), f"build:{TARGET}")
    whole, listed = time.monotonic() - started, list(events(log))
    stages = {str(event["stage"]): float(str(event["ms"])) / 1000 for event in listed if event["event"] == "built"}
    return whole, stages, listed


def between(listed: list[dict[str, object]], pattern: str) -> float:
    """Seconds between the first and the last line of the compile that fit."""
    times = [float(str(event["time"])) for event in listed if event["event"] == "log"
             and event["stage"] == "vllm-extensions" and re.match(pattern, str(event.get("line", "")))]
    return max(times) - min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, default=Path(os.environ.get("STAGECRAFT_STORE",
                                                                          Path.home() / ".cache/stagecraft")))
    parser.add_argument("--units", type=int, default=24)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        root, origin = prepared(scratch, given.units)
        doit(root, given.store, f"lock:{TARGET}")
        first, stages, listed = build(root, given.store, "first")
        bare, script = between(listed, r"\[\d+/\d+\]"), between(listed, r"(?!unpacking)")
        print(json.dumps({"what": "from nothing", "whole_s": first, "stage_s": stages["vllm-extensions"],
                          "script_s": script, "ninja_s": bare, "stage/script": stages["vllm-extensions"] / script,
                          "whole/ninja": first / bare, "beside_ninja_s": first - bare}))
        origin.vllm.commit({"vllm/models.py": f"ANSWER = {time.time_ns()}\n".encode()})
        origin.tag()
        doit(root, given.store, f"lock:{TARGET}", "--only", "sources", "--upgrade", "vllm")
        changed, stages, _ = build(root, given.store, "changed")
        packed = changed - stages["vllm-source"]
        print(json.dumps({"what": "python alone", "whole_s": changed, "built": stages, "repack_and_gates_s": packed,
                          "ratio": changed / packed}))
        print(json.dumps({"what": "one unit", **emulation(Store.open(given.store), Project(root))}))


if __name__ == "__main__":
    main()
