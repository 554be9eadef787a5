"""Triton's side of the backend: configuration, requests to the engine and answers back, health, stop.

Triton's Python backend imports this file and calls `TritonPythonModel`. All requests run on one asyncio loop in a
thread of its own; a second thread sends what they yield, for a send waits for the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.util
import json
import locale
import os
import queue
import sys
import threading
import time
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

HERE = Path(__file__).resolve().parent
#: The files beside this one, as a package of a name that nobody else has; not on the path of modules, where a file
#: called `metrics` would stand before somebody's library.
PACKAGE = "stagecraft_vllm_backend"
sys.path[:] = [path for path in sys.path if not path or Path(path).resolve() != HERE]
_package = types.ModuleType(PACKAGE)
_package.__path__ = [str(HERE)]
sys.modules.setdefault(PACKAGE, _package)

chat = importlib.import_module(f"{PACKAGE}.chat")
checkpoint = importlib.import_module(f"{PACKAGE}.checkpoint")
inputs = importlib.import_module(f"{PACKAGE}.inputs")
interface = importlib.import_module(f"{PACKAGE}.interface")
metrics = importlib.import_module(f"{PACKAGE}.metrics")
orphans = importlib.import_module(f"{PACKAGE}.orphans")
overheard = importlib.import_module(f"{PACKAGE}.overheard")

#: Seconds between two looks at the engine's health and at requests that yielded nothing since the last.
_WATCH = 1.0
#: Seconds between two questions whether a client is still there, for each costs as much as an answer.
_LOOK = 0.1
#: What engine and its processes must see before they are imported; what the user set counts.
_ENVIRONMENT = {"VLLM_WORKER_MULTIPROC_METHOD": "spawn", "VLLM_NO_USAGE_STATS": "1"}
#: Arguments of vLLM's that may name something else than the model, to be had from a hub.
_MAY_NAME_A_HUB = ("tokenizer", "hf_config_path", "speculative_config")
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}

orphans.watch()


class TritonPythonModel:
    """One model."""

    @staticmethod
    def auto_complete_config(auto_complete_model_config: Any) -> Any:
        config = auto_complete_model_config
        for name, kind, dims in inputs.INPUTS:
            config.add_input({"name": name, "data_type": kind, "dims": dims, "optional": True})
        for name, kind, dims in inputs.OUTPUTS:
            config.add_output({"name": name, "data_type": kind, "dims": dims})
        config.set_model_transaction_policy({"decoupled": True})
        config.set_max_batch_size(0)
        return config

    def initialize(self, args: Mapping[str, str]) -> None:
        self._engine: Any = None
        self._metrics: Any = None
        self._options: Mapping[str, Any] = {}
        self._dead = ""
        self._closing = False
        self._jobs: set[_Job] = set()
        self._count = 0
        self._outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._loop = asyncio.new_event_loop()
        self._threads = [threading.Thread(target=target, name=name, daemon=True)
                         for name, target in (("loop", self._loop.run_forever), ("sender", self._send_all))]
        _locale()
        problem = ""
        heard = overheard.Overheard()
        try:
            self._load(args)
        except interface.LoadError as error:
            problem = str(error)
        except (Exception, SystemExit) as error:
            said = f"{type(error).__name__}: {_reason(error)}"
            heard.end()
            problem = heard.cause() or said
            if not isinstance(error, RuntimeError) and problem != said:
                problem = said  # our own process knows better than what was heard
        finally:
            heard.end()
        if problem:
            self._close()
            raise pb_utils.TritonModelException(_line(problem))

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            sender = request.get_response_sender()
            try:
                if self._dead:
                    raise interface.EngineDeadError(self._dead)
                tensors = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
                parsed = inputs.parse(tensors, request.parameters())
                chat.refuse_addresses(parsed.messages or (), self._options)
            except Exception as error:
                sender.send(_refusal(error), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
                continue
            self._count += 1
            job = _Job(sender, parsed, f"{request.request_id() or 'request'}-{self._count}")
            self._loop.call_soon_threadsafe(self._begin, job)

    def finalize(self) -> None:
        self._close()

    # -- load and stop ---------------------------------------------------------------------------

    def _load(self, args: Mapping[str, str]) -> None:
        config = json.loads(args["model_config"])
        name = self._name = str(args["model_name"])
        parameters = {key: str(value.get("string_value", "")) for key, value in config.get("parameters", {}).items()}
        self._unloads = parameters.get("ENABLE_VLLM_HEALTH_CHECK", "true").lower() != "false"
        directory = Path(args["model_repository"]) / args["model_version"]
        options = self._options = _read_options(directory / "model.json")
        loras = _read_loras(directory / "multi_lora.json") if options.get("enable_lora") else {}
        architectures = _resolve_model(options, directory)
        _devices(config, args, options)
        tool_parser, reasoning_parser, by_family = _parsers(parameters, options, architectures)
        _environment(options, loras)
        module = _engine_module(parameters.get("ENGINE", ""))
        record = self._record if parameters.get("REPORT_CUSTOM_METRICS", "").lower() in ("true", "yes") \
            and not options.get("disable_log_stats") else None
        settings = interface.Settings(name, options, loras, tool_parser, reasoning_parser, by_family, record,
                                      pb_utils.Logger.log_info)
        self._engine = module.Engine(settings)
        for thread in self._threads:
            thread.start()
        asyncio.run_coroutine_threadsafe(self._engine.start(), self._loop).result()
        if record is not None:
            self._metrics = metrics.Metrics(
                pb_utils, {"model": name, "version": args["model_version"]}, self._engine.longest)
        asyncio.run_coroutine_threadsafe(self._watch(), self._loop)

    def _record(self, stats: Any) -> None:
        if self._metrics is not None:
            self._metrics.record(stats)

    def _close(self) -> None:
        """Whatever there is of it; more than once does no harm."""
        if self._closing:
            return
        self._closing = True
        if self._engine is not None:
            self._engine.close()
        loop, sender = self._threads
        if loop.is_alive():
            asyncio.run_coroutine_threadsafe(self._drain(), self._loop)
            loop.join(timeout=10)
        if self._metrics is not None:
            self._metrics.close()
        self._outbox.put(None)  # after all that the loop had to say
        if sender.is_alive():
            sender.join(timeout=10)

    async def _drain(self) -> None:
        """End all that runs on the loop, and the loop."""
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        self._loop.call_soon(self._loop.stop)

    # -- requests, on the loop -------------------------------------------------------------------

    def _begin(self, job: _Job) -> None:
        self._jobs.add(job)
        job.task = self._loop.create_task(self._serve(job))

    async def _serve(self, job: _Job) -> None:
        done = False
        try:
            async for step in self._engine.generate(job.request, job.identity):
                job.quiet = False
                done = step.last
                self._outbox.put((job, step, done))
        except asyncio.CancelledError:
            pass
        except interface.EngineDeadError as error:
            self._died(str(error))
            self._outbox.put((job, interface.EngineDeadError(self._dead or _line(error)), True))
            done = True
        except Exception as error:
            if not isinstance(error, interface.BadRequestError):
                pb_utils.Logger.log_error(
                    f"{self._name}: request {job.identity}: {type(error).__name__}: {_line(error)}")
            self._outbox.put((job, error, True))
            done = True
        finally:
            self._jobs.discard(job)
            if not done:
                gone = interface.EngineDeadError(f"the model {self._name} is being unloaded") if self._closing else None
                self._outbox.put((job, gone, True))

    async def _watch(self) -> None:
        """Once a second: does the engine live, and are those still there who have got nothing meanwhile?"""
        while not self._closing:
            await asyncio.sleep(_WATCH)
            failure = self._engine.failure()
            if failure:
                self._died(failure)
                self._cancel_dead()
                return
            for job in self._jobs:
                if job.quiet:
                    self._outbox.put((job, None, False))
                job.quiet = True

    def _died(self, why: str) -> None:
        """Say it, and give the model back: it is not ready any more, and can be loaded again."""
        if self._dead or self._closing:
            return
        self._dead = f"the engine of model {self._name} is dead ({why}); load the model again"
        pb_utils.Logger.log_error(self._dead)
        if self._unloads:
            threading.Thread(target=self._unload, name="unload", daemon=True).start()

    def _cancel_dead(self) -> None:
        """An engine that died may leave those waiting that it owes something."""
        for job in list(self._jobs):
            self._outbox.put((job, interface.EngineDeadError(self._dead), True))
            job.cancel()

    def _unload(self) -> None:
        try:
            pb_utils.unload_model(self._name)
        except Exception as error:
            pb_utils.Logger.log_error(f"model {self._name} stays listed as ready though its engine is dead: "
                                      f"{_line(error)}; it needs --model-control-mode=explicit")

    # -- the sender's thread ---------------------------------------------------------------------

    def _send_all(self) -> None:
        while True:
            item = self._outbox.get()
            if item is None:
                return
            job, content, last = item
            try:
                self._send(job, content, last)
            except Exception as error:
                pb_utils.Logger.log_error(f"{self._name}: {job.identity}: an answer is not sent: {_line(error)}")
                self._send_failed(job, error)
                self._loop.call_soon_threadsafe(job.cancel)

    def _send_failed(self, job: _Job, error: Exception) -> None:
        """Somebody may wait for the end still."""
        if not job.sent_last:
            job.sent_last = True
            with contextlib.suppress(Exception):
                job.sender.send(_refusal(error), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _send(self, job: _Job, content: Any, last: bool) -> None:
        if job.sent_last:
            return
        flags = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if last else 0
        if content is None:
            if last:
                job.sender.send(flags=flags)
        else:
            answer = _refusal(content) if isinstance(content, Exception) else _answer(job.request, content)
            job.sender.send(answer, flags=flags)
        job.sent_last = last
        now = time.monotonic()
        if not last and (content is None or now >= job.next_look):
            job.next_look = now + _LOOK
            if job.sender.is_cancelled():
                self._loop.call_soon_threadsafe(job.cancel)


class _Job:
    """A request that is being served."""

    __slots__ = ("identity", "next_look", "quiet", "request", "sender", "sent_last", "task")

    def __init__(self, sender: Any, request: Any, identity: str) -> None:
        self.sender = sender
        self.request = request
        self.identity = identity
        self.task: asyncio.Task[None] | None = None
        self.quiet = False
        self.sent_last = False
        self.next_look = 0.0

    def cancel(self) -> None:
        if self.task is not None:
            self.task.cancel()


# -- answers --------------------------------------------------------------------------------------


def _answer(request: Any, step: Any) -> Any:
    before = request.prompt if request.prepend else ""
    parts = step.parts
    tensors = [_strings("text_output", [before + part.text for part in parts])]
    wanted = request.wanted
    if request.messages is not None:
        if any(part.reasoning for part in parts):
            tensors.append(_strings("reasoning_content", [part.reasoning for part in parts]))
        if any(part.tool_calls for part in parts):
            tensors.append(_strings("tool_calls", [json.dumps(list(part.tool_calls), ensure_ascii=False)
                                                   for part in parts]))
    if wanted:
        if "finish_reason" in wanted:
            tensors.append(_strings("finish_reason", [str(part.finish) for part in parts]))
        if "cumulative_logprob" in wanted:
            sums = [np.nan if part.cumulative_logprob is None else part.cumulative_logprob for part in parts]
            tensors.append(pb_utils.Tensor("cumulative_logprob", np.array(sums, np.float32)))
        if "logprobs" in wanted:
            tensors.append(_strings("logprobs", [json.dumps(part.logprobs, ensure_ascii=False) for part in parts]))
        if "num_input_tokens" in wanted:
            tensors.append(pb_utils.Tensor("num_input_tokens", np.array([step.prompt_tokens], np.uint32)))
        if "num_output_tokens" in wanted:
            tensors.append(pb_utils.Tensor("num_output_tokens", np.array([part.tokens for part in parts], np.uint32)))
    return pb_utils.InferenceResponse(output_tensors=tensors)


def _strings(name: str, values: list[str]) -> Any:
    return pb_utils.Tensor(name, np.array([value.encode("utf-8", "replace") for value in values], np.object_))


def _refusal(error: Exception) -> Any:
    code = pb_utils.TritonError.INTERNAL
    if isinstance(error, interface.BadRequestError):
        code = pb_utils.TritonError.INVALID_ARG
    elif isinstance(error, interface.EngineDeadError):
        code = pb_utils.TritonError.UNAVAILABLE
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(_line(error), code))


def _reason(error: BaseException) -> str:
    """Of a pydantic error the first of what it found, without the values that it lists."""
    try:
        first = error.errors(include_url=False, include_input=False)[0]  # type: ignore[attr-defined]
        where = ".".join(str(part) for part in first["loc"])
        return f"{where}: {first['msg']}" if where else str(first["msg"])
    except (AttributeError, TypeError, LookupError):
        return _line(error)


def _line(error: object) -> str:
    return " ".join(str(error).split()) or type(error).__name__


# -- what a model is made of ----------------------------------------------------------------------


def _read_options(path: Path) -> dict[str, Any]:
    found = _read_object(path, "arguments of vLLM's engine, at least {\"model\": …}")
    if not isinstance(found.get("model"), str) or not found["model"]:
        raise interface.LoadError(f"{path} names no model: a text \"model\" is expected")
    return found


def _read_loras(path: Path) -> dict[str, str]:
    found = _read_object(path, "names of LoRAs and their directories, as model.json has enable_lora")
    for name, directory in found.items():
        if not isinstance(directory, str) or not directory:
            raise interface.LoadError(f"{path}: the directory of LoRA {name!r} is expected")
        if (path.parent / directory).is_dir():
            found[name] = str(path.parent / directory)
        elif directory.startswith(".") or (Path(directory).is_absolute() and not Path(directory).is_dir()):
            raise interface.LoadError(f"{path}: the directory of LoRA {name!r} does not exist: {directory}")
    return found


def _read_object(path: Path, what: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise interface.LoadError(f"{path} cannot be read ({error.strerror}): it holds {what}") from None
    except ValueError as error:
        raise interface.LoadError(f"{path} is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise interface.LoadError(f"{path} is no JSON object: it holds {what}")
    return found


def _resolve_model(options: dict[str, Any], directory: Path) -> list[str]:
    """Look at a model of this machine, beside `model.json` or where a path leads; its architectures."""
    model = options["model"]
    path = directory / model
    if not path.is_dir():
        path = Path(model)
    if path.is_dir():
        options["model"] = str(path)
        return list(checkpoint.look_at(path, options.get("load_format") != "dummy"))
    if (path.is_absolute() and not path.exists()) or model.startswith("."):
        raise interface.LoadError(f"the model's directory does not exist: {path}")
    return []


def _devices(config: Mapping[str, Any], args: Mapping[str, str], options: Mapping[str, Any]) -> None:
    """KIND_GPU gives the model the device of its instance; KIND_MODEL leaves all to vLLM."""
    if args.get("model_instance_kind") != "GPU":
        return
    if options.get("tensor_parallel_size", 1) * options.get("pipeline_parallel_size", 1) > 1:
        raise interface.LoadError("config.pbtxt: KIND_GPU is for a model on one device; with tensor_parallel_size or "
                                  "pipeline_parallel_size take KIND_MODEL")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", args["model_instance_device_id"])


def _parsers(parameters: Mapping[str, str], options: Mapping[str, Any],
             architectures: list[str]) -> tuple[str, str, frozenset[str]]:
    """Names of tool call and reasoning parser, and which of them were chosen by the model's family."""
    model = str(options["model"]).rstrip("/")
    row = chat.family([model.rpartition("/")[2], model, *architectures])
    found, by_family = {}, set()
    for kind in chat.PARSERS:
        given = parameters.get(kind.upper(), "")
        if kind == "reasoning_parser":
            given = given or str(options.get(kind) or "")
        found[kind] = "" if given.lower() == "none" else given or row.get(kind, "")
        if found[kind] and not given:
            by_family.add(kind)
    return found["tool_call_parser"], found["reasoning_parser"], frozenset(by_family)


