"""`load`, `export`, `push`: a built image to where it is needed. Each takes the image that `build` made."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cache.errors import InputError
from stages.builders import BUILDERS
from stages.engine import Engine
from stages.graph import BlobInput, Stage
from stages.report import size_text

if TYPE_CHECKING:
    from cache.store import Blob, Record
    from stages.tasks import Session


def check(verb: str, target: str, names: Sequence[str]) -> None:
    """Refuse arguments that cannot work before anything is built for them.

    Raises:
        InputError: too many or too few names, or one that is none.
        ToolError: `load`, and no engine answers.
    """
    names = [name for name in names if not name.startswith("-")]
    if verb == "push":
        from oci.reference import parse_reference

        if len(names) != 1:
            raise InputError("push needs one reference", found=" ".join(names) or "none",
                             cure=f"./doit push:{target} registry.example/team/{target}:1.0")
        if parse_reference(names[0]).digest:
            raise InputError("an image is pushed to a tag", where=names[0], cure="leave out @sha256:…")
    elif verb == "export":
        if len(names) > 1:
            raise InputError("export writes one file", found=" ".join(names), cure=f"./doit export:{target} {names[0]}")
        path = place(target, names)
        if path.is_dir() or not path.parent.is_dir():
            raise InputError("export cannot write there", where=str(path),
                             found="a directory" if path.is_dir() else f"no directory {path.parent}")
    elif verb == "load":
        from oci.docker import connect
        from oci.export import docker_name

        for name in names:
            docker_name(name)
        connect().close()


def place(target: str, names: Sequence[str]) -> Path:
    """The file of `export`, relative to where the user stands: ./doit itself works in the project."""
    return Path(os.environ.get("STAGECRAFT_CWD", ""), names[0] if names else f"{target}.tar")


def load(session: Session, target: str, names: Sequence[str]) -> tuple[Any, str]:
    """Into a Docker engine, as `stagecraft/<target>:latest` or the names given."""
    from oci.docker import load as load_image

    tags = list(names) or [f"stagecraft/{target}:latest"]
    found = load_image(session.project.store, manifest_of(session, target), tags,
                       progress=lambda done, total: _progress(session, "load", target, done, total))
    session.report.line_break()
    return found.to_json(), f"{target}: {found.image} is {', '.join(found.names)} in Docker {found.engine}"


def export(session: Session, target: str, names: Sequence[str]) -> tuple[Any, str]:
    """To a tar: `<target>.tar`, or the file given."""
    from oci.export import export_tar

    path = place(target, names)
    size = export_tar(session.project.store, manifest_of(session, target), path, [f"stagecraft/{target}:latest"],
                      lambda done, total: _progress(session, "export", target, done, total))
    session.report.line_break()
    return {"file": str(path), "size": size}, f"{target}: {path}, {size_text(size)}"


def push(session: Session, target: str, names: Sequence[str]) -> tuple[Any, str]:
    """To a registry, as the reference given."""
    from oci.push import push as push_image

    store = session.project.store
    keys: list[str] = []
    for stage, note in impurities(session, target):
        session.report.line(f"  {'warning':<7} {stage}: {note}; ./doit rebuild:{target}:{stage} proves the bytes")

    def make(params: Mapping[str, Any], layer: str) -> Blob:
        record = compressed(session.engine(target), params, layer)
        keys.append(record.key)
        return record.outputs["layer"]

    found = push_image(
        store, manifest_of(session, target), names[0],
        compression=session.project.target(target).data["image"]["compression"],
        make=make, progress=lambda what, done, total: _progress(session, "push", what, done, total))
    session.report.line_break()
    data = found.to_json()
    store.set_root(f"push-{found.manifest[7:23]}", {
        "format": "stagecraft.root.v1", "target": target, "push": data, "link": str(session.project.result(target)),
        "points_to": session.project.last(target)["points_to"], "keys": sorted(keys),
        "blobs": [layer.digest for layer in found.layers],
    })
    sent = sum(1 for how in found.how.values() if how == "sent")
    return {**data, "sent": found.sent}, (
        f"{target}: {found.reference}\n  manifest {found.manifest}\n  config   {found.config}\n"
        f"  {sent} blobs sent, {size_text(found.sent)}; {len(found.how) - sent} were there")


def impurities(session: Session, target: str) -> list[tuple[str, str]]:
    """(stage, what its record says of how it was built) of the last build: what is in no key and in no provenance."""
    found = []
    for stage, key in session.project.last(target).get("stages", {}).items():
        record = session.project.store.lookup(key)
        if record is not None:
            found += [(stage, str(note)) for note in record.facts.get("notes", ())]
    return found


def _progress(session: Session, what: str, name: str, done: int, total: int) -> None:
    session.check_cancelled()
    session.report.progress(what, name, done, total)


def compressed(engine: Engine, params: Mapping[str, Any], layer: str) -> Record:
    """A compressed layer from the store, or made and kept there under its action key."""
    stage = Stage(f"compress {layer[7:19]}", "compressed layer", BUILDERS["compressed-layer"], {}, params,
                  {"layer": BlobInput(layer)})
    return engine.realise(stage, {})


def manifest_of(session: Session, target: str) -> str:
    return str(session.project.last(target)["manifest"])
