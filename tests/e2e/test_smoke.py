"""`smoke:<target>` for real: vLLM behind Triton on this machine's CPU; thor's aarch64 server under the emulator; and
everything that can go wrong, with the stand-in in the place of vLLM and the real server around it.

Uses the store named by STAGECRAFT_TEST_STORE if it is set, as tests/e2e/test_thor.py does.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import junitparser
import pytest

from cache.errors import GateError, ToolError
from stages import smoke
from stages.report import Report
from stages.smoke import Options, SmokeReport
from stages.tasks import Session
from tests.support.front import HERE, committed_project, doit, manifest_of

pytestmark = pytest.mark.skipif(os.uname().machine != "x86_64", reason="cpu is for amd64; thor is to be foreign")
SCHEMA = json.loads((HERE / "docs/formats/smoke-report.schema.json").read_text(encoding="utf-8"))
CASES = ("start", "health", "metadata", "generate", "stream", "tool-call", "reasoning", "bad-request", "cancellation",
         "concurrent", "metrics", "engine-killed", "unload-load", "clean-stop")
#: What the stand-in has not.
PARSERS = {"tool-call", "reasoning"}


@pytest.fixture(scope="module")
def root(thor_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in a directory of its own with the committed targets and locks, cpu built."""
    root = committed_project(tmp_path_factory.mktemp("smoke") / "project")
    doit(root, thor_store, "build:cpu")
    return root


def test_manifest_digest_of_cpu_is_the_committed_one(root: Path) -> None:
    assert manifest_of(root, "cpu") == (HERE / "targets" / "cpu.digest").read_text().strip()


def states(report: dict[str, Any]) -> dict[str, str]:
    jsonschema.Draft202012Validator(SCHEMA).validate(report)
    return {case["case"]: case["state"] for case in report["cases"]}


def test_real_vllm_passes_every_case(root: Path, thor_store: Path, tmp_path: Path) -> None:
    junit = tmp_path / "smoke.xml"
    done = doit(root, thor_store, "smoke:cpu", "--json", "--junit", str(junit), rc=None)
    assert done.returncode in (0, 114), done.stderr
    report = json.loads(done.stdout)
    log = Path(report["log"]).read_text(encoding="utf-8")
    assert states(report) == dict.fromkeys(CASES, "passed"), (report, log[-6000:])
    assert (done.returncode, report["passes"], report["engine"]) == (0, True, "vLLM 0.32.0")
    assert report["how"][0] == "sandbox"
    assert report["ready_seconds"] > 0
    assert "EngineCore" in log
    assert "  ...     smoke" in done.stderr  # it takes longer than ten seconds, and says what it does
    (suite,) = junitparser.JUnitXml.fromfile(str(junit))
    assert (suite.tests, suite.failures, suite.skipped) == (len(CASES), 0, 0)


def test_thors_own_server_answers_under_the_emulator(root: Path, thor_store: Path) -> None:
    done = doit(root, thor_store, "smoke:thor", "--json", rc=None)
    assert done.returncode in (0, 114), done.stderr
    report = json.loads(done.stdout)
    assert states(report) == {case: "skipped" if case in PARSERS else "passed" for case in CASES}, \
        (report, Path(report["log"]).read_text(encoding="utf-8")[-6000:])
    assert (done.returncode, report["engine"]) == (0, "stand-in")
    assert "emulator" in " ".join(report["how"])


def test_table_fits_and_names_what_was_not_judged(root: Path, thor_store: Path) -> None:
    done = doit(root, thor_store, "smoke:cpu", "--stand-in")
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert "engine: stand-in" in lines[0]
    assert "skipped is not passed: tool-call, reasoning" in " ".join(lines)
    assert [line.split()[0] for line in lines if " passed " in line or " skipped " in line[:24]] == list(CASES)


# -- faults, with the stand-in ----------------------------------------------------------------------------------------


