"""Gate `wheel-set`: the wheels satisfy each other's requirements, and no layer hides another layer's file.

Requirements are judged for the target (its machine and Python), never for the host. The interpreter's patch release
counts as 0, as it did when the lock was resolved. Overrides of the target show here as broken pins: they stand in the
target's waivers with their reasons.

A path in two layers with different content (facts F33): the upper layer's file is what the image has, whatever the
lower one's package needs. Within one layer the builder refuses that itself.

Further rules: `checks.wheel_family` (what metadata does not say), `checks.generated_code`, and files at the top of the
site directory that belong into a source archive.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

from packaging.markers import UndefinedComparison, UndefinedEnvironmentName
from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion

from cache.layer import LayerReader
from checks.generated_code import SUFFIX, generated, generator
from checks.packages import packages
from checks.registry import WHEEL_STAGES
from checks.verdict import CheckInputs, Finding
from checks.wheel_family import pairs, prereleases, same_version, variants


def run(inputs: CheckInputs) -> list[Finding]:
    """Findings with subjects as the functions that it calls make them."""
    facts = inputs.facts
    site, wanted = facts["site"], facts["requirements"]
    listed = packages(inputs)
    installed = {package["name"]: package for package in listed}
    errors = {(row["package"], row["needs"]): row["error"] for row in facts["pairs"]}
    stages = [stage for stage in WHEEL_STAGES if f"{stage}/index" in inputs.outputs]
    readers = {stage: LayerReader(inputs.store, inputs.outputs[f"{stage}/index"]) for stage in stages}
    try:
        return [
            *requirements(listed, wanted, environment(facts["machine"], facts["python"]), errors,
                          facts.get("excluded", ())),
            *pairs(installed, facts["pairs"]), *same_version(installed, facts["same_version"]),
            *variants(installed, facts["cuda"]),
            *prereleases(listed, wanted), *hidden_files(readers, site),
            *leaks(readers, site, {row["name"]: row["what"] for row in facts["leaks"]}),
            *_generated(readers, installed, site),
        ]
    finally:
        for reader in readers.values():
            reader.close()


def _generated(readers: Mapping[str, LayerReader], installed: Mapping[str, Mapping[str, Any]],
               site: str) -> list[Finding]:
    if "protobuf" not in installed:
        return []
    modules = {path: made for reader in readers.values() for path, entry in reader.entries.items()
               if path.endswith(SUFFIX) and entry["type"] == "file"
               and (made := generator(reader.read(path))) is not None}
    return generated(modules, installed["protobuf"]["version"], site)


def environment(machine: str, python: str) -> dict[str, str]:
    """PEP 508's variables for CPython `python` ("3.11") on Linux."""
    return {
        "implementation_name": "cpython", "implementation_version": f"{python}.0", "os_name": "posix",
        "platform_machine": machine, "platform_python_implementation": "CPython", "platform_release": "",
        "platform_system": "Linux", "platform_version": "", "python_full_version": f"{python}.0",
        "python_version": python, "sys_platform": "linux", "extra": "",
    }


def requirements(listed: Iterable[Mapping[str, Any]], wanted: Iterable[str], target: Mapping[str, str],
                 errors: Mapping[tuple[str, str], str] | None = None,
                 excluded: Collection[str] = ()) -> list[Finding]:
    """Judge a set of packages (entries of `packages`). Pure.

    Args:
        wanted: requirements of the target itself; their extras count.
        errors: (package, what it requires) to what is seen on the device when that is broken.
        excluded: packages that the target leaves out, though others require them.

    Subjects: `<package>: <requirement>` (`opencv-python-headless: numpy>=2`, canonical names, without extras and
    marker), `<package>: python<specifier>`, `<package>: installed twice`, `target: <requirement>`.
    """
    found: list[Finding] = []
    installed: dict[str, Mapping[str, Any]] = {}
    for package in listed:
        other = installed.setdefault(package["name"], package)
        if other is not package:
            found.append(Finding(
                "error", f"{package['name']}: installed twice",
                f"{other['version']} in layer {other['stage']} and {package['version']} in layer {package['stage']}",
                cure="lock again; a package belongs into one layer"))
    waiting: list[tuple[str, str]] = [(name, "") for name in installed]
    seen = set(waiting)
    for text in wanted:
        found += _require("target", text, "", installed, target, waiting, seen)
    while waiting:
        name, extra = waiting.pop()
        package = installed[name]
        if not extra:
            found += _python(package, target)
        for text in package.get("requires_dist", ()):
            found += _require(name, text, extra, installed, target, waiting, seen)
    left_out = {name for name in excluded if name not in installed}
    return sorted({_with_error(_left_out(finding, left_out), errors or {}) for finding in found},
                  key=lambda finding: finding.subject)


def _left_out(finding: Finding, names: Collection[str]) -> Finding:
    """What the target left out with a reason is told, and blocks nothing."""
    asked = re.fullmatch(r".+: ([\w.-]+?)([^\w.-].*)?", finding.subject)
    if asked and asked[1] in names:
        return replace(finding, severity="info", message=f"{finding.message}: the target leaves it out", cure="")
    return finding


def _with_error(finding: Finding, errors: Mapping[tuple[str, str], str]) -> Finding:
    """The finding with what it leads to, if that is known."""
    for (name, other), error in errors.items():
        if re.fullmatch(rf"{re.escape(name)}: {re.escape(other)}(?![\w-]).*", finding.subject):
            return replace(finding, message=f"{finding.message}; on the device: {error}")
    return finding


