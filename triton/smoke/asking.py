"""The image's server as `driver.py` sees it: its process, what it said, and what it answers."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

HOST, HTTP, GRPC, METRICS = "127.0.0.1", 8000, 8001, 8002


class Failed(Exception):
    """The server does not do what the case is about; in one line."""


class NotJudged(Exception):
    """Nothing can be said; in one line, why."""


class Answer:
    """Status, and the body as text and, if it is JSON, as that."""

    def __init__(self, status: int, body: bytes) -> None:
        self.status, self.text = status, body.decode("utf-8", "replace")
        try:
            self.json: Any = json.loads(self.text)
        except ValueError:
            self.json = None

    def expect(self, *statuses: int) -> Answer:
        if self.status not in statuses:
            wanted = " or ".join(map(str, statuses))
            raise Failed(f"HTTP {self.status} instead of {wanted}: {one_line(self.error)}")
        return self

    @property
    def error(self) -> str:
        return str(self.json["error"]) if isinstance(self.json, dict) and "error" in self.json else self.text


def one_line(text: str, length: int = 300) -> str:
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1] + "…"


class Server:
    """The server process, and what it said."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.plan, self.model = plan, plan["model"]
        self.seconds: dict[str, float] = plan["seconds"]
        self.lines: deque[str] = deque(maxlen=400)
        #: Opens the model-control API: the entrypoint takes it for its own.
        self.key = secrets.token_hex(16)
        self.process = subprocess.Popen(
            plan["command"], env={**os.environ, "STAGECRAFT_CONTROL_KEY": self.key}, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for data in self.process.stdout or ():
            line = data.decode("utf-8", "replace").rstrip()
            self.lines.append(line)
            print(line, flush=True)

    # -- requests

    def ask(self, path: str, body: Any = None, *, method: str = "", port: int = HTTP, raw: bytes | None = None,
            headers: dict[str, str] | None = None) -> Answer:
        """GET, or POST with `body` as JSON (`raw`: as it is)."""
        data = raw if raw is not None else None if body is None else json.dumps(body).encode()
        connection = http.client.HTTPConnection(HOST, port, timeout=self.seconds["request"])
        try:
            connection.request(method or ("GET" if data is None else "POST"), path, data,
                               {"Content-Type": "application/json", **(headers or {})})
            answer = connection.getresponse()
            return Answer(answer.status, answer.read())
        except (OSError, http.client.HTTPException) as error:
            raise Failed(self.gone() or f"{path}: {said(error)}") from error
        finally:
            connection.close()

    def generate(self, **inputs: Any) -> dict[str, Any]:
        """One answer of the model. `sampling` is an object."""
        answer = self.ask(f"/v2/models/{self.model}/generate", encoded(inputs)).expect(200)
        if not isinstance(answer.json, dict):
            raise Failed(f"an answer that is no JSON object: {one_line(answer.text)}")
        return answer.json

    @contextlib.contextmanager
    def stream(self, **inputs: Any) -> Iterator[Iterator[dict[str, Any]]]:
        """The answers of a stream, as they come. Leaving the block closes the connection, whatever is still to come."""
        connection = http.client.HTTPConnection(HOST, HTTP, timeout=self.seconds["request"])
        try:
            connection.request("POST", f"/v2/models/{self.model}/generate_stream",
                               json.dumps(encoded({"stream": True, **inputs})), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            if answer.status != 200:
                Answer(answer.status, answer.read()).expect(200)
            yield events(answer)
        except (OSError, http.client.HTTPException) as error:
            raise Failed(self.gone() or f"the stream broke off: {said(error)}") from error
        finally:
            if connection.sock is not None:
                with contextlib.suppress(OSError):
                    connection.sock.shutdown(socket.SHUT_RDWR)
            connection.close()

    def ready(self) -> bool:
        with contextlib.suppress(Failed):
            return self.ask(f"/v2/models/{self.model}/ready").status == 200
        return False

    def metric(self, name: str) -> float | None:
        """The sum of a metric over its labels; None if there is none."""
        text = self.ask("/metrics", port=METRICS).expect(200).text
        found = re.findall(rf"^{re.escape(name)}(?:\{{[^}}]*\}})? (\S+)$", text, re.MULTILINE)
        return sum(map(float, found)) if found else None

    def control(self, action: str, *, allowed: bool = True) -> Answer:
        """`load` or `unload` the model, with the key or without."""
        headers = {"closed": self.key} if allowed else {}
        return self.ask(f"/v2/repository/models/{self.model}/{action}", {}, headers=headers)

    # -- life and death

    def gone(self) -> str:
        """How the server ended, if it has, and why."""
        try:
            status = self.process.wait(0.2)
        except subprocess.TimeoutExpired:
            return ""
        self._reader.join(2)
        how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit {status}"
        why = self.reason()
        return f"the server ended ({how})" + (f": {why}" if why else "")

    def reason(self) -> str:
        """What of its output says best why it does not serve; without anything telling, its last error if it ended."""
        errors = [line for line in self.lines if ERROR.match(line)]
        for pattern in TELLING:
            for line in errors:
                found = pattern.search(line)
                if found:
                    # Behind it stands where in the backend it was raised.
                    return one_line(found[1].partition("\\n\\nAt:")[0].strip('" '))
        ended = self.process.poll() is not None  # one that runs may have complained of the GPU that is not there
        return one_line(ERROR.sub("", errors[-1]).strip('" ')) if errors and ended else ""

    def await_ready(self) -> float:
        """Wait until the model is ready; seconds that it took."""
        started = time.monotonic()
        while not self.ready():
            gone = self.gone()
            if gone:
                raise Failed(gone)
            if time.monotonic() - started > self.seconds["ready"]:
                why = self.reason()
                raise Failed(f"not ready after {self.seconds['ready']:g} s" + (f": {why}" if why else ""))
            time.sleep(0.2)
        return time.monotonic() - started

    def until(self, holds: Callable[[], bool], seconds: float) -> bool:
        end = time.monotonic() + seconds
        while not holds():
            if time.monotonic() > end:
                return False
            time.sleep(0.2)
        return True


#: Lines of the server that are errors; what of them tells most, best first.
ERROR = re.compile(r"^(?:E\d{4} [\d:.]+ \d+ \S+\] |error: |entrypoint: (?!warning))")
TELLING = (re.compile(r"^(entrypoint: .*)"), re.compile(r"(failed to load '[^']*'.*)"))


def said(error: BaseException) -> str:
    return one_line(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)


def encoded(inputs: dict[str, Any]) -> dict[str, Any]:
    """Inputs of a request: objects and lists are strings of JSON."""
    inputs = {"sampling_parameters" if name == "sampling" else name: value for name, value in inputs.items()}
    return {name: json.dumps(value) if isinstance(value, (dict, list)) else value for name, value in inputs.items()}


def events(answer: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """The objects of server-sent events.

    Raises:
        Failed: one says an error.
    """
    for line in answer:
        if line.startswith(b"data:"):
            event = json.loads(line[5:])
            if "error" in event:
                raise Failed(f"the stream says: {one_line(str(event['error']))}")
            yield event


def text_of(answers: list[dict[str, Any]], name: str = "text_output") -> str:
    return "".join(str(answer.get(name) or "") for answer in answers)