class Bench:
    """A session in which `cpu` is built."""

    def __init__(self, root: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("STAGECRAFT_STORE", str(store))
        self.session = Session(root)
        self.said = io.StringIO()
        self.session.report = Report(err=self.said)
        for stage in self.session.project.graph("cpu").stages:
            assert self.session.uptodate("cpu", stage)
        self._monkeypatch, self._given = monkeypatch, smoke.given

    def run(self, change: Callable[[Path, dict[str, Any]], None], seconds: int = 120, memory: int = 0) -> SmokeReport:
        def given(project: Any, directory: Path, stand_in: bool) -> dict[str, Any]:
            plan = self._given(project, directory, stand_in)
            change(directory, plan)
            return plan

        self._monkeypatch.setattr(smoke, "given", given)
        return smoke.smoke(self.session, "cpu", Options(stand_in=True, seconds=seconds, memory=memory))


@pytest.fixture
def bench(root: Path, thor_store: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(root, thor_store, monkeypatch)


def cases(text: str) -> Callable[[Path, dict[str, Any]], None]:
    """Other cases than the driver's own."""
    def change(directory: Path, plan: dict[str, Any]) -> None:
        with (directory / "cases.py").open("a") as file:
            file.write(f"\n\n{text}\n")

    return change


def test_port_in_use_is_the_reason(bench: Bench) -> None:
    def change(directory: Path, plan: dict[str, Any]) -> None:
        listen = ("import socket, subprocess, sys; one = socket.create_server(('127.0.0.1', 8000)); "
                  "sys.exit(subprocess.call(sys.argv[1:]))")
        plan["command"] = ["python3", "-c", listen, *plan["command"]]

    report = bench.run(change)
    assert {case.state for case in report.cases[1:]} == {"skipped"}
    assert report.cases[0].message.startswith(
        "the server ended (exit 69): entrypoint: 127.0.0.1 port 8000 is in use")
    assert isinstance(report.error(), GateError)


def test_model_file_cut_short_is_the_reason(bench: Bench) -> None:
    def change(directory: Path, plan: dict[str, Any]) -> None:
        os.truncate(directory / "model" / "model.safetensors", 300_000)

    report = bench.run(change)
    assert (report.cases[0].case, report.cases[0].state) == ("start", "failed")
    assert "failed to load 'tiny'" in report.cases[0].message
    assert "model.safetensors" in report.cases[0].message
    assert "\n" not in report.cases[0].message


def test_backend_that_cannot_be_imported_is_the_reason(bench: Bench) -> None:
    def change(directory: Path, plan: dict[str, Any]) -> None:
        path = directory / "repository" / "tiny" / "config.pbtxt"
        path.write_text(path.read_text().replace("standin", "nowhere"))

    report = bench.run(change)
    assert (report.cases[0].case, report.cases[0].state) == ("start", "failed")
    assert "nowhere" in report.cases[0].message
    assert any("nowhere" in line for line in report.last)
    assert "nowhere" in Path(report.log).read_text(encoding="utf-8")


def test_server_that_never_becomes_ready_fails(bench: Bench) -> None:
    def change(directory: Path, plan: dict[str, Any]) -> None:
        path = directory / "repository" / "tiny" / "1" / "model.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "standin": {"load_seconds": 1000}}))

    report = bench.run(change, seconds=20)
    assert report.cases[0].message == "not ready after 12 s"
    assert isinstance(report.error(), GateError)


def test_time_limit_ends_it_and_blames_the_machine(bench: Bench) -> None:
    report = bench.run(cases("CASES = (CASES[0], ('stream', lambda server: time.sleep(1000)), CASES[-1])"), seconds=30)
    assert report.limit == "time limit (30 s)"
    assert [case.state for case in report.cases] == ["passed", "passed", "failed", "skipped"]
    assert isinstance(report.error(), ToolError)


def test_memory_limit_ends_it_and_blames_the_machine(bench: Bench) -> None:
    eat = "CASES = (('stream', lambda server: [b'x' * (3 << 30), time.sleep(60)] and 'eaten'),)"
    report = bench.run(cases(eat), memory=2)
    assert report.limit == "out of memory (limit 2 GiB)"
    assert isinstance(report.error(), ToolError)


def test_driver_that_is_killed_has_not_passed_and_leaves_no_process(bench: Bench) -> None:
    report = bench.run(cases("CASES = (('stream', lambda server: os.kill(os.getpid(), signal.SIGKILL)), CASES[-1])"))
    assert [(case.case, case.state) for case in report.cases] == [
        ("start", "passed"), ("stream", "failed"), ("clean-stop", "skipped")]
    assert "SIGKILL" in report.cases[1].message
    mine = [path for path in Path("/proc").glob("[0-9]*/cmdline") if _reads(path, b"/inputs/smoke/repository")]
    assert mine == []


def _reads(path: Path, text: bytes) -> bool:
    try:
        return text in path.read_bytes()
    except OSError:
        return False


def test_server_that_dies_is_named_by_its_signal(bench: Bench) -> None:
    kill = "(os.kill(server.process.pid, signal.SIGKILL), server.process.wait(), server.ask('/v2'))"
    report = bench.run(cases(f"CASES = (('health', lambda server: {kill}), CASES[1], CASES[-1])"))
    assert [case.state for case in report.cases] == ["passed", "failed", "skipped", "failed"], report
    assert all("the server ended (killed by SIGKILL)" in case.message for case in report.cases[1:])


def test_kept_on_failure_is_what_it_ran_in(bench: Bench) -> None:
    bench.session.keep_failed = True
    report = bench.run(cases("CASES = (('health', lambda server: server.ask('/v2/nowhere').expect(200)),)"))
    assert report.failed[0].message.startswith("HTTP 40")
    kept = next(line for line in bench.said.getvalue().splitlines() if "kept" in line).split()[-1]
    assert (Path(kept) / "given" / "repository" / "tiny" / "config.pbtxt").exists()
    assert (Path(kept) / "build" / "results.jsonl").exists()
