"""Check `load` without running anything: its steps, what it makes of ends, what it says when nothing can run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from cache.store import Store
from checks import facts
from checks.load import _attempt, _judge, planned
from checks.registry import Check, check
from checks.verdict import CheckInputs, Finding, SkippedError, apply_waivers, judge, stored_verdict
from executors.process import Outcome
from tests.support.gates import Gates

FACTS: dict[str, Any] = {
    "site": "usr/lib/site", "wheels": ["torch", "torchvision", "vllm"],
    "rows": [{"module": "vllm._C", "file": "vllm/_C.abi3.so"},
             {"module": "vllm._moe_C", "file": "vllm/_moe_C.abi3.so"}],
}
STEPS = ["torch", "vllm._C", "vllm._moe_C", "torchvision::nms", "vllm", "vllm._custom_ops"]


def test_steps_stand_in_their_order() -> None:
    steps = planned(FACTS)
    assert [step["name"] for step in steps] == STEPS
    assert steps[1]["file"] == "/usr/lib/site/vllm/_C.abi3.so"
    assert [step["name"] for step in planned({**FACTS, "wheels": ["torch"], "rows": []})] == ["torch"]


class Runs:
    """An interpreter that does what a test says: step to message, or to None where it dies."""

    def __init__(self, results: Mapping[str, str | None], reason: str = "killed by SIGSEGV",
                 exit_: int | None = 139, whole: bool = True) -> None:
        self.results, self.reason, self.exit, self.whole = results, reason, exit_, whole
        self.seen: list[list[str]] = []

    def __call__(self, steps: Sequence[Mapping[str, Any]]) -> tuple[Outcome, dict[str, tuple[str, str]]]:
        self.seen.append([step["name"] for step in steps])
        found: dict[str, tuple[str, str]] = {}
        for step in steps:
            name = step["name"]
            if name in self.results and self.results[name] is None:
                found[name] = ("begun", "")
                return Outcome(self.exit, self.reason, 1.0, whole=self.whole), found
            found[name] = ("failed", str(self.results[name])) if name in self.results else ("passed", "")
            if name in self.results and step.get("needed"):
                break
        return Outcome(0, "exit 0", 1.0, whole=self.whole), found


def judged(runs: Runs) -> dict[str, Finding]:
    return {finding.subject: finding for finding in _judge(planned(FACTS), runs)}


def test_all_passed_is_no_finding() -> None:
    assert judged(Runs({})) == {}


def test_each_failure_is_its_own_finding_with_the_loaders_message() -> None:
    found = judged(Runs({"vllm._C": "ImportError: /x.so: undefined symbol: _ZN3c10", "vllm": "No module named 'x'",
                         "vllm._moe_C": "ImportError: libcudart.so.12: cannot open shared object file"}))
    assert set(found) == {"vllm._C", "vllm._moe_C", "vllm"}
    assert found["vllm._C"].message == "ImportError: /x.so: undefined symbol: _ZN3c10"
    assert found["vllm._C"].where == "/usr/lib/site/vllm/_C.abi3.so"
    assert "belong together" in found["vllm._C"].cure
    assert "add the package" in found["vllm._moe_C"].cure
    assert "add the wheel" in found["vllm"].cure
    assert {finding.severity for finding in found.values()} == {"error"}


def test_death_in_a_step_is_named_and_the_rest_is_tried() -> None:
    runs = Runs({"vllm._C": None, "vllm": "ImportError: no"})
    found = judged(runs)
    assert found["vllm._C"].message == "the interpreter died while loading it: killed by SIGSEGV"
    assert found["vllm"].message == "ImportError: no"
    assert runs.seen == [STEPS, ["torch", *STEPS[2:]]]


def test_torch_that_fails_or_dies_is_the_only_finding() -> None:
    assert list(judged(Runs({"torch": "ImportError: x"}))) == ["torch"]
    runs = Runs({"torch": None})
    assert list(judged(runs)) == ["torch"]
    assert len(runs.seen) == 1


def test_death_in_the_last_step_ends_it() -> None:
    runs = Runs({"vllm._custom_ops": None})
    assert list(judged(runs)) == ["vllm._custom_ops"]
    assert len(runs.seen) == 1


@pytest.mark.parametrize(("reason", "exit_", "missing"), [
    ("time limit (1800 s)", None, "time limit"), ("out of memory (limit 12 GiB)", None, "out of memory"),
    ("killed by SIGKILL (by the machine, …)", 137, "SIGKILL"),
])
def test_end_that_may_be_this_machines_is_no_verdict(reason: str, exit_: int | None, missing: str) -> None:
    with pytest.raises(SkippedError, match=missing):
        judged(Runs({"vllm": None}, reason, exit_))


def test_failure_where_children_cannot_run_is_no_verdict_but_success_is() -> None:
    with pytest.raises(SkippedError, match="child processes"):
        judged(Runs({"vllm": "OSError: exec format"}, whole=False))
    assert judged(Runs({}, whole=False)) == {}


def test_end_between_two_steps_passes_for_no_end_of_all() -> None:
    def half(steps: Sequence[Mapping[str, Any]]) -> tuple[Outcome, dict[str, tuple[str, str]]]:
        return Outcome(1, "exit 1", 1.0, last="No space left on device"), {STEPS[0]: ("passed", "")}

    with pytest.raises(SkippedError, match=r"before vllm\._C was tried.*No space"):
        _judge(planned(FACTS), half)


def test_what_the_image_left_in_its_directory_stops_nothing(tmp_path: Path) -> None:
    work = tmp_path / "build"
    (work / "steps.json" / "deep").mkdir(parents=True)
    (work / "results.jsonl").mkdir()
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp" / "home").symlink_to("/nowhere")

    def start() -> Outcome:
        path = work / "results.jsonl"
        told = '{"name": "torch", "state": "passed", "message": ""}\n'
        path.write_text("[" * 200_000 + "\n" + told + "x" * (20 << 20))
        return Outcome(0, "exit 0", 1.0, outputs={"results.jsonl": path})

    outcome, results = _attempt(start, tmp_path, planned(FACTS))
    assert outcome.ok
    assert results == {"torch": ("passed", "")}
    assert not (tmp_path / "tmp" / "home").is_symlink()


def test_interpreter_that_does_not_start_is_said() -> None:
    def nothing(steps: Sequence[Mapping[str, Any]]) -> tuple[Outcome, dict[str, tuple[str, str]]]:
        return Outcome(1, "cannot start: execvp /usr/bin/python3.11: No such file or directory", 0.1), {}

    finding = _judge(planned(FACTS), nothing)[0]
    assert finding.subject == "python"
    assert "cannot start: execvp /usr/bin/python3.11" in finding.message


def skipping(inputs: CheckInputs) -> list[Finding]:
    raise SkippedError("bubblewrap is not installed", "sudo apt-get install bubblewrap")


def test_skipped_check_is_not_stored_and_neither_passes_nor_fails(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    one = Check("load", 1, "x", (), (), lambda target, lock: {}, f"{__name__}:skipping")
    verdict = judge(store, one, {}, {})
    assert (verdict.skipped, verdict.cached, verdict.errors) == ("bubblewrap is not installed", False, ())
    assert [(f.severity, f.cure) for f in verdict.findings] == [("warning", "sudo apt-get install bubblewrap")]
    assert stored_verdict(store, one, {}, {}) is None
    report = apply_waivers([verdict], [{"check": "load", "subject": "*", "reason": "x"}])
    assert (report.skipped, report.passed, report.failed, report.waived, report.unused) == (
        (("load", "bubblewrap is not installed"),), (), (), (), ())


def test_facts_name_the_emulator_and_the_rows_of_the_device(tmp_path: Path) -> None:
    gates = Gates(Store.open(tmp_path))
    gates.lock |= {"wheels": [{"name": "vllm", "version": "0.32.0"}, {"name": "torch", "version": "2"}],
                   "emulator": {"suites": [], "debs": [{"name": "qemu-user", "version": "1:10", "architecture": "amd64",
                                                        "sha256": "a" * 64, "file": "x", "size": 1, "index": "d"}]}}
    thor = facts.load(gates.target, gates.lock)
    assert thor["emulator"] == [{"name": "qemu-user", "version": "1:10", "architecture": "amd64", "sha256": "a" * 64}]
    assert thor["wheels"] == ["torch", "vllm"]
    assert "vllm.vllm_flash_attn._vllm_fa2_C" in [row["module"] for row in thor["rows"]]
    assert {row["name"]: row["value"] for row in thor["stubs"]} == {"libcuda.so.1": 100, "libnvidia-ml.so.1": 9}
    gates.target["device"]["compute_capability"] = "12.1"
    spark = facts.load(gates.target, gates.lock)
    assert len(spark["rows"]) > len(thor["rows"])
    del gates.lock["emulator"]
    assert facts.load(gates.target, gates.lock)["emulator"] == []
    assert check("load").runs


def test_verdict_can_be_made_again_for_what_it_leaves_behind(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    one = Check("load", 1, "x", (), (), lambda target, lock: {}, f"{__name__}:counting")
    kept_at.clear()
    judge(store, one, {}, {})
    assert judge(store, one, {}, {}).cached
    assert not judge(store, one, {}, {}, again=True, keep=tmp_path / "kept").cached
    assert kept_at == [None, tmp_path / "kept"]


kept_at: list[Path | None] = []


def counting(inputs: CheckInputs) -> list[Finding]:
    kept_at.append(inputs.keep)
    return [Finding("error", "x", "y")]
