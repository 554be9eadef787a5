"""Files that are locked by address: mirrors first, checked by their hash."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from cache.errors import FetchError, IntegrityError
from cache.store import Store
from lock.url_source import lock_url
from tests.support.index_server import IndexServer

CONTENT = b"headers" * 100
SHA = hashlib.sha256(CONTENT).hexdigest()
AWAY = "http://127.0.0.1:9/release/boost.tar.gz"


def test_fetched_once_with_its_size(store: Store, tmp_path: Path) -> None:
    (tmp_path / "boost.tar.gz").write_bytes(CONTENT)
    with IndexServer(tmp_path) as server:
        url = server.url.replace("/simple/", "/files/") + "boost.tar.gz"
        found = lock_url(store, "boost", "1.80.0", url, SHA)
        lock_url(store, "boost", "1.80.0", url, SHA)
        assert server.count("boost.tar.gz") == 1
    assert (found.file, found.size, found.index) == ("boost.tar.gz", len(CONTENT), url)
    assert store.read(found.digest) == CONTENT


@pytest.mark.parametrize("prefix", ["file://", ""])
def test_mirror_on_this_machine_needs_no_network(store: Store, tmp_path: Path, prefix: str) -> None:
    (tmp_path / "boost.tar.gz").write_bytes(CONTENT)
    found = lock_url(store, "boost", "1", AWAY, SHA, {"http://127.0.0.1:9/release/": [f"{prefix}{tmp_path}/"]})
    assert found.index == AWAY  # the mirror is named nowhere


def test_mirror_without_it_is_passed_over(store: Store, tmp_path: Path) -> None:
    (tmp_path / "boost.tar.gz").write_bytes(CONTENT)
    with IndexServer(tmp_path) as server:
        files = server.url.replace("/simple/", "/files/")
        places = ["file:///no/such/", files + "none/", files]
        found = lock_url(store, "boost", "1", AWAY, SHA, {"http://127.0.0.1:9/release/": places})
        assert (server.count("none/boost.tar.gz"), server.count("files/boost.tar.gz")) == (1, 1)
    assert store.read(found.digest) == CONTENT
    assert found.index == AWAY


def test_another_file_is_refused(store: Store, tmp_path: Path) -> None:
    (tmp_path / "boost.tar.gz").write_bytes(CONTENT + b"!")
    with pytest.raises(IntegrityError):
        lock_url(store, "boost", "1", AWAY, SHA, {"http://127.0.0.1:9/release/": [f"file://{tmp_path}/"]})


def test_nobody_has_it(store: Store) -> None:
    with pytest.raises(FetchError) as caught:
        lock_url(store, "boost", "1", "file:///no/such/boost.tar.gz", SHA)
    assert "sources.mirrors" in str(caught.value.cure)
