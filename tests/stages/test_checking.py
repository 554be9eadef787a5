"""`check:<target>`: all verdicts in one report; as text, JSON, JUnit XML and SARIF."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jsonschema
import junitparser
import pytest

from cache.errors import GateError, InputError, IntegrityError
from checks.registry import CHECKS, check
from checks.verdict import Finding
from stages import checking, gates, main
from stages.check_text import text
from stages.checking import CheckReport, Judged, Weighed, judge_all
from stages.junit import junit_xml
from stages.sarif import DOCUMENT, sarif_json
from stages.tasks import Session
from tests.support import sarif
from tests.support.built import built_session
from tests.support.front import HERE
from tests.support.project import TARGET, write_target
from tests.support.wheel_factory import make_wheel

WAIVER = "waivers:\n  - {check: wheel-set, subject: 'wants: missing>=2', reason: nothing here needs it}\n"
UNUSED = "  - {check: wheel-set, subject: 'wants: missing>=1', reason: what was needed once}\n"
SCHEMA = json.loads((HERE / "docs/formats/check-report.schema.json").read_text(encoding="utf-8"))


def report_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waivers: str = "") -> tuple[Session, CheckReport]:
    session, _ = built_session(tmp_path, monkeypatch, waivers)
    return session, judge_all(session, "small")


def sample() -> CheckReport:
    """A report with a check of every state, with the texts that are hard to write down."""
    odd = Finding("error", "a: b>=2", "x < y & \"z\" \x00\x1b \N{SNOWMAN}", "/usr/lib/a b%.so", "do\nthis")
    waiver = {"check": "wheel-set", "subject": "a: b>=2", "reason": "it is known", "expires": "2027-01-31"}
    path = "usr/local/lib/python3.11/dist-packages/" + "very_long_name/" * 5 + "_C.abi3.so"
    return CheckReport("small", (
        Judged(check("torch-cuda"), "passed", cached=True, key="sha256:" + "a" * 64),
        Judged(check("wheel-set"), "waived", findings=(Weighed(odd, waiver), Weighed(Finding(
            "info", "what is there", "only that it is there"))), unused=({**waiver, "subject": "b"},), seconds=1.5),
        Judged(check("python"), "failed", findings=(
            Weighed(Finding("error", path, "of another machine, " * 9, f"/{path}", "take another")),
            Weighed(odd), Weighed(odd), Weighed(Finding("warning", "table", "is old", "vllm/extensions.yaml")),
            Weighed(Finding("warning", "layer", "is odd", "deps")))),
        Judged(check("extensions"), "error", problem=IntegrityError("a blob is not there", where="sha256:1", cure="x")),
    ))


def test_nothing_ends_at_the_first_check_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session, report = report_of(tmp_path, monkeypatch)
    assert [judged.check.id for judged in report.checks] == [
        one.id for one in gates.checks_for(session.project.graph("small"))]
    states = {judged.check.id: judged.state for judged in report.checks}
    assert (states["wheel-set"], states["python"]) == ("failed", "passed")
    assert [judged.check.id for judged in report.blocking] == ["wheel-set"]
    assert isinstance(report.error(), GateError)
    assert "wheel-set failed" in str(report.error().found)  # type: ignore[union-attr]


def test_waivers_cover_and_those_that_cover_nothing_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, report = report_of(tmp_path, monkeypatch, WAIVER + UNUSED)
    judged = next(one for one in report.checks if one.check.id == "wheel-set")
    assert (judged.state, judged.waived, judged.count("error"), judged.count("warning")) == ("waived", 1, 0, 1)
    assert [waiver["subject"] for waiver in judged.unused] == ["wants: missing>=1"]
    assert report.error() is None
    shown = text(report, 80)
    assert "reason: nothing here needs it" in shown
    assert "the waiver of 'wants: missing>=1' covers nothing" in shown


def test_second_time_every_verdict_is_from_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session, first = report_of(tmp_path, monkeypatch)
    second = judge_all(session, "small")
    assert not any(judged.cached for judged in first.checks)
    assert all(judged.cached for judged in second.checks)
    assert sarif_json(first) == sarif_json(second)


def test_check_that_cannot_judge_is_an_error_and_the_others_judge(tmp_path: Path,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    session, _ = built_session(tmp_path, monkeypatch)
    store = session.project.store
    store.discard(session.records["small", "deps"].outputs["packages"].digest)
    report = judge_all(session, "small")
    states = {judged.check.id: judged.state for judged in report.checks}
    assert (states["wheel-set"], states["python"]) == ("error", "passed")
    problem = report.of("error")[0].problem
    assert isinstance(problem, IntegrityError)
    with pytest.raises(IntegrityError):
        checking.run(session, "small")
    log = json.loads(sarif_json(report))
    assert sarif.problems(log) == []
    assert log["runs"][0]["invocations"][0]["executionSuccessful"] is False


@pytest.mark.parametrize("strict", [False, True])
def test_skipped_is_said_and_fails_only_when_strict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                    capsys: pytest.CaptureFixture[str], strict: bool) -> None:
    session, _ = built_session(tmp_path, monkeypatch, WAIVER)
    skipping = dataclasses.replace(check("python"), entry="tests.support.built:skips")
    monkeypatch.setattr(gates, "CHECKS", (check("wheel-set"), skipping))
    for _ in range(2):  # it is never stored
        report = judge_all(session, "small", strict=strict)
        assert [judged.state for judged in report.checks] == ["waived", "skipped"]
        assert not report.checks[1].cached
    jsonschema.Draft202012Validator(SCHEMA).validate(report.to_json())
    assert report.to_json()["passes"] is not strict
    shown = text(report, 80)
    assert "not judged on this machine: no such device here" in shown
    assert "cure:   run it on one" in shown
    assert "skipped is not passed: python" in shown
    suite = next(iter(junitparser.JUnitXml.fromstring(junit_xml(report).encode())))
    assert (suite.skipped, suite.failures) == ((0, 1) if strict else (1, 0))
    [case] = [case for case in suite if case.name == "python"]
    assert [type(one) for one in case.result] == [junitparser.Failure if strict else junitparser.Skipped]
    assert "no such device" in case.result[0].message
    log = json.loads(sarif_json(report))
    assert sarif.problems(log) == []
    assert not [result for result in log["runs"][0]["results"] if result["ruleId"] == "python"]
    [note] = [note for note in log["runs"][0]["invocations"][0]["toolExecutionNotifications"]
              if note["associatedRule"]["id"] == "python"]
    assert (note["level"], "no such device here" in note["message"]["text"]) == ("error" if strict else "warning", True)
    if strict:
        with pytest.raises(GateError, match="1 of 2 checks") as caught:
            checking.run(session, "small", strict=True)
        assert "leave out --strict" in caught.value.diagnostics()
    else:
        checking.run(session, "small")
    assert "1 skipped" in capsys.readouterr().out


def test_the_command_writes_all_reports_and_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                  capsys: pytest.CaptureFixture[str]) -> None:
    session, _ = built_session(tmp_path, monkeypatch)
    monkeypatch.setenv("STAGECRAFT_CWD", str(tmp_path))
    with pytest.raises(GateError, match="1 of "):
        checking.run(session, "small", as_json=True, junit="j.xml", sarif="s.sarif")
    told = json.loads(capsys.readouterr().out)
    jsonschema.Draft202012Validator(SCHEMA).validate(told)
    assert (told["passes"], told["counts"]["failed"]) == (False, 1)
    assert sarif.problems(json.loads((tmp_path / "s.sarif").read_text())) == []
    assert junitparser.JUnitXml.fromfile(str(tmp_path / "j.xml")).failures == 1
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file() and path.suffix != ".whl") == [
        "j.xml", "s.sarif"]


def test_json_of_every_state_keeps_its_schema() -> None:
    validator = jsonschema.Draft202012Validator(SCHEMA)
    validator.validate(sample().to_json())
    broken = sample().to_json()
    broken["checks"][0]["state"] = "fine"
    assert list(validator.iter_errors(broken))


def test_junit_is_read_back_by_its_readers() -> None:
    root = junitparser.JUnitXml.fromstring(junit_xml(sample()).encode())
    suite = next(iter(root))
    assert (suite.tests, suite.failures, suite.errors, suite.skipped) == (4, 1, 1, 0)
    suite.update_statistics()  # counts its cases anew
    assert (suite.tests, suite.failures, suite.errors, suite.skipped) == (4, 1, 1, 0)
    cases: dict[str, Any] = {case.name: case for case in suite}
    assert [case.classname for case in cases.values()] == ["stagecraft.small"] * 4
    assert cases["torch-cuda"].is_passed
    assert cases["wheel-set"].is_passed
    assert "waived: a: b>=2: x < y & \"z\" \N{REPLACEMENT CHARACTER}" in cases["wheel-set"].system_out
    assert "reason: it is known" in cases["wheel-set"].system_out
    [failure] = cases["python"].result
    assert isinstance(failure, junitparser.Failure)
    assert failure.message.endswith(" (and 2 more)")
    assert failure.text.startswith(f"error: {failure.message.removesuffix(' (and 2 more)')}\n")
    assert "cure: take another" in failure.text
    assert "table" not in failure.text
    assert "warning: table: is old" in cases["python"].system_out
    [error] = cases["extensions"].result
    assert isinstance(error, junitparser.Error)
    assert (error.type, error.message) == ("integrity", "a blob is not there")


def test_sarif_keeps_the_standard_and_says_all() -> None:
    log = json.loads(sarif_json(sample()))
    assert sarif.problems(log) == []
    [run] = log["runs"]
    assert [rule["id"] for rule in run["tool"]["driver"]["rules"]] == [
        "torch-cuda", "wheel-set", "python", "extensions"]
    assert [(result["ruleId"], result["level"]) for result in run["results"]] == [
        ("wheel-set", "error"), ("wheel-set", "note"), ("python", "error"), ("python", "error"), ("python", "error"),
        ("python", "warning"), ("python", "warning")]
    places = [result["locations"][0]["physicalLocation"]["artifactLocation"] for result in run["results"]]
    assert places[0] == {"uri": "usr/lib/a%20b%25.so", "uriBaseId": "IMAGE"}
    assert places[5] == {"uri": "vllm/extensions.yaml", "uriBaseId": "PROJECT"}
    assert places[6] == places[1] == {"uri": "targets/small.yaml", "uriBaseId": "PROJECT"}
    assert run["results"][6]["locations"][0]["logicalLocations"][0]["name"] == "deps"
    [suppression] = run["results"][0]["suppressions"]
    assert (suppression["justification"], suppression["properties"]) == ("it is known", {"expires": "2027-01-31"})
    assert not any("suppressions" in result for result in run["results"][1:])
    notes = run["invocations"][0]["toolExecutionNotifications"]
    assert [(note["level"], note["associatedRule"]["id"]) for note in notes] == [
        ("warning", "wheel-set"), ("error", "extensions")]


def test_fingerprints_are_of_the_subject_and_not_of_the_words() -> None:
    def prints(message: str, subject: str = "a", target: str = "thor") -> list[str]:
        found = Weighed(Finding("error", subject, message))
        log = json.loads(sarif_json(CheckReport(target, (Judged(check("python"), "failed", findings=(found, found)),))))
        return [result["partialFingerprints"]["stagecraftFinding/v1"] for result in log["runs"][0]["results"]]

    assert prints("one") == prints("other")
    assert len(set(prints("one"))) == 2
    assert not set(prints("one")) & set(prints("one", subject="b"))
    assert not set(prints("one")) & set(prints("one", target="spark"))


def test_every_rule_is_where_reports_point_to() -> None:
    document = (HERE / DOCUMENT).read_text(encoding="utf-8")
    assert [one.id for one in CHECKS if f'<a id="{one.id}"></a>' not in document] == []


@pytest.mark.parametrize("change", [
    lambda log: log.update(version="2.0"), lambda log: log["runs"][0]["results"][0].update(levle="error"),
    lambda log: log["runs"][0]["results"][0].update(ruleIndex=0),
    lambda log: log["runs"][0].pop("originalUriBaseIds"),
    lambda log: log["runs"][0]["results"][0]["suppressions"][0].pop("kind"),
    lambda log: log["runs"][0]["tool"]["driver"]["rules"].pop(),
])
def test_rules_of_sarif_can_be_broken(change: Any) -> None:
    log = json.loads(sarif_json(sample()))
    change(log)
    assert sarif.problems(log)


def test_text_fits_eighty_columns_but_for_paths_and_names_what_to_do() -> None:
    lines = text(sample(), 80).splitlines()
    assert not [line for line in lines if len(line) > 80 and "very_long_name" not in line]
    assert lines[0] == "torch-cuda  passed   stored"
    assert lines[2] == "python      failed           3 errors, 2 warnings"
    assert lines[-1] == "small: 4 checks: 1 passed, 1 waived, 1 failed, 1 error"
    found = "\n".join(lines)
    # What blocks comes last, where the eye is.
    assert found.index("\nwheel-set: ") < found.index("\npython: ") < found.index("\nextensions: ")
    assert "cure:   take another" in found
    assert "reason: it is known (until 2027-01-31)" in found
    assert "could not judge: a blob is not there" in found
    assert found.count("_C.abi3.so") == 1


def test_long_title_fits_too() -> None:
    judged = Judged(check("advisories"), "failed", findings=(Weighed(Finding("error", "a", "word")),))
    assert max(map(len, text(CheckReport("small", (judged,)), 80).splitlines())) <= 80


def test_many_notes_are_counted_and_nothing_else_is() -> None:
    def lines(severity: str, number: int) -> list[str]:
        findings = tuple(Weighed(Finding(severity, f"s{at}", "word")) for at in range(number))
        last = (*findings, Weighed(Finding("error", "what blocks", "word")))
        return text(CheckReport("small", (Judged(check("python"), "failed", findings=last),)), 80).splitlines()

    notes = lines("info", 45)
    assert "  … and 40 more notes (all of them with --json)" in notes
    assert len([line for line in notes if line.startswith("  note ")]) == 5
    assert any("what blocks" in line for line in notes)
    assert len([line for line in lines("info", 6) if line.startswith("  note ")]) == 6
    for severity in ("warning", "error"):
        assert len([line for line in lines(severity, 45) if line.startswith(f"  {severity:<7}")]) >= 45


def test_long_note_is_cut_and_a_long_error_is_not() -> None:
    def lines(severity: str) -> list[str]:
        found = Weighed(Finding(severity, "a", "word " * 100))
        return text(CheckReport("small", (Judged(check("python"), "passed", findings=(found,)),)), 80).splitlines()

    assert len([line for line in lines("info") if "word" in line]) == 3
    assert any("--json" in line for line in lines("info"))
    assert sum(line.count("word") for line in lines("error")) == 100


@pytest.mark.parametrize(("files", "words"), [(("none/j.xml", ""), "no directory"), (("", "."), "a directory"),
                                              (("x", "./x"), "two reports")])
def test_files_that_cannot_be_written_are_refused_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                        files: tuple[str, str], words: str) -> None:
    monkeypatch.setenv("STAGECRAFT_CWD", str(tmp_path))
    with pytest.raises(InputError) as caught:
        checking.refuse_files(*files)
    assert words in caught.value.diagnostics()


def front(root: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The front door in this process, which has the checks of `built_session`."""
    monkeypatch.setattr("sys.argv", ["doit"])
    return main.main(list(arguments), root)


