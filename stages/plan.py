"""What would be built, and why. Pure: the graph and the store; no network, no device, no clock.

`evaluate` finds what is cached; `explain` names what changed since the last build of the same target, the root causes
apart from what merely follows from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cache.store import Record, Store
from stages.graph import FileInput, Graph, Stage, StageInput, key_of, plan_keys


@dataclass(frozen=True)
class Change:
    """One difference between two derivations: `what` is a dotted path; a side that is not there is empty."""

    what: str
    old: str
    new: str


@dataclass(frozen=True)
class StageState:
    """One stage of a plan.

    Attributes:
        key: action key; empty while a dependency is not built, since it needs that output's digest.
        record: what is cached, or None.
        changes: differences from the last build of this target; empty if there was none.
        follows: dependencies that are not cached, so that this stage is decided only after them.
        missing: locked files that must be fetched, and their bytes.
        seen: the last build of this target had this stage.
    """

    stage: Stage
    plan_key: str
    key: str
    record: Record | None
    changes: tuple[Change, ...] = ()
    follows: tuple[str, ...] = ()
    missing: tuple[int, int] = (0, 0)
    seen: bool = False
    expected: Mapping[str, int] = field(default_factory=dict)

    @property
    def cached(self) -> bool:
        return self.record is not None

    def reason(self) -> str:
        """Why, in one line."""
        if self.cached:
            return "cached"
        if self.changes:
            first = self.changes[0]
            more = f" (+{len(self.changes) - 1} more)" if len(self.changes) > 1 else ""
            text = f"{first.what}: {arrow(first)}"
            return (text if len(text) <= 100 else text[:99] + "…") + more
        if self.follows:
            return "follows from " + ", ".join(self.follows)
        return "its output is gone from the store" if self.seen else "not built before"

    def to_json(self) -> dict[str, Any]:
        return {
            "stage": self.stage.name, "title": self.stage.title, "state": "cached" if self.cached else "build",
            "reason": self.reason(), "plan_key": self.plan_key, "key": self.key,
            "changes": [{"what": c.what, "old": c.old, "new": c.new} for c in self.changes],
            "follows": list(self.follows),
            "fetch": {"files": self.missing[0], "bytes": self.missing[1]},
            "size": sum(b.size for b in self.record.outputs.values()) if self.record else self.expected.get("size", 0),
            "expected_ms": 0 if self.record else self.expected.get("ms", 0),
        }


def arrow(change: Change) -> str:
    """`old -> new` in words."""
    old, new = shortened(change)
    if not change.old:
        return f"added {new}"
    if not change.new:
        return f"removed {old}"
    return f"{old} -> {new}"


def shortened(change: Change, width: int = 70) -> tuple[str, str]:
    """Old and new for people: of long texts, the part in which they differ."""
    old, new = change.old, change.new
    if max(len(old), len(new)) > width and old and new:
        same = next((n for n, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
        start = max(0, same - 15)
        old, new = ("…" * bool(start) + text[start:] for text in (old, new))
    return tuple(text if len(text) <= width else text[: width - 1] + "…" for text in (old, new))  # type: ignore[return-value]


def evaluate(graph: Graph, store: Store) -> dict[str, tuple[str, Record | None]]:
    """Action key and record of every stage, in order; an empty key where a dependency is not built."""
    found: dict[str, tuple[str, Record | None]] = {}
    for stage in graph.stages:
        found[stage.name] = state_of(stage, {name: found[name][1] for name in stage.dependencies()}, store)
    return found


def state_of(stage: Stage, records: Mapping[str, Record | None], store: Store) -> tuple[str, Record | None]:
    """Action key and record of one stage, given the records of its dependencies."""
    key = action_key(stage, records)
    return key, store.lookup(key) if key else None


def action_key(stage: Stage, records: Mapping[str, Record | None]) -> str:
    """The action key, or empty if a dependency has no record yet."""
    outputs: dict[str, dict[str, str]] = {}
    for name in stage.dependencies():
        record = records.get(name)
        if record is None:
            return ""
        outputs[name] = {output: blob.digest for output, blob in record.outputs.items()}
    return key_of(stage.derivation(outputs))


def plan(graph: Graph, store: Store, last: Mapping[str, str]) -> list[StageState]:
    """The whole plan; `last` is stage name to action key of the last build of this target."""
    plans = plan_keys(graph)
    states = evaluate(graph, store)
    found: list[StageState] = []
    for stage in graph.stages:
        key, record = states[stage.name]
        before = None if record else previous(store, last.get(stage.name, ""))
        follows = tuple(name for name in stage.dependencies() if states[name][1] is None)
        changes = compare(before.derivation, stage, states) if before else []
        if follows:
            changes = [change for change in changes if not change.what.startswith(stage.mirrors or ("\0",))]
        missing = [i.locked for i in stage.inputs.values()
                   if isinstance(i, FileInput) and not record and not store.has(i.locked.digest)]
        found.append(StageState(
            stage, plans[stage.name], key, record,
            tuple(changes),
            follows, (len(missing), sum(file.size for file in missing)), stage.name in last,
            {"ms": int(before.facts.get("ms", 0)), "size": sum(b.size for b in before.outputs.values())}
            if before else {"size": sum(i.locked.size for i in stage.inputs.values() if isinstance(i, FileInput))},
        ))
    return found


def previous(store: Store, key: str) -> Record | None:
    """The record of an earlier build, even if its blobs are gone; None if there is none."""
    return next(iter(store.records(key)), None) if key else None


def compare(old: Mapping[str, Any], stage: Stage, states: Mapping[str, tuple[str, Record | None]]) -> list[Change]:
    """What differs between an earlier derivation and a stage as it is now.

    An input from a stage that is not built yet is left out: whether it differs is not known.
    """
    outputs: dict[str, dict[str, str]] = {}
    unknown: set[str] = set()
    for name in stage.dependencies():
        record = states[name][1]
        if record is None:
            unknown.update(key for key, i in stage.inputs.items() if isinstance(i, StageInput) and i.stage == name)
            outputs[name] = {"plan": ""}
        else:
            outputs[name] = {output: blob.digest for output, blob in record.outputs.items()}
    new = stage.derivation(outputs)
    changes: list[Change] = []
    for part in ("builder", "platform", "environment", "params"):
        changes += _differ(part, old.get(part, {}), new[part])
    changes += _inputs(old.get("inputs", {}), new["inputs"], unknown)
    return changes


def _differ(at: str, old: Any, new: Any) -> list[Change]:
    if old == new:
        return []
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return [change for key in sorted(old.keys() | new.keys())
                for change in _differ(f"{at}.{key}", old.get(key, ""), new.get(key, ""))]
    return [Change(at.removeprefix("params."), _text(old), _text(new))]


def _inputs(old: Mapping[str, Any], new: Mapping[str, Any], unknown: set[str]) -> list[Change]:
    """Inputs that changed. A file that was replaced by another version of itself is one change, not two."""
    gone = {name: item for name, item in old.items() if name not in new}
    come = {name: item for name, item in new.items() if name not in old}
    changes = []
    for name in sorted(old.keys() & new.keys() - unknown):
        if old[name].get("digest") != new[name].get("digest"):
            changes.append(Change(f"input {name}", _text(old[name].get("digest")), _text(new[name].get("digest"))))
    for name in sorted(come):
        stem = _stem(name)
        twin = next((other for other in sorted(gone) if _stem(other) == stem), None)
        if twin is not None:
            del gone[twin]
            changes.append(Change(f"input {stem}", twin.rpartition("/")[2], name.rpartition("/")[2]))
        elif name not in unknown:
            changes.append(Change(f"input {name}", "", _text(come[name].get("digest"))))
    changes += [Change(f"input {name}", _text(gone[name].get("digest")), "") for name in sorted(gone)]
    return changes


def _stem(name: str) -> str:
    """`wheels/numpy` of `wheels/numpy-1.26.4-cp311-….whl`, `debs/gcc` of `debs/gcc_4%3a12_arm64.deb`."""
    directory, _, file = name.rpartition("/")
    return f"{directory}/{file.partition('_' if file.endswith('.deb') else '-')[0]}"


def _text(value: Any) -> str:
    if value in ("", None):
        return ""
    if isinstance(value, str):
        return value[:19] if value.startswith("sha256:") else value
    import json

    return json.dumps(value, ensure_ascii=False, sort_keys=True)
