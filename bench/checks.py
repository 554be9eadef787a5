"""Bench: all static checks of a built image, as ratios in the same run.

    .venv/bin/python bench/checks.py [--target thor] [--runs 3] [--noop-runs 15]

1. Cold: no verdict and no derived fact is stored. A process of its own judges every static check one after the other,
   as `./doit check:<target>` does, against `sha256sum` of the same layers; runs alternate. Also its peak memory.
2. Stored: `./doit build:<target>` with nothing to do, against the same with no checks at all.

The image must be built. The cold side works in a store of its own that has the built one's blobs and records as hard
links, beside it, so that nothing in the built one is touched. The `load` check runs code in an executor: not static.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# This directory, where Python looks first, has files of the project's names.
sys.path[0] = str(ROOT)

LIMIT = 1.5
MEMORY = 1 << 30

_JUDGE = """
import json, resource, sys, time
from pathlib import Path
from checks.verdict import judge
from stages import gates
from stages.plan import evaluate
from stages.project import Project
project, target = Project(Path(sys.argv[1])), sys.argv[2]
graph = project.graph(target)
records = {name: record for name, (_, record) in evaluate(graph, project.store).items()}
took = {}
for check in gates.checks_for(graph):
    if check.runs:
        continue
    begun = time.perf_counter()
    verdict = judge(project.store, check, gates.outputs_of(check, graph, records),
                    gates.facts_of(check, project, target))
    assert not verdict.cached, check.id
    took[check.id] = time.perf_counter() - begun
print(json.dumps({"checks": took, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10}))
"""

_BUILD = """
import sys
from pathlib import Path
from stages import gates, main
{change}
sys.exit(main.main(["build:" + sys.argv[2]], Path(sys.argv[1])))
"""


def run(command: list[str], store: Path) -> tuple[float, str]:
    env = {**os.environ, "STAGECRAFT_STORE": str(store), "PYTHONPATH": str(ROOT),
           "PYTHONPYCACHEPREFIX": str(Path(sys.prefix) / "pycache")}
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    begun = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - begun
    if done.returncode:
        sys.exit(f"{command[0]} … {command[-1]} failed:\n{done.stdout}{done.stderr}")
    return seconds, done.stdout


def linked(store: Path, scratch: Path) -> None:
    """A store with the blobs and records of another, without verdicts and derived facts."""
    for part in ("blobs", "records"):
        shutil.copytree(store / part, scratch / part, copy_function=os.link)
    shutil.copy(store / "store.json", scratch)


def main() -> None:
    from cache.store import Store
    from stages.plan import evaluate
    from stages.project import Project

    parser = argparse.ArgumentParser(description="Compare the checks with sha256sum.")
    parser.add_argument("--target", default="thor")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--noop-runs", type=int, default=15)
    options = parser.parse_args()
    store = Store.open().root
    python = [sys.executable, "-c"]
    behind = [str(ROOT), options.target]
    run([*python, _BUILD.format(change=""), *behind], store)
    project = Project(ROOT)
    records = [record for _, record in evaluate(project.graph(options.target), project.store).values()]
    layers = [record.outputs["layer"] for record in records if record and "layer" in record.outputs]
    hashing = ["sha256sum", *(str(project.store.path_of(layer.digest)) for layer in layers)]
    ours, theirs, reports = [], [], []
    for _ in range(options.runs):
        scratch = Path(tempfile.mkdtemp(prefix="bench-checks-", dir=store.parent))
        try:
            linked(store, scratch)
            seconds, said = run([*python, _JUDGE, *behind], scratch)
        finally:
            shutil.rmtree(scratch)
        ours.append(seconds)
        reports.append(json.loads(said))
        theirs.append(run(hashing, store)[0])
    noop: tuple[list[float], list[float]] = ([], [])
    for _ in range(options.noop_runs):
        for times, change in zip(noop, ("", "gates.CHECKS = ()"), strict=True):
            times.append(run([*python, _BUILD.format(change=change), *behind], store)[0])
    median = statistics.median
    peak = max(report["peak"] for report in reports)
    each = {name: median(report["checks"][name] for report in reports) for name in reports[0]["checks"]}
    for name, seconds in sorted(each.items(), key=lambda item: -item[1]):
        print(f"  {name:<16} {seconds:6.1f} s")
    size = sum(layer.size for layer in layers) / 1e9
    print(f"{len(each)} checks, cold {median(ours):.1f} s / sha256sum of {size:.2f} GB "
          f"{median(theirs):.1f} s = {median(ours) / median(theirs):.2f} x (limit {LIMIT} x); "
          f"peak memory {peak >> 20} MiB (limit {MEMORY >> 20} MiB)")
    if noop[0]:
        with_, without = median(noop[0]) * 1000, median(noop[1]) * 1000
        print(f"no-op build with all verdicts stored {with_:.0f} ms / without checks {without:.0f} ms = "
              f"{with_ / without:.2f} x")
    print(json.dumps({"ours_s": ours, "theirs_s": theirs, "limit": LIMIT, "peak": peak, "checks": each,
                      "noop_s": noop[0], "noop_without_s": noop[1]}))


if __name__ == "__main__":
    main()
