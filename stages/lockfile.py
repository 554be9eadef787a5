"""Lock files: every remote input of a target, exact. `targets/<name>.lock.json`, format `stagecraft.lock.v1`.

Holds the model, reading, writing (one entry a line, so that it reviews and diffs well) and the comparison of two
locks. Resolving is `stages.resolve` with the package `lock`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cache import canonical
from cache.errors import LockError
from stages.target import Target

if TYPE_CHECKING:
    from stages.locked_source import SourcePackage

FORMAT = "stagecraft.lock.v1"
SECTIONS = ("debs", "wheels", "files")
#: The parts that are resolved on their own (`--only`), with the word for it and what they are to people.
PARTS = {"base": ("debs", "base and Debian packages"), "wheels": ("wheels", "wheels"),
         "sources": ("sources", "sources and what compiles them")}
#: What `--only` takes. The emulator answers no field of the target but its platform, so it is never out of date.
ONLY = ("wheels", "debs", "sources", "emulator")


@dataclass(frozen=True)
class LockedFile:
    """One file by content: `size` in bytes, `sha256` 64 hex digits, `index` a name in targets/indexes.yaml."""

    name: str
    version: str
    file: str
    size: int
    sha256: str
    index: str
    architecture: str = ""

    @property
    def digest(self) -> str:
        return "sha256:" + self.sha256

    @property
    def filename(self) -> str:
        return self.file.rpartition("/")[2]

    def to_json(self) -> dict[str, Any]:
        found = {"name": self.name, "version": self.version, "file": self.file, "size": self.size,
                 "sha256": self.sha256, "index": self.index}
        if self.architecture:
            found["architecture"] = self.architecture
        return found


@dataclass(frozen=True)
class Lock:
    """A whole lock.

    Attributes:
        target: the target's name.
        request: for each part ("base", "wheels", "sources" if the target has any) the digest of the target fields that
            it answers (`Target.request`).
        base: `{"kind": "debian", "suites"}` or `{"kind": "image", "reference", "repository", "digest", "config",
            "layers", "suites"}`.
        python: `{"version", "executable", "glibc", "site", "scripts", "data"}` of the image.
        debs, wheels, files: exact files; `files` are wheels taken alone, without what they require.
        emulator: packages that run the image's programs on other machines, for checks; no part of the image.
        emulator_suites: the suites that these were resolved from, as in `base`.
        sources: packages that are compiled (`stages.locked_source`).
        server: a Triton server out of an archive or an image (`stages.server`).
        decisions: of packages whose target leaves it to `lock`, `{"from": "wheel" or "source", "why": [line, …]}`.
    """

    target: str
    request: Mapping[str, str]
    base: Mapping[str, Any]
    python: Mapping[str, str]
    debs: tuple[LockedFile, ...] = ()
    wheels: tuple[LockedFile, ...] = ()
    files: tuple[LockedFile, ...] = ()
    emulator: tuple[LockedFile, ...] = ()
    emulator_suites: tuple[Mapping[str, str], ...] = ()
    sources: tuple[SourcePackage, ...] = ()
    decisions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    server: Mapping[str, Any] = field(default_factory=dict)
    path: str = field(default="", compare=False)

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT, "target": self.target, "request": dict(self.request), "base": dict(self.base),
            "python": dict(self.python),
            **{section: [entry.to_json() for entry in getattr(self, section)] for section in SECTIONS},
            **({"emulator": {"suites": [dict(suite) for suite in self.emulator_suites],
                             "debs": [entry.to_json() for entry in self.emulator]}} if self.emulator else {}),
            **({"server": dict(self.server)} if self.server else {}),
            **({"sources": [package.to_json() for package in self.sources]} if self.sources else {}),
            **({"decisions": {name: dict(one) for name, one in self.decisions.items()}} if self.decisions else {}),
        }

    def dumps(self) -> str:
        """The file's text: keys in a fixed order, one locked file a line."""
        data = self.to_json()
        lines = ["{"]
        for key in ("format", "target"):
            lines.append(f'  "{key}": {json.dumps(data[key])},')
        for key in ("request", "base", "python"):
            body = json.dumps(data[key], indent=2, sort_keys=True, ensure_ascii=False).replace("\n", "\n  ")
            lines.append(f'  "{key}": {body},')
        parts = [f'  "{section}": {lines_of(data[section], 2)}' for section in SECTIONS]
        if self.emulator:
            parts.append("\n".join(['  "emulator": {', f'    "suites": {lines_of(data["emulator"]["suites"], 4)},',
                                    f'    "debs": {lines_of(data["emulator"]["debs"], 4)}', "  }"]))
        if self.server:
            body = json.dumps(data["server"], indent=2, ensure_ascii=False).replace("\n", "\n  ")
            parts.append(f'  "server": {body}')
        if self.sources:
            from stages.locked_source import dumps

            parts.append(f'  "sources": {dumps(self.sources, 2)}')
        if self.decisions:
            body = json.dumps(data["decisions"], indent=2, sort_keys=True, ensure_ascii=False).replace("\n", "\n  ")
            parts.append(f'  "decisions": {body}')
        lines.append(",\n".join(parts))
        return "\n".join([*lines, "}", ""])


