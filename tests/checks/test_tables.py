"""Data tables: parsed once for their content, and right whatever becomes of the copy."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from checks import tables
from tests.support.front import HERE


@pytest.fixture
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "pycache_prefix", str(tmp_path / "pycache"))
    return tmp_path / "pycache" / "tables"


def forbidden(*_: object) -> None:
    raise AssertionError("parsed again")


def test_second_reading_parses_nothing_and_gives_the_same(tmp_path: Path, copies: Path,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "table.yaml"
    path.write_text("rows: [{a: 1, b: x}]\n")
    first = tables.read(path)
    assert first == {"rows": [{"a": 1, "b": "x"}]}
    monkeypatch.setattr(yaml, "load", forbidden)
    assert tables.read(path) == first
    path.write_text("rows: []\n")
    with pytest.raises(AssertionError, match="parsed again"):  # other content is another table
        tables.read(path)


@pytest.mark.parametrize("damage", [b"", b'{"rows": [{"a', b"\xff"])
def test_damaged_copy_is_made_anew(tmp_path: Path, copies: Path, damage: bytes) -> None:
    path = tmp_path / "table.yaml"
    path.write_text("rows: [1]\n")
    tables.read(path)
    [copy] = copies.iterdir()
    copy.write_bytes(damage)
    assert tables.read(path) == {"rows": [1]}
    assert copy.read_bytes() == b'{"rows": [1]}'


@pytest.mark.parametrize("text", ["{1: a, 2: b}", "day: 2026-11-21"])
def test_what_json_cannot_hold_is_not_kept(tmp_path: Path, copies: Path, text: str) -> None:
    path = tmp_path / "table.yaml"
    path.write_text(text)
    assert tables.read(path) == tables.read(path) == yaml.safe_load(text)
    assert not copies.exists()


def test_directory_that_cannot_be_written_is_no_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / "table.yaml"
    path.write_text("rows: [1]\n")
    for prefix in (str(tmp_path / "file"), None):
        monkeypatch.setattr(sys, "pycache_prefix", prefix)
        assert tables.read(path) == {"rows": [1]}


def test_every_table_that_checks_read_can_be_kept(copies: Path) -> None:
    paths = [path for place in ("checks/data", "vllm", "triton") for path in (HERE / place).glob("*.yaml")]
    for path in paths:
        tables.read(path)
    assert len(list(copies.iterdir())) == len({path.read_bytes() for path in paths}) > 3
