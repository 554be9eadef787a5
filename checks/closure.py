"""Check `closure`: every library that a file of the image asks for is there, found, and new enough.

A model of the dynamic loader answers each NEEDED (checks/loader.py). What the driver brings is data
(`checks/data/libraries.yaml`), as are files that need not load and libraries that are opened by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase

from checks.facts import release
from checks.libraries import Libraries, opened
from checks.verdict import CheckInputs, Finding


def run(inputs: CheckInputs) -> list[Finding]:
    """Subjects: `<file>: <soname>`, `<file>: <version>`, `<file>: damaged`, `<file>: machine`, `dlopen: <soname>`,
    `stub: <file>`, `search path: <directory>`, `feature: <name>`, `glibc: host`."""
    with opened(inputs) as libraries:
        return [*_damaged(libraries), *_foreign(libraries), *_needed(libraries), *_versions(libraries),
                *_by_name(libraries, inputs), *_stubs(libraries), *_host(libraries)]


def _damaged(libraries: Libraries) -> Iterator[Finding]:
    for path, why in libraries.image.damaged.items():
        yield Finding("error", f"{libraries.subject(path)}: damaged", f"a damaged ELF file: {why}", f"/{path}",
                      "take another build of its package")


def _foreign(libraries: Libraries) -> Iterator[Finding]:
    """Shared libraries for another machine: Python's loader fails on them, ld.so passes over them."""
    for path, lib in libraries.image.libraries.items():
        elf = lib.elf
        if elf.machine in (libraries.image.machine, "cuda") or elf.kind != "shared" or ".so" not in path \
                or libraries.optional(path) is not None:
            continue
        if any(found.elf.soname == elf.soname and found.elf.machine == libraries.image.machine and elf.soname
               for found in libraries.image.libraries.values()):
            severity, more = "info", "; one for this machine is there too"
        else:
            severity, more = "error", ""
        yield Finding(severity, f"{libraries.subject(path)}: machine",
                      f"compiled for {elf.machine}, the target is {libraries.image.machine}: cannot open shared object "
                      f"file{more}", f"/{path}", "take the wheel for this machine")


def _needed(libraries: Libraries) -> Iterator[Finding]:
    """Every NEEDED has a provider."""
    image = libraries.image
    optional: dict[str, list[str]] = {}
    broken: set[str] = set()
    for path in libraries.own:
        for name in dict.fromkeys(image.libraries[path].elf.needed):
            if image.find(name, path) is not None or libraries.driver(name):
                continue
            if path.startswith(f"{libraries.site}/") and name in libraries.loaded:
                continue
            if any((name, path) not in libraries.scope(root).absent for root in libraries.company.get(path, ())):
                continue  # those that load it have it, or an RPATH that leads to it
            row = libraries.optional(path)
            elsewhere = image.by_name.get(name)
            if row is not None:
                optional.setdefault(row["files"], []).append(name)
                broken.add(path)
            elif elsewhere and path not in libraries.required:
                yield Finding("info", f"{libraries.subject(path)}: {name}",
                              f"{name} is off the search path: the file loads only where /{elsewhere[0]} is loaded "
                              "already", f"/{path}")
            else:
                found = f" (it lies in /{elsewhere[0]}, off the search path)" if elsewhere else ""
                yield Finding("error", f"{libraries.subject(path)}: {name}",
                              f"cannot open shared object file: nothing in the image answers {name}{found}",
                              f"/{path}", "add the package that has it, take a build that does not need it, or, if the "
                                          "driver brings it, name it in device.driver_libraries")
    for row in libraries.facts["optional"]:
        if row["files"] in optional:
            names = ", ".join(sorted(set(optional[row["files"]])))
            yield Finding("info", f"optional: {row['files'].removeprefix(libraries.site + '/')}",
                          f"some do not load here, for want of {names}: {row['why']}")
        yield from _feature(libraries, row, broken)


