"""What `model.py` and an engine say to each other. Plain values; no import of vLLM or of Triton.

An engine is a class `Engine` of a module in this directory (`engine`, or the stand-in) with the methods of `Engine`
below.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


class BadRequestError(ValueError):
    """The request cannot be served as it is; the text names the input."""


class EngineDeadError(RuntimeError):
    """The engine ended, and no request will be answered any more."""


class LoadError(RuntimeError):
    """The model cannot be loaded; the text is one line that says why."""


@dataclass(frozen=True)
class Settings:
    """What an engine is made of.

    Attributes:
        name: of the model, as Triton knows it.
        options: `model.json`, with `model` a path where it is a directory of this machine.
        loras: name of a LoRA to its directory.
        tool_parser: name of vLLM's tool call parser; "" for none.
        reasoning_parser: name of vLLM's reasoning parser; "" for none.
        by_family: names of the two that were chosen by family, so may be unknown to this vLLM.
        record: takes the statistics of an engine's step (`metrics.Metrics.record`); None: nobody wants them.
        log: takes a line.
    """

    name: str
    options: Mapping[str, Any]
    loras: Mapping[str, str]
    tool_parser: str
    reasoning_parser: str
    by_family: frozenset[str]
    record: Callable[[Any], None] | None
    log: Callable[[str], None]


@dataclass(slots=True)
class Request:
    """A request, checked as far as that needs no model.

    Attributes:
        prompt: text; None where there are messages.
        messages: of a chat; None where there is a prompt.
        tool_choice: `auto`, `none`, `required`, or the object that names a function; None: not said.
        template: arguments for the chat template.
        images: encoded images.
        prepend: the prompt is put before the text that is returned.
        sampling: parameters by name, values as they came.
        structured: what the output must look like, by vLLM's names (`json`, `regex`, `choice`, `grammar` …).
        wanted: the further outputs that the client asked for.
    """

    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    template: dict[str, Any] = field(default_factory=dict)
    images: Sequence[bytes] = ()
    stream: bool = False
    prepend: bool = False
    sampling: dict[str, Any] = field(default_factory=dict)
    lora: str = ""
    structured: dict[str, Any] | None = None
    wanted: frozenset[str] = frozenset()


@dataclass(slots=True)
class Part:
    """What one of the sequences of a request gained in a step; all of it where the request is no stream.

    Attributes:
        tokens: number of new tokens.
        finish: why the sequence ended (`stop`, `length`, `tool_calls` …); None: it goes on.
        logprobs: per token: token id to `{"logprob", "rank", "decoded_token"}`.
        tool_calls: as in OpenAI's API: whole, or deltas with `index` in a stream.
    """

    text: str
    tokens: int = 0
    finish: str | None = None
    cumulative_logprob: float | None = None
    logprobs: list[dict[str, Any]] | None = None
    reasoning: str = ""
    tool_calls: Sequence[Mapping[str, Any]] = ()


@dataclass(slots=True)
class Step:
    """An answer, or a part of one in a stream."""

    parts: list[Part]
    prompt_tokens: int
    last: bool


class Engine(Protocol):
    """What `model.py` wants of an engine; called on one event loop, but for the constructor and `close`."""

    def __init__(self, settings: Settings) -> None: ...

    async def start(self) -> None:
        """Load the model. Raises: any exception; the last line of it is what the user gets."""

    def generate(self, request: Request, identity: str) -> AsyncIterator[Step]:
        """Steps to the last one; when the iterator is cancelled the engine drops the request.

        Raises:
            BadRequestError, EngineDeadError
        """

    @property
    def longest(self) -> int:
        """Tokens of the longest request; after `start`."""

    def failure(self) -> str | None:
        """Why no request will be answered any more; None while all is well."""

    def close(self) -> None:
        """End it, with all its processes."""
