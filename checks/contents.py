"""Check `contents`: the modules of a package from source hold the device code that its own CMake files ask for.

What is expected was made without a compiler, by the stage `<package>-expected` (docs/formats/expected.md): per module
the number of sources with device code, and how many of them are compiled for what. nvcc puts the code of each source
into a container of its own, so that counting containers by architecture shows a source that was left out, and one that
was compiled for less or for something else. Only headers are read. It says nothing of the kernels in a container.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from cache.layer import LayerReader
from checks.kernels import Headers, headers, is_library
from checks.verdict import CheckInputs, Finding

FORMAT = "stagecraft.expected.v1"

_AGAIN = "build it again; if it stays so, the build does not do what its CMake files say"
_UNTOLD = "give what its sources are out of: a whole tree in the place of the empty one"


def run(inputs: CheckInputs) -> list[Finding]:
    """Subjects: the module below the site directory (`vllm/_C`), `<module>: sm_110a`; the package for the whole."""
    found: list[Finding] = []
    for name, index in inputs.outputs.items():
        stage, _, output = name.partition("/")
        if stage.endswith("-expected") and output == "index":
            found += _package(inputs, stage.removesuffix("-expected"), index)
    return found


def _package(inputs: CheckInputs, package: str, index: str) -> list[Finding]:
    with LayerReader(inputs.store, index) as layer:
        expected = json.loads(layer.read("expected.json"))
    if expected.get("format") != FORMAT or expected["arch_list"] != inputs.facts["arch_list"]:
        return [Finding("error", package, f"what is expected was told for {expected.get('arch_list')}, the target is "
                        f"for {inputs.facts['arch_list']}", "expected.json", "build again")]
    made = inputs.outputs[f"{package}/index"]
    with LayerReader(inputs.store, made) as layer:
        site = inputs.facts["site"] + "/"
        paths = [path for path, entry in layer.entries.items()
                 if entry["type"] == "file" and path.startswith(site) and is_library(path)]
        return list(judge(expected, {path.removeprefix(site): None for path in paths}
                          | {path.removeprefix(site): code for path, code in headers(inputs.store, layer, made).items()
                             if path in paths}))


def judge(expected: Mapping[str, Any], files: Mapping[str, Headers | None]) -> Iterator[Finding]:
    """Hold what was built against what is expected. Pure.

    Args:
        expected: of the format.
        files: libraries below the site directory; None for one without device code.
    """
    free = dict(files)
    for name in (*sorted(expected["modules"]), *sorted(expected["host"])):
        path = _place(name, free)
        wanted = expected["modules"].get(name)
        if path is None:
            units = f": {wanted['units']} sources with device code are compiled for it" if wanted else ""
            yield Finding("error", name, f"missing, and the package's CMake makes it{units}", name, _AGAIN)
        elif wanted is not None:
            yield from compare(name, path, wanted, free.pop(path))
        elif free.pop(path) is not None:
            yield Finding("error", name, "it has device code, and none of its sources has any", path, _AGAIN)
    for name, why in sorted(expected["unknown"].items()):
        path = _place(name, free)
        if path is not None and free.pop(path) is not None:
            yield Finding("warning", name, f"whether it holds what it should is not known: {why}", path, _UNTOLD)
    for path, code in sorted(free.items()):
        if code is not None:
            yield Finding("error", _stem(path), f"{code.count} pieces of device code in a library that the package's "
                          "CMake does not make", path, "remove it: it comes from another build")


def compare(name: str, path: str, wanted: Mapping[str, Any], code: Headers | None) -> Iterator[Finding]:
    """One module. Pure.

    Args:
        wanted: its entry in `modules` of the format.
        code: its device code; None if it has none.
    """
    if code is None or code.damaged:
        yield Finding("error", name, f"expected device code of {wanted['units']} sources, found "
                      f"{'none: it was stripped of it' if code is None else f'what cannot be read: {code.damaged}'}",
                      path, "take out of the build what strips it")
        return
    if code.wrappers != code.count:
        yield Finding("error", name, f"{code.count} pieces of device code, but {code.wrappers} are registered: code "
                      "was cut out, or added, after it was linked", path, _AGAIN)
    if code.count != wanted["units"]:
        yield Finding("error", name, f"expected device code of {wanted['units']} sources, found that of {code.count}",
                      path, _AGAIN)
    asked, there = _counts(wanted), counts(code)
    different = sorted(target for target in {*asked, *there} if asked[target] != there[target])
    for target in different:
        yield Finding("error", f"{name}: {target}", f"expected {asked[target]} of {wanted['units']} sources compiled "
                      f"for {target}, found {there[target]}", path, _AGAIN)
    if not different and code.count == wanted["units"] and _kinds(wanted) != kinds(code):
        yield Finding("error", f"{name}: sources", "as many sources as expected for each architecture, but together "
                      "with others", path, _AGAIN)
    told = ", ".join(f"{target} {number}" for target, number in sorted(there.items()))
    yield Finding("info", name, f"{code.count} sources: {told}", path)


def counts(code: Headers) -> Counter[str]:
    """Target (`sm_110a`, `compute_80`) to the number of containers that have it."""
    found: Counter[str] = Counter()
    for targets, number in kinds(code).items():
        for target in targets:
            found[target] += number
    return found


def kinds(code: Headers) -> Counter[tuple[str, ...]]:
    """What a container is compiled for, without the ISA of PTX, to the number of such containers."""
    found: Counter[tuple[str, ...]] = Counter()
    for targets, number in code.containers:
        found[tuple(sorted(target.partition("@")[0] for target in targets))] += number
    return found


def _counts(wanted: Mapping[str, Any]) -> Counter[str]:
    return Counter({f"{prefix}_{arch}": number for part, prefix in (("sass", "sm"), ("ptx", "compute"))
                    for arch, number in wanted[part].items()})


def _kinds(wanted: Mapping[str, Any]) -> Counter[tuple[str, ...]]:
    return Counter(tuple(sorted(made.split())) for made in wanted["sources"].values())


def _place(name: str, paths: Iterable[str]) -> str | None:
    """The file of a module: of its name, or below a directory that the package's setup.py puts before it."""
    stems = {_stem(path): path for path in paths}
    below = sorted(stem for stem in stems if stem.endswith(f"/{name}"))
    return stems[name] if name in stems else stems[below[0]] if below else None


def _stem(path: str) -> str:
    """A path without what begins at the first dot of the file's name: `vllm/_C` of `vllm/_C.abi3.so`."""
    above, slash, name = path.rpartition("/")
    return f"{above}{slash}{name.partition('.')[0]}"
