"""The scripts of /opt/stagecraft, loaded from where they lie, and a server that speaks Triton's HTTP endpoints."""

from __future__ import annotations

import importlib.util
import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).resolve().parents[2] / "triton" / "serve"


def module(name: str) -> ModuleType:
    """`repository` or `healthcheck`."""
    if name not in sys.modules:
        specification = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
        assert specification is not None
        assert specification.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(sys.modules[name])
    return sys.modules[name]


LANGUAGE = {"backend": "vllm", "input": [{"name": "text_input"}], "output": [{"name": "text_output"}]}


class Triton:
    """What the server answers: `answers[path]` is a status and a document, or a function of the body to both."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {"/v2/health/live": (200, None)}
        self.asked: list[tuple[str, Any]] = []
        self.port = 0

    def model(self, name: str, config: dict[str, Any] | None = None, *, ready: int = 200,
              generate: Callable[[Any], tuple[int, Any]] | tuple[int, Any] = (200, {"text_output": "!"})) -> None:
        self.answers |= {f"/v2/models/{name}/ready": (ready, None),
                         f"/v2/models/{name}/config": (200, config or {**LANGUAGE, "name": name}),
                         f"/v2/models/{name}/generate": generate}


@contextmanager
def running_triton() -> Iterator[Triton]:
    """A real HTTP server on a port of its own."""
    triton = Triton()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length", "0"))
            body = json.loads(self.rfile.read(length)) if length else None
            triton.asked.append((self.path, body))
            found = triton.answers.get(self.path, (404, {"error": "unknown"}))
            status, document = found(body) if callable(found) else found
            text = b"" if document is None else json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    triton.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield triton
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
