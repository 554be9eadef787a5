"""Texts of sizes, times and changes; lines and events of a run."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from stages.plan import Change, arrow, shortened
from stages.report import Report, size_text, time_text


@pytest.mark.parametrize(("nbytes", "text"), [
    (0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (9949, "9.9 kB"), (12_345, "12 kB"), (999_600, "1.0 MB"),
    (431_000_000, "431 MB"), (7_700_000_000, "7.7 GB"), (12_000_000_000_000, "12000 GB"),
])
def test_sizes(nbytes: int, text: str) -> None:
    assert size_text(nbytes) == text


@pytest.mark.parametrize(("ms", "text"), [(340, "0.3 s"), (12_000, "12 s"), (200_000, "3 min 20 s"),
                                          (7_800_000, "2 h 10 min")])
def test_times(ms: int, text: str) -> None:
    assert time_text(ms) == text


def test_hits_are_named_once_before_the_first_line_and_never_without_one() -> None:
    err = io.StringIO()
    report = Report(err)
    report.event("hit", "base")
    report.event("hit", "cuda")
    report.close()
    assert err.getvalue() == ""
    report.event("built", "torch", ms=1500, size=2_000_000, fetched=0, nondeterministic=False)
    report.event("gate", "abi", text="passed")
    assert err.getvalue().splitlines() == [
        "  hit     base, cuda", "  built   torch       2.0 MB in 1.5 s", "  gate    abi         passed"]


def test_long_names_of_stages_have_their_column() -> None:
    err = io.StringIO()
    report = Report(err)
    report.fit(["base", "msgpack-extensions"])
    for name in ("base", "msgpack-extensions"):
        report.event("built", name, ms=1500, size=2_000_000, fetched=0, nondeterministic=False)
    assert {line.index("2.0 MB") for line in err.getvalue().splitlines()} == {2 + 8 + 18 + 1}


def test_nondeterminism_is_said_aloud() -> None:
    err = io.StringIO()
    Report(err).event("built", "x", ms=1, size=1, fetched=0, nondeterministic=True)
    assert "NOT THE SAME BYTES" in err.getvalue()


def test_events_file_holds_every_event(tmp_path: Path) -> None:
    report = Report(io.StringIO(), str(tmp_path / "events"))
    report.event("log", "x", line="hello")
    report.event("hit", "y")
    report.close()
    events = [json.loads(line) for line in (tmp_path / "events").read_text().splitlines()]
    assert [(e["event"], e["stage"]) for e in events] == [("log", "x"), ("hit", "y")]


def test_long_changes_show_the_part_that_differs() -> None:
    old, new = "a" * 200 + "OLD" + "b" * 100, "a" * 200 + "NEW" + "b" * 100
    shown = shortened(Change("x", old, new))
    assert all(len(text) <= 71 for text in shown)
    assert "OLD" in shown[0]
    assert "NEW" in shown[1]
    assert arrow(Change("x", "", "1")) == "added 1"
    assert arrow(Change("x", "1", "")) == "removed 1"


def test_program_that_runs_shows_how_long_and_what_it_said_last(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("stages.report.time.monotonic", lambda: clock[0])
    err = io.StringIO()
    report = Report(err)
    report.progress("vllm-extensions", "build", 0, 0)
    report.event("log", "vllm-extensions", line="\x1b[32m[10/19] Building CUDA object " + "x" * 80 + "\x1b[0m\n")
    report.event("log", "vllm-extensions", line="\r")
    clock[0] += 75
    report.progress("vllm-extensions", "build", 0, 0)
    line, = err.getvalue().splitlines()
    assert line.startswith("  ...     vllm-extensions 1 min 15 s: [10/19] Building CUDA object xxx")
    assert len(line) <= 79
