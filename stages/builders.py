"""The builders: name, version, what they give, where their code is. The one place to add one.

A version is raised whenever the same derivation would give other bytes; `tests/golden` fails if that is forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cache.build import BuildContext
from cache.store import Blob


@dataclass(frozen=True)
class Builder:
    """`entry` is "module:function"; the module is imported only when a stage must be built."""

    name: str
    version: int
    outputs: tuple[str, ...]
    entry: str

    def load(self) -> Callable[[BuildContext], Mapping[str, Blob]]:
        import importlib

        module, _, function = self.entry.partition(":")
        found: Callable[[BuildContext], Mapping[str, Blob]] = getattr(importlib.import_module(module), function)
        return found


BUILDERS: Mapping[str, Builder] = {
    builder.name: builder
    for builder in (
        Builder("debs-layer", 1, ("layer", "index", "packages"), "assemble.debs:build"),
        Builder("wheels-layer", 1, ("layer", "index", "packages"), "assemble.wheels:build"),
        Builder("triton-tree", 1, ("layer", "index", "packages"), "assemble.triton_tree:build"),
        Builder("server-tree", 1, ("layer", "index", "packages"), "oci.server_tree:build"),
        Builder("files-layer", 1, ("layer", "index"), "assemble.files:build"),
        Builder("base-facts", 1, ("status", "passwd", "group", "os-release", "index"), "oci.base:build"),
        Builder("image", 1, ("config", "manifest"), "oci.image:build"),
        Builder("attest", 1, ("sbom", "provenance"), "oci.attest:build"),
        Builder("source-tree", 1, ("csrc", "csrc-index", "python", "python-index", "facts"),
                "assemble.source_tree:build"),
        Builder("tools-layer", 1, ("layer", "index", "packages"), "assemble.tools:build"),
        Builder("run-script", 1, ("layer", "index"), "executors.run_stage:build"),
        Builder("run-part", 1, ("layer", "index", "packages"), "executors.run_stage:part"),
        Builder("source-wheel", 1, ("wheel", "facts"), "assemble.source_wheel:build"),
        Builder("compressed-layer", 1, ("layer",), "oci.compress:build"),
    )
}
