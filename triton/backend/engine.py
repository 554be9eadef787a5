"""The engine: vLLM's `AsyncLLM`, and the only file that imports vLLM (0.20 to 0.33)."""

from __future__ import annotations

import base64
import dataclasses
import difflib
import io
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import msgspec
from pydantic import ValidationError
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.lora.request import LoRARequest
from vllm.parser import ParserManager
from vllm.reasoning import ReasoningParserManager
from vllm.renderers.inputs.preprocess import parse_model_prompt
from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams
from vllm.tool_parsers import ToolParserManager
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError as VllmEngineDeadError
from vllm.v1.engine.exceptions import EngineGenerateError
from vllm.v1.metrics.loggers import StatLoggerBase

try:
    from vllm.exceptions import VLLMClientError
except ImportError:
    # Before 0.24 what the client did wrong was a ValueError.
    from vllm.exceptions import VLLMValidationError as VLLMClientError

from .chat import Splitter, for_template
from .interface import BadRequestError, EngineDeadError, LoadError, Part, Request, Settings, Step

#: Fields of SamplingParams that are not for a client.
_OURS = ("output_kind", "structured_outputs", "skip_clone", "output_text_buffer_length", "detokenize")
_CLIENT_FAULTS = (VLLMClientError, ValueError, TypeError, OverflowError, NotImplementedError)


