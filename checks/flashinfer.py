"""Check `flashinfer`: its kernels are there for the device, or the image can compile them on it.

flashinfer-python holds sources. A kernel comes out of flashinfer-jit-cache, whose parts are compiled for a CUDA and for
architectures, or is compiled at its first use: by ninja with the nvcc of CUDA_HOME and the image's c++, then linked,
for the architectures of FLASHINFER_CUDA_ARCH_LIST. vLLM looks only whether nvcc and ninja are there; what else is
missing shows when the first request is answered.

flashinfer-cubin does not count: it holds what data-centre devices run, and lies idle on others (flashinfer#3344). That
the parts are of one release is the check `wheel-set`, that the list has the device the check `image`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from cache.derived import derived
from cache.layer import LayerReader
from checks.kernels import headers
from checks.loadability import ANY_ISA, Device, Way
from checks.ptxas import Tool, read_tool
from checks.registry import LAYER_STAGES, WHEEL_STAGES
from checks.tree import BASE, ImageTree, indexes
from checks.verdict import CheckInputs, Finding

_NAME = "flashinfer-python"
_CACHE = "flashinfer-jit-cache"
#: Raised when `read_tool` gives something else for the same file; the same facts as those of the check `ptxas`.
_TOOL_VERSION = 1
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_LINKER = ("/usr/local/lib/{machine}-linux-gnu", "/lib/{machine}-linux-gnu", "/usr/lib/{machine}-linux-gnu",
           "/usr/local/lib", "/lib", "/usr/lib")
_ARCH = re.compile(r"(\d+)\.(\d+[a-z]?)")


def run(inputs: CheckInputs) -> list[Finding]:
    """Subjects: `flashinfer-python`, `flashinfer-python: <what it lacks>`, `flashinfer-jit-cache`, `<package>: CUDA`,
    `FLASHINFER_CUDA_ARCH_LIST`."""
    facts = inputs.facts
    packages: Mapping[str, str] = facts["packages"]
    if not facts["capability"] or _NAME not in packages:
        return []
    found = [*caches(packages, facts["cuda"]), *architectures(facts["environment"], facts["arch_list"])]
    prebuilt = False
    if any(name.startswith(_CACHE) for name in packages):
        told = _prebuilt(inputs)
        prebuilt = told.severity == "info"
        found.append(told)
    if not facts["known"]:
        return [*found, Finding("error", _NAME, f"how {_NAME} {packages[_NAME]} compiles is not known",
                                "checks/data/flashinfer.yaml",
                                "look into its wheel and add a row, with its source, to that table")]
    read = indexes(inputs.outputs, (BASE, *LAYER_STAGES))
    with ImageTree(inputs.store, read, facts["base"]) as tree:
        lacks = [finding for part in (_nvcc, _programs, _headers, _libraries) for finding in part(tree, facts)]
    if facts["environment"].get("FLASHINFER_DISABLE_JIT"):
        lacks.append(_lack("FLASHINFER_DISABLE_JIT", "it is forbidden to: MissingJITCacheError",
                           "the variable FLASHINFER_DISABLE_JIT", "take the variable out"))
    if prebuilt:  # what the cache lacks is compiled all the same
        lacks = [Finding("warning", one.subject, f"{one.message}; only kernels of {_CACHE} will run", one.where,
                         one.cure) for one in lacks]
    if not lacks:
        found.append(Finding("info", _NAME, f"the image can compile its kernels, with {_home(tree, facts)}",
                             _home(tree, facts)))
    return [*found, *lacks]


def _lack(what: str, message: str, where: str, cure: str, severity: str = "error") -> Finding:
    return Finding(severity, f"{_NAME}: {what}", f"{_NAME} cannot compile a kernel on the device: {message}", where,
                   cure)


# -- what is prebuilt ---------------------------------------------------------------------------------


def caches(packages: Mapping[str, str], cuda: str) -> Iterator[Finding]:
    """Judge the versions of flashinfer-jit-cache and its providers (name to version). Pure.

    Args:
        cuda: that the driver brings, "13.0".
    """
    parts = {name: version for name, version in packages.items() if name.startswith(_CACHE)}
    for name, version in parts.items():
        made = re.fullmatch(r"cu(\d+)(\d)", version.partition("+")[2])
        if made and made[1] != cuda.partition(".")[0]:
            yield Finding("error", f"{name}: CUDA", f"{name} {version} was compiled for CUDA {made[1]}.{made[2]}, the "
                          f"image is for {cuda}: its libraries ask for libcudart.so.{made[1]}", name,
                          f"take the one with +cu{cuda.replace('.', '')}, of flashinfer's own index")
        elif made and int(made[2]) > int(cuda.partition(".")[2] or 0):
            yield Finding("warning", f"{name}: CUDA", f"{name} {version} was compiled for CUDA {made[1]}.{made[2]}, "
                          f"newer than the driver's {cuda}", name, f"take the one with +cu{cuda.replace('.', '')}")
        if version != parts.get(_CACHE, version):
            yield Finding("error", f"{name}: version", f"{name} is {version}, {_CACHE} is {parts[_CACHE]}: flashinfer "
                          "passes over it and compiles on the device", name, "take both of one release and one CUDA")


def _prebuilt(inputs: CheckInputs) -> Finding:
    """Whether the modules of the cache have code for the device."""
    facts = inputs.facts
    device, start = Device.of(facts, ANY_ISA), f"{facts['site']}/flashinfer_jit_cache"
    serving: Counter[bool] = Counter()
    targets: set[str] = set()
    for stage in WHEEL_STAGES:
        if (index := inputs.outputs.get(f"{stage}/index")) is None:
            continue
        with LayerReader(inputs.store, index) as layer:
            for path, found in headers(inputs.store, layer, index).items():
                if path.startswith(start):
                    serving[any(way != Way.NONE for way in found.ways(device))] += 1
                    targets.update(found.targets)
    told = f"{serving[True]} of {serving.total()} prebuilt modules have code for compute capability {device.capability}"
    listed = f", all are for {', '.join(sorted(targets)) or 'nothing'}"
    if serving[True]:
        return Finding("info", _CACHE, told, f"/{start}")
    return Finding("warning", _CACHE, f"{told}{listed}: each kernel is compiled on the device", f"/{start}",
                   "take the provider for this device, or leave the package out")


# -- what compiles ------------------------------------------------------------------------------------


def architectures(environment: Mapping[str, str], wanted: str) -> Iterator[Finding]:
    """Judge FLASHINFER_CUDA_ARCH_LIST as flashinfer reads it: words that one space parts, each `major.minor`. Pure.

    Args:
        wanted: `device.arch_list`, "11.0a".
    """
    name, cure = "FLASHINFER_CUDA_ARCH_LIST", 'FLASHINFER_CUDA_ARCH_LIST: "{arch_list}" in the target'
    if name not in environment:
        yield Finding("warning", name, "it is not set: flashinfer asks the GPU when it is imported, and compiles for "
                      "nothing where none is seen then", f"the variable {name}", cure)
        return
    given = environment[name]
    wrong = [word for word in given.split(" ") if not _ARCH.fullmatch(word)]
    if wrong:
        yield Finding("error", name, f"{name}={given!r}: flashinfer cannot read {wrong[0]!r} (one space between words, "
                      "each like 11.0a): ValueError when it is imported, or an architecture that nvcc does not know",
                      f"the variable {name}", cure)
    elif wanted and _normal(given.split(" ")) != _normal(wanted.split()):
        yield Finding("warning", name, f"{name}={given}, the device is {wanted}: kernels are compiled for "
                      f"{', '.join(sorted(_normal(given.split(' '))))}", f"the variable {name}", cure)


def _normal(words: Iterable[str]) -> set[str]:
    """As flashinfer completes them: a word without a letter gets the one of its architecture (CUDA 12.9 and later)."""
    found = set()
    for word in words:
        major, minor = word.split(".")
        if minor.isdigit() and int(major) >= 9:
            minor += "f" if (major, minor) == ("12", "0") else "a"
        found.add(f"{major}.{minor}")
    return found


def _home(tree: ImageTree, facts: Mapping[str, Any]) -> str:
    """The directory that flashinfer takes for CUDA's."""
    environment = facts["environment"]
    told = environment.get("CUDA_HOME") or environment.get("CUDA_PATH")
    if told:
        return str(told)
    nvcc = _which(tree, environment, "nvcc")
    return nvcc.rpartition("/")[0].rpartition("/")[0] if nvcc else "/usr/local/cuda"