def lines_of(entries: Sequence[Any], indent: int) -> str:
    """A list, one entry a line."""
    if not entries:
        return "[]"
    between = "\n" + " " * (indent + 2)
    return "[" + between + ("," + between).join(json.dumps(entry, ensure_ascii=False) for entry in entries) \
        + "\n" + " " * indent + "]"


def request_digests(target: Target) -> dict[str, str]:
    """What a lock of this target has under `request`."""
    return {part: canonical.digest_of("request", asked) for part, asked in target.request().items()}


def path_of(root: Path, name: str) -> Path:
    return root / "targets" / f"{name}.lock.json"


def parse(text: str, where: str) -> Lock:
    """Read a lock's text. What it gives can be used without looking twice.

    Raises:
        LockError: not JSON, another format, something missing, of the wrong type or there twice; says where.
    """
    try:
        data = json.loads(text, object_pairs_hook=_once)
        if not isinstance(data, dict) or "format" not in data:
            raise Wrong("no lock", "the file")
        if data["format"] != FORMAT:
            raise LockError("the lock has another format", where=where, expected=FORMAT, found=str(data["format"])[:60],
                            cure="lock again")
        keys_of(data, "the file", ("format", "target", "request", "base", "python", *SECTIONS),
                ("emulator", "server", "sources", "decisions"))
        text_of(data["target"], "target")
        keys_of(data["request"], "request", ("base", "wheels"), ("sources",))
        for part in data["request"]:
            text_of(data["request"][part], f"request.{part}", DIGEST)
        _base(data["base"])
        _python(data["python"])
        sections = {section: files_of(data[section], section) for section in SECTIONS}
        emulator, suites = _emulator(data.get("emulator", {"suites": [], "debs": []}))
        server = _server(data["server"]) if "server" in data else {}
        sources = _sources(data["sources"]) if "sources" in data else ()
        _decisions(data.get("decisions", {}))
    except Wrong as error:
        raise LockError(f"the lock is malformed: {error.what}", where=f"{where}: {error.at}", cure=_CURE) from error
    except (ValueError, TypeError, RecursionError) as error:
        line = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        found = "the marks of a merge" if re.search(r"^(<{7}|>{7}) ", text, re.M) else str(error)
        raise LockError("the lock is malformed", where=where + line, expected="JSON", found=found,
                        cure=_CURE) from error
    return Lock(data["target"], data["request"], data["base"], data["python"], path=where, emulator=emulator,
                emulator_suites=suites, sources=sources, server=server, decisions=data.get("decisions", {}), **sections)


_CURE = "restore it from version control, or lock again"
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_HEX = re.compile(r"[0-9a-f]{64}")
_MINOR = re.compile(r"\d+\.\d+")
_BELOW = re.compile(r"(?!/)(?!(.*/)?\.\.?(/|$))[^\x00-\x1f\ud800-\udfff\\]+")  # a relative path without dots
_ABSOLUTE = re.compile("/" + _BELOW.pattern)
_PLAIN = re.compile(r"[^\x00-\x1f\ud800-\udfff]+")
_STAMP = re.compile(r"[\w:]*")


