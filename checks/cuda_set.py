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
    """cuDNN opens its parts by name when it needs them: the loader must give each copy those of its own directory."""
    image, error = libraries.image, libraries.facts["cudnn"]["error"]
    parts: dict[str, list[str]] = {name: [] for name in libraries.facts["cudnn"]["parts"]}
    majors: dict[str, str] = {}
    for path in libraries.own:
        found = re.fullmatch(r"(libcudnn\w*)\.so\.(\d+)(?:\.[\d.]+)?", path.rpartition("/")[2])
        if found:
            parts.setdefault(found[1], []).append(path)
            majors[path] = found[2]
    cores = parts["libcudnn"]
    if not cores:
        return
    mixed = False
    for part, there in parts.items():
        if not there:
            yield Finding("error", f"libcudnn: {part}", f"{part} is not in the image: {error} at its first use",
                          f"/{_directory(cores[0])}", "take all parts of one cuDNN release")
            continue
        for core in cores:
            place = _directory(core)
            near = [path for path in there if _directory(path) == place]
            given = image.find(f"{part}.so.{majors[core]}", core) if part != "libcudnn" else core
            contents = {path if not image.tree.readable(path) else image.tree.digest(path) for path in near}
            if len(contents) != 1 or (given is not None and _directory(given) != place):
                yield Finding("error", f"libcudnn: {part}", f"{part} is there more than once, or apart from the "
                              f"others: /{core} may get another one than its own of "
                              f"{', '.join(f'/{path}' for path in there)}: {error}", f"/{given or there[0]}",
                              "leave one cuDNN, all of it in one place, and no other in LD_LIBRARY_PATH")
                mixed = True
                break
    places = sorted({_directory(path) for path in majors})
    if len(places) > 1 and not mixed:
        listed = " and ".join(f"/{place}" for place in places)
        yield Finding("warning", "libcudnn", f"cuDNN lies in {listed}: a process that comes to load both gets {error}",
                      f"/{places[0]}", "leave one cuDNN")


def _directory(path: str) -> str:
    return path.rpartition("/")[0]


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
