"""Uploads to a registry that takes half of a piece, or forgets; a real one takes them in tests/e2e and tests/faults."""

import http.server
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cache.errors import FetchError
from cache.store import Store
from oci.registry import Patience, Registry
from oci.upload import upload
from tests.support.registry import serving

PIECE = 1000


class Forgetful:
    """Takes uploads into `data`; the second PATCH breaks after it kept `kept` bytes of all that came."""

    def __init__(self, kept: int) -> None:
        self.kept, self.data, self.patches, self.done = kept, b"", 0, False
        self.ranges: list[str] = []

    def handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        state = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:
                """Silent."""

            def reply(self, status: int, **headers: str) -> None:
                self.send_response(status)
                for name, value in {"Content-Length": "0", **headers}.items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()

            def do_HEAD(self) -> None:
                self.reply(200 if state.done else 404)

            def do_POST(self) -> None:
                self.reply(202, Location="/v2/a/blobs/uploads/one?n=0", OCI_Chunk_Min_Length=str(PIECE))

            def do_PATCH(self) -> None:
                state.data += self.rfile.read(int(self.headers["Content-Length"]))
                state.ranges.append(self.headers["Content-Range"])
                state.patches += 1
                if state.patches == 2:
                    state.data = state.data[:state.kept]
                    self.reply(500)
                else:
                    self.reply(202, Location=f"/v2/a/blobs/uploads/one?n={state.patches}")

            def do_GET(self) -> None:
                self.reply(204, Range=f"0-{max(len(state.data) - 1, 0)}", Location="/v2/a/blobs/uploads/one?n=asked")

            def do_PUT(self) -> None:
                state.data += self.rfile.read(int(self.headers["Content-Length"]))
                state.done = True
                self.reply(201)

        return Handler


@contextmanager
def forgetful(kept: int) -> Iterator[tuple[Forgetful, Registry]]:
    state = Forgetful(kept)
    with serving(state.handler()) as host:
        yield state, Registry(host, secure=False, patience=Patience(backoff=0.001), environ={"HOME": "/nonexistent"})


@pytest.mark.parametrize("kept", [PIECE, PIECE + 400, 2 * PIECE])
def test_a_broken_piece_goes_on_where_the_registry_says(tmp_path: Path, kept: int) -> None:
    store = Store.open(tmp_path / "store")
    blob = store.put(bytes(range(250)) * 14)
    with forgetful(kept) as (state, registry):
        assert upload(registry, "a", blob, store.path_of(blob.digest), piece=10) == "sent"
        assert state.data == store.read(blob.digest)
        assert state.ranges[:2] == ["0-999", "1000-1999"]
        if kept < 2 * PIECE:
            assert state.ranges[2] == f"{kept}-1999"


def test_a_registry_that_lost_what_it_confirmed_is_given_up(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    blob = store.put(bytes(range(250)) * 14)
    with forgetful(400) as (state, registry):
        with pytest.raises(FetchError):
            upload(registry, "a", blob, store.path_of(blob.digest), piece=10)
        assert state.patches == 2
        assert not state.done
