"""A small project in the place of vLLM, the whole way: lock, fetch, compile for a device, wheel, gates, load.

Its sources come from git repositories on this machine under the addresses that its CMake names; it is compiled by
vLLM's own script (vllm/build.sh) for thor and spark, whose other layers it shares; the policy is `native`.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import fatbin
from cache.layer import LayerReader
from cache.store import Store
from stages.plan import state_of
from stages.project import Project
from tests.support import small_vllm
from tests.support.front import HERE, command, committed_project, doit, environment
from tests.support.git_server import git_server

SITE = "usr/local/lib/python3.11/dist-packages"


@dataclass
class Place:
    """A project with the targets small-thor and small-spark, locked, and where its sources come from."""

    root: Path
    store: Path
    origin: small_vllm.Origin

    def run(self, *arguments: str, rc: int | None = 0, **more: str) -> tuple[str, str]:
        done = doit(self.root, self.store, *arguments, rc=rc, **more)
        return done.stdout, done.stderr

    def lock(self, target: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.root / f"targets/{target}.lock.json").read_text())
        return found

    def output(self, target: str, stage: str, name: str) -> str:
        """Digest of a stage's output; the stages below it are built."""
        project, store = Project(self.root), Store.open(self.store)
        records: dict[str, Any] = {}
        for one in project.graph(target).closure(stage):
            records[one.name] = state_of(one, {need: records[need] for need in one.dependencies()}, store)[1]
        return str(records[stage].outputs[name].digest)


