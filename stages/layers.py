"""Which wheel goes into which layer, and the stage that makes such a layer. Shared by cuda, torch, deps and vllm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cache.errors import InputError
from checks.facts import SERVER_PARTS, wheel_file
from stages.builders import BUILDERS
from stages.graph import FileInput, Input, Stage, StageInput
from stages.lockfile import Lock, LockedFile
from stages.target import OWN_LAYERS, Target, distribution, layer_of, layer_rules

ORDER = ("cuda", "torch", "deps", "vllm")


def assign(wheels: tuple[LockedFile, ...], patterns: Mapping[str, list[str]],
           own: Mapping[str, str] | None = None) -> dict[str, list[LockedFile]]:
    """Layer name to its wheels, see `stages.target.layer_rules`.

    Args:
        own: wheel to the layer that it must be in; by default those of the sections torch and vllm.

    Raises:
        InputError: a wheel that no pattern takes, or torch or vllm where its check would not see it.
    """
    found: dict[str, list[LockedFile]] = {name: [] for name in ORDER if name in patterns}
    rules = layer_rules(patterns)
    own = {name: name for name in OWN_LAYERS} if own is None else own
    for wheel in wheels:
        layer = layer_of(wheel.name, rules)
        if layer is None:
            raise InputError(f"no layer takes the wheel {wheel.name}", where="layers",
                             cure='add it to a layer of the target, or "*" to one that takes the rest')
        section = own.get(wheel.name, layer)
        if layer != section:
            raise InputError(f"the wheel {wheel.name} would lie in the layer {layer}, where no check reads it",
                             where="layers", cure=f"add a section {section} to the target, with its version "
                                                  f"({wheel.version})")
        found[layer].append(wheel)
    return found


def wheels_stage(name: str, title: str, target: Target, lock: Lock) -> Stage | None:
    """The stage of one layer of wheels, or None if no wheel goes there."""
    own = {**{section: section for section in OWN_LAYERS},
           **{distribution(target.data, section): section for section in OWN_LAYERS}}
    wheels = assign(lock.wheels, target.data["layers"], own).get(name, [])
    rules = layer_rules(target.data["layers"])
    compiled = [package for package in lock.sources
                if package.name not in SERVER_PARTS and layer_of(package.name, rules) == name]
    inputs: dict[str, Input] = {f"wheels/{wheel.filename}": FileInput("wheel", wheel) for wheel in wheels}
    inputs |= {f"wheels/{wheel_file(package.name, package.version, lock.python['version'], target.machine)}":
               StageInput(f"{package.name}-wheel", "wheel") for package in compiled}
    if not inputs:
        return None
    names = {wheel.name for wheel in wheels} | {package.name for package in compiled}
    return Stage(name, title, BUILDERS["wheels-layer"], platform(target),
                 scheme(lock) | waived(target.data["wheels"], names), inputs)


def waived(described: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    """The exceptions of a target that concern these wheels, without their reasons: only what can change a layer."""
    return {"collisions": [{"path": entry["path"], "winner": entry["winner"]}
                           for entry in described["collisions"] if entry["winner"] in names],
            "records": [{"wheel": entry["wheel"], "path": entry["path"]}
                        for entry in described["records"] if entry["wheel"] in names]} | (
        {"tags": tags} if (tags := sorted(entry["wheel"] for entry in described.get("tags", ())
                                          if entry["wheel"] in names)) else {})


def platform(target: Target) -> dict[str, str]:
    return {"os": "linux", "architecture": target.architecture}


def scheme(lock: Lock) -> dict[str, Any]:
    """Where an installer puts things in this image."""
    python = lock.python
    return {
        "python": python["version"], "interpreter": python["executable"], "glibc": python["glibc"],
        "purelib": python["site"], "platlib": python["site"], "scripts": python["scripts"], "data": python["data"],
        "headers": f"{python['data']}/include/python{python['version']}",
    }