def _python(package: Mapping[str, Any], target: Mapping[str, str]) -> list[Finding]:
    needed, name = package.get("requires_python", ""), package["name"]
    try:
        fits = SpecifierSet(needed).contains(target["python_full_version"], prereleases=True)
    except InvalidSpecifier:
        return [Finding("warning", f"{name}: python{needed}", "its Requires-Python cannot be read", cure="none needed")]
    if fits:
        return []
    return [Finding("error", f"{name}: python{needed}", f"needs Python {needed}, the image has "
                    f"{target['python_version']}", cure=f"take a {name} for this Python, or another base")]


def _require(name: str, text: str, extra: str, installed: Mapping[str, Mapping[str, Any]], target: Mapping[str, str],
             waiting: list[tuple[str, str]], seen: set[tuple[str, str]]) -> list[Finding]:
    """Judge one requirement of `name` (with `extra` or without); enter the extras that it asks for in `waiting`."""
    try:
        requirement = Requirement(text)
    except InvalidRequirement as error:
        return [Finding("error", f"{name}: {text}", f"its Requires-Dist cannot be read: {error}")]
    marker = requirement.marker
    try:
        if marker is not None and not marker.evaluate({**target, "extra": extra}):
            return []
        if extra and (marker is None or marker.evaluate({**target, "extra": ""})):
            return []  # judged without the extra
    except (UndefinedEnvironmentName, UndefinedComparison, InvalidVersion, InvalidSpecifier, KeyError) as error:
        return [Finding("error", f"{name}: {text}", f"the marker of its Requires-Dist cannot be judged: {error}",
                        cure="waive it with a reason, once you know whether it holds for the device")]
    other = canonicalize_name(requirement.name)
    subject = f"{name}: {other}{requirement.specifier}"
    for_extra = f" (extra {extra})" if extra else ""
    package = installed.get(other)
    if package is None:
        return [Finding("error", subject, f"{name} requires {text}{for_extra}, and {other} is not there",
                        cure="lock again, or waive it with a reason")]
    for asked in requirement.extras:
        pair = (other, canonicalize_name(asked))
        if pair not in seen:
            seen.add(pair)
            waiting.append(pair)
    if requirement.url is None and not requirement.specifier.contains(package["version"], prereleases=True):
        return [Finding("error", subject, f"{name} requires {text}{for_extra}, the set has {other} "
                        f"{package['version']}", cure="drop the override, or waive it with a reason")]
    return []


# -- files ----------------------------------------------------------------------------------------


def hidden_files(readers: Mapping[str, LayerReader], site: str) -> list[Finding]:
    """Paths that two layers have with different content. Subject: `file: <path below site, else in the image>`.

    Args:
        readers: stage to layer, lowest first.
    """
    owned: dict[str, tuple[str, tuple[str, str]]] = {}
    clashes: list[tuple[str, str, str]] = []
    for stage, reader in readers.items():
        for path, entry in reader.entries.items():
            what = (entry["type"], entry.get("digest") or entry.get("target", ""))
            below = owned.get(path)
            if below is not None and below[1] != what:
                clashes.append((path, below[0], stage))
            owned[path] = (stage, what)
    return [_clash(path, (one, owner(readers[one], path, site)), (two, owner(readers[two], path, site)), site)
            for path, one, two in clashes]


def leaks(readers: Mapping[str, LayerReader], site: str, names: Mapping[str, str]) -> list[Finding]:
    """What wheels leave at the top of the site directory that no import means. Subject: `leak: <name>`.

    A warning: it breaks nothing until two of one name meet, which `hidden_files` and the builder find. A name that a
    `<name>.dist-info` claims is a project's own.
    """
    found = []
    for stage, reader in readers.items():
        for name in sorted(names):
            entry = reader.get(f"{site}/{name}")
            if entry is None:
                continue
            inside = entry["path"] if entry["type"] != "directory" else next(
                (path for path, below in reader.entries.items()
                 if path.startswith(f"{site}/{name}/") and below["type"] == "file"), entry["path"])
            whose = owner(reader, inside, site)
            if whose.partition(" ")[0].lower().replace("-", "_") != name.removesuffix(".py"):
                found.append(Finding(
                    "info", f"leak: {name}", f"{whose} in layer {stage} leaves {names[name]} in the directory that "
                    "all packages share", f"/{site}/{name}", "tell its project"))
    return found


def _clash(path: str, below: tuple[str, str], above: tuple[str, str], site: str) -> Finding:
    return Finding(
        "error", f"file: {path.removeprefix(f'{site}/')}",
        f"{above[1]} in layer {above[0]} hides the different file of {below[1]} in layer {below[0]}", f"/{path}",
        "drop one of the packages, put both into one layer and name the winner, or waive it with a reason")


def owner(layer: LayerReader, path: str, site: str) -> str:
    """The distribution of that layer whose RECORD lists `path`, as `name version`; "a package" if none does."""
    import posixpath

    for record in layer.entries:
        if not record.endswith(".dist-info/RECORD") or record.count("/") != site.count("/") + 2:
            continue
        for row in csv.reader(layer.read(record).decode("utf-8", "replace").splitlines()):
            if row and posixpath.normpath(f"{site}/{row[0]}") == path:
                name, _, version = record.split("/")[-2].removesuffix(".dist-info").partition("-")
                return f"{name} {version}"
    return "a package"
