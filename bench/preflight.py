"""Bench: how much of the wheels preflight reads, and how long it takes, against downloading them.

    .venv/bin/python bench/preflight.py [--target thor]

1. vLLM against torch, cold: bytes that come over the network for all that is judged of the two, against the sizes of
   the two wheels; as the tables know these wheels, and as if they did not (each library is then read in part).
2. All wheels of the lock, cold and stored.

Cold: with an empty store. Bytes are of wheels only, not the indexes' pages. It needs the index.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
# This directory, where Python looks first, has files of the project's names.
sys.path[0] = str(ROOT)

LIMIT = 0.01


def judged(target: str, store: Path, names: tuple[str, ...] = ()) -> tuple[Any, float]:
    """What preflight says of the target's lock, or of these wheels of it, and the seconds that took."""
    from stages.preflight import preflight
    from stages.project import Project

    os.environ["STAGECRAFT_STORE"] = str(store)
    project = Project(ROOT)
    lock = project.lock(target)
    if names:
        lock = replace(lock, wheels=tuple(wheel for wheel in lock.wheels if wheel.name in names))
    started = time.perf_counter()
    found = preflight(project, project.target(target), lock, lambda line: None)
    return found, time.perf_counter() - started


def main() -> None:
    from checks import torch_abi, vllm_wheels

    parser = argparse.ArgumentParser(description="Measure what preflight reads.")
    parser.add_argument("--target", default="thor")
    target = parser.parse_args().target
    figures: dict[str, Any] = {"limit": LIMIT}
    tables = vllm_wheels.known, torch_abi.known
    with tempfile.TemporaryDirectory() as scratch:
        def measure(name: str, store: str, names: tuple[str, ...] = ()) -> None:
            found, seconds = judged(target, Path(scratch) / store, names)
            ratio = found.fetched / found.size
            figures[name] = {"fetched": found.fetched, "size": found.size, "ratio": round(ratio, 5),
                             "seconds": round(seconds, 2)}
            print(f"{name}: {found.fetched:,} of {found.size:,} bytes = {ratio:.2%}, {seconds:.1f} s")

        pair = ("torch", "vllm")
        measure("vllm against torch, known", "known", pair)
        nothing = torch_abi.Exports((), tables[1]("aarch64").names)
        vllm_wheels.known, torch_abi.known = lambda machine: {}, lambda machine: nothing  # type: ignore[assignment]
        measure("vllm against torch, unknown", "unknown", pair)
        vllm_wheels.known, torch_abi.known = tables
        measure("all wheels, cold", "all")
        measure("all wheels, stored", "all")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
