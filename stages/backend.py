"""The `backend` stage: Triton's vLLM backend, files of the repository, at /opt/tritonserver/backends/vllm."""

from __future__ import annotations

import os
from pathlib import Path

from cache.errors import InputError
from stages.builders import BUILDERS
from stages.graph import Stage
from stages.layers import platform
from stages.target import Target
from stages.triton import ROOT, source

DIRECTORY = "triton/backend"
PLACE = f"{ROOT}/backends/vllm"


def stage(target: Target, root: Path) -> Stage | None:
    """None for a target without Triton or without vLLM, or that wants no backend, or NVIDIA's (`stages.sources`).

    Raises:
        InputError: a file of it cannot be read.
    """
    wanted = target.data.get("triton", {}).get("backend", "stagecraft")
    if "triton" not in target.data or "vllm" not in target.data or wanted != "stagecraft":
        return None
    names = files(root)
    return Stage(
        "backend", "vLLM backend of Triton", BUILDERS["files-layer"], platform(target),
        {"files": [{"path": f"{PLACE}/{name}", "copy": name, "mode": 0o644} for name in names], "values": {}},
        {name: source(root, f"{DIRECTORY}/{name}") for name in names})


def files(root: Path) -> list[str]:
    """Names of the backend's files, sorted."""
    try:
        found = sorted(name for name in os.listdir(root / DIRECTORY) if name.endswith((".py", ".json")))
    except OSError as error:
        raise InputError("the vLLM backend of Triton is not there", where=DIRECTORY, found=error.strerror,
                         cure="restore it from version control") from error
    if "model.py" not in found:
        raise InputError("the vLLM backend of Triton has no model.py", where=DIRECTORY,
                         cure="restore it from version control")
    return found