def _feature(libraries: Libraries, row: dict[str, str], broken: set[str]) -> Iterator[Finding]:
    variants = [path for path in libraries.own if row.get("any") and fnmatchcase(path, row["any"])]
    if variants and broken.issuperset(variants):
        yield Finding("warning", f"feature: {row['feature']}", "none of its variants loads in this image: it is not "
                      "available", f"/{variants[0]}", "add what one of them needs to the packages of the target")


def _versions(libraries: Libraries) -> Iterator[Finding]:
    """Every version that a file asks of a library is defined there: `version GLIBC_2.38 not found`."""
    image = libraries.image
    for path in libraries.own:
        asked = image.libraries[path].needed_versions
        if not asked:
            continue
        scope: dict[str, str] = {}
        for file in libraries.scope(path).files:
            scope.setdefault(image.libraries[file].elf.soname or file.rpartition("/")[2], file)
        for name, versions in asked.items():
            provider = scope.get(name)
            if provider is None:
                continue  # told as missing
            lacking = [version for version in versions if version not in image.libraries[provider].defined_versions]
            if lacking and image.libraries[provider].defined_versions and libraries.optional(path) is None:
                yield Finding("error", f"{libraries.subject(path)}: {lacking[0]}",
                              f"/{provider}: version `{lacking[0]}' not found"
                              + (f" (nor {len(lacking) - 1} more)" if len(lacking) > 1 else ""), f"/{path}",
                              "it was built on a newer system: take an older build of it, or a newer base")


def _by_name(libraries: Libraries, inputs: CheckInputs) -> Iterator[Finding]:
    """Libraries that are opened by name are where the loader looks."""
    from checks.packages import packages

    there = {package["name"] for package in packages(inputs)}
    image = libraries.image
    for row in libraries.facts["dlopen"]:
        if row["package"] not in there or row["name"] in libraries.loaded:
            continue
        places = (*image.library_path, *image.search_path)
        if not any(image.tree.file(f"{place}/{row['name']}") for place in places):
            yield Finding("error", f"dlopen: {row['name']}", f"{row['package']} opens {row['name']} at run time and "
                          f"dies without it: {row['error']}", cure=row["cure"])


def _stubs(libraries: Libraries) -> Iterator[Finding]:
    """No stub of the driver where the loader finds it before the real one: `CUDA driver is a stub library`."""
    image = libraries.image
    stubs: dict[str, str] = {}
    for place in (*image.library_path, *image.search_path):
        if place.split("/")[-1] == "stubs":
            yield Finding("error", f"search path: {place}", "a directory of link-time stubs is on the loader's search "
                          "path: error 34, CUDA driver is a stub library", f"/{place}",
                          "stubs belong in LIBRARY_PATH, never in LD_LIBRARY_PATH or /etc/ld.so.conf")
            continue
        for row in libraries.facts["driver"]:
            path = image.tree.resolve(f"{place}/{row['name']}")
            if path is not None:
                stubs[path] = row["name"]
    for path, name in stubs.items():
        error = "error 804, forward compatibility was attempted on non supported HW, on all but data-centre boards" \
            if "compat" in path.split("/") else "error 34, CUDA driver is a stub library"
        yield Finding("error", f"stub: /{path}", f"the image brings {name} itself, which hides the device's: {error}",
                      f"/{path}", "leave it out, or its directory out of LD_LIBRARY_PATH and /etc/ld.so.conf: the "
                                  "container runtime puts the device's own in its place")
    for path in libraries.own:
        name = path.rpartition("/")[2]
        if name.startswith("libcuda-") and ".so" in name:
            yield Finding("warning", f"stub: {libraries.subject(path)}", "a private copy of the driver's library, "
                          "renamed by hash: what links it never talks to the device", f"/{path}")


def _host(libraries: Libraries) -> Iterator[Finding]:
    """The device's driver libraries are put into the container: they run on the image's glibc."""
    image, host = libraries.facts["glibc"], libraries.facts["host_glibc"]
    if host and image and release(image) < release(host):
        yield Finding("error", "glibc: host", f"the image has glibc {image}, the device {host}: the driver's libraries "
                      "are put into the container from there and may ask for more",
                      cure="take a base with a glibc as new as the device's, or waive it with what they really need")
