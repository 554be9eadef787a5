"""`backend: upstream` by the front door: locked from a git server, patched for the image's vLLM, held to its names.

The repository is a small one whose imports are those of NVIDIA's r26.01; the vLLM is thor's real one.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cache.layer import LayerReader
from cache.store import Store
from stages.plan import state_of
from stages.project import Project
from tests.support.front import HERE, doit, make_project
from tests.support.git_server import Repository, git_server

PLACE = "opt/tritonserver/backends/vllm"
FILES = {
    "src/model.py": b"from vllm.engine.arg_utils import AsyncEngineArgs\nfrom utils.metrics import TritonMetrics\n",
    "src/utils/request.py": b"import base64\nfrom vllm.inputs.data import TokensPrompt\nfrom vllm.outputs import "
                            b"RequestOutput\n",
    "src/utils/metrics.py": b"from vllm.config import VllmConfig\n"
                            b"from vllm.v1.metrics.loggers import StatLoggerBase, build_1_2_5_buckets\n",
    "src/utils/vllm_backend_utils.py": b"from vllm.sampling_params import SamplingParams\n",
    "ci/test.py": b"import vllm.not_there\n", "README.md": b"A backend.\n",
}
TARGET = """\
format: stagecraft.target.v1
extends: thor
description: thor with NVIDIA's vLLM backend
triton:
  backend: upstream
  backend_version: "26.01"
sources:
  mirrors: {"https://github.com/": ["@MIRROR@"]}
  packages:
    vllm-backend:
      git: {repository: "https://github.com/triton-inference-server/vllm_backend.git", tag: r26.01}
"""


@dataclass
class Place:
    root: Path
    store: Path

    def run(self, *arguments: str, rc: int | None = 0) -> tuple[str, str]:
        done = doit(self.root, self.store, *arguments, rc=rc)
        return done.stdout, done.stderr


@pytest.fixture(scope="module")
def place(thor_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    scratch = tmp_path_factory.mktemp("upstream")
    repository = Repository(scratch / "git/triton-inference-server/vllm_backend.git")
    repository.commit(FILES)
    repository.git("tag", "r26.01")
    root = make_project(scratch / "project", thor=(HERE / "targets/thor.yaml").read_text())
    with git_server(scratch / "git") as address:
        (root / "targets/up.yaml").write_text(TARGET.replace("@MIRROR@", address))
        shutil.copy(HERE / "targets/thor.lock.json", root / "targets/up.lock.json")
        found = Place(root, thor_store)
        found.run("lock:up", "--only", "sources")
        yield found


def test_it_is_patched_and_its_names_are_in_the_images_vllm(place: Place) -> None:
    place.run("gate:up:backend-imports")
    store, project = Store.open(place.store), Project(place.root)
    graph = project.graph("up")
    _, source = state_of(graph.stage("vllm-backend-source"), {}, store)
    _, record = state_of(graph.stage("backend"), {"vllm-backend-source": source}, store)
    assert record is not None
    with LayerReader(store, record.outputs["index"].digest) as layer:
        files = {path for path, entry in layer.entries.items() if entry["type"] == "file"}
        assert files == {f"{PLACE}/{path.removeprefix('src/')}" for path in FILES if path.startswith("src/")}
        assert b"from vllm.inputs import TokensPrompt\n" in layer.read(f"{PLACE}/utils/request.py")
        assert b"from vllm.v1.metrics.buckets import" in layer.read(f"{PLACE}/utils/metrics.py")
    assert place.run("plan:up")[0].count("backend-imports") == 1


def test_without_the_patches_it_would_not_pass(place: Place) -> None:
    """What a patch undoes is what the gate finds; and a patch that does not fit ends the build."""
    undo = place.root / "undo.patch"
    undo.write_text("--- a/src/utils/request.py\n+++ b/src/utils/request.py\n@@ -2 +2 @@\n"
                    "-from vllm.inputs import TokensPrompt\n+from vllm.inputs.data import TokensPrompt\n")
    path = place.root / "targets/up.yaml"
    before = path.read_text()
    path.write_text(before + "      patches: [undo.patch]\n")
    try:
        said = place.run("gate:up:backend-imports", rc=114)[1]
        assert "vllm.inputs.data" in said
        undo.write_text(undo.read_text().replace("-from vllm.inputs import", "-from vllm.other import"))
        assert "a patch does not apply" in place.run("backend:up", rc=110)[1]
    finally:
        path.write_text(before)