def _which(tree: ImageTree, environment: Mapping[str, str], program: str) -> str | None:
    """Where a program is found, as a shell would."""
    places = [""] if "/" in program else [f"{place}/" for place in environment.get("PATH", _PATH).split(":") if place]
    return next((place + program for place in places if _runs(tree, place + program)), None)


def _runs(tree: ImageTree, path: str) -> bool:
    found = tree.file(path)
    return found is not None and bool(int(tree.entries[found].get("mode", 0o755)) & 0o111)


def _nvcc(tree: ImageTree, facts: Mapping[str, Any]) -> Iterator[Finding]:
    home = _home(tree, facts)
    nvcc = facts["environment"].get("FLASHINFER_NVCC") or f"{home}/bin/nvcc"
    cure = f"put nvidia-cuda-nvcc, nvidia-nvvm and nvidia-cuda-crt of CUDA {facts['cuda']} into the wheels, and set " \
        "CUDA_HOME in image.environment to the directory above its bin"
    if not _runs(tree, nvcc):
        yield _lack("nvcc", f"there is no nvcc at {nvcc}", nvcc, cure)
        return
    for part in facts["compiler"]:
        if tree.file(f"{home}/{part}") is None:
            yield _lack(part, f"nvcc lacks {part}", f"{home}/{part}", cure)
    ptxas = tree.file(f"{home}/bin/ptxas")
    for what, path in (("nvcc", tree.file(nvcc)), ("ptxas", ptxas)):
        if path is not None and tree.readable(path):
            yield from _weigh(what, f"/{path}", _tool(tree, path), facts, cure)


