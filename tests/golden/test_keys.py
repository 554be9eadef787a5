"""Golden keys: the plan key of every stage of a fixed target and lock.

A change here re-keys every store in the world: it must be meant. If what a builder makes changed, its version in
`stages/builders.py` goes up and the new keys are entered below; if nothing that it makes changed, the code is wrong.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from stages.graph import Graph, plan_keys
from stages.lockfile import parse
from stages.project import graph
from stages.target import load
from tests.support.front import make_project

TARGET = """\
format: stagecraft.target.v1
description: golden
platform: linux/arm64
device: {name: Golden, compute_capability: "11.0", arch_list: 11.0a, cuda: "13.0", driver_floor: "580", memory: unified}
base: {debian: {suite: bookworm}}
python: {version: "3.11", glibc: "2.36"}
packages: {python3: the interpreter of the image}
torch: {version: "2.13.0"}
vllm: {version: "0.32.0"}
triton: {version: "0.7.0"}
layers: {cuda: ["nvidia-*"], torch: [torch], vllm: [vllm], deps: ["*"]}
image: {user: {name: golden, uid: 1000, gid: 1000}, environment: {ARCH: "{arch_list}", SITE: "{site}"}, ports: [8000]}
"""

TABLE = """\
releases:
  - {since: "0.7.0", before: "0.7.1", triton: "2.51.0", container: "24.10", advisories: [CVE-1], fixed: "25.07"}
fixed: true
python_backend: {files: [a/], links: [b]}
"""

KEYS = {
    "base": "sha256:55353c1d893b39917074897652d6f2f27adccd4b50eb3f2ffc1e8aeeb6d99f06",
    "cuda": "sha256:c63a6ec00161b9642bd1c08e063b5ebc684b33a59dfc9ad61c9d6ff6224c72ea",
    "torch": "sha256:75e1dd42b6772606d212a3a2a56235bc5418d9beb30f6cb78ac9b7569d394a0c",
    "deps": "sha256:d2ed6d7499cfda1b9ff5920b74113e63a5f10ec1d45add7b3ccfc931243339c7",
    "vllm": "sha256:ad163340d83a9d2ee2522860b55d7cdf4fa729f0b14ca9a11439629e0d04facc",
    "links": "sha256:becb4f5217517d8797dc43447e604cded179d188b16035ca6a25ffea7def8b35",
    "triton": "sha256:524808ef5f5fedc0c0bd006ad2cb87edbba0993c1b299070266775b91b5ab0ce",
    "backend": "sha256:75427055ee351c2f33c69e675e864aca63d3905d3fb7eb88c9360700a590d2dc",
    "serve": "sha256:8e4d8a31189b5a6595cdaab2ce3414431c41bb33c41d0bb60e97b8d41014d628",
    "image": "sha256:a791ffd895c0332cdd5091905e7dfe331237f04a0ca8ee6e21030cb7ccf7c75f",
    "attest": "sha256:96c07e2dc2803530c4d0fa7fb37bedfbfbb51ea2a6c16a43977fe6f8549e8f2d",
}


def entry(name: str, version: str, file: str, digit: str) -> dict[str, Any]:
    return {"name": name, "version": version, "file": file, "size": 1000, "sha256": digit * 64, "index": "default"}


LOCK = {
    "format": "stagecraft.lock.v1", "target": "golden",
    "request": dict.fromkeys(("base", "wheels"), "sha256:" + "0" * 64),
    "base": {"kind": "debian", "suites": []},
    "python": {"version": "3.11", "executable": "/usr/bin/python3.11", "glibc": "2.36",
               "site": "usr/local/lib/python3.11/dist-packages", "scripts": "usr/local/bin", "data": "usr/local"},
    "debs": [{**entry("python3", "3.11.2-1", "pool/main/p/python3/python3_3.11.2-1_arm64.deb", "1"),
              "architecture": "arm64"}],
    "wheels": [entry(name, "1", f"{name.replace('-', '_')}-1-py3-none-any.whl", digit)
               for name, digit in (("nvidia-cublas", "2"), ("torch", "3"), ("six", "4"), ("vllm", "5"))] + [
        entry("nvidia-cuda-runtime", "13.0.96", "nvidia_cuda_runtime-13.0.96-py3-none-any.whl", "7")],
    "files": [entry("nvidia-pytriton", "0.7.0", "nvidia_pytriton-0.7.0-py3-none-manylinux_2_35_aarch64.whl", "6")],
}


@pytest.fixture
def golden(tmp_path: Path) -> Graph:
    """The graph of the fixed target. Templates and tables are fixed too: editing those must not look like a new key."""
    root = make_project(tmp_path / "project", golden=TARGET)
    (root / "templates" / "entrypoint.sh.j2").write_text("fixed\n")
    for name in ("healthcheck.py", "repository.py"):
        (root / "triton" / "serve" / name).write_text("fixed\n")
    shutil.rmtree(root / "triton" / "backend")
    (root / "triton" / "backend").mkdir()
    (root / "triton" / "backend" / "model.py").write_text("fixed\n")
    (root / "templates" / "libcuda.txt").write_text("# fixed\ncuInit\n")
    (root / "triton" / "pytriton-layout.yaml").write_text(TABLE)
    return graph(load(root, "golden"), parse(json.dumps(LOCK), "golden.lock.json"), root)


def test_keys_are_the_golden_ones(golden: Graph) -> None:
    assert plan_keys(golden) == KEYS


@pytest.mark.parametrize("name", sorted(KEYS))
def test_every_part_of_a_stage_is_in_its_key(golden: Graph, name: str) -> None:
    stage = golden.stage(name)
    builder = dataclasses.replace(stage.builder, version=stage.builder.version + 1)
    variants = [
        dataclasses.replace(stage, builder=builder),
        dataclasses.replace(stage, platform={**stage.platform, "architecture": "riscv64"}),
        dataclasses.replace(stage, environment={"A": "b"}),
        dataclasses.replace(stage, params={**stage.params, "more": 1}),
        dataclasses.replace(stage, inputs=dict(list(stage.inputs.items())[1:])),
        dataclasses.replace(stage, kind="run"),
    ]
    keys = {KEYS[name]}
    for variant in variants:
        stages = tuple(variant if other.name == name else other for other in golden.stages)
        keys.add(plan_keys(Graph("g", stages))[name])
    assert len(keys) == len(variants) + 1
    for kept in (dataclasses.replace(stage, title="another"), dataclasses.replace(stage, gates=("other",)),
                 dataclasses.replace(stage, mirrors=("other",)), dataclasses.replace(stage, labels={"a": "b"})):
        stages = tuple(kept if other.name == name else other for other in golden.stages)
        assert plan_keys(Graph("other name", stages))[name] == KEYS[name]
