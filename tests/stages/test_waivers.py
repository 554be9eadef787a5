"""Waivers with a last day: judged by `lock` alone, shown in labels and provenance."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest

from cache.build import BuildContext
from cache.canonical import dumps
from cache.errors import InputError
from cache.store import Store
from oci.attest import build
from stages import image, resolve
from stages.graph import plan_keys
from stages.lockfile import Lock
from stages.project import Project, graph
from stages.target import load
from stages.waivers import judge_dates
from tests.support.built import PYTHON
from tests.support.front import make_project
from tests.support.images import ARM64, sample
from tests.support.project import TARGET, write_target

ENDS = ("waivers:\n  - check: wheel-set\n    subject: x\n    reason: known until the next release\n"
        "    expires: 2027-01-31\n")
LOCK = Lock("small", {}, {"kind": "debian", "suites": []}, PYTHON)


def day(text: str) -> datetime.date:
    return datetime.date.fromisoformat(text)


def judged(root: Path, name: str, today: str) -> list[str]:
    said: list[str] = []
    judge_dates(root, load(root, name), day(today), said.append)
    return said


@pytest.mark.parametrize(("today", "words"), [
    ("2026-12-31", None), ("2027-01-01", "in 30 days"), ("2027-01-30", "tomorrow"), ("2027-01-31", "today")])
def test_end_that_is_near_is_told_and_blocks_nothing(tmp_path: Path, today: str, words: str | None) -> None:
    write_target(tmp_path, text=TARGET + ENDS)
    said = judged(tmp_path, "small", today)
    assert len(said) == (words is not None)
    assert all(f"ends {words} (2027-01-31): known until the next release" in line for line in said)


def test_waiver_that_is_over_is_refused_with_its_line_even_in_the_file_that_is_extended(tmp_path: Path) -> None:
    write_target(tmp_path, text=TARGET + ENDS)
    write_target(tmp_path, "other", "format: stagecraft.target.v1\nextends: small\n")
    for name in ("small", "other"):
        with pytest.raises(InputError, match="a waiver is over") as caught:
            judged(tmp_path, name, "2027-02-01")
        assert caught.value.where == f"targets/small.yaml:{(TARGET + ENDS).count(chr(10))}"
        assert "wheel-set 'x': 2027-01-31" in str(caught.value.found)


def test_lock_refuses_before_it_resolves_and_leaves_the_lock(tmp_path: Path) -> None:
    root = make_project(tmp_path / "project", small=TARGET + ENDS)
    with pytest.raises(InputError, match="a waiver is over"):
        resolve.lock(Project(root), "small", lambda line: None, today=day("2030-01-01"))
    assert not (root / "targets" / "small.lock.json").exists()


def test_lock_takes_the_day_it_is(tmp_path: Path) -> None:
    root = make_project(tmp_path / "project", small=TARGET + ENDS.replace("2027-01-31", "2020-02-29"))
    with pytest.raises(InputError, match="a waiver is over"):
        resolve.lock(Project(root), "small", lambda line: None)


def test_neither_target_nor_plan_asks_for_the_day(tmp_path: Path) -> None:
    over = make_project(tmp_path / "over", small=TARGET + ENDS.replace("2027", "2001"))
    assert "expires" in load(over, "small").data["waivers"][0]
    assert plan_keys(graph(load(over, "small"), LOCK, over))


@pytest.mark.parametrize(("text", "words"), [("2027-02-30", "there is no day 2027-02-30"), ("soon", "a day like"),
                                             ("2027-1-31", "a day like")])
def test_day_that_is_none_is_refused(tmp_path: Path, text: str, words: str) -> None:
    write_target(tmp_path, text=TARGET + ENDS.replace("2027-01-31", text))
    with pytest.raises(InputError) as caught:
        load(tmp_path, "small")
    assert words in caught.value.diagnostics()
    assert caught.value.where == f"targets/small.yaml:{(TARGET + ENDS).count(chr(10))}"


def test_reason_and_last_day_are_in_labels_and_provenance(tmp_path: Path) -> None:
    root = make_project(tmp_path / "project", small=TARGET + ENDS)
    target = load(root, "small")
    waiver = {"check": "wheel-set", "subject": "x", "reason": "known until the next release", "expires": "2027-01-31"}
    assert json.loads(image.labels(target, LOCK, [])["io.stagecraft.waivers"]) == [waiver]
    params = graph(target, LOCK, root).stage("attest").params
    store = Store.open(tmp_path / "store")
    inputs = {"manifest": sample(store)["manifest"].digest, "lock": store.put(dumps(image.pins(LOCK))).digest}
    made = build(BuildContext(store, params, inputs, ARM64))
    statement: dict[str, Any] = json.loads(store.read(made["provenance"].digest))
    assert statement["predicate"]["buildDefinition"]["internalParameters"]["waivers"] == [waiver]