class Engine:
    """See `interface.Engine`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._loras = {name: LoRARequest(name, number, path)
                       for number, (name, path) in enumerate(settings.loras.items(), start=1)}
        self._fields = frozenset(name for name in SamplingParams.__struct_fields__
                                 if not name.startswith("_") and name not in _OURS)
        self._structured = tuple(field.name for field in dataclasses.fields(StructuredOutputsParams) if field.init)
        self._tool_parser = _known("tool_call_parser", settings.tool_parser, ToolParserManager.list_registered(),
                                   settings)
        self._reasoning_parser = _known("reasoning_parser", settings.reasoning_parser,
                                        ReasoningParserManager.list_registered(), settings)
        self._args = _arguments(settings, self._reasoning_parser)
        self._llm: Any = None
        self._closed = False

    async def start(self) -> None:
        record = self._settings.record
        loggers: list[Callable[..., StatLoggerBase]] = []
        if record is not None:
            loggers.append(lambda config, index=0: _Recorder(record))
        self._llm = AsyncLLM.from_engine_args(self._args, stat_loggers=loggers or None)
        self._model = self._llm.model_config
        self._renderer = self._llm.renderer
        self._parsers = {with_tools: ParserManager.get_parser(
            tool_parser_name=self._tool_parser if with_tools else None,
            reasoning_parser_name=self._reasoning_parser or None,
            enable_auto_tools=with_tools, model_name=self._model.model) for with_tools in (False, True)}
        await self._add_loras()

    async def _add_loras(self) -> None:
        """Load each once: one that fails while a request is served ends the engine."""
        for name, request in self._loras.items():
            try:
                await self._llm.add_lora(request)
            except Exception as error:
                raise LoadError(f"LoRA {name!r} does not load: {_line(error)}") from error

    @property
    def longest(self) -> int:
        """Tokens of the longest request."""
        return int(self._model.max_model_len)

    async def generate(self, request: Request, identity: str) -> AsyncIterator[Step]:
        try:
            prompt, params, more, splitter = await self._prepared(request)
            lora = self._lora(request.lora)
        except BadRequestError:
            raise
        except _CLIENT_FAULTS as error:
            raise BadRequestError(_line(error)) from error
        splitters: dict[int, Splitter] = {}
        try:
            async for output in self._llm.generate(prompt, params, identity, lora_request=lora, **more):
                parts = [_part(one) for one in output.outputs]
                if splitter is not None:
                    for one, part in zip(output.outputs, parts, strict=True):
                        if one.index not in splitters:
                            splitters[one.index] = splitter()
                        _split(splitters[one.index], part, one.token_ids, request.stream)
                yield Step(parts, len(output.prompt_token_ids or ()), output.finished)
        except VllmEngineDeadError as error:
            raise EngineDeadError(_line(error)) from error
        except EngineGenerateError as error:
            cause = error.__cause__
            if isinstance(cause, _CLIENT_FAULTS):
                raise BadRequestError(_line(cause)) from error
            raise
        except _CLIENT_FAULTS as error:
            raise BadRequestError(_line(error)) from error

    def failure(self) -> str | None:
        if self._llm is not None and not self._closed and self._llm.errored:
            return "vLLM's engine core ended"
        return None

    def close(self) -> None:
        self._closed = True
        if self._llm is not None:
            self._llm.shutdown()

    # -- a request -------------------------------------------------------------------------------

    async def _prepared(self, request: Request) -> tuple[Any, SamplingParams, dict[str, Any],
                                                         Callable[[], Splitter] | None]:
        """What vLLM gets: prompt, parameters, further arguments; and what takes the text apart."""
        params = self._params(request)
        if request.messages is None:
            given: dict[str, Any] = {"prompt": request.prompt}
            if request.images:
                if not self._model.is_multimodal_model:
                    raise BadRequestError("input image: the model takes no images")
                given["multi_modal_data"] = {"image": [_image(number, data)
                                                       for number, data in enumerate(request.images)]}
            (prompt,) = await self._renderer.render_cmpl_async([parse_model_prompt(self._model, given)])
            # The reasoning parser of the engine would let structured outputs begin after the reasoning.
            return prompt, params, {"reasoning_ended": True} if self._reasoning_parser else {}, None
        return await self._chat(request, params)

    async def _chat(self, request: Request, params: SamplingParams) -> tuple[Any, SamplingParams, dict[str, Any],
                                                                             Callable[[], Splitter]]:
        messages = for_template(request.messages or ())
        if request.images:
            _append_images(messages, request.images)
        with_tools = bool(request.tools) and request.tool_choice != "none"
        if with_tools and not self._tool_parser:
            raise BadRequestError("input tools: the model has no tool call parser; set the parameter TOOL_CALL_PARSER "
                                  "of config.pbtxt, or send tool_choice none")
        asked: dict[str, Any] = {"messages": messages, "skip_special_tokens": params.skip_special_tokens,
                                 "structured_outputs": params.structured_outputs,
                                 "chat_template_kwargs": request.template or None}
        if request.tools:
            asked |= {"tools": request.tools, "tool_choice": request.tool_choice or "auto"}
        try:
            chat: Any = ChatCompletionRequest.model_validate(asked)
        except ValidationError as error:
            raise BadRequestError(_first(error)) from error
        tokenizer = self._renderer.get_tokenizer()
        mistral = "mistral" in type(tokenizer).__module__
        tools = [tool.model_dump() for tool in chat.tools] if chat.tools else None
        chat_params = chat.build_chat_params(None, "auto").with_defaults({"tools": tools, "tokenize": mistral})
        (_,), (prompt,) = await self._renderer.render_chat_async(
            [chat.messages], chat_params, chat.build_tok_params(self._model))
        ids = prompt.get("prompt_token_ids") or []
        parser_class: Any = self._parsers[with_tools]

        def parser() -> Any:
            return None if parser_class is None else parser_class(
                tokenizer, chat.tools, chat_template_kwargs=chat_params.chat_template_kwargs)

        more: dict[str, Any] = {}
        if parser_class is not None:
            first = parser()
            chat = first.adjust_request(chat)
            params.structured_outputs = chat.structured_outputs
            params.skip_special_tokens = chat.skip_special_tokens
            if first.reasoning_parser is not None:
                more["reasoning_ended"] = (getattr(chat, "_grammar_from_parser", False)
                                           or getattr(chat, "_grammar_from_tool_parser", False)
                                           or first.is_reasoning_end(ids))
        return prompt, params, more, lambda: Splitter(parser(), chat, ids)

    def _params(self, request: Request) -> SamplingParams:
        unknown = sorted(set(request.sampling) - self._fields)
        if unknown:
            near = difflib.get_close_matches(unknown[0], self._fields, 1)
            raise BadRequestError(f"input sampling_parameters: no parameter {unknown[0]!r}"
                                  + (f"; do you mean {near[0]}?" if near else ""))
        values = dict(request.sampling)
        if request.messages is not None:
            # As `vllm serve` does: what the model's own generation_config.json says, and up to the context's end.
            values = {"max_tokens": None, **self._model.get_diff_sampling_param(), **values}
        try:
            params = msgspec.convert(values, SamplingParams, strict=False)
        except msgspec.ValidationError as error:
            raise BadRequestError(f"input sampling_parameters: {error}") from error
        except _CLIENT_FAULTS as error:
            raise BadRequestError(f"input sampling_parameters: {_line(error)}") from error
        if request.structured is not None:
            params.structured_outputs = self._structured_outputs(request.structured)
        if params.logprobs is None and not request.wanted.isdisjoint(("logprobs", "cumulative_logprob")):
            params.logprobs = 0
        params.output_kind = RequestOutputKind.DELTA if request.stream else RequestOutputKind.FINAL_ONLY
        return params

    def _structured_outputs(self, given: Mapping[str, Any]) -> StructuredOutputsParams:
        for name in given:
            if name not in self._structured:
                raise BadRequestError(f"input sampling_parameters: structured_outputs has no {name!r}; "
                                      f"it has {', '.join(self._structured)}")
        try:
            return StructuredOutputsParams(**given)
        except _CLIENT_FAULTS as error:
            raise BadRequestError(f"input sampling_parameters: structured_outputs: {_line(error)}") from error

    def _lora(self, name: str) -> LoRARequest | None:
        if not name:
            return None
        try:
            return self._loras[name]
        except KeyError:
            raise BadRequestError(f"input sampling_parameters: no LoRA {name!r}; "
                                  f"there is {', '.join(self._loras) or 'none'}") from None


class _Recorder(StatLoggerBase):
    """Hands vLLM's statistics on."""

    def __init__(self, record: Callable[[Any], None]) -> None:
        self._record = record

    def record(self, scheduler_stats: Any = None, iteration_stats: Any = None, *more: Any, **others: Any) -> None:
        if iteration_stats is not None:
            self._record(iteration_stats)

    def log_engine_initialized(self) -> None:
        pass


