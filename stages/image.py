"""The `image` stage (manifest and configuration over the layers) and `attest` (SBOM and provenance of that manifest).

Labels are derived from the lock, never typed: what an image says of itself can be recomputed from its inputs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from cache import canonical
from checks import facts
from stages.base import image_layers
from stages.builders import BUILDERS
from stages.gates import checks_of
from stages.graph import DataInput, FileInput, Input, SourceInput, Stage, StageInput
from stages.layers import platform
from stages.lockfile import Lock
from stages.target import OWN_LAYERS, PLACEHOLDER, Target, distribution
from stages.waivers import exceptions


def stages(target: Target, lock: Lock, layers: Sequence[Stage], others: Sequence[Stage] = ()) -> list[Stage]:
    """`image` and `attest` over the given layer stages, lowest first; `others`: stages below that have gates."""
    below = [stage for stage in layers if "layer" in stage.builder.outputs]
    inputs: dict[str, Input] = {}
    params: dict[str, Any] = {}
    if lock.base["kind"] == "image":
        base = image_layers(lock)
        inputs |= {f"base/{number:02}": FileInput("oci", layer) for number, layer in enumerate(base)}
        params["base"] = {"layers": [{key: layer[key] for key in ("digest", "size", "media_type", "diff_id")}
                                     for layer in lock.base["layers"]],
                          "config": lock.base["config"], "reference": lock.base["reference"]}
    inputs |= {f"layers/{number:02}-{stage.name}": StageInput(stage.name, "layer")
               for number, stage in enumerate(below)}
    described = target.data["image"]
    user = described.get("user")
    params |= {
        "environment": environment(target, lock),
        "entrypoint": ["/opt/stagecraft/entrypoint"] if "triton" in target.data else [],
        "cmd": described["command"],
        "user": f"{user['uid']}:{user['gid']}" if user else "",
        "ports": described["ports"],
        "labels": labels(target, lock, below),
        "comments": {stage.name: stage.title for stage in below},
    }
    gates = tuple(check.id for check in checks_of([*below, *others]))
    image = Stage("image", "image manifest and configuration", BUILDERS["image"], platform(target), params, inputs,
                  gates, ("labels.io.stagecraft.",))
    packages = {f"packages/{stage.name}": StageInput(stage.name, "packages")
                for stage in below if "packages" in stage.builder.outputs}
    content = canonical.dumps(materials(lock, others))
    below_it = {f"base/{name}": StageInput("base-facts", name) for name in ("status", "os-release")} \
        if lock.base["kind"] == "image" else {}
    checks = tuple(check.id for check in checks_of([image]))
    attest = Stage(
        "attest", "SBOM and provenance", BUILDERS["attest"], platform(target),
        {"target": target.name, "description": target.data["description"]}
        | ({"waivers": waived} if (waived := exceptions(target)) else {}),
        {"manifest": StageInput("image", "manifest"), "lock": DataInput(content, canonical.sha256(content)),
         **packages, **below_it},
        checks, mirrors=("input lock", "waivers"),
    )
    return [image, attest]


def environment(target: Target, lock: Lock) -> dict[str, str]:
    """The image's environment with its placeholders filled in; the target knows no others."""
    values = {"{site}": "/" + lock.python["site"], "{arch_list}": target.data["device"]["arch_list"],
              "{{": "{", "}}": "}"}
    return {name: PLACEHOLDER.sub(lambda found: values[found[0]], text)
            for name, text in target.data["image"]["environment"].items()}


def pins(lock: Lock) -> dict[str, Any]:
    """What of a lock is in an image."""
    return facts.pins(lock.to_json())


def materials(lock: Lock, compiled: Sequence[Stage] = ()) -> dict[str, Any]:
    """The pins as the provenance names them: a base image by its repository too, sources with what changed them.

    Args:
        compiled: the stages of packages from source, whose patches and scripts are files of the repository.
    """
    found = pins(lock)
    if lock.base["kind"] == "image":
        found["base"] = {**found["base"], "repository": lock.base["repository"]}
    if lock.server:
        where = lock.server["repository"] if lock.server["kind"] == "image" else lock.server["index"]
        found["server"] = {**found["server"], "address": where}
    for package, locked in zip(found.get("sources", ()), lock.sources, strict=True):
        trees = locked.all_trees()
        package["repositories"] = {tree.revision: tree.repository for tree in trees}
        if locked.archives:
            package["addresses"] = {file.sha256: file.index for file in locked.archives}
        names = (f"{locked.name}-source", f"{locked.name}-extensions", facts.SERVER_PARTS.get(locked.name, ""))
        own = [stage for stage in compiled if stage.name in names]
        package["files"] = {item.path: item.digest for stage in own for item in stage.inputs.values()
                            if isinstance(item, SourceInput)}
    return found


def labels(target: Target, lock: Lock, layers: Sequence[Stage]) -> dict[str, str]:
    """OCI and Stagecraft labels of the image; those of its layers are theirs."""
    device = target.data["device"]
    versions = {file.name: file.version for file in (*lock.wheels, *lock.files)}
    versions |= {package.name: package.version for package in lock.sources}
    found: dict[str, str] = {
        "org.opencontainers.image.title": f"stagecraft-{target.name}",
        "org.opencontainers.image.description": target.data["description"],
        "io.stagecraft.target": target.name,
        "io.stagecraft.lock": canonical.digest_of("pins", pins(lock)),
        "io.stagecraft.device": device["name"],
        "io.stagecraft.arch-list": device["arch_list"],
        "io.stagecraft.cuda": device["cuda"],
        "io.stagecraft.driver-floor": device["driver_floor"],
        "io.stagecraft.python": lock.python["version"],
    }
    for name in OWN_LAYERS:
        if (wheel := distribution(target.data, name)) in versions:
            found[f"io.stagecraft.{name}"] = versions[wheel]
    for package in lock.sources:
        source = package.source
        found[f"io.stagecraft.{package.name}.from"] = \
            f"sdist sha256:{source['sha256']}" if source["kind"] == "sdist" else f"git {source['revision']}"
    for stage in layers:
        found |= stage.labels
    waived = exceptions(target)
    if waived:
        found["io.stagecraft.waivers"] = json.dumps(waived, ensure_ascii=False, sort_keys=True)
    written: Mapping[str, str] = target.data["image"]["labels"]
    return {**{key: value for key, value in found.items() if value != "none"}, **written}
