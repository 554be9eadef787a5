"""Triton's side of the backend, without Triton: what is sent when something goes wrong, and the end of the model."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import queue
import sys
import threading
import types
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.vllm_backend import BACKEND, PACKAGE, backend, tensors

interface = backend("interface")
FINAL = 1


class Error(Exception):
    """Triton's `TritonError`."""

    INTERNAL, INVALID_ARG, UNAVAILABLE = "internal", "invalid", "unavailable"

    def __init__(self, text: str, code: str) -> None:
        super().__init__(text)
        self.code = code


class Sender:
    """Of one request; `fails` sends raise."""

    def __init__(self, fails: int = 0) -> None:
        self.fails = fails
        self.sent: queue.SimpleQueue[tuple[Any, int]] = queue.SimpleQueue()

    def send(self, answer: Any = None, flags: int = 0) -> None:
        if self.fails:
            self.fails -= 1
            raise RuntimeError("no room in shared memory")
        self.sent.put((answer, flags))

    def is_cancelled(self) -> bool:
        return False


class Engine:
    """Says one word per turn, forever or once."""

    longest = 10

    def __init__(self, endless: bool) -> None:
        self.endless = endless
        self.begun = threading.Event()

    async def generate(self, request: Any, identity: str) -> AsyncIterator[Any]:
        yield interface.Step([interface.Part("word")], 1, not self.endless)
        self.begun.set()
        while self.endless:
            await asyncio.sleep(3600)

    def failure(self) -> None:
        return None

    def close(self) -> None:
        pass


@pytest.fixture
def logged() -> list[str]:
    return []


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch, logged: list[str]) -> Any:
    """The module."""
    logger = types.SimpleNamespace(log_error=logged.append, log_info=logged.append, log_verbose=lambda line: None)
    utils = types.SimpleNamespace(
        TRITONSERVER_RESPONSE_COMPLETE_FINAL=FINAL, Logger=logger, TritonError=Error,
        InferenceResponse=lambda **named: types.SimpleNamespace(**{"error": None, **named}),
        Tensor=lambda name, values: (name, values))
    numpy = types.SimpleNamespace(array=lambda values, kind: values, object_=object)
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", utils)
    monkeypatch.setitem(sys.modules, "numpy", numpy)
    monkeypatch.setattr(backend("orphans"), "watch", lambda: None)
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec = importlib.util.spec_from_file_location(f"{PACKAGE}.model", BACKEND / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Served:
    """A model that runs with an engine of ours."""

    def __init__(self, module: Any, monkeypatch: pytest.MonkeyPatch, endless: bool) -> None:
        self.engine = Engine(endless)
        self.model = module.TritonPythonModel()

        def load(args: Any) -> None:
            self.model._name = "m"
            self.model._engine = self.engine
            for thread in self.model._threads:
                thread.start()

        monkeypatch.setattr(self.model, "_load", load)
        monkeypatch.setattr(module, "_locale", lambda: None)
        monkeypatch.setattr(module.overheard, "Overheard", lambda: types.SimpleNamespace(end=lambda: None))
        self.model.initialize({})

    def ask(self, sender: Sender, **inputs: Any) -> None:
        values = [types.SimpleNamespace(name=lambda name=name: name, as_numpy=lambda array=array: array)
                  for name, array in tensors(**inputs).items()]
        self.model.execute([types.SimpleNamespace(
            get_response_sender=lambda: sender, inputs=lambda: values, parameters=lambda: "", request_id=lambda: "")])


@pytest.fixture
def served(model: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    made: list[Served] = []

    def start(endless: bool = False) -> Served:
        made.append(Served(model, monkeypatch, endless))
        return made[0]

    yield start
    for one in made:
        one.model.finalize()


def test_an_answer(served: Any) -> None:
    sender = Sender()
    served().ask(sender, text_input="x")
    answer, flags = sender.sent.get(timeout=10)
    assert (answer.error, flags, answer.output_tensors[0]) == (None, FINAL, ("text_output", [b"xword"]))


def test_a_send_that_fails_ends_with_its_reason(served: Any, logged: list[str]) -> None:
    sender = Sender(fails=1)
    served().ask(sender, text_input="x")
    answer, flags = sender.sent.get(timeout=10)
    assert (str(answer.error), answer.error.code, flags) == ("no room in shared memory", Error.INTERNAL, FINAL)
    assert [line for line in logged if "an answer is not sent: no room in shared memory" in line]


def test_an_answer_in_a_stream_that_fails_ends_it_once(served: Any) -> None:
    sender = Sender(fails=1)
    running = served(endless=True)
    running.ask(sender, text_input="x", stream=True)
    answer, flags = sender.sent.get(timeout=10)
    assert (str(answer.error), flags) == ("no room in shared memory", FINAL)
    running.model.finalize()
    assert sender.sent.empty()


def test_the_end_of_the_model_ends_what_runs(served: Any) -> None:
    sender = Sender()
    running = served(endless=True)
    running.ask(sender, text_input="x", stream=True)
    assert running.engine.begun.wait(10)
    running.model.finalize()
    assert sender.sent.get(timeout=10)[1] == 0
    answer, flags = sender.sent.get_nowait()
    assert (str(answer.error), answer.error.code, flags) == ("the model m is being unloaded", Error.UNAVAILABLE, FINAL)
    assert not any(thread.is_alive() for thread in running.model._threads)


@pytest.mark.parametrize(("options", "refused"), [({}, True), ({"allowed_media_domains": ["example.com"]}, False)])
def test_addresses_are_refused(served: Any, options: dict[str, Any], refused: bool) -> None:
    sender = Sender()
    running = served()
    running.model._options = options
    running.ask(sender, messages=json.dumps([{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": "http://example.com/a.png"}}]}]))
    answer, flags = sender.sent.get(timeout=10)
    assert ((answer.error is not None and answer.error.code == Error.INVALID_ARG), flags) == (refused, FINAL)


@pytest.mark.parametrize(("directory", "found"), [
    ("adapter", True), ("owner/adapter", False), ("/nowhere/adapter", None), ("./absent", None)])
def test_directories_of_loras(model: Any, tmp_path: Path, directory: str, found: bool | None) -> None:
    (tmp_path / "adapter").mkdir()
    path = tmp_path / "multi_lora.json"
    path.write_text(json.dumps({"l": directory}))
    if found is None:
        with pytest.raises(interface.LoadError, match=f"directory of LoRA 'l' does not exist: {directory}"):
            model._read_loras(path)
    else:
        assert model._read_loras(path) == {"l": str(tmp_path / directory) if found else directory}
