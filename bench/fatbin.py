"""Bench: the header scan of a library's device code, as a ratio against NVIDIA's cuobjdump on the same file.

    .venv/bin/python bench/fatbin.py LIBRARY [--runs 9]

LIBRARY is meant to be vLLM's `_vllm_fa2_C.abi3.so` (307 MB). Ours: `fatbin.read`, which gives all that `cuobjdump -lelf
-lptx` lists and more, in a process of its own that is started for it, interpreter and imports included. Theirs:
`cuobjdump -lelf -lptx` of the package in requirements/toolkit.txt. Both find the file in the page cache; runs
alternate; the figures are medians. The kernels of the cubins are compared too, per architecture, with those of
`cuobjdump -symbols`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# This directory, where Python looks first, has a file of the package's name.
sys.path[0] = str(ROOT)

LIMIT = 0.25

_SCAN = """
import sys
import fatbin
with open(sys.argv[1], "rb") as file:
    for entry in fatbin.read(file).entries:
        print(entry.kind.name, entry.target, entry.isa, entry.size)
"""


def timed(command: list[str]) -> tuple[float, str]:
    started = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return seconds, done.stdout


def kernels(library: Path) -> tuple[dict[str, Counter[str]], float]:
    """Names of the cubins' kernels by architecture with how often each is there, and the seconds that took."""
    import fatbin

    found: dict[str, Counter[str]] = {}
    started = time.perf_counter()
    with library.open("rb") as file:
        for entry in fatbin.read(file).entries:
            names = fatbin.kernels(entry) or ()  # of PTX too, so that the figure is that of all kernels
            if entry.kind is fatbin.Kind.CUBIN:
                found.setdefault(entry.target, Counter()).update(names)
    return {arch: names for arch, names in found.items() if names}, time.perf_counter() - started


def main() -> None:
    from tests.support import cuobjdump
    from tests.support.cuda import toolkit

    parser = argparse.ArgumentParser(description="Compare the header scan with cuobjdump.")
    parser.add_argument("library", type=Path)
    parser.add_argument("--runs", type=int, default=9)
    options = parser.parse_args()
    library = options.library.resolve()
    nvidia = toolkit()
    listing = [str(nvidia.root / "bin" / "cuobjdump"), "-lelf", "-lptx", str(library)]
    scanning = [sys.executable, "-c", _SCAN, str(library)]
    ours, theirs = [], []
    for run in range(options.runs + 1):
        ours_took, our_text = timed(scanning)
        theirs_took, their_text = timed(listing)
        if run:  # the first one fills the page cache
            ours.append(ours_took)
            theirs.append(theirs_took)
    if len(our_text.splitlines()) != sum(" file " in line for line in their_text.splitlines()):
        sys.exit("cuobjdump lists another number of entries")
    named, naming = kernels(library)
    said: dict[str, Counter[str]] = {}
    for entry in cuobjdump.entries(nvidia, library):
        if entry.kernels:
            said.setdefault(entry.arch, Counter()).update(entry.kernels)
    ratio = statistics.median(ours) / statistics.median(theirs)
    print(f"header scan {statistics.median(ours) * 1000:.0f} ms / cuobjdump -lelf -lptx "
          f"{statistics.median(theirs) * 1000:.0f} ms = {ratio:.2f} x (limit {LIMIT} x)")
    print(f"names of all kernels, PTX inflated: {naming:.2f} s; the same as cuobjdump's: {named == said}")
    print(json.dumps({"ours_s": statistics.median(ours), "theirs_s": statistics.median(theirs), "limit": LIMIT,
                      "kernels": {arch: sum(names.values()) for arch, names in named.items()},
                      "same_kernels": named == said}))


if __name__ == "__main__":
    main()
