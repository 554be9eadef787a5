"""Gate `triton-stub`: the program that runs Python models fits the image's Python and numpy.

The stub links one libpython, and was compiled against one generation of numpy: with numpy 2 a stub made for numpy 1
reports READY and dies at the first inference (facts triton.md 7.2). Which numpy is data: `triton/pytriton-layout.yaml`,
and for a stub that was compiled here the pybind11 of its release, `triton/releases.yaml`.
"""

from __future__ import annotations

import re

from cache.layer import LayerReader
from checks.elf import DamagedElfError, Elf, read_elf
from checks.packages import packages
from checks.verdict import CheckInputs, Finding

STUB = "opt/tritonserver/backends/python/triton_python_backend_stub"

#: `libpython3.11.so.1.0`, and auditwheel's spelling `libpython3-931631c3.13.so.1.0`.
_LIBPYTHON = re.compile(r"libpython3(?:-[0-9a-f]+)?\.(\d+)\.so(?:\..*)?")


def run(inputs: CheckInputs) -> list[Finding]:
    """Findings with subjects `stub`, `stub: libpython`, `numpy`."""
    facts = inputs.facts
    found = []
    index = inputs.outputs.get("python-backend/index") or inputs.outputs["triton/index"]
    with LayerReader(inputs.store, index) as layer:
        try:
            with layer.open(STUB) as stream:
                elf = read_elf(stream)
            if elf is None:
                found.append(Finding("error", "stub", "not an ELF file", f"/{STUB}", "build the server tree again"))
            else:
                found += stub(elf, facts["python"], facts["machine"])
        except FileNotFoundError:
            found.append(Finding("error", "stub", "the server has no stub: no Python model can run", f"/{STUB}",
                                 "take a server with a stub for this Python"))
        except DamagedElfError as error:
            found.append(Finding("error", "stub", f"a damaged ELF file: {error}", f"/{STUB}",
                                 "fetch the server again"))
    if not facts["known"]:
        return [*found, Finding(
            "error", "numpy", f"which numpy the stub of {facts.get('part', 'nvidia-pytriton')} {facts['server']} was "
            "made for is not known", "triton/releases.yaml" if "part" in facts
            else "triton/pytriton-layout.yaml", "add an entry with its source to that table")]
    return found + numpy({package["name"]: package["version"] for package in packages(inputs)}, facts["numpy"])


def stub(elf: Elf, python: str, machine: str) -> list[Finding]:
    """Judge the stub by its ELF header and what it links. Pure."""
    found = []
    if elf.machine != machine:
        found.append(Finding("error", "stub", f"compiled for {elf.machine}, the target is {machine}", f"/{STUB}",
                             "take the server for this machine"))
    linked = [f"3.{match[1]}" for match in map(_LIBPYTHON.fullmatch, elf.needed) if match]
    if linked != [python]:
        found.append(Finding("error", "stub: libpython", f"links Python {', '.join(linked) or 'none'}, the image has "
                             f"{python}", f"/{STUB}", "take a server with a stub for this Python"))
    return found


def numpy(versions: dict[str, str], wanted: str) -> list[Finding]:
    """Judge the set's numpy against what the stub was made for ("<2"; empty: any). Pure."""
    from packaging.specifiers import SpecifierSet

    if "numpy" not in versions:
        return [Finding("warning", "numpy", "no numpy among the wheels: Python models need one", "", "add numpy")]
    if SpecifierSet(wanted).contains(versions["numpy"], prereleases=True):
        return []
    return [Finding("error", "numpy", f"numpy {versions['numpy']}; the stub was made for numpy{wanted} and dies at the "
                    "first inference with another", "", "override numpy in the target (wheels.overrides); lock again")]
