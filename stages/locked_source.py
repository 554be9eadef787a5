"""The section `sources` of a lock: packages that are compiled, and everything that their compile reads.

An entry: `name`, `version`; `source` (an sdist by file, or a Git revision by the digest of its files); `trees`, what
its CMake would fetch; `stubs`, pinned sources that an empty tree stands for; `requirements`, what the finished wheel
asks for; `tools`: `suites` and `debs` of the compilers, wheels of CUDA's toolkit for the machine that compiles
(`toolkit`) and the build requirements (`requires`). Where there are any: `archives`, files by address and hash that the
compile reads too, and among the tools `development`, headers and libraries for the target's machine. Documented in
docs/formats/lock.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lock.source_lock import LockedTree
from stages import lockfile
from stages.lockfile import LockedFile, files_of, keys_of, lines_of, list_of, size_of, suites_of, text_of

_KEYS = ("name", "version", "source", "trees", "stubs", "requirements", "tools")
_TREE = ("name", "kind", "repository", "pinned", "revision", "tree", "size", "variable", "submodules")
_SOURCE = {"sdist": ("kind", "file", "size", "sha256", "index"),
           "git": ("kind", "repository", "pinned", "revision", "tree", "size", "submodules")}
_NAME = re.compile(r"(?!\.\.?$)[\w.-]+")  # a directory's, too
_REVISION = re.compile(r"[0-9a-f]{40}")
#: Lists of wheels among the tools.
WHEELS = ("toolkit", "requires")


@dataclass(frozen=True)
class Tools:
    """What compiles: `debs` and `toolkit` of the execution platform, `requires` of the target's machine.

    `development`: Debian packages of the target's machine, with which it is compiled.
    """

    suites: tuple[Mapping[str, str], ...] = ()
    debs: tuple[LockedFile, ...] = ()
    toolkit: tuple[LockedFile, ...] = ()
    requires: tuple[LockedFile, ...] = ()
    development: tuple[LockedFile, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {"suites": [dict(suite) for suite in self.suites],
                **{key: [file.to_json() for file in getattr(self, key)] for key in ("debs", *WHEELS)},
                **({"development": [file.to_json() for file in self.development]} if self.development else {})}

    def files(self) -> tuple[LockedFile, ...]:
        """All of them."""
        return (*self.debs, *self.toolkit, *self.requires, *self.development)


@dataclass(frozen=True)
class SourcePackage:
    """One package from source; see the module text."""

    name: str
    version: str
    source: Mapping[str, Any]
    trees: tuple[LockedTree, ...] = ()
    stubs: Mapping[str, str] = field(default_factory=dict)
    requirements: tuple[str, ...] = ()
    tools: Tools = field(default_factory=Tools)
    archives: tuple[LockedFile, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "version": self.version, "source": dict(self.source),
                "trees": [tree.to_json() for tree in self.trees], "stubs": dict(sorted(self.stubs.items())),
                **({"archives": [file.to_json() for file in self.archives]} if self.archives else {}),
                "requirements": list(self.requirements), "tools": self.tools.to_json()}

    def all_trees(self) -> tuple[LockedTree, ...]:
        """Its Git trees, its own among them."""
        own = () if self.source["kind"] == "sdist" else (_tree({
            **{key: self.source[key] for key in _SOURCE["git"] if key != "kind"}, "name": self.name, "variable": ""}),)
        return (*own, *self.trees)


def dumps(packages: tuple[SourcePackage, ...], indent: int) -> str:
    """The section's text: one locked thing a line."""
    import json

    inner, deep = " " * (indent + 2), " " * (indent + 4)
    found = []
    for package in packages:
        data = package.to_json()
        tools = data.pop("tools")
        lists = ("trees", "archives", "requirements")
        lines = [f'{deep}"{key}": ' + (lines_of(data[key], indent + 4) if key in lists else
                                       json.dumps(data[key], ensure_ascii=False)) + "," for key in data]
        listed = [f'{deep}  "{key}": {lines_of(tools[key], indent + 6)}' for key in tools]
        found.append("\n".join([f"{inner}{{", *lines, f'{deep}"tools": {{', ",\n".join(listed), f"{deep}}}",
                                f"{inner}}}"]))
    return "[\n" + ",\n".join(found) + "\n" + " " * indent + "]"


