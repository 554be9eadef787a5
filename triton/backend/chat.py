"""Chat: which parsers a model wants, messages as its template wants them, and text to content, reasoning, tool calls.

No import of vLLM: `Splitter` drives a parser of vLLM's that it is given (`vllm.parser.Parser`, 0.20 to 0.33).
"""

from __future__ import annotations

import fnmatch
import inspect
import json
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .interface import BadRequestError

FAMILIES = Path(__file__).with_name("families.json")
#: Names of the two parsers in a row of the families and, in upper case, among the parameters of config.pbtxt.
PARSERS = ("tool_call_parser", "reasoning_parser")

_SEPARATOR = re.compile(r"[^a-z0-9.*]+")


def family(names: Iterable[str], rows: Sequence[Mapping[str, str]] | None = None) -> Mapping[str, str]:
    """The row of `families.json` for a model of these names (directory, id, architectures): the longest that matches.

    `match` is found anywhere in a name whatever its case; `-`, `_` and other signs are one, `*` is any text. An earlier
    name counts more: that of a directory says more than an architecture, which families share. {}: no row matches.
    """
    if rows is None:
        rows = json.loads(FAMILIES.read_text("utf-8"))["families"]
    for name in names:
        plain = _plain(name)
        found = [row for row in rows if fnmatch.fnmatchcase(plain, f"*{_plain(row['match'])}*")]
        if found:
            return max(found, key=lambda row: len(row["match"].replace("*", "")))
    return {}


def _plain(name: str) -> str:
    return _SEPARATOR.sub("-", name.lower())


def for_template(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The messages with reasoning under both names that clients and templates use."""
    found = []
    for message in messages:
        reasoning = message.get("reasoning_content") or message.get("reasoning")
        found.append({**message, "reasoning": reasoning, "reasoning_content": reasoning} if reasoning
                     else dict(message))
    return found


def refuse_addresses(messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> None:
    """Images and the like come within the message: the server fetches none unless `model.json` says whence.

    Args:
        options: arguments of the engine: with `allowed_media_domains` addresses of http(s) are left to vLLM, with
            `allowed_local_media_path` those of files.

    Raises:
        BadRequestError: an address that is not allowed.
    """
    allowed = ["data:"]
    if options.get("allowed_media_domains"):
        allowed += ["http://", "https://"]
    if options.get("allowed_local_media_path"):
        allowed.append("file:")
    for number, message in enumerate(messages):
        content = message.get("content")
        for part in content if isinstance(content, list) else ():
            for key, value in part.items() if isinstance(part, dict) else ():
                address = value.get("url") if isinstance(value, dict) else value
                if key.endswith("_url") and isinstance(address, str) and not address.lower().startswith(tuple(allowed)):
                    shown = address if len(address) <= 60 else address[:57] + "…"
                    raise BadRequestError(
                        f"input messages, message {number}: {key} is fetched only from where model.json allows it "
                        f"(allowed_media_domains, allowed_local_media_path); send it as a data: URL; found {shown!r}")


#: Content, reasoning, tool calls.
Split = tuple[str, str, list[dict[str, Any]]]


class Splitter:
    """Takes the text of one sequence apart, as it comes or as a whole.

    Args:
        parser: of vLLM's, made for this sequence; None: all text is content.
        request: vLLM's chat request that belongs to it.
        prompt: token ids of the prompt; a template may have begun the reasoning there.
    """

    def __init__(self, parser: Any, request: Any, prompt: Sequence[int]) -> None:
        self._parser = parser
        self._request = request
        self._prompt = list(prompt)
        self._called = False
        self._held: tuple[str, list[int]] | None = None
        if parser is not None:
            if hasattr(parser, "set_prompt_token_ids"):
                parser.set_prompt_token_ids(self._prompt)
            # Before 0.22 a parser has no `parse`, and knows tool calls that are forced only as a whole.
            self._whole = hasattr(parser, "parse")
            self._finished = "finished" in inspect.signature(parser.parse_delta).parameters
            if not self._whole and self._forced():
                self._held = ("", [])

    @property
    def called(self) -> bool:
        """Whether a tool was called."""
        return self._called

    def delta(self, text: str, tokens: Sequence[int], finished: bool) -> Split:
        """What the next piece of text says. Tool calls are deltas, with an `index`."""
        if self._parser is None:
            return text, "", []
        if self._held is not None:
            self._held = (self._held[0] + text, [*self._held[1], *tokens])
            if not finished:
                return "", "", []
            content, reasoning, calls = self.whole(*self._held)
            return content, reasoning, [{"index": number, **call} for number, call in enumerate(calls)]
        if not text and not tokens and not finished:
            return "", "", []
        more = {"finished": finished} if self._finished else {}
        message = self._parser.parse_delta(text, list(tokens), self._request, self._prompt, **more)
        if message is None:
            return "", "", []
        calls = [_plain_call(call) for call in message.tool_calls or ()]
        self._called = self._called or bool(calls)
        return message.content or "", _reasoning(message), calls

    def whole(self, text: str, tokens: Sequence[int]) -> Split:
        """What all the text says."""
        if self._parser is None:
            return text, "", []
        if self._whole:
            reasoning, content, found = self._parser.parse(
                text, self._request, enable_auto_tools=True, model_output_token_ids=list(tokens))
        else:
            reasoning, content = self._parser.extract_reasoning(text, self._request)
            content, found = self._old_calls(content or "")
        calls = [_whole_call(call) for call in found or ()]
        self._called = bool(calls)
        return content or "", reasoning or "", calls

    def _forced(self) -> bool:
        return self._request.tool_choice not in (None, "auto", "none")

    def _old_calls(self, content: str) -> tuple[str, list[Any]]:
        choice = self._request.tool_choice
        if self._parser.tool_parser is None or choice == "none":
            return content, []
        if choice == "required":
            try:
                return "", [{"name": call["name"], "arguments": json.dumps(call["parameters"], ensure_ascii=False)}
                            for call in json.loads(content)]
            except (ValueError, TypeError, KeyError):
                return content, []  # cut off by the number of tokens
        if self._forced():
            return "", [{"name": choice.function.name, "arguments": content}]
        said = self._parser.extract_tool_calls(content, self._request)
        return (said.content or "", said.tool_calls) if said.tools_called else (content, [])


def _reasoning(message: Any) -> str:
    return getattr(message, "reasoning", None) or getattr(message, "reasoning_content", None) or ""


def _plain_call(call: Any) -> dict[str, Any]:
    """A delta as OpenAI's API has it: what is not said is not there."""
    found: dict[str, Any] = dict(call) if isinstance(call, dict) else call.model_dump(exclude_none=True)
    if not found.get("id"):
        found.pop("id", None)
        found.pop("type", None)
    return found


def _whole_call(call: Any) -> dict[str, Any]:
    """A `FunctionCall` (name, arguments, id) or a `ToolCall` (id, function) of vLLM's."""
    if not isinstance(call, dict):
        call = call.model_dump()
    function = call.get("function") or call
    return {"id": call.get("id") or f"chatcmpl-tool-{uuid.uuid4().hex[:16]}", "type": "function",
            "function": {"name": function["name"], "arguments": function["arguments"]}}
