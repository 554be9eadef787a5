"""The `bytecode` stage: .pyc files of the image's modules, compiled by the image's own Python in an executor.

Neither wheels nor unpacked Debian packages bring any, and an image's user may not write them, so that without this
layer each start compiles all that it imports. See docs/bytecode.md and `templates/compile_bytecode.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cache.errors import InputError
from stages.base import image_layers
from stages.builders import BUILDERS
from stages.graph import FileInput, Input, Stage, StageInput
from stages.layers import platform
from stages.lockfile import Lock
from stages.target import Target
from stages.triton import ROOT, source

if TYPE_CHECKING:
    from stages.schema import Document

PROGRAM = "templates/compile_bytecode.py"
#: Directories of modules beside the standard library, which the program finds itself.
DIRECTORIES = ("/usr/lib/python3/dist-packages", f"/{ROOT}/backends")
#: Layers without modules: a change there compiles nothing again.
WITHOUT = ("links",)
#: The first Python with the option -P, and whose hash of sources the check `bytecode` can compute.
OLDEST = (3, 11)


def refuse(data: Mapping[str, Any], document: Document) -> None:
    """Raises InputError for a target that asks for bytecode of a Python that the program or its check cannot serve."""
    from checks import facts

    version = data["python"]["version"]
    known = [python for python in facts.bytecode_pythons() if facts.release(python) >= OLDEST]
    if data.get("bytecode", False) and version not in known:
        older = facts.release(version) < OLDEST
        raise InputError(f"no bytecode is made for Python {version}" + (": it has no option -P" if older else ""),
                         where=document.place(("bytecode",)), expected=f"Python {', '.join(known)}", found=version,
                         cure="set bytecode: false" + ("" if older else ", or add a row to checks/data/bytecode.yaml"))


def stage(target: Target, lock: Lock, root: Path, layers: Sequence[Stage]) -> Stage | None:
    """None for a target that does not ask for it.

    Args:
        layers: all stages of layers below, lowest first.
    """
    if not target.data.get("bytecode", False):
        return None
    below: list[tuple[str, Input]] = []
    if lock.base["kind"] == "image":
        below += [("base-image", FileInput("oci", layer)) for layer in image_layers(lock)]
    below += [(one.name, StageInput(one.name, "layer")) for one in layers
              if "layer" in one.builder.outputs and one.name not in WITHOUT]
    inputs: dict[str, Input] = {f"root/{number:03}-{name}": given for number, (name, given) in enumerate(below)}
    inputs[f"file/{Path(PROGRAM).name}"] = source(root, PROGRAM)
    inputs |= {f"emulator/{deb.filename}": FileInput("deb", deb) for deb in lock.emulator}
    python = lock.python
    return Stage(
        "bytecode", "bytecode of Python's modules", BUILDERS["run-script"], platform(target),
        {"machine": target.machine, "collect": "out", "into": "",
         # Without site: no .pth file of a package runs. Warnings are the packages' own affair.
         "command": [python["executable"], "-S", "-P", "-B", "-W", "ignore", f"/inputs/files/{Path(PROGRAM).name}",
                     "/build/out", f"/{python['site']}", *DIRECTORIES],
         "environment": {"LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0"},
         "emulators": [{"name": deb.name, "version": deb.version, "architecture": deb.architecture,
                        "sha256": deb.sha256} for deb in lock.emulator]},
        inputs, kind="run")
