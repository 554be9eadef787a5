"""Golden: a fixed source and build give a fixed wheel, on every Python and every machine.

If this changes, raise the version of `source-wheel` (stages/builders.py), then put the new digest here.
"""

from __future__ import annotations

from pathlib import Path

from assemble.source_wheel import build
from cache.build import BuildContext
from cache.store import Store
from tests.support.images import ARM64, make_layer

METADATA = b"Metadata-Version: 2.4\nName: gold\nVersion: 1\nRequires-Dist: torch>=2\nRequires-Dist: numpy\n\nGold.\n"


def test_wheel(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    inputs = {
        "python": make_layer(store, {"src/gold/__init__.py": b"", "src/gold/run.sh": b"#!/bin/sh\n"},
                             {"src/gold/run.sh": 0o755}),
        "csrc": make_layer(store, {"src/gold/é.json": b"{}", "src/csrc/a.cu": b""}),
        "built": make_layer(store, {"gold-1.dist-info/METADATA": METADATA, "gold/_C.abi3.so": b"\x7fELF" * 1000})}
    outputs = build(BuildContext(store, {
        "name": "gold", "version": "1", "tag": "cp38-abi3-linux_aarch64", "python": ["gold/*"], "without": [],
        "replaces": [], "pins": {"torch": "2.11.0"}, "requires": ["torch", "numpy"]}, inputs, ARM64))
    assert outputs["wheel"].digest == "sha256:31e24baa5dc08f7f9a283cb6b5324519ec749a296a9bf6964e751b46e4beb9e2"
    assert outputs["facts"].digest == "sha256:ae71f685a0c6448ecb11b11f82702b37130579dca404fab382bca982f80a53a2"
