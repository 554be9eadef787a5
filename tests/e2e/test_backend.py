"""The vLLM backend in the real Triton server, asked by plain HTTP and by NVIDIA's client, over HTTP and gRPC.

The server is that of nvidia-pytriton, its Python is Debian's, and both run in the sandbox; the engine is the stand-in.
What is asked, and what is expected, is in tests/support/backend_inside.py: it runs in there.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from cache.layer import layer_of
from cache.store import Store
from executors import trees
from executors.choose import executor
from executors.process import Limits, Process
from stages.plan import evaluate
from stages.project import Project
from tests.support import backend_inside
from tests.support.front import doit, make_project
from tests.support.project import without_gpu
from tests.support.vllm_backend import BACKEND, STANDIN

MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}
pytestmark = pytest.mark.skipif(platform.machine() not in MACHINES, reason="there is no server for this machine")

TARGET = without_gpu("a server with its Python, and a client", platform="linux/@ARCHITECTURE@") + """\
packages:
  python3: the interpreter that the stub embeds
  libpython3.11: the Triton stub links it
  libstdc++6: the Triton server links it
  libnuma1: the Triton server links it
triton:
  version: "0.7.0"
wheels:
  requirements: [numpy==1.26.4, "tritonclient[grpc,http]==2.73.0"]
waivers:
  - check: advisories
    subject: "triton-inference-server 2.51.0: *"
    reason: a test, which serves nobody
"""
LAYERS = ("base", "deps", "triton")
TRITON = "/opt/tritonserver"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, str]]:
    """Case to what went wrong in it."""
    directory = tmp_path_factory.mktemp("backend")
    target = TARGET.replace("@ARCHITECTURE@", MACHINES[platform.machine()])
    root, store = make_project(directory / "project", served=target), directory / "store"
    doit(root, store, "lock:served")
    for stage in LAYERS:
        doit(root, store, f"{stage}:served")
    yield run(root, Store.open(store), directory / "scratch")
    trees.discard(directory)


def run(root: Path, store: Store, scratch: Path) -> Mapping[str, str]:
    project = Project(root)
    records = evaluate(project.graph("served"), store)
    outputs = [records[stage][1] for stage in LAYERS]
    layers = tuple(layer_of(store, record.outputs["index"].digest) for record in outputs if record is not None)
    given = scratch / "given"
    given.mkdir(parents=True)
    plan = {"server": f"{TRITON}/bin/tritonserver", "python_backend": f"{TRITON}/backends/python",
            "backend": "/inputs/backend", "standin": "/inputs/standin.py", "work": "/build"}
    (given / "plan.json").write_text(json.dumps(plan))
    said: list[str] = []
    command = ("/usr/bin/python3", "/inputs/inside.py", "/inputs/given/plan.json", "/build/results.jsonl")
    process = Process(layers, command, platform.machine(), {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"},
                      {"given": given, "backend": BACKEND, "standin.py": STANDIN,
                       "inside.py": Path(backend_inside.__file__)},
                      Limits(memory=4 << 30, seconds=300, pids=2000), ("results.jsonl",))
    outcome = executor(store, platform.machine(), []).run(process, scratch, log=said.append)
    assert outcome.ok, (outcome, said[-30:])
    lines: list[dict[str, Any]] = [json.loads(line)
                                   for line in outcome.outputs["results.jsonl"].read_text().splitlines()]
    return {line["case"]: line["problem"] for line in lines}


@pytest.mark.parametrize("case", backend_inside.CASES)
def test_case(results: Mapping[str, str], case: str) -> None:
    assert case in results, f"it was not run; {', '.join(results)} were"
    assert not results[case], results[case]
