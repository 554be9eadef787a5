"""Stands in for `engine.py` on machines that cannot run the device's code: the same class, and no vLLM.

What it says follows from the request: words, a text that the regular expression of `structured_outputs` asks for, or a
call of the tool that `tool_choice` forces. A process of its own plays the engine core, so that one can be killed.
`model.json` may have an object `standin`, all of it optional:

    {"model": "any", "enable_lora": true,
     "standin": {"delay": 0.01, "load_seconds": 0, "max_model_len": 4096, "fail": "a reason why it does not load"}}

`delay` is in seconds per token. A token is a word, or four signs of a text that is asked for.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import shutil
import subprocess
import sys
import time
import types
import warnings
import zlib
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from .interface import BadRequestError, EngineDeadError, LoadError, Part, Request, Settings, Step

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    try:
        from re import _parser as patterns  # type: ignore[attr-defined]
    except ImportError:
        import sre_parse as patterns

WORDS = ("a", "small", "machine", "answers", "with", "words", "that", "follow", "from", "what", "it", "was", "asked")
#: What the process that plays the engine core does: it waits for the end of its input. The name is for who looks.
_CORE = ("-c", "import sys; sys.stdin.read()", "StandInEngineCore")
_TOKENS = 16
_SIGNS = 4
#: Parameter to the types and the least value that it takes.
_KNOWN: dict[str, tuple[tuple[type, ...], float]] = {
    "max_tokens": ((int,), 1), "min_tokens": ((int,), 0), "n": ((int,), 1), "logprobs": ((int,), 0),
    "temperature": ((int, float), 0), "top_p": ((int, float), 0), "top_k": ((int,), -1), "seed": ((int,), -(2**63)),
    "ignore_eos": ((bool,), 0)}
_IGNORED = ("stop", "logit_bias", "presence_penalty", "frequency_penalty", "repetition_penalty")


class Engine:
    """See `interface.Engine`."""

    def __init__(self, settings: Settings) -> None:
        options = settings.options.get("standin", {})
        self._settings = settings
        self._delay = float(options.get("delay", 0))
        self._load_seconds = float(options.get("load_seconds", 0))
        self._fail = str(options.get("fail", ""))
        self.longest = int(options.get("max_model_len", 4096))
        self._core: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        await asyncio.sleep(self._load_seconds)
        if self._fail:
            raise LoadError(self._fail)
        # The interpreter that Triton embeds need not know its own program.
        program = sys.executable or shutil.which("python3") or "python3"
        self._core = subprocess.Popen([program, *_CORE], stdin=subprocess.PIPE)
        self._settings.log(f"stand-in engine for {self._settings.name}: no vLLM; engine core pid {self._core.pid}")

    async def generate(self, request: Request, identity: str) -> AsyncIterator[Step]:
        del identity
        began = before = time.monotonic()
        prompt = request.prompt if request.messages is None else rendered(request)
        length = len((prompt or "").split())
        if length > self.longest:
            raise BadRequestError(f"the prompt has {length} tokens, the model takes at most {self.longest}")
        if request.lora and request.lora not in self._settings.loras:
            raise BadRequestError(f"input sampling_parameters: no LoRA {request.lora!r}; "
                                  f"there is {', '.join(self._settings.loras) or 'none'}")
        most = _checked(request.sampling)
        whole = Part("")
        parts = itertools.islice(self._parts(request, prompt or ""), most)
        for count, (part, last) in enumerate(_marked(parts), start=1):
            if self.failure():
                raise EngineDeadError(self.failure())
            await asyncio.sleep(self._delay)
            now = time.monotonic()
            self._tell(length if count == 1 else 0, now - before, count == 1,
                       _ended(now - began, length, count) if last else None)
            before = now
            if last:
                ended = "length" if count == most else "stop"
                part.finish = "tool_calls" if whole.tool_calls or part.tool_calls else ended
            _add(whole, part)
            if request.stream:
                yield Step([part], length, last)
        if not request.stream:
            yield Step([whole], length, True)

    def failure(self) -> str | None:
        if self._core is not None and self._core.poll() is not None:
            return f"engine core ended with {self._core.returncode}"
        return None

    def close(self) -> None:
        core, self._core = self._core, None
        if core is not None:
            assert core.stdin is not None  # noqa: S101
            core.stdin.close()
            try:
                core.wait(timeout=5)
            except subprocess.TimeoutExpired:
                core.kill()
                core.wait()

    def _parts(self, request: Request, prompt: str) -> Iterator[Part]:
        """A part per token."""
        pattern = (request.structured or {}).get("regex")
        forced = request.tools and request.tool_choice not in (None, "auto", "none")
        if not pattern and not forced:
            begin = zlib.crc32((request.lora + prompt).encode())
            for number in itertools.count():
                yield _said(number, f" {WORDS[(begin + number) % len(WORDS)]}")
        text = matching(pattern) if pattern else _call(request)
        content, reasoning, calls = text, "", []
        if request.messages is not None:
            if self._settings.reasoning_parser and (found := re.fullmatch("<think>(.*?)</think>(.*)", content, re.S)):
                reasoning, content = found.groups()
            if self._settings.tool_parser and request.tools and request.tool_choice != "none":
                calls = [json.loads(one) for one in re.findall("<tool_call>(.*?)</tool_call>", content, re.S)]
                content = re.sub("<tool_call>.*?</tool_call>", "", content, flags=re.S).strip() if calls else content
        number = 0
        for kind, whole in (("reasoning", reasoning), ("text", content)):
            for at in range(0, len(whole), _SIGNS):
                part = _said(number, whole[at: at + _SIGNS])
                if kind == "reasoning":
                    part.text, part.reasoning = "", part.text
                yield part
                number += 1
        for index, call in enumerate(calls):
            delta = {"index": index} if request.stream else {}
            yield Part("", 1, tool_calls=[{**delta, "id": f"call-{index}", "type": "function", "function": {
                "name": call["name"], "arguments": json.dumps(call["arguments"])}}])

    def _tell(self, prompt: int, seconds: float, first: bool, ended: Any) -> None:
        """The statistics of a token, as vLLM's of a step."""
        if self._settings.record is not None:
            self._settings.record(types.SimpleNamespace(
                num_prompt_tokens=prompt, num_generation_tokens=1, time_to_first_tokens_iter=[seconds] if first else [],
                inter_token_latencies_iter=[] if first else [seconds], n_params_iter=[1] if ended else [],
                finished_requests=[ended] if ended else []))


