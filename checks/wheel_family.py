"""Rules of `wheel-set` between wheels that no `Requires-Dist` states: pairs, wheels of one release, pre-releases. Pure.

Which wheels is data: `checks/data/wheel-sets.yaml`. Entries are those of the `packages` outputs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from checks.verdict import Finding

Package = Mapping[str, Any]


def pairs(installed: Mapping[str, Package], rows: Iterable[Mapping[str, str]]) -> list[Finding]:
    """What is wrong between two wheels of which one was compiled against the other.

    A broken pin is `requirements`' business. Here: no pin at all, and builds of two variants (`+cpu` beside `+cu130`).
    Subject: `<package>: <needed>`.
    """
    found = []
    for row in rows:
        one, other = installed.get(row["package"]), installed.get(row["needs"])
        if one is None or other is None:
            continue
        subject = f"{row['package']}: {row['needs']}"
        if not _pins(one, row["needs"]):
            found.append(Finding(
                "warning", subject, f"{row['package']} {one['version']} does not say which {row['needs']} it was "
                f"compiled against; with another one: {row['error']}", one.get("file", ""),
                f"take a {row['package']} whose metadata pins {row['needs']}"))
        own = _version(other)
        if own and own.local and own.is_prerelease and (mine := _version(one)) and not mine.local:
            # NVIDIA's 2.7.0a0+79aa17489c.nv25.4 is a state between releases, against which no release was compiled.
            found.append(Finding(
                "error", subject, f"{row['package']} {one['version']} was compiled against a release, and "
                f"{row['needs']} {other['version']} is a build between releases; on the device: {row['error']}",
                one.get("file", ""), f"take {row['package']} and {row['needs']} from one index, or compile "
                f"{row['package']} for this {row['needs']}"))
        local = [version.local for package in (one, other) if (version := _version(package)) and version.local]
        if len(set(local)) == 2:
            found.append(Finding(
                "error", subject, f"{row['package']} {one['version']} beside {row['needs']} {other['version']}: two "
                f"builds; on the device: {row['variant']}", one.get("file", ""),
                "take both from one index"))
    return found


def same_version(installed: Mapping[str, Package], rows: Iterable[Mapping[str, Any]]) -> list[Finding]:
    """Wheels that are parts of one release and are of two. Subject: `<package>: version`."""
    found = []
    for row in rows:
        there = [installed[name] for name in row["packages"] if name in installed]
        for package in there[1:]:
            if _public(package) != _public(there[0]):
                found.append(Finding(
                    "error", f"{package['name']}: version", f"{package['name']} {package['version']} beside "
                    f"{there[0]['name']} {there[0]['version']}; on the device: {row['error']}", package.get("file", ""),
                    "take all of one release, or leave the optional ones out; do not disable the version check"))
    return found


def variants(installed: Iterable[str], cuda: str) -> list[Finding]:
    """Packages that are there for other CUDA majors only: `x-cu12` without `x-cu13`.

    Subject: `<package>: CUDA <major>`.

    A warning: what needs their libraries is judged by `closure`. vLLM 0.19 and 0.20 came so, with nothing of
    nvidia-cutlass-dsl for CUDA 13 (facts 2.4b).

    Args:
        cuda: major of the target's CUDA; empty without one.
    """
    majors: dict[str, set[str]] = {}
    for name in installed:
        stem, _, major = name.rpartition("-cu")
        if stem and re.fullmatch(r"\d\d", major):
            majors.setdefault(stem, set()).add(major)
    return [Finding("warning", f"{stem}: CUDA {cuda}", f"of {stem} there is only CUDA {', '.join(sorted(there))}, the "
                    f"target has {cuda}", cure=f"ask for {stem}-cu{cuda} in wheels.requirements")
            for stem, there in sorted(majors.items()) if cuda and cuda not in there]


def prereleases(listed: Sequence[Package], wanted: Iterable[str]) -> list[Finding]:
    """Versions before their release that nobody asked for. Subject: `<package>: pre-release <version>`.

    A requirement that names a pre-release (`==0.66b2`, `>=2.0rc1`) asks for one, as in PEP 440: a project whose
    releases are all betas is pinned so by those who need it. What a resolver took because pre-releases were allowed
    everywhere is no one's wish: cuda-tile 1.6.0rc3 came so, and lacked a package that its release does not need.
    """
    asked = {name for texts in ([*wanted], *(package.get("requires_dist", ()) for package in listed))
             for text in texts if (name := _asks_for_prerelease(text))}
    return [Finding("error", f"{package['name']}: pre-release {package['version']}",
                    f"{package['version']} is no release, and nothing in the set asks for one", package.get("file", ""),
                    f"pin a release of {package['name']} (wheels.overrides), or waive it with a reason")
            for package in listed
            if package["name"] not in asked and (version := _version(package)) is not None and version.is_prerelease]


def _asks_for_prerelease(text: str) -> str:
    try:
        requirement = Requirement(text)
    except InvalidRequirement:
        return ""
    return canonicalize_name(requirement.name) if requirement.specifier.prereleases else ""


def _pins(package: Package, name: str) -> bool:
    for text in package.get("requires_dist", ()):
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        if canonicalize_name(requirement.name) == name and any(
                part.operator in ("==", "===") for part in requirement.specifier):
            return True
    return False


def _version(package: Package) -> Version | None:
    try:
        return Version(package["version"])
    except InvalidVersion:
        return None


def _public(package: Package) -> str:
    version = _version(package)
    return version.public if version else str(package["version"])
