"""What the checks of shared libraries have in common: the image's libraries, and what a process has loaded already.

Used by `closure`, `abi` and `cuda-set`. Facts: see `checks.facts.libraries`.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

from checks.loader import Image, Scope
from checks.registry import LAYER_STAGES
from checks.tree import BASE, ImageTree, indexes
from checks.verdict import CheckInputs

#: libtorch's sonames are loaded by `import torch`, its C library dependencies with global scope.
_TORCH_FIRST = ("torch/lib/libtorch_global_deps.so", "torch/_C.*.so", "torch/_C.so")


class Libraries:
    """An image's libraries, judged with the facts of a target."""

    def __init__(self, image: Image, facts: Mapping[str, Any]) -> None:
        self.image, self.facts = image, facts
        self.site: str = facts["site"]

    def subject(self, path: str) -> str:
        """How findings call a file: below the site directory, else from the root."""
        return path.removeprefix(f"{self.site}/") if path.startswith(f"{self.site}/") else f"/{path}"

    @cached_property
    def required(self) -> frozenset[str]:
        """Paths of the extensions that the target needs: strictest rules."""
        return frozenset(f"{self.site}/{file}" for file in self.facts["required"])

    @cached_property
    def own(self) -> list[str]:
        """Libraries and programs for the machine."""
        return [path for path, lib in self.image.libraries.items() if lib.elf.machine == self.image.machine
                and lib.elf.kind in ("shared", "executable")]

    @cached_property
    def loaded(self) -> dict[str, str]:
        """Soname to path of what a Python process has after `import torch`; empty without torch."""
        found: dict[str, str] = {}
        for pattern in _TORCH_FIRST:
            for path in self.own:
                if fnmatchcase(path, f"{self.site}/{pattern}"):
                    for file in self.image.scope(path).files:
                        found.setdefault(self.image.libraries[file].elf.soname or file.rpartition("/")[2], file)
        return found

    @cached_property
    def interpreter(self) -> list[str]:
        """Files of the Python program: what every extension module may use."""
        path = self.image.tree.file(self.facts["executable"])
        return self.image.scope(path).files if path in self.image.libraries else []

    def in_python(self, path: str) -> bool:
        """True for what a Python process loads."""
        return path.startswith((f"{self.site}/", "usr/lib/python3", "usr/local/lib/python3"))

    def scope(self, path: str) -> Scope:
        """The loader's scope; for what lies in the site directory, in a process that has imported torch."""
        return self.image.scope(path, self.loaded) if path.startswith(f"{self.site}/") and self.loaded \
            else self.image.scope(path)

    def available(self, path: str) -> list[str]:
        """Every file whose symbols a reference of `path` may bind to."""
        found = self.scope(path).files
        if self.in_python(path):
            found = [*found, *self.interpreter]
        if path.startswith(f"{self.site}/"):
            found = [*found, *self.loaded.values()]
        return found

    @cached_property
    def company(self) -> dict[str, list[str]]:
        """File to the files that load it: in their scope it may have what its own lacks (vendored libraries)."""
        found: dict[str, list[str]] = {}
        for path in self.own:
            for file in self.scope(path).files[1:]:
                found.setdefault(file, []).append(path)
        return found

    def driver(self, name: str) -> bool:
        """True for a library that the device's driver brings."""
        return any(row["name"] == name or fnmatchcase(name, row["name"]) for row in self.facts["driver"])

    def driver_symbol(self, name: str) -> bool:
        """True for a name that a library of the driver exports."""
        return any(re.fullmatch(row["symbols"], name) for row in self.facts["driver"] if row["symbols"])

    def optional(self, path: str) -> Mapping[str, Any] | None:
        """The row of the table by which this file need not load."""
        return next((row for row in self.facts["optional"] if fnmatchcase(path, row["files"])), None)


_lock = threading.Lock()
_last: list[tuple[Any, Image]] = []  # gates of one target come one after the other


@contextmanager
def opened(inputs: CheckInputs) -> Iterator[Libraries]:
    """The libraries of the layers that a check reads."""
    facts = inputs.facts
    read = indexes(inputs.outputs, (BASE, *LAYER_STAGES))
    key = (str(inputs.store.root), read, facts["base"], facts["machine"], facts["library_path"])
    with ImageTree(inputs.store, read, facts["base"]) as tree, _lock:
        if not _last or _last[0][0] != key:
            _last[:] = [(key, Image(tree, facts["machine"], facts["library_path"]))]
        image = _last[0][1]
        image.tree = tree
        yield Libraries(image, facts)
