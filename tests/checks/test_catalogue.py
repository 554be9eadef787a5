"""The failure catalogue and the waivers in docs/checks.md: what they name is there, and nothing is left out."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import yaml

from checks.registry import CHECKS

HERE = Path(__file__).resolve().parents[2]
TEXT = (HERE / "docs/checks.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| F(\d+) \| (.+?) \| (.+?) \| (.+?) \|$", TEXT, re.MULTILINE)

#: What finds a failure beside checks, or why none can.
ELSEWHERE = ("preflight", "lock", "source build", "builder", "device")


@functools.cache
def functions_of(path: str) -> set[str]:
    return {node.name for node in ast.parse((HERE / "tests" / path).read_text(encoding="utf-8")).body
            if isinstance(node, ast.FunctionDef)}


def test_every_failure_has_its_row() -> None:
    assert [int(number) for number, *_ in ROWS] == list(range(1, 38))


def test_every_row_names_checks_that_there_are_or_says_who_else() -> None:
    known = {check.id for check in CHECKS}
    named = set()
    for number, _, by, _ in ROWS:
        ids = set(re.findall(r"`([^`]+)`", by))
        assert ids <= known, number
        assert ids or any(word in by for word in ELSEWHERE), number
        named |= ids
    assert named == known


def test_every_test_that_a_row_names_is_there() -> None:
    for number, _, by, tests in ROWS:
        found = re.findall(r"`([^`]+)`", tests)
        assert found or "`" not in by, number
        for name in found:
            path, _, function = name.partition("::")
            assert function in functions_of(path), name


def test_waivers_of_the_shipped_targets_are_those_of_the_document() -> None:
    section = TEXT.partition("## Waivers of the shipped targets")[2].partition("\n## ")[0]
    shown = set(re.findall(r"^\| `([a-z-]+)` \| `(.+?)` \| .+ \|$", section, re.MULTILINE))
    targets = [path for path in (HERE / "targets").glob("*.yaml") if path.name != "indexes.yaml"]
    written = {(waiver["check"], waiver["subject"]) for path in targets
               for waiver in yaml.safe_load(path.read_text(encoding="utf-8")).get("waivers", ())}
    assert shown == written
