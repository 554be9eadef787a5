"""What is said when a model does not load: files that are looked at before, and what the engine's processes said."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.vllm_backend import BACKEND, backend

checkpoint = backend("checkpoint")
overheard = backend("overheard")
LoadError = backend("interface").LoadError


def safetensors(length: int = 4) -> bytes:
    header = json.dumps({"__metadata__": {"format": "pt"}, "w": {"dtype": "BF16", "shape": [length // 2],
                                                                 "data_offsets": [0, length]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(length)


def model(directory: Path, **files: Any) -> Path:
    directory.mkdir(exist_ok=True)
    for name, content in {"config.json": b'{"architectures": ["A"]}', "model.safetensors": safetensors(),
                          **{name.replace("__", "."): content for name, content in files.items()}}.items():
        if content is not None:
            (directory / name).write_bytes(content)
    return directory


def test_a_whole_model(tmp_path: Path) -> None:
    assert checkpoint.look_at(model(tmp_path)) == ["A"]
    assert checkpoint.look_at(model(tmp_path / "dummy", model__safetensors=None), weights=False) == ["A"]


@pytest.mark.parametrize(("files", "said"), [
    ({"config__json": None, "model__safetensors": None}, "the model's directory is empty"),
    ({"config__json": None}, "not a model: .* has no config.json .it has model.safetensors"),
    ({"config__json": b"{"}, "is no JSON: .*config.json"),
    ({"config__json": b"[]"}, "is no JSON object"),
    ({"model__safetensors": None}, "the model has no weights"),
    ({"model__safetensors": safetensors()[:-1]}, "is cut short: .* has 107 of 108 bytes"),
    ({"model__safetensors": safetensors()[:20]}, "cut short, or no safetensors: .*20 bytes"),
    ({"model__safetensors": b""}, "cut short, or no safetensors: .*0 bytes"),
    ({"model__safetensors": b"x" * 500}, "cut short, or no safetensors"),
    ({"model__safetensors": safetensors() + b"x"}, "is damaged: .* has 109 bytes, 108 by its header"),
    ({"pytorch_model__bin": b""}, "is empty: .*pytorch_model.bin"),
])
def test_not_a_whole_model(tmp_path: Path, files: dict[str, Any], said: str) -> None:
    with pytest.raises(LoadError, match=said) as caught:
        checkpoint.look_at(model(tmp_path, **files))
    assert "\n" not in str(caught.value)


def test_a_file_that_the_index_names_is_missing(tmp_path: Path) -> None:
    index = json.dumps({"weight_map": {"w": "model-2.safetensors"}}).encode()
    directory = model(tmp_path)
    (directory / "model.safetensors.index.json").write_bytes(index)
    with pytest.raises(LoadError, match=r"cannot be read: .*model-2.safetensors: No such file"):
        checkpoint.look_at(directory)


def test_no_directory(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"cannot be read: .*: No such file"):
        checkpoint.look_at(tmp_path / "absent")


LOG = """\
(EngineCore pid=9) INFO 11-21 20:14:31 [core.py:99] Initializing a V1 LLM engine
(EngineCore pid=9) ERROR 11-21 20:14:33 [core.py:1120] EngineCore failed to start.
(EngineCore pid=9) ERROR 11-21 20:14:33 [core.py:1120] Traceback (most recent call last):
(EngineCore pid=9) ERROR 11-21 20:14:33 [core.py:1120]     raise ValueError("no")
(EngineCore pid=9) ERROR 11-21 20:14:33 [core.py:1120] ValueError: No available memory for the cache blocks.
(EngineCore pid=9) Process EngineCore:
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
""".splitlines()


@pytest.mark.parametrize(("lines", "found"), [
    (LOG, "ValueError: No available memory for the cache blocks."),
    (["a line", "torch.OutOfMemoryError: CUDA out of memory."], "OutOfMemoryError: CUDA out of memory."),
    (LOG[-1:], ""), (["nothing: here", "ERROR something"], ""), ([], "")])
def test_cause(lines: list[str], found: str) -> None:
    assert overheard.cause(lines) == found


#: In a process of its own, for it turns standard output over. A child writes on after `end`.
LISTENING = """
import importlib, os, subprocess, sys, types
package = types.ModuleType("p"); package.__path__ = [sys.argv[1]]; sys.modules["p"] = package
heard = importlib.import_module("p.overheard").Overheard()
print("before")
child = subprocess.Popen([sys.executable, "-c", "import sys; print('KeyError: 1', flush=True); sys.stdin.read(); "
                          "print('late', flush=True)"], stdin=subprocess.PIPE)
while not heard._lines or "KeyError" not in heard._lines[-1]:
    pass
heard.end()
assert heard.cause() == "KeyError: 1", heard._lines
os.write(1, b"after\\n")
child.communicate()
for thread in heard._threads:
    thread.join(10)
    assert not thread.is_alive()
"""


def test_listening_changes_nothing_of_what_is_written() -> None:
    done = subprocess.run([sys.executable, "-c", LISTENING, str(BACKEND)], capture_output=True, text=True, timeout=60,
                          check=False, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    assert (done.stderr, done.returncode) == ("", 0)
    assert sorted(done.stdout.splitlines()) == ["KeyError: 1", "after", "before", "late"]
