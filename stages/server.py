"""A Triton server that others built: an archive of a release, or /opt/tritonserver of an image (docs/serving.md).

What a target says of it, its section `server` in a lock, and the stage `triton` that takes its files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cache import canonical
from cache.errors import InputError, LockError
from checks.facts import SERVER
from lock.sources import bare
from stages.builders import BUILDERS
from stages.graph import FileInput, Input, Stage
from stages.layers import platform
from stages.lockfile import Lock, LockedFile
from stages.schema import Document

if TYPE_CHECKING:
    from stages.project import Project
    from stages.target import Target

LAYOUT = "triton/server-layout.yaml"
ARCHIVE = "https://github.com/triton-inference-server/server/releases/download/v{version}/tritonserver{version}-igpu.tar"
#: Which keys of the section are whose.
_OF = {"url": "release", "sha256": "release", "image": "image"}
#: Lists of a layout.
_LISTS = ("keep", "drop", "required")


def complete(described: dict[str, Any], document: Document) -> None:
    """Fill in what `from: release` leaves out. Raises InputError for a key of another `from`, or one that lacks."""
    taken = described["from"]
    for key, whose in _OF.items():
        if key in described and taken != whose:
            raise InputError(f"triton.{key} is for from: {whose}", where=document.place(("triton", key)), found=taken,
                             cure=f"leave it out, or set triton.from to {whose}")
    if taken == "image" and "image" not in described:
        raise InputError("which image the server is in is not said", where=document.place(("triton",)),
                         cure="add image: REGISTRY/REPOSITORY:TAG")
    if taken not in ("release", "image"):
        return
    from checks.triton_releases import row_of

    row = row_of(described["version"]) or {}
    if taken == "image":
        _one_release(row, "image", described, document)
        return
    described["url"] = described.get("url", ARCHIVE).replace("{version}", row.get("triton", described["version"]))
    _one_release(row, "url", described, document)
    file = described["url"].rpartition("/")[2]
    known = next((one["sha256"] for one in row.get("igpu", {}).get("archives", ())
                  if one["file"] == file and "sha256" in one), "")
    if not described.setdefault("sha256", known):
        raise InputError(f"the sha256 of {file} is not known", where=document.place(("triton",)),
                         expected="sha256: 64 hexadecimal digits",
                         cure="add triton.sha256; GitHub names it beside the file, or take it of a copy that you trust")


def _one_release(row: Mapping[str, Any], key: str, described: Mapping[str, Any], document: Document) -> None:
    """Raises InputError where the image or the address is known to be of another release than the version."""
    from checks.triton_releases import row_of

    other = row_of(described[key])
    if other is not None and other["container"] != row.get("container"):
        raise InputError(f"triton.version and triton.{key} are of two releases", where=document.place(("triton", key)),
                         expected=f"{described['version']}" + (f" (container {row['container']})" if row else ""),
                         found=f"{bare(described[key]) if key == 'url' else described[key]}: container "
                               f"{other['container']}", cure="correct one of them")


def resolve(project: Project, target: Target, before: Mapping[str, Any], moves: bool,
            log: Callable[[str], None]) -> dict[str, Any]:
    """The section `server` of a lock; {} for a server that comes otherwise.

    Args:
        before: that section of the lock before: the digest of a tag is kept, unless it `moves`.

    Raises:
        FetchError: nobody has it.
        IntegrityError: the archive is another than the target says.
        LockError: the image is for another platform.
    """
    described = target.data.get("triton", {})
    if described.get("from") == "release":
        from lock.url_source import lock_url

        log(f"  fetching {bare(described['url'])}")
        found = lock_url(project.store, "tritonserver", described["version"], described["url"], described["sha256"],
                         target.data.get("sources", {}).get("mirrors", {}))
        return {"kind": "archive", **LockedFile(found.name, found.version, found.file, found.size, found.sha256,
                                                found.index).to_json()}
    if described.get("from") == "image":
        from oci.base import lock_layers
        from oci.reference import parse_reference

        name = reference = described["image"]
        asked = parse_reference(reference)
        if before.get("kind") == "image" and not asked.digest and not moves:
            old = parse_reference(before["reference"])
            if (old.name, old.tag) == (asked.name, asked.tag):
                reference = f"{name}@{before['digest']}"
        log(f"  reading the image {reference}")
        return {"kind": "image", **lock_layers(reference, {"os": "linux", "architecture": target.architecture})}
    return {}


def stage(target: Target, lock: Lock, root: Path) -> Stage:
    """The stage `triton`.

    Raises:
        LockError: the lock has no such server.
        InputError: the table of what is taken of a tree cannot be read.
    """
    from checks.triton_releases import row_of

    described, server = target.data["triton"], lock.server
    kind = {"release": "archive", "image": "image"}[described["from"]]
    if server.get("kind") != kind:
        raise LockError("the lock has no Triton server", where=lock.path, expected=f"a section server of kind {kind}",
                        found=str(server.get("kind", "none")), cure=f"./doit lock:{target.name}")
    layout = _layout(root)
    own = layout["python_backend"]
    without = described["python_backend"] == "source"
    row = row_of(described["version"]) or row_of(described.get("image", "")) or {}
    if kind == "archive":
        file = LockedFile(**{key: value for key, value in server.items() if key != "kind"})
        inputs: dict[str, Input] = {"archive/00": FileInput("url", file)}
        digest, name, origin = file.digest, file.filename, file.filename
    else:
        inputs = {f"archive/{number:02}": FileInput("oci", LockedFile(
            f"server layer {number}", "", layer["digest"], layer["size"], layer["digest"].partition(":")[2],
            server["repository"])) for number, layer in enumerate(server["layers"])}
        digest, name, origin = server["digest"], server["reference"].rpartition("/")[2], server["reference"]
    # The version is read out of the tree, so that the check triton-pair compares two things.
    listed = {"type": "generic", "name": SERVER, "version": "", "architecture": target.architecture,
              "file": name, "digest": digest, "licence": "BSD-3-Clause", "container": row.get("container", ""),
              "from": origin, "purl": f"pkg:github/triton-inference-server/server@v{row.get('triton', '')}"}
    return Stage(
        "triton", "Triton server tree", BUILDERS["server-tree"], platform(target),
        {"diff_ids": [layer["diff_id"] for layer in server.get("layers", ())],
         "at": "" if kind == "archive" else "opt/tritonserver", "anchor": layout["anchor"], "root": "opt/tritonserver",
         "keep": layout["keep"], "drop": [*layout["drop"], *(own["files"] if without else [])],
         "required": [*layout["required"], *([] if without else own["required"])], "packages": [listed],
         "release": row.get("triton", "")},
        inputs, labels={"io.stagecraft.triton.from": origin,
                        **({"io.stagecraft.triton": row["triton"]} if "triton" in row else {})})


def _layout(root: Path) -> dict[str, Any]:
    from yaml import YAMLError

    from checks import tables

    try:
        found = tables.read(root / LAYOUT)
        lists = [*(found[key] for key in _LISTS), *(found["python_backend"][key] for key in ("files", "required"))]
        if not all(isinstance(one, str) for listed in lists for one in [*listed, found["anchor"]]):
            raise ValueError("something in it is no text")
        canonical.dumps(found)
    except (OSError, YAMLError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise InputError("the table of what is taken of a server tree cannot be read", where=LAYOUT, found=str(error),
                         cure="restore it from version control") from error
    return found


def parse(value: Any) -> dict[str, Any]:
    """The section as data. Raises what `stages.lockfile.parse` turns into a LockError."""
    from stages.lockfile import DIGEST, Wrong, files_of, keys_of, list_of, size_of, text_of

    kind = value.get("kind") if isinstance(value, dict) else None
    if kind == "archive":
        files_of([{key: one for key, one in value.items() if key != "kind"}], "server")
    elif kind == "image":
        keys_of(value, "server", ("kind", "reference", "repository", "digest", "layers"))
        text_of(value["reference"], "server.reference")
        text_of(value["repository"], "server.repository")
        text_of(value["digest"], "server.digest", DIGEST)
        for layer, at in list_of(value["layers"], "server.layers"):
            keys_of(layer, at, ("digest", "size", "media_type", "diff_id"))
            for key in ("digest", "diff_id"):
                text_of(layer[key], f"{at}.{key}", DIGEST)
            text_of(layer["media_type"], f"{at}.media_type", re.compile(r"[\w.+/-]+"))
            size_of(layer["size"], f"{at}.size")
    else:
        raise Wrong("kind is neither archive nor image", "server")
    return dict(value)
