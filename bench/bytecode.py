"""Bench: what starting vLLM costs with and without the layer of bytecode, in turns, in one run.

    ./doit build:cpu
    .venv/bin/python bench/bytecode.py [--store DIRECTORY] [--target cpu] [--runs 3]

Seconds of CPU and of the clock that one process of the image's own Python takes to import vLLM, in the layers of the
image in a sandbox: all of them, and all but `bytecode`. The first run of each kind is thrown away: it reads the disk.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from checks.registry import LAYER_STAGES  # noqa: E402
from executors.choose import executor  # noqa: E402
from executors.process import Process  # noqa: E402
from stages.image import environment  # noqa: E402
from stages.plan import evaluate  # noqa: E402
from stages.project import Project  # noqa: E402

PROGRAM = """\
import json, resource, time
began = time.perf_counter()
import vllm
from vllm import LLM, SamplingParams
used = resource.getrusage(resource.RUSAGE_SELF)
print("took", json.dumps([used.ru_utime + used.ru_stime, time.perf_counter() - began]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", default="")
    parser.add_argument("--target", default="cpu")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    if options.store:
        os.environ["STAGECRAFT_STORE"] = options.store
    project = Project(ROOT)
    target, lock, store = project.target(options.target), project.lock(options.target), project.store
    layers = {name: record.outputs["layer"].digest for name, (_, record) in
              evaluate(project.graph(options.target), store).items() if record is not None and name in LAYER_STAGES}
    if "bytecode" not in layers:
        raise SystemExit(f"{options.target} has no bytecode in the store: ./doit bytecode:{options.target}")
    chosen = executor(store, target.machine, project.lock_data(options.target).get("emulator", {}).get("debs", ()))
    taken: dict[str, list[list[float]]] = {"with": [], "without": []}
    variables = {**environment(target, lock), "PYTHONDONTWRITEBYTECODE": "1", "VLLM_NO_USAGE_STATS": "1"}
    for _ in range(options.runs + 1):
        for kind, found in taken.items():
            chain = tuple(digest for name, digest in layers.items() if kind == "with" or name != "bytecode")
            said: list[str] = []
            with tempfile.TemporaryDirectory(dir=store.directory("tmp")) as scratch:
                outcome = chosen.run(Process(chain, (lock.python["executable"], "-c", PROGRAM), target.machine,
                                             variables), Path(scratch), log=said.append)
            if not outcome.ok:
                raise SystemExit("\n".join([*said[-20:], outcome.reason]))
            found.append(json.loads(next(line for line in said if line.startswith("took "))[5:]))
    for number, what in enumerate(("CPU", "clock")):
        with_it, without = (statistics.median(run[number] for run in taken[kind][1:]) for kind in ("with", "without"))
        print(f"import vllm, {what}: with bytecode {with_it:.2f} s, without {without:.2f} s, "
              f"ratio {with_it / without:.2f}")


if __name__ == "__main__":
    main()
