"""Gate `torch-cuda`: torch is a CUDA build, and of a CUDA that the target's driver runs.

A CPU build slips in where an index has no CUDA wheel for the machine, or a resolver takes another version (facts F1);
it shows on the device as "Torch not compiled with CUDA enabled". Evidence is torch/version.py, which is parsed and
never run, and libtorch_cuda.so; and METADATA, which can be had before the wheel: a CUDA wheel of an index requires
NVIDIA's libraries on the machines that it is for. It proves what torch was built with, not that it works.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement

from cache.layer import LayerReader
from checks.packages import packages
from checks.verdict import CheckInputs, Finding
from checks.wheel_set import environment

LIBRARY, VERSION = "torch/lib/libtorch_cuda.so", "torch/version.py"
_CURE = "take torch from an index that has CUDA builds for this machine (torch.index in the target), and lock again"


def run(inputs: CheckInputs) -> list[Finding]:
    """Findings as `judge` makes them."""
    site, wanted = inputs.facts["site"], inputs.facts["cuda"]
    if not wanted:
        return []  # a target without CUDA takes any torch
    torch = next((package for package in packages(inputs) if package["name"] == "torch"), None)
    if torch is None:
        return [Finding("error", "torch: version", "there is no torch", "torch", _CURE)]
    with LayerReader(inputs.store, inputs.outputs["torch/index"]) as layer:
        entry = layer.resolve(f"{site}/{LIBRARY}")
        library = entry is not None and entry["type"] == "file" and bool(entry["size"])
        return judge(torch, library, lambda: layer.read(f"{site}/{VERSION}"), inputs.facts, f"/{site}/")


def judge(torch: Mapping[str, Any], library: bool, version_py: Callable[[], bytes], facts: Mapping[str, Any],
          place: str) -> list[Finding]:
    """Judge torch, an entry of `packages`. Pure.

    Args:
        library: it has libtorch_cuda.so, and that is not empty.
        version_py: reads torch/version.py; raises FileNotFoundError.
        facts: `cuda`, `machine`, `python` of `checks.facts.torch_cuda`.
        place: put before paths, for `where`.

    Subjects: `torch: version`, `torch: version.py`, `torch: libtorch_cuda.so`, `torch: requirements`,
    `torch: CUDA <version>`.
    """
    wanted, machine, found = facts["cuda"], facts["machine"], []
    if "+cpu" in torch["version"]:
        found.append(Finding("error", "torch: version", f"torch {torch['version']} is a CPU build", "torch", _CURE))
    if not library:
        found.append(Finding("error", "torch: libtorch_cuda.so", "torch has no libtorch_cuda.so", place + LIBRARY,
                             _CURE))
    if not requires_nvidia(torch.get("requires_dist", ()), machine, facts["python"]):
        # Without other evidence it may be a build for a CUDA that comes from elsewhere, as for Jetson.
        found.append(Finding(
            "error" if found else "info", "torch: requirements", f"torch {torch['version']} requires no library of "
            f"NVIDIA on {machine}: " + ("a CPU build" if found else "its CUDA must come from elsewhere"),
            torch.get("file", ""), _CURE))
    where = place + VERSION
    try:
        said = assigned(version_py().decode())
    except (FileNotFoundError, SyntaxError, UnicodeDecodeError) as error:
        return [*found, Finding("error", "torch: version.py", f"cannot be read: {error}", where, _CURE)]
    cuda = said.get("cuda")
    if not isinstance(cuda, str):
        found.append(Finding("error", "torch: version.py", "torch.version.cuda is None: a CPU build", where, _CURE))
    elif not runs(cuda, wanted):
        found.append(Finding(
            "error", f"torch: CUDA {cuda}", f"torch is built for CUDA {cuda}, the target's driver brings {wanted}",
            where, "take a torch of the same CUDA major and of no newer minor, or correct device.cuda"))
    return found


def requires_nvidia(requirements: Iterable[str], machine: str, python: str) -> bool:
    """True if one of torch's `Requires-Dist` asks for a CUDA library on the machine. Pure.

    PyPI's torch 2.10.0 for aarch64 asks for them on x86_64 only (facts 2.4): it is the CPU build.
    """
    target = environment(machine, python)
    for text in requirements:
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        if requirement.name.lower().startswith(("nvidia-", "cuda-")) and (
                requirement.marker is None or requirement.marker.evaluate(target)):
            return True
    return False


def assigned(source: str) -> dict[str, object]:
    """Constants that a module assigns at its top, by name: `cuda: Optional[str] = '13.0'` gives {"cuda": "13.0"}.

    Raises:
        SyntaxError: not Python.
    """
    found: dict[str, object] = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Constant):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found.update({target.id: node.value.value for target in targets if isinstance(target, ast.Name)})
    return found


def runs(built: str, driver: str) -> bool:
    """True if code built with CUDA `built` runs on a driver of CUDA `driver`: same major, no newer minor.

    Older minors run by CUDA's minor version compatibility; a newer one brings PTX that the driver refuses.
    """
    try:
        major, minor = (int(part) for part in f"{built}.0".split(".")[:2])
        has, newest = (int(part) for part in f"{driver}.0".split(".")[:2])
    except ValueError:
        return False
    return major == has and minor <= newest