def _ended(seconds: float, prompt: int, generated: int) -> Any:
    return types.SimpleNamespace(e2e_latency=seconds, num_prompt_tokens=prompt, num_generation_tokens=generated)


def rendered(request: Request) -> str:
    """The prompt that messages make."""
    return "\n".join(f"{message['role']}: {json.dumps(message.get('content'))}" for message in request.messages or ())


def matching(pattern: str) -> str:
    """A text that matches, always the same: of each choice the first, of each repetition the least."""
    try:
        return "".join(_signs(patterns.parse(pattern)))
    except (re.error, OverflowError, RecursionError) as error:
        raise BadRequestError(f"input sampling_parameters: structured_outputs: regex: {error}") from None


def _signs(parsed: Any) -> Iterator[str]:
    for name, value in parsed:
        kind = str(name)
        if kind == "LITERAL":
            yield chr(value)
        elif kind == "IN":
            yield _one_of(value)
        elif kind in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
            yield "".join(_signs(value[2])) * value[0]
        elif kind == "SUBPATTERN":
            yield from _signs(value[3])
        elif kind == "BRANCH":
            yield from _signs(value[1][0])
        elif kind == "ANY":
            yield "a"
        elif kind == "NOT_LITERAL":
            yield "a" if value != ord("a") else "b"


def _one_of(choices: Sequence[Any]) -> str:
    """The first of a set; of one that excludes, a letter or a sign that is not in it."""
    first, what = str(choices[0][0]), choices[0][1]
    if first == "NEGATE":
        ranges = [one for kind, one in choices[1:] if str(kind) == "RANGE"]
        ranges += [(one, one) for kind, one in choices[1:] if str(kind) == "LITERAL"]
        return next(sign for sign in "abcxyz .0" if not any(low <= ord(sign) <= high for low, high in ranges))
    return chr(what) if first == "LITERAL" else chr(what[0]) if first == "RANGE" else "0"


def _call(request: Request) -> str:
    """The call that `tool_choice` forces, with a text for every argument that must be there."""
    tools = {tool["function"]["name"]: tool["function"] for tool in request.tools or ()}
    choice = request.tool_choice
    name = choice["function"]["name"] if isinstance(choice, dict) else next(iter(tools))
    needed = (tools[name].get("parameters") or {}).get("required", [])
    return f"<tool_call>{json.dumps({'name': name, 'arguments': dict.fromkeys(needed, 'word')})}</tool_call>"


def _checked(sampling: dict[str, Any]) -> int:
    """The most tokens; the parameters are looked at as vLLM does."""
    for name, value in sampling.items():
        if name in _IGNORED:
            continue
        if name not in _KNOWN:
            raise BadRequestError(f"input sampling_parameters: no parameter {name!r}")
        kinds, least = _KNOWN[name]
        if not isinstance(value, kinds) or value < least:
            raise BadRequestError(f"input sampling_parameters: {name} cannot be {value!r}")
    return int(sampling.get("max_tokens", _TOKENS))


def _said(number: int, text: str) -> Part:
    return Part(text, 1, None, -0.5 * (number + 1), [{str(number): {"logprob": -0.5, "rank": 1,
                                                                    "decoded_token": text}}])


def _marked(parts: Iterator[Part]) -> Iterator[tuple[Part, bool]]:
    """Each with whether it is the last."""
    before = next(parts)
    for part in parts:
        yield before, False
        before = part
    yield before, True


def _add(whole: Part, part: Part) -> None:
    whole.text += part.text
    whole.tokens += part.tokens
    whole.reasoning += part.reasoning
    whole.tool_calls = _joined(whole.tool_calls, part.tool_calls)
    whole.logprobs = [*(whole.logprobs or ()), *(part.logprobs or ())]
    whole.finish = part.finish
    if part.cumulative_logprob is not None:
        whole.cumulative_logprob = part.cumulative_logprob


def _joined(one: Sequence[Any], other: Sequence[Any]) -> Sequence[Any]:
    return [*one, *other] if other else one
