"""What `tests/e2e/test_backend.py` runs in the sandbox, by the root's own Python: the real server, asked.

    python backend_inside.py PLAN RESULTS

PLAN: `{"server", "python_backend", "backend", "standin", "work"}`, all paths. RESULTS gets a JSON line per case:
`{"case", "problem", "seconds"}`; no problem is "". A case is a function whose name begins with `case_`.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import http.client
import json
import os
import queue
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

HOST = "127.0.0.1"
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"required": ["city"]}}}]
USER = [{"role": "user", "content": "hello"}]
THINK_AND_CALL = (r'<think>[a-z]{8}</think><tool_call>\{"name": "f", "arguments": \{"city": "[a-z]{4}"\}\}</tool_call>')


class Server:
    """One server process with its ports and its log."""

    def __init__(self, plan: Mapping[str, str], repository: Path, *options: str) -> None:
        self.http, self.grpc, self.metrics = _ports(3)
        self.log = repository.with_suffix(".log")
        self.file = self.log.open("wb")
        self.process = subprocess.Popen(
            [plan["server"], f"--model-repository={repository}", f"--backend-directory={plan['work']}/backends",
             "--model-control-mode=explicit", f"--http-address={HOST}", f"--grpc-address={HOST}",
             f"--metrics-address={HOST}", f"--http-port={self.http}", f"--grpc-port={self.grpc}",
             f"--metrics-port={self.metrics}", *options], stdout=self.file, stderr=subprocess.STDOUT)

    def ask(self, path: str, body: Any = None, *, raw: bytes | None = None, method: str = "") -> tuple[int, str]:
        """Status and text."""
        connection = http.client.HTTPConnection(HOST, self.http, timeout=30)
        try:
            data = raw if raw is not None else json.dumps(body).encode() if body is not None else None
            connection.request(method or ("GET" if data is None else "POST"), path, data)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def generate(self, model: str = "m", **inputs: Any) -> tuple[int, Any]:
        """Status and the answer, an error as text."""
        status, text = self.ask(f"/v2/models/{model}/generate", encoded(inputs))
        found = json.loads(text)
        return status, found.get("error", found)

    def stream(self, **inputs: Any) -> list[dict[str, Any]]:
        _, text = self.ask("/v2/models/m/generate_stream", encoded({"stream": True, **inputs}))
        return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]

    def begun(self, tokens: int = 100_000) -> http.client.HTTPConnection:
        """A stream of which nothing was read."""
        connection = http.client.HTTPConnection(HOST, self.http, timeout=30)
        connection.request("POST", "/v2/models/m/generate_stream", json.dumps(encoded({
            "text_input": "hello", "stream": True, "sampling_parameters": {"max_tokens": tokens}})))
        return connection

    def load(self, model: str, action: str = "load") -> tuple[int, str]:
        return self.ask(f"/v2/repository/models/{model}/{action}", method="POST")

    def ready(self, model: str = "m") -> bool:
        return self.ask(f"/v2/models/{model}/ready")[0] == 200

    def metric(self, name: str) -> float:
        connection = http.client.HTTPConnection(HOST, self.metrics, timeout=30)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        found = re.search(rf"^{re.escape(name)}{{.*}} (\S+)$", text, re.M)
        assert found, f"no metric {name}"
        return float(found[1])

    def up(self) -> None:
        def answers() -> bool:
            with contextlib.suppress(OSError):
                return self.ask("/v2/health/live")[0] == 200
            return False

        assert until(answers, 20), self.tail()

    def stop(self, seconds: float = 30) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.file.close()

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-2000:]


def encoded(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Objects and lists as the JSON texts that the inputs are."""
    return {name: json.dumps(value) if isinstance(value, (dict, list)) else value for name, value in inputs.items()}


