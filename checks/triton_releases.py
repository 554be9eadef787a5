"""What is known of Triton's releases (`triton/releases.yaml`), and which of them a target takes. Pure but for reading.

On the path of a build that has nothing to do: imports nothing heavy.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from checks import tables
from checks.facts import device, machine, release

TABLE = "triton/releases.yaml"
#: NVIDIA's vllm_backend, changed by us for another vLLM: one file for each row under `patches` of the table.
PATCHES = "triton/patches/vllm_backend"

_ROOT = Path(__file__).resolve().parent.parent
_ARCHIVE = re.compile(r"tritonserver(\d+(?:\.\d+)+)-(?:igpu|agx)\.tar")
_CONTAINER = re.compile(r"(?<![\d.])r?(\d\d\.(?:0[1-9]|1[0-2]))(?![\d.])")
#: What `triton.from` may name whose stub was compiled by somebody else.
_FOREIGN = ("pytriton", "release", "image")

Data = Mapping[str, Any]


@functools.cache
def table() -> dict[str, Any]:
    return tables.read(_ROOT / TABLE)


def row_of(name: str) -> dict[str, Any] | None:
    """The release that `name` is of; None if it is not in the table.

    Args:
        name: a container (`25.08`, `r25.08`, `…/tritonserver:25.08-py3-igpu@sha256:…`), a version (`2.60.0`,
            `v2.60.0`), an archive (`…/tritonserver2.60.0-igpu.tar`), or a revision of its server or its vllm_backend.
    """
    file = name.partition("@")[0].rpartition("/")[2]
    archive = _ARCHIVE.fullmatch(file)
    tag = archive[1] if archive else file.rpartition(":")[2]
    found = _CONTAINER.match(tag)
    for row in table()["releases"]:
        known = {row.get("triton"), *(row.get("revisions", {}).get(part) for part in ("server", "vllm_backend"))}
        if row["container"] == (found and found[1]) or tag.removeprefix("v") in known - {None}:
            return dict(row)
    return None


def pair(target: Data, lock: Data) -> dict[str, Any]:
    """What the check `triton-pair` judges: the server and its backend as they are known, and what they meet.

    `server`: empty values are not known, or not to be judged: what is compiled here is for this Python and CUDA.
    """
    described = target.get("triton", {})
    kind = str(described.get("from", "pytriton"))
    asked = _asked(described, lock)
    server = {"from": kind, "asked": asked, "known": False, "container": "", "triton": "", "pythons": [], "cuda": "",
              "driver": "", "glibc": "", "igpu": False}
    if kind == "pytriton":
        _prebuilt(server, asked)
    else:
        _released(server, asked, str(described.get("platform", "")), machine(target))
    if described.get("python_backend") == "source" or kind not in _FOREIGN:
        server["pythons"] = []
    if kind not in _FOREIGN:
        server.update(cuda="", driver="", glibc="")
    given, python = device(target), lock["python"]
    cuda = str(target["device"].get("cuda", "none"))
    return {
        "server": server, "backend": _backend(target, lock, server), "python": python["version"],
        "cuda": "" if cuda == "none" else cuda, "floor": str(target["device"].get("driver_floor", "none")),
        "capability": given["capability"], "glibc": str(python.get("glibc", "")),
    }


def _asked(described: Data, lock: Data) -> str:
    """The server that the lock has; of what a lock does not name by version, the one that the target asks for."""
    locked = next((str(file["version"]) for file in lock["files"] if file["name"] == "nvidia-pytriton"), "")
    if described.get("from", "pytriton") == "pytriton":
        return locked or str(described.get("version", ""))
    return str(described.get("image") or described.get("version", ""))


def _prebuilt(server: dict[str, Any], asked: str) -> None:
    row = next((row for row in table()["prebuilt"] if release(row["version"]) == release(asked)), None)
    if row is not None:
        below = row_of(row["container"]) or {}
        server.update(known=True, container=row["container"], triton=below.get("triton", ""), pythons=row["pythons"],
                      cuda=row["cuda"], glibc=row.get("glibc", ""))


def _released(server: dict[str, Any], asked: str, platform: str, machine: str) -> None:
    """A release by its container: the ordinary image or archive, or the one for Jetson, which is another."""
    row = row_of(asked)
    if row is None:
        return
    server.update(known=True, container=row["container"], triton=row.get("triton", ""))
    jetson: Data = row.get("igpu", {})
    # NVIDIA publishes archives for aarch64 only as igpu; those named agx are SBSA.
    archives = [one for one in jetson.get("archives", ()) if one["file"].endswith("-igpu.tar")]
    igpu = "igpu" in asked or platform == "igpu" or (
        server["from"] == "release" and machine == "aarch64" and "-agx" not in asked)
    if igpu and jetson:
        server.update(igpu=True, pythons=[_minor(jetson["python"])] if "python" in jetson else [],
                      cuda=jetson.get("cuda") or jetson.get("cuda_major", ""),
                      glibc=next((one["glibc"] for one in archives if "glibc" in one), "")
                      if server["from"] == "release" else "")
    else:
        server.update(pythons=[_minor(row["python"])] if "python" in row else [], cuda=row.get("cuda", ""),
                      driver=row.get("driver", ""))


def _backend(target: Data, lock: Data, server: Data) -> dict[str, Any]:
    """NVIDIA's backend against the vLLM of the lock: `verdict` is `fits`, `patched`, `breaks` or `unknown`; empty where
    there is nothing to judge.
    """
    described = target.get("triton", {})
    vllm = vllm_of(target, lock)
    if described.get("backend") != "upstream" or not vllm:
        return {"verdict": ""}
    asked = str(described.get("backend_version") or server["container"])
    row = row_of(asked) or {}
    return {"asked": asked, "container": row.get("container", ""), "vllm": vllm, **judged(row, vllm)}


def judged(row: Data, vllm: str) -> dict[str, Any]:
    """What the vllm_backend of a release does with a vLLM: `verdict`, `patches`, `lacking` (of them), `what` breaks."""
    answer: dict[str, Any] = {"verdict": "unknown", "patches": [], "lacking": [], "what": ""}
    if not row:
        return answer
    version = release(vllm)
    if release(str(row.get("vllm", ""))) == version or release(str(row.get("vllm_public", ""))) == version:
        return {**answer, "verdict": "fits"}
    for branch in table()["backends"]:
        if not release(branch["since"]) <= release(row["container"]) < release(branch["before"]):
            continue
        for broken in branch["breaks"]:
            if version >= release(broken["since"]):
                return {**answer, "verdict": "breaks", "what": broken["what"]}
        for fit in branch["fits"]:
            if release(fit["since"]) <= version < release(fit["before"]):
                lacking = [name for name in fit["patches"] if not (_ROOT / PATCHES / f"{name}.patch").exists()]
                found = "breaks" if lacking else "patched" if fit["patches"] else "fits"
                what = ", ".join(table()["patches"][name]["old"] for name in lacking)
                return {"verdict": found, "patches": fit["patches"], "lacking": lacking, "what": what}
    return answer


def vllm_of(target: Data, lock: Data) -> str:
    """The version of the distribution that holds the package vllm; empty without one."""
    name = target.get("vllm", {}).get("package", "vllm")
    return next((str(one["version"]) for one in (*lock["wheels"], *lock.get("sources", ())) if one["name"] == name), "")


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])
