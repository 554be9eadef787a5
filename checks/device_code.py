"""Check `device-code`: every kernel that the device may be asked for has code that it can load.

Per kernel of every extension that the target needs: the best of its pieces by the rules of checks/loadability.py. What
a published vLLM leaves out for a device is noted (checks/baseline.py); a kernel beyond that fails, by its name. PTX
counts whatever its ISA: whether the driver takes it is the check `ptx-floor`. Of other libraries the headers are told.

It proves that the code loads, not that it computes right.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cache.layer import LayerReader
from checks import baseline
from checks.kernels import DamagedCodeError, DeviceCode, Headers, cubins, device_codes, headers
from checks.loadability import ANY_ISA, Device, Way, way
from checks.registry import WHEEL_STAGES
from checks.verdict import CheckInputs, Finding

_ERROR = "CUDA error: no kernel image is available for execution on the device"
#: Libraries without which nothing runs: they must have code for the device, though their kernels are not counted.
_BASIC = ("torch/lib/libtorch_cuda.so",)


def run(inputs: CheckInputs) -> list[Finding]:
    """Subjects: the library below the site directory; `<library>: <function>` for kernels without code."""
    facts = inputs.facts
    if not facts["capability"]:
        return []
    found: list[Finding] = []
    for stage in WHEEL_STAGES:
        if f"{stage}/index" not in inputs.outputs:
            continue
        index = inputs.outputs[f"{stage}/index"]
        with LayerReader(inputs.store, index) as layer:
            libraries = headers(inputs.store, layer, index)
            if stage == "vllm":
                found += _extensions(inputs, layer, libraries)
            else:
                found += _told(facts, libraries)
                found += _stripped(facts, layer, libraries) if stage == "torch" else ()
            found += [_cubins(package, archs, facts)
                      for package, archs in cubins(inputs.store, layer, index, facts["site"]).items()]
    return found


def _extensions(inputs: CheckInputs, layer: LayerReader, libraries: Mapping[str, Headers]) -> Iterator[Finding]:
    facts = inputs.facts
    site, version, capability = facts["site"], facts["version"], facts["capability"]
    if not facts["known"]:
        yield Finding("error", "vllm", f"which extensions vLLM {version} must have code of is not known",
                      "vllm/extensions.yaml", "look into its wheel and add an entry, with its source, to that table")
        return
    rows = {f"{site}/{row['file']}": row for row in facts["rows"]}
    noted = baseline.noted(version, capability)
    # One that is missing is the check `extensions`' business.
    for path, code in device_codes(inputs.store, layer, list(rows)).items():
        row, file = rows[path], rows[path]["file"]
        if row["host"] and (isinstance(code, DamagedCodeError) or not code.containers):
            continue
        if isinstance(code, DamagedCodeError):
            yield Finding("error", file, f"its device code cannot be read: {code}", f"/{path}", "take another build")
        else:
            yield from judge(code, file, f"/{path}", facts, None if noted is None else noted.get(file, frozenset()))
    others = {f"{site}/{row['file']}": row["why"] for row in facts["others"]}
    for path, found in libraries.items():
        if path in rows:
            continue
        told = _line(found, Device.of(facts))
        if path in others:
            yield Finding("info", path.removeprefix(f"{site}/"), f"{told}; not needed: {others[path]}", f"/{path}")
        else:
            yield Finding("warning", path.removeprefix(f"{site}/"),
                          f"{told}; nobody has said whether this device needs it", f"/{path}",
                          "add it to vllm/extensions.yaml, with its source")


def judge(code: DeviceCode, file: str, where: str, facts: Mapping[str, Any],
          noted: frozenset[str] | None) -> Iterator[Finding]:
    """Findings about a required extension. Pure.

    Args:
        noted: what stands for kernels that are known to have no code; None if nobody has looked.
    """
    device = Device.of(facts, ANY_ISA)
    cure = f"take a build that was compiled for {device.capability}"
    if not code.containers:
        yield Finding("error", file, f"it has no device code at all, it was stripped of it: \"{_ERROR}\"", where, cure)
        return
    if not code.consistent:
        yield Finding("error", file, f"{len(code.containers)} containers of device code, but {code.wrappers} are "
                      "registered: code was cut out, or added, after it was linked", where,
                      "take a build that is whole")
    ways = code.ways(device)
    if not any(ways.values()):
        yield Finding("error", file, f"none of its {len(ways)} kernels has code for compute capability "
                      f"{device.capability}, only for {_targets(code)}: \"{_ERROR}\"", where, cure)
        return
    lacking = [kernel for kernel, way in ways.items()
               if way is Way.NONE and baseline.note_of(kernel) not in (noted or frozenset())]
    if lacking and noted is None:
        yield Finding("warning", file, f"which kernels vLLM {facts['version']} leaves out for {device.capability} is "
                      "not known, so each counts", where,
                      f"{baseline.command(facts['version'], device.capability)}, and look at what it notes")
    for function, kernels in baseline.grouped(lacking).items():
        more = f" and {len(kernels) - 1} more of {function}" if len(kernels) > 1 else ""
        yield Finding("error", f"{file}: {function}", f"{shortened(kernels[0])}{more}: no code for compute capability "
                      f"{device.capability}, only for {', '.join(code.targets_of(kernels[0]))}: \"{_ERROR}\"",
                      where, cure)
    unknown = [kernel for kernel, way in ways.items() if way is Way.UNKNOWN]
    if unknown:
        yield Finding("warning", file, f"{len(unknown)} of {len(ways)} kernels, {shortened(unknown[0])} among them, "
                      f"may load on compute capability {device.capability} or not: sources disagree about code of "
                      f"another minor version ({', '.join(code.targets_of(unknown[0]))})", where)
    texts = [kernel for kernel, way in ways.items() if way is Way.PTX]
    native = any(row["file"] == file and row["native"] for row in facts["rows"])
    if texts and native and facts["policy"] == "native":
        yield Finding("error", file, f"{len(texts)} of {len(ways)} kernels, {shortened(texts[0])} among them, have PTX "
                      f"only: the target's policy is native, machine code for {device.capability}", where,
                      "build it for the device, or take device_code.policy out of the target")
    yield Finding("info", file, ", ".join(f"{number} {way.word if way else 'no code, as known'}"
                                          for way, number in sorted(_counted(ways).items(), reverse=True)), where)


def _counted(ways: Mapping[str, Way]) -> dict[Way, int]:
    found: dict[Way, int] = {}
    for one in ways.values():
        found[one] = found.get(one, 0) + 1
    return found


def _targets(code: DeviceCode) -> str:
    return ", ".join(sorted({piece.target for piece in code.pieces})) or "nothing"


def _told(facts: Mapping[str, Any], libraries: Mapping[str, Headers]) -> Iterator[Finding]:
    """The device code of what is not vLLM's."""
    device = Device.of(facts)
    for path, found in libraries.items():
        name = path.removeprefix(f"{facts['site']}/")
        none = not any(found.ways(Device.of(facts, ANY_ISA)))
        if name in _BASIC and (none or found.damaged):
            yield Finding("error", name, f"it has no code for compute capability {device.capability}, only for "
                          f"{', '.join(found.targets)}: \"{_ERROR}\"", f"/{path}",
                          f"take a torch that was compiled for {device.capability}")
        else:
            yield Finding("info", name, _line(found, device), f"/{path}")