def until(true: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def _ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind((HOST, 0))
        return [one.getsockname()[1] for one in sockets]


def processes(text: str) -> list[int]:
    """Processes with the text in their command line."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            with contextlib.suppress(OSError):
                if text.encode() in Path(f"/proc/{name}/cmdline").read_bytes().replace(b"\0", b" "):
                    found.append(int(name))
    return found


def core() -> list[int]:
    return processes("StandInEngineCore")


def stub() -> list[int]:
    return processes("triton_python_backend_stub")


# -- one server, asked --------------------------------------------------------------------------------------------


def case_generate(server: Server) -> None:
    asked = {"text_input": "hello you", "sampling_parameters": {"max_tokens": 3}, "return_finish_reason": True,
             "return_num_input_tokens": True, "return_num_output_tokens": True, "return_logprobs": True,
             "return_cumulative_logprob": True}
    status, answer = server.generate(**asked)
    assert status == 200, answer
    assert answer["text_output"].startswith("hello you "), answer
    assert (answer["finish_reason"], answer["num_input_tokens"], answer["num_output_tokens"]) == ("length", 2, 3)
    assert answer["cumulative_logprob"] == -1.5
    assert len(json.loads(answer["logprobs"])) == 3
    _, short = server.generate(**asked, exclude_input_in_output=True)
    assert "hello you" + short["text_output"] == answer["text_output"]


def case_stream(server: Server) -> None:
    asked: dict[str, Any] = {"text_input": "hello", "sampling_parameters": {"max_tokens": 5}}
    pieces = server.stream(**asked, return_num_output_tokens=True)
    assert len(pieces) == 5, pieces
    assert sum(piece["num_output_tokens"] for piece in pieces) == 5
    _, whole = server.generate(**asked, exclude_input_in_output=True)
    assert "".join(piece["text_output"] for piece in pieces) == whole["text_output"]
    connection = server.begun(60)
    began, times = time.monotonic(), []
    answer = connection.getresponse()
    while answer.readline():
        times.append(time.monotonic() - began)
    assert times[0] < times[-1] / 2, "it came at once"
    connection.close()


def case_parameters_of_the_request(server: Server) -> None:
    status, text = server.ask("/v2/models/m/generate", {"text_input": "x", "parameters": {"max_tokens": 4}})
    assert status == 200, text
    assert len(json.loads(text)["text_output"].split()) == 5, text
    status, text = server.ask("/v2/models/m/generate", {"text_input": "x", "parameters": {"mx_tokens": 4}})
    assert (status, "no parameter 'mx_tokens'" in text) == (400, True), text


def case_chat(server: Server) -> None:
    asked: dict[str, Any] = {"messages": USER, "tools": TOOLS, "return_finish_reason": True, "sampling_parameters": {
        "max_tokens": 200, "structured_outputs": {"regex": THINK_AND_CALL}}}
    status, answer = server.generate(**asked)
    assert status == 200, answer
    assert (answer["reasoning_content"], answer["text_output"], answer["finish_reason"]) == (
        "aaaaaaaa", "", "tool_calls"), answer
    (call,) = json.loads(answer["tool_calls"])
    assert call["function"] == {"name": "f", "arguments": '{"city": "aaaa"}'}
    pieces = server.stream(**asked)
    assert "".join(piece.get("reasoning_content", "") for piece in pieces) == "aaaaaaaa"
    (calls,) = [json.loads(piece["tool_calls"]) for piece in pieces if "tool_calls" in piece]
    assert calls[0]["index"] == 0
    turns = [*USER, {"role": "assistant", "content": None, "tool_calls": [call]},
             {"role": "tool", "tool_call_id": call["id"], "content": "sunny"}]
    status, answer = server.generate(messages=turns, tools=TOOLS)
    assert (status, "tool_calls" in answer) == (200, False), answer
    status, answer = server.generate(messages=USER, tools=TOOLS, tool_choice="required")
    assert "tool_calls" in answer, answer


def case_client_http(server: Server) -> None:
    import tritonclient.http

    client = tritonclient.http.InferenceServerClient(f"{HOST}:{server.http}")
    assert client.is_server_ready()
    assert client.is_model_ready("m")
    about = client.get_model_metadata("m")
    assert {"text_input", "messages", "image"} <= {one["name"] for one in about["inputs"]}
    assert {"text_output", "tool_calls"} <= {one["name"] for one in about["outputs"]}
    assert client.get_model_config("m")["model_transaction_policy"]["decoupled"] is True
    client.close()


def case_client_grpc(server: Server) -> None:
    with _streaming(server) as (client, answers):
        client.async_stream_infer("m", _tensors(text_input="hello", stream=True,
                                                sampling_parameters='{"max_tokens": 3}'))
        texts = []
        for _ in range(3):
            result, error = answers.get(timeout=20)
            assert error is None, error
            texts.append(result.as_numpy("text_output")[0].decode())
        _, whole = server.generate(text_input="hello", sampling_parameters={"max_tokens": 3})
        assert "hello" + "".join(texts) == whole["text_output"]
        client.async_stream_infer("m", _tensors(text_input="hello", sampling_parameters="{"))
        _, error = answers.get(timeout=20)
        assert "input sampling_parameters: no JSON" in str(error), error


def case_cancellation_grpc(server: Server) -> None:
    with _streaming(server) as (client, answers):
        client.async_stream_infer("m", _tensors(text_input="hello", stream=True,
                                                sampling_parameters='{"max_tokens": 100000}'))
        answers.get(timeout=20)
        client.stop_stream(cancel_requests=True)
    quiet(server)


def case_cancellation_http(server: Server) -> None:
    connection = server.begun()
    connection.getresponse().readline()
    connection.close()
    quiet(server)


def case_hundred_clients_vanish(server: Server) -> None:
    (pid,) = stub()

    def held() -> tuple[int, int]:
        return len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(f"/proc/{pid}/task"))

    before, tokens = held(), server.metric("vllm:generation_tokens_total")
    connections = [server.begun() for _ in range(100)]
    assert until(lambda: server.metric("vllm:generation_tokens_total") > tokens + 200, 20), "they do not run"
    for connection in connections:
        connection.close()
    quiet(server)
    assert until(lambda: held() <= before, 10), (before, held())
    case_stream(server)


def quiet(server: Server) -> None:
    """No token is made any more."""
    last = [-1.0]

    def same() -> bool:
        time.sleep(0.5)
        now = server.metric("vllm:generation_tokens_total")
        last[0], before = now, last[0]
        return now == before

    assert until(same, 20), "it goes on generating for nobody"


def case_bad_requests(server: Server) -> None:
    for said, inputs in {
        "no JSON": {"text_input": "x", "sampling_parameters": '{"max_tokens":'},
        "no parameter 'temprature'": {"text_input": "x", "sampling_parameters": {"temprature": 1}},
        "max_tokens cannot be -1": {"text_input": "x", "sampling_parameters": {"max_tokens": -1}},
        "no LoRA 'k'; there is l": {"text_input": "x", "sampling_parameters": {"lora_name": "k"}},
        "one of the inputs text_input and messages is needed": {"stream": False},
        "input messages: no JSON": {"messages": "[{"},
        "n above 1 cannot be had": {"text_input": "x", "stream": True, "sampling_parameters": {"n": 2}},
        "send it as a data: URL": {"messages": json.dumps([{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": "http://127.0.0.1/"}}]}])},
        "no base64": {"text_input": "x", "image": "?"},
        "has 5000 tokens, the model takes at most 4096": {"text_input": "x " * 5000},
        "has 200000 tokens": {"text_input": "word " * 200_000},
    }.items():
        status, answer = server.generate(**inputs)
        assert status == 400, (said, status, answer)
        assert said in answer, (said, answer)
        assert "\n" not in answer, answer
        assert len(answer) < 300, answer
    status, text = server.ask("/v2/models/m/generate", raw=b'{"text_input": "x", ')
    assert (status >= 400, "failed to parse the request JSON" in text) == (True, True), (status, text)
    (error,) = server.stream(text_input="x", sampling_parameters={"lora_name": "k"})
    assert "no LoRA 'k'" in error["error"]
    status, answer = server.generate(text_input="x", sampling_parameters={"lora_name": "l"})
    assert status == 200, answer
    large = "x" * 1_000_000
    status, answer = server.generate(text_input=large, sampling_parameters={"max_tokens": 1})
    assert answer["text_output"].startswith(large), answer
    assert server.ready()


def case_metrics(server: Server) -> None:
    names = ("vllm:prompt_tokens_total", "vllm:generation_tokens_total", "vllm:request_generation_tokens_count",
             "vllm:time_to_first_token_seconds_count", "vllm:e2e_request_latency_seconds_count")
    before = {name: server.metric(name) for name in names}
    server.generate(text_input="one two", sampling_parameters={"max_tokens": 3})
    assert until(lambda: server.metric(names[-1]) == before[names[-1]] + 1, 5)
    assert [server.metric(name) - before[name] for name in names] == [2, 3, 1, 1, 1]


def case_engine_killed(server: Server) -> None:
    connection = server.begun()
    answer = connection.getresponse()
    answer.readline()
    (pid,) = core()
    os.kill(pid, signal.SIGKILL)
    rest = answer.read().decode()
    assert "the engine of model m is dead (engine core ended with -9); load the model again" in rest, rest[-300:]
    assert until(lambda: not server.ready(), 15), "still ready"
    assert server.generate(text_input="x")[0] >= 400
    assert server.load("m")[0] == 200
    assert server.generate(text_input="x")[0] == 200
    (pid,) = core()
    os.kill(pid, signal.SIGKILL)  # now while nothing runs
    assert until(lambda: not server.ready(), 15), "still ready, as nobody asked"


def case_load_unload(server: Server) -> None:
    assert server.load("m")[0] == 200
    assert server.generate(text_input="x")[0] == 200
    assert server.load("m", "unload")[0] == 200
    assert until(lambda: not server.ready() and not core() and not stub(), 15), (core(), stub())
    assert server.load("m")[0] == 200


def case_clean_stop(server: Server) -> None:
    assert server.stop() == 0, server.tail()
    assert until(lambda: not core() and not stub(), 5), (core(), stub())
    assert "Task was destroyed" not in server.tail()
    assert "Traceback" not in server.log.read_text(errors="replace")


# -- servers of their own -----------------------------------------------------------------------------------------


def case_models_that_do_not_load(server: Server) -> None:
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        answers = dict(zip(BAD, pool.map(server.load, BAD), strict=True))
    for name, said in BAD.items():
        status, text = answers[name]
        message = json.loads(text)["error"]
        assert status == 400, (name, status, message)
        assert re.search(said, message), (name, message)
        assert "Traceback" not in message
        # Triton adds where it was raised.
        assert "\n" not in message.partition("\n\nAt:")[0], message
    assert until(lambda: not core() and not stub(), 5), (core(), stub())


def case_port_in_use(server: Server, plan: Mapping[str, str]) -> None:
    other = Server(plan, Path(plan["work"]) / "one", f"--http-port={server.http}")
    try:
        assert other.process.wait(20) != 0
        assert "failed to start HTTP service" in other.tail(), other.tail()
    finally:
        other.end()


def case_stub_killed(server: Server) -> None:
    """This server then either says so or dies of it (an exception of its Python backend that nobody catches)."""
    assert server.load("m")[0] == 200
    connection = server.begun()
    connection.getresponse().readline()
    (pid,) = stub()
    os.kill(pid, signal.SIGKILL)
    connection.close()
    assert until(lambda: not core(), 5), "the engine stays behind"
    try:
        status, answer = server.generate(text_input="x")
        assert (status, "is not healthy" in str(answer)) == (400, True), answer
        assert server.ready()  # so the healthcheck of an image asks for a token
        assert server.load("m", "unload")[0] == 200
        assert server.load("m")[0] == 200
        assert server.generate(text_input="x")[0] == 200
    except (OSError, http.client.HTTPException):
        assert server.process.wait(5) != 0, server.tail()
        print("the server died of its stub's death")


def case_stop_during_load(server: Server) -> None:
    """The server waits for the load; then it ends as ever."""
    _loading(server, "slow")
    server.stop()
    assert until(lambda: not core() and not stub(), 5), (core(), stub())
    assert "Traceback" not in server.log.read_text(errors="replace")


def case_killed_during_load(server: Server) -> None:
    _loading(server, "endless")
    server.process.kill()
    server.process.wait()
    assert until(lambda: not core() and not stub(), 5), (core(), stub())


def _loading(server: Server, model: str) -> None:
    connection = http.client.HTTPConnection(HOST, server.http, timeout=30)
    connection.request("POST", f"/v2/repository/models/{model}/load")
    assert until(lambda: f"ModelInstanceInitialize: {model}" in server.log.read_text(errors="replace"), 10)
    time.sleep(0.5)  # it is our code that runs now


def case_server_killed(server: Server) -> None:
    assert server.load("m")[0] == 200
    server.begun()
    server.process.kill()
    server.process.wait()
    assert until(lambda: not core() and not stub(), 5), (core(), stub())


# -- gRPC ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _streaming(server: Server) -> Iterator[tuple[Any, queue.Queue[Any]]]:
    import tritonclient.grpc

    answers: queue.Queue[Any] = queue.Queue()
    with tritonclient.grpc.InferenceServerClient(f"{HOST}:{server.grpc}") as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        yield client, answers


def _tensors(**values: Any) -> list[Any]:
    import numpy as np
    import tritonclient.grpc

    found = []
    for name, value in values.items():
        tensor = tritonclient.grpc.InferInput(name, [1], "BOOL" if isinstance(value, bool) else "BYTES")
        tensor.set_data_from_numpy(np.array([value], bool if isinstance(value, bool) else np.object_))
        found.append(tensor)
    return found


# -- what is served -----------------------------------------------------------------------------------------------

#: Model to what is said when it is loaded.
BAD = {
    "import": r"the backend does not fit the image's packages: No module named 'no_such_module'",
    "fails": "no room for it", "json": r"model.json is no JSON", "nowhere": "the model's directory does not exist",
    "empty": "the model's directory is empty", "other": r"not a model: .* has no config.json",
    "lora": "the directory of LoRA 'l' does not exist: /nowhere",
    "cut": r"is cut short: .*model.safetensors has \d+ of \d+ bytes",
}


def repository(plan: Mapping[str, str]) -> Path:
    """A model repository with the stand-in as engine, `m` and those of `BAD` in it."""
    work = Path(plan["work"])
    (work / "backends").mkdir()
    (work / "backends" / "python").symlink_to(plan["python_backend"])
    shutil.copytree(plan["backend"], work / "backends" / "vllm")
    shutil.copy(plan["standin"], work / "backends" / "vllm")
    place = work / "one"
    write(place, "m", '{"model": "any", "enable_lora": true, "standin": {"delay": 0.02}}',
          REPORT_CUSTOM_METRICS="true", TOOL_CALL_PARSER="t", REASONING_PARSER="r")
    (place / "m" / "1" / "multi_lora.json").write_text('{"l": "adapter"}')
    (place / "m" / "1" / "adapter").mkdir()
    write(place, "slow", '{"model": "any", "standin": {"load_seconds": 1.5}}')
    write(place, "endless", '{"model": "any", "standin": {"load_seconds": 1000}}')
    for name in BAD:
        write(place, name, '{"model": "model"}')
    for name, text in {"json": "{", "nowhere": '{"model": "/nowhere"}', "lora": '{"model": "any", "enable_lora": true}',
                       "fails": '{"model": "any", "standin": {"fail": "no room for it"}}'}.items():
        write(place, name, text)
    (place / "lora" / "1" / "multi_lora.json").write_text('{"l": "/nowhere"}')
    broken = work / "broken.py"
    broken.write_text("import no_such_module\n")
    write(place, "import", '{"model": "any"}', ENGINE=str(broken))
    header = b'{"w": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}'
    for name, files in {"empty": {}, "other": {"a.txt": b""},
                        "cut": {"config.json": b"{}", "model.safetensors":
                                struct.pack("<Q", len(header)) + header + b"123"}}.items():
        (place / name / "1" / "model").mkdir()
        for file, content in files.items():
            (place / name / "1" / "model" / file).write_bytes(content)
    return place


def write(place: Path, name: str, text: str, **parameters: str) -> None:
    version = place / name / "1"
    version.mkdir(parents=True, exist_ok=True)
    (version / "model.json").write_text(text)
    lines = ['backend: "vllm"', "instance_group [ { count: 1 kind: KIND_MODEL } ]"]
    lines += [f"parameters {{ key: {json.dumps(key)} value {{ string_value: {json.dumps(value)} }} }}"
              for key, value in {"ENGINE": "standin", **parameters}.items()]
    (place / name / "config.pbtxt").write_text("\n".join(lines) + "\n")


ONE_SERVER = (case_generate, case_stream, case_parameters_of_the_request, case_chat, case_client_http, case_client_grpc,
              case_bad_requests, case_metrics, case_cancellation_http, case_cancellation_grpc,
              case_hundred_clients_vanish, case_engine_killed, case_load_unload, case_clean_stop)
ANOTHER = (case_models_that_do_not_load, case_port_in_use, case_stop_during_load)
ALONE = (case_stub_killed, case_server_killed, case_killed_during_load)
CASES = tuple(case.__name__[5:] for case in (*ONE_SERVER, *ANOTHER, *ALONE))


def main() -> None:
    with open(sys.argv[1]) as file:
        plan = json.load(file)
    place = repository(plan)
    with open(sys.argv[2], "w") as results:
        def run(case: Callable[..., None], server: Server) -> None:
            began, problem = time.monotonic(), ""
            try:
                case(server, plan) if case is case_port_in_use else case(server)
            except Exception:
                problem = traceback.format_exc()[-3000:] + server.tail()[-1500:]
            results.write(json.dumps({"case": case.__name__[5:], "problem": problem,
                                      "seconds": round(time.monotonic() - began, 2)}) + "\n")
            results.flush()

        for cases, options in ((ONE_SERVER, ["--load-model=m"]), (ANOTHER, []),
                               *(((case,), []) for case in ALONE)):
            server = Server(plan, place, *options)
            try:
                server.up()
                for case in cases:
                    run(case, server)
            finally:
                server.end()


if __name__ == "__main__":
    main()
