"""Verdicts: keyed by all they depend on, run once, and weighed against waivers afterwards."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from cache import canonical
from cache.store import Store
from checks.registry import Check
from checks.verdict import CheckInputs, Finding, Verdict, apply_waivers, judge, stored_verdict, verdict_key

RUNS: list[Mapping[str, Any]] = []


def run(inputs: CheckInputs) -> list[Finding]:
    RUNS.append(inputs.facts)
    text = inputs.store.read(inputs.outputs["s/o"]).decode()
    return [Finding("error", f"b: {text}", "m", "w", "c"), Finding("error", "a", "m"), Finding("info", "z", "m")]


CHECK = Check("c", 1, "t", "s", (("s", "o"),), lambda target, lock: {}, "tests.checks.test_verdict:run")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    RUNS.clear()
    return Store.open(tmp_path / "store")


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under importlib mode this module has another name; the check's entry names it as a package would."""
    import sys

    monkeypatch.setitem(sys.modules, "tests.checks.test_verdict", sys.modules[__name__])


def test_a_check_runs_once_for_the_same_outputs_and_facts(store: Store) -> None:
    outputs = {"s/o": store.put(b"x").digest}
    assert stored_verdict(store, CHECK, outputs, {"f": "1"}) is None
    first = judge(store, CHECK, outputs, {"f": "1"})
    again = judge(store, CHECK, outputs, {"f": "1"})
    assert len(RUNS) == 1
    assert (first.cached, again.cached) == (False, True)
    assert first.findings == again.findings == (
        Finding("error", "a", "m"), Finding("error", "b: x", "m", "w", "c"), Finding("info", "z", "m"))
    assert stored_verdict(store, CHECK, outputs, {"f": "1"}) == again


def test_everything_that_it_depends_on_is_in_the_key(store: Store) -> None:
    x, y = store.put(b"x").digest, store.put(b"y").digest
    keys = [
        verdict_key(CHECK, {"s/o": x}, {"f": "1"}), verdict_key(CHECK, {"s/o": y}, {"f": "1"}),
        verdict_key(CHECK, {"s/o": x}, {"f": "2"}), verdict_key(replace(CHECK, version=2), {"s/o": x}, {"f": "1"}),
        verdict_key(replace(CHECK, id="d"), {"s/o": x}, {"f": "1"}), verdict_key(CHECK, {"s/o": x}, {"f": "1"}, "thor"),
        verdict_key(CHECK, {"t/o": x}, {"f": "1"}),
    ]
    assert len(set(keys)) == len(keys)
    assert verdict_key(replace(CHECK, title="other"), {"s/o": x}, {"f": "1"}) == keys[0]


def test_a_verdict_is_canonical_and_tells_what_it_is_about(store: Store) -> None:
    outputs = {"s/o": store.put(b"x").digest}
    key = judge(store, CHECK, outputs, {"f": ["1", 2]}).key
    found = store.verdict(key)
    assert found is not None
    assert (found["format"], found["check"], found["outputs"], found["facts"]) == (
        "stagecraft.verdict.v1", "c", outputs, {"f": ["1", 2]})
    assert canonical.loads(canonical.dumps(found)) == found
    schema = Path(__file__).resolve().parents[2] / "docs" / "formats" / "verdict.schema.json"
    jsonschema.validate(found, json.loads(schema.read_text(encoding="utf-8")), jsonschema.Draft202012Validator)


def test_a_damaged_verdict_is_judged_again(store: Store) -> None:
    outputs = {"s/o": store.put(b"x").digest}
    key = judge(store, CHECK, outputs, {}).key
    store.put_verdict(key, {"format": "stagecraft.verdict.v1", "findings": [{"nonsense": "1"}]})
    assert len(judge(store, CHECK, outputs, {}).findings) == 3
    assert len(RUNS) == 2


# -- waivers --------------------------------------------------------------------------------------


def verdict(*subjects: str, check: str = "c", severity: str = "error") -> Verdict:
    return Verdict(check, "sha256:" + "0" * 64, tuple(Finding(severity, subject, "m") for subject in subjects))


def waiver(subject: str, check: str = "c") -> dict[str, str]:
    return {"check": check, "subject": subject, "reason": f"because of {subject}"}


def test_a_gate_passes_when_every_error_is_waived() -> None:
    found = verdict("opencv: numpy>=2", "ml-dtypes: numpy>=2.1")
    report = apply_waivers([found], [waiver("opencv: numpy>=2")])
    assert not report.passes
    assert [finding.subject for _, finding in report.failed] == ["ml-dtypes: numpy>=2.1"]
    report = apply_waivers([found], [waiver("opencv: numpy>=2"), waiver("ml-*: numpy*")])
    assert report.passes
    assert [(finding.subject, reason) for _, finding, reason in report.waived] == [
        ("opencv: numpy>=2", "because of opencv: numpy>=2"), ("ml-dtypes: numpy>=2.1", "because of ml-*: numpy*")]
    assert report.passed == ()


def test_a_waiver_covers_its_own_check_only() -> None:
    report = apply_waivers([verdict("a"), verdict("a", check="d")], [waiver("a", "d")])
    assert [check for check, _ in report.failed] == ["c"]


def test_warnings_never_block_and_need_no_waiver() -> None:
    report = apply_waivers([verdict("a", severity="warning")], [])
    assert report.passes
    assert report.passed == ("c",)
    assert [finding.subject for _, finding in report.notes] == ["a"]


def test_waivers_that_cover_nothing_are_named() -> None:
    old, elsewhere = waiver("gone"), waiver("x", "another-check")
    report = apply_waivers([verdict("a")], [waiver("a"), old, elsewhere])
    assert report.unused == (old,)  # nothing is known about a check that was not judged


def test_a_subject_with_brackets_can_be_named_as_it_is() -> None:
    assert apply_waivers([verdict("x: y[z]>=1")], [waiver("x: y[z]>=1")]).passes
