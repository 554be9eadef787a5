"""Which index torch comes from: one word in the target; and what an index cannot serve is said in those words."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.front import MINI, doit, make_project
from tests.support.index_server import IndexServer
from tests.support.wheel_factory import make_wheel

TORCH = 'torch:\n  version: "2.13.0"\n  index: default'
TARGET = MINI.replace("linux/amd64", "linux/arm64").replace("trixie", "bookworm").replace("3.13", "3.11") \
    .replace("2.41", "2.36").replace('triton:\n  version: "0.7.0"', TORCH).replace("[click==8.1.8]", "[]")


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[tuple[IndexServer, IndexServer]]:
    """The client's own index and a mirror, both with a torch 2.13.0 for CPython 3.11 on aarch64."""
    for name, tag in (("main", "cp311-cp311-manylinux_2_28_aarch64"), ("mirror", "cp311-cp311-linux_aarch64")):
        (tmp_path / name).mkdir()
        make_wheel(tmp_path / name, "torch", "2.13.0", files={"torch/version.py": f"of = '{name}'\n".encode()}, tag=tag)
    with IndexServer(tmp_path / "main") as main, IndexServer(tmp_path / "mirror") as mirror:
        yield main, mirror


def torch_of(root: Path) -> tuple[str, str]:
    lock = json.loads((root / "targets" / "small.lock.json").read_text())
    return next((wheel["index"], wheel["file"]) for wheel in lock["wheels"] if wheel["name"] == "torch")


def test_one_word_switches_torch_to_the_mirror(servers: tuple[IndexServer, IndexServer], tmp_path: Path) -> None:
    main, mirror = servers
    root, store = make_project(tmp_path / "project", small=TARGET), tmp_path / "store"
    more = {"PIP_INDEX_URL": main.url, "UV_INDEX_URL": main.url, "PIP_CONFIG_FILE": "/dev/null",
            "STAGECRAFT_INDEX_JETSON": mirror.url}
    doit(root, store, "lock:small", **more)
    assert torch_of(root) == ("default", "torch-2.13.0-cp311-cp311-manylinux_2_28_aarch64.whl")
    (root / "targets" / "small.yaml").write_text(TARGET.replace("index: default", "index: jetson"))
    changed = doit(root, store, "lock:small", **more).stdout
    assert "torch" in changed
    assert torch_of(root) == ("jetson", "torch-2.13.0-cp311-cp311-linux_aarch64.whl")
    before = mirror.count("linux_aarch64.whl", "GET"), main.count(".whl", "GET")
    doit(root, store, "torch:small", **more)
    assert (mirror.count("linux_aarch64.whl", "GET"), main.count(".whl", "GET")) == (before[0] + 1, before[1])


def test_mirror_without_a_wheel_for_this_python_is_refused_in_words(tmp_path: Path) -> None:
    make_wheel(tmp_path, "torch", "2.13.0", files={"torch/version.py": b"x = 1\n"}, tag="cp312-cp312-linux_aarch64")
    root = make_project(tmp_path / "project", small=TARGET.replace("index: default", "index: jetson"))
    with IndexServer(tmp_path) as mirror:
        done = doit(root, tmp_path / "store", "lock:small", rc=111, STAGECRAFT_INDEX_JETSON=mirror.url)
    assert "index jetson has torch only for cp312, this base is 3.11" in done.stderr
    assert not (root / "targets" / "small.lock.json").exists()
