"""The `base` stage: Debian packages as one layer, on nothing or on an image from a registry."""

from __future__ import annotations

from typing import Any

from stages.builders import BUILDERS
from stages.graph import FileInput, Input, Stage, StageInput
from stages.layers import platform
from stages.lockfile import Lock, LockedFile
from stages.target import Target


def stages(target: Target, lock: Lock) -> list[Stage]:
    """The stages of the base: `base` (debs), and before it `base-facts` when there is an image below."""
    found: list[Stage] = []
    inputs: dict[str, Input] = {}
    if lock.base["kind"] == "image":
        found.append(Stage(
            "base-facts", "what the base image holds", BUILDERS["base-facts"], platform(target),
            {"layers": [{"media_type": layer["media_type"], "diff_id": layer["diff_id"]}
                        for layer in lock.base["layers"]]},
            {f"base/{number:02}": FileInput("oci", layer) for number, layer in enumerate(image_layers(lock))},
        ))
        inputs |= {f"base/{name}": StageInput("base-facts", name)
                   for name in ("status", "passwd", "group", "os-release", "index")}
    inputs |= {f"debs/{deb.filename}": FileInput("deb", deb) for deb in lock.debs}
    user: dict[str, Any] = target.data["image"].get("user", {})
    if lock.debs or user:
        found.append(Stage(
            "base", "Debian packages", BUILDERS["debs-layer"], platform(target),
            {"architecture": target.architecture, "alternatives": target.data["alternatives"],
             "users": [user] if user else []},
            inputs,
        ))
    return found


def image_layers(lock: Lock) -> list[LockedFile]:
    """The blobs of the base image's layers, lowest first."""
    repository = lock.base["repository"]
    return [LockedFile(f"layer {number}", "", layer["digest"], layer["size"], layer["digest"].partition(":")[2],
                       repository)
            for number, layer in enumerate(lock.base["layers"])]