def parse(value: Any) -> tuple[SourcePackage, ...]:
    """The section as data. Raises what `stages.lockfile.parse` turns into a LockError."""
    found = []
    for entry, at in list_of(value, "sources"):
        keys_of(entry, at, _KEYS, ("archives",))
        text_of(entry["name"], f"{at}.name", _NAME)
        at = f"sources: {entry['name']}"
        text_of(entry["version"], f"{at}.version")
        for text, place in list_of(entry["requirements"], f"{at}.requirements"):
            text_of(text, place)
        if not isinstance(entry["stubs"], dict):
            raise lockfile.Wrong("not a map", f"{at}.stubs")
        for name, variable in entry["stubs"].items():
            text_of(name, f"{at}.stubs", _NAME)
            text_of(variable, f"{at}.stubs: {name}", re.compile(r"\w*"))
        source = entry["source"]
        kind = source.get("kind") if isinstance(source, dict) else None
        if kind not in _SOURCE:
            raise lockfile.Wrong("kind is neither sdist nor git", f"{at}.source")
        keys_of(source, f"{at}.source", _SOURCE[kind])
        if kind == "sdist":
            files_of([{**{key: source[key] for key in _SOURCE["sdist"] if key != "kind"}, "name": entry["name"],
                       "version": entry["version"]}], f"{at}.source")
        else:
            _tree_of({**source, "name": entry["name"], "variable": ""}, f"{at}.source")
        trees = tuple(_tree_of(tree, f"{at}.{place}") for tree, place in list_of(entry["trees"], "trees"))
        _each_once([*(tree.name for tree in trees), *entry["stubs"]], f"{at}.trees")
        found.append(SourcePackage(entry["name"], entry["version"], source, trees, entry["stubs"],
                                   tuple(entry["requirements"]), _tools(entry["tools"], f"{at}.tools"),
                                   files_of(entry.get("archives", []), f"{at}.archives")))
    _each_once([package.name for package in found], "sources")
    return tuple(found)


def _each_once(names: Sequence[str], at: str) -> None:
    """A source that is there twice would silently be one of the two; one that is a stub too, compiled all the same."""
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise lockfile.Wrong(f"{twice} is there twice", at)


def _tree_of(value: Any, at: str) -> LockedTree:
    keys_of(value, at, _TREE)
    text_of(value["name"], f"{at}.name", _NAME)
    text_of(value["kind"], f"{at}.kind", re.compile("git"))
    for key in ("repository", "pinned"):
        text_of(value[key], f"{at}.{key}")
    text_of(value["revision"], f"{at}.revision", _REVISION)
    text_of(value["tree"], f"{at}.tree", lockfile.DIGEST)
    text_of(value["variable"], f"{at}.variable", re.compile(r"\w*"))
    size_of(value["size"], f"{at}.size")
    if not isinstance(value["submodules"], dict):
        raise lockfile.Wrong("not a map", f"{at}.submodules")
    for path, pair in value["submodules"].items():
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise lockfile.Wrong("not a repository and a revision", f"{at}.submodules: {path}")
        text_of(pair[1], f"{at}.submodules: {path}", _REVISION)
    return _tree(value)


def _tree(value: Mapping[str, Any]) -> LockedTree:
    """An entry that was checked."""
    return LockedTree(value["name"], value["repository"], value["pinned"], value["revision"], value["tree"],
                      value["size"], value["variable"],
                      {path: (pair[0], pair[1]) for path, pair in value["submodules"].items()})


def _tools(value: Any, at: str) -> Tools:
    keys_of(value, at, ("suites", "debs", *WHEELS), ("development",))
    suites_of(value["suites"], f"{at}.suites")
    return Tools(tuple(value["suites"]), *(files_of(value.get(key, []), f"{at}.{key}")
                                           for key in ("debs", *WHEELS, "development")))
