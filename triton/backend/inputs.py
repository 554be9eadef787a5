"""Inputs of a Triton request to a `Request`. Every error names the input that is at fault.

Not called `requests`: while this directory is on a path of modules, the library of that name would not be found.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any

from .interface import BadRequestError, Request

#: Outputs that a request may ask for, with `return_` before the name.
FURTHER = ("finish_reason", "cumulative_logprob", "logprobs", "num_input_tokens", "num_output_tokens")

#: Name, type, dims.
INPUTS: tuple[tuple[str, str, list[int]], ...] = (
    ("text_input", "TYPE_STRING", [1]),
    ("messages", "TYPE_STRING", [1]),
    ("tools", "TYPE_STRING", [1]),
    ("tool_choice", "TYPE_STRING", [1]),
    ("chat_template_kwargs", "TYPE_STRING", [1]),
    ("image", "TYPE_STRING", [-1]),
    ("stream", "TYPE_BOOL", [1]),
    ("sampling_parameters", "TYPE_STRING", [1]),
    ("exclude_input_in_output", "TYPE_BOOL", [1]),
    *((f"return_{name}", "TYPE_BOOL", [1]) for name in FURTHER),
)
OUTPUTS: tuple[tuple[str, str, list[int]], ...] = (
    ("text_output", "TYPE_STRING", [-1]),
    ("finish_reason", "TYPE_STRING", [-1]),
    ("cumulative_logprob", "TYPE_FP32", [-1]),
    ("logprobs", "TYPE_STRING", [-1]),
    ("num_input_tokens", "TYPE_UINT32", [1]),
    ("num_output_tokens", "TYPE_UINT32", [-1]),
    ("reasoning_content", "TYPE_STRING", [-1]),
    ("tool_calls", "TYPE_STRING", [-1]),
)

_CHAT_ONLY = ("tools", "tool_choice", "chat_template_kwargs")
_ROLES = ("system", "developer", "user", "assistant", "tool")
#: Parameters of a Triton request that are the protocol's own and no parameters of sampling.
_PROTOCOL = ("triton_", "sequence_", "binary_data", "priority", "timeout", "headers")
_STRUCTURED = ("structured_outputs", "guided_decoding")


def parse(tensors: Mapping[str, Any], parameters: str = "") -> Request:
    """The request that the tensors (name to numpy array) make.

    Args:
        parameters: JSON object of the request's own parameters; they stand in for `sampling_parameters`.

    Raises:
        BadRequestError: names the input, what is expected, what was found.
    """
    request = Request()
    text = _text(tensors, "text_input")
    messages = _json(tensors, "messages")
    if (text is None) == (messages is None):
        raise BadRequestError("one of the inputs text_input and messages is needed"
                              + ("" if text is None else "; both were given"))
    if messages is None:
        request.prompt = text
        for name in _CHAT_ONLY:
            if name in tensors:
                raise BadRequestError(f"input {name} belongs to messages, and there is only text_input")
    else:
        request.messages = _messages(messages)
        _chat(request, tensors)
    request.stream = _flag(tensors, "stream", False)
    request.prepend = text is not None and not _flag(tensors, "exclude_input_in_output", request.stream)
    if request.prepend and request.stream:
        raise BadRequestError("input exclude_input_in_output: false cannot be had with stream: true")
    request.images = _images(tensors)
    request.wanted = frozenset(name for name in FURTHER if _flag(tensors, f"return_{name}", False))
    _sampling(request, tensors, parameters)
    if request.stream and _several(request.sampling.get("n")):
        raise BadRequestError("input sampling_parameters: n above 1 cannot be had with stream: true, as the answers do "
                              "not say to which sequence they belong")
    return request


def _several(count: Any) -> bool:
    """Whether it is a number above 1, also as a text; anything else is the engine's to judge."""
    try:
        return float(count) > 1
    except OverflowError:
        return True
    except (TypeError, ValueError):
        return False


def _chat(request: Request, tensors: Mapping[str, Any]) -> None:
    tools = _json(tensors, "tools")
    if tools is not None:
        if not isinstance(tools, list) or not all(
                isinstance(tool, dict) and isinstance(tool.get("function"), dict)
                and isinstance(tool["function"].get("name"), str) for tool in tools):
            raise BadRequestError("input tools: a list of objects with function.name is expected")
        request.tools = tools or None
    choice = _text(tensors, "tool_choice")
    if choice is not None:
        request.tool_choice = _tool_choice(choice, [tool["function"]["name"] for tool in tools or ()])
    template = _json(tensors, "chat_template_kwargs")
    if template is not None:
        if not isinstance(template, dict):
            raise BadRequestError(f"input chat_template_kwargs: an object is expected, found {_shown(template)}")
        request.template = template