def _weigh(what: str, path: str, tool: Tool, facts: Mapping[str, Any], cure: str) -> Iterator[Finding]:
    """nvcc passes what it made of the source to the ptxas beside it, which must know the architecture."""
    cuda, capability = facts["cuda"], facts["capability"]
    arch = f"sm_{capability.replace('.', '')}a"
    if tool.machine != facts["machine"] or not tool.release:
        yield _lack(what, f"{path} is no {what} for {facts['machine']}", path, cure)
        return
    major, minor = (int(part) for part in tool.release.split("."))
    here = tuple(int(part) for part in f"{cuda}.0".split(".")[:2])
    if what == "ptxas" and arch not in tool.archs:
        yield _lack(what, f"{path} (CUDA {tool.release}) does not know {arch}", path, cure)
    elif major != here[0]:
        yield _lack(what, f"{path} is of CUDA {tool.release}, the driver's is {cuda}", path, cure)
    elif minor > here[1]:
        yield _lack(what, f"{path} is of CUDA {tool.release}, newer than the driver's {cuda}: what its headers ask for "
                    "may not be there", path, cure, "warning")


def _tool(tree: ImageTree, path: str) -> Tool:
    def read() -> bytes:
        with tree.open(path) as stream:
            return json.dumps(vars(read_tool(stream))).encode()

    found = json.loads(derived(tree.store, "ptxas", _TOOL_VERSION, tree.digest(path), read))
    return Tool(**{**found, "archs": tuple(found["archs"])})


def _programs(tree: ImageTree, facts: Mapping[str, Any]) -> Iterator[Finding]:
    environment = facts["environment"]
    compiler = "packages: g++, and alternatives: c++ in the target"
    wanted = {"ninja": ("which runs the compilers", "put the wheel ninja into the set"),
              environment.get("CXX") or "c++": ("the compiler of C++", compiler),
              environment.get("CC") or "gcc": ("nvcc's host compiler", compiler)}
    for program, (what, cure) in wanted.items():
        if _which(tree, environment, program) is None:
            yield _lack(program, f"there is no {program} ({what}) in PATH", environment.get("PATH", _PATH), cure)


def _headers(tree: ImageTree, facts: Mapping[str, Any]) -> Iterator[Finding]:
    home = _home(tree, facts)
    lacking = [name for name in facts["headers"] if tree.file(f"{home}/include/{name}") is None]
    if lacking:
        yield _lack("headers", f"{home}/include lacks {', '.join(lacking)}", f"{home}/include",
                    "put the wheels that bring them into the set: nvidia-cuda-runtime, nvidia-cuda-crt, "
                    "nvidia-cuda-cccl, nvidia-cublas, nvidia-curand, nvidia-cuda-nvrtc")


def _libraries(tree: ImageTree, facts: Mapping[str, Any]) -> Iterator[Finding]:
    """The linker takes names without a version only, which CUDA's wheels do not have (flashinfer#5064)."""
    home, environment = _home(tree, facts), facts["environment"]
    places = [*(f"{home}/{name}" for name in facts["directories"]),
              *(place for place in environment.get("LIBRARY_PATH", "").split(":") if place),
              *(place.format(machine=facts["machine"]) for place in _LINKER)]
    for row in facts["libraries"]:
        names = [f"{place}/lib{row['name']}{end}" for place in places for end in (".so", ".a")]
        if not any(tree.file(name) for name in names):
            yield _lack(f"-l{row['name']}", f"ld: cannot find -l{row['name']} (for {row['for']})", f"{home}/lib64",
                        f"put a link lib{row['name']}.so into {home}/lib64, or into a directory of LIBRARY_PATH",
                        row["severity"])