def _locale() -> None:
    """Triton starts the interpreter with an ASCII locale, in which torch cannot read its own files."""
    locale.setlocale(locale.LC_ALL, "C.UTF-8")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def _environment(options: Mapping[str, Any], loras: Mapping[str, str]) -> None:
    """What the engine finds when it is imported."""
    added = dict(_ENVIRONMENT)
    elsewhere = any(options.get(name) for name in _MAY_NAME_A_HUB)
    if not elsewhere and all(Path(path).is_dir() for path in (options["model"], *loras.values())):
        added |= _OFFLINE  # all is here: nothing is asked of a hub
    for name, value in added.items():
        os.environ.setdefault(name, value)


def _engine_module(name: str) -> Any:
    """The module that has `Engine`: a file of this directory by its name, or any by its path."""
    name = name or "engine"
    path = Path(name) if name.startswith("/") else HERE / f"{name}.py"
    if not path.is_file():
        raise interface.LoadError(f"parameter ENGINE: no file {path}")
    spec = importlib.util.spec_from_file_location(f"{PACKAGE}.{path.stem}", path)
    assert spec is not None  # noqa: S101
    assert spec.loader is not None  # noqa: S101
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        raise interface.LoadError(f"the backend does not fit the image's packages: {_line(error)}") from error
    return module