@pytest.fixture(scope="module")
def place(thor_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    scratch = tmp_path_factory.mktemp("small-vllm")
    root = committed_project(scratch / "project")
    shutil.copytree(HERE / "vllm", root / "vllm", dirs_exist_ok=True)
    wheels = json.loads((HERE / "targets/thor.lock.json").read_text())["wheels"]
    pins = {wheel["name"]: wheel["version"] for wheel in wheels if wheel["name"] != "vllm"}
    origin = small_vllm.origin(scratch / "git", [f"torch=={pins['torch']}", "regex"])
    (root / "small").mkdir()
    (root / "small/recipe.yaml").write_text(small_vllm.RECIPE)
    (root / "small/project.json").write_text(json.dumps(small_vllm.PROJECT))
    with git_server(scratch / "git") as address:
        for name in ("thor", "spark"):
            (root / f"targets/small-{name}.yaml").write_text(small_vllm.target(address, pins, extends=name))
            # The lock of thor as the one before: what is there stays, and no other layer is new.
            text = (root / f"targets/{name}.lock.json").read_text()
            (root / f"targets/small-{name}.lock.json").write_text(text)
        found = Place(root, thor_store, origin)
        found.run("lock:small-thor")
        found.run("lock:small-spark")
        yield found


@pytest.fixture(scope="module")
def built(place: Place) -> Place:
    place.run("build:small-thor")
    place.run("build:small-spark")
    return place


def test_lock_has_every_source_by_content_and_every_tool(place: Place) -> None:
    package, = place.lock("small-thor")["sources"]
    trees = {tree["name"]: tree for tree in package["trees"]}
    assert set(trees) == {"cutlass", "vllm-flash-attn"}  # FlashMLA is a stub: nothing of it was asked for
    assert trees["cutlass"]["pinned"] == "v4.7.1"
    assert trees["cutlass"]["repository"] == "https://github.com/nvidia/cutlass.git"
    assert list(trees["vllm-flash-attn"]["submodules"]) == ["csrc/cutlass"]
    assert package["stubs"] == {"flashmla": "FLASH_MLA_SRC_DIR"}
    assert [line for line in package["requirements"] if line.startswith("torch==")]
    nvcc, = [wheel for wheel in package["tools"]["toolkit"] if wheel["name"] == "nvidia-cuda-nvcc"]
    assert nvcc["version"].startswith("13.0.")
    assert "x86_64" in nvcc["file"]
    assert not any(wheel["name"] == "vllm" for wheel in place.lock("small-thor")["wheels"])


@pytest.mark.parametrize(("policy", "taken", "why"), [
    ("native", "source", "device-code: vllm/vllm_flash_attn/_vllm_fa2_C.abi3.so: has PTX only"),
    ("loadable", "wheel", "preflight lets the wheel of the index pass"),
])
def test_lock_decides_between_wheel_and_source_and_says_why(place: Place, policy: str, taken: str, why: str) -> None:
    text = (place.root / "targets/small-thor.yaml").read_text()
    text = text.replace("from: source", "from: auto").replace("policy: native", f"policy: {policy}")
    (place.root / "targets/small-auto.yaml").write_text(text)
    shutil.copy(place.root / "targets/thor.lock.json", place.root / "targets/small-auto.lock.json")
    said = place.run("lock:small-auto")[0]
    lock = place.lock("small-auto")
    assert lock["decisions"]["vllm"]["from"] == taken
    assert why in lock["decisions"]["vllm"]["why"][0]
    assert why in said
    assert bool(lock.get("sources")) == (taken == "source")
    assert any(wheel["name"] == "vllm" for wheel in lock["wheels"]) == (taken == "wheel")


def test_lock_again_changes_nothing(place: Place) -> None:
    before = (place.root / "targets/small-thor.lock.json").read_bytes()
    place.run("lock:small-thor", "--only", "sources")
    assert (place.root / "targets/small-thor.lock.json").read_bytes() == before


def libraries(place: Place, target: str) -> dict[str, bytes]:
    store = Store.open(place.store)
    with LayerReader(store, place.output(target, "vllm", "index")) as layer:
        return {path.removeprefix(f"{SITE}/"): layer.read(path) for path in layer.entries if path.endswith(".so")}


def test_images_pass_all_gates_under_the_native_policy(built: Place) -> None:
    for target in ("small-thor", "small-spark"):
        report = json.loads(built.run(f"check:{target}", "--json")[0])
        assert report["passes"]
        states = {check["check"]: check["state"] for check in report["checks"]}
        for check in ("load", "contents", "device-code", "extensions", "abi"):
            assert states[check] == "passed", check


def test_code_is_for_exactly_the_device(built: Place) -> None:
    for target, arch in (("small-thor", "sm_110a"), ("small-spark", "sm_121a")):
        found = libraries(built, target)
        assert ("vllm/_flashkda_C.abi3.so" in found) == (target == "small-spark")
        for name in ("vllm/_C_stable_libtorch.abi3.so", "vllm/vllm_flash_attn/_vllm_fa2_C.abi3.so"):
            entries = fatbin.read(found[name]).entries
            assert {entry.target for entry in entries} == {arch}, (target, name)
            assert b".comment" not in found[name]


def test_wheel_and_provenance_say_what_it_was_made_of(built: Place) -> None:
    store = Store.open(built.store)
    packages = json.loads(store.read(built.output("small-thor", "vllm", "packages")))["packages"]
    vllm, = [package for package in packages if package["name"] == "vllm"]
    torch = next(wheel["version"] for wheel in built.lock("small-thor")["wheels"] if wheel["name"] == "torch")
    assert f"torch=={torch}" in vllm["requires_dist"]
    with LayerReader(store, built.output("small-thor", "vllm", "index")) as layer:
        python = {path.removeprefix(f"{SITE}/") for path in layer.entries if path.endswith(".py")}
    assert python >= {"vllm/models.py", "vllm/envs.py", "vllm/_version.py",
                      "vllm/vllm_flash_attn/flash_attn_interface.py"}
    origin = json.loads(store.read(built.output("small-thor", "attest", "provenance")))
    materials = {one["name"]: one for one in origin["predicate"]["buildDefinition"]["resolvedDependencies"]}
    locked, = built.lock("small-thor")["sources"]
    cutlass = next(tree for tree in locked["trees"] if tree["name"] == "cutlass")
    assert materials["cutlass"]["uri"] == f"git+https://github.com/nvidia/cutlass.git@{cutlass['revision']}"
    assert any(name.startswith("nvidia_cuda_nvcc-") and "x86_64" in name for name in materials)


def test_shell_in_what_the_script_is_started_in(built: Place) -> None:
    said = 'ls /inputs/files; uname -m; echo "$TORCH_CUDA_ARCH_LIST"; ls "$VLLM_CUTLASS_SRC_DIR"\n'
    done = subprocess.run(command(built.root, "shell:small-thor:vllm-extensions"), cwd=built.root, input=said,
                          env=environment(built.store), capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["build.sh", "setup_in_part.py", "aarch64", "11.0a", "include"]


def test_same_bytes_twice(built: Place) -> None:
    told = json.loads(built.run("rebuild:small-thor:vllm-extensions", "--json")[0])
    assert [entry["same"] for entry in told["stages"]] == [True]


def test_same_bytes_with_results_of_compilers_kept(built: Place) -> None:
    """What ends a build is in the key of the stage, and not in the name of what is kept."""
    before = built.output("small-thor", "vllm-extensions", "layer")
    recipe = built.root / "small/recipe.yaml"
    text = recipe.read_text()
    taken = []
    try:
        for _ in ("cold", "warm"):
            recipe.write_text(f'{text}  - {{pattern: "never said {time.time_ns()}", reason: nothing says it}}\n')
            built.run("vllm-extensions:small-thor", STAGECRAFT_CCACHE="on")
            assert built.output("small-thor", "vllm-extensions", "layer") == before
            log = built.run("log:small-thor:vllm-extensions")[0]
            taken.append([int(count) for count in re.findall(r"# ccache: (\d+) results taken, (\d+) compiled", log)[0]])
    finally:
        recipe.write_text(text)
    cold, warm = taken
    assert cold[0] == 0
    assert warm == [cold[1], 0]


def test_change_of_python_compiles_nothing(built: Place) -> None:
    """Last in this file: it moves the tag."""
    before = built.output("small-thor", "vllm-extensions", "layer")
    changed = f"ANSWER = {time.time_ns()}\n".encode()  # never in the store yet
    built.origin.vllm.commit({"vllm/models.py": changed})
    built.origin.tag()
    assert "is as it was" in built.run("lock:small-thor", "--only", "sources")[0]  # a tag that moved is not followed
    built.run("lock:small-thor", "--only", "sources", "--upgrade", "vllm")
    stages = json.loads(built.run("plan:small-thor", "--json")[0])["stages"]
    states = {stage["stage"]: stage["state"] for stage in stages}
    assert states["vllm-source"] == "build"
    events = built.root / "events.jsonl"
    built.run("--events", str(events), "vllm:small-thor")
    told = [json.loads(line) for line in events.read_text().splitlines()]
    assert {event["stage"] for event in told if event["event"] == "built"} == {"vllm-source", "vllm-wheel", "vllm"}
    assert built.output("small-thor", "vllm-extensions", "layer") == before
    with LayerReader(Store.open(built.store), built.output("small-thor", "vllm", "index")) as layer:
        assert layer.read(f"{SITE}/vllm/models.py") == changed
