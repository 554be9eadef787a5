"""What an image says of itself, and what is in the keys of a graph: only what can change what is built."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from assemble.triton_tree import build
from cache.build import BuildContext
from cache.errors import InputError
from cache.store import Store
from stages import disk, image, triton
from stages.graph import DataInput, Graph, plan_keys
from stages.lockfile import Lock, LockedFile
from stages.project import graph
from stages.target import load
from tests.support.front import make_project
from tests.support.gates import LAYOUT
from tests.support.project import TARGET
from tests.support.pytriton import make_pytriton

PYTHON = {"version": "3.11", "executable": "/usr/bin/python3.11", "glibc": "2.36",
          "site": "usr/local/lib/python3.11/dist-packages", "scripts": "usr/local/bin", "data": "usr/local"}
BASE = {"kind": "image", "reference": "one.example/team/os:1@sha256:" + "1" * 64, "repository": "one.example/team/os",
        "digest": "sha256:" + "1" * 64, "config": {"digest": "sha256:" + "2" * 64, "environment": {}}, "suites": [],
        "layers": [{"digest": "sha256:" + "3" * 64, "size": 1000, "media_type": "x", "diff_id": "sha256:" + "4" * 64}]}
TEXT = TARGET + """\
triton: {version: "0.7.0"}
wheels:
  requirements: [six]
  collisions: [{path: "x/*", winner: six, reason: six is the newer of the two}]
  records: [{wheel: six, path: "y/*", reason: altered after it was made}]
image:
  environment: {A: "{site}/x", B: "{{}} {arch_list}", C: "{{site}}"}
  labels: {org.opencontainers.image.title: mine, com.example.none: none}
"""


def entry(name: str, index: str = "default") -> LockedFile:
    return LockedFile(name, "0.7.0", f"{name}-0.7.0-py3-none-any.whl", 500, "a" * 64, index)


LOCK = Lock("small", {}, BASE, PYTHON, wheels=(entry("six"),), files=(entry("nvidia-pytriton"),))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_project(tmp_path / "project", small=TEXT)


def made(root: Path, lock: Lock = LOCK) -> Graph:
    return graph(load(root, "small"), lock, root)


def change(root: Path, old: str, new: str, path: str = "targets/small.yaml") -> Graph:
    text = (root / path).read_text()
    assert old in text
    (root / path).write_text(text.replace(old, new, 1))
    return made(root)


def differing(one: Graph, two: Graph) -> set[str]:
    a, b = plan_keys(one), plan_keys(two)
    assert a.keys() == b.keys()
    return {name for name in a if a[name] != b[name]}


def labels(of: Graph) -> dict[str, str]:
    found: dict[str, str] = of.stage("image").params["labels"]
    return found


def test_placeholders_are_filled_in_and_doubled_braces_are_text(root: Path) -> None:
    assert made(root).stage("image").params["environment"] == {
        "A": "/usr/local/lib/python3.11/dist-packages/x", "B": "{} none", "C": "{site}"}


def test_labels_tell_of_the_server_and_of_every_exception(root: Path) -> None:
    found = labels(made(root))
    assert found["io.stagecraft.triton"] == "2.51.0"
    assert found["io.stagecraft.triton.from"] == "nvidia-pytriton 0.7.0"
    assert "(24.10), not for open networks" in found["io.stagecraft.triton.notice"]
    assert "CVE-2025-23310, " in found["io.stagecraft.triton.notice"]
    waived: list[dict[str, Any]] = json.loads(found["io.stagecraft.waivers"])
    assert {"collision": "x/*", "winner": "six", "reason": "six is the newer of the two"} in waived
    assert {"record": "six: y/*", "reason": "altered after it was made"} in waived
    assert found["org.opencontainers.image.title"] == "mine"
    assert found["com.example.none"] == "none"
    assert "io.stagecraft.cuda" not in found


def test_what_is_only_said_of_a_server_is_in_the_image_and_not_in_the_tree(root: Path) -> None:
    before = made(root)
    assert differing(before, change(root, "advisories: [", "advisories: [CVE-2099-1, ", triton.LAYOUT)) == {
        "image", "attest"}
    assert "CVE-2099-1" in labels(made(root))["io.stagecraft.triton.notice"]
    after = made(root)
    assert not differing(after, change(root, "# How a Triton", "# Another comment. How a Triton", triton.LAYOUT))
    assert not differing(after, change(root, 'numpy: "<2"', 'numpy: "<3"', triton.LAYOUT))
    assert "triton" in differing(after, change(root, "required: [LICENSE]", "required: [LICENSE, x]", triton.LAYOUT))
    assert "triton" in differing(made(root), change(root, 'container: "24.10"', 'container: "24.11"', triton.LAYOUT))


def test_tree_from_the_one_release_is_the_tree_from_the_whole_table(root: Path, tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    stage = made(root).stage("triton")
    given = stage.inputs["layout"]
    assert isinstance(given, DataInput)
    wheel = store.put(make_pytriton(tmp_path).read_bytes()).digest
    results = [build(BuildContext(store, stage.params, {"wheel": wheel, "layout": store.put(layout).digest},
                                  {"os": "linux", "architecture": "arm64"}))
               for layout in (given.content, LAYOUT.read_bytes())]
    assert results[0] == results[1]


@pytest.mark.parametrize("text", ["", "releases: 7\n", "releases: [{}]\n", "releases: [\n", "[]\n", "\xff: {",
                                  "releases: [{since: 1, before: '2', triton: '1', container: '1'}]\n"])
def test_malformed_table_is_named(root: Path, text: str) -> None:
    (root / triton.LAYOUT).write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match="table of server trees is malformed") as caught:
        made(root)
    assert str(caught.value.where).startswith(triton.LAYOUT)


def test_reasons_re_key_no_layer(root: Path) -> None:
    before = made(root)
    assert differing(before, change(root, "six is the newer of the two", "six is the better one")) == {
        "image", "attest"}
    assert differing(made(root), change(root, "altered after it was made", "made before it was altered")) == {
        "image", "attest"}
    assert "deps" in differing(made(root), change(root, 'path: "y/*"', 'path: "z/*"'))


def test_where_things_come_from_is_in_no_key_but_the_provenance(root: Path) -> None:
    before = made(root)
    other = dataclasses.replace(LOCK, wheels=(entry("six", "jetson"),), files=(entry("nvidia-pytriton", "jetson"),))
    assert not differing(before, made(root, other))
    mirrored = dataclasses.replace(LOCK, base={**BASE, "repository": "two.example/team/os"})
    assert differing(before, made(root, mirrored)) == {"attest"}
    assert labels(made(root, mirrored)) == labels(before)
    assert image.materials(mirrored)["base"]["repository"] == "two.example/team/os"
    moved = dataclasses.replace(LOCK, base={**BASE, "digest": "sha256:" + "9" * 64})
    assert labels(made(root, moved))["io.stagecraft.lock"] != labels(before)["io.stagecraft.lock"]


def test_base_layers_count_once_in_what_a_build_needs(root: Path, tmp_path: Path) -> None:
    """They are inputs of `base-facts` and of `image`."""
    change(root, 'triton: {version: "0.7.0"}\n', "")
    store = Store.open(tmp_path / "store")
    bare = dataclasses.replace(LOCK, wheels=(), files=())
    assert disk.needed_by(made(root, bare), store) == 1000
    assert disk.needed_by(made(root, dataclasses.replace(bare, wheels=(entry("six"),))), store) == 1000 + 500 * 3.5
