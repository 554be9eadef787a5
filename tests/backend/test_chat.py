"""Families of models, messages for a template, and text taken apart by parsers that behave as vLLM's do."""

from __future__ import annotations

import json
import types
from collections.abc import Sequence
from typing import Any

import pytest

from tests.support.vllm_backend import backend

chat = backend("chat")


@pytest.mark.parametrize(("names", "tool", "reasoning"), [
    (["Qwen/Qwen3-0.6B"], "hermes", "qwen3"),
    (["Qwen/Qwen3-4B-Instruct-2507"], "hermes", ""),
    (["Qwen/Qwen3-Coder-30B-A3B-Instruct"], "qwen3_xml", ""),
    (["Qwen/Qwen2.5-7B-Instruct"], "hermes", ""),
    (["NousResearch/Hermes-3-Llama-3.1-8B"], "hermes", ""),
    (["meta-llama/Llama-3.1-8B-Instruct"], "llama3_json", ""),
    (["deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"], "", "deepseek_r1"),
    (["models--deepseek-ai--DeepSeek-R1-0528"], "deepseek_v3", "deepseek_r1"),
    (["openai/gpt-oss-20b"], "openai", "openai_gptoss"),
    (["my-finetune", "GptOssForCausalLM"], "openai", "openai_gptoss"),
    (["granite_3.2_2b_instruct"], "granite", "granite"),
])
def test_family(names: Sequence[str], tool: str, reasoning: str) -> None:
    row = chat.family(names)
    assert (row["tool_call_parser"], row["reasoning_parser"]) == (tool, reasoning)


def test_no_family() -> None:
    assert chat.family(["tiny", "LlamaForCausalLM"]) == {}
    assert chat.family([]) == {}


def test_the_longest_match_counts_and_an_earlier_name_before_it() -> None:
    rows = [{"match": "ab"}, {"match": "ab-c"}, {"match": "abcdefgh"}]
    assert chat.family(["x/AB_C"], rows) == rows[1]
    assert chat.family(["x/ab", "abcdefgh"], rows) == rows[0]
    assert chat.family(["none", "abcdefgh"], rows) == rows[2]


def test_rows_have_a_source_and_say_each_thing_once() -> None:
    table = json.loads(chat.FAMILIES.read_text("utf-8"))
    assert table["format"] == "stagecraft.families.v1"
    rows = table["families"]
    for row in rows:
        assert set(row) == {"match", "tool_call_parser", "reasoning_parser", "source"}
        assert len(row["source"]) > 5
    matches = [row["match"].lower() for row in rows]
    assert sorted(set(matches)) == matches


def test_reasoning_has_both_names() -> None:
    messages = [{"role": "assistant", "content": "x", "reasoning_content": "r"}, {"role": "user", "content": "y"},
                {"role": "assistant", "content": "x", "reasoning": "s"}]
    found = chat.for_template(messages)
    assert [one.get("reasoning") for one in found] == ["r", None, "s"]
    assert [one.get("reasoning_content") for one in found] == ["r", None, "s"]
    assert "reasoning" not in messages[0]


# -- parsers as vLLM has them -----------------------------------------------------------------------------------------


class Message:
    """vLLM's DeltaMessage."""

    def __init__(self, content: str | None = None, reasoning: str | None = None,
                 tool_calls: Sequence[Any] = ()) -> None:
        self.content, self.reasoning, self.tool_calls = content, reasoning, list(tool_calls)


class New:
    """A parser since 0.22: `parse`, and `parse_delta` that hears of the end. `|` parts reasoning and content."""

    tool_parser = object()

    def __init__(self) -> None:
        self.prompt: list[int] = []
        self.calls: list[tuple[Any, ...]] = []

    def set_prompt_token_ids(self, prompt: list[int]) -> None:
        self.prompt = prompt

    def parse(self, text: str, request: Any, enable_auto_tools: bool = False,
              model_output_token_ids: Sequence[int] = ()) -> tuple[str, str, list[Any]]:
        assert enable_auto_tools
        assert list(model_output_token_ids) == [1]
        reasoning, _, content = text.partition("|")
        calls = [{"id": None, "name": "f", "arguments": "{}"}] if content == "call" else []
        return reasoning, "" if calls else content, calls

    def parse_delta(self, text: str, tokens: list[int], request: Any, prompt: list[int], *,
                    finished: bool) -> Message | None:
        self.calls.append((text, tokens, prompt, finished))
        if text == "hold":
            return None
        if text == "call":
            return Message(tool_calls=[{"index": 0, "id": "", "function": {"arguments": "{"}}])
        return Message(content=text + ("!" if finished else ""))


def request(choice: Any = None) -> Any:
    return types.SimpleNamespace(tool_choice=choice)


