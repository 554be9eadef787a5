"""Check `ptx-floor`: the driver of the device can compile the PTX that it will be handed.

PTX matters where a kernel has nothing better for the device: then the driver compiles it when it is first used, if it
knows the PTX ISA, which is that of its own CUDA (checks/data/ptx-isa.yaml). A kernel with machine code, or with PTX of
an older ISA too, is never asked that question; nor is PTX for a later device.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cache.layer import LayerReader
from checks.device_code import shortened
from checks.kernels import DamagedCodeError, DeviceCode, Headers, device_codes, headers
from checks.loadability import ANY_ISA, Device, Way, best, numbers, way
from checks.registry import WHEEL_STAGES
from checks.verdict import CheckInputs, Finding

_ERROR = "cudaErrorUnsupportedPtxVersion: the provided PTX was compiled with an unsupported toolchain"


def run(inputs: CheckInputs) -> list[Finding]:
    """Subjects: the library below the site directory; `driver` if what it compiles is not known."""
    facts = inputs.facts
    if not facts["capability"]:
        return []
    if not facts["isa"]:
        return [Finding("error", "driver", f"which PTX a driver of CUDA {facts['cuda']} compiles is not known",
                        "checks/data/ptx-isa.yaml", "add a row, with its source, to that table")]
    found: list[Finding] = []
    for stage in WHEEL_STAGES:
        if f"{stage}/index" not in inputs.outputs:
            continue
        index = inputs.outputs[f"{stage}/index"]
        with LayerReader(inputs.store, index) as layer:
            rows = {f"{facts['site']}/{file}": file for file in facts["rows"]} if stage == "vllm" else {}
            for path, code in device_codes(inputs.store, layer, list(rows)).items():
                if not isinstance(code, DamagedCodeError):  # which `device-code` says
                    found += judge(code, rows[path], f"/{path}", facts)
            for path, library in headers(inputs.store, layer, index).items():
                if path not in rows:
                    found += _other(library, path.removeprefix(f"{facts['site']}/"), f"/{path}", facts)
    return found


def judge(code: DeviceCode, file: str, where: str, facts: Mapping[str, Any]) -> Iterator[Finding]:
    """Findings about a required extension. Pure."""
    any_driver, device = Device.of(facts, ANY_ISA), Device.of(facts)
    compiled = {kernel for kernel, found in code.ways(any_driver).items() if found is Way.PTX}
    if not compiled:
        return
    refused = [kernel for kernel, found in code.ways(device).items() if found is Way.NEWER_PTX and kernel in compiled]
    isas: dict[int, str] = {}
    for piece in code.pieces:
        if "@" in piece.target and way(piece.target, any_driver) is Way.PTX:
            isa = piece.target.partition("@")[2]
            for number in piece.kernels:
                isas[number] = min(isas.get(number, isa), isa, key=numbers)
    needed = max((isas[number] for number, name in enumerate(code.names) if name in compiled), key=numbers)
    if refused:
        yield Finding("error", file, f"this image asks for a driver newer than CUDA {facts['cuda']}'s "
                      f"({facts['floor']}): {len(refused)} of its kernels, {shortened(refused[0], 60)} among them, "
                      f"have only PTX of ISA {needed} for the device, and the driver compiles PTX up to {device.isa}: "
                      f"\"{_ERROR}\"", where, _cure(needed, facts))
    else:
        yield Finding("info", file, f"{len(compiled)} kernels are compiled by the driver, from PTX of ISA {needed} at "
                      f"most; it takes {device.isa}", where)


def _other(library: Headers, name: str, where: str, facts: Mapping[str, Any]) -> Iterator[Finding]:
    """A warning about a library whose kernels are not counted: some of its parts may have none."""
    any_driver, device = Device.of(facts, ANY_ISA), Device.of(facts)
    number, newest = 0, "0.0"
    for targets, count in library.containers:
        code = [target for target in targets if " " not in target]
        if best(code, device) is Way.NEWER_PTX:
            number += count
            isas = [target.partition("@")[2] for target in code if way(target, any_driver) is Way.PTX]
            newest = max(newest, min(isas, key=numbers), key=numbers)
    if number:
        yield Finding("warning", name, f"{number} of its {library.count} parts have only PTX of ISA {newest} for the "
                      f"device, whose driver compiles PTX up to {device.isa}: \"{_ERROR}\"", where,
                      _cure(newest, facts))


def _cure(isa: str, facts: Mapping[str, Any]) -> str:
    row = next((row for row in facts["drivers"] if numbers(row["isa"]) >= numbers(isa)), None)
    driver = f"CUDA {row['cuda']}" + (f" (driver {row['driver']})" if row["driver"] else "") if row else "a later CUDA"
    return (f"take a build by CUDA {facts['cuda']} or older, or with machine code for {facts['capability']}; "
            f"or a device whose driver is of {driver} or newer")
