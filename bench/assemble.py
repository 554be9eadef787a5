"""Bench: cold assembly of a target's wheel layers, as a ratio against uv + tar + sha256sum on the same files.

    .venv/bin/python bench/assemble.py --wheels DIR [--target thor] [--layers cuda,torch,deps,vllm] [--runs 3]

Ours: all wheels in the store, no layer yet; the builders run two at a time as the engine does; a layer is hashed,
indexed and on disk (fsync) at the end. Theirs: `uv pip install --target` without cache, from the same wheels, then
`tar` of the result and `sha256sum` of the tar, with no fsync. Both find the wheels in the page cache as the run before
left it. Runs alternate, so that both sides see the same machine; the figures are medians, and the peak memory of the
processes.

`--wheels` is a directory that has the locked files by name; without it they are taken from the store. What is written
(three times the layers, 24 GB for thor) goes to a directory below --scratch that is removed afterwards.
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
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def layers_of(target: str, names: list[str]) -> dict[str, dict[str, Any]]:
    """Layer name to its params and wheels (file name to sha256), as the target's own stages have them."""
    from stages.graph import FileInput
    from stages.project import Project

    graph = Project(ROOT).graph(target)
    found = {}
    for stage in graph.stages:
        if stage.builder.name == "wheels-layer" and stage.name in names:
            files = {item.locked.filename: item.locked.sha256 for item in stage.inputs.values()
                     if isinstance(item, FileInput)}
            found[stage.name] = {"params": dict(stage.params), "platform": dict(stage.platform), "files": files}
    return found


def ours(plan: Path, wheels: Path, scratch: Path) -> None:
    """The child process: build the layers into a fresh store, print the seconds that it took."""
    from assemble.wheels import build
    from cache.build import BuildContext
    from cache.store import Store

    layers = json.loads(plan.read_text())
    store = Store.open(scratch / "store")
    for layer in layers.values():
        for file, digest in layer["files"].items():
            path = store.path_of(f"sha256:{digest}")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(wheels / file)

    def one(layer: dict[str, Any]) -> int:
        inputs = {f"wheels/{file}": f"sha256:{digest}" for file, digest in layer["files"].items()}
        return build(BuildContext(store, layer["params"], inputs, layer["platform"]))["layer"].size

    begun = time.perf_counter()
    with ThreadPoolExecutor(2) as pool:
        sizes = dict(zip(layers, pool.map(one, layers.values()), strict=True))
    print(json.dumps({"seconds": time.perf_counter() - begun, "sizes": sizes}))


def theirs(plan: Path, wheels: Path, scratch: Path) -> list[list[str]]:
    """The commands of the other side."""
    from packaging.utils import parse_wheel_filename

    layers = json.loads(plan.read_text())
    first = next(iter(layers.values()))
    machine = {"arm64": "aarch64", "amd64": "x86_64"}[first["platform"]["architecture"]]
    glibc = first["params"]["glibc"].replace(".", "_")
    chosen = scratch / "wheels"
    chosen.mkdir()
    wanted = []
    for layer in layers.values():
        for file in layer["files"]:
            (chosen / file).symlink_to(wheels / file)
            name, version, _, _ = parse_wheel_filename(file)
            wanted.append(f"{name}=={version}")
    site, tar = scratch / "site", scratch / "site.tar"
    uv = str(Path(sys.executable).parent / "uv")
    return [
        [uv, "pip", "install", "-q", "--target", str(site), "--no-deps", "--no-cache", "--no-index", "--find-links",
         str(chosen), "--python-platform", f"{machine}-manylinux_{glibc}", "--python-version",
         first["params"]["python"], *wanted],
        ["tar", "-C", str(site), "-cf", str(tar), "."],
        ["sha256sum", str(tar)],
    ]


def measured(command: list[str]) -> tuple[float, int, bytes]:
    """Seconds, peak resident bytes and output of a command."""
    begun = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command[:4])} … ended with {process.returncode}")
    return time.perf_counter() - begun, usage.ru_maxrss * 1024, output


def in_scratch(parent: Path, run: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    scratch = Path(tempfile.mkdtemp(prefix="bench-", dir=parent))
    try:
        return run(scratch)
    finally:
        shutil.rmtree(scratch)
        os.sync()  # nobody pays for the pages of the one before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheels", type=Path, required=False)
    parser.add_argument("--target", default="thor")
    parser.add_argument("--layers", default="cuda,deps,torch,vllm")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", nargs=3, metavar=("PLAN", "WHEELS", "SCRATCH"), type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        ours(*given.child)
        return

    layers = layers_of(given.target, given.layers.split(","))
    with tempfile.TemporaryDirectory(prefix="bench-", dir=given.scratch) as keep:
        plan = Path(keep) / "plan.json"
        plan.write_text(json.dumps(layers))
        wheels = given.wheels.resolve() if given.wheels else from_store(layers, Path(keep) / "wheels")

        def we(scratch: Path) -> dict[str, Any]:
            _, peak, output = measured([sys.executable, __file__, "--child", str(plan), str(wheels), str(scratch)])
            return {"peak": peak, **json.loads(output)}

        def they(scratch: Path) -> dict[str, Any]:
            steps = [measured(command)[:2] for command in theirs(plan, wheels, scratch)]
            return {"seconds": sum(step[0] for step in steps), "peak": max(step[1] for step in steps),
                    "steps": [step[0] for step in steps]}

        rounds = [(in_scratch(given.scratch, they), in_scratch(given.scratch, we)) for _ in range(given.runs)]
    report(given, rounds)


def from_store(layers: dict[str, dict[str, Any]], directory: Path) -> Path:
    """A directory of links to the wheels in the store."""
    from cache.store import Store

    store = Store.open()
    directory.mkdir()
    for layer in layers.values():
        for file, digest in layer["files"].items():
            (directory / file).symlink_to(store.use(f"sha256:{digest}"))
    return directory


def report(given: argparse.Namespace, rounds: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
    they, we = ([one[side] for one in rounds] for side in (0, 1))
    ratio = statistics.median(ours["seconds"] / theirs["seconds"] for theirs, ours in rounds)
    steps = [statistics.median(one["steps"][number] for one in they) for number in range(3)]
    peaks = [max(one["peak"] for one in side) for side in (they, we)]
    size = sum(we[0]["sizes"].values())
    print(f"layers {given.layers} of {given.target}: {size / 1e9:.2f} GB, median of {len(rounds)} runs each\n")
    print(f"{'':34}{'seconds':>9}{'peak MiB':>10}")
    print(f"{'uv + tar + sha256sum':34}{statistics.median(one['seconds'] for one in they):9.1f}{peaks[0] >> 20:10}"
          f"   ({' + '.join(f'{step:.1f}' for step in steps)})")
    print(f"{'stagecraft':34}{statistics.median(one['seconds'] for one in we):9.1f}{peaks[1] >> 20:10}")
    print(f"{'ratio':34}{ratio:9.2f}")
    if given.json:
        given.json.write_text(json.dumps({"ratio": ratio, "bytes": size, "uv": they, "stagecraft": we}, indent=1))


if __name__ == "__main__":
    main()
