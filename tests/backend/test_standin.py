"""The stand-in engine keeps the same promises as the real one."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.vllm_backend import backend, settings

standin = backend("standin")
interface = backend("interface")
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"required": ["city"]}}}]
USER = [{"role": "user", "content": "hello"}]


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    found = asyncio.new_event_loop()
    yield found
    found.close()


class Running:
    """A started engine."""

    def __init__(self, loop: asyncio.AbstractEventLoop, **more: Any) -> None:
        self.loop = loop
        self.said: list[str] = []
        self.engine = standin.Engine(settings(log=self.said.append, **more))
        loop.run_until_complete(self.engine.start())

    @property
    def core(self) -> int:
        return int(self.said[0].rpartition(" ")[2])

    def steps(self, **more: Any) -> list[Any]:
        async def gather() -> list[Any]:
            return [step async for step in self.engine.generate(interface.Request(**more), "1")]

        return self.loop.run_until_complete(gather())


@pytest.fixture
def engine(loop: asyncio.AbstractEventLoop) -> Iterator[Running]:
    found = Running(loop, tool_parser="t", reasoning_parser="r", loras={"l": "/l"})
    yield found
    found.engine.close()


def test_the_same_request_has_the_same_answer(engine: Running) -> None:
    (one,), (other,) = (engine.steps(prompt="hello you") for _ in range(2))
    assert one == other
    assert (one.prompt_tokens, one.last, one.parts[0].tokens, one.parts[0].finish) == (2, True, 16, "length")


def test_a_stream_says_what_the_whole_says(engine: Running) -> None:
    steps = engine.steps(prompt="hello", stream=True, sampling={"max_tokens": 5})
    assert [step.last for step in steps] == [False] * 4 + [True]
    (whole,) = engine.steps(prompt="hello", sampling={"max_tokens": 5})
    assert "".join(step.parts[0].text for step in steps) == whole.parts[0].text
    assert steps[-1].parts[0].cumulative_logprob == whole.parts[0].cumulative_logprob


@pytest.mark.parametrize("pattern", [r"<a>\n\{[a-z]{3,8}[0-9]+\}", "(yes|no)x*", r"\d{4}-[^a]", "a.b"])
def test_a_text_that_matches(pattern: str) -> None:
    assert re.fullmatch(pattern, standin.matching(pattern))


def test_reasoning_and_tool_calls_are_split(engine: Running) -> None:
    pattern = r"<think>[a-z ]{8}</think><tool_call>\{\"name\": \"f\", \"arguments\": \{\}\}</tool_call>"
    asked = {"messages": USER, "tools": TOOLS, "structured": {"regex": pattern}, "sampling": {"max_tokens": 200}}
    (step,) = engine.steps(**asked)
    part = step.parts[0]
    assert (part.text, part.reasoning, part.finish) == ("", "aaaaaaaa", "tool_calls")
    assert part.tool_calls == [{"id": "call-0", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    streamed = engine.steps(**asked, stream=True)
    assert "".join(step.parts[0].reasoning for step in streamed) == "aaaaaaaa"
    assert [call["index"] for step in streamed for call in step.parts[0].tool_calls] == [0]


def test_a_forced_tool_call(engine: Running) -> None:
    for choice in ("required", {"function": {"name": "f"}}):
        (step,) = engine.steps(messages=USER, tools=TOOLS, tool_choice=choice)
        assert step.parts[0].tool_calls[0]["function"] == {"name": "f", "arguments": '{"city": "word"}'}
    (step,) = engine.steps(messages=USER, tools=TOOLS)
    assert step.parts[0].text


@pytest.mark.parametrize(("asked", "said"), [
    ({"sampling": {"max_tokens": -1}}, "max_tokens cannot be -1"), ({"sampling": {"mx": 1}}, "no parameter 'mx'"),
    ({"lora": "k"}, "no LoRA 'k'; there is l"), ({"structured": {"regex": "["}}, "structured_outputs: regex"),
])
def test_bad_requests(engine: Running, asked: dict[str, Any], said: str) -> None:
    with pytest.raises(interface.BadRequestError, match=re.escape(said)):
        engine.steps(prompt="x", **asked)


def test_a_prompt_that_is_too_long(loop: asyncio.AbstractEventLoop) -> None:
    short = Running(loop, options={"model": "m", "standin": {"max_model_len": 2}})
    with pytest.raises(interface.BadRequestError, match="has 3 tokens, the model takes at most 2"):
        short.steps(prompt="one two three")
    short.engine.close()


def test_a_killed_core_ends_what_runs(engine: Running) -> None:
    assert engine.engine.failure() is None

    async def killed() -> None:
        async for _ in engine.engine.generate(interface.Request(
                prompt="x", stream=True, sampling={"max_tokens": 10**6}), "1"):
            os.kill(engine.core, signal.SIGKILL)

    with pytest.raises(interface.EngineDeadError, match="engine core ended with -9"):
        engine.loop.run_until_complete(killed())
    assert engine.engine.failure() == "engine core ended with -9"


def test_close_leaves_no_process(loop: asyncio.AbstractEventLoop) -> None:
    running = Running(loop)
    core = running.core
    os.kill(core, 0)
    running.engine.close()
    with pytest.raises(ProcessLookupError):
        os.kill(core, 0)


def test_statistics(loop: asyncio.AbstractEventLoop) -> None:
    told: list[Any] = []
    running = Running(loop, record=told.append)
    running.steps(prompt="one two", sampling={"max_tokens": 3})
    running.engine.close()
    assert [(one.num_prompt_tokens, one.num_generation_tokens) for one in told] == [(2, 1), (0, 1), (0, 1)]
    assert [len(one.finished_requests) for one in told] == [0, 0, 1]
    assert told[2].finished_requests[0].num_generation_tokens == 3


def test_it_imports_no_vllm() -> None:
    assert "vllm" not in sys.modules