def test_front_door_checks_without_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                            capfd: pytest.CaptureFixture[str]) -> None:
    wheels = [make_wheel(tmp_path, "good", "1", files={"good.py": b""})]
    session, _ = built_session(tmp_path, monkeypatch, wheels=wheels)
    root = session.project.root
    for stored in (False, True):
        assert front(root, monkeypatch, "check:small", "--json") == 0
        told = json.loads(capfd.readouterr().out)
        assert told["passes"]
        assert [one["cached"] for one in told["checks"]] == [stored, stored]
    assert not (root / "result-small").exists()
    monkeypatch.setenv("STAGECRAFT_CWD", str(tmp_path))
    assert front(root, monkeypatch, "check:small", "--junit", "j.xml", "--sarif=s", "--strict") == 0
    assert "small: 2 checks: 2 passed" in capfd.readouterr().out
    assert (tmp_path / "j.xml").exists()
    assert (tmp_path / "s").exists()
    assert front(root, monkeypatch, "check:small", "--junit", "no/j.xml") == 110
    assert "no directory" in capfd.readouterr().err


def test_front_door_fails_with_the_gate_s_code_and_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    session, _ = built_session(tmp_path, monkeypatch)
    assert front(session.project.root, monkeypatch, "check:small") == 114
    told = capfd.readouterr()
    assert "wheel-set  failed" in told.out
    assert "error: 1 of 2 checks" in told.err
    assert "Traceback" not in told.err


