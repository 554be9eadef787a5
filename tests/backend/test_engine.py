"""The engine of vLLM, as far as that needs no vLLM: its LoRAs are loaded with the model."""

from __future__ import annotations

import asyncio
import importlib.util
import re
import sys
import types
from typing import Any

import pytest

from tests.support.vllm_backend import BACKEND, PACKAGE, backend

LoadError = backend("interface").LoadError


class Module(types.ModuleType):
    """Has a class of any name."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        found = type(name, (Exception,), {})
        setattr(self, name, found)
        return found


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, with empty classes of vLLM's names."""
    path = BACKEND / "engine.py"
    wanted = re.findall(r"^ *(?:from|import) ((?:vllm|msgspec|pydantic)[\w.]*)", path.read_text("utf-8"), re.M)
    for name in wanted:
        for end in range(1, name.count(".") + 2):
            part = ".".join(name.split(".")[:end])
            monkeypatch.setitem(sys.modules, part, Module(part))
    spec = importlib.util.spec_from_file_location(f"{PACKAGE}.engine", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class LLM:
    """vLLM's `AsyncLLM`, which refuses one."""

    model_config = types.SimpleNamespace(model="any")
    renderer = None

    def __init__(self) -> None:
        self.added: list[str] = []

    async def add_lora(self, request: str) -> bool:
        if request == "bad":
            raise ValueError("Call to add_lora method failed:\nrank 64 is greater than max_lora_rank 16")
        self.added.append(request)
        return True


def started(module: Any, **loras: str) -> LLM:
    llm = LLM()
    module.AsyncLLM = types.SimpleNamespace(from_engine_args=lambda args, stat_loggers: llm)
    module.ParserManager = types.SimpleNamespace(get_parser=lambda **named: None)
    engine = object.__new__(module.Engine)
    engine._settings = types.SimpleNamespace(record=None)
    engine._args, engine._tool_parser, engine._reasoning_parser = None, "", ""
    engine._loras = loras
    asyncio.run(engine.start())
    return llm


def test_loras_are_loaded_with_the_model(engine: Any) -> None:
    assert started(engine, a="one", b="two").added == ["one", "two"]


def test_a_lora_that_does_not_load_is_named(engine: Any) -> None:
    with pytest.raises(LoadError, match="LoRA 'b' does not load: Call to add_lora method failed: rank 64 is greater"):
        started(engine, a="one", b="bad")
