"""Compilers of the machine itself: beside those of the image, without them, and what they link against."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cache.layer import LayerReader
from cache.store import Store
from stages import resolve
from stages.engine import Engine
from stages.fetching import fetcher
from stages.project import Project
from tests.support.front import make_project
from tests.support.git_server import Repository, git_server

ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
PLATFORM = f"linux/{ARCHITECTURE}"
RECIPE = f"""\
format: stagecraft.recipe.v1
csrc: ["*.txt", "*.cc"]
script: recipe/build.sh
requirements: [requirements.txt]
tools: {{compilers: {{{PLATFORM}: {{{PLATFORM}: [g++-12, patch]}}}}, requires: []}}
"""
SCRIPT = """\
set -eu
mkdir /build/out
/cross/bin/g++ -shared -fPIC -o /build/out/x.so /inputs/csrc/src/x.cc
/cross/bin/g++ -o /build/x /inputs/csrc/src/x.cc
/build/x
command -v patch
/cross/bin/strip /build/out/x.so
/cross/bin/objdump -p /build/out/x.so > /build/out/headers
"""
TARGET = f"""\
format: stagecraft.target.v1
description: compiled where it runs
platform: {PLATFORM}
device: {{name: none, compute_capability: none, arch_list: none, cuda: none, driver_floor: none, memory: none}}
base: {{debian: {{suite: bookworm}}}}
python: {{version: "3.11", glibc: "2.36"}}
packages: {{python3: the interpreter of the image, libc6-dev: headers of the C library}}
sources: {{execution: {PLATFORM}, packages: {{pkg: {{version: "1.0", recipe: recipe/recipe.yaml}}}}}}
"""


@pytest.mark.parametrize("more", ["", ", g++: the image can compile too"])
def test_standard_library_stays_a_shared_one(more: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAGECRAFT_STORE", str(tmp_path / "store"))
    root = make_project(tmp_path / "project")
    (root / "recipe").mkdir()
    (root / "recipe/recipe.yaml").write_text(RECIPE)
    (root / "recipe/build.sh").write_text(SCRIPT)
    source = b'#include <iostream>\nint main() { std::cout << "it runs\\n"; }\n'
    Repository(tmp_path / "git" / "pkg").commit({"x.cc": source, "requirements.txt": b"# nothing\n"})
    with git_server(tmp_path / "git") as address:
        text = TARGET.replace("of the C library", f"of the C library{more}")
        (root / "targets/small.yaml").write_text(
            text.replace('"1.0",', f'"1.0", git: {{repository: "{address}pkg", tag: main}},'))
        resolve.lock(Project(root), "small", print)
        project = Project(root)
        store = Store.open(tmp_path / "store")
        engine = Engine(store, root, fetcher(root, project.suites, project.trees))
        record = engine.realise_all(project.graph("small"), "pkg-extensions")["pkg-extensions"]
    with LayerReader(store, record.outputs["index"].digest) as layer:
        assert b"NEEDED               libstdc++.so.6\n" in layer.read("headers")
