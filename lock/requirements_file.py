"""Requirement files as a package's build reads them: what its wheel will require, before there is a wheel. Pure.

The format is pip's, as far as a list of requirements needs it: comments, markers, lines that go on, `-r` of another
file. Options that say where packages come from are left out, since a target has its own indexes; whatever else would
change what is meant (`-e`, addresses, hashes, constraints) is an error.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping

from packaging.requirements import InvalidRequirement, Requirement

from cache.errors import InputError

_COMMENT = re.compile(r"(^|\s+)#.*$")
_INCLUDE = re.compile(r"(?:-r\s*|--requirement(?:\s+|\s*=\s*))(\S.*)")
#: Patches come after `lock`: what a wheel asks for is read before.
_CURE = "take the package from a Git repository of your own, where this file is another"
#: Where packages come from, and in which form.
_INDEXES = re.compile(r"(-i|--index-url|--pypi-url|--extra-index-url|--no-index|-f|--find-links|--trusted-host|"
                      r"--prefer-binary|--no-binary|--only-binary)(?=$|[\s=])")
_REFUSED = (
    (re.compile(r"(-e|--editable)\b"), "an editable requirement"),
    (re.compile(r"(-c|--constraint)\b"), "a file of constraints"),
    (re.compile(r"(^|.*\s)--(hash|require-hashes)\b"), "a hash"),
    (re.compile(r"(^|.*@\s*)([a-z+]+://|file:)|(\.{0,2}/|\.\.?$)"), "an address or a path"),
    (re.compile(r"-|.*\s--?[A-Za-z]"), "an option"),
)


def requirements(texts: Mapping[str, str], path: str) -> list[str]:
    """The requirements of a file and of those that it includes, in their order, each once.

    Args:
        texts: path to content, relative to the package's source: `requirements/cuda.txt`.
        path: of the file to begin with.

    Raises:
        InputError: a file that is not there or includes itself; a line that is no plain requirement. Names the line.
    """
    return list(dict.fromkeys(_read(texts, path, (), "")))


def declared(pyproject: str, where: str) -> list[str] | None:
    """What `[project]` of a pyproject.toml says that the wheel will require; None if it leaves that to the build.

    Raises:
        InputError: it cannot be read, or holds what is no plain requirement.
    """
    from lock.client import parse_toml

    try:
        project = parse_toml(pyproject).get("project")
    except ValueError as error:
        raise InputError("a pyproject.toml that cannot be read", where=where, found=str(error),
                         cure=_CURE) from error
    if not isinstance(project, dict) or "dependencies" in project.get("dynamic", ()):
        return None
    return [_requirement(str(line), f"{where}: project.dependencies") for line in project.get("dependencies", ())]


def _read(texts: Mapping[str, str], path: str, above: tuple[str, ...], where: str) -> Iterator[str]:
    if path in above:
        raise InputError("a requirement file includes itself", where=where, found=" > ".join((*above, path)))
    if path not in texts:
        raise InputError("a requirement file is not there", where=where or path, expected=path,
                         found=", ".join(sorted(texts)) or "no requirement file at all")
    for number, line in _lines(texts[path]):
        here = f"{path}:{number}"
        included = _INCLUDE.fullmatch(line)
        if included is not None:
            other = posixpath.normpath(posixpath.join(posixpath.dirname(path), included[1]))
            yield from _read(texts, other, (*above, path), here)
        elif not _INDEXES.match(line):
            yield _requirement(line, here)


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines without comments, those that go on joined; each with the number of its first line. As pip joins them."""
    begun, started = "", 0
    for number, line in enumerate(text.splitlines(), start=1):
        started = started if begun else number
        if line.endswith("\\") and not line.lstrip().startswith("#"):
            begun += line[:-1]
            continue
        whole, begun = _COMMENT.sub("", begun + (" " + line if line.lstrip().startswith("#") else line)).strip(), ""
        if whole:
            yield started, whole
    if begun.strip():
        yield started, _COMMENT.sub("", begun).strip()


def _requirement(line: str, where: str) -> str:
    for pattern, what in _REFUSED:
        if pattern.match(line):
            raise InputError(f"{what} in a requirement file", where=where, expected="plain requirements: name==1.2",
                             found=line, cure=_CURE)
    try:
        return str(Requirement(line))
    except InvalidRequirement as error:
        raise InputError("a requirement that cannot be read", where=where, expected="a requirement like name==1.2",
                         found=f"{line}: {str(error).splitlines()[0]}",
                         cure=_CURE) from error
