"""Small projects and graphs for tests: real files, real stores, builders that write what they are told."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cache.build import BuildContext
from cache.store import Blob
from stages.builders import Builder
from stages.graph import DataInput, Graph, Input, Stage, StageInput


def without_gpu(description: str, *, device: str = "no GPU", platform: str = "linux/amd64", suite: str = "bookworm",
                python: str = "3.11", glibc: str = "2.36") -> str:
    """The beginning of a target for no GPU, on Debian: what follows is packages and the rest."""
    return f"""\
format: stagecraft.target.v1
description: {description}
platform: {platform}
device:
  name: {device}
  compute_capability: none
  arch_list: none
  cuda: none
  driver_floor: none
  memory: none
base:
  debian:
    suite: {suite}
python:
  version: "{python}"
  glibc: "{glibc}"
"""


TARGET = without_gpu("a small target for tests", device="none")

PLATFORM = {"os": "linux", "architecture": "amd64"}


def write_target(root: Path, name: str = "small", text: str = TARGET) -> Path:
    path = root / "targets" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def join(context: BuildContext) -> Mapping[str, Blob]:
    """A builder: `params["text"]` cut to `params["keep"]` letters, then the content of all inputs."""
    context.log(f"joining {len(context.inputs)} inputs")
    text = context.params["text"][: context.params.get("keep", 1000)]
    parts = [context.store.read(context.inputs[name]) for name in sorted(context.inputs)]
    return {"out": context.store.put(text.encode() + b"".join(parts))}


def broken(context: BuildContext) -> Mapping[str, Blob]:
    context.log("about to fail")
    raise OSError(5, "Input/output error")


def noting(context: BuildContext) -> Mapping[str, Blob]:
    context.note(f"fresh: {context.fresh}")
    return {"out": context.store.put(b"noted")}


def lying(context: BuildContext) -> Mapping[str, Blob]:
    return {"other": context.store.put(b"x")}


def stage(name: str, text: str, *needs: str, entry: str = "join", version: int = 1, **more: Input) -> Stage:
    inputs: dict[str, Input] = {need: StageInput(need, "out") for need in needs}
    builder = Builder(entry, version, ("out",), f"tests.support.project:{entry}")
    return Stage(name, name, builder, PLATFORM, {"text": text}, inputs | more)


def chain(count: int, **texts: str) -> Graph:
    """`s0 … s<n-1>`, each reading the one before; `texts` changes the text of some."""
    stages = [stage(f"s{i}", texts.get(f"s{i}", f"text {i} "), *([f"s{i - 1}"] if i else [])) for i in range(count)]
    return Graph("chain", tuple(stages))


def data(content: bytes) -> DataInput:
    from cache.canonical import sha256

    return DataInput(content, sha256(content))
