"""Check `ptxas`: the ptxas that Triton (the compiler) will run in this image knows the device's architecture.

Triton writes PTX and has ptxas make machine code of it, on the device, for every kernel. Which ptxas is a rule per
version (checks/data/ptxas.yaml): its own, or that of an environment variable, and the variable is another one for new
devices. The binary is found as the image would, and judged by its strings: it is never run here.

Triton's PTX has the ISA of the ptxas that reads it and goes nowhere else: the driver gets machine code, which it takes
from any toolkit of its own CUDA major. So the toolkit's minor does not matter here; it does where nvcc or nvrtc hand
PTX to the driver (`ptx-floor`, `cuda-set`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from cache.derived import derived
from checks.elf import DamagedElfError, read_elf
from checks.registry import LAYER_STAGES
from checks.tree import BASE, ImageTree, indexes
from checks.verdict import CheckInputs, Finding

#: Raised when `read_tool` gives something else for the same file.
_VERSION = 1

_LARGEST = 1 << 28  # bytes; that of CUDA 13.4 has 46 MB

_ARCH = re.compile(rb"(?<!\w)sm_\d+[af]?(?!\w)")
_RELEASE = re.compile(rb"Cuda compilation tools, release (\d+\.\d+), V(\d+\.\d+\.\d+)")


@dataclass(frozen=True)
class Tool:
    """A ptxas.

    Attributes:
        machine: that it runs on; empty if it is no ELF file.
        release: CUDA, `13.0`; empty if it is no ptxas.
        version: `13.0.88`.
        archs: names of architectures that it holds.
    """

    machine: str
    release: str = ""
    version: str = ""
    archs: tuple[str, ...] = ()


def read_tool(stream: BinaryIO) -> Tool:
    """Read a ptxas by its strings."""
    try:
        elf = read_elf(stream)
    except DamagedElfError:
        elf = None
    if elf is None:
        return Tool("")
    if stream.seek(0, 2) > _LARGEST:
        return Tool(elf.machine)
    stream.seek(0)
    data = stream.read()
    found = _RELEASE.search(data)
    if found is None:
        return Tool(elf.machine)
    return Tool(elf.machine, found[1].decode(), found[2].decode(),
                tuple(sorted({match[0].decode() for match in _ARCH.finditer(data)})))


def run(inputs: CheckInputs) -> list[Finding]:
    """Subjects: the package; `<package>: <variable>` for a variable that does nothing."""
    facts = inputs.facts
    if not facts["arch"]:
        return []
    read = indexes(inputs.outputs, (BASE, *LAYER_STAGES))
    with ImageTree(inputs.store, read, facts["base"]) as tree:
        return [finding for row in facts["tools"] for finding in _judge(tree, row, facts)]


def _judge(tree: ImageTree, row: Mapping[str, Any], facts: Mapping[str, Any]) -> Iterator[Finding]:
    name, package = f"{row['package']} {row['version']}", row["package"]
    if not row["binary"]:
        yield Finding("error", package, f"which ptxas {name} runs is not known", "checks/data/ptxas.yaml",
                      "look into its wheel and add a row, with its source, to that table")
        return
    variable, environment = row["variable"], facts["environment"]
    own = f"/{facts['site']}/{row['directory']}/{row['binary']}"
    wanted = [path for path in (environment.get(variable, ""), own) if path]
    found = next((path for path in wanted if tree.file(path) is not None), None)
    if variable in environment and found != environment[variable]:
        yield Finding("warning", f"{package}: {variable}", f"it names {environment[variable] or 'nothing'}, which is "
                      f"not in the image: {name} passes over it without a word", own, "correct image.environment")
    for ignored in row["ignored"]:
        if ignored in environment and variable not in environment:
            yield Finding("warning", f"{package}: {ignored}", f"{name} does not read it for {facts['arch']}, but "
                          f"{variable}, which is not set", own, f"set {variable} in image.environment too")
    if found is None:
        yield Finding("error", package, f"{name} has no ptxas", own, "take a whole wheel")
        return
    path = str(tree.file(found))
    if not tree.readable(path):
        yield Finding("warning", package, f"{name} runs {found}, which is in the base image and is not judged", found)
        return
    if not int(tree.entries[path].get("mode", 0o755)) & 0o111:
        yield Finding("error", package, f"{name} runs {found}, which may not be run: \"Permission denied\"", found,
                      "take a wheel that marks it as executable")
        return
    yield _weigh(_tool(tree, path), name, package, found, facts)


def _weigh(tool: Tool, name: str, package: str, path: str, facts: Mapping[str, Any]) -> Finding:
    arch, made = facts["arch"], f"{path} (CUDA {tool.release}, {tool.version})"
    cure = f"set {next(row['variable'] for row in facts['tools'] if row['package'] == package)} in image.environment " \
        f"to a ptxas that knows {arch}: that of nvidia-cuda-nvcc of CUDA {facts['cuda']}"
    if tool.machine != facts["machine"] or not tool.release:
        found = "is no ptxas" if tool.machine == facts["machine"] else f"is for {tool.machine or 'no machine'}"
        return Finding("error", package, f"{name} runs {path}, which {found}", path, cure)
    if arch not in tool.archs:
        return Finding("error", package, f"{name} runs {made}, which does not know the device: \"ptxas fatal   : Value "
                       f"'{arch}' is not defined for option 'gpu-name'\"", path, cure)
    if int(tool.release.partition(".")[0]) > int(facts["cuda"].partition(".")[0]):
        return Finding("error", package, f"{name} runs {made}: a driver of CUDA {facts['cuda']} does not load machine "
                       "code of a later major", path, cure)
    return Finding("info", package, f"{name} runs {made}, which knows {arch}", path)


def _tool(tree: ImageTree, path: str) -> Tool:
    def read() -> bytes:
        with tree.open(path) as stream:
            return json.dumps(vars(read_tool(stream))).encode()

    found = json.loads(derived(tree.store, "ptxas", _VERSION, tree.digest(path), read))
    return Tool(**{**found, "archs": tuple(found["archs"])})