class Wrong(Exception):
    """Something in a lock is not as it must be: `what`, at `at`."""

    def __init__(self, what: str, at: str) -> None:
        super().__init__(what)
        self.what, self.at = what, at


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(name for name in names if names.count(name) > 1)!r} is here twice")
    return found


def keys_of(value: Any, at: str, known: Sequence[str], optional: Sequence[str] = ()) -> None:
    if not isinstance(value, dict):
        raise Wrong("not a map", at)
    for key in known:
        if key not in value:
            raise Wrong(f"{key!r} is missing", at)
    for key in value:
        if key not in known and key not in optional:
            raise Wrong(f"unknown key {key!r}", at)


def text_of(value: Any, at: str, pattern: re.Pattern[str] = _PLAIN) -> None:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise Wrong(f"a wrong value, {str(value)[:60]!r}", at)


def size_of(value: Any, at: str) -> None:
    if type(value) is not int or value < 0:
        raise Wrong(f"a wrong size, {str(value)[:60]!r}", at)


def list_of(value: Any, at: str) -> list[tuple[Any, str]]:
    if not isinstance(value, list):
        raise Wrong("not a list", at)
    return [(item, f"{at}[{number}]") for number, item in enumerate(value)]


def files_of(value: Any, section: str) -> tuple[LockedFile, ...]:
    found: list[LockedFile] = []
    for entry, place in list_of(value, section):
        keys_of(entry, place, ("name", "version", "file", "size", "sha256", "index"), ("architecture",))
        text_of(entry["name"], place)
        at = f"{section}: {entry['name']}"
        for key in ("version", "index", *(["architecture"] if "architecture" in entry else [])):
            text_of(entry[key], f"{at}.{key}")
        text_of(entry["file"], f"{at}.file", _BELOW)
        text_of(entry["sha256"], f"{at}.sha256", _HEX)
        size_of(entry["size"], f"{at}.size")
        found.append(LockedFile(**entry))
    for names in ([f"{file.name} {file.architecture}".strip() for file in found], [file.filename for file in found]):
        if len(set(names)) != len(names):
            raise Wrong(f"{next(name for name in names if names.count(name) > 1)} is there twice", section)
    return tuple(found)


def _python(value: Any) -> None:
    keys_of(value, "python", ("version", "executable", "glibc", "site", "scripts", "data"))
    for key, pattern in (("version", _MINOR), ("glibc", _MINOR), ("executable", _ABSOLUTE),
                         ("site", _BELOW), ("scripts", _BELOW), ("data", _BELOW)):
        text_of(value[key], f"python.{key}", pattern)


def _base(value: Any) -> None:
    kind = value.get("kind") if isinstance(value, dict) else None
    if kind == "debian":
        keys_of(value, "base", ("kind", "suites"))
    elif kind == "image":
        keys_of(value, "base", ("kind", "reference", "repository", "digest", "config", "layers"), ("suites",))
        text_of(value["reference"], "base.reference")
        text_of(value["repository"], "base.repository")
        text_of(value["digest"], "base.digest", DIGEST)
        _config(value["config"])
        for layer, at in list_of(value["layers"], "base.layers"):
            keys_of(layer, at, ("digest", "size", "media_type", "diff_id"))
            for key in ("digest", "diff_id"):
                text_of(layer[key], f"{at}.{key}", DIGEST)
            text_of(layer["media_type"], f"{at}.media_type")
            size_of(layer["size"], f"{at}.size")
    else:
        raise Wrong("kind is neither debian nor image", "base")
    suites_of(value.get("suites", []), "base.suites")


def suites_of(value: Any, at: str) -> None:
    for suite, place in list_of(value, at):
        keys_of(suite, place, ("index", "suite", "date", "release"), ("snapshot",))
        for key, text in suite.items():
            text_of(text, f"{place}.{key}", _PLAIN if key in ("index", "suite") else _STAMP)


