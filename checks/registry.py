"""Every check there is, as data. The one place to add one; docs/checks.md says how.

Importing this costs next to nothing: what a check needs is imported when its facts are asked for or it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from checks import facts, triton_releases

#: The stages that hold wheels, in the order in which an image stacks them: a later one hides an earlier one's files.
WHEEL_STAGES = ("cuda", "torch", "deps", "vllm")

#: All stages that make layers of an image, lowest first.
LAYER_STAGES = ("base", *WHEEL_STAGES, "links", "triton", "python-backend", "backend", "bytecode", "serve")


@dataclass(frozen=True)
class Check:
    """One property of built outputs.

    Attributes:
        id: what waivers and reports call it.
        version: raised when the same outputs and facts may get another verdict; old verdicts are then not used.
        title: one line for people, what is true when it passes.
        after: the stages behind which it stands: it concerns a target that has one of them.
        outputs: `(stage, output)` it reads, of those that a target has. Not `layer`: an index names its layer.
        facts: target and lock (plain data) to everything else that it reads, as canonical JSON values: fields of the
            target, rows of data tables. A part of the verdict's key, so a verdict for one device is no verdict
            for another.
        entry: "module:function"; the function takes `checks.verdict.CheckInputs` and returns a list of `Finding`.
        runs: it runs the image's code: the lock's emulator for this host is fetched for it.
    """

    id: str
    version: int
    title: str
    after: tuple[str, ...]
    outputs: tuple[tuple[str, str], ...]
    facts: Callable[[Mapping[str, Any], Mapping[str, Any]], Mapping[str, Any]]
    entry: str
    runs: bool = False


def _of(*outputs: str) -> tuple[tuple[str, str], ...]:
    return tuple((stage, output) for stage in WHEEL_STAGES for output in outputs)


#: Indexes of the whole file system; of a base image, what its layers hold together.
_ALL_FILES = (("base-facts", "index"), *((stage, "index") for stage in LAYER_STAGES))

CHECKS: tuple[Check, ...] = (
    Check("torch-cuda", 2, "torch is a build for the target's CUDA", ("torch",),
          (("torch", "index"), ("torch", "packages")), facts.torch_cuda, "checks.torch_cuda:run"),
    Check("wheel-set", 5, "the wheels satisfy each other, and no layer hides another's file", WHEEL_STAGES,
          _of("index", "packages"), facts.wheel_set, "checks.wheel_set:run"),
    Check("python", 1, "scripts and extension modules are for the image's Python", WHEEL_STAGES,
          _of("index"), facts.python, "checks.python:run"),
    Check("extensions", 2, "this vLLM's compiled extensions are there, for the target's machine", ("vllm",),
          (("vllm", "index"), ("vllm", "packages")), facts.extensions, "checks.extensions:run"),
    Check("device-code", 3, "every kernel that the device needs has code that it loads", ("torch", "vllm"),
          _of("index"), facts.device_code, "checks.device_code:run"),
    Check("contents", 1, "a vLLM from source holds the device code that its own CMake files ask for",
          ("vllm-expected",), (("vllm-expected", "index"), ("vllm", "index")), facts.contents, "checks.contents:run"),
    Check("ptx-floor", 1, "the device's driver can compile the PTX that it is handed", ("torch", "vllm"),
          _of("index"), facts.ptx_floor, "checks.ptx_floor:run"),
    Check("ptxas", 1, "the ptxas that Triton-lang runs knows the device", ("torch",),
          _ALL_FILES, facts.ptxas, "checks.ptxas:run"),
    Check("flashinfer", 1, "flashinfer has its kernels, or the image can compile them on the device", ("torch",),
          _ALL_FILES, facts.flashinfer, "checks.flashinfer:run"),
    Check("triton-stub", 1, "Triton's Python stub is for the image's Python and numpy", ("triton",),
          (("triton", "index"), ("triton", "packages"), ("python-backend", "index"), *_of("packages")),
          facts.triton_stub, "checks.triton_stub:run"),
    Check("triton-pair", 1, "Triton's server and backend go with this Python, CUDA and vLLM", ("triton",),
          (("triton", "packages"),), triton_releases.pair, "checks.triton_pair:run"),
    Check("backend-imports", 1, "what Triton's vLLM backend imports of vLLM is there", ("backend",),
          (("backend", "index"), ("vllm", "index")), facts.backend_imports, "checks.backend_imports:run"),
    Check("closure", 3, "every library that a file asks for is there, where the loader finds it", LAYER_STAGES,
          (*_ALL_FILES, *_of("packages")), facts.closure, "checks.closure:run"),
    Check("abi", 1, "every symbol that a library leaves undefined is in what is loaded with it", LAYER_STAGES,
          _ALL_FILES, facts.abi, "checks.abi:run"),
    Check("cuda-set", 3, "the CUDA libraries are of one release", WHEEL_STAGES,
          (*_ALL_FILES, *_of("packages")), facts.cuda_set, "checks.cuda_set:run"),
    Check("advisories", 1, "no part has a known security hole, nor a fault that this device meets",
          (*WHEEL_STAGES, "triton"), (*_of("packages"), ("triton", "packages")), facts.advisories,
          "checks.advisories:run"),
    Check("bytecode", 2, "all bytecode is of the modules beside it, takes no file's place, and most modules have some",
          ("bytecode",), _ALL_FILES, facts.bytecode, "checks.bytecode:run"),
    Check("cpu-isa", 1, "no code needs a CPU that the target does not promise", WHEEL_STAGES,
          _of("index"), facts.cpu_isa, "checks.cpu_isa:run"),
    Check("image", 3, "the image says what it holds, holds no secrets, and asks for no newer driver", ("image",),
          (("image", "config"), ("image", "manifest"), *_ALL_FILES, *_of("packages"), ("triton", "packages")),
          facts.image, "checks.image:run"),
    Check("load", 1, "torch, every required extension and vLLM load in the image's own Python", ("torch",),
          _ALL_FILES, facts.load, "checks.load:run", runs=True),
)


def check(name: str) -> Check:
    """The check of that id.

    Raises:
        KeyError: there is none.
    """
    for found in CHECKS:
        if found.id == name:
            return found
    raise KeyError(name)
