"""`dockerfile:<target>`: the parts of an image as a directory for `docker build`, every file by its sha256."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cache.errors import InputError, LockError
from stages import image
from stages.graph import DataInput, Graph, SourceInput, Stage
from stages.made_files import Made, listing, rendered
from stages.triton import ROOT

if TYPE_CHECKING:
    from stages.lockfile import Lock, LockedFile
    from stages.tasks import Session

TEMPLATES = "templates/dockerfile"
#: Below `out`.
PLACE = "image"
TOOL = "uv"


def run(session: Session, target: str, said: Mapping[str, str], out: Path, force: bool) -> tuple[Any, str]:
    """Write the directory; what is in it, as data and as text.

    Raises:
        InputError: a target whose image `docker build` cannot put together from locked files.
        LockError: no lock.
    """
    project = session.project
    described, lock, graph, root = project.target(target), project.lock(target), project.graph(target), project.root
    # Modules work without their bytecode, whose layer is left out.
    made_here = [stage.name for stage in graph.stages if stage.kind == "run" and stage.name != "bytecode"]
    made_here += [package.name for package in lock.sources]
    if made_here:
        raise InputError(f"{target} has parts that are made from source, which a Dockerfile of ours does not",
                         where=f"targets/{target}.yaml", found=", ".join(made_here), cure=_export(target))
    server = next((stage for stage in graph.stages if stage.builder.name == "triton-tree"), None)
    if server is None:
        raise InputError(f"{target} has no Triton server out of a wheel", where=f"targets/{target}.yaml",
                         expected="triton.from: pytriton", cure=_export(target))
    copied, modes, links = _rootfs(session, graph)
    archives = sorted({deb.index for deb in lock.debs})
    user = described.data["image"].get("user")
    alternatives = described.data["alternatives"]
    params = graph.stage("image").params
    values = {
        "target": target, "description": described.data["description"], "platform": described.data["platform"],
        "indexes": sorted({wheel.index for wheel in (*lock.wheels, *lock.files)}), "archives": archives,
        "base": _base(lock, described.data), "pinned": lock.base["kind"] == "image",
        "python": lock.python["version"], "executable": lock.python["executable"], "root": ROOT,
        "alternatives": alternatives, "user": user, "links": links, "accounts": [
            *(f"update-alternatives --install /usr/bin/{name} {name} {path} 100"
              for name, path in alternatives.items()), *(_account(user) if user else [])],
        "environment": [_pair(name, value) for name, value in sorted(image.environment(described, lock).items())],
        "labels": [_pair(name, value) for name, value in sorted({**params["labels"],
                                                                 "io.stagecraft.by": "docker build"}.items())],
        "ports": params["ports"], "entrypoint": params["entrypoint"], "command": params["cmd"]}
    files = {
        "Dockerfile": rendered(root, f"{TEMPLATES}/Dockerfile.j2", values),
        "debs.sh": rendered(root, f"{TEMPLATES}/debs.sh.j2", values),
        "debs.txt": "".join(f"{deb.index} {deb.file} {deb.sha256}\n" for deb in lock.debs).encode(),
        "wheels.txt": _requirements(lock.wheels), "server.txt": _requirements(lock.files), "tools.txt": _tool(root),
        "server.py": _read(root, f"{TEMPLATES}/server.py"), "server.json": _layout(server), ".dockerignore": b"*.md\n",
        **{f"rootfs/{path}": content for path, content in copied.items()}}
    below = {f"{PLACE}/{path}": content for path, content in files.items()}
    made = Made(out)
    # `COPY rootfs/` takes all that is there: also what an earlier target or lock had.
    gone = tuple(path for path in made.files if path.startswith(f"{PLACE}/") and path not in below)
    states = made.write(below, force=force, gone=gone, executable=tuple(f"{PLACE}/rootfs/{path}" for path, mode
                                                                  in modes.items() if mode & 0o111))
    changed = {path: state for path, state in states.items() if state != "as before"}
    document = {"target": target, "directory": str(out / PLACE), "debs": len(lock.debs), "wheels": len(lock.wheels),
                "files": [{"path": str(out / path), "state": state} for path, state in states.items()]}
    shown = {path: state for path, state in states.items() if "/rootfs/" not in path}
    return document, "\n".join([
        f"{target}: {len(lock.debs)} Debian packages, {len(lock.wheels) + len(lock.files)} wheels, each by its sha256",
        *listing(str(out), shown),
        f"  {len(changed)} of {len(states)} files written; rootfs/ has those of the repository", "",
        f"  docker build --platform {values['platform']} -t {target} {out / PLACE}"])


def _export(target: str) -> str:
    return f"./doit build:{target} makes them; ./doit export:{target} gives the image as a tar"


def _base(lock: Lock, data: Mapping[str, Any]) -> str:
    if lock.base["kind"] == "image":
        return f"{lock.base['repository']}@{lock.base['digest']}"
    debian = data["base"]["debian"]
    return f"{debian['distribution']}:{debian['suite']}" + ("-slim" if debian["distribution"] == "debian" else "")


def _account(user: Mapping[str, Any]) -> list[str]:
    return [f"groupadd --gid {user['gid']} {user['name']}",
            f"useradd --uid {user['uid']} --gid {user['gid']} --no-create-home --shell /bin/bash {user['name']}"]


def _pair(name: str, value: str) -> str:
    """For ENV and LABEL: in quotes, nothing expanded. A line's end cannot be written there."""
    text = value.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$").replace("\n", " ")
    return f'{name}="{text}"'