def _emulator(value: Any) -> tuple[tuple[LockedFile, ...], tuple[Mapping[str, str], ...]]:
    keys_of(value, "emulator", ("suites", "debs"))
    suites_of(value["suites"], "emulator.suites")
    return files_of(value["debs"], "emulator.debs"), tuple(value["suites"])


def _server(value: Any) -> dict[str, Any]:
    from stages.server import parse as parse_server  # only where there is one

    return parse_server(value)


def _sources(value: Any) -> tuple[SourcePackage, ...]:
    from stages.locked_source import parse as parse_sources  # only where there are any

    return parse_sources(value)


def _decisions(value: Any) -> None:
    if not isinstance(value, dict):
        raise Wrong("not a map", "decisions")
    for name, one in value.items():
        keys_of(one, f"decisions: {name}", ("from", "why"))
        text_of(one["from"], f"decisions: {name}", re.compile("wheel|source"))
        for line, at in list_of(one["why"], f"decisions: {name}"):
            text_of(line, at)


def _config(value: Any) -> None:
    """What an image on top inherits: any text, for it is another's."""
    kinds = {"environment": dict, "labels": dict, "entrypoint": list, "cmd": list, "ports": list, "volumes": list,
             "user": str, "workdir": str, "stop_signal": str}
    keys_of(value, "base.config", ("digest",), tuple(kinds))
    text_of(value["digest"], "base.config.digest", DIGEST)
    for key, kind in kinds.items():
        found = value.get(key, kind())
        texts = found.values() if isinstance(found, dict) else found if isinstance(found, list) else [found]
        if not isinstance(found, kind) or not all(isinstance(text, str) for text in texts):
            raise Wrong("a wrong value", f"base.config.{key}")
    try:
        canonical.dumps(value)
    except TypeError as error:
        raise Wrong(str(error), "base.config") from error