def test_gate_that_fails_hides_no_check_of_what_is_behind_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    session, _ = built_session(tmp_path, monkeypatch)
    behind = dataclasses.replace(check("python"), after=("image",), outputs=(("image", "config"),),
                                 facts=lambda target, lock: {}, entry="tests.support.built:says")
    monkeypatch.setattr(gates, "CHECKS", (check("wheel-set"), behind))
    root = session.project.root
    assert front(root, monkeypatch, "check:small", "--json") == 114
    told = json.loads(capfd.readouterr().out)
    assert [(one["check"], one["state"]) for one in told["checks"]] == [("wheel-set", "failed"), ("python", "passed")]
    assert told["checks"][1]["findings"][0]["subject"] == "image/config"
    assert not (root / "result-small").exists()
    assert front(root, monkeypatch, "build:small") == 114  # the gate holds, though the blob is there now


def test_every_target_is_checked_though_one_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    session, _ = built_session(tmp_path, monkeypatch, WAIVER)
    write_target(session.project.root, "a-bad", TARGET.replace("memory", "memroy"))
    assert front(session.project.root, monkeypatch, "-n", "1", "check") == 110
    told = capfd.readouterr()
    assert "small: 2 checks: 1 passed, 1 waived" in told.out
    assert "targets/a-bad.yaml:10" in told.err
