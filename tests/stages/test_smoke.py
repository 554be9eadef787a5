"""`smoke:<target>`: what the driver told becomes a report; table, JSON, JUnit, exit codes. Nothing is run here."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import junitparser
import pytest

from cache.errors import GateError, InputError, ToolError
from executors.docker import gpu_options
from executors.process import Outcome
from stages import main, smoke
from stages.smoke import Case, Options, SmokeReport, cases_of
from stages.smoke_text import junit_xml, text
from tests.support.front import HERE

SCHEMA = json.loads((HERE / "docs/formats/smoke-report.schema.json").read_text(encoding="utf-8"))
GOOD = (Case("start", "passed", "ready after 24.6 s", 24.65), Case("generate", "passed", "12 tokens", 0.158))
REPORT = SmokeReport("cpu", "vLLM 0.32.0", "Triton 0.7.0", ("sandbox", "root joined by an overlay"), GOOD, 81.25,
                     log="/store/failed/cpu-smoke.log", last=("E1121 20:57 tiny broke\x1b[0m",))
FAILED = replace(REPORT, cases=(*GOOD, Case("stream", "failed", "the stream came in 1 piece " * 5, 1.0)))
SKIPPED = replace(REPORT, engine="stand-in", cases=(*GOOD, Case("tool-call", "skipped", "no parsers", 0.0)))
LIMITED = replace(REPORT, limit="time limit (9 s)", cases=(*GOOD, Case("stream", "failed", "it ended in this", 0.0)))


def outcome(tmp_path: Path, *lines: object, exit: int | None = 0, reason: str = "exit 0", last: str = "") -> Outcome:
    """What is left when the driver wrote these lines."""
    path = tmp_path / "results.jsonl"
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return Outcome(exit, reason, 1.0, outputs={"results.jsonl": path} if lines else {}, last=last)


def told(case: str, state: str, message: str = "") -> dict[str, Any]:
    return {"case": case, "state": state, "message": message, "seconds": 0.5}


def test_the_last_word_on_each_case_counts_in_the_order_of_the_plan(tmp_path: Path) -> None:
    found = cases_of(outcome(tmp_path, told("start", "planned"), told("stream", "planned"), told("start", "begun"),
                             told("start", "passed", "ready"), told("stream", "begun"), told("stream", "failed", "no")))
    assert [(case.case, case.state, case.message) for case in found] == [
        ("start", "passed", "ready"), ("stream", "failed", "no")]


def test_driver_that_was_killed_fails_the_case_it_was_in_and_skips_the_rest(tmp_path: Path) -> None:
    found = cases_of(outcome(tmp_path, told("start", "passed"), told("generate", "planned"), told("stream", "planned"),
                             told("generate", "begun"), '{"case": "stre', exit=137, reason="killed by SIGKILL"))
    assert [(case.state, case.message) for case in found[1:]] == [
        ("failed", "the driver ended: killed by SIGKILL"), ("skipped", "not reached: killed by SIGKILL")]


def test_driver_that_ends_well_without_a_case_has_not_passed(tmp_path: Path) -> None:
    found = cases_of(outcome(tmp_path, told("start", "passed"), told("stream", "planned")))
    assert [(case.case, case.state) for case in found] == [("start", "passed"), ("stream", "failed")]


def test_driver_that_was_killed_between_two_cases_has_not_passed(tmp_path: Path) -> None:
    found = cases_of(outcome(tmp_path, told("start", "passed"), exit=139, reason="killed by SIGSEGV"))
    assert [case.state for case in found] == ["passed", "failed"]
    assert "SIGSEGV" in found[-1].message


def test_image_whose_python_runs_nothing_is_one_failed_case(tmp_path: Path) -> None:
    (found,) = cases_of(outcome(tmp_path, exit=127, reason="cannot start: python3: No such file", last="bwrap: no"))
    assert (found.case, found.state) == ("start", "failed")
    assert "cannot start: python3: No such file: bwrap: no" in found.message


def test_limit_is_no_fault_of_the_image_but_no_pass_either(tmp_path: Path) -> None:
    assert isinstance(LIMITED.error(), ToolError)
    assert not LIMITED.to_json()["passes"]
    found = cases_of(outcome(tmp_path, told("start", "begun"), exit=None, reason="time limit (9 s)"))
    assert found[0].message == "it ended in this: time limit (9 s)"


def test_exit_codes_of_a_report() -> None:
    assert REPORT.error() is None
    assert SKIPPED.error() is None
    assert isinstance(FAILED.error(), GateError)
    assert FAILED.error().exit_code == 114  # type: ignore[union-attr]
    assert LIMITED.error().exit_code == 115  # type: ignore[union-attr]


@pytest.mark.parametrize("report", [REPORT, FAILED, SKIPPED, LIMITED])
def test_json_keeps_its_schema(report: SmokeReport) -> None:
    jsonschema.Draft202012Validator(SCHEMA).validate(report.to_json())
    assert report.to_json()["ready_seconds"] == 24.65


def test_table_fits_and_says_what_was_not_judged() -> None:
    for report in (REPORT, FAILED, SKIPPED, LIMITED):
        assert max(map(len, text(report, 80).splitlines())) <= 80
    assert "engine: vLLM 0.32.0" in text(REPORT, 80)
    assert text(REPORT, 80).endswith("cpu: 2 cases: 2 passed")
    assert "tiny broke" not in text(REPORT, 80)
    assert "what the server said last:\n  E1121 20:57 tiny broke" in text(FAILED, 80)
    assert "engine: stand-in" in text(SKIPPED, 80)
    assert text(SKIPPED, 80).endswith("cpu: 3 cases: 2 passed, 1 skipped; skipped is not passed: tool-call")


def test_junit_is_read_by_a_reader_of_it(tmp_path: Path) -> None:
    path = tmp_path / "smoke.xml"
    for report, states in ((FAILED, [None, None, junitparser.Failure]), (SKIPPED, [None, None, junitparser.Skipped])):
        path.write_text(junit_xml(report), encoding="utf-8")
        (suite,) = junitparser.JUnitXml.fromfile(str(path))
        assert [type(case.result[0]) if case.result else None for case in suite] == \
            [state or None for state in states]
        assert {one.name: one.value for one in suite.properties()}["engine"] == report.engine
        assert (suite.tests, suite.failures, suite.skipped) == (3, report is FAILED, report is SKIPPED)


def test_log_keeps_its_telling_last_lines_and_a_bounded_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smoke, "_LOG_BYTES", 300)
    log = smoke.Log(tmp_path / "failed" / "x.log")
    for number in range(40):
        log.line(f"E1121 line {number}")
    log.line("I1121 20:57:01 nothing")
    log.line("smoke: generate begun")
    log.line("+----+")
    log.close()
    assert (len(log.last), log.last[-1]) == (20, "E1121 line 39")
    lines = log.path.read_text().splitlines()
    assert lines[-1] == "# too long: the rest is left out"
    assert log.path.stat().st_size < 400


@pytest.mark.parametrize("choices", [
    {"executor": "podman"}, {"on_device": True, "stand_in": True}, {"on_device": True, "executor": "sandbox"},
    {"seconds": -1}, {"memory": -2}])
def test_choice_that_cannot_be_is_refused(choices: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        Options(**choices)


@pytest.mark.parametrize(("words", "said"), [
    (["smoke:thor", "--standin"], "--standin"), (["smoke", "--json"], "options belong to one target"),
    (["smoke:thor:image"], "did you mean ./doit smoke:thor?"),
    (["smoke:thor", "--junit", "/nowhere/x.xml"], "/nowhere")])
def test_command_line_is_judged_before_anything_is_built(words: list[str], said: str) -> None:
    with pytest.raises(InputError) as caught:
        main.known(words, HERE)
    assert said in caught.value.diagnostics()


def test_gpu_comes_by_cdi_or_by_the_runtime_or_not_at_all() -> None:
    by_cdi = gpu_options({"DiscoveredDevices": [{"Source": "cdi", "ID": "nvidia.com/gpu=0"}],
                          "Runtimes": {"nvidia": {}}})
    assert by_cdi["device_requests"][0]["Driver"] == "cdi"
    assert by_cdi["device_requests"][0]["DeviceIDs"] == ["nvidia.com/gpu=all"]
    assert "runtime" not in by_cdi
    by_runtime = gpu_options({"Runtimes": {"runc": {}, "nvidia": {}}})
    assert by_runtime["runtime"] == "nvidia"
    with pytest.raises(ToolError, match="no NVIDIA GPU"):
        gpu_options({"Runtimes": {"runc": {}}})
