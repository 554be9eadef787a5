"""Check `cuda-set`: the CUDA libraries of the image belong together.

One libcudart major in a process, all parts of one cuDNN, one CUDA minor for the compilers and what takes their output.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from checks.facts import release
from checks.libraries import Libraries, opened
from checks.packages import packages
from checks.verdict import CheckInputs, Finding

_RUNTIME = re.compile(r"libcudart(?P<private>[-.][0-9a-f]{8})?\.so\.(?P<major>\d+)[\d.]*")


def run(inputs: CheckInputs) -> list[Finding]:
    """Subjects: `libcudart`, `libcudart: <file>`, `libcudnn: <part>`, `<package> <version>`."""
    with opened(inputs) as libraries:
        return [*_runtimes(libraries), *_cudnn(libraries), *_toolkit(inputs)]


def _runtimes(libraries: Libraries) -> Iterator[Finding]:
    """A process with two runtimes has two sets of contexts, streams and errors."""
    image = libraries.image
    majors: dict[str, str] = {}
    process = [*libraries.loaded.values(),
               *(file for path in libraries.required if path in image.libraries
                 for file in libraries.scope(path).files)]
    for file in dict.fromkeys(process):
        name = _RUNTIME.fullmatch(image.libraries[file].elf.soname or file.rpartition("/")[2])
        if name and not name["private"]:
            majors.setdefault(name["major"], file)
    if len(majors) > 1:
        yield Finding("error", "libcudart", "torch and the required extensions load the CUDA runtimes "
                      + " and ".join(f"{major} (/{file})" for major, file in sorted(majors.items())),
                      cure="take builds for one CUDA major")
    for path in libraries.own:
        name = _RUNTIME.fullmatch(path.rpartition("/")[2])
        if name and name["private"]:
            yield Finding("info", f"libcudart: {libraries.subject(path)}", f"a private copy of the CUDA "
                          f"{name['major']} runtime, renamed by hash: it does not meet torch's", f"/{path}")


def _cudnn(libraries: Libraries) -> Iterator[Finding]:
    """cuDNN opens its parts by name when it needs them."""
    image, table = libraries.image, libraries.facts["cudnn"]
    parts: dict[str, list[str]] = {}
    for path in libraries.own:
        found = re.fullmatch(r"(libcudnn\w*)\.so\.(\d+)(?:\.[\d.]+)?", path.rpartition("/")[2])
        if found:
            parts.setdefault(found[1], []).append(path)
    core = parts.get("libcudnn")
    if not core:
        return
    place = core[0].rpartition("/")[0]
    for part in table["parts"]:
        there = parts.get(part, [])
        if not there:
            yield Finding("error", f"libcudnn: {part}", f"{part} is not in the image: {table['error']} at its first "
                          "use", f"/{place}", "take all parts of one cuDNN release")
    for part, there in parts.items():
        contents = {path if not image.tree.readable(path) else image.tree.digest(path) for path in there}
        if len(contents) > 1 or any(path.rpartition("/")[0] != place for path in there):
            yield Finding("error", f"libcudnn: {part}", f"{part} is there more than once, or apart from the others: "
                          + ", ".join(f"/{path}" for path in there) + f": {table['error']}",
                          cure="leave one cuDNN, all of it in one place")


def _toolkit(inputs: CheckInputs) -> list[Finding]:
    facts = inputs.facts
    return toolkit({package["name"]: package["version"] for package in packages(inputs)
                    if stem_of(package["name"])[0] in facts["toolkit"]}, facts["cuda"])


def stem_of(name: str) -> tuple[str, str]:
    """A wheel's name without the CUDA major that the toolkit's had before CUDA 13, and that: `-cu12`, or empty."""
    stem, mark, major = name.rpartition("-cu")
    return (stem, mark + major) if len(major) == 2 and major.isdecimal() else (name, "")


def toolkit(there: Mapping[str, str], cuda: str) -> list[Finding]:
    """Judge the CUDA toolkit's wheels (name to version) for a driver of CUDA `cuda` ("" is none). Pure.

    PTX, NVVM IR and headers of a newer minor are refused by what takes them, the driver at last. Wheels that are named
    for a CUDA major are judged among themselves.
    """
    found: list[Finding] = []
    for suffix in sorted({stem_of(name)[1] for name in there}):
        group = {name: version for name, version in sorted(there.items()) if stem_of(name)[1] == suffix}
        core = f"nvidia-cuda-runtime{suffix}"
        runtime = group.get(core, cuda if suffix in ("", f"-cu{cuda.partition('.')[0]}") else "")
        if runtime:
            found += _one_minor(group, core, runtime, cuda)
    return found


def _one_minor(group: Mapping[str, str], core: str, runtime: str, cuda: str) -> Iterator[Finding]:
    for name, version in group.items():
        if _minor(version) != _minor(runtime):
            yield Finding(
                "error", f"{name} {version}", f"{name} is of CUDA {_minor(version)}, the runtime of {_minor(runtime)}: "
                "what it makes may be refused (cudaErrorUnsupportedPtxVersion, \"unsupported toolchain\")",
                cure=f"pin {name} to {_minor(runtime)}.*, as an override of the target")
    if cuda and release(_minor(runtime)) > release(_minor(cuda)) and core in group:
        yield Finding(
            "error", f"{core} {runtime}", f"the image brings CUDA {_minor(runtime)}, the driver of the target {cuda}",
            cure="take a torch for the driver's CUDA")


def _minor(version: str) -> str:
    return ".".join(f"{version}.0".split(".")[:2])
