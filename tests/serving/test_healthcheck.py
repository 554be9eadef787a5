"""The image's healthcheck against a real HTTP server; with the real Triton: tests/e2e/test_entrypoint.py."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.serve import HERE, LANGUAGE, Triton, module, running_triton

repository = module("repository")
healthcheck = module("healthcheck")


@pytest.fixture
def triton() -> Iterator[Triton]:
    with running_triton() as running:
        yield running


def options(triton: Triton, models: Path, *more: str) -> Any:
    return repository.Options.of([f"--model-repository={models}", "--http-address=127.0.0.1",
                                  f"--http-port={triton.port}", *more])


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for name in ("one", "two"):
        (tmp_path / name / "1").mkdir(parents=True)
    return tmp_path


def test_every_model_is_asked_for_a_token(triton: Triton, models: Path) -> None:
    triton.model("one")
    triton.model("two")
    assert healthcheck.examine(options(triton, models)) == ["one answers", "two answers"]
    asked = {path: body for path, body in triton.asked if body is not None}
    assert sorted(asked) == ["/v2/models/one/generate", "/v2/models/two/generate"]
    assert '"max_tokens": 1' in asked["/v2/models/one/generate"]["sampling_parameters"]


@pytest.mark.parametrize(("generate", "said"), [
    ((500, {"error": "Stub process 'one_0' is not healthy."}), "does not generate: 500 Stub process 'one_0'"),
    ((200, {"something": "else"}), "does not generate: 200"),
    ((200, None), "does not generate: 200")])
def test_a_dead_stub_is_seen_though_the_model_is_ready(triton: Triton, models: Path, generate: Any, said: str) -> None:
    triton.model("one", generate=generate)
    triton.model("two")
    with pytest.raises(healthcheck.UnhealthyError, match=f"one: {said}"):
        healthcheck.examine(options(triton, models))


def test_a_model_that_was_unloaded_is_named(triton: Triton, models: Path) -> None:
    triton.model("one")
    triton.model("two", ready=400)
    explicit = ("--model-control-mode=explicit", "--load-model=*")
    with pytest.raises(healthcheck.UnhealthyError, match="two: is not ready: not loaded, or its engine is dead"):
        healthcheck.examine(options(triton, models, *explicit))
    assert healthcheck.examine(options(triton, models, explicit[0], "--load-model=one")) == ["one answers"]
    assert healthcheck.examine(options(triton, models), ["one"]) == ["one answers"]


def test_a_model_that_is_none_of_language_is_only_ready(triton: Triton, models: Path) -> None:
    triton.model("one", {"backend": "python", "input": [{"name": "x"}], "output": [{"name": "y"}]})
    triton.model("two", {**LANGUAGE, "backend": "python"})
    assert healthcheck.examine(options(triton, models)) == ["one is ready", "two answers"]


def test_an_answer_that_does_not_come_is_no_answer(triton: Triton, models: Path,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(healthcheck, "PATIENCE", 0.2)
    ended = threading.Event()
    triton.model("one", generate=lambda body: (ended.wait(30), (200, {"text_output": ""}))[1])
    triton.model("two")
    try:
        with pytest.raises(healthcheck.UnhealthyError, match=r"one: no answer within 0\.2 s"):
            healthcheck.examine(options(triton, models))
    finally:
        ended.set()


def test_no_proxy_is_asked(triton: Triton, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delitem(sys.modules, "healthcheck")  # it looks at proxies when it is loaded, if ever
    fresh = module("healthcheck")
    monkeypatch.setitem(sys.modules, "healthcheck", healthcheck)
    triton.model("one")
    triton.model("two")
    assert fresh.examine(options(triton, models)) == ["one answers", "two answers"]


def test_server_that_is_gone(models: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with running_triton() as triton:
        found = options(triton, models)
    monkeypatch.setattr(repository, "running", lambda: found)
    assert healthcheck.main([]) == 1
    assert capsys.readouterr().out == "unhealthy: no answer: [Errno 111] Connection refused\n"


def test_nothing_to_load_is_healthy_only_if_that_was_asked_for(triton: Triton, tmp_path: Path) -> None:
    with pytest.raises(healthcheck.UnhealthyError, match="holds no model"):
        healthcheck.examine(options(triton, tmp_path))
    assert healthcheck.examine(options(triton, tmp_path, "--model-control-mode=explicit")) \
        == ["no model is loaded when it starts"]


def test_what_answers_is_no_http_server(models: Path, capsys: pytest.CaptureFixture[str],
                                        monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        def speak() -> None:
            connection, _ = other.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"220 mail\r\n")

        thread = threading.Thread(target=speak, daemon=True)
        thread.start()
        found = repository.Options.of([f"--model-repository={models}", "--http-address=127.0.0.1",
                                       f"--http-port={other.getsockname()[1]}"])
        monkeypatch.setattr(repository, "running", lambda: found)
        assert healthcheck.main([]) == 1
        thread.join(30)
    assert capsys.readouterr().out.startswith("unhealthy: what answers there speaks no HTTP: BadStatusLine(")


@pytest.mark.parametrize("seconds", ["abc", "0", "-1", "nan", "inf"])
def test_seconds_that_are_none_are_said(seconds: str) -> None:
    done = subprocess.run([sys.executable, str(HERE / "healthcheck.py")], capture_output=True, text=True, check=False,
                          env={**os.environ, "STAGECRAFT_HEALTH_SECONDS": seconds})
    assert (done.returncode, done.stdout, done.stderr) == (
        1, f"unhealthy: STAGECRAFT_HEALTH_SECONDS={seconds} is no number of seconds, from more than 0 to 86400\n", "")
