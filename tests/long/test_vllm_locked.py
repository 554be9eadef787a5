"""The real vLLM 0.32.0 by the front door: locked from its sdist, patched, its device code told by its own CMake.

Its pins lead to github.com; mirrors on this machine stand for it. They hold what the index has of these trees
(`test_vllm_pieces.trees_of`), so trees that are pinned by a revision are taken by a tag of ours (`pins`).
"""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

from cache.layer import LayerReader
from cache.store import Store
from stages.plan import state_of
from stages.project import Project
from tests.long.test_vllm_pieces import RECIPE, VERSION, trees_of
from tests.support.front import committed_project, doit
from tests.support.git_server import Repository

#: Where CMake looks for the trees that thor compiles, and the tag of those that it names by one.
REPOSITORIES = {"cutlass": ("nvidia/cutlass.git", "v4.7.1"), "triton_kernels": ("triton-lang/triton.git", ""),
                "tml_fa4": ("vllm-project/tml-fa4.git", ""),
                "vllm-flash-attn": ("vllm-project/flash-attention.git", "")}
DEVICES = {"thor": "11.0a", "spark": "12.1a"}


def origin(store: Store, root: Path, names: dict[str, str]) -> None:
    """Repositories with what stands in for the pinned trees."""
    for name, digest in names.items():
        files = {}
        with store.open_blob(digest) as blob, tarfile.open(fileobj=blob) as archive:
            for member in archive:
                stream = archive.extractfile(member) if member.isfile() else None
                if stream is not None:
                    files[member.name] = stream.read()
        repository = Repository(root / REPOSITORIES[name][0])
        repository.commit(files)
        repository.git("tag", REPOSITORIES[name][1] or "ours")


@pytest.fixture(scope="module")
def project(thor_store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A project with the target real-thor, locked, and its store."""
    scratch = tmp_path_factory.mktemp("real")
    root = committed_project(scratch / "project")
    store = Store.open(thor_store)
    names = {name: tree for name, tree in trees_of(store, RECIPE.stubs(VERSION, DEVICES["thor"])).items()
             if name in REPOSITORIES}
    origin(store, scratch / "git", names)
    pins = "".join(f"        {name}: {{tag: ours, reason: its revision is not at hand}}\n"
                   for name in names if not REPOSITORIES[name][1])
    (root / "targets/real-thor.yaml").write_text(
        "format: stagecraft.target.v1\nextends: thor-source\ndescription: the real one with stand-ins for its trees\n"
        f'sources:\n  mirrors: {{"https://github.com/": ["file://{scratch}/git/"]}}\n'
        f"  packages:\n    vllm:\n      pins:\n{pins}")
    shutil.copy(root / "targets/thor.lock.json", root / "targets/real-thor.lock.json")
    doit(root, thor_store, "lock:real-thor")
    return root, thor_store


def locked(root: Path) -> dict[str, Any]:
    package, = json.loads((root / "targets/real-thor.lock.json").read_text())["sources"]
    return dict(package)


def test_lock_has_all_that_its_cmake_pins(project: tuple[Path, Path]) -> None:
    package = locked(project[0])
    assert package["source"]["file"] == f"vllm-{VERSION}.tar.gz"
    assert {tree["name"] for tree in package["trees"]} == set(REPOSITORIES)
    assert set(package["stubs"]) == set(RECIPE.stubs(VERSION, "11.0a"))
    assert "torch==2.13.0" in package["requirements"]


def test_its_own_cmake_tells_native_code_for_the_device(project: tuple[Path, Path]) -> None:
    root, store_path = project
    doit(root, store_path, "vllm-expected:real-thor")
    graph, store = Project(root).graph("real-thor"), Store.open(store_path)
    records: dict[str, Any] = {}
    for stage in graph.closure("vllm-expected"):
        records[stage.name] = state_of(stage, {name: records[name] for name in stage.dependencies()}, store)[1]
    with LayerReader(store, records["vllm-expected"].outputs["index"].digest) as layer:
        told = json.loads(layer.read("expected.json"))
    modules = told["modules"]
    fa2 = modules["vllm_flash_attn/_vllm_fa2_C"]
    assert set(fa2["sass"]) == {"110a"}
    assert not fa2["ptx"]
    # As the published wheel has for Thor: 7 sources of sm_110, 15 with PTX for 8.0.
    moe = modules["vllm/_moe_C_stable_libtorch"]
    assert (moe["units"], moe["sass"]["110a"], moe["ptx"]["80"]) == (22, 7, 15)
    facts = json.loads(store.read(records["vllm-source"].outputs["facts"].digest))
    assert len(facts["patches"]) == len(RECIPE.patches(VERSION))
