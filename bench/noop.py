"""Bench: what it costs to find out that there is nothing to do, as ratios against bare doit in the same run.

    .venv/bin/python bench/noop.py [--target thor] [--runs 15]

1. `./doit build:<target>` with everything built, whole process, against bare doit with ten empty tasks.
2. A graph of 1,000 stages, all cached, as doit tasks, against bare doit with 1,000 empty tasks.
3. `./doit build:spark` after thor from an empty set of verdicts and records of its own, against 1's no-op (--second).

Each figure is the median of alternating runs, so that both sides see the same machine.
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

BARE = """
def task_empty():
    for number in range({count}):
        yield {{"name": str(number), "actions": [], "uptodate": [True]}}
"""

CHAIN = """
import sys
sys.path.insert(0, {root!r})
from bench.noop import synthetic
DOIT_CONFIG, task_synthetic = synthetic({count}, {store!r})
"""


def synthetic(count: int, store: str):  # type: ignore[no-untyped-def]
    """A dodo for a chain of `count` stages in `store`: the product's own session and tasks, no real builders."""
    os.environ["STAGECRAFT_STORE"] = store
    from stages.tasks import Reporter, Session, stage_tasks
    from tests.support.project import chain

    session = Session(ROOT)
    session.project._graphs["chain"] = graph = chain(count)

    def task_synthetic():  # type: ignore[no-untyped-def]
        yield from stage_tasks(session, "chain", graph, {})

    return {"backend": "none", "reporter": Reporter(session), "verbosity": 0}, task_synthetic


def environment() -> dict[str, str]:
    """Both sides with bytecode in the same place, whatever the caller's environment says of it."""
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONPYCACHEPREFIX": str(Path(sys.prefix) / "pycache")}


def timed(command: list[str], cwd: Path) -> float:
    env = environment()
    started = time.perf_counter()
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return time.perf_counter() - started


def alternate(runs: int, *sides) -> list[float]:  # type: ignore[no-untyped-def]
    found: list[list[float]] = [[] for _ in sides]
    for _ in range(runs):
        for times, side in zip(found, sides, strict=True):
            times.append(side())
    return [statistics.median(times) for times in found]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--target", default="thor")
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--second", default="", help="a second target to build after dropping its root")
    options = parser.parse_args()
    doit = [str(Path(sys.prefix) / "bin" / "doit")]
    rows = []
    scratch = Path(tempfile.mkdtemp(prefix="stagecraft-bench-"))
    try:
        bare = scratch / "bare"
        bare.mkdir()
        (bare / "dodo.py").write_text(BARE.format(count=10))
        noop = [str(ROOT / "doit"), f"build:{options.target}"]
        timed(noop, ROOT)
        ours, theirs = alternate(options.runs, lambda: timed(noop, ROOT), lambda: timed([*doit, "-v0"], bare))
        rows.append(("no-op build, process", ours, theirs, 2.0))

        many, chain = scratch / "many", scratch / "chain"
        many.mkdir()
        chain.mkdir()
        (many / "dodo.py").write_text(BARE.format(count=1000))
        (chain / "dodo.py").write_text(CHAIN.format(root=str(ROOT), count=1000, store=str(scratch / "store")))
        (chain / "doit.cfg").write_text("[GLOBAL]\nbackend=none\n[BACKEND]\nnone = stages.tasks:NoDatabase\n")
        timed([*doit, "-v0"], chain)
        ours, theirs = alternate(options.runs, lambda: timed([*doit, "-v0"], chain),
                                 lambda: timed([*doit, "-v0"], many))
        rows.append(("1,000 stages, all cached", ours, theirs, 4.0))
        if options.second:
            alone = [str(ROOT / "doit"), f"build:{options.second}"]
            second = timed(alone, ROOT)
            rows.append((f"{options.second} after {options.target} (first time)", second, rows[0][1], 10.0))
    finally:
        shutil.rmtree(scratch)
    for name, ours, theirs, limit in rows:
        print(f"{name:<36} {ours * 1000:8.0f} ms / {theirs * 1000:6.0f} ms = {ours / theirs:5.2f} x (limit {limit} x)")
    print(json.dumps([{"what": n, "ours_s": o, "theirs_s": t, "limit": m} for n, o, t, m in rows]))


if __name__ == "__main__":
    main()
