"""Golden: fixed wheels give fixed layers, on every Python, every zlib and every machine.

If one of these changes, raise the version of `wheels-layer` or `triton-tree` (stages/builders.py), then put the new
digests here. The wheels' own bytes depend on the zlib that packs them, so `packages` is compared without their digests.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cache import canonical
from cache.store import Store
from tests.support.gates import Gates
from tests.support.pytriton import make_pytriton
from tests.support.wheel_factory import make_wheel


@pytest.fixture
def gates(tmp_path: Path) -> Gates:
    return Gates(Store.open(tmp_path / "store"))


def packages(gates: Gates, stage: str) -> str:
    listed = json.loads(gates.store.read(gates.outputs[f"{stage}/packages"]))["packages"]
    return canonical.sha256(canonical.dumps([{**package, "digest": ""} for package in listed]))


def test_wheels(gates: Gates, tmp_path: Path) -> None:
    one = make_wheel(
        tmp_path, "Gold.One", "1.0+x", tag="cp38-abi3-manylinux_2_17_aarch64", requires=["two>=1"], extras=["e"],
        requires_python=">=3.9", entry_points={"gold": "gold.cli:main"}, modes={"gold/run.sh": 0o755},
        files={"gold/__init__.py": b"", "gold/run.sh": b"#!/bin/sh\n", "gold/é.txt": b"x" * 70_000, "shared.py": b"1"},
        data={"scripts/tool": b"#!python\n", "headers/g.h": b"int g;", "data/share/g": b"g", "purelib/p.py": b""},
        dist_info={"INSTALLER": b"other\n"}, metadata="License-Expression: MIT\n")
    two = make_wheel(tmp_path, "two", "2", files={"two.py": b"2", "shared.py": b"2", "__pycache__/two.pyc": b"2"})
    gates.layer("deps", one, two, collisions=[{"path": "shared.py", "winner": "two", "reason": "golden"}])
    assert gates.outputs["deps/layer"] == "sha256:ad3ee447f6f7fc074e2fdbb6e8eccf4f5daa8861787b6721c18338b77a248409"
    assert gates.outputs["deps/index"] == "sha256:dbd1db5aac4ddfe8d3c535abba8271114164308fb7a92fc0c24a71dc71b19c68"
    assert packages(gates, "deps") == "sha256:e790731f4f6c9c59b314764b43ad906acc47750d1abb71390365b5d1c21b8694"


def test_triton_tree(gates: Gates, tmp_path: Path) -> None:
    gates.triton(make_pytriton(tmp_path))
    assert gates.outputs["triton/layer"] == "sha256:130e77c778d66527d71758f11f923e39608300aa9954b169c392b80b20f40c39"
    assert gates.outputs["triton/index"] == "sha256:8dac42e455db398a0cff6ea9634ba6c4bfcd41c1a72902a114f98aa5bd8ba6eb"
    assert packages(gates, "triton") == "sha256:45e993cdcd7996ed54deca9b4a59879e0f02544b4c611d76c88bf3d9f1d1732b"