def _stripped(facts: Mapping[str, Any], layer: LayerReader, libraries: Mapping[str, Headers]) -> Iterator[Finding]:
    """What must have device code and has none. One that is missing is the check `torch-cuda`'s business."""
    for name in _BASIC:
        path = f"{facts['site']}/{name}"
        entry = layer.resolve(path)
        if entry is not None and entry["type"] == "file" and entry["path"] not in libraries:
            yield Finding("error", name, f"it has no device code at all, it was stripped of it: \"{_ERROR}\"",
                          f"/{path}", f"take a torch that was compiled for {facts['capability']}")


def _cubins(package: str, archs: Mapping[int, int], facts: Mapping[str, Any]) -> Finding:
    """flashinfer#3344: thousands of prebuilt kernels for data-centre Blackwell; the device compiles what it lacks."""
    device = Device.of(facts)
    serve = sum(number for arch, number in archs.items() if way(f"sm_{arch}", device))
    listed = ", ".join(f"sm_{arch} {number}" for arch, number in sorted(archs.items()))
    return Finding("info", package, f"{sum(archs.values())} cubins as files, compiled for {listed}: "
                   f"{serve or 'none'} of them may serve {device.capability}", f"/{facts['site']}/{package}")


def _line(found: Headers, device: Device) -> str:
    """Best ways of its parts, and what it was compiled for."""
    if found.damaged:
        return f"its device code cannot be read: {found.damaged}"
    ways = ", ".join(f"{number} {way.word if way else 'nothing'}" for way, number
                     in sorted(found.ways(device).items(), reverse=True))
    return f"parts for {device.capability}: {ways or 'none'}; compiled for {', '.join(found.targets) or 'nothing'}"


def shortened(kernel: str, width: int = 90) -> str:
    """A mangled name, shortened in the middle."""
    return kernel if len(kernel) <= width else f"{kernel[: width // 2]}…{kernel[-(width - width // 2 - 1):]}"
