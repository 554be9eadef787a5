"""What `driver.py` asks a server. Each case says in a line what it saw, or raises `Failed` or `NotJudged`."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

from asking import GRPC, HOST, Failed, NotJudged, Server, encoded, one_line, said, text_of
from processes import below, command_of, engine_of, others

#: Tokens of a generation that is to be broken off: more than a machine makes before it hears of it.
LONG = 8000
#: Seconds in which an engine that still generates makes at least one token.
QUIET = 1.0


#: So many tokens, always the same.
def exactly(count: int) -> dict[str, Any]:
    return {"temperature": 0, "max_tokens": count, "min_tokens": count, "ignore_eos": True}


def spelt(server: Server, *tokens: str, **more: Any) -> dict[str, Any]:
    """What makes any model say these tokens, each of them once, in this order, and no more.

    A bias decides what comes next; what was said, or stands in the prompt, loses its own by the penalty.
    """
    biases = {str(server.plan["tokens"].get(token) or ord(token)): 100 - 5 * number
              for number, token in enumerate(tokens)}
    return {"temperature": 0, "max_tokens": len(tokens), "repetition_penalty": 1000, "logit_bias": biases, **more}


def need_vllm(server: Server, what: str) -> None:
    """What the stand-in engine does instead proves nothing."""
    if server.plan["stand_in"]:
        raise NotJudged(f"the stand-in engine has not {what}")
    if not server.plan["chat"]:
        raise NotJudged("this backend knows no chat messages")


def health(server: Server) -> str:
    for path in ("/v2/health/live", "/v2/health/ready", f"/v2/models/{server.model}/ready"):
        server.ask(path).expect(200)
    with socket.create_connection((HOST, GRPC), server.seconds["request"]) as connection:
        # HTTP/2's preface and empty settings; a server of it answers with its own settings (frame type 4).
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5))
        frame = connection.recv(9)
        if len(frame) < 4 or frame[3] != 4:
            raise Failed(f"port {GRPC} does not speak HTTP/2: {frame!r}")
    return "live and ready; HTTP and gRPC answer"


def metadata(server: Server) -> str:
    about = server.ask("/v2").expect(200).json
    model = server.ask(f"/v2/models/{server.model}").expect(200).json
    names = {part: {one["name"] for one in model[part]} for part in ("inputs", "outputs")}
    chat = server.plan["chat"]
    missing = {"text_input", "stream", "sampling_parameters", *(["messages"] if chat else [])} - names["inputs"] | \
        {"text_output", *(["tool_calls", "reasoning_content"] if chat else [])} - names["outputs"]
    if missing:
        raise Failed(f"the model lacks {', '.join(sorted(missing))}")
    return f"{about['name']} {about['version']}, {len(names['inputs'])} inputs, {len(names['outputs'])} outputs"


def generate(server: Server) -> str:
    answers = [server.generate(text_input="Hello", sampling=exactly(12), exclude_input_in_output=True,
                               return_finish_reason=True, return_num_output_tokens=True) for _ in range(2)]
    first = answers[0]
    if first.get("num_output_tokens") != 12 or first.get("finish_reason") != "length":
        raise Failed(f"12 tokens were asked for, there came {first.get('num_output_tokens')}, "
                     f"finish_reason {first.get('finish_reason')}")
    if not first["text_output"] or first["text_output"] != answers[1]["text_output"]:
        raise Failed(f"the same greedy request gave {first['text_output']!r} and {answers[1]['text_output']!r}")
    return "12 tokens, twice the same"


def stream(server: Server) -> str:
    whole = server.generate(text_input="Hello", sampling=exactly(24), exclude_input_in_output=True)
    with server.stream(text_input="Hello", sampling=exactly(24), exclude_input_in_output=True) as answers:
        pieces = list(answers)
    if len(pieces) < 2:
        raise Failed(f"the stream came in {len(pieces)} piece")
    if text_of(pieces) != whole["text_output"]:
        raise Failed(f"the stream says {text_of(pieces)!r}, the answer without one {whole['text_output']!r}")
    return f"24 tokens in {len(pieces)} pieces, the same text"


TOOLS = [{"type": "function", "function": {
    "name": "get_weather", "description": "the weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}]
CALL = r'<tool_call>\n\{"name": "get_weather", "arguments": \{"city": "[a-z]{3,8}"\}\}\n</tool_call>'


def tool_call(server: Server) -> str:
    need_vllm(server, "vLLM's tool call parsers")
    question = [{"role": "user", "content": "How is the weather in Graz?"}]
    # A model that reasons: structured outputs begin behind that.
    sampling = spelt(server, "<think>", "Q", "</think>", "<tool_call>", "</tool_call>", max_tokens=200,
                     structured_outputs={"regex": CALL})
    inputs: dict[str, Any] = {"messages": question, "tools": TOOLS, "sampling": sampling}
    first = server.generate(**inputs)
    name, arguments = the_call(first.get("tool_calls"), "the answer")
    with server.stream(**inputs) as answers:
        pieces = list(answers)
    streamed = merged([json.loads(piece["tool_calls"]) for piece in pieces if piece.get("tool_calls")])
    if the_call(json.dumps(streamed), "the stream") != (name, arguments):
        raise Failed(f"the stream's call is {one_line(json.dumps(streamed))}")
    calls = json.loads(first["tool_calls"])
    turns = [*question, {"role": "assistant", "content": None, "tool_calls": calls,
                         "reasoning_content": first.get("reasoning_content")},
             {"role": "tool", "tool_call_id": calls[0]["id"], "content": "sunny"}]
    answer = server.generate(messages=turns, tools=TOOLS, tool_choice="none",
                             sampling=spelt(server, "X", "Z"))
    # Without an end of reasoning it is reasoning or text, as the parser likes; the prompt has the other signs already.
    if text_of([answer], "reasoning_content") + text_of([answer]) != "XZ":
        raise Failed(f"the answer to the tool's result is {one_line(json.dumps(answer))}; XZ was said")
    return f"{name}({arguments['city']!r}), streamed too; then a turn with its result"


def the_call(text: Any, where: str) -> tuple[str, dict[str, Any]]:
    """Name and arguments of the one call."""
    try:
        (call,) = json.loads(text)
        name, arguments = call["function"]["name"], json.loads(call["function"]["arguments"])
    except (ValueError, KeyError, TypeError) as error:
        raise Failed(f"{where} has no tool call that can be read: {one_line(str(text))}") from error
    if name != "get_weather" or not isinstance(arguments.get("city"), str):
        raise Failed(f"{where} calls {name}({arguments})")
    return name, arguments


def merged(deltas: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Calls out of the pieces that a stream brings, as OpenAI's clients join them."""
    calls: dict[int, dict[str, Any]] = {}
    for delta in [one for piece in deltas for one in piece]:
        call = calls.setdefault(delta.get("index", 0), {"function": {"name": "", "arguments": ""}})
        for part in ("name", "arguments"):
            call["function"][part] += (delta.get("function") or {}).get(part) or ""
    return [calls[number] for number in sorted(calls)]