def _requirements(wheels: Sequence[LockedFile]) -> bytes:
    return "".join(f"{one.name}=={one.version} --hash=sha256:{one.sha256}\n" for one in wheels).encode()


def _tool(root: Path) -> bytes:
    """The installer that Stagecraft itself has pinned, for every machine."""
    text = _read(root, "requirements/run.txt").decode()
    found = re.search(rf"^{TOOL}==[^\\\n]*(?:\\\n[^\\\n]*)*\n", text, re.M)
    if found is None:
        raise InputError(f"{TOOL} is not pinned", where="requirements/run.txt",
                         cure="restore it from version control")
    return found[0].encode()


def _layout(server: Stage) -> bytes:
    given = server.inputs["layout"]
    assert isinstance(given, DataInput)  # noqa: S101 - stages/triton.py makes it
    words = {"python": server.params["python"], "python_minor": str(server.params["python"]).partition(".")[2],
             "version": server.params["version"]}
    return (json.dumps({**json.loads(given.content), "words": words}, indent=1) + "\n").encode()


def _rootfs(session: Session, graph: Graph) -> tuple[dict[str, bytes], dict[str, int], list[str]]:
    """Files of the repository that layers of an image are made of, rendered: content, modes, and commands for links."""
    import jinja2

    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)  # noqa: S701 - shell, not HTML
    content: dict[str, bytes] = {}
    modes: dict[str, int] = {}
    commands: list[str] = []
    for stage in graph.stages:
        if stage.builder.name != "files-layer":
            continue
        for file in stage.params["files"]:
            path = str(file["path"])
            if "link" in file:
                commands.append(f"ln -sfn {file['link']} /{path}")
            elif "directory" in file:
                commands.append(f"install -d -m {file['mode']:o} /{path}")
            else:
                given = _content(session, stage, str(file.get("copy") or file["template"]))
                content[path] = given if "copy" in file else \
                    environment.from_string(given.decode()).render(stage.params["values"]).encode()
                modes[path] = int(file["mode"])
    return content, modes, commands


def _content(session: Session, stage: Stage, name: str) -> bytes:
    given = stage.inputs[name]
    if isinstance(given, SourceInput):
        return _read(session.project.root, given.path)
    if isinstance(given, DataInput):
        return given.content
    raise LockError(f"{stage.name} is not made of files of the repository", where=name)


def _read(root: Path, path: str) -> bytes:
    try:
        return (root / path).read_bytes()
    except OSError as error:
        raise InputError("a file of the repository cannot be read", where=path, found=error.strerror,
                         cure="restore it from version control") from error
