"""Stages and their identities. Pure: values in, keys out.

A stage is a description; its derivation (`stagecraft.derivation.v1`, ARCHITECTURE.md) is what gets hashed. With the
plan keys of its dependencies it gives the *plan key* (known before anything is built); with their output digests the
*action key*, the only key for results.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cache import canonical
from stages.builders import Builder
from stages.lockfile import LockedFile


@dataclass(frozen=True)
class FileInput:
    """A locked file; `kind` says how it is fetched: "wheel", "deb" or "oci"."""

    kind: str
    locked: LockedFile


@dataclass(frozen=True)
class SourceInput:
    """A file of the repository: `path` relative to the project, `digest` of its content when the plan was made."""

    path: str
    digest: str


@dataclass(frozen=True)
class DataInput:
    """Bytes that the plan itself made (a resolved target, say)."""

    content: bytes
    digest: str


@dataclass(frozen=True)
class BlobInput:
    """A blob that is in the store already."""

    digest: str


@dataclass(frozen=True)
class StageInput:
    """Output `output` of stage `stage` of the same graph."""

    stage: str
    output: str


Input = FileInput | SourceInput | DataInput | BlobInput | StageInput


@dataclass(frozen=True)
class Stage:
    """A pure description of one step.

    Attributes:
        name: its name in the graph ("torch"); no part of its identity.
        title: one line for people.
        builder: name in `stages.builders.BUILDERS`, or a Builder of its own.
        params: everything the builder reads beside its inputs; canonical JSON values.
        inputs: input name to input.
        gates: ids of the checks that must pass before this stage may start.
        mirrors: what in this stage only restates the inputs of others (prefixes of change paths, as `why` shows them);
            such a change is no cause of its own while a stage that it depends on changes too.
        labels: what an image with this layer says of it; no part of this stage's identity.
    """

    name: str
    title: str
    builder: Builder
    platform: Mapping[str, str]
    params: Mapping[str, Any]
    inputs: Mapping[str, Input]
    gates: tuple[str, ...] = ()
    mirrors: tuple[str, ...] = ()
    kind: str = "assemble"
    environment: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in ("assemble", "run"):
            raise ValueError(f"{self.name}: unknown kind {self.kind!r}")

    def dependencies(self) -> tuple[str, ...]:
        """Names of the stages whose outputs it reads, each once, in order."""
        return tuple(dict.fromkeys(i.stage for i in self.inputs.values() if isinstance(i, StageInput)))

    def derivation(self, of_stage: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
        """The derivation, given for every dependency `{"plan": key}` or its outputs `{output: digest}`."""
        inputs: dict[str, Any] = {}
        for name, item in self.inputs.items():
            if isinstance(item, StageInput):
                known = of_stage[item.stage]
                inputs[name] = ({"plan": known["plan"], "output": item.output} if "plan" in known
                                else {"digest": known[item.output]})
            elif isinstance(item, FileInput):
                inputs[name] = {"digest": item.locked.digest}
            else:
                inputs[name] = {"digest": item.digest}
        return {
            "format": "stagecraft.derivation.v1",
            "kind": self.kind,
            "builder": {"name": self.builder.name, "version": self.builder.version},
            "platform": dict(self.platform),
            "environment": dict(self.environment),
            "params": self.params,
            "inputs": inputs,
        }


@dataclass(frozen=True)
class Graph:
    """Stages of one target in an order in which each comes after what it needs."""

    target: str
    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for stage in self.stages:
            for name in stage.dependencies():
                if name not in seen:
                    raise ValueError(f"stage {stage.name} needs {name}, which does not come before it")
            if stage.name in seen:
                raise ValueError(f"two stages named {stage.name}")
            seen.add(stage.name)

    def stage(self, name: str) -> Stage:
        return next(stage for stage in self.stages if stage.name == name)

    def closure(self, name: str) -> tuple[Stage, ...]:
        """The stage and everything it needs, in order."""
        wanted = {name}
        for stage in reversed(self.stages):
            if stage.name in wanted:
                wanted.update(stage.dependencies())
        return tuple(stage for stage in self.stages if stage.name in wanted)


def key_of(derivation: Mapping[str, Any]) -> str:
    """Plan key or action key of a derivation."""
    return canonical.digest_of("derivation", derivation)


def plan_keys(graph: Graph) -> dict[str, str]:
    """Plan key of every stage."""
    keys: dict[str, str] = {}
    for stage in graph.stages:
        keys[stage.name] = key_of(stage.derivation({name: {"plan": keys[name]} for name in stage.dependencies()}))
    return keys