def reasoning(server: Server) -> str:
    need_vllm(server, "vLLM's reasoning parsers")
    inputs: dict[str, Any] = {"messages": [{"role": "user", "content": "Why?"}],
                              "sampling": spelt(server, "<think>", "Q", "X", "</think>", "Y", "Z")}
    whole = server.generate(**inputs)
    with server.stream(**inputs) as answers:
        pieces = list(answers)
    for where, found in (("the answer", [whole]), ("the stream", pieces)):
        thought, text = text_of(found, "reasoning_content"), text_of(found)
        if (thought.strip(), text.strip()) != ("QX", "YZ"):
            raise Failed(f"{where} has the reasoning {thought!r} and the text {text!r}; QX and YZ were said")
    return "reasoning and text apart, streamed too"


def bad_request(server: Server) -> str:
    path = f"/v2/models/{server.model}/generate"
    tried = {
        "malformed JSON": server.ask(path, raw=b'{"text_input": "Hello", '),
        "malformed sampling_parameters": server.ask(path, {"text_input": "Hello", "sampling_parameters": "{"}),
        "an unknown parameter": server.ask(path, encoded({"text_input": "Hello", "sampling": {"no_such": 1}})),
        "a bad value": server.ask(path, encoded({"text_input": "Hello", "sampling": {"max_tokens": -1}})),
        "no prompt": server.ask(path, {"stream": False}),
        **({"malformed messages": server.ask(path, {"messages": "[{"})} if server.plan["chat"] else {}),
    }
    for what, answer in tried.items():
        # The first is Triton's own to refuse, and NVIDIA's backend answers 500 to others; ours knows whose fault it is.
        worst = 400 if server.plan["chat"] and what != "malformed JSON" else 599
        if not 400 <= answer.status <= worst or not answer.error.strip():
            raise Failed(f"{what} gave HTTP {answer.status}: {one_line(answer.text)}")
        if "Traceback" in answer.error:
            raise Failed(f"{what} gave a traceback")
    if not server.ready() or not server.generate(text_input="Hello", sampling=exactly(4))["text_output"]:
        raise Failed("after bad requests no good one is answered")
    return f"{len(tried)} refused, the next good one answered"


