"""What is known of published vLLM wheels from having read them whole: what they ask of torch, and their device code.

The table `checks/data/vllm-wheels.<machine>.xz` is made by `bench/tools/torch_abi.py`. JSON: `format`
("stagecraft.vllm-wheels.v1"), `machine`, `wheels`: each with `name`, `version`, `file`, `sha256`, and `extensions`:
path of a library to `undefined` (its strong undefined names of torch's interfaces) and `kernels` (target as cuobjdump
says it, PTX with its ISA behind `@`, to the number of kernels). A wheel is known by its sha256 only.
"""

from __future__ import annotations

import functools
import json
import lzma
from collections.abc import Mapping
from dataclasses import dataclass

from checks.torch_abi import DATA

FORMAT = "stagecraft.vllm-wheels.v1"


@dataclass(frozen=True)
class Extension:
    """One library of a wheel: `kernels` maps `sm_110f` or `compute_80@9.0` to a number, above zero."""

    undefined: tuple[str, ...]
    kernels: Mapping[str, int]


@dataclass(frozen=True)
class KnownWheel:
    """One wheel by its sha256 (64 hex digits); `extensions` by member name."""

    name: str
    version: str
    file: str
    sha256: str
    extensions: Mapping[str, Extension]


@functools.cache
def known(machine: str) -> Mapping[str, KnownWheel]:
    """The known wheels for a machine by sha256."""
    path = DATA / f"vllm-wheels.{machine}.xz"
    if not path.exists():
        return {}
    data = json.loads(lzma.decompress(path.read_bytes()))
    if data["format"] != FORMAT:
        raise ValueError(f"not {FORMAT}")
    return {row["sha256"]: KnownWheel(row["name"], row["version"], row["file"], row["sha256"], {
        name: Extension(tuple(item["undefined"]), item["kernels"]) for name, item in row["extensions"].items()})
        for row in data["wheels"]}
