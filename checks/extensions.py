"""Gate `extensions`: the compiled parts that this vLLM has are in the layer, whole and for the target's machine.

Which ones is data: `vllm/extensions.yaml`, by version and device. vLLM imports most of them with errors suppressed,
so a missing one shows on the device as a slow or failing kernel, not at start. Each must be a module that the image's
Python imports under its own name. It proves that the files are there and are ELF for the machine, not that they load or
hold code for the GPU.
"""

from __future__ import annotations

import re

from cache.layer import LayerReader
from checks.elf import DamagedElfError, read_elf
from checks.packages import packages
from checks.symbols import library
from checks.verdict import CheckInputs, Finding

_TAG = re.compile(r"cpython-(\d)(\d+)")


def run(inputs: CheckInputs) -> list[Finding]:
    """Findings with the extension's path below the site directory as subject, or `vllm` for the whole."""
    facts = inputs.facts
    site, machine = facts["site"], facts["machine"]
    vllm = next((package for package in packages(inputs) if package["name"] == facts["package"]), None)
    if vllm is None:
        return [Finding("error", "vllm", "the layer has no vLLM", "vllm", "lock again")]
    if vllm["version"] != facts["version"]:
        return [Finding("error", "vllm", f"the layer has vLLM {vllm['version']}, the lock {facts['version']}", "vllm",
                        "build again")]
    if not facts["known"]:
        return [Finding("error", "vllm", f"which extensions vLLM {facts['version']} must have is not known",
                        "vllm/extensions.yaml", "look into its wheel and add an entry, with its source, to that table")]
    found = []
    with LayerReader(inputs.store, inputs.outputs["vllm/index"]) as layer:
        for row in facts["rows"]:
            entry = layer.resolve(f"{site}/{row['file']}")
            if entry is None or entry["type"] != "file":
                found.append(Finding("error", row["file"], f"missing: {row['why']}", f"/{site}/{row['file']}",
                                     "take a vLLM that was built for CUDA and this device"))
        # Builds of one extension for several CPUs are libraries: their module has one name for all of them.
        required = {f"{site}/{row['file']}" for row in facts["rows"] if not row["operator"]}
        for path, entry in layer.entries.items():
            if entry["type"] == "file" and (path.endswith(".so") or ".so." in path or path in required):
                bad = _judge(layer, path, path.removeprefix(f"{site}/"), machine)
                found += bad or (_module(inputs, layer, path) if path in required else [])
    return found


def _module(inputs: CheckInputs, layer: LayerReader, path: str) -> list[Finding]:
    """What keeps a library from being imported as the module that its file is named for."""
    subject, python = path.removeprefix(f"{inputs.facts['site']}/"), inputs.facts["python"]
    name, *tags = path.rpartition("/")[2].removesuffix(".so").split(".")
    for tag in tags:
        built = _TAG.match(tag)
        if built is not None and f"{built[1]}.{built[2]}" != python:
            return [Finding("error", subject, f"built for Python {built[1]}.{built[2]}, the image has {python}: "
                            f"\"No module named '{name}'\"", f"/{path}",
                            f"take a wheel for Python {python}, or an abi3 one")]
    found = f"not a Python module: \"dynamic module does not define module export function (PyInit_{name})\""
    try:
        digest = str(layer.entries[path]["digest"])
        if f"PyInit_{name}" in library(inputs.store, digest, lambda: layer.open(path)).exports:
            return []
    except DamagedElfError as error:
        found = f"a damaged ELF file: {error}"
    return [Finding("error", subject, found, f"/{path}", "take a build that is whole")]


def _judge(layer: LayerReader, path: str, subject: str, machine: str) -> list[Finding]:
    cure = "take the wheel for this machine"
    try:
        with layer.open(path) as stream:
            elf = read_elf(stream)
    except DamagedElfError as error:
        return [Finding("error", subject, f"a damaged ELF file: {error}", f"/{path}", cure)]
    if elf is None:
        return [Finding("error", subject, "not an ELF file", f"/{path}", cure)]
    if elf.machine != machine:
        return [Finding("error", subject, f"compiled for {elf.machine}, the target is {machine}", f"/{path}", cure)]
    if elf.kind not in ("shared", "executable"):
        return [Finding("error", subject, f"an ELF file that cannot be loaded ({elf.kind})", f"/{path}", cure)]
    return []