def read(path: Path, where: str) -> Lock:
    """Read a lock file.

    Raises:
        FileNotFoundError: there is none.
        LockError: as `parse`; also when it is not UTF-8 or cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise
    except UnicodeDecodeError as error:
        raise LockError("the lock is malformed: not UTF-8", where=where, cure=_CURE) from error
    except OSError as error:
        raise LockError("the lock cannot be read", where=where, found=error.strerror, cure=_CURE) from error
    return parse(text, where)


def load(root: Path, target: Target) -> Lock:
    """The lock of a target, checked to answer it.

    Raises:
        LockError: there is none, it is malformed, or the target has changed since: says which part.
    """
    path = path_of(root, target.name)
    shown = f"targets/{target.name}.lock.json"
    cure = f"./doit lock:{target.name}"
    try:
        lock = read(path, shown)
    except FileNotFoundError as error:
        raise LockError(f"target {target.name} is not locked", where=shown, cure=cure) from error
    asked = request_digests(target)
    stale = [part for part in PARTS if lock.request.get(part) != asked.get(part)]
    if stale:
        words = [PARTS[part] for part in stale]
        raise LockError("the lock does not fit its target any more", where=shown,
                        expected=f"a lock for what {target.files[0]} asks now",
                        found=" and ".join(title for _, title in words) + " for what it asked before",
                        cure=cure + (f", or {cure} --only {words[0][0]}" if len(words) == 1 else ""))
    wrong = _against(target, lock)
    if wrong:
        raise LockError(f"the lock contradicts its target: {wrong}", where=shown,
                        cure=f"{cure}, or restore it from version control")
    return lock


def _against(target: Target, lock: Lock) -> str:
    """Where packages from source are in the lock as the target does not want them; empty if they fit.

    `lock` writes no such lock, but people edit and merge them, and a package that is silently away would be missed by
    no check: those of a layer concern the targets that have it.
    """
    compiled = {package.name: package.version for package in lock.sources}
    for name in sorted(compiled.keys() - target.recipes.keys()):
        return f"it compiles {name}, which the target does not take from source"
    for name in target.recipes:
        wanted = target.data["sources"]["packages"][name]["version"]
        taken = "source"
        if name == "vllm" and target.data.get(name, {}).get("from") == "auto":
            taken = lock.decisions.get(name, {}).get("from", "")
            if not taken:
                return f"it does not say whether {name} is compiled"
        if taken == "source" and compiled.get(name) != wanted:
            return f"{name} {wanted} is to be compiled, and it has the sources of {compiled.get(name, 'nothing')}"
        if taken == "wheel" and name in compiled:
            return f"{name} is to be a wheel, and it has sources of it"
        if name in compiled and any(wheel.name == name for wheel in lock.wheels):
            return f"{name} is compiled, and it has a wheel of it too"
    return ""


@dataclass(frozen=True)
class Change:
    """One difference between two locks: `old` or `new` is empty when the entry came or went."""

    section: str
    name: str
    old: str
    new: str


def compare(old: Lock | None, new: Lock) -> list[Change]:
    """What changed, by section and name. Same version with another hash shows the hashes."""
    found: list[Change] = []
    for section in (*SECTIONS, "emulator"):
        before = {(e.name, e.architecture): e for e in (getattr(old, section) if old else ())}
        after = {(e.name, e.architecture): e for e in getattr(new, section)}
        for key in sorted(before.keys() | after.keys()):
            a, b = before.get(key), after.get(key)
            if a and b and a.sha256 == b.sha256:
                continue
            same = a and b and a.version == b.version
            text = [f"{e.version} sha256:{e.sha256[:12]}" if e and same else e.version if e else "" for e in (a, b)]
            found.append(Change(section, key[0], text[0], text[1]))
    found += _compare_sources(old.sources if old else (), new.sources)
    decided: Mapping[str, Mapping[str, Any]] = old.decisions if old else {}
    for name in sorted(decided.keys() | new.decisions.keys()):
        if decided.get(name) != new.decisions.get(name):
            found.append(Change("decision", name, *(f"{one['from']}: {one['why'][0]}" if one else ""
                                                    for one in (decided.get(name), new.decisions.get(name)))))
    served = [str(one.get("digest") or one.get("sha256", ""))[:19] for one in (old.server if old else {}, new.server)]
    if served[0] != served[1]:
        found.append(Change("server", "tritonserver", *served))
    old_base: Mapping[str, Any] = old.base if old else {}
    for name in sorted(old_base.keys() | new.base.keys()):
        if old_base.get(name) != new.base.get(name):
            found.append(Change("base", name, _short(old_base.get(name)), _short(new.base.get(name))))
    return found


def _compare_sources(old: Sequence[SourcePackage], new: Sequence[SourcePackage]) -> list[Change]:
    """Versions of the packages, revisions of their trees, their tools."""
    def pins(packages: Sequence[SourcePackage]) -> dict[str, tuple[str, str]]:
        found = {}
        for package in packages:
            source = package.source
            found[package.name] = (package.version, str(source.get("sha256") or source.get("revision")))
            found |= {f"{package.name}: {tree.name}": (tree.pinned, tree.revision) for tree in package.trees}
            for what, names in (("stubs", sorted(package.stubs)), ("requirements", package.requirements)):
                if names:
                    text = ", ".join(names)
                    found[f"{package.name}: {what}"] = (_short(text), canonical.sha256(text.encode()))
            found |= {f"{package.name}: {file.name}": (file.version, file.sha256)
                      for file in (*package.tools.files(), *package.archives)}
        return found

    before, after = pins(old), pins(new)
    changes = []
    for name in sorted(before.keys() | after.keys()):
        a, b = before.get(name), after.get(name)
        if a != b:
            same = a is not None and b is not None and a[0] == b[0]
            text = [f"{one[0]} {one[1][:12]}" if one and same else one[0] if one else "" for one in (a, b)]
            changes.append(Change("sources", name, *text))
    return changes


def _short(value: Any) -> str:
    text = "" if value is None else value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return text if len(text) <= 60 else text[:57] + "…"
