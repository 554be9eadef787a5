"""What uv is told, and what is read out of its answers. uv itself runs in tests/lock/test_wheels.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from cache.errors import ToolError
from lock.client import parse_toml
from lock.indexes import Indexes, load_indexes
from lock.uv import (
    Chosen,
    Offer,
    Question,
    environment,
    platform,
    preferences,
    project,
    read_answer,
    redacted,
    uv_settings,
)
from tests.support.index_server import client_environment, write_indexes

QUESTION = Question(("torch==2.13.0", "vllm"), (), (), "3.11", "aarch64", "2.36",
                    {"torch": "jetson", "triton": "jetson"}, {"b": "2", "a": "1+x"})


def indexes(tmp_path: Path, **env: str) -> Indexes:
    path = write_indexes(tmp_path / "indexes.yaml", {"jetson": {"type": "simple", "url": "https://j.example/+simple/"}})
    return load_indexes(path, client_environment(tmp_path, **env))


def test_settings(tmp_path: Path) -> None:
    known = indexes(tmp_path, PIP_INDEX_URL="https://a.example/simple", PIP_EXTRA_INDEX_URL="https://me:pw@b.example/simple",
                    PIP_FIND_LINKS="/wheels", PIP_TRUSTED_HOST="b.example")
    assert parse_toml(uv_settings(QUESTION, known)) == {
        "index-strategy": "unsafe-best-match", "find-links": ["/wheels"], "allow-insecure-host": ["b.example"],
        "index": [{"url": "https://me:pw@b.example/simple"}, {"url": "https://a.example/simple", "default": True}]}
    nothing = indexes(tmp_path, PIP_NO_INDEX="1", PIP_FIND_LINKS="/wheels")
    assert parse_toml(uv_settings(QUESTION, nothing)) == {
        "index-strategy": "unsafe-best-match", "find-links": ["/wheels"], "no-index": True}


def test_project(tmp_path: Path) -> None:
    assert parse_toml(project(QUESTION, indexes(tmp_path))) == {
        "project": {"name": "stagecraft-request", "version": "0", "requires-python": ">=3.11",
                    "dependencies": ["torch==2.13.0", "vllm", "triton"]},
        "tool": {"uv": {"sources": {"torch": {"index": "jetson"}, "triton": {"index": "jetson"}},
                        "index": [{"name": "jetson", "url": "https://j.example/+simple/", "explicit": True}]}}}


def test_preferences() -> None:
    assert [(item["name"], item["version"]) for item in parse_toml(preferences(QUESTION.pins))["packages"]] == [
        ("a", "1+x"), ("b", "2")]
    assert parse_toml(preferences({}))["packages"] == []


def test_environment(tmp_path: Path) -> None:
    known = indexes(tmp_path, PIP_CERT="/ca.pem", PIP_CLIENT_CERT="/me.pem", PIP_PROXY="http://p:1", PIP_TIMEOUT="7.6",
                    UV_INDEX_JETSON_USERNAME="me", UV_KEYRING_PROVIDER="subprocess", UV_PRERELEASE="allow",
                    SSL_CERT_DIR="/certs", LANG="C")
    found = environment(known.environ, known.client)
    for name, value in {"SSL_CERT_FILE": "/ca.pem", "SSL_CLIENT_CERT": "/me.pem", "HTTPS_PROXY": "http://p:1",
                        "UV_HTTP_TIMEOUT": "8", "UV_INDEX_JETSON_USERNAME": "me", "UV_KEYRING_PROVIDER": "subprocess",
                        "UV_CACHE_DIR": str(tmp_path / "uv-cache"), "LANG": "C"}.items():
        assert found.get(name) == value, name
    assert not {"UV_PRERELEASE", "SSL_CERT_DIR", "UV_NO_CONFIG"} & set(found)
    directory = indexes(tmp_path, PIP_CERT=str(tmp_path))
    assert environment(directory.environ, directory.client)["SSL_CERT_DIR"] == str(tmp_path)


def test_platform() -> None:
    """uv knows glibc versions with gaps and up to some newest; ours may be in a gap, or newer."""
    assert platform("aarch64", "2.36") == "aarch64-manylinux_2_36"
    assert platform("x86_64", "2.30") == "x86_64-manylinux_2_28"
    assert platform("aarch64", "2.99").startswith("aarch64-manylinux_2_4")
    with pytest.raises(ToolError, match="resolves for no such platform"):
        platform("aarch64", "2.12")


def test_redacted() -> None:
    assert redacted("failed: https://me:p%40ss@host.example/simple/x and http://tok@h/ but a@b.example stays") == (
        "failed: https://host.example/simple/x and http://h/ but a@b.example stays")


def test_answer(tmp_path: Path) -> None:
    text = """
        lock-version = "1.0"
        [[packages]]
        name = "Foo.Bar"
        version = "1.0+x"
        wheels = [
            { url = "https://u:p@i.example/f/foo_bar-1.0%2Bx-py3-none-any.whl", size = 7, hashes = { sha256 = "ab" } },
            { path = "../links/foo_bar-1.0+x-1-py3-none-any.whl", hashes = {} },
        ]
        [[packages]]
        name = "direct"
        version = "2"
        archive = { url = "file:///x/direct-2-py3-none-any.whl", hashes = { sha256 = "cd" } }
    """
    assert read_answer(text, tmp_path / "work") == [
        Chosen("foo-bar", "1.0+x", (
            Offer("foo_bar-1.0+x-py3-none-any.whl", "https://i.example/f/foo_bar-1.0%2Bx-py3-none-any.whl", "ab", 7),
            Offer("foo_bar-1.0+x-1-py3-none-any.whl",
                  (tmp_path / "links" / "foo_bar-1.0+x-1-py3-none-any.whl").as_uri(), "", 0))),
        Chosen("direct", "2", (Offer("direct-2-py3-none-any.whl", "file:///x/direct-2-py3-none-any.whl", "cd", 0),)),
    ]