def cancellation(server: Server) -> str:
    before = server.metric("vllm:generation_tokens_total") or 0.0
    with server.stream(text_input="Hello", sampling=exactly(LONG)) as answers:
        next(answers, None)
        next(answers, None)
    made, since = 0.0, time.monotonic()
    while time.monotonic() - since < 2 * QUIET:
        now = (server.metric("vllm:generation_tokens_total") or 0.0) - before
        if now != made:
            made, since = now, time.monotonic()
        if made >= LONG:
            raise Failed(f"the client went away after 2 answers, and all {LONG} tokens were made")
        time.sleep(QUIET / 5)
    if not made:
        raise Failed("the metric vllm:generation_tokens_total does not count")
    if not server.generate(text_input="Hello", sampling=exactly(4))["text_output"]:
        raise Failed("no answer afterwards")
    return f"the client went away: {made:g} of {LONG} tokens were made"


def concurrent(server: Server) -> str:
    spans: dict[str, list[float]] = {"one": [], "two": []}
    problems: list[str] = []
    together = threading.Barrier(len(spans))

    def read(prompt: str) -> None:
        try:
            together.wait(server.seconds["request"])
            with server.stream(text_input=prompt, sampling=exactly(256)) as answers:
                spans[prompt] += [time.monotonic() for _ in answers]
        except (Failed, threading.BrokenBarrierError) as error:
            problems.append(said(error))

    threads = [threading.Thread(target=read, args=(prompt,)) for prompt in spans]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if problems:
        raise Failed(problems[0])
    if not all(len(times) > 1 for times in spans.values()):
        raise Failed("a stream came at once")
    if max(times[0] for times in spans.values()) >= min(times[-1] for times in spans.values()):
        raise Failed("one stream waited for the other's end")
    return " and ".join(str(len(times)) for times in spans.values()) + " pieces, side by side"


def metrics(server: Server) -> str:
    success, tokens = server.metric("nv_inference_request_success"), server.metric("vllm:generation_tokens_total")
    if not success:
        raise Failed("the server counts no request: nv_inference_request_success")
    if not tokens:
        raise Failed("the engine counts no token: vllm:generation_tokens_total")
    return f"{success:g} requests, {tokens:g} tokens"


def unload_load(server: Server) -> str:
    if server.control("unload", allowed=False).status != 403:
        raise Failed("the model-control API is open to who has no key")
    server.control("unload").expect(200)
    if not server.until(lambda: not server.ready(), server.seconds["stop"]):
        raise Failed("unloaded, and still ready")
    started = time.monotonic()
    server.control("load").expect(200)
    server.await_ready()
    if not server.generate(text_input="Hello", sampling=exactly(4))["text_output"]:
        raise Failed("no answer after it was loaded again")
    return f"loaded again in {time.monotonic() - started:.1f} s; closed to who has no key"


def engine_killed(server: Server) -> str:
    engine = engine_of(server.process.pid)
    if engine is None:
        raise Failed("no process of the engine is there: " + one_line(", ".join(
            command_of(pid) for pid in below(server.process.pid))))
    os.kill(engine, signal.SIGKILL)
    if not server.until(lambda: not server.ready(), server.seconds["request"]):
        raise Failed("the engine's process was killed, and the model stays ready")
    answer = server.ask(f"/v2/models/{server.model}/generate", encoded({"text_input": "Hello", "sampling": exactly(4)}))
    if answer.status == 200:
        raise Failed(f"without its engine it answers: {one_line(answer.text)}")
    return f"unready; a request gets HTTP {answer.status}"




def clean_stop(server: Server) -> str:
    started = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    try:
        status = server.process.wait(server.seconds["stop"])
    except subprocess.TimeoutExpired:
        raise Failed(f"still there {server.seconds['stop']:g} s after SIGTERM") from None
    took = time.monotonic() - started
    if status:
        raise Failed(f"SIGTERM ended it with {status}")
    if not server.until(lambda: not others(), 10):
        raise Failed("left behind: " + one_line(", ".join(map(command_of, others()))))
    return f"exit 0 after {took:.1f} s, no process left"


#: Case to what it is about and whom it asks; those behind one that failed run all the same.
CASES: tuple[tuple[str, Callable[[Server], str]], ...] = (
    ("health", health), ("metadata", metadata), ("generate", generate), ("stream", stream), ("tool-call", tool_call),
    ("reasoning", reasoning), ("bad-request", bad_request), ("cancellation", cancellation),
    ("concurrent", concurrent), ("metrics", metrics), ("engine-killed", engine_killed), ("unload-load", unload_load),
    ("clean-stop", clean_stop),
)
