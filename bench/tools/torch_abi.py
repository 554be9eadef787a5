"""Makes the tables of torch's ABI and of vLLM's wheels out of the wheels themselves.

    .venv/bin/python bench/tools/torch_abi.py --store DIRECTORY

fetches the wheels of TORCH and VLLM (2.2 GB, from the index `default`, each held to its sha256) into a store at
DIRECTORY, which may be deleted afterwards, and writes

    checks/data/torch-exports.aarch64.xz   what each torch exports (checks/torch_abi.py)
    checks/data/vllm-wheels.aarch64.xz     what each vLLM's extensions ask of torch, and their device code
                                           (checks/vllm_wheels.py)

To learn a new release, add its version here, run it, and commit what it wrote.
"""

from __future__ import annotations

import argparse
import io
import json
import lzma
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)

TORCH = ("2.10.0", "2.11.0", "2.13.0")
VLLM = ("0.19.1", "0.20.0", "0.26.0", "0.32.0")
MACHINE, PYTHON, GLIBC = "aarch64", "3.11", "2.36"


def main() -> None:
    from cache.store import Store
    from lock.fetch import fetch
    from lock.indexes import load_indexes
    from lock.simple import Pages, WheelSource
    from lock.sources import Wanted
    from lock.tags import rank, supported, version_of

    parser = argparse.ArgumentParser(description="Make the tables of torch's ABI and of vLLM's wheels.")
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=ROOT / "checks" / "data", help="where the tables are written")
    options = parser.parse_args()
    indexes = load_indexes(ROOT / "targets" / "indexes.yaml")
    pages, store = Pages(indexes), Store.open(options.store)
    ranks = supported(PYTHON, MACHINE, GLIBC)
    wheels: dict[tuple[str, str], tuple[Wanted, dict[str, str]]] = {}
    for name, versions in (("torch", TORCH), ("vllm", VLLM)):
        for version in versions:
            there = [item for item in pages.files("default", name) if str(version_of(item.file)) == version
                     and MACHINE in item.file and item.sha256]
            fitting = [item for item in there if rank(item.file, ranks) is not None]
            best = min(fitting, key=lambda item: (rank(item.file, ranks), item.file))
            wanted = Wanted("wheel", name, version, best.file, 0, best.sha256, "default")
            wheels[name, version] = wanted, {item.sha256: item.file for item in there}
    fetch(store, [wanted for wanted, _ in wheels.values()], {"wheel": WheelSource(indexes, pages)}, jobs=2)
    data = options.data
    write(data / f"torch-exports.{MACHINE}.xz", torch_exports(store, wheels))
    write(data / f"vllm-wheels.{MACHINE}.xz", vllm_wheels(store, wheels))


def torch_exports(store: Any, wheels: Any) -> str:
    from cache.zip_reader import ZipReader
    from checks.symbols import read_library
    from checks.torch_abi import HOMES, Build, Exports, dump, is_torch

    builds: list[Build] = []
    names: dict[str, tuple[int, str]] = {}
    for (project, version), (wanted, siblings) in wheels.items():
        if project != "torch":
            continue
        bit = 1 << len(builds)
        with ZipReader(store.use(wanted.digest), wanted.file) as reader:
            libraries = [member for member in reader.members if member.name.startswith("torch/lib/")
                         and member.name.endswith(".so")]
            cuda = any(member.name == "torch/lib/libtorch_cuda.so" for member in libraries)
            for member in libraries:
                print(wanted.file, member.name, flush=True)
                home = HOMES.get(member.name.rpartition("/")[2], "t")
                for name in filter(is_torch, read_library(io.BytesIO(reader.read(member, 1 << 30))).exports):
                    bits, other = names.get(name, (0, home))
                    names[name] = bits | bit, min(home, other)
        builds.append(Build(version, cuda, siblings))
    return dump(Exports(tuple(builds), names), MACHINE)


def vllm_wheels(store: Any, wheels: Any) -> str:
    import fatbin
    from cache.zip_reader import ZipReader
    from checks.elf import MAGIC
    from checks.symbols import read_library
    from checks.torch_abi import is_torch

    found = []
    for (project, version), (wanted, _) in wheels.items():
        if project != "vllm":
            continue
        extensions: dict[str, Any] = {}
        with ZipReader(store.use(wanted.digest), wanted.file) as reader:
            for member in reader.members:
                if not member.name.endswith(".so"):
                    continue
                print(wanted.file, member.name, flush=True)
                content = reader.read(member, 1 << 30)
                if content[:4] != MAGIC:
                    continue
                kernels: dict[str, int] = {}
                for entry in fatbin.read(content).entries:
                    target = entry.target + (f"@{entry.isa}" if entry.kind is fatbin.Kind.PTX else "")
                    kernels[target] = kernels.get(target, 0) + len(fatbin.kernels(entry) or ())
                undefined = [item.name for item in read_library(io.BytesIO(content)).undefined if not item.weak]
                extensions[member.name] = {
                    "undefined": sorted(filter(is_torch, undefined)),
                    "kernels": {target: count for target, count in sorted(kernels.items()) if count},
                }
        found.append({"name": project, "version": version, "file": wanted.file, "sha256": wanted.sha256,
                      "extensions": extensions})
    return json.dumps({"format": "stagecraft.vllm-wheels.v1", "machine": MACHINE, "wheels": found}, indent=1) + "\n"


def write(path: Path, text: str) -> None:
    path.write_bytes(lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME))
    print(path, path.stat().st_size, flush=True)


if __name__ == "__main__":
    main()
