"""One checkout: its targets, locks, graphs, store and last builds, each read at most once a run.

Knows where things lie. Makes graphs out of the mission's stages (`stages.base` … `stages.image`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cache import canonical
from cache.store import Store
from checks.facts import SERVER_PARTS
from stages import backend, base, bytecode, cuda, deps, image, links, torch, triton, vllm
from stages.graph import Graph, Stage
from stages.lockfile import Lock
from stages.lockfile import load as load_lock
from stages.target import Target
from stages.target import load as load_target

if TYPE_CHECKING:
    from lock.source_lock import LockedTree


class Project:
    """`root` is the directory of dodo.py."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._targets: dict[str, Target] = {}
        self._locks: dict[str, Lock] = {}
        self._graphs: dict[str, Graph] = {}
        self._lock_data: dict[str, dict[str, Any]] = {}

    @cached_property
    def store(self) -> Store:
        return Store.open()

    def target(self, name: str) -> Target:
        if name not in self._targets:
            self._targets[name] = load_target(self.root, name)
        return self._targets[name]

    def lock(self, name: str) -> Lock:
        if name not in self._locks:
            self._locks[name] = load_lock(self.root, self.target(name))
        return self._locks[name]

    def lock_data(self, name: str) -> dict[str, Any]:
        """The lock as plain data, for checks."""
        if name not in self._lock_data:
            self._lock_data[name] = self.lock(name).to_json()
        return self._lock_data[name]

    def graph(self, name: str) -> Graph:
        if name not in self._graphs:
            self._graphs[name] = graph(self.target(name), self.lock(name), self.root)
        return self._graphs[name]

    def suites(self) -> list[dict[str, str]]:
        """The suites that the locks read in this run were resolved from."""
        return [dict(suite) for lock in self._locks.values()
                for suite in (*lock.base.get("suites", ()), *lock.emulator_suites,
                              *(suite for package in lock.sources for suite in package.tools.suites))]

    def trees(self) -> dict[str, tuple[LockedTree, Mapping[str, Sequence[str]]]]:
        """The Git trees of the locks read in this run, by digest, each with the mirrors of its target."""
        return {tree.tree: (tree, self.target(name).data["sources"]["mirrors"]) for name, lock in self._locks.items()
                for package in lock.sources for tree in package.all_trees()}

    def mirrors(self) -> dict[str, list[str]]:
        """The mirrors of the targets whose locks were read in this run, those of one prefix together."""
        found: dict[str, list[str]] = {}
        for name in self._locks:
            for prefix, places in self.target(name).data.get("sources", {}).get("mirrors", {}).items():
                found[prefix] = list(dict.fromkeys([*found.get(prefix, ()), *places]))
        return found

    def root_name(self, name: str) -> str:
        """The gc root of a target built in this checkout."""
        return f"{name}-{canonical.sha256(os.fsencode(self.root.absolute()))[7:19]}"

    def last(self, name: str) -> dict[str, Any]:
        """What the last build of a target left in its root: `stages` (name to action key), `manifest`; or {}."""
        return self.store.root_named(self.root_name(name)) or {}

    def result(self, name: str) -> Path:
        return self.root / f"result-{name}"


def graph(target: Target, lock: Lock, root: Path) -> Graph:
    """The stages of a target: layers as siblings, then the image, then what attests it."""
    layers: list[Stage] = [
        *base.stages(target, lock),
        *(stage for module in (cuda, torch, deps, vllm) if (stage := module.stage(target, lock)) is not None),
        *([names] if (names := links.stage(target, lock, root)) is not None else ()),
        *triton.stages(target, lock, root),
        *([served] if (served := backend.stage(target, root)) is not None else ()),
    ]
    read: list[Stage] = []
    parts: list[Stage] = []
    compiled: list[Stage] = []
    if lock.sources:
        from stages import sources  # only where something is compiled

        read = [stage for stage in layers if stage.name in sources.READ]
        made = sources.stages(target, lock, root, read)
        order = list(SERVER_PARTS.values())
        parts = sorted((stage for stage in made if stage.name in order), key=lambda stage: order.index(stage.name))
        compiled = [stage for stage in made if stage not in parts]
        at = next((number for number, stage in enumerate(layers) if stage.name == "backend"), len(layers))
        layers[at:at] = parts
    if (modules := bytecode.stage(target, lock, root, layers)) is not None:
        layers.append(modules)
    layers += triton.serve(target, lock, root)
    rest = [stage for stage in layers if stage not in read]
    facts = [stage for stage in rest if stage.name == "base-facts"]
    return Graph(target.name, (*facts, *read, *compiled, *(stage for stage in rest if stage not in facts),
                               *image.stages(target, lock, layers, [*compiled, *parts])))
