"""Finding an engine, without one; loading into a real engine is in tests/e2e."""

import hashlib
import json
from pathlib import Path

import pytest

from cache.errors import InputError, ToolError
from oci.docker import connect


def test_no_engine_is_said_with_what_was_tried(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="no Docker engine") as caught:
        connect({"DOCKER_HOST": f"unix://{tmp_path}/none.sock"})
    assert caught.value.where == f"unix://{tmp_path}/none.sock"
    assert "DOCKER_HOST" in str(caught.value.cure)
    assert "export" in str(caught.value.cure)


@pytest.mark.parametrize("host", ["nonsense://x", "tcp://127.0.0.1:1", "unix:///dev/null"])
def test_an_unusable_host_is_no_traceback(host: str) -> None:
    with pytest.raises(ToolError):
        connect({"DOCKER_HOST": host})


def context(home: Path, name: str, host: str) -> None:
    directory = home / "contexts" / "meta" / hashlib.sha256(name.encode()).hexdigest()
    directory.mkdir(parents=True)
    (directory / "meta.json").write_text(json.dumps(
        {"Name": name, "Metadata": {}, "Endpoints": {"docker": {"Host": host, "SkipTLSVerify": False}}}))


def test_the_context_decides_where_no_host_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    context(tmp_path, "named", f"unix://{tmp_path}/named.sock")
    context(tmp_path, "current", f"unix://{tmp_path}/current.sock")
    (tmp_path / "config.json").write_text(json.dumps({"currentContext": "current"}))
    for env, expected in (({"DOCKER_CONTEXT": "named"}, "named"), ({}, "current"),
                          ({"DOCKER_CONTEXT": "named", "DOCKER_HOST": f"unix://{tmp_path}/host.sock"}, "host")):
        with pytest.raises(ToolError) as caught:
            connect(env)
        assert caught.value.where == f"unix://{tmp_path}/{expected}.sock"


def test_a_context_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError) as caught:
        connect({"DOCKER_CONTEXT": "missing"})
    assert caught.value.found == "missing"
