"""`rebuild`: the same inputs twice, and what is said when the bytes differ."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from cache.archive import LayerWriter
from cache.errors import NondeterminismError, StageError
from cache.record import Record
from cache.store import Store
from stages import rebuild
from stages.builders import Builder
from stages.graph import Graph, Stage
from stages.report import Report
from stages.tasks import Session
from tests.support import odd_builders
from tests.support.elf_factory import make_elf
from tests.support.front import make_project
from tests.support.project import PLATFORM, chain

Files = dict[str, tuple[bytes, int]]


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    monkeypatch.setenv("STAGECRAFT_STORE", str(tmp_path / "store"))
    found = Session(make_project(tmp_path / "project"))
    found.report = Report(err=io.StringIO())
    return found


def build(session: Session, graph: Graph) -> None:
    session.project._graphs["odd"] = graph
    for stage in graph.stages:
        if not session.uptodate("odd", stage):
            session.records["odd", stage.name] = session.engine("odd").realise(stage, session.known("odd", stage))


def odd(session: Session, first: Files, second: Files, entry: str = "layer") -> Graph:
    """A graph whose stage gives `first` when it is built and `second` when it is built again."""
    odd_builders.prepare(first, second)
    outputs = ("layer", "index") if entry == "layer" else ("out",)
    stage = Stage("odd", "odd", Builder("odd", 1, outputs, f"tests.support.odd_builders:{entry}"), PLATFORM, {}, {})
    graph = Graph("odd", (stage,))
    build(session, graph)
    return graph


def report(session: Session, capsys: pytest.CaptureFixture[str], stage: str = "") -> tuple[list[dict[str, Any]], bool]:
    """What the JSON report says of each stage, and whether an error followed."""
    failed = False
    try:
        rebuild.run(session, "odd", stage, as_json=True)
    except NondeterminismError:
        failed = True
    return json.loads(capsys.readouterr().out)["stages"], failed


def test_same_bytes(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    build(session, chain(3))
    stages, failed = report(session, capsys)
    assert [(entry["stage"], entry["same"]) for entry in stages] == [("s0", True), ("s1", True), ("s2", True)]
    assert not failed
    assert session.project.store.ledger() == []


def test_one_stage(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    build(session, chain(3))
    stages, _ = report(session, capsys, "s1")
    assert [entry["stage"] for entry in stages] == ["s1"]


def test_progress_of_a_finished_stage_is_not_shown_again(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    build(session, chain(2))
    report(session, capsys)
    session.report.progress("s0", "build", 1, 2, target="odd")
    session.report.event("rebuilt", "s0", target="odd", same=True, ms=1, text="done")
    assert session.report._active == {}


def test_it_really_builds(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    text = {"a": (b"x", 0o644)}
    odd(session, text, text)
    before = next(odd_builders._calls)
    assert report(session, capsys)[0][0]["same"]
    assert next(odd_builders._calls) == before + 2


def told(session: Session, capsys: pytest.CaptureFixture[str], first: Files, second: Files,
         entry: str = "layer") -> list[tuple[str, str, str]]:
    odd(session, first, second, entry)
    stages, failed = report(session, capsys)
    assert failed
    return [(item["output"], item["path"], item["what"]) for item in stages[0]["differences"]]


def test_each_kind_of_difference_in_a_layer(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    same = (b"same", 0o644)
    found = told(session, capsys,
                 {"gone": same, "kept": same, "mode": same, "text": (b"one\ntwo\n", 0o644), "z": (b"\0" * 9, 0o644)},
                 {"kept": same, "mode": (b"same", 0o755), "new": same, "text": (b"one\n2\n", 0o644),
                  "z": (b"\0" * 8 + b"\1", 0o644)})
    assert found == [
        ("layer", "gone", "only in the first"), ("layer", "mode", "mode: 644 then 755"),
        ("layer", "new", "only in the second"), ("layer", "text", "line 2: 'two' then '2'"),
        ("layer", "z", "byte 0x8: 00 then 01")]


def test_elf_sections_are_named(session: Session, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """As a build path in debugging information, or a random seed in names, shows."""
    from tests.support.shared_objects import Compiler

    compiler = Compiler(tmp_path / "objects")
    one = compiler.library("a.so", 'const char *when = "12:00";')
    other = compiler.library("a.so", 'const char *when = "12:01";')
    (_, path, what), = told(session, capsys, {"a.so": (one, 0o644)}, {"a.so": (other, 0o644)})
    assert path == "a.so"
    assert ".rodata" in what
    assert ".text" not in what


def test_elf_files_that_differ_outside_sections(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = make_elf(needed=["libc.so.6"]), make_elf(needed=["libm.so.6"])
    (_, _, what), = told(session, capsys, {"a.so": (one, 0o644)}, {"a.so": (other, 0o644)})
    assert what.startswith("outside the ELF sections: byte 0x")


def test_text_output(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    found = told(session, capsys, {"a": (b"1\n2\n", 0o644)}, {"a": (b"1\n2\n3\n", 0o644)}, "note")
    assert found == [("out", "", "2 lines then 3")]


def test_layers_of_any_name_are_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of a source tree, which may be larger than what is read whole."""
    store = Store.open(tmp_path / "store")
    monkeypatch.setattr(rebuild, "_WHOLE", 100)

    def record(text: bytes) -> Record:
        with LayerWriter(store) as writer:
            writer.file("a", len(text), [text])
            layer = writer.finish()
        return Record("sha256:" + "0" * 64, {}, {"csrc": layer.layer, "csrc-index": layer.index,
                                                 "blob": store.put(text * 100)})

    found = rebuild.differences(store, record(b"one\n"), record(b"two\n"))
    assert [(item.output, item.path, item.what) for item in found] == [
        ("csrc", "a", "line 1: 'one' then 'two'"), ("blob", "", "400 bytes then 400, too large to look into")]
    one = record(b"x")
    other = Record(one.key, {}, {**one.outputs, "csrc-index": store.put(b"another")})
    assert [item.output for item in rebuild.differences(store, one, other)] == ["index"]


def test_first_result_stays_and_the_ledger_says_so(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    graph = odd(session, {"a": (b"1", 0o644)}, {"a": (b"2", 0o644)})
    first = session.records["odd", "odd"]
    report(session, capsys)
    store = session.project.store
    assert store.lookup(first.key) == first
    assert [entry["key"] for entry in store.ledger()] == [first.key]
    session.records.clear()
    assert session.uptodate("odd", graph.stages[0])
    assert session.records["odd", "odd"].outputs == first.outputs


def test_many_differences_are_counted(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    odd(session, {f"f{number:03}": (b"1", 0o644) for number in range(50)},
        {f"f{number:03}": (b"2", 0o644) for number in range(50)})
    with pytest.raises(NondeterminismError, match="built twice, two results") as caught:
        rebuild.run(session, "odd", "", as_json=False)
    text = capsys.readouterr().out
    assert text.startswith("odd: odd        OTHER BYTES\n  layer: /f000: line 1: '1' then '2'\n")
    assert text.endswith("  and 30 more\n")
    assert "50 differences" in caught.value.diagnostics()


def test_what_is_not_built_is_said(session: Session) -> None:
    session.project._graphs["odd"] = chain(1)
    with pytest.raises(StageError, match="nothing to compare with") as caught:
        rebuild.run(session, "odd", "", as_json=False)
    assert "./doit build:odd" in caught.value.diagnostics()