def _known(kind: str, name: str, names: Sequence[str], settings: Settings) -> str:
    """The parser's name, if this vLLM has it."""
    if not name or name in names:
        return name
    if kind in settings.by_family:
        settings.log(f"the model's family wants the {kind} {name!r}, which this vLLM lacks: none is used")
        return ""
    raise LoadError(f"parameter {kind.upper()}: this vLLM has no {name!r}; it has {', '.join(sorted(names))}")


def _arguments(settings: Settings, reasoning_parser: str) -> AsyncEngineArgs:
    known = {field.name: field for field in dataclasses.fields(AsyncEngineArgs) if field.init}
    for name in settings.options:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; do you mean {near[0]}?" if near else ""
            raise LoadError(f"model.json: vLLM has no argument {name!r}{hint}")
    options = dict(settings.options)
    if reasoning_parser:
        options.setdefault("reasoning_parser", reasoning_parser)
    # Nobody would read what they count.
    options.setdefault("disable_log_stats", settings.record is None)
    for name, value in options.items():
        factory = known[name].default_factory
        kind = type(factory()) if isinstance(value, dict) and factory is not dataclasses.MISSING else dict
        if dataclasses.is_dataclass(kind):  # which vLLM's own command line makes of an object
            options[name] = kind(**value)
    return AsyncEngineArgs(**options)


def _part(one: Any) -> Part:
    return Part(one.text, len(one.token_ids), one.finish_reason, one.cumulative_logprob,
                None if one.logprobs is None else [_logprobs(row) for row in one.logprobs])


def _split(splitter: Splitter, part: Part, tokens: Sequence[int], stream: bool) -> None:
    """Put content, reasoning and tool calls where the text was."""
    if stream:
        part.text, part.reasoning, part.tool_calls = splitter.delta(part.text, tokens, part.finish is not None)
    else:
        part.text, part.reasoning, part.tool_calls = splitter.whole(part.text, tokens)
    if part.finish == "stop" and splitter.called:
        part.finish = "tool_calls"


def _logprobs(row: Mapping[int, Any]) -> dict[str, Any]:
    return {str(token): {"logprob": value.logprob, "rank": value.rank, "decoded_token": value.decoded_token}
            for token, value in row.items()}


def _image(number: int, data: bytes) -> Any:
    from PIL import Image

    try:
        return Image.open(io.BytesIO(data)).convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise BadRequestError(f"input image {number}: {_line(error)}") from error


def _append_images(messages: list[dict[str, Any]], images: Sequence[bytes]) -> None:
    """Images of the input `image` belong to the last message of the user."""
    last = next((message for message in reversed(messages) if message["role"] == "user"), None)
    if last is None:
        raise BadRequestError("input image: no message of role user that it could belong to")
    content = last["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
    last["content"] = [*({"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,"
                                                             + base64.b64encode(data).decode()}} for data in images),
                       *parts]


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _first(error: ValidationError) -> str:
    """The first of what pydantic found, as a path and a reason."""
    found = error.errors(include_url=False, include_input=False)[0]
    return f"input {'.'.join(str(part) for part in found['loc'])}: {found['msg']}"
