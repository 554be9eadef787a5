"""Inputs of a request to a value, and what is said of bad ones."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from tests.support.vllm_backend import backend, tensors

inputs = backend("inputs")
BadRequest = backend("interface").BadRequestError

TOOLS = json.dumps([{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}])
HELLO = json.dumps([{"role": "user", "content": "hello"}])


def parse(parameters: str = "", **values: Any) -> Any:
    return inputs.parse(tensors(**values), parameters)


def test_a_prompt_alone() -> None:
    request = parse(text_input="hellö")
    assert (request.prompt, request.messages, request.stream, request.prepend) == ("hellö", None, False, True)
    assert (request.sampling, request.lora, request.structured, request.wanted) == ({}, "", None, frozenset())


def test_all_of_it() -> None:
    sampling = {"max_tokens": 3, "lora_name": "l", "structured_outputs": '{"regex": "a+"}', "temperature": "0.5"}
    request = parse(text_input="x", stream=True, exclude_input_in_output=True, return_logprobs=True,
                    return_finish_reason=True, return_num_input_tokens=False,
                    sampling_parameters=json.dumps(sampling), image=[base64.b64encode(b"one").decode()])
    assert request.sampling == {"max_tokens": 3, "temperature": "0.5"}
    assert (request.lora, request.structured, request.images) == ("l", {"regex": "a+"}, [b"one"])
    assert request.wanted == {"logprobs", "finish_reason"}
    assert request.stream
    assert not request.prepend


@pytest.mark.parametrize(("stream", "exclude", "prepend"), [
    (None, None, True), (False, True, False), (False, False, True), (True, None, False), (True, True, False)])
def test_prompt_before_the_answer(stream: bool | None, exclude: bool | None, prepend: bool) -> None:
    given = {"stream": stream, "exclude_input_in_output": exclude}
    assert parse(text_input="x", **{name: value for name, value in given.items() if value is not None}
                 ).prepend is prepend


def test_parameters_of_the_request_stand_in_for_the_input() -> None:
    own = json.dumps({"max_tokens": 7, "triton_enable_empty_final_response": True, "binary_data_output": False})
    assert parse(own, text_input="x").sampling == {"max_tokens": 7}
    assert parse(own, text_input="x", sampling_parameters='{"top_p": 1}').sampling == {"top_p": 1}


def test_chat() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [{"role": "user", "content": "a"},
                {"role": "assistant", "content": None, "reasoning_content": "r", "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "c", "content": "b"},
                {"role": "user", "content": [{"type": "text", "text": "t"}]}]
    request = parse(messages=json.dumps(messages), tools=TOOLS, tool_choice="auto",
                    chat_template_kwargs='{"enable_thinking": false}')
    assert request.messages == messages
    assert request.tools == json.loads(TOOLS)
    assert request.tool_choice == "auto"
    assert request.template == {"enable_thinking": False}
    assert not request.prepend


def test_tool_choice_as_json() -> None:
    assert parse(messages=HELLO, tools=TOOLS, tool_choice='"required"').tool_choice == "required"
    named = {"type": "function", "function": {"name": "f"}}
    assert parse(messages=HELLO, tools=TOOLS, tool_choice=json.dumps(named)).tool_choice == named


@pytest.mark.parametrize(("given", "said"), [
    ({}, "one of the inputs text_input and messages is needed"),
    ({"text_input": "x", "messages": HELLO}, "both were given"),
    ({"text_input": ["x", "y"]}, "input text_input: one value is expected, found 2"),
    ({"text_input": b"\xff"}, "input text_input: no UTF-8 at byte 0"),
    ({"text_input": "x", "tools": TOOLS}, "input tools belongs to messages"),
    ({"text_input": "x", "stream": True, "exclude_input_in_output": False}, "cannot be had with stream: true"),
    ({"text_input": "x", "sampling_parameters": '{"max_tokens":'}, "input sampling_parameters: no JSON"),
    ({"text_input": "x", "sampling_parameters": "[" * 100_000}, "input sampling_parameters: no JSON"),
    ({"text_input": "x", "sampling_parameters": "[1]"}, "a JSON object is expected, found '[1]'"),
    ({"text_input": "x", "sampling_parameters": '{"lora_name": 1}'}, "lora_name is a text"),
    ({"text_input": "x", "sampling_parameters": '{"structured_outputs": "{"}'}, "structured_outputs: no JSON"),
    ({"text_input": "x", "sampling_parameters": '{"structured_outputs": 3}'}, "structured_outputs is an object"),
    ({"text_input": "x", "stream": True, "sampling_parameters": '{"n": 2}'}, "n above 1 cannot be had with stream"),
    ({"text_input": "x", "stream": True, "sampling_parameters": '{"n": "2"}'}, "n above 1 cannot be had"),
    ({"text_input": "x", "image": ["?"]}, "input image 0: no base64"),
    ({"messages": "[{"}, "input messages: no JSON"),
    ({"messages": "{}"}, "input messages: a list of messages is expected, found '{}'"),
    ({"messages": "[]"}, "a list of messages is expected"),
    ({"messages": "[1]"}, "message 0: an object is expected"),
    ({"messages": '[{"role": "me", "content": "x"}]'}, "message 0: role is one of system"),
    ({"messages": '[{"role": "user"}]'}, "message 0: content is a text"),
    ({"messages": '[{"role": "tool", "content": "x"}]'}, "role tool needs tool_call_id"),
    ({"messages": '[{"role": "assistant", "content": "x", "tool_calls": [{}]}]'}, "tool_calls is a list"),
    ({"messages": '[{"role": "assistant", "content": "x", "reasoning_content": 1}]'}, "reasoning_content is a text"),
    ({"messages": HELLO, "tools": "{}"}, "input tools: a list"),
    ({"messages": HELLO, "tool_choice": "required"}, "required needs the input tools"),
    ({"messages": HELLO, "tool_choice": "any"}, "input tool_choice: auto, none, required or a function"),
    ({"messages": HELLO, "tools": TOOLS, "tool_choice": '{"function": {"name": "g"}}'}, "no function 'g' in tools (f)"),
    ({"messages": HELLO, "chat_template_kwargs": "[]"}, "input chat_template_kwargs: an object"),
])
def test_bad_requests_name_the_input(given: dict[str, Any], said: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse(**given)
    assert said in str(caught.value)
    assert len(str(caught.value)) < 300


def test_several_sequences() -> None:
    assert parse(text_input="x", sampling_parameters='{"n": 2}').sampling == {"n": 2}
    for one in ('{"n": 1}', '{"n": "1"}', '{"n": null}', '{"n": []}'):  # the engine judges
        assert parse(text_input="x", stream=True, sampling_parameters=one).stream


def test_a_long_bad_value_is_shortened() -> None:
    with pytest.raises(BadRequest) as caught:
        parse(text_input="x", sampling_parameters="x" * 1_000_000)
    assert len(str(caught.value)) < 200
