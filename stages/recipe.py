"""Recipes: how one project is compiled, as data. Format `stagecraft.recipe.v1`, documented in docs/vllm-from-source.md.

A recipe names what a compile reads, the script that runs it, its tools, stubs and patches. It says nothing of a device
or a release: rows of stubs, patches and lines are chosen by the target's architecture list and the version.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache.errors import InputError
from checks import tables
from stages.schema import Boolean, Document, Fields, ListOf, MapOf, Text, read

FORMAT = "stagecraft.recipe.v1"

_PATH = Text(r"(?!/)(?!(.*/)?\.\.?(/|$))[\w./+-]+", "a path below the project")
_GLOB = Text(r"(?!/)[\w./*?\[\]+-]+", "a pattern of paths")
_REASON = Text(r"\S.{9,}", "a reason of at least ten characters")
_PLATFORM = r"linux/(amd64|arm64)"
_VARIABLE = re.compile(r"\$\{(\w+)\}")
_PACKAGE = Text(r"[a-z0-9][a-z0-9.+-]+", "the name of a Debian package")
_REQUIREMENT = Text(r"[A-Za-z0-9][\w.-]*(\[[\w,.-]+\])?\s*((==|>=|<=|<|>|~=|!=).+)?",
                    "a requirement like cmake>=3.26")
_REPOSITORY = Text(r"(https?|git|ssh|file)://(?![^/\s]*:[^/\s]*@)\S+",
                   "the address of a Git repository, without a password")
_DEVELOPMENT = Text(r"[a-z0-9][a-z0-9.+-]*(\{python\})?[a-z0-9.+-]*", "the name of a Debian package; {python} is 3.11")
_SPECIFIER = Text(r"(==|>=|<=|<|>|~=|!=).+", "versions like ==0.32.*")

SCHEMA = Fields(
    {
        "format": Text(choices=(FORMAT,)),
        "csrc": ListOf(_GLOB),
        "python": ListOf(_GLOB),
        "without": ListOf(_GLOB),
        "replaces": ListOf(_GLOB),
        "variables": MapOf(Text(), r"\w+"),
        "requirements": ListOf(_PATH),
        "pins": Fields({"keep_back": ListOf(Text(r"\w+", "a variable")),
                        "below": MapOf(_PATH, r"[\w.-]+")}, defaults={"keep_back": [], "below": {}}),
        "script": _PATH,
        "into": _PATH,
        "copy": _PATH,
        "repository": _REPOSITORY,
        "releases": Fields({"table": _PATH, "revision": Text(r"\w+", "a repository of the table"),
                            "variables": MapOf(Text(r"\w+", "a repository of the table"), r"\w+")},
                           required=("table", "revision"), defaults={"variables": {}}),
        "trees": ListOf(Fields({"name": Text(r"[\w.-]+", "the name of a source"), "versions": _SPECIFIER,
                                "repository": _REPOSITORY,
                                "tag": Text(r"(\$\{\w+\}|[\w./+-]+)", "a tag, or ${VARIABLE}"), "clone": Boolean()},
                               required=("name", "repository", "tag"), defaults={"clone": False})),
        "archives": ListOf(Fields({"name": Text(r"[a-z0-9][a-z0-9.+-]*", "a lower-case name"), "versions": _SPECIFIER,
                                   "version": Text(r"\d[\w.]*", "a version"),
                                   "url": Text(r"https?://(?![^/\s]*@)[^\s?#]+/[\w.+-]+",
                                               "the address of a file, without user, password or query"),
                                   "sha256": Text(r"[0-9a-f]{64}", "64 hexadecimal digits")},
                                  required=("name", "version", "url", "sha256"))),
        "files": ListOf(_PATH),
        "expected": _PATH,
        "environment": MapOf(Text(), r"[A-Za-z_]\w*"),
        "tools": Fields({
            "compilers": MapOf(MapOf(ListOf(_PACKAGE), _PLATFORM), _PLATFORM),
            "development": ListOf(_DEVELOPMENT),
            "toolkit": ListOf(_REQUIREMENT),
            "requires": ListOf(_REQUIREMENT),
        }, required=("compilers", "requires"), defaults={"toolkit": []}),
        "stubs": ListOf(Fields({"sources": ListOf(Text(r"[\w.-]+", "the name of a source")),
                                "archs": ListOf(Text(r"\d+\.\d[af]?", "an architecture like 11.0a")),
                                "versions": _SPECIFIER, "reason": _REASON},
                               required=("sources", "archs", "reason"))),
        "patches": ListOf(Fields({"file": _PATH, "versions": _SPECIFIER, "reason": _REASON},
                                 required=("file", "versions", "reason"))),
        "refuse": ListOf(Fields({"pattern": Text(), "allow": MapOf(ListOf(Text()), r"\d+\.\d[af]?|none|any"),
                                 "reason": _REASON}, required=("pattern", "reason"), defaults={"allow": {}})),
    },
    required=("format", "csrc"),
    defaults={"python": [], "without": [], "replaces": [], "variables": {}, "requirements": [], "files": [],
              "pins": {"keep_back": [], "below": {}}, "environment": {}, "stubs": [], "patches": [], "refuse": [],
              "trees": [], "archives": []},
)


@dataclass(frozen=True)
class Recipe:
    """A recipe that was checked: `path` relative to the project, `data` with all defaults filled in.

    `releases`: `version`, `revision` and `variables` of each that is known, the newest first.
    """

    path: str
    data: Mapping[str, Any]
    releases: tuple[Mapping[str, Any], ...] = ()

    def stubs(self, version: str, arch_list: str) -> dict[str, str]:
        """Sources that this version needs no code of on any of these architectures, with the reason."""
        wanted = set(arch_list.split())
        return {name: row["reason"] for row in self.data["stubs"] if wanted <= set(row["archs"])
                and _fits(version, row.get("versions")) for name in row["sources"]}

    def patches(self, version: str) -> list[str]:
        """The files of the patches that this version needs, in their order."""
        return [row["file"] for row in self.data["patches"] if _fits(version, row["versions"])]

    def refuse(self, arch_list: str) -> list[dict[str, Any]]:
        """Lines that end a build for these architectures; what each of them allows is allowed."""
        found = []
        for row in self.data["refuse"]:
            allowed = [set(row["allow"].get(arch, ())) for arch in arch_list.split()]
            common = set.intersection(*allowed) if allowed else set()
            found.append({"pattern": row["pattern"], "reason": row["reason"],
                          "allow": sorted(common | set(row["allow"].get("any", ())))})
        return found

    def compilers(self, execution: str, platform: str) -> list[str]:
        """Packages of the execution platform that compile for `platform`. Raises InputError: there are none."""
        found: list[str] = self.data["tools"]["compilers"].get(execution, {}).get(platform, [])
        if not found:
            raise InputError(f"nothing compiles for {platform} on {execution}", where=f"{self.path}: tools.compilers",
                             found=", ".join(self.data["tools"]["compilers"]) or "no compilers",
                             cure="add the compilers of that platform to the recipe, or set sources.execution")
        return found

    def release(self, version: str) -> Mapping[str, Any]:
        """The row of a version, {} for one that is not known; of the newest for ""."""
        return next((row for row in self.releases if version in ("", row["version"])), {})

    def variables(self, version: str) -> dict[str, str]:
        """What CMake is told of this version when it configures."""
        return {**self.data["variables"], **self.release(version).get("variables", {})}

    def archives(self, version: str) -> list[Mapping[str, Any]]:
        """The files beside Git trees that this version reads."""
        return [row for row in self.data["archives"] if _fits(version, row.get("versions"))]

    def trees(self, version: str) -> list[Mapping[str, Any]]:
        """Git trees that no CMake file of the project itself names; variables of the release put in."""
        variables = self.variables(version)
        return [{**row, "tag": _VARIABLE.sub(lambda found: variables.get(found[1], found[0]), row["tag"])}
                for row in self.data["trees"] if _fits(version, row.get("versions"))]

    def asks(self, version: str) -> dict[str, Any]:
        """What of it a lock answers; the rest concerns only the build."""
        found = {key: self.data[key] for key in ("requirements", "tools")} | {"variables": self.variables(version)}
        archives = [{key: row[key] for key in ("name", "url", "sha256")} for row in self.archives(version)]
        trees = [{key: row[key] for key in ("name", "repository", "tag")} for row in self.trees(version)]
        return {**found, **({"archives": archives} if archives else {}), **({"trees": trees} if trees else {})}


def load(root: Path, path: str) -> Recipe:
    """Read a recipe.

    Raises:
        InputError: not there, or anything wrong in it, with file and line.
    """
    document = read(root / path, path)
    data = SCHEMA.check(document.data, document, ())
    for number, row in enumerate(data["refuse"]):
        _pattern(row["pattern"], document, ("refuse", str(number), "pattern"))
    for part in ("stubs", "patches", "trees", "archives"):
        for number, row in enumerate(data[part]):
            _specifier(row.get("versions", ""), document, (part, str(number), "versions"))
    if "copy" in data:
        data |= {"script": "", "tools": {"compilers": {}, "toolkit": [], "requires": []}}
    for key in ("script", "tools"):
        if key not in data:
            raise InputError(f"the recipe lacks {key!r}", where=document.place(()),
                             cure=f"add {key}, or copy, for files of which nothing is compiled")
    names = [Path(file).name for file in (data["script"], *data["files"])]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"two files {twice}, and the script finds them by that name", where=document.place(("files",)),
                         cure="give one of them another name")
    return Recipe(path, data, tuple(_releases(root, data["releases"])) if "releases" in data else ())


def _releases(root: Path, wanted: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The rows of a table of releases (docs/formats/triton-releases.md) that have every revision that is wanted."""
    from yaml import YAMLError

    try:
        rows = tables.read(root / wanted["table"])["releases"]
    except (OSError, YAMLError, ValueError, KeyError, TypeError) as error:
        raise InputError("the table of releases cannot be read", where=wanted["table"], found=str(error),
                         cure="restore it from version control") from error
    for row in rows:
        known = row.get("revisions", {})
        if {wanted["revision"], *wanted["variables"].values()} <= known.keys():
            yield {"version": row["container"], "revision": known[wanted["revision"]],
                   "variables": {name: known[part] for name, part in wanted["variables"].items()}}


def json_schema() -> dict[str, Any]:
    """docs/formats/recipe.schema.json."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": FORMAT, **SCHEMA.json_schema()}


def _pattern(text: str, document: Document, at: tuple[str, ...]) -> None:
    try:
        re.compile(text)
    except re.error as error:
        raise InputError("not a regular expression", where=document.place(at), found=f"{text}: {error}") from error


def _specifier(text: str, document: Document, at: tuple[str, ...]) -> None:
    from packaging.specifiers import InvalidSpecifier, SpecifierSet

    try:
        SpecifierSet(text)
    except InvalidSpecifier as error:
        raise InputError("these are no versions", where=document.place(at), expected="versions like >=0.32.0,<0.34",
                         found=text) from error


def _fits(version: str, specifier: str | None) -> bool:
    if specifier is None:
        return True
    from packaging.specifiers import SpecifierSet

    return SpecifierSet(specifier).contains(version, prereleases=True)
