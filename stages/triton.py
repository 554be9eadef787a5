"""The `triton` stage: the server tree at /opt/tritonserver; and `serve`: the entrypoint that starts it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cache import canonical
from cache.errors import InputError, LockError
from checks.facts import release
from stages.builders import BUILDERS
from stages.graph import DataInput, FileInput, SourceInput, Stage
from stages.layers import platform
from stages.lockfile import Lock
from stages.target import Target

ROOT = "opt/tritonserver"
LAYOUT = "triton/pytriton-layout.yaml"
ENTRYPOINT = "templates/entrypoint.sh.j2"
HEALTHCHECK = "triton/serve/healthcheck.py"
REPOSITORY = "triton/serve/repository.py"
#: Where a volume for what is downloaded and compiled at run time goes. Everybody may write there, as in /tmp: a new
#: volume takes over mode and owner of the directory below it.
CACHE = "/var/cache/stagecraft"
#: What of a release's row the builder reads; the rest (advisories, sources) must not re-key the tree.
_BUILT_FROM = ("since", "before", "triton", "container")


def stages(target: Target, lock: Lock, root: Path) -> list[Stage]:
    if "triton" not in target.data:
        return []
    if target.data["triton"]["from"] == "source":
        return []  # `stages.sources` makes it
    if target.data["triton"]["from"] != "pytriton":
        from stages import server

        return [server.stage(target, lock, root)]
    wheel = next((file for file in lock.files if file.name == "nvidia-pytriton"), None)
    if wheel is None:
        raise LockError("the lock has no Triton server", where=lock.path, expected="nvidia-pytriton among its files",
                        cure=f"./doit lock:{target.name}")
    table = _table(root)
    row = _row(table, wheel.version)
    content = layout(table, row, target.data["triton"]["python_backend"] == "source")
    return [
        Stage("triton", "Triton server tree", BUILDERS["triton-tree"], platform(target),
              {"python": lock.python["version"], "root": ROOT, "version": wheel.version},
              {"wheel": FileInput("wheel", wheel), "layout": DataInput(content, canonical.sha256(content))},
              labels=labels(row, wheel.version)),
    ]


def serve(target: Target, lock: Lock, root: Path) -> list[Stage]:
    """What starts the server."""
    if "triton" not in target.data:
        return []
    return [
        Stage("serve", "entrypoint and its settings", BUILDERS["files-layer"], platform(target),
              {"files": [{"path": "opt/stagecraft/entrypoint", "template": "entrypoint", "mode": 0o755},
                         {"path": "opt/stagecraft/healthcheck", "copy": "healthcheck", "mode": 0o755},
                         {"path": "opt/stagecraft/repository.py", "copy": "repository", "mode": 0o644},
                         {"path": CACHE[1:], "directory": True, "mode": 0o1777}],
               "values": {"server": f"/{ROOT}/bin/tritonserver", "bind": target.data["triton"]["bind"],
                          "python": lock.python["executable"]}},
              {"entrypoint": source(root, ENTRYPOINT), "healthcheck": source(root, HEALTHCHECK),
               "repository": source(root, REPOSITORY)}),
    ]


def _table(root: Path) -> dict[str, Any]:
    """The table of server trees, as far as it is read here."""
    import yaml

    try:
        found = yaml.load((root / LAYOUT).read_bytes(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506
        [*found["python_backend"]["files"], *found["python_backend"]["links"]]
        for row in found["releases"]:
            if not all(isinstance(row[key], str) for key in _BUILT_FROM):
                raise ValueError(f"the release {row} lacks a text")
            if row.get("advisories"):
                ", ".join([row["fixed"], *row["advisories"]])
        canonical.dumps(found)
    except OSError as error:
        raise InputError("a file of the repository that is an input cannot be read", where=LAYOUT,
                         found=error.strerror, cure="restore it from version control") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, KeyError, TypeError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        raise InputError("the table of server trees is malformed", where=LAYOUT + (f":{mark.line + 1}" if mark else ""),
                         found=str(getattr(error, "problem", None) or repr(error)),
                         cure="restore it from version control; docs/formats/pytriton-layout.schema.json says what it "
                              "holds") from error
    return dict(found)


def _row(table: Mapping[str, Any], version: str) -> Mapping[str, Any] | None:
    """The release that a version of the wheel falls into; None if it is not known, which the builder then says."""
    return next((row for row in table["releases"]
                 if release(row["since"]) <= release(version) < release(row["before"])), None)


def layout(table: Mapping[str, Any], row: Mapping[str, Any] | None, without: bool = False) -> bytes:
    """What the builder gets: the rules and the one release, as canonical JSON, which is YAML too.

    A comment, another release or what is only said about this one changes nothing in it.

    Args:
        without: the server's own Python backend, which another layer has: no layer hides another's file.
    """
    rows = table["releases"] if row is None else [row]
    part = table["python_backend"]
    table = {key: value for key, value in table.items() if key != "python_backend"}
    if without:
        table |= {"without": part["files"],
                  "links": {path: to for path, to in table["links"].items() if path not in part["links"]}}
    return canonical.dumps({**table, "releases": [{key: one[key] for key in _BUILT_FROM} for one in rows]})


def labels(row: Mapping[str, Any] | None, version: str) -> dict[str, str]:
    """What an image says of its server."""
    found = {"io.stagecraft.triton.from": f"nvidia-pytriton {version}"}
    if row is None:
        return found
    found["io.stagecraft.triton"] = row["triton"]
    if row.get("advisories"):
        found["io.stagecraft.triton.notice"] = (
            f"reference server ({row['container']}), not for open networks: remote holes were fixed up to "
            f"{row['fixed']}: " + ", ".join(row["advisories"]))
    return found


def source(root: Path, path: str) -> SourceInput:
    """A repository file by its content now: never by its time of change."""
    from cache.canonical import sha256

    try:
        return SourceInput(path, sha256((root / path).read_bytes()))
    except OSError as error:
        raise InputError("a file of the repository that is an input cannot be read", where=path,
                         found=error.strerror,
                         cure="restore it from version control, or correct the target or recipe that names it"
                         ) from error
