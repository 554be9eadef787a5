"""The builder `triton-tree`: Triton's server tree out of the wheel of nvidia-pytriton, as a deterministic layer.

What goes where is data, `triton/pytriton-layout.yaml`, which is an input: see there why the tree looks as it does;
`without` in it are beginnings of paths that another layer has. No
ELF file is altered, nothing is unpacked, no code of the wheel runs. Every file is held to the wheel's RECORD.

Params: `python` "3.11", `root` "opt/tritonserver", `version` of nvidia-pytriton; `file`, its file name (optional).
Inputs: `wheel`, `layout`. Outputs: `layer`, `index` (`cache.archive`), `packages`: the server as one package of type
"generic" (nvidia-pytriton itself is not installed, so its requirements do not count).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import yaml
from packaging.version import Version

from assemble.wheel_file import Places, PlannedFile, Wheel, read_wheel
from assemble.wheel_tags import Image
from assemble.wheels import write_file
from cache import canonical
from cache.archive import LayerWriter
from cache.build import BuildContext
from cache.errors import IntegrityError, StageError
from cache.store import Blob
from cache.zip_reader import ZipReader

_WHEEL = "wheel"


@dataclass(frozen=True)
class Link:
    """A symlink to be."""

    target: str


def build(context: BuildContext) -> Mapping[str, Blob]:
    """Build the layer; see the module text.

    Raises:
        StageError: no stub for that Python, a version or machine that is not known.
        IntegrityError: the wheel is malformed, or is not the one that the params say.
    """
    params, digest = context.params, context.inputs["wheel"]
    layout = yaml.safe_load(context.store.read(context.inputs["layout"]))
    row = release(layout, params["version"])
    with ZipReader(context.store.use(digest), params.get("file", "nvidia-pytriton")) as reader:
        wheel = _open(reader, params, digest, context.platform["architecture"])
        if wheel.name != layout["wheel"]:
            raise IntegrityError("another wheel than the layout is for", where=wheel.file, expected=layout["wheel"],
                                 found=wheel.name)
        entries = lay_out(wheel, layout, params, row)
        with LayerWriter(context.store) as tar:
            for path, entry in sorted(entries.items(), key=lambda item: item[0].encode()):
                if entry is None:
                    tar.directory(path)
                elif isinstance(entry, Link):
                    tar.symlink(path, entry.target)
                elif isinstance(entry, bytes):
                    tar.file(path, len(entry), (entry,))
                else:
                    write_file(tar, entry)
            layer = tar.finish()
    context.log(f"{wheel.file}: Triton {row['triton']} ({row['container']}), {len(entries)} paths")
    packages = {"format": "stagecraft.packages.v1", "packages": [{
        "type": "generic", "name": "triton-inference-server", "version": row["triton"],
        "architecture": context.platform["architecture"], "file": wheel.file, "digest": digest,
        "licence": "BSD-3-Clause", "purl": f"pkg:github/triton-inference-server/server@v{row['triton']}",
        "container": row["container"], "from": f"{wheel.name} {params['version']}"}]}
    return {"layer": layer.layer, "index": layer.index, "packages": context.store.put(canonical.dumps(packages))}


def release(layout: Mapping[str, Any], version: str) -> Mapping[str, Any]:
    """The entry of the layout's `releases` for that version.

    Raises:
        StageError: there is none.
    """
    rows: list[Mapping[str, Any]] = layout["releases"]
    for row in rows:
        if Version(row["since"]) <= Version(version) < Version(row["before"]):
            return row
    known = ", ".join(f"from {row['since']} to below {row['before']}" for row in rows)
    raise StageError(f"nvidia-pytriton {version} is not known", where="triton/pytriton-layout.yaml", expected=known,
                     found=version, cure="take a known version, or add an entry there with its source")


def _open(reader: ZipReader, params: Mapping[str, Any], digest: str, architecture: str) -> Wheel:
    places = Places("/usr/bin/python3", *[_WHEEL] * 5)
    file = params.get("file") or _file_name(reader)
    wheel = read_wheel(reader, file, digest, Image(params["python"], architecture), places)
    if Version(wheel.package["version"]) != Version(params["version"]):
        raise IntegrityError("another version of nvidia-pytriton than the lock says", where=file,
                             expected=params["version"], found=wheel.package["version"])
    return wheel


def _file_name(reader: ZipReader) -> str:
    """The file name that the wheel says it has, by its .dist-info and the first tag of its WHEEL file."""
    for member in reader.members:
        stem, found, rest = member.name.partition(".dist-info/WHEEL")
        tag = re.search(r"^Tag: *(\S+)", reader.read(member).decode(), re.M) if found and not rest else None
        if tag:
            return f"{stem}-{tag[1]}.whl"
    raise IntegrityError("not a wheel", where=reader.label)


def lay_out(wheel: Wheel, layout: Mapping[str, Any], params: Mapping[str, Any],
            row: Mapping[str, Any]) -> dict[str, PlannedFile | Link | bytes | None]:
    """Paths of the layer with what is there; None is a directory. Pure.

    Raises:
        StageError: the wheel has no stub for that Python.
        IntegrityError: the wheel lacks something that the layout names.
    """
    root, python = params["root"], params["python"]
    members = {file.path.removeprefix(f"{_WHEEL}/"): file for file in wheel.files}
    stubs = sorted({path[len(layout["stubs"]):].split("/")[0] for path in members if path.startswith(layout["stubs"])},
                   key=Version)
    without = tuple(layout.get("without", ()))
    rules = [rule for rule in layout["files"] if not (without and rule["to"].startswith(without))]
    if python not in stubs and any(rule["from"].startswith(layout["stubs"]) for rule in rules):
        raise StageError(f"the Triton server has no stub for Python {python}", where=wheel.file,
                         expected=f"one of {', '.join(stubs)}", found=python,
                         cure="take a base with one of these Pythons, or another server")
    words = {"python": python, "python_minor": python.partition(".")[2], "version": params["version"]}
    found: dict[str, PlannedFile | Link | bytes | None] = {}
    for rule in rules:
        taken = dict(_taken(members, rule, words))
        if not taken and not rule.get("optional"):
            raise IntegrityError("the wheel lacks a part of the server", where=f"{wheel.file}: {rule['from']}")
        for to, file in taken.items():
            if without and to.startswith(without):
                continue
            mode = 0o755 if any(fnmatchcase(to, pattern) for pattern in layout["executables"]) else 0o644
            found[f"{root}/{to}"] = PlannedFile(f"{root}/{to}", file.size, mode, file.promise, file.source, wheel)
    lacking = [path for path in layout["required"] if f"{root}/{path}" not in found]
    if lacking:
        raise IntegrityError("the wheel lacks a part of the server", where=wheel.file, expected=", ".join(lacking))
    for path, target in layout["links"].items():
        found[f"{root}/{path}"] = Link(_target(target, f"{root}/{path}".rpartition("/")[0], found, wheel.file))
    found[f"{root}/TRITON_VERSION"] = f"{row['triton']}\n".encode()
    for path in list(found):
        above = path.rpartition("/")[0]
        while above and above not in found:
            found[above] = None
            above = above.rpartition("/")[0]
    return found


def _target(target: str, directory: str, found: Mapping[str, object], file: str) -> str:
    """A link's target; one with a `*` is the one file beside the link whose name matches."""
    if "*" not in target:
        return target
    names = [path.rpartition("/")[2] for path in found
             if path.rpartition("/")[0] == directory and fnmatchcase(path.rpartition("/")[2], target)]
    if len(names) != 1:
        raise IntegrityError("the wheel has not exactly one file for a link of the layout", where=file,
                             expected=target, found=", ".join(names) or "none")
    return names[0]


def _taken(members: Mapping[str, PlannedFile], rule: Mapping[str, Any],
           words: Mapping[str, str]) -> Iterator[tuple[str, PlannedFile]]:
    """Path below the root and member, for the members that a rule takes."""
    start, to = rule["from"].format(**words), rule["to"].format(**words)
    for path, file in members.items():
        rest = path.removeprefix(start)
        if path != start and (rest == path or not start.endswith("/")):
            continue
        name = path.rpartition("/")[2]
        if fnmatchcase(name, rule.get("except", "")) or not fnmatchcase(name, rule.get("only", "*").format(**words)):
            continue
        yield to + rest, file