def test_no_parser() -> None:
    splitter = chat.Splitter(None, None, [])
    assert splitter.delta("a", [1], False) == ("a", "", [])
    assert splitter.whole("a", [1]) == ("a", "", [])
    assert not splitter.called


def test_whole() -> None:
    splitter = chat.Splitter(New(), request(), [7])
    assert splitter.whole("why|so", [1]) == ("so", "why", [])
    assert not splitter.called
    content, reasoning, calls = splitter.whole("|call", [1])
    assert (content, reasoning) == ("", "")
    assert calls[0].pop("id").startswith("chatcmpl-tool-")
    assert calls == [{"type": "function", "function": {"name": "f", "arguments": "{}"}}]
    assert splitter.called


def test_stream() -> None:
    parser = New()
    splitter = chat.Splitter(parser, request(), [7])
    assert parser.prompt == [7]
    assert splitter.delta("hold", [1], False) == ("", "", [])
    assert splitter.delta("a", [2], True) == ("a!", "", [])
    assert splitter.delta("call", [3], False) == ("", "", [{"index": 0, "function": {"arguments": "{"}}])
    assert splitter.delta("", [], False) == ("", "", [])
    assert parser.calls == [("hold", [1], [7], False), ("a", [2], [7], True), ("call", [3], [7], False)]
    assert splitter.called


class Old:
    """A parser of 0.20: no `parse`, and tool calls that are forced are nobody's."""

    def __init__(self) -> None:
        self.tool_parser: Any = object()

    def extract_reasoning(self, text: str, request: Any) -> tuple[str | None, str | None]:
        return None, text

    def extract_tool_calls(self, text: str, request: Any) -> Any:
        called = text.startswith("call")
        return types.SimpleNamespace(tools_called=called, content=None, tool_calls=[
            {"id": "x", "function": {"name": "f", "arguments": text[4:]}}])

    def parse_delta(self, text: str, tokens: list[int], request: Any, prompt: list[int] | None = None) -> Message:
        return Message(content=text)


def test_an_old_parser() -> None:
    splitter = chat.Splitter(Old(), request("auto"), [])
    assert splitter.delta("a", [1], True) == ("a", "", [])
    assert splitter.whole("text", [1]) == ("text", "", [])
    assert splitter.whole('call{"a": 1}', [1])[2] == [
        {"id": "x", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}]


def test_an_old_parser_and_forced_calls() -> None:
    text = '[{"name": "f", "parameters": {"a": 1}}]'
    splitter = chat.Splitter(Old(), request("required"), [])
    pieces = [splitter.delta(text[:9], [1], False), splitter.delta(text[9:], [2], True)]
    assert pieces[0] == ("", "", [])
    (call,) = pieces[1][2]
    assert (call["index"], call["function"]) == (0, {"name": "f", "arguments": '{"a": 1}'})
    assert splitter.called
    assert chat.Splitter(Old(), request("required"), []).whole(text[:9], [1]) == (text[:9], "", [])
    named = types.SimpleNamespace(function=types.SimpleNamespace(name="g"))
    (call,) = chat.Splitter(Old(), request(named), []).whole('{"b": 2}', [1])[2]
    assert call["function"] == {"name": "g", "arguments": '{"b": 2}'}


FETCHED = ({"type": "image_url", "image_url": {"url": "http://169.254.169.254/a"}}, {"image_url": "HTTPS://a/b"},
           {"type": "input_image", "image_url": "https://a/b"}, {"type": "audio_url", "audio_url": {"url": "ftp://a"}},
           {"type": "video_url", "video_url": {"url": "file:///etc/passwd"}}, {"image_url": {"url": " data:x"}})
DOMAINS, FILES = {"allowed_media_domains": ["a"]}, {"allowed_local_media_path": "/images"}


@pytest.mark.parametrize(("part", "options", "refused"), [
    *((part, {}, True) for part in FETCHED),
    (FETCHED[0], DOMAINS, False), (FETCHED[1], DOMAINS, False), (FETCHED[4], DOMAINS, True),
    (FETCHED[0], FILES, True), (FETCHED[4], FILES, False), (FETCHED[3], {**DOMAINS, **FILES}, True),
    (FETCHED[0], {"allowed_media_domains": []}, True),
    ({"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}, {}, False),
    ({"type": "text", "text": "http://a"}, {}, False), ("http://a", {}, False), ({"image_url": None}, {}, False)])
def test_addresses_that_the_server_would_fetch(part: Any, options: Any, refused: bool) -> None:
    messages = [{"role": "user", "content": "x"}, {"role": "tool", "content": [{"type": "text", "text": "t"}, part]}]
    if not refused:
        chat.refuse_addresses(messages, options)
        return
    with pytest.raises(backend("interface").BadRequestError, match=r"messages, message 1: .*_url is fetched only"):
        chat.refuse_addresses(messages, options)
