"""Why a request for wheels has no answer, in words that name the index, the package and what there is of it.

uv says that there is none, and why in terms of its own; this reads the index's pages again and judges them by the same
rules, so that the message can say what a person would look for. Judging is pure.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping, Sequence

from packaging.requirements import Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.tags import Tag
from packaging.utils import canonicalize_name
from packaging.version import Version

from cache.errors import LockError
from lock.simple import IndexFile, Pages
from lock.tags import machines, numbers, pythons, rank, supported, version_of
from lock.uv import Question


def explain(question: Question, pages: Pages, text: str) -> LockError:
    """The error for a question to which uv answered `text`.

    Raises:
        FetchError: an index cannot be read at all.
    """
    ranks = supported(question.python, question.machine, question.glibc)
    for name, specifier in asked(question, text):
        index = question.index_of.get(name, "default")
        reason = judge(name, specifier, index, pages.files(index, name), question, ranks)
        if reason:
            message, there, cure = reason
            base = f"CPython {question.python}, {question.machine}, glibc {question.glibc}"
            return LockError(message, where=f"index {index}", expected=f"{name}{specifier} for {base}",
                             found=f"{there}\nuv: {text}", cure=cure)
    return LockError("no set of wheels satisfies the request", expected=", ".join(question.requirements),
                     found=f"uv: {text}", cure="loosen a requirement, or add an override with its reason to the target")


def asked(question: Question, text: str) -> list[tuple[str, SpecifierSet]]:
    """Packages worth looking at and what is asked of them: first those of the request, then those in uv's text."""
    found: dict[str, SpecifierSet] = {}
    overrides = [Requirement(line) for line in question.overrides]
    others = [Requirement(line) for line in (*question.requirements, *question.constraints)]
    overridden = {canonicalize_name(need.name) for need in overrides}
    for need in (*overrides, *(need for need in others if canonicalize_name(need.name) not in overridden)):
        name = str(canonicalize_name(need.name))
        found[name] = found.get(name, SpecifierSet()) & need.specifier
    for name in question.index_of:
        found.setdefault(name, SpecifierSet())
    named: dict[str, SpecifierSet] = {}
    for word, bound in re.findall(r"\b([A-Za-z0-9][A-Za-z0-9._-]*)((?:[<>=!~]=?=?[0-9][\w.*+!]*,?)+)", text):
        with contextlib.suppress(InvalidSpecifier):
            named.setdefault(canonicalize_name(word), SpecifierSet(bound.rstrip(",.")))
    for word in re.findall(r"([A-Za-z0-9][A-Za-z0-9._-]*) was not found", text):
        named.setdefault(canonicalize_name(word), SpecifierSet())
    return [*found.items(), *((name, bound) for name, bound in named.items() if name not in found)]


def judge(name: str, specifier: SpecifierSet, index: str, files: Sequence[IndexFile], question: Question,
          ranks: Mapping[Tag, int]) -> tuple[str, str, str] | None:
    """What is wrong with what an index offers of a package: (message, what there is, cure); None: nothing.

    `message` is of the form "index jetson has torch only for cp312, this base is 3.11".
    """
    wheels: dict[str, Version] = {}
    for item in files:
        version = version_of(item.file)
        if version is not None and item.yanked is None:
            wheels[item.file] = version
    if not wheels:
        if files:
            return (f"index {index} has {name} only as source", _some(item.file for item in files),
                    f"name an index that has wheels of it, or compile it: a recipe under sources.packages.{name} of "
                    "the target (docs/vllm-from-source.md)")
        return (f"index {index} has no {name}", "no file", f"name another index for {name} in the target")
    wanted = {file: version for file, version in wheels.items() if specifier.contains(version, prereleases=True)}
    fitting = {file: version for file, version in wheels.items() if rank(file, ranks) is not None}
    if not wanted:
        known = sorted(set(fitting.values() or wheels.values()), reverse=True)
        also = "" if fitting else f", and only for {_for(list(wheels), question)}"
        return (f"index {index} has {name} {_some(map(str, known))}, not {specifier}{also}", _some(sorted(wheels)),
                f"ask for a version of {name} that it has, or name another index in the target")
    if set(wanted) & set(fitting):
        return None
    versions = sorted(set(wanted.values()), reverse=True)
    shown = f"{name} {_some(map(str, versions))}" if fitting else name
    return (f"index {index} has {shown} only for {_for(list(wanted), question)}", _some(sorted(wanted)),
            f"name an index for {name} that has it for this base, or choose a base that it is made for")


def _for(files: list[str], question: Question) -> str:
    """What wheels that do not fit are for, compared with the base: interpreter first, then machine, then glibc."""
    name = "cp" + question.python.replace(".", "")
    version, minor = numbers(question.python, "python"), numbers(question.glibc, "glibc")[1]
    right = {file for file in files if rank(file, _any_platform(files, version, name)) is not None}
    if not right:
        return f"{', '.join(pythons(files))}, this base is {question.python}"
    mine = {file for file in right if any(platform.endswith(question.machine) for platform in machines([file]))}
    if not mine:
        return f"{_some(machines(right))}, this base is {question.machine}"
    floors = [int(found[1]) for platform in machines(mine) if (found := re.match(r"manylinux_2_(\d+)_", platform))]
    if floors and min(floors) > minor:
        return f"glibc 2.{min(floors)} and newer, this base has {question.glibc}"
    return f"{_some(machines(mine))}, this base is {question.machine} with glibc {question.glibc}"


def _any_platform(files: list[str], version: tuple[int, int], name: str) -> dict[Tag, int]:
    """Every tag of that interpreter on all the platforms that occur."""
    from packaging import tags

    known = machines(files)
    ordered = [*tags.cpython_tags(version, [name], known), *tags.compatible_tags(version, name, known)]
    return {tag: number for number, tag in enumerate(ordered)}


def _some(words: Iterable[str]) -> str:
    listed = list(words)
    return ", ".join(listed[:8]) + (f" and {len(listed) - 8} more" if len(listed) > 8 else "")
