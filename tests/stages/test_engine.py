"""The engine and the plan on real stores: keys, cutoff, waiting, failure, explanation."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from cache.errors import IntegrityError, StageError
from cache.store import Store
from stages.engine import CancelledError, Engine
from stages.graph import Graph, SourceInput, StageInput, plan_keys
from stages.plan import evaluate, plan
from tests.support.project import chain, data, stage


class Events:
    def __init__(self) -> None:
        self.seen: list[tuple[str, str, dict[str, Any]]] = []

    def event(self, kind: str, stage: str, **details: Any) -> None:
        self.seen.append((kind, stage, details))

    def progress(self, stage: str, what: str, done: int, total: int) -> None:
        """Not watched."""

    def built(self) -> list[str]:
        return [stage for kind, stage, _ in self.seen if kind == "built"]


def engine(store: Store, root: Path) -> tuple[Engine, Events]:
    def fetch(*_: Any) -> None:
        raise AssertionError("nothing to fetch in these graphs")

    events = Events()
    return Engine(store, root, fetch, events), events


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


def test_second_run_builds_nothing(store: Store, tmp_path: Path) -> None:
    worker, events = engine(store, tmp_path)
    first = worker.realise_all(chain(3))
    assert events.built() == ["s0", "s1", "s2"]
    again, seen = engine(store, tmp_path)
    assert {n: r.outputs for n, r in again.realise_all(chain(3)).items()} == {n: r.outputs for n, r in first.items()}
    assert seen.built() == []


def test_equal_output_stops_the_cascade(store: Store, tmp_path: Path) -> None:
    worker, events = engine(store, tmp_path)
    before = stage("s0", "same, then noise 1")
    after = stage("s0", "same, then noise 2")
    graphs = [Graph("g", (s, stage("s1", "b", "s0"), stage("s2", "c", "s1"))) for s in (before, after)]
    for graph in graphs:
        graph.stages[0].params["keep"] = 4  # type: ignore[index]
    worker.realise_all(graphs[0])
    worker.realise_all(graphs[1])
    assert events.built() == ["s0", "s1", "s2", "s0"]
    assert plan_keys(graphs[0])["s2"] != plan_keys(graphs[1])["s2"]


def test_swapped_inputs_change_the_key() -> None:
    a, b = data(b"a"), data(b"b")
    one, two = stage("s", "t", x=a, y=b), stage("s", "t", x=b, y=a)
    assert plan_keys(Graph("g", (one,))) != plan_keys(Graph("g", (two,)))


def test_name_is_not_in_the_key_but_builder_version_is() -> None:
    def key(*args: Any, **more: Any) -> str:
        return next(iter(plan_keys(Graph("g", (stage(*args, **more),))).values()))

    assert key("a", "t") == key("b", "t")
    assert key("a", "t") != key("a", "t", version=2)


def test_two_builders_one_builds_the_other_reuses(store: Store, tmp_path: Path) -> None:
    results: list[Events] = []

    def work() -> None:
        worker, events = engine(Store.open(store.root), tmp_path)
        worker.realise_all(chain(4))
        results.append(events)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    built = [name for events in results for name in events.built()]
    assert sorted(built) == ["s0", "s1", "s2", "s3"]


def test_failure_names_the_stage_keeps_the_log_and_publishes_nothing(store: Store, tmp_path: Path) -> None:
    worker, _ = engine(store, tmp_path)
    with pytest.raises(StageError, match="Input/output error") as caught:
        worker.realise_all(Graph("g", (stage("s0", "x", entry="broken"),)))
    assert caught.value.where == "stage s0"
    logs = list((store.root / "logs").iterdir())
    assert "about to fail" in logs[0].read_text()
    assert not (store.root / "records").exists() or not list((store.root / "records").rglob("*.json"))


def test_builder_that_gives_other_outputs_is_refused(store: Store, tmp_path: Path) -> None:
    worker, _ = engine(store, tmp_path)
    with pytest.raises(StageError, match="other outputs"):
        worker.realise_all(Graph("g", (stage("s0", "x", entry="lying"),)))


def test_source_changed_between_plan_and_build_is_refused(store: Store, tmp_path: Path) -> None:
    from cache.canonical import sha256

    (tmp_path / "template").write_text("one")
    item = stage("s0", "x", template=SourceInput("template", sha256(b"one")))
    (tmp_path / "template").write_text("two")
    worker, _ = engine(store, tmp_path)
    with pytest.raises(StageError, match="changed while it was being used"):
        worker.realise_all(Graph("g", (item,)))


def test_lost_blob_is_a_miss_and_is_made_again(store: Store, tmp_path: Path) -> None:
    worker, events = engine(store, tmp_path)
    records = worker.realise_all(chain(3))
    lost = records["s1"].outputs["out"].digest
    store.path_of(lost).unlink()
    states = plan(chain(3), store, {n: r.key for n, r in records.items()})
    assert [s.cached for s in states] == [True, False, False]
    assert states[1].reason() == "its output is gone from the store"
    worker.realise_all(chain(3))
    assert events.built() == ["s0", "s1", "s2", "s1"]
    assert store.has(lost)


def test_cancelled_engine_stops(store: Store, tmp_path: Path) -> None:
    worker, _ = engine(store, tmp_path)
    worker.cancelled.set()
    with pytest.raises(CancelledError):
        worker.check_cancelled()


def test_plan_names_the_root_cause_apart_from_what_follows(store: Store, tmp_path: Path) -> None:
    worker, _ = engine(store, tmp_path)
    records = worker.realise_all(chain(3))
    last = {n: r.key for n, r in records.items()}
    states = plan(chain(3, s1="other"), store, last)
    assert [(s.stage.name, s.cached) for s in states] == [("s0", True), ("s1", False), ("s2", False)]
    assert [(c.what, c.old, c.new) for c in states[1].changes] == [("text", "text 1 ", "other")]
    assert states[2].changes == ()
    assert states[2].reason() == "follows from s1"
    assert states[2].to_json()["follows"] == ["s1"]


def test_plan_of_nothing_built_says_so(store: Store) -> None:
    states = plan(chain(2), store, {})
    assert [s.reason() for s in states] == ["not built before", "follows from s0"]


def test_plan_shows_a_bumped_wheel_as_one_change(store: Store, tmp_path: Path) -> None:
    worker, _ = engine(store, tmp_path)
    old = stage("s0", "t", **{"wheels/six-1.16.0-py3-none-any.whl": data(b"1")})  # type: ignore[arg-type]
    new = stage("s0", "t", **{"wheels/six-1.17.0-py3-none-any.whl": data(b"2")})  # type: ignore[arg-type]
    records = worker.realise_all(Graph("g", (old,)))
    (state,) = plan(Graph("g", (new,)), store, {"s0": records["s0"].key})
    assert [(c.what, c.old, c.new) for c in state.changes] == [
        ("input wheels/six", "six-1.16.0-py3-none-any.whl", "six-1.17.0-py3-none-any.whl")]


def test_evaluate_leaves_keys_behind_a_miss_empty(store: Store) -> None:
    assert [bool(key) for key, _ in evaluate(chain(3), store).values()] == [True, False, False]


def test_graph_refuses_a_stage_before_what_it_needs() -> None:
    with pytest.raises(ValueError, match="does not come before"):
        Graph("g", (stage("b", "x", "a"), stage("a", "x")))
    assert isinstance(stage("b", "x", "a").inputs["a"], StageInput)


def test_missing_output_blob_of_a_dependency_is_an_integrity_error(store: Store, tmp_path: Path) -> None:
    worker, _ = engine(store, tmp_path)
    graph = chain(2)
    records = {"s0": worker.realise(graph.stages[0], {})}
    store.path_of(records["s0"].outputs["out"].digest).unlink()
    with pytest.raises(IntegrityError):
        worker.realise(graph.stages[1], records)


def test_what_a_build_used_beside_its_inputs_stays_with_the_record(store: Store, tmp_path: Path) -> None:
    """And building again to compare says so to the builder."""
    worker, _ = engine(store, tmp_path)
    one = stage("s0", "text", entry="noting")
    record = worker.realise(one, {})
    assert record.facts["notes"] == ["fresh: False"]
    assert worker.rebuild(one, {}).facts["notes"] == ["fresh: True"]
    found = store.lookup(record.key)
    assert found is not None
    assert found.facts["notes"] == ["fresh: False"]
    assert "notes" not in worker.realise(stage("s1", "text"), {}).facts
