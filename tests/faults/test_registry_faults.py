"""Registries that lie and lines that break. The lying one is ours; the broken line is in front of a real registry."""

import http.server
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests

from cache.canonical import sha256
from cache.errors import FetchError, IntegrityError
from cache.store import Store
from lock.fetch import Policy, Wanted, fetch
from oci import media
from oci.base import OciSource, lock_base
from oci.push import push
from oci.reference import parse_reference
from oci.registry import Patience, Registry
from oci.upload import upload
from tests.support.images import ARM64, sample
from tests.support.registry import RunningRegistry, serving
from tests.support.tarballs import UBUNTU, make_tar, packed

QUICK = Patience(attempts=2, backoff=0.01, stall=10)
ZSTD = {"name": "zstd", "level": 3}


def evil_registry(spoil: Callable[[str, bytes], bytes]) -> type[http.server.BaseHTTPRequestHandler]:
    """A registry with one base image at `evil/base:1` that gives `spoil(path, bytes)` for what is asked."""
    layers = [packed(make_tar(members), "gzip") for members in UBUNTU]
    config = json.dumps({"os": "linux", "architecture": "arm64", "config": {},
                         "rootfs": {"type": "layers", "diff_ids": [diff_id for _, _, diff_id in layers]}}).encode()
    manifest = json.dumps({
        "schemaVersion": 2, "mediaType": media.MANIFEST,
        "config": {"mediaType": media.CONFIG, "digest": sha256(config), "size": len(config)},
        "layers": [{"mediaType": kind, "digest": sha256(data), "size": len(data)} for data, kind, _ in layers],
    }).encode()
    content = {f"/v2/evil/base/blobs/{sha256(data)}": data for data in (config, *(data for data, _, _ in layers))}
    content |= {f"/v2/evil/base/manifests/{name}": manifest for name in ("1", sha256(manifest))}

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Silent."""

        def do_GET(self) -> None:
            if self.path not in content:
                self.send_error(404)
                return
            data = spoil(self.path, content[self.path])
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            if "/manifests/" in self.path:
                self.send_header("Docker-Content-Digest", sha256(content[self.path]))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        do_HEAD = do_GET

    return Handler


def flipped(data: bytes) -> bytes:
    return data[:-5] + bytes([data[-5] ^ 1]) + data[-4:]


@pytest.mark.parametrize("part", ["/manifests/", "/blobs/"])
@pytest.mark.parametrize("spoil", [flipped, lambda data: data + b" "], ids=["flipped", "longer"])
def test_a_registry_with_wrong_bytes_is_refused(tmp_path: Path, part: str, spoil: Callable[[bytes], bytes]) -> None:
    store = Store.open(tmp_path / "store")
    with serving(evil_registry(lambda path, data: spoil(data) if part in path else data)) as host:
        with pytest.raises(IntegrityError) as caught:
            lock_base(f"{host}/evil/base:1", ARM64, store=store, environ={}, patience=QUICK)
        assert host in str(caught.value.where)
        assert caught.value.expected
        assert caught.value.found
    if part == "/manifests/":
        assert not [path for path in (store.root / "blobs").rglob("*") if path.is_file()]
    for path in (store.root / "blobs").rglob("*"):
        assert path.is_dir() or sha256(path.read_bytes()) == f"sha256:{path.name}"


def test_the_same_registry_is_fine_when_honest(tmp_path: Path) -> None:
    with serving(evil_registry(lambda path, data: data)) as host:
        store = Store.open(tmp_path / "store")
        locked = lock_base(f"{host}/evil/base:1", ARM64, store=store, environ={}, patience=QUICK)
        assert locked.python["version"] == "3.12"


def test_a_tag_whose_digest_was_locked_cannot_be_replaced(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    with serving(evil_registry(lambda path, data: data)) as host, pytest.raises(FetchError, match="no such image"):
        lock_base(f"{host}/evil/base:1@sha256:{'0' * 64}", ARM64, store=store, environ={}, patience=QUICK)


def test_fetching_a_locked_layer_from_it_is_refused_too(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    data = packed(make_tar(UBUNTU[0]), "gzip")[0]
    wanted = Wanted("oci", "layer 0", "", sha256(data), len(data), sha256(data)[7:], "")
    with serving(evil_registry(lambda path, data: flipped(data))) as host:
        item = Wanted(wanted.kind, wanted.name, "", wanted.file, wanted.size, wanted.sha256, f"{host}/evil/base")
        with pytest.raises(IntegrityError):
            fetch(store, [item], {"oci": OciSource(environ={}, patience=QUICK)}, policy=Policy(attempts=1))
    assert not store.has(sha256(data))


class Once:
    """A fault for the first request of a kind."""

    def __init__(self, method: str, marker: str, status: int | None, times: int = 1) -> None:
        self.method, self.marker, self.status, self.left = method, marker, status, times

    def __call__(self, method: str, path: str, length: int) -> int | None:
        if method != self.method or self.marker not in path or not self.left:
            return None
        self.left -= 1
        if self.status is None:
            raise ConnectionError
        return self.status


def client_of(registry: RunningRegistry) -> Registry:
    return Registry.connect(parse_reference(f"{registry.host}/x"), patience=QUICK, environ={})


@pytest.mark.parametrize("status", [None, 500, 503], ids=["broken off", "500", "503"])
@pytest.mark.parametrize("piece", [0, 2, 3], ids=["first", "third", "last"])
def test_a_broken_piece_is_sent_again(registry: RunningRegistry, store: Store, status: int | None, piece: int) -> None:
    name = f"line/{status or 'none'}-{piece}"
    blob = store.put(f"{name:16}".encode() * 200_000)
    sent = {"pieces": 0}
    once = Once("PUT" if piece == 3 else "PATCH", name, status)

    def fault(method: str, path: str, length: int) -> int | None:
        if method in ("PATCH", "PUT"):
            sent["pieces"] += 1
            return once(method, path, length) if sent["pieces"] > piece else None
        return None

    registry.fault = fault
    try:
        assert upload(client_of(registry), name, blob, store.path_of(blob.digest), piece=1 << 20) == "sent"
    finally:
        registry.fault = None
    assert once.left == 0
    assert b"".join(client_of(registry).blob(name, blob.digest, blob.size)) == store.read(blob.digest)


def test_an_answer_that_is_lost_costs_no_second_sending(registry: RunningRegistry, store: Store) -> None:
    blob = store.put(b"taken, but not told\n" * 5000)
    once = Once("PUT", "line/lost", 500)

    def fault(method: str, path: str, length: int) -> int | None:
        if method == "PUT" and once.left:
            data = store.read(blob.digest)
            done = requests.put(f"http://{registry.direct}{path}", data=data, timeout=30)
            assert done.status_code == 201
        return once(method, path, length)

    registry.fault = fault
    registry.requests.clear()
    try:
        assert upload(client_of(registry), "line/lost", blob, store.path_of(blob.digest)) == "sent"
    finally:
        registry.fault = None
    assert [request.method for request in registry.uploads()] == ["PUT"]


def test_a_line_that_keeps_breaking_is_given_up(registry: RunningRegistry, store: Store) -> None:
    blob = store.put(b"again and again" * 300_000)
    registry.fault = Once("PATCH", "hopeless", None, times=99)
    try:
        with pytest.raises(FetchError, match="does not answer"):
            upload(client_of(registry), "line/hopeless", blob, store.path_of(blob.digest), piece=1 << 20)
    finally:
        registry.fault = None


def test_a_push_that_was_cut_goes_on(registry: RunningRegistry, store: Store) -> None:
    made = sample(store)
    reference = f"{registry.host}/line/cut:1"

    def attempt() -> Any:
        return push(store, made["manifest"].digest, reference, compression=ZSTD, registry=client_of(registry), jobs=1)

    registry.fault = Once("PUT", "/manifests/", 500, times=2)
    try:
        with pytest.raises(FetchError):
            attempt()
    finally:
        registry.fault = None
    place = parse_reference(reference)
    with pytest.raises(FetchError, match="no such"):
        client_of(registry).manifest(place.repository, place.tag)
    assert set(attempt().how.values()) == {"there"}
    assert client_of(registry).manifest(place.repository, place.tag).data["config"]["digest"] == made["config"].digest


def test_a_blob_altered_in_the_store_does_not_reach_a_registry(registry: RunningRegistry, store: Store) -> None:
    blob = store.put(b"right content" * 1000)
    path = store.path_of(blob.digest)
    path.unlink()
    path.write_bytes(b"wrong content" * 1000)
    with pytest.raises(FetchError, match="not what was sent") as caught:
        upload(client_of(registry), "line/altered", blob, path)
    assert "store:verify" in str(caught.value.cure)
    with pytest.raises(FetchError):
        list(client_of(registry).blob("line/altered", blob.digest, blob.size))


def test_a_blob_that_shrinks_while_it_is_sent_is_no_hang(registry: RunningRegistry, store: Store) -> None:
    blob = store.put(b"x" * 100_000)
    path = store.path_of(blob.digest)
    path.unlink()
    path.write_bytes(b"x" * 50_000)
    patience = Patience(attempts=1, stall=1)
    client = Registry.connect(parse_reference(f"{registry.host}/x"), patience=patience, environ={})
    with pytest.raises((FetchError, IntegrityError)):
        upload(client, "line/shrunk", blob, path)


def test_a_registry_that_refuses_pushes_does_so_before_anything_is_compressed(store: Store) -> None:
    class Denying(http.server.BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Silent."""

        def do_HEAD(self) -> None:
            self.send_response(403)
            self.end_headers()

    def make(params: Any, layer: str) -> Any:
        raise AssertionError("compressed for nothing")

    image = sample(store)["manifest"].digest
    with serving(Denying) as host, pytest.raises(FetchError, match="refuses"):
        push(store, image, f"{host}/x:1", compression=ZSTD, make=make)
