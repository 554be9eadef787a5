"""Gate `image`: the finished image, judged as whoever pulls it has it: configuration, manifest, and files under them.

Secrets (`checks.secrets`), environment (`checks.image_environment`), the number of layers, labels made again from what
the layers hold, RECORD files (`checks.records`), and whether it asks for a newer driver than the device has. It stands
between the image and everything that is made of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from packaging.version import InvalidVersion, Version

from cache.layer import LayerReader, read_index
from checks import image_environment, records, secrets
from checks.packages import packages
from checks.registry import LAYER_STAGES, WHEEL_STAGES
from checks.tree import BASE
from checks.verdict import CheckInputs, Finding

#: overlay2 takes no more; Docker's answer is "max depth exceeded" (facts F26).
MOST_LAYERS = 127

#: Label to the package whose version it states.
_VERSIONS = {"io.stagecraft.torch": "torch", "io.stagecraft.triton": "triton-inference-server"}

_RUNTIME = re.compile(r"libcudart(-[0-9a-f]{8})?\.so\.(\d+)\.(\d+)(\.\d+)*")


def run(inputs: CheckInputs) -> list[Finding]:
    """Findings with subjects as the functions that it calls make them."""
    facts = inputs.facts
    config = json.loads(inputs.store.read(inputs.outputs["image/config"]))
    manifest = json.loads(inputs.store.read(inputs.outputs["image/manifest"]))
    environment = dict(text.partition("=")[::2] for text in config.get("config", {}).get("Env") or ())
    with ExitStack() as stack:
        readers = {stage: stack.enter_context(LayerReader(inputs.store, inputs.outputs[f"{stage}/index"]))
                   for stage in LAYER_STAGES if f"{stage}/index" in inputs.outputs}
        paths = {path for reader in readers.values() for path, entry in reader.entries.items()
                 if entry["type"] != "directory"}
        if f"{BASE}/index" in inputs.outputs:
            paths |= {entry["path"] for entry in read_index(inputs.store, inputs.outputs[f"{BASE}/index"])
                      if entry["type"] != "directory"}
        found = [
            *layers(manifest, config, inputs.outputs["image/config"], [reader.layer for reader in readers.values()]),
            *secrets.configuration(config, facts["secrets"]), *secrets.files(paths, facts["secrets"]),
            *_settings(readers, facts["secrets"]),
            *image_environment.variables(environment, facts["variables"]),
            *image_environment.shadows(environment, paths, facts["site"]),
            *image_environment.preloads(environment, paths),
            *labels(config.get("config", {}).get("Labels") or {}, facts["labels"],
                    [*packages(inputs), *packages(inputs, "generic")], facts["vllm"]),
            *locked(packages(inputs), facts["wheels"]),
        ]
        if facts["executable"].lstrip("/") not in paths:
            found.append(Finding("error", "label: io.stagecraft.python",
                                 f"the label says Python {facts['python']}, and there is no {facts['executable']}",
                                 facts["executable"], "lock again for this base"))
        if facts["cuda"]:
            found += image_environment.architectures(environment, facts["arch_list"])
            found += image_environment.requirements(environment, facts["cuda"], facts["driver"])
            found += runtimes(paths, facts["cuda"], facts["driver"])
            found += _visible(environment)
        for stage in WHEEL_STAGES:
            if stage in readers:
                found += records.judge(readers[stage], facts["site"], facts["collisions"])
    return found


def layers(manifest: Mapping[str, Any], config: Mapping[str, Any], digest: str, own: Sequence[str]) -> list[Finding]:
    """Judge the layers of an image. Pure. Subjects: `layers` (too many), `manifest` (not of these parts).

    Args:
        digest: of the configuration.
        own: digests of the layers that stages made, lowest first: the upper layers of the image.
    """
    found = []
    listed = manifest.get("layers", ())
    diff_ids = config.get("rootfs", {}).get("diff_ids", ())
    if len(listed) > MOST_LAYERS:
        found.append(Finding("error", "layers", f"{len(listed)} layers; on the device: max depth exceeded (at most "
                             f"{MOST_LAYERS})", "manifest", "take a base image of fewer layers"))
    wrong = [
        *(["another configuration"] if manifest.get("config", {}).get("digest") != digest else []),
        *([f"{len(listed)} layers and {len(diff_ids)} diff ids"] if len(listed) != len(diff_ids) else []),
        *(["other layers than were made"] if own and list(diff_ids[-len(own):]) != list(own) else []),
    ]
    if wrong:
        found.append(Finding("error", "manifest", f"names {', '.join(wrong)}", "manifest", "build again"))
    return found


def labels(written: Mapping[str, str], expected: Mapping[str, str],
           listed: Iterable[Mapping[str, Any]], vllm: str = "vllm") -> list[Finding]:
    """Judge labels by the target, the lock and the packages in the layers. Pure. Subject: `label: <name>`.

    Args:
        expected: label to text as target and lock have it.
        listed: packages of all layers.
        vllm: the one among them that holds the package vllm.
    """
    versions = {package["name"]: package["version"] for package in listed}
    found = [_label(name, written.get(name, ""), text, "the target and its lock say")
             for name, text in expected.items() if written.get(name, "") != text]
    for name, package in {**_VERSIONS, "io.stagecraft.vllm": vllm}.items():
        if not _same(written.get(name, ""), versions.get(package, "")):
            truth = versions.get(package, "")
            found.append(_label(name, written.get(name, ""), truth, f"the {package} in the layers is"))
    return found


def _label(name: str, says: str, truth: str, whose: str) -> Finding:
    return Finding("error", f"label: {name}", f"says {says or 'nothing'}, {whose} {truth or 'nothing'}",
                   f"the label {name}", "build again; labels are derived, never written")


def _same(one: str, two: str) -> bool:
    try:
        return bool(one) == bool(two) and (not one or Version(one) == Version(two))
    except InvalidVersion:
        return one == two


def locked(listed: Iterable[Mapping[str, Any]], wheels: Mapping[str, str]) -> list[Finding]:
    """Wheels in the layers and wheels in the lock (file to sha256, empty if it was compiled), each against the other.

    Subject: `lock: <file>`.
    """
    there = {package["file"]: package["digest"] for package in listed}
    found = [(file, "the lock names it, no layer has it") for file in wheels if file not in there]
    found += [(file, "a layer has it, the lock does not name it") for file in there if file not in wheels]
    found += [(file, "a layer has it with other bytes than the lock names")
              for file, digest in there.items() if wheels.get(file) and digest != f"sha256:{wheels[file]}"]
    return [Finding("error", f"lock: {file}", what, file, "build again") for file, what in sorted(found)]


def runtimes(paths: Iterable[str], cuda: str, driver: str) -> list[Finding]:
    """Copies of the CUDA runtime that are newer than the driver's CUDA. Pure. Subject: `driver: <library>`."""
    found = []
    for path in sorted(paths):
        match = _RUNTIME.fullmatch(path.rpartition("/")[2])
        if match and (int(match[2]), int(match[3])) > tuple(int(part) for part in cuda.split(".")[:2]):
            found.append(Finding(
                "error", f"driver: {match[0]}", "this image asks for a newer driver than the device has: its runtime "
                f"is of CUDA {match[2]}.{match[3]}, driver {driver} brings {cuda}; on the device: CUDA driver version "
                "is insufficient for CUDA runtime version", f"/{path}", f"take wheels or a base of CUDA {cuda}"))
    return found


def _visible(environment: Mapping[str, str]) -> list[Finding]:
    """Warn of an environment that gets no GPU from the container runtime. Subject: `NVIDIA_VISIBLE_DEVICES`."""
    if environment.get("NVIDIA_VISIBLE_DEVICES") not in (None, "", "void", "none"):
        return []
    return [Finding("warning", "NVIDIA_VISIBLE_DEVICES", "without it the container gets a GPU only where the run asks "
                    "for one (--gpus, a device of CDI)", "the environment", "NVIDIA_VISIBLE_DEVICES: all")]


def _settings(readers: Mapping[str, LayerReader], rules: Mapping[str, Any]) -> list[Finding]:
    """Tokens in small files of settings of own layers."""
    found = []
    matches = secrets.any_of(rules["read"])
    for reader in readers.values():
        for path, entry in reader.entries.items():
            if entry["type"] == "file" and entry["size"] < 1 << 16 and matches(path):
                found += secrets.content(path, reader.read(path).decode("utf-8", "replace"), rules)
    return found
