"""`dockerfile:<target>`: what is refused, and text that must survive Docker's reading; built for real in tests/e2e."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cache.errors import InputError
from stages.serve_dockerfile import _pair, _tool, run
from stages.tasks import Session
from tests.support.front import HERE, doit, make_project
from tests.support.project import TARGET


def test_values_in_quotes() -> None:
    assert _pair("A", 'a $HOME "b" \\c') == 'A="a \\$HOME \\"b\\" \\\\c"'
    assert _pair("A", "one\ntwo") == 'A="one two"'


def test_the_installer_is_pinned_for_every_machine(tmp_path: Path) -> None:
    text = _tool(HERE).decode()
    assert text.startswith("uv==")
    assert text.count("--hash=sha256:") > 5
    assert text.count("==") == 1
    (tmp_path / "requirements").mkdir()
    (tmp_path / "requirements/run.txt").write_text("doit==0.38\n")
    with pytest.raises(InputError, match="uv is not pinned"):
        _tool(tmp_path)


def test_no_lock(tmp_path: Path) -> None:
    root = make_project(tmp_path / "project", small=TARGET)
    assert "is not locked" in doit(root, tmp_path / "store", "dockerfile:small", rc=111).stderr
    assert not (root / "serve-small").exists()


def test_what_is_compiled_is_not_in_a_dockerfile(tmp_path: Path) -> None:
    assemble = SimpleNamespace(name="files-layer")
    stages: list[Any] = [SimpleNamespace(name=name, kind=kind, builder=assemble) for name, kind in (
        ("base", "assemble"), ("bytecode", "run"), ("vllm-extensions", "run"))]
    lock = SimpleNamespace(sources=(SimpleNamespace(name="vllm-backend"),))
    project = SimpleNamespace(target=lambda name: None, lock=lambda name: lock, root=tmp_path,
                              graph=lambda name: SimpleNamespace(stages=stages))
    session = cast(Session, SimpleNamespace(project=project))
    with pytest.raises(InputError) as caught:
        run(session, "small", {}, tmp_path / "out", False)
    assert caught.value.found == "vllm-extensions, vllm-backend"
    assert "./doit export:small" in str(caught.value.cure)
    stages.pop()
    lock.sources = ()
    with pytest.raises(InputError, match="small has no Triton server out of a wheel"):
        run(session, "small", {}, tmp_path / "out", False)
    assert not (tmp_path / "out").exists()