def _tool_choice(text: str, tools: list[str]) -> str | dict[str, Any]:
    """`auto`, with or without quotation marks, or an object."""
    choice: Any = text
    if text[:1] in ('"', "{"):
        choice = _parsed("tool_choice", text)
    if isinstance(choice, dict):
        function = choice.get("function")
        name = function.get("name") if isinstance(function, dict) else None
        if name not in tools:
            raise BadRequestError(f"input tool_choice: no function {name!r} in tools ({', '.join(tools) or 'none'})")
        return {"type": "function", "function": {"name": name}}
    if choice not in ("auto", "none", "required"):
        raise BadRequestError("input tool_choice: auto, none, required or a function is expected, "
                              f"found {_shown(choice)}")
    if choice == "required" and not tools:
        raise BadRequestError("input tool_choice: required needs the input tools")
    return str(choice)


def _messages(messages: Any) -> list[dict[str, Any]]:
    """As they came, after a look at what a template would stumble over."""
    if not isinstance(messages, list) or not messages:
        raise BadRequestError(f"input messages: a list of messages is expected, found {_shown(messages)}")
    for number, message in enumerate(messages):
        where = f"input messages, message {number}"
        if not isinstance(message, dict):
            raise BadRequestError(f"{where}: an object is expected, found {_shown(message)}")
        role = message.get("role")
        if role not in _ROLES:
            raise BadRequestError(f"{where}: role is one of {', '.join(_ROLES)}; found {_shown(role)}")
        if role == "tool" and not isinstance(message.get("tool_call_id"), str):
            raise BadRequestError(f"{where}: role tool needs tool_call_id")
        content = message.get("content")
        if not isinstance(content, (str, list)) and not (content is None and role == "assistant"):
            raise BadRequestError(f"{where}: content is a text or a list of parts; found {_shown(content)}")
        calls = message.get("tool_calls")
        if calls is not None and not (isinstance(calls, list) and all(
                isinstance(call, dict) and isinstance(call.get("function"), dict)
                and isinstance(call["function"].get("name"), str) for call in calls)):
            raise BadRequestError(f"{where}: tool_calls is a list of objects with function.name")
        for name in ("reasoning_content", "reasoning"):
            if not isinstance(message.get(name), (str, type(None))):
                raise BadRequestError(f"{where}: {name} is a text; found {_shown(message[name])}")
    return messages


def _sampling(request: Request, tensors: Mapping[str, Any], parameters: str) -> None:
    found = _json(tensors, "sampling_parameters")
    name = "sampling_parameters"
    if found is None:
        name = "parameters"
        found = _parsed(name, parameters) if parameters else {}
        if isinstance(found, dict):
            found = {key: value for key, value in found.items() if not key.startswith(_PROTOCOL)}
    if not isinstance(found, dict):
        raise BadRequestError(f"input {name}: a JSON object is expected, found {_shown(found)}")
    lora = found.pop("lora_name", None)
    if not isinstance(lora, (str, type(None))):
        raise BadRequestError(f"input {name}: lora_name is a text; found {_shown(lora)}")
    request.lora = lora or ""
    for key in _STRUCTURED:
        value = found.pop(key, None)
        if isinstance(value, str):
            value = _parsed(f"{name}, {key}", value)
        if value is None:
            continue
        if not isinstance(value, dict):
            raise BadRequestError(f"input {name}: {key} is an object; found {_shown(value)}")
        request.structured = value
    request.sampling = found


def _images(tensors: Mapping[str, Any]) -> list[bytes]:
    array = tensors.get("image")
    found: list[bytes] = []
    for number, value in enumerate(() if array is None else array.reshape(-1)):
        try:
            found.append(base64.b64decode(value, validate=True))
        except (binascii.Error, ValueError) as error:
            raise BadRequestError(f"input image {number}: no base64 ({error})") from None
    return found


def _text(tensors: Mapping[str, Any], name: str) -> str | None:
    value = _one(tensors, name)
    if value is None:
        return None
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise BadRequestError(f"input {name}: no UTF-8 at byte {error.start}") from None
    return str(value)


def _flag(tensors: Mapping[str, Any], name: str, default: bool) -> bool:
    value = _one(tensors, name)
    return default if value is None else bool(value)


def _one(tensors: Mapping[str, Any], name: str) -> Any:
    array = tensors.get(name)
    if array is None:
        return None
    if array.size != 1:
        raise BadRequestError(f"input {name}: one value is expected, found {array.size}")
    return array.reshape(-1)[0]


def _json(tensors: Mapping[str, Any], name: str) -> Any:
    text = _text(tensors, name)
    return None if text is None or not text.strip() else _parsed(name, text)


def _parsed(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        said = "too deep" if isinstance(error, RecursionError) else error
        raise BadRequestError(f"input {name}: no JSON ({said}): {_shown(text)}") from None


def _shown(value: object) -> str:
    """Short enough for a message."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return repr(text if len(text) <= 60 else text[:57] + "…")
