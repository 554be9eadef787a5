"""A real registry (Debian's `docker-registry`) on a free loopback port, behind a proxy that counts requests.

Also images to put into it, made with the project's own parts.
"""

from __future__ import annotations

import http.client
import http.server
import os
import shutil
import signal
import socket
import socketserver
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Request:
    """One request as the proxy saw it; `sent` is the size of its body."""

    method: str
    path: str
    sent: int
    status: int


@dataclass
class RunningRegistry:
    """`host` goes through the proxy, `direct` to the registry itself; both `127.0.0.1:PORT`."""

    host: str
    direct: str
    storage: Path
    requests: list[Request] = field(default_factory=list)
    #: Looked at before a request is passed on: a status to answer with instead, or None. May raise to hang up.
    fault: Callable[[str, str, int], int | None] | None = None

    def uploads(self) -> list[Request]:
        """Requests that carried bytes of a blob."""
        return [r for r in self.requests if r.method in ("PUT", "PATCH") and "/blobs/uploads/" in r.path and r.sent]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process that we started, by its id."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def running_registry(directory: Path, *, htpasswd: str = "", certificate: tuple[Path, Path] | None = None,
                     ) -> Iterator[RunningRegistry]:
    """A registry with its storage below `directory`.

    Args:
        htpasswd: content of an htpasswd file (bcrypt); then it wants HTTP basic.
        certificate: PEM files with certificate chain and key; then it speaks TLS, without the proxy.
    """
    directory.mkdir(parents=True, exist_ok=True)
    port, storage = free_port(), directory / "storage"
    lines = ["version: 0.1", "log: {level: warn, accesslog: {disabled: true}}",
             f"storage: {{filesystem: {{rootdirectory: {storage}}}, delete: {{enabled: true}}}}",
             f"http:\n  addr: 127.0.0.1:{port}"]
    if certificate:
        lines.append(f"  tls: {{certificate: {certificate[0]}, key: {certificate[1]}}}")
    if htpasswd:
        (directory / "htpasswd").write_text(htpasswd)
        lines.append(f"auth: {{htpasswd: {{realm: test, path: {directory / 'htpasswd'}}}}}")
    config = directory / "config.yml"
    config.write_text("\n".join(lines) + "\n")
    program = shutil.which("docker-registry", path=os.environ["PATH"] + ":/usr/bin")
    assert program, "tests/apt.txt names docker-registry: ./doit test installs it"
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen([program, "serve", str(config)], stdout=log, stderr=log)
    direct = f"127.0.0.1:{port}"
    try:
        _wait_for_port(port, process, directory / "log")
        registry = RunningRegistry(direct, direct, storage)
        if certificate:
            yield registry
        else:
            with _proxy(registry):
                yield registry
    finally:
        stop(process)


def _wait_for_port(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        if process.poll() is not None:
            break
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise AssertionError("the registry did not start:\n" + log.read_text(errors="replace"))


@contextmanager
def serving(handler: type[http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    """An HTTP server of our own on a free loopback port; gives `127.0.0.1:PORT`."""
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler, bind_and_activate=False)
    server.allow_reuse_address = True
    server.daemon_threads = True
    server.server_bind()
    server.server_activate()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def _proxy(registry: RunningRegistry) -> Iterator[None]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            """Silent: what was asked is in `registry.requests`."""

        def pass_on(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            if registry.fault is not None:
                try:
                    status = registry.fault(self.command, self.path, length)
                except ConnectionError:
                    self.rfile.read(length // 2)
                    self.close_connection = True
                    self.connection.close()
                    return
                if status is not None:
                    self.rfile.read(length)
                    registry.requests.append(Request(self.command, self.path, length, status))
                    self.send_response(status)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
            body = self.rfile.read(length) if length else b""
            connection = http.client.HTTPConnection(registry.direct, timeout=60)
            # All headers as they came: Host (the registry makes its Location from it), and each of several Accept.
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                connection.putheader(name, value)
            connection.endheaders(body or None)
            answer = connection.getresponse()
            registry.requests.append(Request(self.command, self.path, length, answer.status))
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("connection", "transfer-encoding", "date", "server"):
                    self.send_header(name, value)
            data = answer.read()
            if answer.getheader("Content-Length") is None and answer.status != 204:
                self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
            connection.close()

        do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = pass_on

    with serving(Handler) as host:
        registry.host = host
        yield
