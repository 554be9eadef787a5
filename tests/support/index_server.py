"""A real HTTP server with a package index on it, which can be made to misbehave.

    with IndexServer(directory) as server:      # serves the wheels and sdists below `directory`
        server.url                              # http://127.0.0.1:<port>/simple/
        server.fault("a-1-py3-none-any.whl", "truncate", times=2)
        server.count("a-1-py3-none-any.whl")    # requests so far

Any file below the directory is at /files/<path>; /simple/<project>/ lists those whose names are of the project, in JSON
or HTML as the client asks; /links/ lists all. Each request runs in a thread of its own.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import html
import json
import os
import random
import re
import socket
import ssl
import struct
import threading
import time
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from lock.sources import Wanted

#: Faults: what they do to one answer.
FAULTS = {
    "missing": "404",
    "error": "500 (`value`: another status)",
    "wrong": "right length, other bytes",
    "truncate": "promises all bytes, sends half of them, closes",
    "short": "a whole, shorter body",
    "long": "a whole, longer body",
    "endless": "does not say how long, and adds 64 MiB",
    "drip": "one byte every 50 ms",
    "stall": "half of the bytes, then silence for `value` seconds (default 30)",
    "reset": "closes the connection before any answer",
    "no-range": "knows no ranges: always 200 and the whole",
    "bad-range": "206 from another offset than asked",
    "bad-total": "206 of a whole of another length",
    "slow": "64 KiB every `value` seconds (default 0.05)",
}


@dataclass
class Request:
    """One request that came in. `headers` have lower-case names."""

    method: str
    path: str
    headers: Mapping[str, str]


@dataclass
class Fault:
    kind: str
    times: int
    value: float | None = None


@dataclass
class Options:
    """How the index describes its files.

    Attributes:
        json: serve PEP 691 JSON to those who ask for it.
        hashes, sizes: say them.
        uploaded: file name to RFC 3339 time.
        yanked: file name to reason.
        requires_python: file name to specifier.
        metadata: serve METADATA of wheels apart and say its hash (PEP 658).
    """

    json: bool = True
    hashes: bool = True
    sizes: bool = True
    uploaded: Mapping[str, str] = field(default_factory=dict)
    yanked: Mapping[str, str] = field(default_factory=dict)
    requires_python: Mapping[str, str] = field(default_factory=dict)
    metadata: bool = False


class IndexServer:
    """See the module text.

    Args:
        directory: what is served; looked at anew for each request.
        auth: user and password that every request must bring.
        tls: certificate and key, PEM files.
        token: value of an `Authorization: Bearer` header that every request must bring.
    """

    def __init__(self, directory: Path, *, auth: tuple[str, str] | None = None, tls: tuple[Path, Path] | None = None,
                 token: str | None = None, options: Options | None = None) -> None:
        self.directory = directory
        self.auth = auth
        self.token = token
        self.options = options or Options()
        self.requests: list[Request] = []
        self._faults: dict[str, Fault] = {}
        self._mutex = threading.Lock()
        self._scheme = "https" if tls else "http"
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.index = self
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> IndexServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Take the server down: from now on connections are refused."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def root(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self.port}/"

    @property
    def url(self) -> str:
        """The simple index."""
        return self.root + "simple/"

    @property
    def links(self) -> str:
        """A page with a link to every file."""
        return self.root + "links/"

    def with_credentials(self, user: str, password: str) -> str:
        return self.url.replace("://", f"://{user}:{password}@")

    def fault(self, path_end: str, kind: str, times: int = -1, value: float | None = None) -> None:
        """Let answers to paths that end so go wrong, `times` times (-1: always)."""
        assert kind in FAULTS, kind
        self._faults[path_end] = Fault(kind, times, value)

    def heal(self) -> None:
        self._faults.clear()

    def count(self, path_end: str = "", method: str = "") -> int:
        """Requests so far whose path ends so."""
        with self._mutex:
            return sum(1 for item in self.requests if item.path.endswith(path_end) and item.method.startswith(method))

    def paths(self) -> list[str]:
        with self._mutex:
            return [item.path for item in self.requests]

    def files(self) -> list[Path]:
        return sorted(path for path in self.directory.rglob("*") if path.is_file())

    def take_fault(self, path: str) -> Fault | None:
        with self._mutex:
            for end, fault in self._faults.items():
                if path.endswith(end) and fault.times != 0:
                    fault.times -= 1
                    return fault
        return None

    def entries(self, project: str | None) -> list[dict[str, Any]]:
        """What a page says of each file, in the words of PEP 691; None: of all projects."""
        told, found = self.options, []
        for path in self.files():
            if project is not None and _project(path.name) != project:
                continue
            item: dict[str, Any] = {"filename": path.name, "hashes": {}}
            item["url"] = f"{self.root}files/{path.relative_to(self.directory).as_posix()}"
            if told.hashes:
                item["hashes"] = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
            if told.sizes:
                item["size"] = path.stat().st_size
            for key, known in (("upload-time", told.uploaded), ("yanked", told.yanked),
                               ("requires-python", told.requires_python)):
                if path.name in known:
                    item[key] = known[path.name]
            if told.metadata and path.suffix == ".whl":
                item["core-metadata"] = {"sha256": hashlib.sha256(metadata_of(path)).hexdigest()}
            found.append(item)
        return found


def metadata_of(wheel: Path) -> bytes:
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA")))


def client_environment(home: Path, **more: str) -> dict[str, str]:
    """An environment in which pip and uv are configured to nothing but what `more` says."""
    quiet = {"HOME": str(home), "PATH": os.environ["PATH"], "PIP_CONFIG_FILE": os.devnull, "UV_NO_CONFIG": "1",
             "UV_CACHE_DIR": str(home / "uv-cache")}
    return {**quiet, **more}


def write_indexes(path: Path, entries: Mapping[str, Mapping[str, str]]) -> Path:
    """Write a list of indexes: `default` as the client has it, and these."""
    lines = ["format: stagecraft.indexes.v1", "indexes:", "  default:", "    type: client"]
    for name, entry in entries.items():
        lines += [f"  {name}:", *(f'    {key}: "{value}"' for key, value in entry.items())]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def locked_file(directory: Path, name: str, size: int = 300_000) -> Wanted:
    """Put a file of random bytes, called like a wheel, into a directory; returns how a lock names it."""
    data = random.Random(name).randbytes(size)
    directory.mkdir(exist_ok=True)
    path = directory / f"{name}-1-py3-none-any.whl"
    path.write_bytes(data)
    return Wanted("wheel", name, "1", path.name, size, hashlib.sha256(data).hexdigest(), "jetson")


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    index: IndexServer

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is no news here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or each short answer takes 40 ms and more
    server: _Server

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""

    def do_HEAD(self) -> None:
        self._answer(head=True)

    def do_GET(self) -> None:
        self._answer(head=False)

    def _answer(self, head: bool) -> None:
        index, path = self.server.index, unquote(urlsplit(self.path).path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        with index._mutex:
            index.requests.append(Request(self.command, path, headers))
        if not self._let_in(headers):
            return self._whole(401, b"who are you?", "text/plain", head, {"WWW-Authenticate": 'Basic realm="index"'})
        fault = index.take_fault(path)
        if fault is not None and fault.kind in ("missing", "error"):
            status = 404 if fault.kind == "missing" else int(fault.value or 500)
            return self._whole(status, b"fault", "text/plain", head)
        if fault is not None and fault.kind == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            return None
        if path.startswith("/files/"):
            return self._file(path.removeprefix("/files/"), fault, head)
        if path == "/links/":
            return self._page(None, head)
        if match := re.fullmatch(r"/simple/([^/]+)/", path):
            if not index.entries(match[1]):
                return self._whole(404, b"no such project", "text/plain", head)
            return self._page(match[1], head)
        return self._whole(200 if path == "/simple/" else 404, b"", "text/html", head)

    def _let_in(self, headers: Mapping[str, str]) -> bool:
        index, told = self.server.index, headers.get("authorization", "")
        if index.token is not None:
            return told == f"Bearer {index.token}"
        if index.auth is not None:
            return told == "Basic " + base64.b64encode(":".join(index.auth).encode()).decode()
        return True

    def _page(self, project: str | None, head: bool) -> None:
        index = self.server.index
        entries = index.entries(project)
        if index.options.json and project and "application/vnd.pypi.simple.v1+json" in self.headers.get("Accept", ""):
            data = {"meta": {"api-version": "1.1"}, "name": project, "versions": [], "files": entries}
            return self._whole(200, json.dumps(data).encode(), "application/vnd.pypi.simple.v1+json", head)
        lines = []
        for item in entries:
            digest = item["hashes"].get("sha256")
            extra = "".join(f' data-{key}="{html.escape(item[key])}"' for key in ("yanked", "requires-python")
                            if key in item)
            if "core-metadata" in item:
                extra += f' data-core-metadata="sha256={item["core-metadata"]["sha256"]}"'
            href = item["url"] + (f"#sha256={digest}" if digest else "")
            lines.append(f'<a href="{href}"{extra}>{item["filename"]}</a><br>')
        return self._whole(200, ("<!DOCTYPE html><html><body>" + "\n".join(lines)).encode(), "text/html", head)

    def _whole(self, status: int, body: bytes, kind: str, head: bool, extra: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-cache")
        for name, value in (extra or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if not head:
            self.wfile.write(body)

    def _file(self, name: str, fault: Fault | None, head: bool) -> None:
        index, path = self.server.index, self.server.index.directory / name
        wheel = path.with_suffix("")
        if index.options.metadata and path.suffix == ".metadata" and wheel.is_file():
            body = metadata_of(wheel)
        elif path.is_file():
            body = path.read_bytes()
        else:
            return self._whole(404, b"no such file", "text/plain", head)
        kind = fault.kind if fault else ""
        body = {"wrong": bytes(byte ^ 1 for byte in body), "short": body[:len(body) // 2],
                "long": body + b"more"}.get(kind, body)
        begin, end = 0, len(body)
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if match and kind != "no-range":
            begin = int(match[1])
            if begin >= len(body):
                return self._whole(416, b"", "text/plain", head, {"Content-Range": f"bytes */{len(body)}"})
            end = min(end, int(match[2]) + 1) if match[2] else end
            told, total = begin + (kind == "bad-range"), len(body) + (kind == "bad-total")
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {told}-{end - 1}/{total}")
        else:
            self.send_response(200)
        self.send_header("Content-Type", "application/octet-stream")
        if kind == "endless":
            self.close_connection = True
        else:
            self.send_header("Content-Length", str(end - begin))
        self.end_headers()
        if not head:
            with contextlib.suppress(ConnectionError):
                self._body(body[begin:end], kind, fault)
        return None

    def _body(self, body: bytes, kind: str, fault: Fault | None) -> None:
        half = max(1, len(body) // 2)
        pause = fault.value if fault is not None and fault.value is not None else None
        if kind in ("truncate", "stall"):
            self.wfile.write(body[:half])
            self.wfile.flush()
            if kind == "stall":
                time.sleep(30.0 if pause is None else pause)
            self.close_connection = True
        elif kind in ("drip", "slow"):
            step, wait = (1, 0.05) if kind == "drip" else (1 << 16, 0.05)
            for place in range(0, len(body), step):
                self.wfile.write(body[place:place + step])
                self.wfile.flush()
                time.sleep(wait if pause is None else pause)
        else:
            self.wfile.write(body)
            for _ in range(64 if kind == "endless" else 0):
                self.wfile.write(bytes(1 << 20))


def _project(file: str) -> str:
    stem = file.split("-", 1)[0] if file.endswith(".whl") else file.rpartition("-")[0]
    return re.sub(r"[-_.]+", "-", stem).lower()
